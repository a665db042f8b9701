"""Pages link what lies beside them, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def links(page: Path) -> set[Path]:
    """Files of this repository that a page links."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    return {(page.parent / target).resolve() for target in targets if "://" not in target}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_is_there(page: Path) -> None:
    assert [str(target) for target in sorted(links(page)) if not target.exists()] == []


def test_every_picture_and_table_is_linked() -> None:
    linked = set().union(*map(links, PAGES))
    docs = ROOT / "docs"
    kept = [*docs.glob("*.png"), *docs.glob("*.csv"), *docs.glob("images/*")]
    assert [path.name for path in sorted(kept) if path.resolve() not in linked] == []
