"""docs/randomization.md and its pictures: every factor with setting, range, unit and extremes.

    python benchmarks/factors.py

Ranges and the scene's own values are read off the package; what a factor means stands here, and one
without words is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import mujoco
import numpy as np
import torch

from visuomotor.config import AppearanceConfig, Config, RandomizationConfig
from visuomotor.envs import TASKS, VisuomotorEnv, make_env
from visuomotor.envs.robot import JOINTS
from visuomotor.randomization import Factor

DOCS = Path("docs")
PICTURE = DOCS / "images" / "randomization.png"
MOTIONS = DOCS / "images" / "randomization-motions.png"
SIZE = 160  # pixels of each view
LARGE = 6  # times SIZE, of what is cut out of a view
COLUMNS = 3  # factors beside each other in the picture
PAPER = "Zhu et al. 2018"
OURS = "here"
CLUTTER = "Tobin et al. 2017 (distractors)"
MOUNT = "here: what a calibrated mount may be off by, and more"
# Group -> meaning, where the factor comes from, where its range does.
WORDS: dict[str, tuple[str, str, str]] = {
    "camera_pos": ("added to each axis", PAPER, MOUNT),
    "camera_rotation": ("about each of the camera's axes", PAPER, MOUNT),
    "camera_fovy": ("added to the vertical field of view", OURS, OURS),
    "num_lights": ("switched on", OURS, "here: as many as there are"),
    "light_pos": ("added to each axis", PAPER, OURS),
    "light_direction": ("tilt about world x and y", PAPER, OURS),
    "light_colour": ("scale of each colour channel", OURS, OURS),
    "colour": ("added to each colour channel (0 to 1)", PAPER, OURS),
    "texture": ("which one; 0: plain", PAPER, "here: all there are"),
    "texture_repeat": ("scale of the texture's repetitions", OURS, OURS),
    "brightness": ("scale of the image", OURS, OURS),
    "contrast": ("scale of the image's distance from its mean", OURS, OURS),
    "hue": ("of the hue circle, added", OURS, OURS),
    "pixel_noise": ("half width of uniform noise a channel", PAPER, PAPER),
    "shade": ("share of the light missing in patches with sharp edges", OURS, "here: off"),
    "shade_pattern": ("which patches; from 0 to 1 where there is shade", OURS, "here: off"),
    "blur": ("standard deviation by which light spreads", OURS, "here: off"),
    "cast_shadow": ("share of the first light missing in shadows; below 0: none", OURS, OURS),
    "clutter": ("rounded things about the workspace, seen and never touched", CLUTTER, "here: off"),
    "clutter_angle": ("where about the origin each lies", CLUTTER, "here: all around"),
    "clutter_distance": ("from the nearest it may come to the origin", CLUTTER, OURS),
    "clutter_size": ("scale of all lengths", CLUTTER, OURS),
    "prop_friction": ("scale of sliding, torsional and rolling friction", PAPER, OURS),
    "prop_mass": ("scale of mass and inertia", PAPER, OURS),
    "prop_inertia": ("further scale of the inertia", PAPER, OURS),
    "prop_size": ("scale of all lengths", PAPER, OURS),
    "joint_damping": ("scale, each joint", PAPER, OURS),
    "joint_armature": ("scale, each joint", PAPER, OURS),
    "joint_friction": ("scale of the dry friction, each joint", PAPER, OURS),
    "actuator_gain": ("scale of the velocity servo's gain, each joint", PAPER, OURS),
    "gravity_tilt": ("about world x and y: a table that is not level", OURS, OURS),
    "camera_delay": ("from exposure to use", OURS, OURS),
    "action_delay": ("from decision to execution", OURS, OURS),
    "action_drop": ("probability that a new action is dropped", PAPER, OURS),
    "proprio_noise": ("standard deviation of what the joints tell", PAPER, PAPER),
}
SURFACES = ("table", "floor", "arm")  # with a colour's range of their own; all others are props
SEEN = (
    *("camera_pos", "camera_rotation", "camera_fovy", "num_lights", "light_pos"),
    *("light_direction", "light_colour", "colour", "texture", "texture_repeat"),
    *("brightness", "contrast", "hue", "pixel_noise", "prop_size", "shade", "blur"),
    *("cast_shadow", "clutter"),
)
OFF = {
    "shade": (0.0, 0.8),
    "blur": (0.0, 0.6),
    "clutter": (0.0, 4.0),
}  # in the picture: by default there is none
ENDS = ("low", "high")
# How far out clutter lies and what colour it has, in the picture.
SPREAD = {f"clutter_distance/clutter_{i}": 0.03 for i in range(4)}
SPREAD |= {f"colour/clutter_{i}/{channel}": 0.45 for i, channel in enumerate("rgbr")}


def groups_of(env: VisuomotorEnv) -> dict[str, list[str]]:
    """Group as in WORDS -> its factors' names."""
    found: dict[str, list[str]] = {}
    for name in env.randomizer.factor_names:
        found.setdefault(name.split("/")[0], []).append(name)
    missing = sorted(found.keys() - WORDS.keys())
    if missing:
        raise SystemExit(f"benchmarks/factors.py has no words for: {', '.join(missing)}")
    return found


