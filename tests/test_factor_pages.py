"""docs/randomization.md: what its command writes is what stands there, and what it draws is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import factor_motions, factors
from visuomotor.config import Config, RandomizationConfig
from visuomotor.envs import VisuomotorEnv, make_env
from visuomotor.sweep import swept_factor

PAGE = (Path(__file__).parent.parent / "docs" / "randomization.md").read_text().splitlines()
CONFIG = Config(task="stacking", randomization=RandomizationConfig(strength=0.0))


@pytest.fixture(scope="module")
def env() -> VisuomotorEnv:
    return make_env(CONFIG, num_envs=1, render=False)


def test_the_page_is_up_to_date(env: VisuomotorEnv) -> None:
    rows = factors.factor_rows(env, factors.groups_of(env)) + factors.prop_rows(["stacking"])
    assert len(rows) > 30 and set(rows) <= set(PAGE)
    words = [line for line in factors.PAGE.splitlines() if "{" not in line]
    assert [line for line in words if line not in PAGE] == []


def test_what_the_page_says_can_be_swept_can_be(env: VisuomotorEnv) -> None:
    for name in ("colour/table/r", "light_pos/light_0/x", "colour/table"):
        assert any(f"`{name}`" in line for line in PAGE)
        assert swept_factor(env.randomizer, name).name == name
    whole = factors.groups_of(env).keys() - set(env.randomizer.groups)
    assert whole == {"colour", "texture", "texture_repeat"}  # which the page names


def test_factors_that_are_seen_have_a_picture_or_are_named_as_without() -> None:
    looks = [group for group in factors.WORDS if factors.setting(group, ["arm"]).startswith("app")]
    without = [group for group in looks if group not in factors.SEEN]
    assert without == ["shade_pattern", "clutter_angle", "clutter_distance", "clutter_size"]
    (told,) = re.findall(r"Of what is seen (.*?) have no picture", " ".join(PAGE))
    assert re.findall(r"`(\w+)`", told) == without


def test_words_that_do_not_fit_into_the_picture_are_refused() -> None:
    with pytest.raises(SystemExit, match="no room in the picture for"):
        factors._line("-0.25, -0.3, -0.12, -0.5", factors.SIZE, 0.4)


def test_rows_name_settings_units_and_the_scenes_own_values(env: VisuomotorEnv) -> None:
    rows = factors.factor_rows(env, factors.groups_of(env))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    by_setting = {
        cell[1].strip("`"): dict(zip(factors.COLUMN_NAMES, cell, strict=True)) for cell in cells
    }
    colours = {key: row["of"] for key, row in by_setting.items() if key.endswith("_colour")}
    assert colours.pop("appearance.light_colour") == "light_0 to light_2"
    assert colours == {
        "appearance.table_colour": "table",
        "appearance.floor_colour": "floor",
        "appearance.arm_colour": "arm",
        "appearance.prop_colour": "block_0 to block_1",
    }
    assert by_setting["appearance.textures"]["factor"] == "`texture`"
    assert by_setting["appearance.camera_fovy"]["at neutral"] == "30 degrees"
    assert by_setting["dynamics.prop_mass"]["at neutral"] == "0.1 kg"
    assert by_setting["dynamics.prop_size"]["at neutral"] == "45 x 45 x 45 mm"
    assert by_setting["dynamics.joint_friction"]["at neutral"].endswith("fingers 0.7 N m")
    assert by_setting["latency.camera_delay"]["unit"] == "control steps"
    published = [
        key for key, row in by_setting.items() if row["source of the range"] == factors.PAPER
    ]
    assert published == ["appearance.pixel_noise", "latency.proprio_noise"]


def test_a_pushed_block_goes_as_far_as_its_mass_says() -> None:
    """1 N for 0.1 s on m kg: 5 mm / m until then, and at 100 mm/s / m for 0.15 s more."""
    env = factor_motions.make_worlds(CONFIG)
    for end, mass in (("low", 0.05), ("high", 0.2)):
        factor_motions.at_end(env, "prop_mass", end)
        times, way = factor_motions.MOTIONS["prop_mass"].run(env)
        assert way[-1] == pytest.approx(20.0 / mass, rel=0.05)
        assert times[-1] == pytest.approx(0.25, abs=1e-6)
