"""Normalization, deviation with a floor, optimizer state as plain tensors."""

from __future__ import annotations

import pytest
import torch

from visuomotor.networks import (
    GaussianHead,
    Normalizer,
    SpatialSoftmax,
    load_optimizer_state,
    mlp,
    optimizer_state,
    shrink_output,
)


def test_normalizer_shifts_scales_and_clips() -> None:
    normalizer = Normalizer(2, clip=5.0)
    normalizer.set(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    values = torch.tensor([[5.0, -2.0], [1.0, 100.0]])
    assert normalizer(values).tolist() == [[2.0, 0.0], [0.0, 5.0]]


def test_a_constant_input_is_not_blown_up() -> None:
    normalizer = Normalizer(1)
    normalizer.set(torch.zeros(1), torch.zeros(1))
    assert normalizer(torch.tensor([1e-4])).item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    "mean, std, words",
    [
        (torch.zeros(3), torch.ones(2), "mean: expected shape"),
        (torch.zeros(2), torch.ones(3), "std: expected shape"),
        (torch.tensor([0.0, float("nan")]), torch.ones(2), "not finite"),
    ],
)
def test_normalizer_refuses_wrong_statistics(
    mean: torch.Tensor, std: torch.Tensor, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Normalizer(2).set(mean, std)


def test_the_deviation_never_falls_below_its_floor() -> None:
    head = GaussianHead(torch.tensor([-9.0, 0.0]), torch.tensor([0.15, 0.45]))
    assert head().tolist() == pytest.approx([0.15, 1.0], rel=1e-5)
    assert bool((head() >= head.min_std).all())


def test_the_scale_takes_back_deviation_and_floor_alike() -> None:
    head = GaussianHead(torch.tensor([-9.0, 0.0]), torch.tensor([0.15, 0.45]))
    head.scale = 0.5
    assert head().tolist() == pytest.approx([0.075, 0.5], rel=1e-4)
    assert not any("scale" in name for name in head.state_dict())


def test_a_deviation_on_its_floor_can_grow_again() -> None:
    head = GaussianHead(torch.tensor([-9.0]), torch.tensor([0.15]))
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    with torch.no_grad():
        head.log_std.fill_(-9.0)  # a step that overshot
    head.project()
    (-head().sum()).backward()
    optimizer.step()
    assert head().item() > 0.16


def test_gaussian_head_refuses_unequal_shapes() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        GaussianHead(torch.zeros(3), torch.ones(2))


def test_mlp_has_activations_between_layers_only() -> None:
    kinds = [type(layer) for layer in mlp((3, 4, 5, 2), torch.nn.Tanh)]
    linear, tanh = torch.nn.Linear, torch.nn.Tanh
    assert kinds == [linear, tanh, linear, tanh, linear]


def test_shrink_output_refuses_other_layers() -> None:
    with pytest.raises(TypeError, match="Tanh"):
        shrink_output(torch.nn.Tanh(), 0.1)


def test_an_optimizer_restored_from_plain_tensors_goes_on_identically() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(8, 3)
    first, second = mlp((3, 4, 1), torch.nn.ELU), mlp((3, 4, 1), torch.nn.ELU)
    adams = [torch.optim.Adam(net.parameters(), lr=0.1) for net in (first, second)]

    def step(net: torch.nn.Module, adam: torch.optim.Optimizer) -> None:
        adam.zero_grad()
        net(inputs).square().mean().backward()
        adam.step()

    for _ in range(3):
        step(first, adams[0])
    second.load_state_dict(first.state_dict())
    state = optimizer_state(adams[0])
    assert all(isinstance(key, str) for key in state)
    load_optimizer_state(adams[1], state)
    for net, adam in zip((first, second), adams, strict=True):
        step(net, adam)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_spatial_softmax_says_where_a_channel_responds() -> None:
    layer = SpatialSoftmax(rows=5, columns=9)
    maps = torch.zeros(1, 2, 5, 9)
    maps[0, 0, 4, 2] = maps[0, 1, 1, 8] = 100.0
    # y of both channels, then x: row 4 of 0..4 is 1, row 1 is -1/2; column 2 of 0..8 is -1/2.
    assert layer(maps)[0].tolist() == pytest.approx([1.0, -0.5, -0.5, 1.0], abs=1e-5)


def test_a_spatial_softmax_of_an_even_map_is_the_middle() -> None:
    assert SpatialSoftmax(4, 6)(torch.full((2, 3, 4, 6), 7.0)).abs().max() < 1e-6


def test_what_moves_in_the_maps_moves_in_the_output() -> None:
    layer = SpatialSoftmax(8, 8)
    maps = torch.full((1, 1, 8, 8), -50.0)
    maps[0, 0, 2:4, 3:5] = torch.tensor([[1.0, 2.0], [0.5, 1.0]])
    moved = maps.roll((2, 1), dims=(2, 3))
    # One cell is 2 / 7 of the range.
    assert (layer(moved) - layer(maps))[0].tolist() == pytest.approx([4 / 7, 2 / 7], abs=1e-5)
