"""Pages link what lies beside them, and nothing that is not there."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from visuomotor.envs import robot

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def links(page: Path) -> set[Path]:
    """Files of this repository that a page links."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    return {(page.parent / target).resolve() for target in targets if "://" not in target}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_is_there(page: Path) -> None:
    assert [str(target) for target in sorted(links(page)) if not target.exists()] == []


def test_the_posture_to_bring_the_arm_to_is_that_of_training() -> None:
    page = (ROOT / "docs" / "real_arm.md").read_text()
    rows = re.findall(r"^\| `(jaco_arm/[^`]+)`[^|]*\| ([-.\d]+) \| ([-.\d]+) \|$", page, re.M)
    told = {name: float(rad) for name, rad, _ in rows}
    starts = dict(zip(robot.JOINTS, robot.START_QPOS, strict=True))
    assert told == {name: starts[name] for name in robot.JOINTS[:7]}
    assert set(robot.START_QPOS[7:]) == {told[robot.JOINTS[6]]}
    for _, rad, degrees in rows:
        assert float(degrees) == round(math.degrees(float(rad)), 1)
    assert "stands at ({:g}, {:g}, {:g}) m".format(*robot.BASE_POS) in page
    spread = f"within {robot.START_NOISE_ARM:g} rad (fingers {robot.START_NOISE_FINGER:g} rad)"
    assert spread in page


def test_every_picture_and_table_is_linked() -> None:
    linked = set().union(*map(links, PAGES))
    docs = ROOT / "docs"
    kept = [*docs.glob("*.png"), *docs.glob("*.csv"), *docs.glob("images/*")]
    assert [path.name for path in sorted(kept) if path.resolve() not in linked] == []
