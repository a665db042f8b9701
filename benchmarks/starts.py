"""Are the starts of every task sound, and does noise ever break the simulation?

    python benchmarks/starts.py [task ...]

1,000 starts at full randomization: the deepest of all contacts, contacts between props, props off
the table, and a segmentation image of the policy's camera as it stands in that world: the fewest
pixels that a prop of the episode has (of liquid: all of it together), how many of them have none,
and pixels of props that are absent. Then 1,000 steps of random actions in 32 worlds: whether
everything that is observed stays finite, and MuJoCo never had to set a world back.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace

import mujoco
import numpy as np
import torch

from visuomotor.config import Config
from visuomotor.envs import TASKS, Task, make_env
from visuomotor.envs.camera import GROUPS
from visuomotor.envs.scene import TABLE_CENTRE, TABLE_HALF_SIZE

STARTS, WORLDS = 1000, 100
STEPS, NOISY_WORLDS = 1000, 32


@dataclass
class Starts:
    """What was found in some starts."""

    deepest: float = 0.0  # m, of all contacts
    touching: int = 0  # contacts between props
    off: int = 0  # props of the episode whose centre is not over the table
    hidden: int = 0  # props of the episode without a pixel
    absent: int = 0  # pixels of props that are not of the episode
    fewest: dict[str, int] = field(default_factory=dict)  # pixels of each prop where it is present

    def add(self, other: Starts) -> None:
        self.deepest = max(self.deepest, other.deepest)
        self.touching += other.touching
        self.off += other.off
        self.hidden += other.hidden
        self.absent += other.absent
        for name, pixels in other.fewest.items():
            self.fewest[name] = min(pixels, self.fewest.get(name, pixels))


def segmentation(model: mujoco.MjModel, data: mujoco.MjData, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) the body that each pixel of the policy's camera shows; -1 where it shows none: that of
    the geom, of those that are drawn, which a ray through the pixel's middle meets first."""
    height, width = shape
    camera = model.camera("front").id
    reach = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    x = reach * (2 * np.arange(width) + 1 - width) / height
    y = reach * (height - 1 - 2 * np.arange(height)) / height
    rays = np.stack(np.broadcast_arrays(x, y[:, None], -1.0), axis=2).reshape(-1, 3)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    rays = rays @ data.cam_xmat[camera].reshape(3, 3).T
    drawn = np.isin(np.arange(mujoco.mjNGROUP), GROUPS).astype(np.uint8)
    eye, geom = data.cam_xpos[camera], np.zeros(1, dtype=np.int32)
    bodies = []
    # mj_multiRay would be faster, but misses some rays along the edges of geoms.
    for ray in rays:
        mujoco.mj_ray(model, data, eye, ray, drawn, True, -1, geom, None)
        bodies.append(-1 if geom[0] < 0 else model.geom_bodyid[geom[0]])
    return np.array(bodies).reshape(shape)


def look(task: Task, model: mujoco.MjModel, state: np.ndarray, shape: tuple[int, int]) -> Starts:
    """One start. state (nq + nv,); model: as it is in that world; shape: pixels (H, W)."""
    data = mujoco.MjData(model)
    data.qpos[:] = state[: model.nq]
    mujoco.mj_forward(model, data)
    found, props = Starts(), set(task.prop_body_ids)
    for contact in data.contact:
        found.deepest = max(found.deepest, -float(contact.dist))
        found.touching += len({int(model.geom_bodyid[geom]) for geom in contact.geom} & props) == 2
    picture = segmentation(model, data, shape)
    counts = np.bincount(picture[picture >= 0], minlength=model.nbody)
    present = dict(zip(task.prop_body_ids, task.props_present(state), strict=True))
    for body in model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE].tolist():
        if not present.get(body, True):
            found.absent += int(counts[body])
            continue
        name = model.body(body).name.split("/")[0]
        found.fewest[name] = found.fewest.get(name, 0) + int(counts[body])
        away = np.abs(data.xpos[body] - TABLE_CENTRE) > TABLE_HALF_SIZE
        found.off += bool(away[:2].any() or data.xpos[body][2] < 0.0)
    found.hidden = sum(pixels == 0 for pixels in found.fewest.values())
    return found


def starts(name: str, count: int = STARTS, worlds: int = WORLDS) -> Starts:
    """Of `count` episodes, a multiple of `worlds`."""
    config = replace(Config(task=name), env=replace(Config().env, num_threads=1))
    env = make_env(config, num_envs=worlds, seed=4000, render=False)
    env.reset()
    shape = (config.camera.height, config.camera.width)
    found = Starts()
    for group in range(count // worlds):
        if group > 0:
            env.restart(env.episode_ids + worlds)
        states = env.sim.get_state(torch.arange(worlds)).numpy()
        for world, state in enumerate(states):
            found.add(look(env.task, env.sim.world_model(world), state, shape))
    return found


def stays_finite(name: str, steps: int = STEPS, worlds: int = NOISY_WORLDS) -> bool:
    """Under random actions, without a reset."""
    config = replace(Config(task=name), env=replace(Config().env, num_threads=1))
    env = make_env(config, num_envs=worlds, seed=4001, render=False)
    env.episode_steps = steps + 1
    env.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        result = env.step(torch.rand(worlds, 9, generator=generator) * 2 - 1)
        seen = result.observation
        state = env.sim.get_state(torch.arange(worlds))
        parts = (state, seen.state, seen.proprio, seen.aux_targets, result.features, result.reward)
        if not all(bool(part.isfinite().all()) for part in parts):
            return False
        # MuJoCo sets a world back to its beginning, and its clock to 0, where it finds a NaN.
        due = env.elapsed.double() * env.control_dt
        if not torch.allclose(env.sim.data("time"), due, rtol=0.0, atol=1e-6):
            return False
    return True


def row(name: str) -> str:
    began = time.perf_counter()
    found = starts(name)
    looked = time.perf_counter()
    finite = stays_finite(name)
    noisy = time.perf_counter()
    fewest = ", ".join(f"{thing} {pixels}" for thing, pixels in sorted(found.fewest.items()))
    cells = (
        name,
        f"{1000 * found.deepest:.3f} mm",
        found.touching,
        found.off,
        fewest,
        found.hidden,
        found.absent,
        "yes" if finite else "NO",
        f"{looked - began:.0f} s, {noisy - looked:.0f} s",
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    heads = (
        *("task", "deepest contact", "props touching", "off the table", "fewest pixels"),
        *("hidden", "pixels of absent", "finite", "time"),
    )
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads), flush=True)
    for name in sys.argv[1:] or TASKS:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
