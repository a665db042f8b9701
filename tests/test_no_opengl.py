"""No OpenGL library is needed: none is loaded by what trains, judges, exports or calibrates."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from visuomotor import calibrate, deploy, evaluate, export, overlay, train, view
from visuomotor.config import Config
from visuomotor.envs import make_env

env = make_env(Config(task="stacking"), num_envs=1, seed=0)
env.reset()
assert env.step(torch.zeros(1, 9)).observation.pixels.float().std() > 0.0
with open("/proc/self/maps") as maps:
    loaded = maps.read()
print([name for name in ("libGL", "libEGL", "libOSMesa", "libOpenGL") if name in loaded])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="tells what a process has loaded")
def test_no_opengl_library_is_loaded() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
