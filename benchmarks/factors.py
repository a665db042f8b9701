"""docs/randomization.md and its picture: every factor with unit, default, range and extremes.

    python benchmarks/factors.py

Ranges are read off the package; what a factor means stands here, and one without words is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from visuomotor.config import Config, RandomizationConfig
from visuomotor.envs import VisuomotorEnv, make_env

DOCS = Path("docs")
PICTURE = DOCS / "images" / "randomization.png"
SIZE = 160  # pixels of each view
COLUMNS = 3  # factors beside each other in the picture
PAPER = "Zhu et al. 2018"
OURS = "chosen here"
# Group -> unit and meaning, where it comes from.
WORDS: dict[str, tuple[str, str]] = {
    "camera_pos": ("m, added to each axis", PAPER),
    "camera_rotation": ("degrees, about each of the camera's axes", PAPER),
    "camera_fovy": ("degrees, added to the vertical field of view", OURS),
    "num_lights": ("lights switched on", OURS),
    "light_pos": ("m, added to each axis", PAPER),
    "light_direction": ("degrees, tilt about world x and y", PAPER),
    "light_colour": ("scale, each colour channel", OURS),
    "colour": ("added to each colour channel (0 to 1)", PAPER),
    "texture": ("number of the texture, 0: plain", PAPER),
    "texture_repeat": ("scale of the texture's repetitions", OURS),
    "brightness": ("factor on the image", OURS),
    "contrast": ("factor on the image", OURS),
    "hue": ("turns of the hue circle", OURS),
    "pixel_noise": ("half width of uniform noise a channel, of 255", PAPER),
    "shade": ("share of the light missing in patches with sharp edges; off unless it is set", OURS),
    "shade_pattern": ("which patches", OURS),
    "prop_friction": ("scale of sliding, torsional and rolling friction", PAPER),
    "prop_mass": ("scale of mass and inertia", PAPER),
    "prop_inertia": ("further scale of the inertia", PAPER),
    "prop_size": ("scale of all lengths", PAPER),
    "joint_damping": ("scale, each joint", PAPER),
    "joint_armature": ("scale, each joint", PAPER),
    "joint_friction": ("scale of the dry friction, each joint", PAPER),
    "actuator_gain": ("scale of the velocity servo's gain, each joint", PAPER),
    "gravity_tilt": ("degrees about world x and y: a table that is not level", OURS),
    "camera_delay": ("control steps from exposure to use", OURS),
    "action_delay": ("control steps from decision to execution", OURS),
    "action_drop": ("probability that a new action is dropped", PAPER),
    "proprio_noise": ("standard deviation of what the joints tell, rad and rad/s", PAPER),
}
SEEN = (
    *("camera_pos", "camera_rotation", "camera_fovy", "num_lights", "light_pos"),
    *("light_direction", "light_colour", "colour", "texture", "texture_repeat"),
    *("brightness", "contrast", "hue", "pixel_noise", "prop_size", "shade"),
)
SHADE = (0.0, 0.8)  # in the picture: by default there is none


def groups_of(env: VisuomotorEnv) -> dict[str, list[str]]:
    """Group as in WORDS -> its factors' names."""
    found: dict[str, list[str]] = {}
    for name in env.randomizer.factor_names:
        found.setdefault(name.split("/")[0], []).append(name)
    missing = sorted(found.keys() - WORDS.keys())
    if missing:
        raise SystemExit(f"benchmarks/factors.py has no words for: {', '.join(missing)}")
    return found


