"""What a real camera does to an image, per world: brightness, contrast, pixel noise.

Knows nothing of simulation. The photometric operations are torchvision's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visuomotor.vision_import import functional


@dataclass(frozen=True)
class SensorFactors:
    """Of camera, actuators and joint sensors, (N,) each."""

    brightness: Tensor  # factor
    contrast: Tensor  # factor
    pixel_noise: Tensor  # half width of uniform noise, of 255
    camera_delay: Tensor  # int64, control steps
    action_delay: Tensor  # int64, control steps
    action_drop: Tensor  # probability
    proprio_noise: Tensor  # standard deviation, in units of proprioception

    def select(self, env_ids: Tensor) -> SensorFactors:
        """The factors of these worlds."""
        return SensorFactors(**{name: values[env_ids] for name, values in vars(self).items()})


def distort(pixels: Tensor, factors: SensorFactors, generator: torch.Generator) -> Tensor:
    """pixels (n, 3, H, W) uint8, factors of n worlds -> (n, 3, H, W) uint8, a new tensor.

    Brightness, then contrast, then uniform noise; neutral factors leave every bit as it
    is. The generator (CPU) advances by the same amount whatever the factors are.
    """
    out = pixels.clone()
    brightness, contrast = factors.brightness.tolist(), factors.contrast.tolist()
    for i in range(len(out)):
        if brightness[i] != 1.0:
            out[i] = functional.adjust_brightness(out[i], brightness[i])
        if contrast[i] != 1.0:
            out[i] = functional.adjust_contrast(out[i], contrast[i])
    # Whole numbers: the image is quantized anyway, and integers are half the work.
    noise = torch.rand(pixels.shape, generator=generator).to(out.device).mul_(2.0).sub_(1.0)
    noise.mul_(factors.pixel_noise.to(out.device).view(-1, 1, 1, 1)).round_()
    return noise.add_(out).clamp_(0.0, 255.0).to(torch.uint8)