def _view(env: VisuomotorEnv, pinned: dict[str, float]) -> np.ndarray:
    """(height, width, 3) uint8 RGB of one start with these factors, all others neutral."""
    for factor in env.randomizer.factors:
        env.randomizer.pin(factor.name, pinned.get(factor.name, factor.neutral))
    pixels = env.reset().pixels
    assert pixels is not None
    return pixels[0].permute(1, 2, 0).cpu().numpy()


def picture(config: Config, groups: dict[str, list[str]]) -> np.ndarray:
    """A pair of views for every factor that is seen: the lower and the higher end of its range,
    with their values below."""
    env, large = (make_env(one, num_envs=1, seed=3) for one in (config, _larger(config)))
    by_name = {factor.name: factor for factor in env.randomizer.factors}
    cells = []
    for group in SEEN:
        # Clutter's colour and texture are not seen where there is none.
        names = [name for name in groups[group] if "/clutter_" not in name]
        pinned = [{name: getattr(by_name[name], end) for name in names} for end in ENDS]
        if group == "texture_repeat":  # of a texture, which a plain surface has not
            pinned = [ends | dict.fromkeys(groups["texture"], 1.0) for ends in pinned]
        if group in OFF:
            pinned = [{group: value, "shade_pattern": 0.07} | SPREAD for value in OFF[group]]
        pair = [_view(large if group == "prop_size" else env, ends) for ends in pinned]
        pair = _close(pair) if group == "prop_size" else pair
        unit = "" if group == "texture" else by_name[groups[group][0]].unit
        values = [_values(ends[name] for name in names) for ends in pinned]
        values = [f"{value:g}" for value in OFF[group]] if group in OFF else values
        below = [_line(f"{value} {unit}".strip(), SIZE, 0.4) for value in values]
        cell = np.concatenate((np.concatenate(pair, axis=1), np.concatenate(below, axis=1)))
        cells.append(np.concatenate((_line(group, cell.shape[1], 0.48), cell)))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[i : i + COLUMNS], axis=1) for i in range(0, len(cells), COLUMNS)]
    return np.concatenate(rows, axis=0)


