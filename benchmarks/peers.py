r"""How fast other simulated arms are: environment steps per second, one camera image a step.

Each peer lives in a virtual environment of its own, outside of the repository:

    python3 -m venv /tmp/peers/dm_control
    /tmp/peers/dm_control/bin/pip install dm_control==1.0.50 mujoco==3.17.0 numpy==2.4.6 \
        PyOpenGL==3.1.10
    python3 -m venv /tmp/peers/robosuite
    /tmp/peers/robosuite/bin/pip install robosuite==1.5.2 mujoco==3.5.0 numpy==1.26.4 \
        PyOpenGL==3.1.10

    MUJOCO_GL=egl OMP_NUM_THREADS=1 /tmp/peers/dm_control/bin/python benchmarks/peers.py \
        peer=dm_control out=peers-dm_control.json
    MUJOCO_GL=egl OMP_NUM_THREADS=1 /tmp/peers/robosuite/bin/python benchmarks/peers.py \
        peer=robosuite out=peers-robosuite.json

robosuite 1.5.2 refuses MuJoCo 3.17.0, dm_control 1.0.50 refuses MuJoCo 4.0.0. robosuite's evdev is
compiled at its installation: it needs a C compiler.

dm_control: `lift_brick_vision` and `stack_2_bricks_vision` as they come, an 84x84 image from their
own camera. robosuite: `Lift` with `robots="Jaco"`, one 64x64 image from `agentview`. Actions are
random, the process is one; the start of the episode warms up and is not timed. Beside it the same
physics without images: `lift_brick_features`, `stack_2_bricks_features`, and `Lift` without a
camera. Where nothing can be rendered, that alone is measured, with `rendered: false` and the error.

Seconds are wall seconds and CPU seconds of all the process's threads; other processes lengthen the
former, and the latter only through shared caches. Mesa's software rasterizer takes one thread per
core; LP_NUM_THREADS changes that.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

ENVIRONMENTS = {
    "dm_control": ("lift_brick_vision", "stack_2_bricks_vision"),
    "robosuite": ("Lift",),
}
PACKAGES = ("mujoco", "numpy", "PyOpenGL")
VARIABLES = ("MUJOCO_GL", "OMP_NUM_THREADS", "LP_NUM_THREADS")


@dataclass(frozen=True)
class Options:
    peer: str = ""
    steps: int = 40  # a repeat; all of them and the warm-up fit into one episode
    repeats: int = 5
    warm_up: int = 10
    seed: int = 0
    out: str = "peers.json"


@dataclass(frozen=True)
class Arm:
    """One environment, reset.

    step: one control step with a random action -> its image (None without), the episode's end.
    graphics: vendor, renderer and version of OpenGL.
    """

    step: Callable[[], tuple[Any, bool]]
    graphics: Callable[[], list[str]]
    control_s: float
    physics_s: float


def gl_strings(call: Callable[..., bytes]) -> list[str]:
    from OpenGL import GL

    names = (GL.GL_VENDOR, GL.GL_RENDERER, GL.GL_VERSION)
    return [call(GL.glGetString, name).decode() for name in names]


def dm_control_arm(name: str, images: bool, seed: int) -> Arm:
    from dm_control import manipulation

    env = manipulation.load(name if images else name.replace("_vision", "_features"), seed=seed)
    spec, random = env.action_spec(), np.random.default_rng(seed)
    env.reset()

    def step() -> tuple[Any, bool]:
        now = env.step(random.uniform(spec.minimum, spec.maximum))
        return (now.observation["front_close"][0] if images else None), now.last()

    def graphics() -> list[str]:
        with env.physics.contexts.gl.make_current() as context:
            return gl_strings(context.call)

    return Arm(step, graphics, env.control_timestep(), env.physics.timestep())


def robosuite_arm(name: str, images: bool, seed: int) -> Arm:
    import robosuite

    env = robosuite.make(
        name,
        robots="Jaco",
        has_renderer=False,
        has_offscreen_renderer=images,
        use_camera_obs=images,
        use_object_obs=not images,
        camera_names="agentview",
        camera_heights=64,
        camera_widths=64,
        seed=seed,
    )
    (low, high), random = env.action_spec, np.random.default_rng(seed)
    env.reset()

    def step() -> tuple[Any, bool]:
        observation, _, done, _ = env.step(random.uniform(low, high))
        return (observation["agentview_image"] if images else None), done

    def graphics() -> list[str]:
        env.sim._render_context_offscreen.gl_ctx.make_current()
        return gl_strings(lambda function, *arguments: function(*arguments))

    return Arm(step, graphics, env.control_timestep, env.sim.model.opt.timestep)


ARMS = {"dm_control": dm_control_arm, "robosuite": robosuite_arm}


def checked(arm: Arm) -> Any:
    """The image of one step; an episode's end would let a reset into the time."""
    image, ended = arm.step()
    if ended:
        raise RuntimeError("the episode ended; fewer steps or repeats are needed")
    return image


