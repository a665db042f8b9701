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


def _random_bytes(count: int, generator: torch.Generator) -> Tensor:
    """(count,) uint8, uniform; eight a draw, since drawing is the dear part."""
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    words.random_(-(2**63), None, generator=generator)  # all 64 bits
    return words.view(torch.uint8)[:count]


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
    noise = _random_bytes(pixels.numel(), generator).view(pixels.shape).to(out.device).float()
    noise.sub_(127.5).mul_((factors.pixel_noise / 127.5).float().to(out.device).view(-1, 1, 1, 1))
    # Whole numbers, as the image: without noise every bit stays as it is.
    noise.round_()
    return noise.add_(out).clamp_(0.0, 255.0).to(torch.uint8)
