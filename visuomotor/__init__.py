"""From a task and thirty demonstrations to a policy that moves a real arm from pixels."""

import os

# Before torch loads OpenMP: its idle threads would otherwise spin for milliseconds on the cores
# that physics and rendering want next, which costs a fifth of the training speed.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
