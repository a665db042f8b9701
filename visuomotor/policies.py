"""Networks with the sizes that a configuration asks for, and how they act in many worlds."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from visuomotor import rows
from visuomotor.aux_tasks import View
from visuomotor.config import ActorConfig, Config, TeacherConfig
from visuomotor.envs import make_task
from visuomotor.envs.robot import BASE_POS
from visuomotor.errors import UserError
from visuomotor.hand_position import HandPosition
from visuomotor.pixel_actor import MAPPED, PixelActor
from visuomotor.runtime.jaco import CHAIN
from visuomotor.runtime.kinematics import rotation
from visuomotor.state_critic import StateCritic
from visuomotor.state_teacher import StateTeacher

NUM_ARM, NUM_FINGERS = 6, 3


class Seen(Protocol):
    """What a policy may read of an observation."""

    @property
    def pixels(self) -> Tensor | None:
        """(N, 3, H, W) uint8; None: not rendered."""
        ...

    @property
    def new_frame(self) -> Tensor:
        """(N,) bool: pixels changed at this step."""
        ...

    @property
    def proprio(self) -> Tensor:
        """(N, 24) float32."""
        ...


class SeenState(Protocol):
    """What a teacher reads of an observation."""

    @property
    def state(self) -> Tensor:
        """(N, S) float32."""
        ...


class PixelPolicy:
    """A PixelActor acting in N worlds: keeps its memory, and encodes each frame only once."""

    def __init__(self, actor: PixelActor, num_envs: int):
        self.actor = actor
        self.hidden = actor.initial_hidden(num_envs)
        self._visual: Tensor | None = None

    @property
    def visual(self) -> Tensor | None:
        """(N, V): what was seen last, as the actor encodes it; the next act writes over it."""
        return self._visual

    def forget_features(self) -> None:
        """To be called when the actor's weights have changed."""
        self._visual = None

    @torch.no_grad()
    def act(self, seen: Seen, episode_start: Tensor) -> Tensor:
        """seen: N worlds; episode_start (N,) bool, where memory is empty. Returns means (N, 9)."""
        assert seen.pixels is not None
        if self._visual is None:
            self._visual = self.actor.encode(seen.pixels)
        else:
            ids = seen.new_frame.nonzero().squeeze(1)
            if len(ids) > 0:
                self._visual[ids] = self.actor.encode(rows.take(seen.pixels, ids))
        keep = (~episode_start).unsqueeze(1)
        h, c = (torch.where(keep, memory, 0.0) for memory in self.hidden)  # also of what is NaN
        mean, self.hidden = self.actor.step(self._visual, seen.proprio, (h, c))
        return mean


class TeacherPolicy:
    """A StateTeacher acting in simulated worlds."""

    def __init__(self, teacher: StateTeacher):
        self.teacher = teacher

    @torch.no_grad()
    def act(self, seen: SeenState, episode_start: Tensor) -> Tensor:
        """Returns means (N, 9)."""
        return self.teacher(seen.state)


def make_actor(config: Config, target_dim: int) -> PixelActor:
    """target_dim: numbers that the task's auxiliary targets have; 0: an actor without heads.

    Raises UserError for an encoder that the task has no use for.
    """
    actor = config.actor
    target_dim = target_dim if config.aux.weight > 0.0 else 0
    init_log_std, min_std = _deviation(actor)
    return PixelActor(
        height=config.camera.height,
        width=config.camera.width,
        encoder=actor.encoder,
        visual_dim=actor.visual_dim,
        proprio_dim_out=actor.proprio_dim,
        hidden_dim=actor.hidden_dim,
        recurrent=actor.recurrent,
        target_dim=target_dim,
        aux_hidden_sizes=config.aux.hidden_sizes,
        reads=config.actor.reads,
        view=view_of(config),
        hand=_hand() if actor.from_hand else None,
        places=places_of(config),
        fused_heads=actor.fused_heads,
        init_log_std=init_log_std,
        min_std=min_std,
    )


def _hand() -> HandPosition:
    rotations = rotation(CHAIN.link_quat).reshape(-1, 9).tolist()
    return HandPosition(rotations, CHAIN.link_pos.tolist(), CHAIN.tool_pos.tolist(), BASE_POS)


def places_of(config: Config) -> tuple[int, ...]:
    """Of the task's targets, those that say where a thing is, or would be; none where the policy
    does not read from its hand.

    Raises UserError for a task that does not say.
    """
    if not config.actor.from_hand:
        return ()
    kinds = make_task(config.task).kinds_in_targets
    places = {place for kind in kinds for thing in kind for place in thing if place is not None}
    if not places:
        raise UserError(
            f"actor.from_hand=true needs a task that names kinds_in_targets, which {config.task} "
            "does not"
        )
    return tuple(sorted(places))


def view_of(config: Config) -> View | None:
    """What the maps of its encoder are made of; None: it has none.

    Raises UserError for a task that does not say.
    """
    if config.actor.encoder not in MAPPED:
        return None
    kinds = make_task(config.task).kinds_in_targets
    if not kinds:
        raise UserError(
            f"actor.encoder={config.actor.encoder} needs a task that names kinds_in_targets, which "
            f"{config.task} does not; take another encoder"
        )
    return View(kinds, config.camera.pos, config.camera.lookat, config.camera.fovy)


def make_teacher(config: Config, state_dim: int) -> StateTeacher:
    init_log_std, min_std = _deviation(config.distill.teacher)
    return StateTeacher(
        state_dim=state_dim,
        hidden_sizes=config.distill.teacher.hidden_sizes,
        init_log_std=init_log_std,
        min_std=min_std,
    )


def make_critic(config: Config, state_dim: int) -> StateCritic:
    return StateCritic(state_dim=state_dim, hidden_sizes=config.critic.hidden_sizes)


def _deviation(actor: ActorConfig | TeacherConfig) -> tuple[Tensor, Tensor]:
    """Initial log-deviation and floor of the deviation, (9,) each: arm joints, then fingers."""
    init = [actor.init_log_std_arm] * NUM_ARM + [actor.init_log_std_finger] * NUM_FINGERS
    floor = [actor.min_std_arm] * NUM_ARM + [actor.min_std_finger] * NUM_FINGERS
    return torch.tensor(init), torch.tensor(floor)
