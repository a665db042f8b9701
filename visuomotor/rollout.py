"""A rollout of T steps in N worlds: what was seen, done and earned; advantages; reward scaling.

Imports only torch; knows no environment, no network and no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor import rows

Hidden = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sequences:
    """T steps of B worlds as a policy reads them.

    A pixel actor needs frames (or visual), frame_index and proprio; a state teacher needs state.
    """

    episode_start: Tensor | None = None  # (T, B) bool: memory is zeroed before this step; None: no
    hidden: Hidden | None = None  # (B, H) each, before the first step; None: zeros
    frames: Tensor | None = None  # (M, 3, H, W) uint8, each frame once
    visual: Tensor | None = None  # (M, V): the frames already encoded, to be read in their place
    frame_index: Tensor | None = None  # (T, B) int64: pixels[t, b] == frames[frame_index[t, b]]
    proprio: Tensor | None = None  # (T, B, P)
    state: Tensor | None = None  # (T, B, S)


@dataclass(frozen=True)
class Batch:
    """A minibatch of whole worlds. All but `inputs` and `env_ids` are (T, B, ...)."""

    env_ids: Tensor  # (B,) int64: the worlds it is made of
    inputs: Sequences
    state: Tensor
    aux_targets: Tensor
    action: Tensor
    mean: Tensor  # of the policy that acted
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor


def compute_gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16), all arguments (T, N).

    next_values: V of the state that the step reached, which is the episode's *final* state where it
    ended, never the next episode's first. terminated: the task ended, nothing follows, no
    bootstrap. done: terminated or out of time; cuts the sum over later steps. A step that merely
    ran out of time bootstraps (Pardo et al. 2018). Returns advantages and returns, (T, N) each.
    """
    deltas = rewards + gamma * next_values * (~terminated) - values
    goes_on = gamma * gae_lambda * (~done).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    following = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        following = deltas[t] + goes_on[t] * following
        advantages[t] = following
    return advantages, advantages + values


