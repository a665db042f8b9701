"""Looks on in a browser: `python -m visuomotor.view policy=stacking`, or `task=pouring` alone.

The scene, what the policy's camera sees, what the policy asks for, stage and reward, the
discriminator's score and the randomized factors; pause, step, reset, next episode, next seed,
randomization on and off. Episodes have the numbers of `episodes.csv`: `episode=37` shows the one
that failed there. Drawn by mjviser and viser, which need no GPU here; reachable from this machine
alone. The scene shows props as they were compiled: an episode's sizes and colours are in the
camera's picture.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.checkpoint import load_checkpoint
from visuomotor.cli import StopSignal, resolve_device, run_command
from visuomotor.config import Config
from visuomotor.envs import Observation, VisuomotorEnv, make_task
from visuomotor.errors import UserError
from visuomotor.evaluation import Guarded, evaluation_env
from visuomotor.gail_reward import Discriminator
from visuomotor.heldout import HeldOutOptions, held_out
from visuomotor.limits import MOST_EPISODES
from visuomotor.overrides import parse_overrides
from visuomotor.policy_files import CHECKPOINTS, find_policy, load_evaluated_policy

HOST = "127.0.0.1"  # never another: nothing here asks who is looking
EYE, LOOKAT = (0.85, -0.8, 0.75), (0.0, 0.1, 0.15)  # m, of the scene at first
SHOWN = 256  # pixels of the camera's picture in the panel
FACTORS = 12  # that differ most from their neutral values, in the panel
JOINTS = (*(f"joint {i}" for i in range(1, 7)), *(f"finger {i}" for i in range(1, 4)))
SIMS = ("nominal", "randomized", "heldout")


@dataclass(frozen=True)
class ViewConfig:
    task: str | None = None  # None: the policy's
    policy: str | None = None  # a run folder, a bundle or a shipped name; None: a still arm
    sims: str = "randomized"  # nominal, randomized or heldout, as of visuomotor.evaluate
    heldout: HeldOutOptions = field(default_factory=HeldOutOptions)
    seed: int = 0
    episode: int = 0  # the first to be shown, as `evaluate` numbers them
    port: int = 8080  # on 127.0.0.1
    device: str = "auto"


class Shown(NamedTuple):
    """What there is to see after a step."""

    episode: int
    step: int
    action: np.ndarray  # (9,) in [-1, 1]
    stage: str
    reward: float
    success: bool
    score: float | None  # the discriminator's D, 1: as in a demonstration; None: there is none
    pixels: np.ndarray  # (H, W, 3) uint8


class Watched:
    """One world and what acts in it; knows no browser."""

    def __init__(self, options: ViewConfig):
        """Raises UserError for a task or policy that is not there, or that do not fit."""
        if options.sims not in SIMS:
            raise UserError(f"sims='{options.sims}' is unknown; valid: {', '.join(SIMS)}")
        if options.seed < 0:
            raise UserError(f"seed={options.seed}; valid: from 0")
        if not 0 <= options.episode < MOST_EPISODES:
            raise UserError(f"episode={options.episode}; valid: 0 to {MOST_EPISODES - 1}")
        if not 1 <= options.port <= 65535:
            raise UserError(f"port={options.port}; valid: 1 to 65535")
        if options.task is None and options.policy is None:
            raise UserError("task= or policy= is missing; for example: task=stacking")
        self.heldout = held_out(options.sims, options.heldout)
        self.device = resolve_device(options.device)
        self._loaded = None
        config = Config()
        if options.policy is not None:
            self._loaded = load_evaluated_policy(options.policy, self.device)
            config = self._loaded.config
        if options.task is not None:
            task = make_task(options.task).name
            if self._loaded is not None and task != config.task:
                raise UserError(
                    f"policy={options.policy} does {config.task}, not {task}; leave task= away"
                )
            config = replace(config, task=task)
        self.config = config
        self.seed, self.episode = options.seed, options.episode
        self.randomized = options.sims != "nominal"
        self.env: VisuomotorEnv
        self._discriminator = _discriminator(options.policy)
        self.shown: Shown
        self.restart()

    def restart(self) -> Shown:
        """The episode of this seed and number, as `evaluate` has it."""
        self.env = evaluation_env(
            self.config,
            num_envs=1,
            seed=self.seed,
            strength=1.0 if self.randomized else 0.0,
            device=self.device,
            heldout=self.heldout,
        )
        self._policy = None if self._loaded is None else Guarded(self._loaded.policy(1))
        self._stopped = False  # for the rest of the episode
        self._seen: Observation = self.env.restart(torch.tensor([self.episode]))
        self._start = torch.ones(1, dtype=torch.bool, device=self.device)
        self.shown = self._shown(torch.zeros(1, 9), 0.0, False, self._seen.features)
        return self.shown

    @property
    def shown_episode(self) -> int:
        return int(self.env.episode_ids[0])

    def step(self) -> Shown:
        action = torch.zeros(1, 9, device=self.device)
        if self._policy is not None and not self._stopped:
            action = self._policy.act(self._seen, self._start)
            if not bool(torch.isfinite(action).all()):
                why = self._policy.refusal or "its actions are not finite"
                print(f"the policy stands still for this episode: {why}", file=sys.stderr)
                action, self._stopped = torch.zeros_like(action), True
        episode, step = self.shown_episode, int(self.env.elapsed[0]) + 1
        last = self.shown.pixels
        result = self.env.step(action)
        self._seen, self._start = result.observation, result.truncated
        ended = bool(result.truncated[0])
        self._stopped &= not ended
        reward, success = float(result.reward[0]), bool(result.success[0])
        shown = self._shown(action, reward, success, result.features)
        stage = self.env.task.stages[int(result.stage[0])]
        # The world has begun the next episode by now; what is told is of the one that ended, whose
        # last image is not rendered.
        pixels = last if ended else shown.pixels
        self.shown = shown._replace(episode=episode, step=step, stage=stage, pixels=pixels)
        return self.shown

    def factors(self) -> list[tuple[str, float]]:
        """Name and value, those first that are furthest from neutral for their range."""
        randomizer, values = self.env.randomizer, self.env.factors[0]
        span = np.array([max(f.high - f.low, 1e-12) for f in randomizer.factors])
        away = np.abs(values - randomizer.default()) / span
        order = np.argsort(-away, kind="stable")
        return [(randomizer.factor_names[i], float(values[i])) for i in order]

    def mj_data(self, data: mujoco.MjData) -> None:
        """Writes the world's state into data of the same model."""
        data.qpos[:] = self.env.sim.data("qpos")[0].cpu().numpy()
        data.qvel[:] = self.env.sim.data("qvel")[0].cpu().numpy()
        mujoco.mj_forward(self.env.sim.model, data)

    @torch.no_grad()
    def _shown(self, action: Tensor, reward: float, success: bool, features: Tensor) -> Shown:
        score = None
        if self._discriminator is not None:
            score = float(torch.sigmoid(self._discriminator(features.cpu()))[0])
        assert self._seen.pixels is not None
        stage = int(self._seen.stage[0])
        return Shown(
            episode=self.shown_episode,
            step=int(self.env.elapsed[0]),
            action=action[0].cpu().numpy().clip(-1.0, 1.0),
            stage=self.env.task.stages[stage],
            reward=reward,
            success=success,
            score=score,
            pixels=self._seen.pixels[0].permute(1, 2, 0).cpu().numpy().copy(),
        )


