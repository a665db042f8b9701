"""What the runtime knows of Kinova's Jaco 2 (6 joints, 3 fingers) in the robot's own terms.

Numbers of the model in dm_control 1.0.50 (a test compares them); joint i's angle is dm_control's.
Accelerations and jerks are tuned: a stop from full speed takes 0.15 s for the arm, 0.2 s for the
fingers, and the policies of this package still succeed under them.
"""

from __future__ import annotations

import numpy as np

from visuomotor.runtime.arm import ArmLimits
from visuomotor.runtime.kinematics import Chain

ARM_JOINTS = tuple(f"jaco_arm/joint_{i}" for i in range(1, 7))
FINGER_JOINTS = tuple(f"jaco_arm/jaco_hand/finger_{i}" for i in range(1, 4))

_HALF = np.sqrt(0.5)
_WRIST = (0.0, 0.0, 0.5000001748438417, 0.8660253028382761)  # the wrist's 60 degrees
CHAIN = Chain(
    link_pos=np.array(
        [
            [0.0, 0.0, 0.15675],
            [0.0, 0.0016, -0.11875],
            [0.0, -0.41, 0.0],
            [0.0, 0.2073, -0.0114],
            [0.0, -0.03703, -0.06414],
            [0.0, -0.03703, -0.06414],
        ]
    ),
    link_quat=np.array(
        [
            [0.0, 0.0, 1.0, 0.0],
            [0.0, 0.0, -_HALF, _HALF],
            [0.0, 0.0, 1.0, 0.0],
            [0.0, 0.0, -_HALF, _HALF],
            _WRIST,
            _WRIST,
        ]
    ),
    tool_pos=np.array([0.015, 0.0024, -0.193]),  # between the fingertips
)

LIMITS = ArmLimits(
    joint_names=ARM_JOINTS + FINGER_JOINTS,
    position_low=np.array([-np.inf, 0.820305, 0.331613, -np.inf, -np.inf, -np.inf, *3 * [0.15]]),
    position_high=np.array([np.inf, 5.462881, 5.951573, np.inf, np.inf, np.inf, *3 * [1.35]]),
    velocity=np.array([*3 * [np.pi / 5], *3 * [np.pi * 4 / 15], *3 * [1.2]]),  # 36 and 48 deg/s
    acceleration=np.array([*6 * [8.0], *3 * [10.0]]),
    jerk=np.array([*6 * [250.0], *3 * [300.0]]),
    chain=CHAIN,
    # Around the table's part that the camera sees, from the base, which stands 0.4 m behind it.
    workspace_low=np.array([-0.35, -0.75, 0.0]),
    workspace_high=np.array([0.35, -0.1, 0.5]),
)
