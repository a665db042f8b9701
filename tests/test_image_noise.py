"""Shade, brightness, contrast and pixel noise of an image: the middle two torchvision's; per world,
repeatable."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from visuomotor.config import MOST_BLUR
from visuomotor.image_noise import SensorFactors, blurred, distort, shaded
from visuomotor.vision_import import functional

SHAPE = (4, 3, 24, 20)


def _images(n: int = 4) -> torch.Tensor:
    """Noise of every brightness, with both ends of the range in it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, *SHAPE[1:]), generator=generator, dtype=torch.uint8)
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 255
    return images


def _factors(n: int = 4, **values: float | list[float]) -> SensorFactors:
    """Neutral for n worlds, but for these."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "pixel_noise": 0.0}
    neutral |= {"action_drop": 0.0, "proprio_noise": 0.0, "shade": 0.0, "shade_pattern": 0.0}
    neutral |= {"blur": 0.0, "cast_shadow": 0.0}
    columns = {k: torch.as_tensor(v).expand(n).float() for k, v in (neutral | values).items()}
    delay = torch.zeros(n, dtype=torch.int64)
    return SensorFactors(**columns, camera_delay=delay, action_delay=delay)


def _seeds(n: int, seed: int = 7) -> list[int]:
    return [1000 * seed + i for i in range(n)]


def _distort(pixels: torch.Tensor, seed: int = 7, **values: float | list[float]) -> torch.Tensor:
    return distort(pixels, _factors(len(pixels), **values), _seeds(len(pixels), seed))


def test_neutral_factors_leave_every_bit_and_give_a_new_tensor():
    pixels = _images()
    out = _distort(pixels)
    assert torch.equal(out, pixels)
    out.fill_(3)
    assert torch.equal(pixels, _images())


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.8, 1.25, 2.0])
def test_brightness_is_torchvisions(factor):
    pixels = _images()
    expected = functional.adjust_brightness(pixels, factor)
    assert torch.equal(_distort(pixels, brightness=factor), expected)
    assert not torch.equal(expected, pixels)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.8, 1.25, 2.0])
def test_contrast_is_torchvisions(factor):
    pixels = _images()
    expected = functional.adjust_contrast(pixels, factor)
    assert torch.equal(_distort(pixels, contrast=factor), expected)
    assert not torch.equal(expected, pixels)


def test_contrast_is_about_each_images_own_mean():
    """A dark image and bright ones: one mean for the batch would bring them together."""
    pixels = torch.full(SHAPE, 20, dtype=torch.uint8)
    pixels[1:] = 220
    change = _distort(pixels, contrast=0.5).long() - pixels.long()
    assert int(change.abs().max()) <= 1  # torchvision rounds down


def test_shade_takes_its_share_of_the_light_within_its_patches_and_nothing_elsewhere():
    pixels = torch.full((3, 3, 64, 64), 200, dtype=torch.uint8)
    out = _distort(pixels, shade=[0.0, 0.4, 1.0], shade_pattern=[0.3, 0.3, 0.7])
    assert torch.equal(out[0], pixels[0])
    for image, pattern, level in ((out[1], 0.3, 120), (out[2], 0.7, 0)):
        lies = shaded(torch.tensor([pattern]), torch.zeros(1), 64, 64)[0]
        assert torch.equal(image, torch.where(lies, level, 200).to(torch.uint8).expand(3, 64, 64))


def test_patterns_differ_and_are_patches_of_some_pixels_that_leave_most_in_the_light():
    patterns = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    start = torch.zeros(400)
    lies = shaded(patterns, start, 64, 64)
    assert torch.equal(lies, shaded(patterns, start, 64, 64))
    share = lies.double().mean(dim=(1, 2))
    assert 0.2 < share.mean() < 0.4
    assert share.max() < 0.9
    assert (share > 0.02).double().mean() > 0.9
    edges = (lies[:, 1:] ^ lies[:, :-1]).double().mean(dim=(1, 2))
    assert edges.max() < 0.2  # noise would have a half
    assert (
        len({image.numpy().tobytes() for image in lies}) > 390
    )  # some are without a patch at first
    # Over all patterns every pixel is in the shade as often.
    assert 0.2 < lies.double().mean(dim=0).min() < lies.double().mean(dim=0).max() < 0.4


def test_blur_spreads_light_by_its_deviation_and_loses_none():
    images = torch.zeros(3, 3, 9, 11)
    images[:, 1, 4, 5] = 100.0
    deviation = torch.tensor([0.0, 0.4, MOST_BLUR])
    out = blurred(images, deviation)
    assert torch.equal(out[0], images[0])
    assert torch.allclose(out.sum(dim=(2, 3)), images.sum(dim=(2, 3)))
    for axis, size in ((2, 9), (1, 11)):
        across = out[:, 1].sum(dim=axis) / 100.0
        place = torch.arange(size).float()
        middle = (across * place).sum(dim=1, keepdim=True)
        spread = (across * (place - middle).square()).sum(dim=1)
        assert torch.allclose(spread, deviation.square(), atol=1e-6)
    at_the_edge = torch.zeros(1, 3, 5, 5)
    at_the_edge[:, :, 0, 0] = 1.0
    assert blurred(at_the_edge, deviation[2:]).sum() == pytest.approx(3.0)


def test_blur_meets_its_own_images_alone_and_even_ones_stay():
    pixels = _images(3)
    out = _distort(pixels, blur=[0.0, 0.5, 0.0])
    assert torch.equal(out[0], pixels[0])
    assert torch.equal(out[2], pixels[2])
    expected = blurred(pixels[1:2].float(), torch.tensor([0.5])).round()
    assert torch.equal(out[1:2].float(), expected)
    even = torch.full(SHAPE, 91, dtype=torch.uint8)
    assert torch.equal(_distort(even, blur=MOST_BLUR), even)


def test_shade_drifts_with_its_episode_and_is_another_within_seconds():
    patterns = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    moved = [
        (
            shaded(patterns, torch.full((100,), t), 64, 64)
            ^ shaded(patterns, torch.zeros(100), 64, 64)
        )
        .double()
        .mean()
        for t in (1, 4, 40)
    ]
    assert 0.0 < moved[0] < 0.03 < moved[1] < 0.12 < moved[2]


def test_brightness_comes_before_contrast():
    pixels = _images()
    bright = functional.adjust_brightness(pixels, 1.25)
    expected = functional.adjust_contrast(bright, 1.25)
    other = functional.adjust_brightness(functional.adjust_contrast(pixels, 1.25), 1.25)
    assert not torch.equal(expected, other)
    assert torch.equal(_distort(pixels, brightness=1.25, contrast=1.25), expected)


def test_noise_comes_last():
    """Contrast 0 leaves one grey; the noise on it is as wide as it was."""
    grey = _distort(_images(), contrast=0.0, pixel_noise=5.0).long()
    for image in grey:
        assert int(image.max() - image.min()) == 10


@pytest.mark.parametrize("width", [1.0, 5.0, 12.0])
def test_noise_is_uniform_within_its_half_width_on_every_channel(width):
    pixels = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)
    noise = _distort(pixels, pixel_noise=width).double() - 128
    assert (noise.min(), noise.max()) == (-width, width)
    assert abs(float(noise.mean())) < 0.05 * width
    # Uniform on [-w, w], rounded: every whole number alike, but the two ends half as often.
    inner = sum(2 * k**2 for k in range(int(width)))
    assert float(noise.var()) == pytest.approx((inner + width**2) / (2 * width), rel=0.05)
    # One draw for each pixel and channel, not one for all three or for all worlds.
    for a, b in ((noise[:, 0], noise[:, 1]), (noise[0], noise[1]), (noise[..., 0], noise[..., 1])):
        both = torch.stack((a.flatten(), b.flatten()))
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.15


def test_noise_of_less_than_half_a_step_shows_nothing():
    assert torch.equal(_distort(_images(), pixel_noise=0.49), _images())


def test_pixels_stay_in_range_without_wrapping_around():
    black, white = torch.zeros(SHAPE, dtype=torch.uint8), torch.full(SHAPE, 255, dtype=torch.uint8)
    assert int(_distort(black, pixel_noise=30.0).max()) <= 30
    assert int(_distort(white, pixel_noise=30.0).min()) >= 225
    assert int(_distort(white, brightness=2.0, pixel_noise=30.0).min()) >= 225


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (5, 3, 20, 31)])
def test_the_shape_and_the_type_stay(shape):
    pixels = torch.full(shape, 90, dtype=torch.uint8)
    out = _distort(pixels, brightness=0.9, contrast=1.1, pixel_noise=3.0)
    assert out.shape == shape
    assert out.dtype == torch.uint8


def test_the_same_seed_gives_the_same_image_and_another_does_not():
    pixels = _images()
    settings = {"brightness": 1.1, "contrast": 0.9, "pixel_noise": 4.0}
    first = _distort(pixels, seed=1, **settings)
    assert torch.equal(_distort(pixels, seed=1, **settings), first)
    assert not torch.equal(_distort(pixels, seed=2, **settings), first)


def test_the_noise_of_an_image_is_that_of_its_seed_whatever_lies_beside_it():
    pixels, factors = _images(), _factors(brightness=0.8, contrast=1.2, pixel_noise=5.0)
    seeds = _seeds(len(pixels))
    together = distort(pixels, factors, seeds)
    for i, seed in enumerate(seeds):
        alone = distort(pixels[i : i + 1], factors.select(torch.tensor([i])), [seed])
        assert torch.equal(alone[0], together[i])
    even = torch.full(SHAPE, 128, dtype=torch.uint8)
    assert not torch.equal(*distort(even, factors, seeds)[:2])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    _distort(_images(), pixel_noise=5.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_world_has_its_own_factors():
    pixels = _images(1).expand(SHAPE)  # four times the same image
    brightness, contrast = [1.0, 0.8, 1.0, 1.25], [1.0, 1.0, 1.25, 0.8]
    out = _distort(pixels, brightness=brightness, contrast=contrast)
    for i in range(4):
        expected = functional.adjust_brightness(pixels[i], brightness[i])
        expected = functional.adjust_contrast(expected, contrast[i])
        assert torch.equal(out[i], expected), i
    noise = _distort(pixels, pixel_noise=[0.0, 2.0, 0.0, 9.0]).long() - pixels.long()
    assert [int(n.abs().max()) for n in noise] == [0, 2, 0, 9]


def test_a_world_does_not_see_its_neighbours_factors():
    pixels = _images()
    settings = {"brightness": [0.9, 1.1, 1.2, 1.0], "pixel_noise": [1.0, 5.0, 0.0, 3.0]}
    before = _distort(pixels, **settings)
    settings["brightness"][2], settings["pixel_noise"][2] = 0.8, 8.0
    after = _distort(pixels, **settings)
    others = [0, 1, 3]
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[2], before[2])


def test_select_picks_the_worlds_rows_of_every_factor():
    n = 4
    columns = {name: torch.arange(n) + 10 * i for i, name in enumerate(vars(_factors()))}
    picked = SensorFactors(**columns).select(torch.tensor([1, 3]))
    for name, values in columns.items():
        assert getattr(picked, name).tolist() == values[[1, 3]].tolist(), name
    assert _factors().select(torch.tensor([2])).camera_delay.dtype == torch.int64


def test_only_the_image_factors_count():
    pixels = _images()
    late = torch.full((4,), 2, dtype=torch.int64)
    factors = replace(_factors(), camera_delay=late, action_delay=late)
    factors = replace(factors, action_drop=torch.ones(4), proprio_noise=torch.ones(4))
    assert torch.equal(distort(pixels, factors, _seeds(4)), pixels)
