"""When pictures are taken, how late they come, and what noise lies on them.

Around whatever renders worlds (camera.py, classic_renderer.py). Knows nothing of tasks or learning.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from visuomotor import rows
from visuomotor.config import CameraConfig
from visuomotor.envs.camera import Caster
from visuomotor.randomization import SensorFactors, distort


class CameraSensor:
    """A camera that refreshes every few control steps, delivers late, and is noisy.

    Args:
      caster: renders worlds.
      config: `period` in control steps.
      num_envs: N.
      max_delay: control steps from exposure to use, at most.
      num_targets: K, of what is told about each world along with its images.
    """

    def __init__(
        self,
        caster: Caster,
        config: CameraConfig,
        num_envs: int,
        max_delay: int,
        num_targets: int,
    ):
        self.caster = caster
        self._period = config.period
        image = (3, config.height, config.width)
        # So many frames can be on their way at once: each exposure takes the next slot.
        self._slots = max_delay // config.period + 1
        device = caster.device
        self._visible = torch.zeros((num_envs, *image), dtype=torch.uint8, device=device)
        self._pending = torch.zeros(
            (num_envs, self._slots, *image), dtype=torch.uint8, device=device
        )
        # What was true of the world when its visible frame and those on their way were exposed.
        self._visible_targets = torch.zeros(num_envs, num_targets)
        self._pending_targets = torch.zeros(num_envs, self._slots, num_targets)
        # Elapsed step at which a slot's frame arrives; -1: none.
        self._due = torch.full((num_envs, self._slots), -1, dtype=torch.int64)

    def observe(
        self,
        elapsed: Tensor,
        started: Tensor,
        sensor: SensorFactors,
        targets: Tensor,
        seeds: Callable[[Tensor], list[int]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """elapsed (N,) control steps since each world's start; started (n,): worlds just reset;
        targets (N, K): what is true of each world now; seeds: of the noise on frames that worlds
        (n,) take now.

        Returns pixels (N, 3, H, W) uint8, new_frame (N,) bool, and the targets (N, K) as they were
        when these pixels were exposed, which may be `period` + `max_delay` - 1 steps ago. A world
        that has just been reset shows its first frame at once: there is none before it that could
        be held.
        """
        fresh = torch.zeros(len(elapsed), dtype=torch.bool)
        fresh[started] = True
        self._due[started] = -1
        pending = self._pending.flatten(0, 1)
        exposed = ((elapsed % self._period == 0) | fresh).nonzero().squeeze(1)
        if len(exposed) > 0:
            slot = (elapsed[exposed] // self._period) % self._slots
            images = self.capture(exposed, sensor.select(exposed), elapsed[exposed], seeds(exposed))
            rows.put(pending, exposed * self._slots + slot, images)
            self._pending_targets[exposed, slot] = targets[exposed]
            delay = torch.where(fresh, 0, sensor.camera_delay)
            self._due[exposed, slot] = (elapsed + delay)[exposed]
        arrived, slot = (self._due == elapsed.unsqueeze(1)).nonzero(as_tuple=True)
        rows.put(self._visible, arrived, rows.take(pending, arrived * self._slots + slot))
        self._visible_targets[arrived] = self._pending_targets[arrived, slot]
        self._due[arrived, slot] = -1
        new_frame = torch.zeros_like(fresh)
        new_frame[arrived] = True
        # Copies: the caller may keep an observation while the next one is made.
        return self._visible.clone(), new_frame, self._visible_targets.clone()

    def capture(
        self, env_ids: Tensor, sensor: SensorFactors, elapsed: Tensor, seeds: list[int]
    ) -> Tensor:
        """(n, 3, H, W) uint8: noisy images of these worlds as they are now, delivered at once.

        sensor: the factors of these n worlds. elapsed: (n,) control steps since their start.
        seeds: of their noise.
        """
        images = self.caster.render(env_ids, sensor.cast_shadow)
        return distort(images, sensor, seeds, elapsed)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "visible": self._visible.clone(),
            "pending": self._pending.clone(),
            "visible_targets": self._visible_targets.clone(),
            "pending_targets": self._pending_targets.clone(),
            "due": self._due.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._visible.copy_(state["visible"])
        self._pending.copy_(state["pending"])
        self._visible_targets.copy_(state["visible_targets"])
        self._pending_targets.copy_(state["pending_targets"])
        self._due.copy_(state["due"])
