"""How fast this machine trains, and how fast it could: `python -m visuomotor.benchmark`.

Measures the reinforcement loop of `algorithm=ril` as it runs by default, after the start and with
the CNN held, and in the same run its raw parts alone: physics, ray-caster, one forward pass for
acting, the update's forward and backward passes. Their sum per environment step gives `limit_fps`.
Then the loop of the start itself, and what both come to over a whole run. Writes `benchmark.json`.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from visuomotor import rows
from visuomotor.cache import check_writable
from visuomotor.checkpoint import write_atomic
from visuomotor.cli import resolve_device, run_command
from visuomotor.config import AuxConfig, Config
from visuomotor.demonstrate import demonstrations_for
from visuomotor.distillation import Distillation
from visuomotor.envs import make_task
from visuomotor.envs.mujoco_cpu import available_cores
from visuomotor.errors import UserError
from visuomotor.limits import validate
from visuomotor.overrides import parse_overrides
from visuomotor.policies import make_teacher
from visuomotor.ppo import action_means
from visuomotor.reinforcement import Reinforcement
from visuomotor.replay import DemonstrationReplay
from visuomotor.rollout import Batch

WARM_UP_ITERATIONS = 10  # past the critic's warm-up: from then on the actor is trained too
START_WARM_UP_ITERATIONS = 2


@dataclass(frozen=True)
class BenchmarkConfig:
    task: str = "stacking"
    num_envs: int = 128
    iterations: int = 6  # timed rollouts and updates; medians are reported
    after_start: bool = False  # as `aux.after_start`: true times a CNN that learns on
    device: str = "auto"
    out: str = "benchmark.json"


def _seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median duration of a call in s."""
    durations = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - begin)
    return statistics.median(durations)


def _physics_seconds(learner: Reinforcement, repeats: int) -> float:
    """s of one control step of all worlds, over rollouts from where they stand."""
    sim = learner.env.sim
    saved = sim.state_dict()
    steps = learner.config.ppo.num_steps

    def rollout() -> None:
        for _ in range(steps):
            sim.step()

    seconds = _seconds(rollout, repeats, torch.device("cpu")) / steps
    sim.load_state_dict(saved)
    return seconds


