"""The pixel actor: memory, shapes, and that nothing privileged can reach the action."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from visuomotor import policies
from visuomotor.aux_tasks import View
from visuomotor.config import Config
from visuomotor.envs import TASKS, make_task
from visuomotor.hand_position import HandPosition
from visuomotor.pixel_actor import REACH, READS, PixelActor, with_reach
from visuomotor.ppo import action_means
from visuomotor.rollout import Sequences

ACTIONS = 3


VIEW = View((((0, None),), ((1, 0),)), (0.0, -0.5, 0.8), (0.0, 0.0, 0.0), 30.0)
# Two joints about parallel axes, 1 m apart, and a tool 0.5 m further.
FLAT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
HAND = HandPosition((FLAT, FLAT), ((0, 0, 0), (1.0, 0, 0)), (0.5, 0, 0), (0.0, 2.0, 0.0))


def make_actor(
    recurrent: bool = True,
    seed: int = 0,
    target_dim: int = 0,
    reads: str = "both",
    encoder: str = "compact",
    places: tuple[int, ...] = (),
    fused_heads: bool = False,
) -> PixelActor:
    torch.manual_seed(seed)
    actor = PixelActor(
        proprio_dim=5,
        action_dim=ACTIONS,
        height=24,
        width=32,
        visual_dim=8,
        proprio_dim_out=6,
        hidden_dim=7,
        recurrent=recurrent,
        target_dim=target_dim,
        reads=reads,
        encoder=encoder,
        view=VIEW,
        hand=HAND if places else None,
        places=places,
        fused_heads=fused_heads,
        init_log_std=torch.full((ACTIONS,), -1.0),
        min_std=torch.full((ACTIONS,), 0.1),
    )
    # The shipped head starts near zero, which would hide differences from the tests.
    torch.nn.init.normal_(actor.mean_head.weight)
    return actor


def random_sequence(num_steps: int, num_envs: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(num_steps, num_envs, 8, generator=generator),
        torch.randn(num_steps, num_envs, 5, generator=generator),
        (
            torch.randn(num_envs, 7, generator=generator),
            torch.randn(num_envs, 7, generator=generator),
        ),
    )


@pytest.mark.parametrize(
    "starts",
    [
        [],
        [(0, 1)],
        [(3, 0), (3, 2)],
        [(0, 0), (1, 0), (2, 1), (5, 2)],
        [(t, n) for t in range(6) for n in range(3)],
    ],
    ids=["none", "at the first step", "two worlds at once", "several", "every step"],
)
def test_unroll_equals_repeated_step_with_memory_zeroed_at_episode_starts(
    starts: list[tuple[int, int]],
) -> None:
    actor = make_actor()
    visual, proprio, hidden = random_sequence(6, 3)
    episode_start = torch.zeros(6, 3, dtype=torch.bool)
    for t, n in starts:
        episode_start[t, n] = True

    means, (h_end, c_end) = actor.unroll(visual, proprio, hidden, episode_start)

    h, c = hidden[0].clone(), hidden[1].clone()
    for t in range(6):
        for n in range(3):
            if episode_start[t, n]:
                h[n], c[n] = 0.0, 0.0
        mean, (h, c) = actor.step(visual[t], proprio[t], (h.clone(), c.clone()))
        torch.testing.assert_close(means[t], mean, rtol=1e-5, atol=1e-6)
        h, c = h.clone().detach(), c.clone().detach()
    torch.testing.assert_close(h_end, h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(c_end, c, rtol=1e-5, atol=1e-6)


def test_an_episode_start_hides_everything_before_it() -> None:
    actor = make_actor()
    visual, proprio, hidden = random_sequence(6, 2)
    episode_start = torch.zeros(6, 2, dtype=torch.bool)
    episode_start[3, 0] = True
    visual.requires_grad_(True)
    means, _ = actor.unroll(visual, proprio, hidden, episode_start)
    (gradient,) = torch.autograd.grad(means[5].sum(), visual)
    assert float(gradient[:3, 0].abs().max()) == 0.0
    assert float(gradient[3:, 0].abs().amax(dim=-1).min()) > 0.0
    assert float(gradient[:, 1].abs().amax(dim=-1).min()) > 0.0


def test_the_actor_remembers_and_the_feed_forward_one_does_not() -> None:
    visual, proprio, hidden = random_sequence(1, 4)
    recurrent, memoryless = make_actor(recurrent=True), make_actor(recurrent=False)
    zeros = recurrent.initial_hidden(4)
    with_memory, _ = recurrent.step(visual[0], proprio[0], hidden)
    without_memory, _ = recurrent.step(visual[0], proprio[0], zeros)
    assert not torch.allclose(with_memory, without_memory)

    assert [tuple(part.shape) for part in memoryless.initial_hidden(4)] == [(4, 0), (4, 0)]
    start = torch.zeros(1, 4, dtype=torch.bool)
    stepped, _ = memoryless.step(visual[0], proprio[0], memoryless.initial_hidden(4))
    unrolled, _ = memoryless.unroll(visual, proprio, memoryless.initial_hidden(4), start)
    torch.testing.assert_close(unrolled[0], stepped)


def test_no_method_of_the_actor_takes_privileged_state() -> None:
    allowed = {"self", "visual", "proprio", "hidden", "pixels", "h", "c", "episode_start"}
    for name in ("forward", "step", "unroll", "encode"):
        assert set(inspect.signature(getattr(PixelActor, name)).parameters) <= allowed


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"recurrent": False},
        {"target_dim": 6},
        {"target_dim": 6, "encoder": "wide_maps", "places": (0, 1)},
        {"target_dim": 6, "fused_heads": True},
    ],
    ids=["plain", "feed-forward", "with heads", "with maps, from the hand", "with fused heads"],
)
def test_changing_the_state_cannot_change_the_action(kind: dict[str, Any]) -> None:
    actor = make_actor(**kind)
    _, proprio, _ = random_sequence(4, 2)
    frames = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    frame_index = torch.tensor([[0, 1]] * 4)

    def means(state: Tensor) -> Tensor:
        inputs = Sequences(frames=frames, frame_index=frame_index, proprio=proprio, state=state)
        return action_means(actor, inputs)[0]

    state = torch.randn(4, 2, 9, requires_grad=True)
    assert torch.equal(means(state), means(state + 100.0))
    (gradient,) = torch.autograd.grad(means(state).sum(), state, allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "setting", [{}, {"encoder": "wide_maps", "from_hand": True, "fused_heads": True}]
)
def test_the_policy_of_a_task_acts_where_there_is_nothing_but_pixels_and_proprioception(
    task: str, setting: dict[str, Any]
) -> None:
    """What is privileged is not there to be read, as on the arm."""

    class Seen(NamedTuple):
        pixels: Tensor
        new_frame: Tensor
        proprio: Tensor

    config = Config(task=task)
    kinds = make_task(task).kinds_in_targets
    last = max(place for kind in kinds for thing in kind for place in thing if place is not None)
    actor = policies.make_actor(
        replace(config, actor=replace(config.actor, **setting)), 3 * (last + 1)
    )
    start = torch.tensor([True, True])

    def action(pixels: Tensor, proprio: Tensor) -> Tensor:
        return policies.PixelPolicy(actor, 2).act(Seen(pixels, start, proprio), start)

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    proprio = torch.zeros(2, 24)
    first = action(pixels, proprio)
    assert first.shape == (2, 9)
    assert torch.equal(action(pixels, proprio), first)
    assert not torch.equal(action(255 - pixels, proprio), first)
    assert not torch.equal(action(pixels, proprio + 1.0), first)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"recurrent": False},
        *({"encoder": encoder, "target_dim": 6} for encoder in ("keypoints", "flat", "maps")),
        *({"target_dim": 6, "reads": reads} for reads in READS),
        {"encoder": "wide_maps", "target_dim": 6, "places": (0, 1)},
        {"target_dim": 6, "fused_heads": True, "places": (0, 1)},
    ],
)
def test_forward_is_encode_and_step_also_with_raw_pixels(kind: dict[str, Any]) -> None:
    places = kind.get("places", ())
    actor = make_actor(**kind)
    pixels = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    _, proprio, (h, c) = random_sequence(1, 2)
    hidden = (h, c) if actor.recurrent else actor.initial_hidden(2)
    mean, h_next, c_next = actor(pixels, proprio[0], *hidden)
    expected, memory = actor.step(actor.encode(pixels), proprio[0], hidden)
    assert torch.equal(mean, expected)
    assert torch.equal(h_next, memory[0])
    assert torch.equal(c_next, memory[1])
    assert len(actor._place_indices) == 3 * len(places)

    first = next(m for m in actor.modules() if isinstance(m, torch.nn.Conv2d))
    before = first.weight.clone()
    actor.take_raw_pixels()
    assert not torch.allclose(first.weight, before)
    raw, *_ = actor(pixels, proprio[0], *hidden)
    assert torch.allclose(raw, mean, atol=1e-5)


def test_worlds_do_not_leak_into_each_other() -> None:
    actor = make_actor()
    pixels = torch.randint(0, 256, (3, 3, 24, 32), dtype=torch.uint8)
    _, proprio, (h, c) = random_sequence(1, 3)
    order = torch.tensor([2, 0, 1])
    mean, _, _ = actor(pixels, proprio[0], h, c)
    permuted, _, _ = actor(pixels[order], proprio[0][order], h[order], c[order])
    torch.testing.assert_close(permuted, mean[order])


def test_encode_refuses_pixels_that_are_scaled_already() -> None:
    with pytest.raises(TypeError, match="uint8"):
        make_actor().encode(torch.zeros(1, 3, 24, 32))


def test_encode_leaves_the_pixels_alone_and_ranges_over_their_values() -> None:
    actor = make_actor()
    pixels = torch.full((2, 3, 24, 32), 255, dtype=torch.uint8)
    pixels[0] = 0
    seen: list[Tensor] = []
    actor.encoder[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    actor.encode(pixels)
    assert seen[0].unique().tolist() == [-0.5, 0.5]
    assert pixels.unique().tolist() == [0, 255]


def test_the_first_actions_are_near_zero() -> None:
    torch.manual_seed(0)
    actor = PixelActor(init_log_std=torch.zeros(9), min_std=torch.full((9,), 0.1))
    pixels = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
    mean, _, _ = actor(pixels, torch.randn(16, 24), *actor.initial_hidden(16))
    assert mean.shape == (16, 9)
    assert float(mean.detach().abs().max()) < 0.05


def test_normalization_of_proprioception_is_part_of_the_weights() -> None:
    actor, other = make_actor(seed=0), make_actor(seed=1)
    actor.set_normalization(torch.full((5,), 2.0), torch.full((5,), 3.0))
    other.load_state_dict(actor.state_dict())
    pixels = torch.randint(0, 256, (1, 3, 24, 32), dtype=torch.uint8)
    _, proprio, (h, c) = random_sequence(1, 1)
    assert torch.equal(actor(pixels, proprio[0], h, c)[0], other(pixels, proprio[0], h, c)[0])


def test_impossible_shapes_are_refused() -> None:
    std = torch.ones(9)
    with pytest.raises(ValueError, match="init_log_std"):
        PixelActor(action_dim=8, init_log_std=std, min_std=std)
    with pytest.raises(ValueError, match="16x64"):
        PixelActor(height=16, init_log_std=std, min_std=std)


@pytest.mark.parametrize("encoder", ["compact", "keypoints", "flat"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (20, 20), (33, 48)])
def test_every_encoder_takes_images_of_these_sizes(encoder: str, height: int, width: int) -> None:
    actor = PixelActor(
        height=height,
        width=width,
        encoder=encoder,
        init_log_std=torch.zeros(9),
        min_std=torch.full((9,), 0.1),
    )
    pixels = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    visual = actor.encode(pixels)
    assert visual.shape == (2, 128)
    assert not torch.equal(visual[0], visual[1])


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, 24, 32), generator=generator, dtype=torch.uint8)


def test_the_policy_reads_what_its_heads_locate_unless_told_not_to() -> None:
    for reads in ("both", "located", "features"):
        actor = make_actor(target_dim=3, reads=reads)
        assert actor.aux_heads is not None
        pixels, proprio, hidden = images(2), torch.zeros(2, 5), actor.initial_hidden(2)
        before, _ = actor.step(actor.encode(pixels), proprio, hidden)
        with torch.no_grad():
            actor.aux_heads.net[-1].get_parameter("bias").add_(1.0)
        after, _ = actor.step(actor.encode(pixels), proprio, hidden)
        assert torch.equal(before, after) is (reads == "features")


def test_what_is_located_is_the_heads_answer_in_metres() -> None:
    actor = make_actor(target_dim=3)
    assert actor.aux_heads is not None
    actor.aux_heads.set_normalization(torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 0.5))
    visual = actor.encode(images(2))
    assert visual.shape == (2, 8 + 3)
    expected = actor.aux_heads(visual[:, :8])
    torch.testing.assert_close(actor.located(visual), expected)


def test_the_policys_gradient_does_not_reach_the_heads() -> None:
    """They answer to the auxiliary loss alone; else a position would become a code."""
    actor = make_actor(target_dim=3)
    assert actor.aux_heads is not None
    mean, _ = actor.step(actor.encode(images(2)), torch.zeros(2, 5), actor.initial_hidden(2))
    mean.square().sum().backward()
    assert not any(bool(parameter.grad.any()) for parameter in actor.aux_heads.parameters())
    assert bool(actor.encoder[0].weight.grad.any())


def test_an_actor_without_heads_locates_nothing() -> None:
    actor = make_actor()
    with pytest.raises(ValueError, match="no auxiliary heads"):
        actor.located(actor.encode(images(1)))


def test_an_unknown_encoder_is_refused_with_the_valid_ones() -> None:
    valid = "compact, keypoints, flat, maps, wide_maps"
    with pytest.raises(ValueError, match=rf"'resnet' is unknown; valid: {valid}"):
        PixelActor(encoder="resnet", init_log_std=torch.zeros(9), min_std=torch.full((9,), 0.1))


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("recurrent", [True, False])
def test_the_reading_and_proprioception_are_all_that_the_core_is_given(
    reads: str, recurrent: bool
) -> None:
    """What an auxiliary phase holds is the image's part of the core's first layer, whole."""
    actor = make_actor(recurrent=recurrent, target_dim=6, reads=reads)
    generator = torch.Generator().manual_seed(2)
    visual = torch.randn(3, 8 + 6, generator=generator)
    proprio = torch.randn(3, 5, generator=generator)
    weight = actor.reading_weight
    by_proprio = actor.proprio_mlp(actor.normalizer(proprio)) @ weight[:, :6].T
    whole = actor._core_inputs(visual, proprio) @ weight.T
    torch.testing.assert_close(by_proprio + actor.reading(visual), whole)
    assert float(actor.reading(visual).detach().abs().sum()) > 0.0


# --- from the hand --------------------------------------------------------------------------------


def test_places_are_read_as_seen_from_the_hand() -> None:
    actor = make_actor(target_dim=6, places=(1,))
    assert actor.aux_heads is not None
    actor.aux_heads.set_normalization(torch.zeros(6), torch.ones(6))
    visual = torch.zeros(1, 8 + 6)
    visual[0, 8 + 3 :] = torch.tensor([0.3, 0.2, 0.1])
    # A quarter turn of the first joint, and one back of the second: (0, 1, 0), then (0.5, 0, 0).
    proprio = torch.tensor([[1.0, -1.0, 0.0, 0.0, 9.0]])
    away = actor._core_inputs(visual, proprio)[0, -3:] * REACH
    torch.testing.assert_close(away, torch.tensor([0.3 - 0.5, 0.2 - 3.0, 0.1]))
    visual[0, 8 + 3] = 99.0  # deviations: a head that is lost
    assert float(actor._core_inputs(visual, proprio).detach()[0, -3]) == pytest.approx(
        (5.0 - 0.5) / REACH
    )


@pytest.mark.parametrize("recurrent", [True, False])
def test_an_actor_begins_to_read_from_its_hand_and_acts_as_it_did(recurrent: bool) -> None:
    former = make_actor(recurrent, target_dim=6)
    grown = make_actor(recurrent, target_dim=6, places=(0, 1), seed=1)
    inputs = grown.reading_weight.shape[1]
    assert inputs == former.reading_weight.shape[1] + 2 * 3
    grown.load_state_dict(with_reach(former.state_dict(), inputs))
    visual, proprio = torch.randn(3, 8 + 6), torch.randn(3, 5)
    hidden = former.initial_hidden(3)
    expected = former.step(visual, proprio, hidden)[0]
    torch.testing.assert_close(grown.step(visual, proprio, hidden)[0], expected)
    with torch.no_grad():
        grown.reading_weight[:, -3:] = 1.0
    assert not torch.allclose(grown.step(visual, proprio, hidden)[0], expected, atol=1e-3)


@pytest.mark.parametrize("recurrent", [True, False])
def test_what_is_read_of_an_image_holds_its_places(recurrent: bool) -> None:
    """However the hand moves: what it adds does not depend on the image."""
    actor = make_actor(recurrent, target_dim=6, places=(0, 1))
    one, other = torch.randn(2, 1, 8 + 6)
    proprio = torch.randn(1, 5)
    whole = [
        actor._core_inputs(visual, proprio) @ actor.reading_weight.T for visual in (one, other)
    ]
    torch.testing.assert_close(whole[0] - whole[1], actor.reading(one) - actor.reading(other))


def test_places_from_the_hand_need_heads() -> None:
    with pytest.raises(ValueError, match="need auxiliary heads, and places"):
        make_actor(places=(0,))


# --- fused heads ----------------------------------------------------------------------------------


def correcting(actor: PixelActor, by: list[float]) -> None:
    """Makes its fused heads add the same to every answer, in deviations."""
    assert actor.fused_heads is not None
    with torch.no_grad():
        actor.fused_heads.net[-1].bias.copy_(torch.tensor(by))


def test_fused_heads_correct_nothing_at_first() -> None:
    plain, fused = (make_actor(target_dim=6, places=(1,), fused_heads=f) for f in (False, True))
    fused.load_state_dict(fused.state_dict() | plain.state_dict())
    visual, proprio, hidden = torch.randn(3, 8 + 6), torch.randn(3, 5), plain.initial_hidden(3)
    expected = plain.step(visual, proprio, hidden)[0]
    assert torch.equal(fused.step(visual, proprio, hidden)[0], expected)
    correcting(fused, [0.5] * 6)
    assert not torch.allclose(fused.step(visual, proprio, hidden)[0], expected, atol=1e-3)


def test_the_policy_reads_what_fused_heads_say_and_takes_the_way_from_its_hand_from_it() -> None:
    actor = make_actor(target_dim=6, places=(1,), fused_heads=True, reads="located")
    assert actor.aux_heads is not None
    actor.aux_heads.set_normalization(torch.zeros(6), torch.full((6,), 0.1))
    correcting(actor, [0.0, 1.0, 0.0, 0.0, 0.0, 9.0])
    visual = torch.full((1, 8 + 6), 0.5)
    proprio = torch.tensor([[1.0, -1.0, 0.0, 0.0, 9.0]])  # the hand is at (0.5, 3, 0)
    read = actor._core_inputs(visual, proprio)[0, actor._proprio_width :].detach()
    torch.testing.assert_close(read[:6], torch.tensor([0.5, 1.5, 0.5, 0.5, 0.5, 5.0]))
    torch.testing.assert_close(read[6:] * REACH, torch.tensor([0.05 - 0.5, 0.05 - 3.0, 0.5]))


def test_fused_heads_read_the_joints() -> None:
    actor = make_actor(target_dim=6, fused_heads=True, reads="located")
    assert actor.fused_heads is not None
    torch.nn.init.normal_(actor.fused_heads.net[-1].weight)
    visual = torch.zeros(2, 8 + 6)
    one, other = actor._core_inputs(visual, torch.stack((torch.zeros(5), torch.ones(5))))
    assert not torch.allclose(one[-6:], other[-6:], atol=1e-3)


def test_their_loss_teaches_fused_heads_alone_and_the_policy_does_not_teach_them() -> None:
    actor = make_actor(target_dim=6, fused_heads=True)
    torch.nn.init.normal_(actor.fused_heads.net[-1].weight)
    pixels = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    proprio, targets = torch.randn(2, 5), torch.randn(2, 6)
    loss, metrics = actor.fused_loss(actor.encode(pixels), proprio, targets)
    assert metrics.keys() == {"fused_loss", "fused_position_error"}
    loss.backward()
    taught = {name for name, p in actor.named_parameters() if p.grad is not None}
    assert taught == {f"fused_heads.{name}" for name, _ in actor.fused_heads.named_parameters()}
    actor.zero_grad(set_to_none=True)
    actor.step(actor.encode(pixels), proprio, actor.initial_hidden(2))[0].sum().backward()
    assert all(p.grad is None for p in actor.fused_heads.parameters())


def test_fused_heads_find_what_the_joints_tell() -> None:
    """A picture from a camera that may stand 1 m aside shows a thing and the hand: where the thing
    is takes where the hand is to be known."""
    actor = make_actor(target_dim=6, fused_heads=True)
    assert actor.fused_heads is not None and actor.aux_heads is not None
    adam = torch.optim.Adam(actor.fused_heads.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        thing, hand, aside = torch.randn(3, 256, 3, generator=generator).unbind()
        shown = torch.cat((thing + aside, hand + aside), dim=1)
        visual = torch.cat((torch.zeros(256, 8), shown), dim=1)
        proprio = torch.cat((hand, torch.zeros(256, 2)), dim=1)
        loss, _ = actor.fused_loss(visual, proprio, torch.cat((thing, hand), dim=1))
        adam.zero_grad()
        loss.backward()
        adam.step()
    # With the joints held at 0 it ends at 0.32.
    assert loss.item() < 0.1


def test_fused_heads_need_heads() -> None:
    with pytest.raises(ValueError, match="need auxiliary heads"):
        make_actor(fused_heads=True)
    with pytest.raises(ValueError, match="no fused heads"):
        make_actor(target_dim=6).fused_loss(
            torch.zeros(1, 14), torch.zeros(1, 5), torch.zeros(1, 6)
        )


# --- maps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["maps", "wide_maps"])
def test_maps_are_part_of_what_is_judged_and_no_part_of_what_the_policy_reads(encoder) -> None:
    actor = make_actor(target_dim=6, encoder=encoder)
    visual = actor.encode(images(2))
    kinds, rows, columns = 2, 3, 4  # of an image of 24 x 32 pixels
    assert visual.shape == (2, 8 + 6 + kinds * rows * columns)
    assert actor.answers(visual).shape == (2, 6 + kinds * rows * columns)
    mean, _ = actor.step(visual, torch.zeros(2, 5), actor.initial_hidden(2))
    other = visual.clone()
    other[:, 8 + 6 :] += 1.0
    assert torch.equal(actor.step(other, torch.zeros(2, 5), actor.initial_hidden(2))[0], mean)
    assert actor.located(visual).shape == (2, 6)


def test_cells_are_where_the_convolutions_look() -> None:
    """What a cell is made of has its middle where the cell is said to be."""
    actor = PixelActor(
        encoder="maps",
        target_dim=6,
        view=VIEW,
        init_log_std=torch.zeros(9),
        min_std=torch.full((9,), 0.1),
    )
    mapped, maps = actor.encoder[0], actor.place_maps
    assert maps is not None
    for layer in (*mapped.convolutions, mapped.maps):
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.constant_(layer.weight, 1.0)
    image = torch.ones(1, 3, 64, 64, requires_grad=True)
    logits = mapped(image)[1].view(2, len(maps.y), len(maps.x))
    for row, column in ((2, 3), (4, 4), (6, 2)):  # two cells from the edges, where zeros are added
        (seen,) = torch.autograd.grad(logits[0, row, column], image, retain_graph=True)
        weight = seen[0, 0] / seen[0, 0].sum()
        pixels = torch.arange(64) + 0.5
        assert float(weight.sum(dim=0) @ pixels) == pytest.approx(float(maps.x[column]), abs=0.01)
        assert float(weight.sum(dim=1) @ pixels) == pytest.approx(float(maps.y[row]), abs=0.01)


def test_details_count_where_the_map_shows_a_thing() -> None:
    mapped = make_actor(target_dim=6, encoder="maps").encoder[0]
    pixels = images(2).float() / 255.0
    torch.nn.init.zeros_(mapped.maps.weight)
    seen = {}
    for shown in (-200.0, 0.0):
        torch.nn.init.constant_(mapped.maps.bias, shown)
        torch.nn.init.zeros_(mapped.details.bias)
        before = mapped(pixels)[0]
        torch.nn.init.ones_(mapped.details.bias)
        seen[shown] = float((mapped(pixels)[0] - before).abs().sum().detach())
    assert seen[-200.0] == 0.0
    assert seen[0.0] > 0.1


def test_the_loss_of_maps_teaches_what_sees_and_not_what_acts() -> None:
    actor = make_actor(target_dim=6, encoder="maps")
    targets = torch.tensor([[0.05, 0.0, 0.0, -0.05, 0.0, 0.0]]).repeat(2, 1)
    answers = actor.answers(actor.encode(images(2)))
    loss, metrics = actor.aux_loss(answers, targets)
    assert loss.item() == pytest.approx(float(metrics["aux_loss"] + metrics["map_loss"]))
    mapped = actor.encoder[0]
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.01)
    first = float(metrics["map_loss"])
    for _ in range(50):
        loss, metrics = actor.aux_loss(actor.answers(actor.encode(images(2))), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(metrics["map_loss"]) < 0.5 * first
    assert bool(mapped.maps.weight.grad.any())
    assert actor.mean_head.weight.grad is None


@pytest.mark.parametrize(("target_dim", "view"), [(0, VIEW), (6, None)])
def test_maps_need_heads_and_a_view(target_dim: int, view: View | None) -> None:
    with pytest.raises(ValueError, match="needs a view and auxiliary heads"):
        PixelActor(
            encoder="maps",
            target_dim=target_dim,
            view=view,
            init_log_std=torch.zeros(9),
            min_std=torch.full((9,), 0.1),
        )