def _view(config: Config, pinned: dict[str, float]) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8 RGB of one start with these factors, all others neutral."""
    env = make_env(config, num_envs=1, seed=3)
    for name, value in pinned.items():
        env.randomizer.pin(name, value)
    pixels = env.reset().pixels
    assert pixels is not None
    return pixels[0].permute(1, 2, 0).cpu().numpy()


def picture(config: Config, groups: dict[str, list[str]]) -> np.ndarray:
    """A pair of views for every factor that is seen: the lower and the higher end of its range."""
    env = make_env(config, num_envs=1, seed=3, render=False)
    by_name = {factor.name: factor for factor in env.randomizer.factors}
    cells = []
    for group in SEEN:
        pair = []
        for end in ("low", "high"):
            pinned = {name: getattr(by_name[name], end) for name in groups[group]}
            if group == "texture_repeat":  # of a texture, which a plain surface has not
                pinned |= {name: 1.0 for name in groups["texture"]}
            if group == "shade":
                pinned = {"shade": SHADE[end == "high"], "shade_pattern": 0.07}
            pair.append(_view(config, pinned))
        cell = np.concatenate(pair, axis=1)
        title = np.full((22, cell.shape[1], 3), 255, dtype=np.uint8)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(title, group, (4, 16), font, 0.48, (0, 0, 0), 1, cv2.LINE_AA)
        cells.append(np.concatenate((title, cell), axis=0))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[i : i + COLUMNS], axis=1) for i in range(0, len(cells), COLUMNS)]
    return np.concatenate(rows, axis=0)


def page(env: VisuomotorEnv, groups: dict[str, list[str]]) -> str:
    by_name = {factor.name: factor for factor in env.randomizer.factors}
    lines = [
        "# Randomization",
        "",
        "Every factor is drawn once an episode and world, stands in `episodes.csv`, and can be",
        "swept (`sims=sweep:<factor>`). Ranges are those at `randomization.strength=1`, around the",
        "scene's own value; at 0 every factor is neutral. Settings of the same names stand in",
        "`visuomotor/config.py`, under `randomization.appearance`, `.dynamics` and `.latency`.",
        "",
        "The source is that of the factor. Of the paper's ranges those of `pixel_noise` and",
        "`proprio_noise` are published; all others are chosen here. This page is written by",
        "`python benchmarks/factors.py`, for the task `stacking`.",
        "",
        "| factor | of | neutral | range | drawn | unit | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, names in groups.items():
        spans: dict[tuple[float, float], list[str]] = {}
        for name in names:
            spans.setdefault((by_name[name].low, by_name[name].high), []).append(name)
        for (low, high), members in spans.items():
            first = by_name[members[0]]
            parts = dict.fromkeys(name.split("/")[1] for name in members if "/" in name)
            unit, source = WORDS[group]
            drawn = first.distribution.replace("_", "-")
            lines.append(
                f"| `{group}` | {', '.join(parts)} | {first.neutral:g} | {low:g} to {high:g} | "
                f"{drawn} | {unit} | {source} |"
            )
    lines += [
        "",
        "Their two ends, with all else neutral, as the policy's camera sees them, at a higher",
        "resolution. All parts of a group are at the same end here; in training each is drawn",
        "alone. The other factors change how things move, and show nothing at a start.",
        "",
        f"![Both ends of every factor that is seen]({PICTURE.relative_to(DOCS)})",
        "",
        "The state that critic and teacher see ends with the action just executed and the newest",
        "one asked for. At an `action_delay` of two steps or more it is not complete: the actions",
        "between the two, which are still to be executed, are not in it.",
        "",
        "## A factor of your own",
        "",
        "A range is one setting (`randomization.dynamics.prop_mass=0.3,3`). A new factor is one",
        "function, in any module that is imported before the environment is built (the module of",
        "[a task of your own](your_own_task.md), for example):",
        "",
        "```python",
        "from visuomotor.randomization import register_factor",
        "",
        "",
        '@register_factor("table_friction", field="geom_friction", bounds=(0.8, 1.3), neutral=1.0)',
        "def table_friction(model, field, values):",
        '    field[:, model.geom("table").id, 0] *= values[:, 0]',
        "```",
        "",
        "It is drawn, applied, written to `episodes.csv` and swept as all others are; their values",
        "stay as they were.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    config = Config(task="stacking", randomization=RandomizationConfig(strength=0.0))
    camera = replace(config.camera, height=SIZE, width=SIZE, period=1)
    config = replace(config, camera=camera)
    env = make_env(config, num_envs=1, render=False)
    groups = groups_of(env)
    torch.manual_seed(0)
    cv2.imwrite(str(PICTURE), cv2.cvtColor(picture(config, groups), cv2.COLOR_RGB2BGR))
    (DOCS / "randomization.md").write_text(page(env, groups))
    print(PICTURE, DOCS / "randomization.md")


if __name__ == "__main__":
    main()