def _act_seconds(learner: Reinforcement, repeats: int) -> float:
    """s of one forward pass of actor and critic for all worlds; the CNN runs once a frame."""
    seen, policy = learner.observation, learner.policy
    assert seen.pixels is not None and policy is not None
    fresh = seen.pixels[: max(1, len(seen.pixels) // learner.config.camera.period)]
    visual = learner.actor.encode(seen.pixels)

    @torch.no_grad()
    def act() -> None:
        learner.actor.encode(fresh)
        learner.actor.step(visual, seen.proprio, policy.hidden)
        learner.critic(seen.state)

    return _seconds(act, 10 * repeats, learner.device)


def _learn_seconds(learner: Reinforcement, repeats: int) -> float:
    """s of an update's forward and backward passes, without advantages, clipping or Adam."""
    config, actor, vision = learner.config.ppo, learner.actor, learner.vision
    frames = learner.buffer.frames
    assert frames is not None
    generator = torch.Generator().manual_seed(0)

    def policy(batch: Batch, train_encoder: bool) -> None:
        mean, _ = action_means(actor, batch.inputs, train_encoder)
        loss = mean.square().mean() + learner.critic(batch.state).square().mean()
        loss.backward()

    def update() -> None:
        for epoch in range(config.epochs):
            trains = epoch >= config.epochs - learner.ppo.encoder_epochs
            for batch in learner.buffer.minibatches(config.minibatches, generator, frames=trains):
                policy(batch, trains)
        if vision is None:
            return
        targets, visual = learner.buffer.frame_targets(), learner.buffer.visual
        with torch.no_grad():
            held = actor.reading(visual)
        order = torch.randperm(len(frames), generator=generator).to(frames.device)
        for chosen in order.tensor_split(vision.minibatches(learner.buffer)):
            fresh = rows.take(frames, chosen)
            vision.loss(fresh, targets[chosen], held[chosen])[0].backward()

    seconds = _seconds(update, repeats, learner.device)
    for module in (actor, learner.critic):
        module.zero_grad(set_to_none=True)
    return seconds


def _start_seconds(
    config: Config, replay: DemonstrationReplay, repeats: int, device: torch.device
) -> float:
    """s of one iteration under a clone's labels: a rollout and its fit beside older ones."""
    student = Distillation(
        config,
        replay,
        make_teacher(config, replay.all_state.shape[1]),
        num_envs=config.num_envs,
        total_steps=config.total_steps,
        device=device,
    )
    print("the start under a clone's labels", file=sys.stderr)
    for _ in range(START_WARM_UP_ITERATIONS):
        student.iterate()
    return _seconds(student.iterate, repeats, device)


def benchmark(argv: list[str]) -> int:
    options = parse_overrides(argv, BenchmarkConfig)
    options = replace(options, task=make_task(options.task).name)
    if options.iterations < 1:
        raise UserError(f"iterations={options.iterations}; at least 1 is needed")
    device = resolve_device(options.device)
    run = Config(
        task=options.task,
        num_envs=options.num_envs,
        aux=AuxConfig(after_start=options.after_start),
    )
    validate(run)
    # The step size at its floor and no early stop: every update does all of its passes.
    fixed = replace(run.ppo, learning_rate=1e-6, target_kl=0.0)
    config = replace(run, total_steps=10**9, ppo=fixed)
    out = Path(options.out)
    check_writable(out, "valid: out=<a file in a folder that can be written>")
    replay = DemonstrationReplay(config, demonstrations_for(config))
    learner = Reinforcement(
        config,
        replay,
        pixels=True,
        num_envs=config.num_envs,
        total_steps=config.total_steps,
        device=device,
        expert=make_teacher(config, replay.all_state.shape[1]),
        vision=options.after_start,
        noise=config.distill.finetune_noise,
    )
    print(f"warming up: {WARM_UP_ITERATIONS} iterations", file=sys.stderr)
    for _ in range(WARM_UP_ITERATIONS):
        learner.iterate()
    n, steps = config.num_envs, config.ppo.num_steps
    everyone = torch.arange(n)
    train, physics, render, act, learn = [], [], [], [], []
    assert learner.env.camera is not None
    for round_ in range(options.iterations):
        print(f"round {round_ + 1} of {options.iterations}", file=sys.stderr)
        # Whole loop and parts in turn, so that a change of the machine's speed meets both.
        train.append(_seconds(learner.iterate, 1, device))
        physics.append(_physics_seconds(learner, 1))
        caster = learner.env.camera.caster
        shadows = learner.env.randomizer.sensor(learner.env.factors).cast_shadow
        render.append(_seconds(partial(caster.render, everyone, shadows), 3, device))
        act.append(_act_seconds(learner, 3))
        learn.append(_learn_seconds(learner, 1))
    begun = _start_seconds(config, replay, options.iterations, device) / (n * steps)
    per_step = {
        "physics": statistics.median(physics) / n,
        "render": statistics.median(render) / n / config.camera.period,
        "act": statistics.median(act) / n,
        "learn": statistics.median(learn) / (n * steps),
    }
    train_fps = n * steps / statistics.median(train)
    limit_fps = 1.0 / sum(per_step.values())
    reinforced = run.total_steps - run.starting
    run_fps = run.total_steps / (run.starting * begun + reinforced / train_fps)
    substeps = round(config.env.control_dt / learner.env.sim.model.opt.timestep)
    result = {
        "train_fps": train_fps,
        "limit_fps": limit_fps,
        "share_of_limit": train_fps / limit_fps,
        "start_fps": 1.0 / begun,
        "run_fps": run_fps,
        "physics_steps_per_s": substeps / per_step["physics"],
        "render_fps": n / statistics.median(render),
        "act_fps": 1.0 / per_step["act"],
        "learn_fps": 1.0 / per_step["learn"],
        "seconds_per_env_step": per_step,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "cores": available_cores(),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "processor": platform.processor() or platform.machine(),
        "task": options.task,
        "num_envs": n,
    }
    write_atomic(out, (json.dumps(result, indent=2) + "\n").encode())
    print(
        f"{options.task}: reinforces at {train_fps:.0f} env steps/s, "
        f"{100 * train_fps / limit_fps:.0f} % of the {limit_fps:.0f} that the parts alone allow; "
        f"its start runs at {1.0 / begun:.0f}, {run.total_steps} steps of both at {run_fps:.0f}; "
        f"written to {out}"
    )
    return 0


def main() -> None:
    sys.exit(run_command(benchmark, sys.argv[1:]))


if __name__ == "__main__":
    main()
