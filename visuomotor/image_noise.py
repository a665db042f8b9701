"""What a real camera does to an image, per world: brightness, contrast, pixel noise.

Knows nothing of simulation. The photometric operations are those of torchvision's transforms.v2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    device = pixels.device
    brightness, contrast, half_width = (
        values.to(device, torch.float64).view(-1, 1, 1, 1)
        for values in (factors.brightness, factors.contrast, factors.pixel_noise)
    )
    # torchvision's v2 adjust_brightness and adjust_contrast, bit for bit; those take one factor
    # for all images of a call, and a call an image costs ten times as much.
    out = pixels.float().mul_(brightness.float()).clamp_(0.0, 255.0).floor_()
    red, green, blue = out.unbind(dim=1)
    grey = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()
    mean = grey.mean(dim=(1, 2), keepdim=True).unsqueeze(1)
    out.mul_(contrast.float()).add_(mean * (1.0 - contrast).float()).clamp_(0.0, 255.0).floor_()
    noise = _random_bytes(pixels.numel(), generator).view(pixels.shape).to(device).float()
    noise.sub_(127.5).mul_((half_width / 127.5).float())
    # Whole numbers, as the image: without noise every bit stays as it is.
    noise.round_()
    return noise.add_(out).clamp_(0.0, 255.0).to(torch.uint8)
