"""DAgger (Ross et al. 2011): the pixel actor learns from a state teacher's labels.

The student acts, the teacher says what it would have done in the same states, the student is
fitted to what was gathered. The teacher is itself learned from demonstrations and sparse reward;
no scripted expert acts or labels here. Wires environment and networks; knows no files.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from visuomotor.auxiliary_phase import AuxiliaryPhase
from visuomotor.config import Config
from visuomotor.demonstrations import ResetStates
from visuomotor.envs import in_training, make_env
from visuomotor.episode_log import EpisodeLog
from visuomotor.networks import Progress, clip_gradients, load_optimizer_state, optimizer_state
from visuomotor.pixel_actor import PixelActor
from visuomotor.policies import NUM_ARM, NUM_FINGERS, PixelPolicy, make_actor
from visuomotor.ppo import CloningBatch, cloning_loss
from visuomotor.randomization import strength_at
from visuomotor.rehearsal import Rehearsal
from visuomotor.replay import DemonstrationReplay, ScatteredFrames
from visuomotor.rollout import RolloutBuffer
from visuomotor.state_teacher import StateTeacher
from visuomotor.weight_average import average_over, averaged

TEACHER_FADE = 0.3  # share of the run after which the teacher's share of worlds is the final one
MAX_GRAD_NORM = 1.0
MET_EVERY = 8  # steps of a rollout between the states that are seen anew, or rehearsed from
# Updates on older rollouts for each that has scattered frames beside it, where the CNN learns from
# nothing else there: most of an update's time is the CNN's.
SCATTERED_EVERY = 3
# Share of the run after which a rehearsing teacher is done: labels that no longer change are left.
REHEARSAL_END = 0.8


class Distillation:
    """A student, its teacher and their environment; one iteration is one rollout and its fit.

    Args:
      config: the run's settings; `distill` holds this phase's.
      replay: demonstrations as networks see them (normalization, reset states).
      teacher: labels; frozen, unless it rehearses.
      total_steps: env steps after which the step size has fallen to 0.
      rehearsal: of that teacher, which then learns with its student; None: it is finished.
      steps_before: env steps of the run's earlier phases, of which the randomization's curriculum
        goes on.
    """

    def __init__(
        self,
        config: Config,
        replay: DemonstrationReplay,
        teacher: StateTeacher,
        *,
        num_envs: int,
        total_steps: int,
        device: torch.device,
        rehearsal: Rehearsal | None = None,
        steps_before: int = 0,
    ):
        self.config = config
        self.total_steps = total_steps
        self._steps_before = steps_before
        self.env_steps = 0
        self.device = device
        self.rehearsal = rehearsal
        if rehearsal is None:
            self.teacher = teacher.to(device).eval().requires_grad_(False)
        else:
            self.teacher = rehearsal.learner.actor
        self._reset_states = ResetStates(replay.demos, stages=replay.stage)
        self._generator = torch.Generator().manual_seed(_seed(config.seed))
        torch.manual_seed(_seed(config.seed) + 1)
        self.actor: PixelActor = make_actor(config, replay.aux_targets[0].shape[1]).to(device)
        self.actor.set_normalization(*replay.statistics(replay.proprio))
        if self.actor.aux_heads is not None:
            self.actor.aux_heads.set_normalization(*replay.statistics(replay.aux_targets))
        self._parts = self._parameters()
        self.optimizer = torch.optim.Adam(
            [{"params": part} for part in self._parts], lr=config.distill.learning_rate, fused=True
        )
        self.env = make_env(
            in_training(config),
            num_envs=num_envs,
            render=True,
            device=device,
            reset_sampler=self._sample_start if config.curriculum.enabled else None,
            stagger=True,
        )
        self.policy = PixelPolicy(self.actor, num_envs)
        self.env.strength = self._strength()
        self.observation = self.env.reset()
        self._linear: torch.Tensor | None = None
        if config.distill.finger_loss == "linear":
            self._linear = torch.arange(NUM_ARM + NUM_FINGERS, device=device) >= NUM_ARM
        self._episode_start = torch.ones(num_envs, dtype=torch.bool, device=device)
        self._buffers = [self._buffer(replay) for _ in range(config.distill.memory)]
        self._filled = 0
        self._vision: AuxiliaryPhase | None = None
        self._scattered: ScatteredFrames | None = None
        if self.actor.aux_heads is not None:
            self._vision = AuxiliaryPhase(self.actor, config.aux, generator=self._generator)
            self._scattered = ScatteredFrames(config, self._reset_states, _seed(config.seed) + 2)
        self._met: list[torch.Tensor] = []  # states of this rollout
        self.iterations = 0
        self._episodes = EpisodeLog(self.env.task.stages, self.observation.stage)
        self.average = average_over(
            config.averaging_steps, self.actor, config.ppo.num_steps * num_envs
        )

    @property
    def judged(self) -> PixelActor:
        """What the learner has come to: the mean of the weights, where it is taken."""
        return averaged(self.average, self.actor)

    def _parameters(self) -> list[list[torch.nn.Parameter]]:
        """All of the actor's; where its vision learns apart, of CNN and heads in a list of their
        own behind the others."""
        heads = self.actor.aux_heads
        if self.config.distill.vision_learning_rate is None or heads is None:
            return [list(self.actor.parameters())]
        seeing = [*self.actor.encoder.parameters(), *heads.parameters()]
        if self.actor.fused_heads is not None:
            seeing += self.actor.fused_heads.parameters()
        apart = {id(parameter) for parameter in seeing}
        return [[p for p in self.actor.parameters() if id(p) not in apart], seeing]

    def _buffer(self, replay: DemonstrationReplay) -> RolloutBuffer:
        camera = self.config.camera
        return RolloutBuffer(
            self.config.ppo.num_steps,
            self.env.num_envs,
            action_dim=9,
            proprio_dim=replay.proprio[0].shape[1],
            state_dim=0,
            feature_dim=0,
            aux_dim=replay.aux_targets[0].shape[1],
            frame_shape=(3, camera.height, camera.width),
            device=self.device,
        )

    def vision_start(self, progress: Progress | None = None) -> None:
        """Teaches the CNN to see, on start states and demonstration states, before it acts."""
        aux = self.config.aux
        if self._vision is None or self._scattered is None or aux.start_updates == 0:
            return
        frames, targets = self._scattered.draw(aux.start_frames, strength=self._strength())
        self._vision.start(frames.to(self.device), targets.to(self.device), progress)

    def remember_starts(self) -> None:
        """Begins the memory of frames as the vision start does, for an actor that sees already."""
        if self._vision is None or self._scattered is None or self.config.aux.scattered == 0:
            return
        frames, targets = self._scattered.draw(
            self.config.aux.start_frames, strength=self._strength()
        )
        self._vision.memory.add(frames.to(self.device), targets.to(self.device))

    def _sample_start(self, rng: np.random.Generator) -> np.ndarray | None:
        if rng.random() < self.config.curriculum.final_share:
            return None
        return self._reset_states.sample(rng, self.config.curriculum.by_stage).state

    def iterate(self) -> dict[str, float]:
        """One rollout under the student (in some worlds, early on, the teacher), one fit."""
        slot = self.iterations % len(self._buffers)
        self.env.strength = self._strength()
        self._rollout(self._buffers[slot])
        self._see_anew()
        self._filled = max(self._filled, slot + 1)
        left = 1.0 - self.env_steps / self.total_steps
        fraction = max(self.config.distill.anneal_fraction, 1e-9)
        share = max(0.0, min(1.0, left / fraction))
        rate = self.config.distill.learning_rate * share
        rates = (rate, (self.config.distill.vision_learning_rate or 0.0) * share)
        for group, of_group in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = of_group
        metrics = self._fit(slot)
        if self.average is not None:
            self.average.update(self.actor)
        self.iterations += 1
        self.env_steps += self.config.ppo.num_steps * self.env.num_envs
        metrics |= {"learning_rate": rate, "teacher_share": self._teacher_share()}
        metrics |= self._episodes.metrics()
        metrics["mean_reward"] = float(self._buffers[slot].task_reward.mean())
        if self.rehearsal is not None:
            metrics |= self.rehearsal.advance(self._rehearsed())
        return metrics

    def _strength(self) -> float:
        """Of the randomization, now."""
        return strength_at(self.config.randomization, self._steps_before + self.env_steps)

    def _rehearsed(self) -> float:
        """How far the teacher's rehearsal should be: it begins when the student acts by itself."""
        done = self.env_steps / self.total_steps
        return (done - TEACHER_FADE) / (REHEARSAL_END - TEACHER_FADE)

    def _see_anew(self) -> None:
        """States just met, in other appearances, join the frames that vision is taught with."""
        if self._vision is None or self._scattered is None or self.config.aux.scattered == 0:
            return
        frames, targets = self._scattered.draw(
            self.config.aux.scattered, torch.cat(self._met), strength=self._strength()
        )
        self._vision.memory.add(frames.to(self.device), targets.to(self.device))

    def _teacher_share(self) -> float:
        done = min(1.0, self.env_steps / (TEACHER_FADE * self.total_steps))
        first, final = self.config.distill.teacher_share, self.config.distill.final_teacher_share
        return first + (min(first, final) - first) * done

    @torch.no_grad()
    def _rollout(self, buffer: RolloutBuffer) -> None:
        n = self.env.num_envs
        buffer.start(self.policy.hidden)
        self.policy.forget_features()
        worlds = torch.arange(n, device=self.device)
        teacher_acts = worlds < round(self._teacher_share() * n)
        # Spread over all worlds, whoever acts there.
        share = self.config.distill.noisy_share
        disturbed = (((worlds + 1) * share).floor() > (worlds * share).floor()).unsqueeze(1)
        empty = torch.zeros(n, 0, device=self.device)
        zeros = torch.zeros(n, device=self.device)
        self._met.clear()
        for step in range(buffer.num_steps):
            if step % MET_EVERY == 0:
                self._met.append(self.env.sim.get_state(torch.arange(n)))
            seen = self.observation
            mean = self.policy.act(seen, self._episode_start)
            label = self.teacher(seen.state).clamp(-1.0, 1.0)
            buffer.add_decision(
                proprio=seen.proprio,
                state=empty,
                episode_start=self._episode_start,
                action=label,
                mean=mean,
                log_prob=zeros,
                value=zeros,
                aux_targets=seen.aux_targets,
                pixels=seen.pixels,
                new_frame=seen.new_frame,
            )
            noise = torch.randn(mean.shape, generator=self._generator).to(self.device)
            action = torch.where(teacher_acts.unsqueeze(1), label, mean)
            action = action + self.config.distill.action_noise * noise * disturbed
            began_initially = self.env.from_initial.clone()
            result = self.env.step(action)
            self.observation = result.observation
            buffer.add_outcome(
                task_reward=result.reward,
                features=empty,
                next_value=zeros,
                terminated=result.terminated,
                truncated=result.truncated,
            )
            self._episode_start = result.terminated | result.truncated
            self._episodes.record(result, began_initially, ~teacher_acts.cpu())
        if self.rehearsal is not None:
            mine = ~teacher_acts.cpu()
            self.rehearsal.meet(torch.cat([states[mine] for states in self._met]))

    def _fit(self, fresh: int) -> dict[str, float]:
        """`epochs` passes over the fresh rollout, each beside `replayed` older ones."""
        distill = self.config.distill
        totals: dict[str, list[float]] = defaultdict(list)
        for _ in range(distill.epochs):
            chosen = [fresh]
            for _ in range(distill.replayed):
                older = torch.randint(self._filled, (1,), generator=self._generator)
                chosen.append(int(older))
            updates = 0
            for index, slot in enumerate(chosen):
                buffer = self._buffers[slot]
                train_encoder = index == 0 or distill.replays_train_encoder
                for batch in buffer.minibatches(distill.minibatches, self._generator):
                    labels = CloningBatch(batch.inputs, batch.action, batch.aux_targets)
                    loss, metrics = cloning_loss(
                        self.actor,
                        labels,
                        self.config.aux.weight,
                        linear=self._linear,
                        vision_apart=len(self._parts) > 1,
                        train_encoder=train_encoder,
                    )
                    updates += 1
                    if train_encoder or updates % SCATTERED_EVERY == 0:
                        loss = loss + self._scattered_loss()
                    self.optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    for part in self._parts:
                        clip_gradients(part, MAX_GRAD_NORM, "the student")
                    self.optimizer.step()
                    for name, value in metrics.items():
                        totals[name].append(float(value))
        return {name: float(np.mean(values)) for name, values in totals.items()}

    def _scattered_loss(self) -> torch.Tensor | float:
        """Of a batch of frames in appearances of their own; 0 where there are none."""
        aux = self.config.aux
        if self._vision is None or aux.scattered == 0 or aux.replayed == 0:
            return 0.0
        return aux.weight * aux.replayed * self._vision.frames_loss()[0]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the memory of older rollouts, which is part of an exact resume too."""
        vision, scattered = self._vision, self._scattered
        return {
            "vision": None if vision is None else vision.state_dict(),
            "scattered": None if scattered is None else scattered.state_dict(),
            "env": self.env.state_dict(),
            "actor": self.actor.state_dict(),
            "teacher": self.teacher.state_dict(),
            "rehearsal": None if self.rehearsal is None else self.rehearsal.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "average": None if self.average is None else self.average.state_dict(),
            "buffers": [buffer.state_dict() for buffer in self._buffers[: self._filled]],
            "hidden": list(self.policy.hidden),
            "episode_start": self._episode_start,
            "env_steps": self.env_steps,
            "iterations": self.iterations,
            "episodes": self._episodes.state_dict(),
            "generator": self._generator.get_state(),
            "observation": {
                name: value
                for name, value in self.observation._asdict().items()
                if value is not None
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.device
        self.env.load_state_dict(state["env"])
        self.actor.load_state_dict(state["actor"])
        self.teacher.load_state_dict(state["teacher"])
        if self.rehearsal is not None:
            self.rehearsal.load_state_dict(state["rehearsal"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self._vision is not None and self._scattered is not None:
            self._vision.load_state_dict(state["vision"])
            self._scattered.load_state_dict(state["scattered"])
        self._filled = len(state["buffers"])
        if self._filled > len(self._buffers):
            raise ValueError(
                f"{self._filled} rollouts are kept; expected distill.memory={len(self._buffers)} "
                "at most"
            )
        for buffer, saved in zip(self._buffers, state["buffers"], strict=False):
            buffer.load_state_dict(saved)
        h, c = state["hidden"]
        self.policy.hidden = (h.to(device), c.to(device))
        self._episode_start = state["episode_start"].to(device)
        self.env_steps = int(state["env_steps"])
        self.iterations = int(state["iterations"])
        self._episodes.load_state_dict(state["episodes"])
        self._generator.set_state(state["generator"])
        seen = {name: value.to(device) for name, value in state["observation"].items()}
        self.observation = self.observation._replace(**seen)


def _seed(seed: int) -> int:
    return int(np.random.SeedSequence([seed, 41]).generate_state(1, np.uint64)[0] >> 1)
