"""What a real camera does to an image, per world: shade, blur, brightness, contrast, pixel noise.

Knows nothing of simulation. The photometric operations are those of torchvision's transforms.v2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the waves whose sum makes a shade's outline: how many, periods across an image, and most
# periods that one drifts in a control step: a hand's shadow comes and goes within seconds.
WAVES, PERIODS, DRIFT = 3, (0.5, 6.0), 0.025


@dataclass(frozen=True)
class SensorFactors:
    """Of camera, actuators and joint sensors, (N,) each."""

    cast_shadow: Tensor  # share of the first light that what lies in its shadow lacks
    shade: Tensor  # share of the light that is missing in it
    shade_pattern: Tensor  # in [0, 1): where it lies
    blur: Tensor  # standard deviation, pixels
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


def _random_bytes(seeds: list[int], count: int) -> Tensor:
    """(n, count) uint8, uniform; eight a draw, since drawing is the dear part."""
    words = torch.empty((len(seeds), -(-count // 8)), dtype=torch.int64)
    generator = torch.Generator()
    for row, seed in zip(words, seeds, strict=True):
        row.random_(-(2**63), None, generator=generator.manual_seed(seed))  # all 64 bits
    return words.view(torch.uint8)[:, :count]


def shaded(patterns: Tensor, elapsed: Tensor, height: int, width: int) -> Tensor:
    """patterns (n,) in [0, 1), elapsed (n,) control steps of the episode -> (n, height, width)
    bool: patches with sharp edges, as of shadows, which cover 0.3 of an image on average."""
    # As many numbers in [0, 1) from one, for each a digit of its own far behind the point.
    digits = torch.arange(1, 4 * WAVES + 2, dtype=torch.float64, device=patterns.device)
    unit = (patterns.double().unsqueeze(1) * (997.0 * digits + digits.square())).frac()
    level, (direction, length, start, drift) = unit[:, -1], unit[:, :-1].split(WAVES, dim=1)
    direction = 2.0 * torch.pi * direction
    periods = PERIODS[0] * (PERIODS[1] / PERIODS[0]) ** length
    start = start + DRIFT * (2.0 * drift - 1.0) * elapsed.unsqueeze(1)

    def angles(periods: Tensor, size: int) -> Tensor:
        across = torch.arange(size, dtype=torch.float64, device=patterns.device) / size
        return 2.0 * torch.pi * periods.unsqueeze(2) * across  # (n, WAVES, size)

    rows = angles(periods * direction.sin(), height) + 2.0 * torch.pi * start.unsqueeze(2)
    columns = angles(periods * direction.cos(), width)
    # The sum of the waves' sines, sin(row + column), as one product of matrices.
    left = torch.cat((rows.sin(), rows.cos()), dim=1).float()
    right = torch.cat((columns.cos(), columns.sin()), dim=1).float()
    waves = torch.einsum("nwi,nwj->nij", left, right)
    return waves > 1.4 * level.float().view(-1, 1, 1)


def blurred(images: Tensor, deviation: Tensor) -> Tensor:
    """images (n, 3, H, W) float, deviation (n,) pixels, `config.MOST_BLUR` at most -> (n, 3, H, W).

    Along rows and columns each pixel gives to its two neighbours as much as spreads light by that.
    """
    share = (deviation.square() / 2).view(-1, 1, 1, 1)
    images = images.clone()
    for dim in (2, 3):
        before, after = (images.narrow(dim, start, images.shape[dim] - 1) for start in (0, 1))
        # What flows over each border between two pixels; nothing leaves the image.
        flow = (before - after).mul_(share)
        before.sub_(flow)
        after.add_(flow)
    return images


def distort(
    pixels: Tensor,
    factors: SensorFactors,
    seeds: list[int],
    elapsed: Tensor | None = None,
) -> Tensor:
    """pixels (n, 3, H, W) uint8, factors of n worlds -> (n, 3, H, W) uint8, a new tensor.

    seeds: of the noise on each of them. elapsed: (n,) control steps of their episodes, with which
    shade drifts; None: at their start.

    Shade, then blur, then brightness, then contrast, then uniform noise; neutral factors leave
    every bit as it is.
    """
    device = pixels.device
    brightness, contrast, half_width = (
        values.to(device, torch.float64).view(-1, 1, 1, 1)
        for values in (factors.brightness, factors.contrast, factors.pixel_noise)
    )
    # torchvision's v2 adjust_brightness and adjust_contrast, bit for bit; those take one factor
    # for all images of a call, and a call an image costs ten times as much.
    out = pixels.float()
    dark = factors.shade.nonzero().squeeze(1)
    if len(dark) > 0:
        moment = torch.zeros_like(dark) if elapsed is None else elapsed[dark]
        pattern = factors.shade_pattern[dark].to(device)
        lies = shaded(pattern, moment.to(device), *pixels.shape[2:]).float()
        lies.mul_(factors.shade[dark].to(device).float().view(-1, 1, 1))
        out[dark.to(device)] *= (1.0 - lies).unsqueeze(1)
        out.floor_()
    soft = factors.blur.nonzero().squeeze(1)
    if len(soft) > 0:
        there = soft.to(device)
        out[there] = blurred(out[there], factors.blur[soft].to(device)).round_()
    out.mul_(brightness.float()).clamp_(0.0, 255.0).floor_()
    red, green, blue = out.unbind(dim=1)
    grey = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()
    mean = grey.mean(dim=(1, 2), keepdim=True).unsqueeze(1)
    out.mul_(contrast.float()).add_(mean * (1.0 - contrast).float()).clamp_(0.0, 255.0).floor_()
    noise = _random_bytes(seeds, pixels[0].numel()).view(pixels.shape).to(device).float()
    noise.sub_(127.5).mul_((half_width / 127.5).float())
    # Whole numbers, as the image: without noise every bit stays as it is.
    noise.round_()
    return noise.add_(out).clamp_(0.0, 255.0).to(torch.uint8)