def _discriminator(policy: str | None) -> Discriminator | None:
    """The one that a run's policy was trained against; bundles and distilled students have none."""
    folder = None if policy is None else find_policy(policy) / CHECKPOINTS
    if folder is None or not folder.is_dir():
        return None
    state, _, _ = load_checkpoint(folder)
    weights = _find(state, "discriminator")
    if weights is None:
        return None
    sizes = [len(value) for name, value in weights.items() if name.endswith(".bias")][:-1]
    width = len(weights["normalizer.mean"])
    discriminator = Discriminator(feature_dim=width, hidden_sizes=sizes)
    discriminator.load_state_dict(weights)
    return discriminator.eval()


def _find(tree: Any, name: str) -> dict[str, Tensor] | None:
    """The first part of that name, at any depth."""
    if not isinstance(tree, dict):
        return None
    part: dict[str, Tensor] | None = tree.get(name)
    if isinstance(part, dict):
        return part
    return next((found for value in tree.values() if (found := _find(value, name))), None)


class Panel:
    """The page: a scene, and what stands beside it. `run` moves the world in real time."""

    def __init__(self, watched: Watched, port: int):
        """port: or the next one that is free. Raises UserError where viser is not installed."""
        try:
            import viser
            from mjviser import ViserMujocoScene
        except ImportError as error:
            raise UserError(
                f"the viewer needs {error.name}; in a checkout: pip install '.[view]'"
            ) from error
        self.server = viser.ViserServer(host=HOST, port=port, label="visuomotor", verbose=False)
        self.server.initial_camera.position = EYE
        self.server.initial_camera.look_at = LOOKAT
        self.port = self.server.get_port()
        self.watched = watched
        self._lock = threading.Lock()  # viser calls back from threads of its own
        self._paused = False
        self._wanted: list[str] = []
        model = watched.env.sim.model
        self._data = mujoco.MjData(model)
        self._scene = ViserMujocoScene(self.server, model, num_envs=1)
        gui = self.server.gui
        with gui.add_folder("Run"):
            self._play = gui.add_button("Pause")
            for name in ("Step", "Reset", "Next episode", "Next seed"):
                gui.add_button(name).on_click(partial(self._want, name))
            # What is held out comes on top of it.
            held = watched.heldout is not None
            self._randomized = gui.add_checkbox("Randomization", watched.randomized, disabled=held)
            self._told = gui.add_markdown("")
        with gui.add_folder("Camera"):
            self._image = gui.add_image(np.zeros((SHOWN, SHOWN, 3), np.uint8), format="png")
        with gui.add_folder("Action"):
            self._action = gui.add_markdown("")
        with gui.add_folder("Factors"):
            self._factors = gui.add_markdown("")
        self._play.on_click(partial(self._want, "Pause"))
        self._randomized.on_update(partial(self._want, "Randomization"))

    def _want(self, what: str, event: object) -> None:
        with self._lock:
            self._wanted.append(what)

    def run(self, stopped: Callable[[], bool]) -> None:
        """Until it is to stop."""
        self._show(self.watched.shown)
        due = time.monotonic()
        while not stopped():
            with self._lock:
                wanted, self._wanted = self._wanted, []
            for what in wanted:
                self._do(what)
            if not self._paused:
                self._show(self.watched.step())
            due = max(due + self.watched.env.control_dt, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
        self.server.stop()

    def _do(self, what: str) -> None:
        if what == "Pause":
            self._paused = not self._paused
            self._play.label = "Play" if self._paused else "Pause"
        elif what == "Step":
            self._paused, self._play.label = True, "Play"
            self._show(self.watched.step())
        else:
            self.watched.episode = self.watched.shown_episode + (what == "Next episode")
            if what == "Next seed":
                self.watched.seed, self.watched.episode = self.watched.seed + 1, 0
            self.watched.randomized = self._randomized.value
            self._show(self.watched.restart())

    def _show(self, shown: Shown) -> None:
        self.watched.mj_data(self._data)
        self._scene.update_from_mjdata(self._data)
        scale = max(1, SHOWN // shown.pixels.shape[0])
        self._image.image = shown.pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        score = "none in this policy" if shown.score is None else f"{shown.score:.3f}"
        success = " (success)" if shown.success else ""
        self._told.content = (
            f"{self.watched.config.task}, seed {self.watched.seed}, episode {shown.episode}, "
            f"step {shown.step}\n\n**stage: {shown.stage}**{success}, "
            f"reward {shown.reward:.3f}\n\ndiscriminator: {score}"
        )
        rows = [
            f"| {name} | {value:+.2f} |" for name, value in zip(JOINTS, shown.action, strict=True)
        ]
        self._action.content = "\n".join(("| | of its limit |", "|---|---|", *rows))
        rows = [f"| {name} | {value:.3g} |" for name, value in self.watched.factors()[:FACTORS]]
        self._factors.content = "\n".join(("| furthest from neutral | |", "|---|---|", *rows))


def view(argv: list[str]) -> int:
    options = parse_overrides(argv, ViewConfig)
    panel = Panel(Watched(options), options.port)
    print(f"http://{HOST}:{panel.port} shows it; Ctrl-C ends", flush=True)
    with StopSignal() as stop:
        panel.run(lambda: stop.requested)
    return 0


def main() -> None:
    sys.exit(run_command(view, sys.argv[1:]))


if __name__ == "__main__":
    main()
