"""A small unrest that a policy adds to what it asks for, so that it does not come to a stand.

A policy that acts by its mean alone can come to rest where it is of two minds, and then sees the
same thing for ever; machines that stick are kept moving in the same way. What is added repeats
every PERIOD control steps, is the same in every episode, and is never more than twice its standard
deviation.
"""

from __future__ import annotations

import numpy as np

PERIOD = 256  # control steps
MAX_STD = 0.2  # of an action: beyond that it is the unrest that acts
_SEED = 0
_LARGEST = 2.0  # deviations


def dither_table(std: float, joints: int) -> np.ndarray:
    """(PERIOD, joints) float64: what is added to the action of each control step of an episode.

    std: standard deviation, as a share of the velocity limits. Every version of numpy draws the
    same.
    """
    table = np.random.RandomState(_SEED).standard_normal((PERIOD, joints))
    return std * table.clip(-_LARGEST, _LARGEST)