def _line(text: str, width: int, scale: float) -> np.ndarray:
    """(22, width, 3) of text in black on white. Raises SystemExit for one that is too long."""
    line = np.full((22, width, 3), 255, dtype=np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    if 4 + cv2.getTextSize(text, font, scale, 1)[0][0] > width:
        raise SystemExit(f"benchmarks/factors.py: no room in the picture for: {text}")
    cv2.putText(line, text, (4, 16), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return line


def _values(values: Iterable[float]) -> str:
    """Of a group's factors: all that there are."""
    return ", ".join(f"{value:g}" for value in dict.fromkeys(values))


def _larger(config: Config) -> Config:
    camera = replace(config.camera, height=LARGE * SIZE, width=LARGE * SIZE)
    return replace(config, camera=camera)


def _close(pair: list[np.ndarray]) -> list[np.ndarray]:
    """Cut out around one thing that differs between two views, SIZE pixels at most."""
    differs = np.abs(pair[0].astype(int) - pair[1]).max(axis=2) > 40
    _, _, boxes, centres = cv2.connectedComponentsWithStats(
        cv2.dilate(differs.astype(np.uint8), np.ones((25, 25), np.uint8))
    )
    biggest = 1 + int(np.argmax(boxes[1:, cv2.CC_STAT_AREA]))
    x, y = (int(c) for c in centres[biggest])
    top, left = (min(max(0, c - SIZE // 2), (LARGE - 1) * SIZE) for c in (y, x))
    return [view[top : top + SIZE, left : left + SIZE] for view in pair]


# --- the scene's own values -----------------------------------------------------------------------


def _span(values: np.ndarray, unit: str = "") -> str:
    """The one value of all, or the lowest and the highest."""
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return f"{low if low == high else f'{low} to {high}'} {unit}".strip()


def _point(values: np.ndarray) -> str:
    return f"({', '.join(f'{value:.3g}' for value in values)})"


def _of_joints(env: VisuomotorEnv, values: np.ndarray, unit: str) -> str:
    """values: of all degrees of freedom."""
    of_arm, of_fingers = (
        values[env.jaco.dof_ids.numpy()[part]] for part in (slice(6), slice(6, 9))
    )
    return f"arm {_span(of_arm)}, fingers {_span(of_fingers)} {unit}"


def _bodies(model: mujoco.MjModel, parts: list[str]) -> list[int]:
    """Of props, and of those that share factors."""
    names = [model.body(i).name for i in range(model.nbody)]
    return [i for i, name in enumerate(names) if name and name.split("/")[0] in parts]


def _geoms(model: mujoco.MjModel, parts: list[str]) -> list[int]:
    return [i for i in range(model.ngeom) if model.geom_bodyid[i] in _bodies(model, parts)]


def _sizes(model: mujoco.MjModel, parts: list[str]) -> str:
    """Of each part, of all its geoms together in the body's frame, in mm."""
    told = []
    for part in parts:
        body = _bodies(model, [part])[0]
        geoms = [i for i in range(model.ngeom) if model.geom_bodyid[i] == body]
        reach = np.array([_reach(model, geom) for geom in geoms])
        low, high = (model.geom_pos[geoms] - reach).min(0), (model.geom_pos[geoms] + reach).max(0)
        told.append(" x ".join(f"{1000 * length:.0f}" for length in high - low))
    same = list(dict.fromkeys(told))
    return f"{', '.join(same)} mm"


def _reach(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """(3,) m, half lengths along its body's axes."""
    turn = np.empty(9)
    mujoco.mju_quat2Mat(turn, model.geom_quat[geom])
    return np.abs(turn.reshape(3, 3)) @ model.geom_aabb[geom, 3:]


def _friction(model: mujoco.MjModel, parts: list[str]) -> str:
    each = model.geom_friction[_geoms(model, parts)]
    if (model.geom_condim[_geoms(model, parts)] == 1).all():
        return "none"
    return f"{_span(each[:, 0])}; {_span(each[:, 1], 'm')}; {_span(each[:, 2], 'm')}"


def _mass(model: mujoco.MjModel, parts: list[str]) -> str:
    return _span(model.body_mass[_bodies(model, parts)], "kg")


def _inertia(model: mujoco.MjModel, parts: list[str]) -> str:
    return _span(model.body_inertia[_bodies(model, parts)], "kg m²")


def _materials(model: mujoco.MjModel, part: str) -> list[int]:
    names = [model.mat(i).name for i in range(model.nmat)]
    prefix = "jaco_arm" if part == "arm" else part
    return [i for i, name in enumerate(names) if name.split("/")[0] == prefix]


def _colours(model: mujoco.MjModel, parts: list[str]) -> str:
    told = []
    for part in parts:
        distinct = np.unique(model.mat_rgba[_materials(model, part), :3], axis=0)
        told.append(f"{part} {', '.join(map(_point, distinct))}")
    return "; ".join(told)


def _looks(model: mujoco.MjModel) -> str:
    turn = np.empty(9)
    mujoco.mju_quat2Mat(turn, model.cam_quat[0])
    return f"looks {np.rad2deg(np.arcsin(turn[8])):.0f} degrees down"


def _repeats(model: mujoco.MjModel, parts: list[str]) -> str:
    return _span(np.concatenate([model.mat_texrepeat[_materials(model, part)] for part in parts]))


def at_neutral(env: VisuomotorEnv, group: str, parts: list[str]) -> str:
    """The quantity that a factor scales or adds to, as the scene has it; empty where there is none.

    parts: props, surfaces or whatever the group is of.
    """
    model = env.sim.model
    arm = np.array([model.actuator(name).id for name in JOINTS])
    gains = model.actuator_gainprm[arm, 0]
    found: dict[str, Callable[[], str]] = {
        "camera_pos": lambda: f"{_point(model.cam_pos[0])} m",
        "camera_rotation": lambda: _looks(model),
        "camera_fovy": lambda: f"{model.cam_fovy[0]:g} degrees",
        "num_lights": lambda: f"{model.nlight}",
        "light_pos": lambda: f"{', '.join(map(_point, model.light_pos))} m",
        "light_direction": lambda: f"{', '.join(map(_point, model.light_dir))}",
        "light_colour": lambda: f"{', '.join(map(_point, model.light_diffuse))}",
        "colour": lambda: _colours(model, parts),
        "texture": lambda: "plain",
        "texture_repeat": lambda: _repeats(model, parts),
        "prop_friction": lambda: _friction(model, parts),
        "prop_mass": lambda: _mass(model, parts),
        "prop_inertia": lambda: _inertia(model, parts),
        "prop_size": lambda: _sizes(model, parts),
        "joint_damping": lambda: _of_joints(env, model.dof_damping, "N m s/rad"),
        "joint_armature": lambda: _of_joints(env, model.dof_armature, "kg m²"),
        "joint_friction": lambda: _of_joints(env, model.dof_frictionloss, "N m"),
        "actuator_gain": lambda: f"arm {_span(gains[:6])}, fingers {_span(gains[6:])} N m s/rad",
        "gravity_tilt": lambda: f"{-model.opt.gravity[2]:g} m/s², straight down",
        "camera_delay": lambda: f"a step is {env.control_dt:g} s",
        "action_delay": lambda: f"a step is {env.control_dt:g} s",
    }
    return found[group]() if group in found else ""


# --- the page -------------------------------------------------------------------------------------


def setting(group: str, parts: list[str]) -> str:
    """What sets a factor's range, below `randomization.`. Raises SystemExit for one that is not
    there."""
    name = {"texture": "textures", "shade_pattern": "shade"}.get(group, group)
    if group == "colour":
        name = f"{parts[0] if parts[0] in SURFACES else 'prop'}_colour"
    if group.startswith("clutter") or (parts[:1] and parts[0].startswith("clutter")):
        name = "clutter"
    config = RandomizationConfig()
    for place in ("appearance", "dynamics", "latency"):
        if hasattr(getattr(config, place), name):
            return f"{place}.{name}"
    raise SystemExit(f"benchmarks/factors.py: no setting is called '{name}'")


def factor_rows(env: VisuomotorEnv, groups: dict[str, list[str]]) -> list[str]:
    """A row for each group; of `colour` for each setting."""
    by_name = {factor.name: factor for factor in env.randomizer.factors}
    rows = []
    for group, names in groups.items():
        settings: dict[str, list[str]] = {}
        for name in names:
            parts = name.split("/")[1:2]
            settings.setdefault(setting(group, parts), []).append(name)
        for key, members in settings.items():
            parts = list(dict.fromkeys(name.split("/")[1] for name in members if "/" in name))
            factors = [by_name[name] for name in members]
            rows.append(_factor_row(env, factors, group, key, parts))
    return rows


def _factor_row(
    env: VisuomotorEnv, factors: list[Factor], group: str, key: str, parts: list[str]
) -> str:
    meaning, source, of_range = WORDS[group]
    factor, neutral = factors[0], dict.fromkeys(f"{factor.neutral:g}" for factor in factors)
    low, high = (0.0, 0.0) if group == "clutter" else (factor.low, factor.high)  # by default
    cells = (
        *(f"`{group}`", f"`{key}`", _ranged(parts), ", ".join(neutral)),
        *(f"{low:g} to {high:g}", factor.distribution.replace("_", "-")),
        *(factor.unit, meaning, at_neutral(env, group, parts), source, of_range),
    )
    return f"| {' | '.join(cells)} |"


def _ranged(parts: list[str]) -> str:
    """joint_1 to joint_6 for what is counted."""
    runs: dict[str, list[str]] = {}
    for part in parts:
        stem, _, number = part.rpartition("_")
        runs.setdefault(stem if number.isdigit() else part, []).append(part)
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs.values())


def prop_rows(tasks: Iterable[str]) -> list[str]:
    """Of the tasks' props: those that share their factors in one row."""
    rows = []
    for task in tasks:
        env = make_env(Config(task=task), num_envs=1, render=False)
        model = env.sim.model
        for column in env.randomizer.columns("prop_mass"):
            parts = [env.randomizer.factor_names[column].split("/")[1]]
            count = len(_bodies(model, parts))
            cells = (task, f"`{parts[0]}`" + (f" ({count})" if count > 1 else ""))
            cells += (_sizes(model, parts), _mass(model, parts), _friction(model, parts))
            rows.append(f"| {' | '.join(cells)} |")
    return rows


PAGE = """# Randomization

This page and its pictures are made by `python benchmarks/factors.py`, from the package itself.

Every factor is drawn once an episode and world, stands in `episodes.csv`, and can be swept:
`sims=sweep:<factor>` takes one factor's own name (`colour/table/r`, `light_pos/light_0/x`), or that
of a group, all of which then has the one value. A group's name is the first column's, but that of
`colour`, `texture` and `texture_repeat` has the surface with it (`colour/table`). Clutter's factors
are there only for a policy that was trained with clutter; a wrong name is answered with all groups.

Ranges are those at `randomization.strength=1`, around the scene's own value; at 0 every factor is
neutral. Settings stand in `visuomotor/config.py`, under `randomization.`; a range is set by
`randomization.dynamics.prop_mass=0.3,3`, for example. A scale has no unit. "At neutral" is the
quantity itself, in the task `stacking`.

{factors}

Of the paper's ranges those of `pixel_noise` and `proprio_noise` are published; all others are
chosen here. `textures` is true or false, and `shade_pattern` has a range where `shade` has one.
Clutter is off by default: with `randomization.appearance.clutter=0,4` a scene has up to four such
things, and only then it has their other factors, whose ranges are fixed.
Friction is sliding; torsional; rolling.

## Props of each task

Their factors are called after them (`prop_mass/mug`). Several props of one kind share theirs.
Friction of a prop decides against that of hand and table.

{props}

Toys of `order_fulfillment` have another shape and colour every episode: this is the middle one.

## What they look like

Both ends, with all else neutral, as the policy's camera sees them, at a higher resolution;
`prop_size` is cut out of a larger picture. All parts of a group are at the same end here; in
training each is drawn alone. Of what is seen `shade_pattern`, `clutter_angle`, `clutter_distance`
and `clutter_size` have no picture of their own: they say where the patches of `shade` and the
things of `clutter` lie, and how large these are. What is off by default has a range chosen for the
picture.

![Both ends of factors that are seen]({picture})

## What they do

The others show in what moves. Joints are asked for a sine of velocity of {period:g} s, up to
{share:.0f} % of their limit; "behind" is the way asked for less the way made. Again all parts of a
group are at one end, and all else is neutral.

![A standard motion at both ends of the factors of dynamics and latency]({motions})

The state that critic and teacher see ends with the action just executed and the newest one asked
for. At an `action_delay` of two steps or more it is not complete: the actions between the two,
which are still to be executed, are not in it.

## A factor of your own

A new factor is one function, in any module that is imported before the environment is built:

```python
# my_factors.py
from visuomotor.randomization import register_factor


@register_factor("ambient_light", field="light_ambient", bounds=(0.5, 1.5), neutral=1.0)
def ambient_light(model, field, values):
    field *= values.unsqueeze(2)  # (worlds, lights, channels)
```

It is drawn, applied, written to `episodes.csv` and swept as all others are; their values stay as
they were. `unit=` names its unit for plots. What no world can have, a name that no table or command
can, or a function that raises or returns something is refused in one line that names the factor,
before any episode. It changes fields of the model only, not sensors, and
no delays of images or actions.

A field has an effect only where something reads it. Friction of table and hand has none on props,
whose own decides; the ray-caster reads colours and textures of surfaces, but not how they shine
(`mat_reflectance`, `mat_specular`).

The shipped tasks get it from the command line if the module belongs to an installed package with an
entry point, as [a task of your own](your_own_task.md) does; what it registers may be factors alone:

```toml
[project.entry-points."visuomotor.tasks"]
my_factors = "my_factors"
```

```
pip install -e .
python -m visuomotor.evaluate policy=stacking sims=sweep:ambient_light episodes=100
```
"""
COLUMN_NAMES = (
    *("factor", "setting", "of", "neutral", "range", "drawn", "unit", "meaning", "at neutral"),
    *("source of the factor", "source of the range"),
)
PROP_NAMES = ("task", "prop", "size", "mass", "friction")


def _table(names: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join((f"| {' | '.join(names)} |", "|---" * len(names) + "|", *rows))


def page(env: VisuomotorEnv, groups: dict[str, list[str]], period: float, share: float) -> str:
    """period [s], share of the velocity limit: of the joints' standard motion."""
    return PAGE.format(
        factors=_table(COLUMN_NAMES, factor_rows(env, groups)),
        props=_table(PROP_NAMES, prop_rows(TASKS)),
        picture=PICTURE.relative_to(DOCS),
        motions=MOTIONS.relative_to(DOCS),
        period=period,
        share=100 * share,
    )


def main() -> None:
    import factor_motions  # beside this file

    looks = AppearanceConfig(clutter=(0, 4))  # or the scene would have none to tell of
    randomization = RandomizationConfig(strength=0.0, appearance=looks)
    config = Config(task="stacking", randomization=randomization)
    env = make_env(config, num_envs=1, render=False)
    groups = groups_of(env)
    told = page(env, groups, factor_motions.PERIOD, factor_motions.SHARE)
    (DOCS / "randomization.md").write_text(told)
    MOTIONS.write_bytes(factor_motions.motions_png(config))
    torch.manual_seed(0)
    camera = replace(config.camera, height=SIZE, width=SIZE, period=1)
    seen = picture(replace(config, camera=camera), groups)
    cv2.imwrite(str(PICTURE), cv2.cvtColor(seen, cv2.COLOR_RGB2BGR))
    print(PICTURE, MOTIONS, DOCS / "randomization.md")


if __name__ == "__main__":
    main()
