"""Are the starts of every task sound, and does noise ever break the simulation?

    python benchmarks/starts.py [task ...]

1,000 starts at full randomization: the deepest contact of a prop, contacts between props that are
not inside each other on purpose, props off the table, props of which no ray from the camera to one
of their geoms' centres or corners arrives. Then 1,000 steps of random actions in 8 worlds: whether
everything that is observed stays finite.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import mujoco
import numpy as np
import torch

from visuomotor.config import Config
from visuomotor.envs import TASKS, make_env
from visuomotor.envs.scene import TABLE_CENTRE, TABLE_HALF_SIZE

STARTS, WORLDS = 1000, 100
STEPS = 1000


def is_seen(model: mujoco.MjModel, data: mujoco.MjData, body: int) -> bool:
    camera = model.camera("front").id
    eye, mat = data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3)
    half = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    hit = np.zeros(1, dtype=np.int32)
    first = model.body_geomadr[body]
    for geom in range(first, first + model.body_geomnum[body]):
        box = model.geom_aabb[geom]
        corners = [np.array(c) for c in itertools.product((-0.9, 0.0, 0.9), repeat=3)]
        for corner in corners:
            own = data.geom_xmat[geom].reshape(3, 3)
            point = data.geom_xpos[geom] + own @ (box[:3] + corner * box[3:])
            ray = point - eye
            local = mat.T @ ray
            if max(abs(local[0]), abs(local[1])) >= half * -local[2]:
                continue
            mujoco.mj_ray(model, data, eye, ray, None, 1, -1, hit, None)
            if hit[0] >= 0 and model.geom_bodyid[hit[0]] == body:
                return True
    return False


def starts(name: str) -> str:
    config = replace(Config(task=name), env=replace(Config().env, num_threads=1))
    env = make_env(config, num_envs=WORLDS, seed=4000, render=False)
    env.reset()
    deepest, between, off, unseen = 0.0, 0, 0, 0
    task = env.task
    props = set(task.prop_body_ids)
    everyone = torch.arange(WORLDS)
    for _ in range(STARTS // WORLDS):
        states = env.sim.get_state(everyone).numpy()
        for world in range(WORLDS):
            model = env.sim.world_model(world)
            data = mujoco.MjData(model)
            data.qpos[:] = states[world, : model.nq]
            mujoco.mj_forward(model, data)
            for contact in data.contact:
                bodies = {int(model.geom_bodyid[geom]) for geom in contact.geom}
                if bodies & props:
                    deepest = max(deepest, -float(contact.dist))
                between += len(bodies & props) == 2
            present = task.props_present(states[world])
            for index in np.flatnonzero(present):
                body = task.prop_body_ids[index]
                away = np.abs(data.xpos[body][:2] - np.array(TABLE_CENTRE[:2]))
                off += bool((away > np.array(TABLE_HALF_SIZE[:2])).any())
                unseen += not is_seen(model, data, body)
        env.restart(env.episode_ids + WORLDS)
    return (
        f"deepest contact {1000 * deepest:.3f} mm, contacts between props {between}, "
        f"props off the table {off}, unseen {unseen}"
    )


def stays_finite(name: str) -> bool:
    config = replace(Config(task=name), env=replace(Config().env, num_threads=1))
    env = make_env(config, num_envs=8, seed=4001, render=False)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    finite = True
    for _ in range(STEPS):
        result = env.step(torch.rand(8, 9, generator=generator) * 2 - 1)
        seen = result.observation
        parts = (seen.state, seen.proprio, seen.aux_targets, result.features, result.reward)
        finite &= all(bool(part.isfinite().all()) for part in parts)
    return finite


def main() -> None:
    for name in sys.argv[1:] or TASKS:
        print(f"{name}: {starts(name)}; finite {stays_finite(name)}", flush=True)


if __name__ == "__main__":
    main()