class RolloutBuffer:
    """(T, N, ...) tensors, allocated once and overwritten by each rollout; every frame once.

    One rollout: `start`, then T times `add_decision`, the environment's step and `add_outcome`,
    then `finish` with the rewards to learn from, then `minibatches`. A decision is copied before
    the environment steps, so the environment may overwrite its observation in place.
    """

    _KEPT = (
        *("proprio", "state", "aux_targets", "episode_start", "action", "mean", "log_prob"),
        *("value", "advantages", "returns", "frame_index"),
    )

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        *,
        action_dim: int,
        proprio_dim: int,
        state_dim: int,
        feature_dim: int,
        aux_dim: int = 0,
        frame_shape: tuple[int, int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """frame_shape: (3, H, W), or None when nothing is rendered."""
        self.num_steps = num_steps
        self.num_envs = num_envs
        self.device = torch.device(device)

        def allocate(*dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(num_steps, num_envs, *dims, dtype=dtype, device=self.device)

        self.proprio = allocate(proprio_dim)
        self.state = allocate(state_dim)
        self.aux_targets = allocate(aux_dim)
        self.episode_start = allocate(dtype=torch.bool)
        self.action = allocate(action_dim)
        self.mean = allocate(action_dim)
        self.log_prob = allocate()
        self.value = allocate()
        self.task_reward = allocate()
        self.features = allocate(feature_dim)
        self.next_value = allocate()
        self.terminated = allocate(dtype=torch.bool)
        self.done = allocate(dtype=torch.bool)
        self.rewards = allocate()
        self.advantages = allocate()
        self.returns = allocate()
        self.hidden: Hidden | None = None
        self.frame_index = allocate(dtype=torch.int64)
        self._frame_shape = frame_shape
        # Two frames a world to begin with; grows by doubling to what the camera's period needs.
        self._frames = (
            None
            if frame_shape is None
            else torch.zeros(2 * num_envs, *frame_shape, dtype=torch.uint8, device=self.device)
        )
        self._visual: Tensor | None = None  # (>= M, V)
        self._num_frames = 0
        self._step = 0
        self._decided = False

    @property
    def frames(self) -> Tensor | None:
        """(M, 3, H, W) uint8: the frames of this rollout, or None when nothing is rendered."""
        return None if self._frames is None else self._frames[: self._num_frames]

    @property
    def visual(self) -> Tensor | None:
        """(M, V): these frames as the policy that acted encoded them, or None if it did not say."""
        return None if self._visual is None else self._visual[: self._num_frames]

    def start(self, hidden: Hidden | None = None) -> None:
        """Begin a rollout; hidden: (N, H) each, the policy's memory before the first step."""
        self.hidden = None if hidden is None else (hidden[0].clone(), hidden[1].clone())
        self._num_frames = 0
        self._visual = None
        self._step = 0
        self._decided = False

    def add_decision(
        self,
        *,
        proprio: Tensor,
        state: Tensor,
        episode_start: Tensor,
        action: Tensor,
        mean: Tensor,
        log_prob: Tensor,
        value: Tensor,
        aux_targets: Tensor | None = None,
        pixels: Tensor | None = None,
        new_frame: Tensor | None = None,
        visual: Tensor | None = None,
    ) -> None:
        """What was observed and decided at one step; call it before the environment steps.

        pixels: (N, 3, H, W) uint8. new_frame: (N,) bool, where they changed since the last step.
        visual: (N, V), the pixels as the policy encoded them.
        episode_start: (N,) bool. Raises RuntimeError when the rollout is full or out of order.
        """
        if self._decided or self._step == self.num_steps:
            raise RuntimeError(
                f"decision {self._step} of {self.num_steps}: an outcome is missing, or the rollout "
                "is full and wants start()"
            )
        t = self._step
        self.proprio[t] = proprio
        self.state[t] = state
        self.episode_start[t] = episode_start
        self.action[t] = action
        self.mean[t] = mean
        self.log_prob[t] = log_prob
        self.value[t] = value
        if aux_targets is not None:
            self.aux_targets[t] = aux_targets
        if self._frames is not None:
            if pixels is None or new_frame is None:
                raise ValueError("this buffer keeps frames: pixels and new_frame are needed")
            self._add_frames(pixels, new_frame, visual)
        self._decided = True

    def add_outcome(
        self,
        *,
        task_reward: Tensor,
        features: Tensor,
        next_value: Tensor,
        terminated: Tensor,
        truncated: Tensor,
    ) -> None:
        """What the step led to, (N, ...) each.

        features: of the state that the step reached, and next_value: V of that state, both taken
        from the final observation in the worlds whose episode ended.
        """
        if not self._decided:
            raise RuntimeError(f"outcome {self._step}: add_decision comes first")
        t = self._step
        self.task_reward[t] = task_reward
        self.features[t] = features
        self.next_value[t] = next_value
        self.terminated[t] = terminated
        self.done[t] = terminated | truncated
        self._step += 1
        self._decided = False

    def finish(self, rewards: Tensor, gamma: float, gae_lambda: float) -> None:
        """Advantages and returns from rewards (T, N), which are kept. Raises RuntimeError early."""
        if self._step != self.num_steps:
            raise RuntimeError(f"rollout has {self._step} of {self.num_steps} steps")
        self.rewards.copy_(rewards)
        self.advantages, self.returns = compute_gae(
            self.rewards,
            self.value,
            self.next_value,
            self.terminated,
            self.done,
            gamma,
            gae_lambda,
        )

    def minibatches(
        self, count: int, generator: torch.Generator, *, frames: bool = True
    ) -> Iterator[Batch]:
        """One pass over all worlds in `count` groups of nearly equal size, freshly shuffled.

        generator: a CPU generator. frames: False leaves them out where what they were encoded to
        was kept. Raises ValueError if there are fewer worlds than groups.
        """
        if not 1 <= count <= self.num_envs:
            raise ValueError(
                f"{count} minibatches of whole worlds: expected 1 to {self.num_envs} "
                "(the number of worlds)"
            )
        order = torch.randperm(self.num_envs, generator=generator).to(self.device)
        for env_ids in order.tensor_split(count):
            yield self.batch(env_ids, frames=frames)

    def batch(self, env_ids: Tensor, *, frames: bool = True) -> Batch:
        """These worlds (B,) of the rollout; frames: as for `minibatches`."""
        pixels = visual = frame_index = None
        if self._frames is not None:
            seen = self.frame_index[:, env_ids]
            frame_ids, frame_index = torch.unique(seen, return_inverse=True)
            visual = None if self._visual is None else rows.take(self._visual, frame_ids)
            pixels = rows.take(self._frames, frame_ids) if frames or visual is None else None
        state = self.state[:, env_ids]
        return Batch(
            env_ids=env_ids,
            inputs=Sequences(
                episode_start=self.episode_start[:, env_ids],
                hidden=None
                if self.hidden is None
                else (self.hidden[0][env_ids], self.hidden[1][env_ids]),
                frames=pixels,
                visual=visual,
                frame_index=frame_index,
                proprio=self.proprio[:, env_ids],
                state=state,
            ),
            state=state,
            aux_targets=self.aux_targets[:, env_ids],
            action=self.action[:, env_ids],
            mean=self.mean[:, env_ids],
            log_prob=self.log_prob[:, env_ids],
            value=self.value[:, env_ids],
            advantage=self.advantages[:, env_ids],
            returns=self.returns[:, env_ids],
        )

    def frame_targets(self) -> Tensor:
        """(M, K): the mean auxiliary target over the steps at which each frame was the one seen."""
        index = self.frame_index.flatten()
        targets = self.aux_targets.flatten(0, 1)
        sums = targets.new_zeros(self._num_frames, targets.shape[1]).index_add_(0, index, targets)
        return sums / torch.bincount(index, minlength=self._num_frames).unsqueeze(1)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything `minibatches` reads, so that a buffer can be kept over a resume."""
        state = {name: getattr(self, name).clone() for name in self._KEPT}
        if self.hidden is not None:
            state["h"], state["c"] = (part.clone() for part in self.hidden)
        if self.frames is not None:
            state["frames"] = self.frames.clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self._KEPT:
            getattr(self, name).copy_(state[name])
        self.hidden = None
        self._visual = None
        if "h" in state:
            self.hidden = (state["h"].to(self.device), state["c"].to(self.device))
        if "frames" in state:
            self._frames = state["frames"].to(self.device)
            self._num_frames = len(self._frames)
        self._step = self.num_steps

    def _add_frames(self, pixels: Tensor, new_frame: Tensor, visual: Tensor | None) -> None:
        """Keep the frames that changed; at the first step every world's, whatever it is."""
        assert self._frames is not None
        t = self._step
        if t == 0:
            env_ids = torch.arange(self.num_envs, device=self.device)
        else:
            env_ids = new_frame.to(self.device).nonzero().flatten()
            self.frame_index[t] = self.frame_index[t - 1]
        begin, end = self._num_frames, self._num_frames + len(env_ids)
        capacity = len(self._frames)
        if end > capacity:
            capacity = max(2 * capacity, end)
        fresh = rows.take(pixels.to(self.device), env_ids)
        self._frames = _with_rows(self._frames, capacity, fresh, begin)
        if visual is not None:
            self._visual = _with_rows(
                self._visual, len(self._frames), rows.take(visual, env_ids), begin
            )
        self.frame_index[t, env_ids] = torch.arange(begin, end, device=self.device)
        self._num_frames = end


def _with_rows(store: Tensor | None, capacity: int, added: Tensor, begin: int) -> Tensor:
    """A store (capacity, ...) that holds `added` from `begin` on, and what it held before them."""
    if store is None or len(store) < capacity:
        larger = added.new_zeros(capacity, *added.shape[1:])
        if store is not None:
            larger[:begin] = store[:begin]
        store = larger
    store[begin : begin + len(added)] = added
    return store


class ReturnNormalizer:
    """Divides rewards by the running deviation of the discounted return, so that values stay near
    one whatever the task pays (OpenAI baselines' VecNormalize; Engstrom et al. 2020 on why it
    matters). Only scaled, never shifted: a shift would change what is optimal.
    """

    def __init__(
        self,
        num_envs: int,
        gamma: float,
        clip: float = 10.0,
        min_deviation: float = 0.1,
        device: torch.device | str = "cpu",
    ) -> None:
        """clip: largest absolute scaled reward. min_deviation: in units of reward; keeps the first
        rare rewards of a sparse task from being blown up, below the smallest stage's 0.125."""
        self.gamma = gamma
        self.clip = clip
        self.min_deviation = min_deviation
        self._returns = torch.zeros(num_envs, dtype=torch.float64, device=device)
        self._count = torch.zeros((), dtype=torch.float64, device=device)
        self._mean = torch.zeros((), dtype=torch.float64, device=device)
        self._variance = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def deviation(self) -> Tensor:
        """() float64: the divisor, in units of reward."""
        return self._variance.sqrt().clamp(min=self.min_deviation)

    def update(self, rewards: Tensor, done: Tensor) -> None:
        """Take in a rollout; rewards (T, N), done (T, N) bool."""
        visited = torch.empty(rewards.shape, dtype=torch.float64, device=self._returns.device)
        for t in range(len(rewards)):
            self._returns = self._returns * self.gamma + rewards[t]
            visited[t] = self._returns
            self._returns = self._returns * (~done[t])
        # Chan et al. 1979: merge the moments of two samples.
        count = float(visited.numel())
        total = self._count + count
        shift = visited.mean() - self._mean
        self._variance = (
            self._variance * self._count
            + visited.var(unbiased=False) * count
            + shift.square() * self._count * count / total
        ) / total
        self._mean = self._mean + shift * count / total
        self._count = total

    def scale(self, rewards: Tensor) -> Tensor:
        """rewards (...) -> scaled and clipped rewards (...)."""
        return (rewards / self.deviation.to(rewards.dtype)).clamp(-self.clip, self.clip)

    def statistics(self) -> dict[str, Tensor]:
        """What the scale follows from, for the successor of a critic that learned at this scale,
        whatever its worlds."""
        return {
            "count": self._count.clone(),
            "mean": self._mean.clone(),
            "variance": self._variance.clone(),
        }

    def load_statistics(self, statistics: dict[str, Tensor]) -> None:
        self._count = statistics["count"].to(self._returns).clone()
        self._mean = statistics["mean"].to(self._returns).clone()
        self._variance = statistics["variance"].to(self._returns).clone()

    def state_dict(self) -> dict[str, Tensor]:
        return {"returns": self._returns.clone(), **self.statistics()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._returns.copy_(state["returns"])
        self.load_statistics(state)
