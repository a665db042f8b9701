"""Auxiliary heads: units of the prediction, the loss by hand, a gradient that reaches the CNN.
Maps: where the camera shows a thing."""

from __future__ import annotations

import math

import mujoco
import pytest
import torch

from visuomotor.aux_tasks import MAP_WEIGHT, AuxHeads, PlaceMaps, View, aux_loss, map_loss


def test_position_error_is_the_mean_length_of_the_error_vectors() -> None:
    target = torch.zeros(1, 6)
    prediction = torch.tensor([[0.03, 0.04, 0.0, 0.0, 0.0, 0.01]])  # 5 cm and 1 cm off
    _, metrics = aux_loss(prediction, target)
    assert metrics["aux_position_error"].item() == pytest.approx(0.03)


def test_loss_counts_errors_in_units_of_the_scale() -> None:
    loss, _ = aux_loss(torch.tensor([[0.2, 0.0, 0.1]]), torch.zeros(1, 3), torch.tensor(0.2))
    assert loss.item() == pytest.approx((1.0 + 0.0 + 0.25) / 3.0)


def test_what_is_far_off_pulls_no_more_than_what_is_one_deviation_off() -> None:
    prediction = torch.tensor([[0.1, 0.2, 20.0]], requires_grad=True)
    loss, _ = aux_loss(prediction, torch.zeros(1, 3), torch.tensor(0.2))
    loss.backward()
    assert prediction.grad is not None
    pulls = prediction.grad[0].tolist()
    assert pulls[0] == pytest.approx(0.5 * pulls[1])
    assert pulls[2] == pytest.approx(pulls[1])


def test_untrained_predictions_lie_near_the_mean_in_metres() -> None:
    torch.manual_seed(0)
    heads = AuxHeads(visual_dim=8, target_dim=3, hidden_sizes=(16,))
    mean = torch.tensor([10.0, -20.0, 30.0])
    heads.set_normalization(mean, torch.full((3,), 0.01))
    prediction = heads(torch.randn(7, 8))
    assert prediction.shape == (7, 3)
    assert float((prediction - mean).detach().abs().max()) < 0.05
    assert heads.scale.tolist() == pytest.approx([0.01] * 3)


def test_the_loss_teaches_the_visual_features() -> None:
    torch.manual_seed(0)
    heads = AuxHeads(visual_dim=8, target_dim=3)
    visual = torch.randn(4, 8, requires_grad=True)
    loss, _ = aux_loss(heads(visual), torch.randn(4, 3), heads.scale)
    (gradient,) = torch.autograd.grad(loss, visual)
    assert float(gradient.abs().amax(dim=-1).min()) > 0.0


def test_targets_that_are_not_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        AuxHeads(visual_dim=8, target_dim=7)


# --- maps -----------------------------------------------------------------------------------------

# From above, without a slant: an image of 60 pixels that shows 0.6 m.
ABOVE = View(
    kinds=(((1, 0), (2, 0)), ((3, None),)),
    pos=(0.0, -1e-6, 1.0),
    lookat=(0.0, 0.0, 0.0),
    fovy=2.0 * math.degrees(math.atan(0.3)),
)
CELLS = 5.0 + 10.0 * torch.arange(6)  # pixels, the middles of 6 x 6 cells


def _maps() -> PlaceMaps:
    return PlaceMaps(ABOVE, height=60, width=60, x=CELLS, y=CELLS)


def test_a_map_has_a_bump_where_each_thing_of_its_kind_is() -> None:
    box, first, second, other = (-0.25, 0.25, 0.0), (0.05, 0.05, 0.0), (-0.15, -0.25, 0.0), (0,) * 3
    planes, cars = _maps()(torch.tensor([*box, *first, *second, *other]))
    expected = torch.zeros(6, 6)
    expected[2, 3] = expected[5, 1] = 1.0  # rows from the top, columns from the left
    torch.testing.assert_close((planes > 0.9).float(), expected)
    # Between four cells: as far from the middle of each, by half a cell in x and in y.
    by = math.exp(-0.5 * 2.0 * (0.5 / 0.6) ** 2)
    torch.testing.assert_close(cars[2:4, 2:4], torch.full((2, 2), by), atol=1e-4, rtol=0.0)


def test_a_thing_that_is_not_there_leaves_its_map_empty() -> None:
    box, away = (-0.25, 0.25, 0.0), (0.0, 0.0, 0.0)
    planes, _ = _maps()(torch.tensor([*box, *box, *box, *away]))
    assert not planes.any()


def test_places_are_put_where_mujocos_camera_has_them() -> None:
    pos, lookat, fovy = (0.1, -0.51, 0.79), (0.0, 0.02, 0.08), 30.0
    ahead = torch.tensor(lookat, dtype=torch.float64) - torch.tensor(pos, dtype=torch.float64)
    right = torch.linalg.cross(ahead, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    up = torch.linalg.cross(right, ahead)
    axes = " ".join(str(number) for number in (*right.tolist(), *up.tolist()))
    model = mujoco.MjModel.from_xml_string(
        f'''<mujoco><worldbody><camera name="front" pos="{pos[0]} {pos[1]} {pos[2]}"
        xyaxes="{axes}" fovy="{fovy}"/><body name="thing" pos="0.12 -0.07 0.03">
        <geom size="0.004"/></body></worldbody></mujoco>'''
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    # The ray through the middle of a pixel, as MuJoCo's own camera has it, hits the thing there
    # alone.
    found = []
    rotation = data.cam_xmat[0].reshape(3, 3)
    focal = 48 / 2 / math.tan(math.radians(fovy) / 2)
    hit = torch.zeros(1, dtype=torch.int32).numpy()
    for row in range(48):
        for column in range(64):
            ray = rotation @ [(column + 0.5 - 32) / focal, -(row + 0.5 - 24) / focal, -1.0]
            if mujoco.mj_ray(model, data, data.cam_xpos[0], ray, None, 1, -1, hit) >= 0.0:
                found.append((column + 0.5, row + 0.5))
    assert found
    view = View((((0, None),),), pos, lookat, fovy)
    at = PlaceMaps(view, height=48, width=64, x=CELLS, y=CELLS).pixels(
        torch.tensor([0.12, -0.07, 0.03])
    )
    middle = torch.tensor(found).mean(dim=0)
    torch.testing.assert_close(at, middle, atol=0.5, rtol=0.0)


def test_the_maps_loss_is_the_cross_entropy_of_a_cell() -> None:
    logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]])
    assert map_loss(logits, target).item() == pytest.approx(MAP_WEIGHT * math.log(2.0))
