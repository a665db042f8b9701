"""PPO + GAIL with demonstrations (Zhu et al. 2018): one iteration is one rollout and one update.

The same loop trains the pixel actor (`ril`) and the state teacher of `distill`: they differ in
what the policy reads. Wires environment, networks and losses; knows no files and no commands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.auxiliary_phase import AuxiliaryPhase
from visuomotor.cloning import BATCH_STATES, STATE_NOISE, clone_from_state
from visuomotor.config import Config
from visuomotor.demonstrations import ResetStates, ShareSchedule
from visuomotor.envs import in_training, make_env, make_task
from visuomotor.envs.environment import ResetSampler
from visuomotor.episode_log import EpisodeLog
from visuomotor.gail_reward import Discriminator, GailTrainer, imitation_reward, mix_rewards
from visuomotor.networks import Progress
from visuomotor.policies import PixelPolicy, make_actor, make_critic, make_teacher
from visuomotor.ppo import PPO, CloningBatch, gaussian_log_prob
from visuomotor.randomization import strength_at
from visuomotor.replay import DemonstrationReplay, ScatteredFrames
from visuomotor.rollout import ReturnNormalizer, RolloutBuffer
from visuomotor.state_teacher import StateTeacher
from visuomotor.weight_average import average_over, averaged


class Reinforcement:
    """One learner and its environment; `iterate` is the paper's loop.

    Args:
      config: the run's settings.
      replay: demonstrations as networks see them.
      pixels: True trains a PixelActor, False a StateTeacher.
      num_envs: N.
      total_steps: env steps after which the step size has fallen to 0.
      device: of networks and images.
      expert: labels a pixel actor's own states in the cloning term; None: there is no such term.
        A StateTeacher clones the demonstrations instead.
      elsewhere: asked first where an episode starts; None, or its None: the curriculum decides.
      vision: False leaves a pixel actor's CNN as it is, which must see already.
      noise: share of the policy's deviation to act with, all through; None: as `ppo` says.
      steps_before: env steps of the run's earlier phases, of which the randomization's curriculum
        goes on.
    """

    def __init__(
        self,
        config: Config,
        replay: DemonstrationReplay,
        *,
        pixels: bool,
        num_envs: int,
        total_steps: int,
        device: torch.device,
        expert: StateTeacher | None = None,
        elsewhere: ResetSampler | None = None,
        vision: bool = True,
        noise: float | None = None,
        steps_before: int = 0,
    ):
        self.config = config
        self.pixels = pixels
        self.total_steps = total_steps
        self._steps_before = steps_before
        self.device = device
        self._replay = replay
        self.expert = None if expert is None else expert.to(device).eval().requires_grad_(False)
        self._generators = {
            name: torch.Generator().manual_seed(_seed(config.seed, index))
            for index, name in enumerate(("action", "minibatch", "gail", "cloning", "aux"))
        }
        self._reset_states = ResetStates(replay.demos, stages=replay.stage)
        curriculum = config.curriculum
        self._elsewhere = elsewhere
        self._noise = noise
        self.share = ShareSchedule(curriculum.initial_share, curriculum.final_share)
        self.env = make_env(
            in_training(config) if pixels else _with_shorter_episodes(config),
            num_envs=num_envs,
            render=pixels,
            device=device,
            reset_sampler=self._sample_start,
            stagger=True,
        )
        self._build_networks(num_envs, vision)
        self.env_steps = 0
        self.env.strength = self._strength()
        self.observation = self.env.reset()
        self.iterations = 0
        self._episode_start = torch.ones(num_envs, dtype=torch.bool, device=device)
        self.policy = PixelPolicy(self.actor, num_envs) if pixels else None
        self._episodes = EpisodeLog(self.env.task.stages, self.observation.stage)
        self.average = average_over(
            config.averaging_steps if pixels else 0, self.actor, config.ppo.num_steps * num_envs
        )

    @property
    def judged(self) -> Any:
        """What the learner has come to: the mean of the weights, where it is taken."""
        return averaged(self.average, self.actor)

    def _build_networks(self, num_envs: int, vision: bool) -> None:
        config, replay, device = self.config, self._replay, self.device
        torch.manual_seed(_seed(config.seed, 99))
        state_dim, feature_dim = replay.all_state.shape[1], replay.all_features.shape[1]
        aux_dim = replay.aux_targets[0].shape[1]
        self.critic = make_critic(config, state_dim).to(device)
        state_statistics = replay.statistics(replay.state)
        self.critic.set_normalization(*state_statistics)
        self.actor: Any
        self.vision: AuxiliaryPhase | None = None
        if self.pixels:
            self.actor = make_actor(config, aux_dim).to(device)
            self.actor.set_normalization(*replay.statistics(replay.proprio))
            if self.actor.aux_heads is not None:
                self.actor.aux_heads.set_normalization(*replay.statistics(replay.aux_targets))
            if self.actor.aux_heads is not None and vision:
                self.vision = AuxiliaryPhase(
                    self.actor, config.aux, generator=self._generators["aux"]
                )
        else:
            self.actor = make_teacher(config, state_dim).to(device)
            self.actor.set_normalization(*state_statistics)
        self.ppo = PPO(
            self.actor,
            self.critic,
            config.ppo,
            generator=self._generators["minibatch"],
        )
        discriminator = Discriminator(
            feature_dim=feature_dim, hidden_sizes=config.gail.hidden_sizes
        ).to(device)
        discriminator.set_normalization(*replay.statistics(replay.features))
        self.gail = GailTrainer(
            discriminator,
            learning_rate=config.gail.learning_rate,
            updates=config.gail.updates,
            batch_size=config.gail.batch_size,
            gradient_penalty=config.gail.gradient_penalty,
        )
        self.normalizer = ReturnNormalizer(num_envs, config.ppo.gamma, device=device)
        self.buffer = RolloutBuffer(
            config.ppo.num_steps,
            num_envs,
            action_dim=9,
            proprio_dim=replay.proprio[0].shape[1],
            state_dim=state_dim,
            feature_dim=feature_dim,
            aux_dim=aux_dim,
            frame_shape=(3, config.camera.height, config.camera.width) if self.pixels else None,
            device=device,
        )

    def _sample_start(self, rng: np.random.Generator) -> np.ndarray | None:
        """The curriculum: with probability epsilon the task's own start, else a demonstration's."""
        start = None if self._elsewhere is None else self._elsewhere(rng)
        if start is not None:
            return start
        if not self.config.curriculum.enabled or rng.random() < self.share.value:
            return None
        return self._reset_states.sample(rng, self.config.curriculum.by_stage).state

    # --- before reinforcement ---------------------------------------------------------------------

    @property
    def cloning(self) -> bool:
        if self.pixels:
            return self.expert is not None
        return self.config.cloning.enabled and self._replay.has_actions

    def vision_start(self, progress: Progress | None = None) -> None:
        """Teaches the CNN to see, on start states and demonstration states, before it acts."""
        aux = self.config.aux
        if self.vision is None or aux.start_updates == 0:
            return
        scattered = ScatteredFrames(self.config, self._reset_states, _seed(self.config.seed, 98))
        frames, targets = scattered.draw(aux.start_frames, strength=self._strength())
        self.vision.start(frames.to(self.device), targets.to(self.device), progress)

    def clone_start(self, progress: Progress | None = None) -> None:
        """A teacher's behaviour cloning of the demonstrations, before any reinforcement."""
        clone_from_state(self.actor, self._states, self.config.cloning, progress)

    def _states(self, size: int, noise: float) -> CloningBatch:
        return self._replay.state_batch(size, noise, self._generators["cloning"])

    def cloning_batch(self) -> CloningBatch:
        """States of demonstrations and what was done there."""
        return self._states(BATCH_STATES, STATE_NOISE)

    def _cloning_weight(self) -> float:
        if not self.cloning:
            return 0.0
        cloning = self.config.cloning
        first, last, steps = cloning.weight, cloning.final_weight, cloning.decay_steps
        if self.pixels:
            first, last = cloning.label_weight, cloning.final_label_weight
            steps = cloning.label_decay_steps
        return first + min(1.0, self.env_steps / steps) * (last - first)

    def settled_success(self) -> float:
        """Success, exploration included, over the last episodes from the initial distribution."""
        return self._episodes.settled_success()

    # --- one iteration ----------------------------------------------------------------------------

    def iterate(self) -> dict[str, float]:
        """Rollout, discriminator, rewards, advantages, update. Returns the iteration's metrics."""
        ppo = self.config.ppo
        self.env.strength = self._strength()
        self.actor.deviation.scale = self._noise_share()
        self._rollout()
        metrics: dict[str, float] = {}
        buffer = self.buffer
        rewards = buffer.task_reward
        if self.config.gail.weight > 0.0:
            features = buffer.features.flatten(0, 1)
            metrics |= self.gail.update(self._sample_expert, features, self._generators["gail"])
            rewards = self._mixed_rewards(metrics)
        self.normalizer.update(rewards, buffer.done)
        buffer.finish(self.normalizer.scale(rewards), ppo.gamma, ppo.gae_lambda)
        self.ppo.learning_rate_scale = self._fall(ppo.anneal_fraction)
        weight = self._cloning_weight()
        metrics |= self.ppo.update(
            buffer,
            cloning_batch_sampler=self.cloning_batch if not self.pixels else None,
            labels=self._labels(),
            cloning_weight=weight,
            train_actor=self.iterations >= ppo.critic_warmup,
        )
        if self.vision is not None:
            # What was encoded while acting still holds where PPO left the CNN alone.
            visual = buffer.visual if self.ppo.encoder_epochs == 0 else None
            metrics |= self.vision.update(buffer, self.ppo.learning_rate_scale, visual)
        if self.average is not None:
            self.average.update(self.actor)
        self.iterations += 1
        self.env_steps += ppo.num_steps * self.env.num_envs
        metrics |= {"cloning_weight": weight, "initial_share": self.share.value}
        metrics |= self._episodes.metrics()
        metrics["mean_reward"] = float(buffer.task_reward.mean())
        metrics["mean_std"] = float(self.actor.std().detach().mean())
        metrics["randomization_strength"] = self.env.strength
        return metrics

    def _strength(self) -> float:
        """Of the randomization, now."""
        return strength_at(self.config.randomization, self._steps_before + self.env_steps)

    @torch.no_grad()
    def _labels(self) -> Tensor | None:
        """(T, N, 9): what the expert would have done in the states of the rollout."""
        if self.expert is None:
            return None
        labels: Tensor = self.expert(self.buffer.state).clamp(-1.0, 1.0)
        return labels

    def _sample_expert(self, n: int) -> Tensor:
        features = self._replay.all_features
        chosen = torch.randint(len(features), (n,), generator=self._generators["gail"])
        return features[chosen].to(self.device)

    @torch.no_grad()
    def _mixed_rewards(self, metrics: dict[str, float]) -> Tensor:
        gail, buffer = self.config.gail, self.buffer
        logits = self.gail.discriminator(buffer.features)
        imitation = imitation_reward(logits, gail.reward, gail.clip)
        metrics["gail_reward"] = float(imitation.mean())
        return mix_rewards(imitation, buffer.task_reward, gail.weight, gail.scale)

    def _noise_share(self) -> float:
        """Of the policy's deviation, which it now acts with."""
        if self._noise is not None:
            return self._noise
        ppo = self.config.ppo
        return ppo.final_noise + (1.0 - ppo.final_noise) * self._fall(ppo.noise_anneal_fraction)

    def _fall(self, fraction: float) -> float:
        """1 until the last `fraction` of the run, over which it falls to 0."""
        left = 1.0 - self.env_steps / self.total_steps
        return max(0.0, min(1.0, left / max(fraction, 1e-9)))

    @torch.no_grad()
    def _rollout(self) -> None:
        std = self.actor.std()
        self.buffer.start(self.policy.hidden if self.policy is not None else None)
        if self.policy is not None:
            self.policy.forget_features()
        value = self.critic(self.observation.state)
        for _ in range(self.config.ppo.num_steps):
            seen = self.observation
            if self.policy is not None:
                mean = self.policy.act(seen, self._episode_start)
            else:
                mean = self.actor(seen.state)
            noise = torch.randn(mean.shape, generator=self._generators["action"]).to(self.device)
            action = mean + std * noise
            self.buffer.add_decision(
                proprio=seen.proprio,
                state=seen.state,
                episode_start=self._episode_start,
                action=action,
                mean=mean,
                log_prob=gaussian_log_prob(action, mean, std),
                value=value,
                aux_targets=seen.aux_targets,
                pixels=seen.pixels,
                new_frame=seen.new_frame,
                visual=self.policy.visual if self.policy is not None else None,
            )
            began_initially = self.env.from_initial.clone()
            result = self.env.step(action)
            self.observation = result.observation
            value = self.critic(self.observation.state)
            next_value = value
            if len(result.final_env_ids) > 0:
                # A world whose time is up goes on from its last state, not from the new start.
                next_value = value.clone()
                final_state = result.final_observation.state
                next_value[result.final_env_ids] = self.critic(final_state)
            self.buffer.add_outcome(
                task_reward=result.reward,
                features=result.features,
                next_value=next_value,
                terminated=result.terminated,
                truncated=result.truncated,
            )
            self._episode_start = result.terminated | result.truncated
            for success in self._episodes.record(result, began_initially):
                self.share.update(success)

    # --- exact resume -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "env": self.env.state_dict(),
            "ppo": self.ppo.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "gail": self.gail.state_dict(),
            "normalizer": self.normalizer.state_dict(),
            "share": self.share.state_dict(),
            "env_steps": self.env_steps,
            "iterations": self.iterations,
            "episode_start": self._episode_start,
            "episodes": self._episodes.state_dict(),
            "generators": {name: g.get_state() for name, g in self._generators.items()},
            "observation": {
                name: value
                for name, value in self.observation._asdict().items()
                if value is not None
            },
        }
        if self.vision is not None:
            state["vision"] = self.vision.state_dict()
        if self.policy is not None:
            state["hidden"] = list(self.policy.hidden)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.env.load_state_dict(state["env"])
        self.ppo.load_state_dict(state["ppo"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.gail.load_state_dict(state["gail"])
        if self.vision is not None:
            self.vision.load_state_dict(state["vision"])
        self.normalizer.load_state_dict(state["normalizer"])
        self.share.load_state_dict(state["share"])
        self.env_steps = int(state["env_steps"])
        self.iterations = int(state["iterations"])
        device = self.device
        self._episode_start = state["episode_start"].to(device)
        self._episodes.load_state_dict(state["episodes"])
        for name, generator in self._generators.items():
            generator.set_state(state["generators"][name])
        seen = {name: value.to(device) for name, value in state["observation"].items()}
        self.observation = self.observation._replace(**seen)
        if self.policy is not None:
            h, c = state["hidden"]
            self.policy.hidden = (h.to(device), c.to(device))


def _with_shorter_episodes(config: Config) -> Config:
    """`distill.teacher.episode_steps` where the task's own episodes are longer."""
    longest = config.distill.teacher.episode_steps
    if longest is None:
        return config
    steps = config.env.episode_steps or make_task(config.task).episode_steps
    return replace(config, env=replace(config.env, episode_steps=min(steps, longest)))


def _seed(seed: int, concern: int) -> int:
    return int(np.random.SeedSequence([seed, 31, concern]).generate_state(1, np.uint64)[0] >> 1)