def measure(arm: Arm, options: Options, images: bool) -> dict[str, Any]:
    first = np.array(checked(arm))  # a copy: the peer may reuse its memory
    for _ in range(options.warm_up):
        last = checked(arm)
    if images and (last.std() == 0 or np.array_equal(first, last)):
        raise RuntimeError("the images are empty or stand still")
    wall, cpu = [], []
    for _ in range(options.repeats):
        wall_begin, cpu_begin = time.perf_counter(), time.process_time()
        for _ in range(options.steps):
            checked(arm)
        cpu.append((time.process_time() - cpu_begin) / options.steps)
        wall.append((time.perf_counter() - wall_begin) / options.steps)
    return {
        "steps_per_wall_s": 1.0 / statistics.median(wall),
        "steps_per_cpu_s": 1.0 / statistics.median(cpu),
        "wall_s_per_step": wall,
        "cpu_s_per_step": cpu,
        "image": list(last.shape) if images else None,
        "graphics": arm.graphics() if images else None,
        "control_s": arm.control_s,
        "physics_s": arm.physics_s,
    }


def show(label: str, row: dict[str, Any]) -> None:
    wall, cpu = row["steps_per_wall_s"], row["steps_per_cpu_s"]
    print(f"{label}: {wall:.1f} steps per wall s, {cpu:.1f} per CPU s", flush=True)


def compare(options: Options) -> dict[str, Any]:
    """Measures and prints every environment of the peer."""
    environments = {}
    error = None
    for name in ENVIRONMENTS[options.peer]:
        row: dict[str, Any] = {"rendered": False}
        if error is None:
            try:
                arm = ARMS[options.peer](name, True, options.seed)
                row = {"rendered": True, "with_image": measure(arm, options, True)}
                show(f"{options.peer} {name}, with image", row["with_image"])
            except Exception as failure:  # a machine without OpenGL fails in many ways
                error = f"{type(failure).__name__}: {failure}"
                print(f"{options.peer} {name}: cannot be rendered: {error}", file=sys.stderr)
                os.environ["MUJOCO_GL"] = "disabled"
        if error is not None:
            row["error"] = error
        arm = ARMS[options.peer](name, False, options.seed)
        row["without_image"] = measure(arm, options, False)
        show(f"{options.peer} {name}, without image", row["without_image"])
        environments[name] = row
    return environments


def parse(argv: list[str]) -> Options:
    """`key=value` arguments; SystemExit(2) where one is wrong."""
    types = {field.name: type(getattr(Options(), field.name)) for field in fields(Options)}
    values: dict[str, Any] = {}
    for argument in argv:
        key, _, text = argument.partition("=")
        try:
            values[key] = types[key](text)
        except (KeyError, ValueError):
            print(f"{argument}: valid are {', '.join(types)}, as key=value", file=sys.stderr)
            raise SystemExit(2) from None
    options = Options(**values)
    if options.peer not in ENVIRONMENTS or min(options.steps, options.repeats, options.warm_up) < 1:
        print(f"needs peer={'|'.join(ENVIRONMENTS)} and counts of at least 1", file=sys.stderr)
        raise SystemExit(2)
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    os.environ.setdefault("MUJOCO_GL", "egl")
    variables = {name: os.environ.get(name) for name in VARIABLES}
    load = os.getloadavg()[0]
    environments = compare(options)
    result = {
        "peer": options.peer,
        "command": " ".join(["python benchmarks/peers.py", *sys.argv[1:]]),
        "variables": variables,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in (options.peer, *PACKAGES)},
        },
        "cores": os.cpu_count(),
        "load_average": [load, os.getloadavg()[0]],  # of one minute, before and after
        "steps": options.steps,
        "repeats": options.repeats,
        "environments": environments,
    }
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
