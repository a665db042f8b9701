"""benchmarks/corrupted.py: damaged bundles are refused, and it says so where one is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import corrupted
from benchmarks.corrupted import IN_MODEL, PRETRAINED, Tally
from visuomotor.runtime.bundle import BundleError, load_bundle

KINDS = 10


def test_each_kind_of_damage_is_refused_in_one_line_with_nothing_run(tmp_path: Path) -> None:
    tallies = corrupted.refuse(
        PRETRAINED / "lifting", PRETRAINED / "clearing_blocks", 5 * KINDS, tmp_path
    )
    assert len(tallies) == KINDS
    for kind, tally in tallies.items():
        assert (tally.made, tally.refused, tally.one_line, tally.ran) == (5, 5, 5, 0), kind
        assert tally.opened == 0 or kind == IN_MODEL, kind


def test_a_size_that_no_number_holds_leaves_nothing_else_on_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corrupted, "SIDES", [2**62])
    tallies = corrupted.refuse(
        PRETRAINED / "lifting", PRETRAINED / "clearing_blocks", 8 * KINDS, tmp_path
    )
    assert tallies[IN_MODEL].refused == 8
    assert capfd.readouterr() == ("", "")


def refuse(path: Path) -> None:
    raise BundleError("no")


def two_lines(path: Path) -> None:
    error = BundleError("one")
    error.args = ("one\ntwo",)
    raise error


def crash(path: Path) -> None:
    raise MemoryError


def run_it(path: Path) -> None:
    bundle = load_bundle(PRETRAINED / "lifting")
    assert bundle.replay.steps > 0
    raise BundleError("too late")


@pytest.mark.parametrize("load", [lambda path: None, two_lines, crash, run_it])
def test_what_is_not_refused_at_once_in_one_line_is_bad(
    load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corrupted, "load_bundle", load)
    assert corrupted.main("lifting", KINDS) == 1
    assert capsys.readouterr().out.count(", BAD") == KINDS


def test_what_is_refused_late_is_bad_and_what_is_refused_in_time_is_good(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corrupted, "load_bundle", refuse)
    assert corrupted.main("lifting", KINDS) == 0
    assert "BAD" not in capsys.readouterr().out
    monkeypatch.setattr(corrupted, "LONGEST", 0.0)
    assert corrupted.main("lifting", KINDS) == 1


def test_a_model_reaches_onnx_runtime_for_its_own_sizes_alone() -> None:
    tally = Tally(made=1, refused=1, one_line=1, opened=1)
    assert not tally.good("link")
    assert tally.good(IN_MODEL)
