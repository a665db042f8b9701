"""Joints as a policy reads them. numpy only; the same numbers as `envs.robot.Jaco.proprio`."""

from __future__ import annotations

import numpy as np

NUM_ARM = 6


def proprioception(position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """position, velocity (9,) rad, rad/s, arm joints first -> (24,) float32: sin, cos, velocity of
    the six arm joints, sin, cos of the three fingers (policy.json, proprio.entries)."""
    arm, fingers = position[:NUM_ARM], position[NUM_ARM:]
    with np.errstate(invalid="ignore"):  # NaN of what is not finite, which the network tells
        parts = (np.sin(arm), np.cos(arm), velocity[:NUM_ARM], np.sin(fingers), np.cos(fingers))
    return np.concatenate(parts).astype(np.float32)


def entries(joint_names: tuple[str, ...]) -> list[str]:
    """policy.json's names of what `proprioception` gives."""
    arm, fingers = joint_names[:NUM_ARM], joint_names[NUM_ARM:]
    groups = (("sin", arm), ("cos", arm), ("velocity", arm), ("sin", fingers), ("cos", fingers))
    return [f"{what}({joint})" for what, joints in groups for joint in joints]
