"""The report: all that an evaluation tells, in one file that a browser opens offline."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import browser
from tests.runs import small_run, write_run
from visuomotor.cli import run_command
from visuomotor.evaluate import evaluate
from visuomotor.evaluation import Episodes, summarize
from visuomotor.factor_effects import factor_effects
from visuomotor.randomization import Factor
from visuomotor.report import COLOURS, Reported, report_html, sweep_html
from visuomotor.statistics import paired_difference, wilson_interval
from visuomotor.sweep import SweepPoint, SweptFactor, sweep_record
from visuomotor.video import Clip

CONFIG = small_run(episode_steps=8)
CURVE = """env_steps,wall_s,phase,success_rate,evaluation_success_rate
4096,1,ril,0.2,
8192,2,ril,,0.5
"""
# What is on the page.
COUNTS = """({
  plots: document.querySelectorAll(".js-plotly-plot .main-svg").length,
  bars: document.querySelectorAll(".bars path").length,
  points: document.querySelectorAll(".scatterlayer .point").length,
  videos: document.querySelectorAll("video").length,
  failed: [...document.querySelectorAll("video")].filter((v) => v.error).length,
})"""
PLAYING = """document.readyState === "complete" && document.querySelector("video")
  && [...document.querySelectorAll("video")].every((v) => v.error || v.currentTime > 0)"""


def _policy(label: str, seed: int, *, clips: int = 2) -> Reported:
    rng = np.random.default_rng(seed)
    best = rng.integers(0, 3, 60)
    episodes = Episodes(
        success=best == 2,
        returns=rng.random(60),
        end_stage=best,
        best_stage=best,
        first_success=np.where(best == 2, 3, -1),
        stopped=np.full(60, -1),
        factors=rng.random((60, 3)),
        factor_names=("mass", "hue", "<delay>"),
        stages=("start", "reach", "lifted"),
    )
    summary = summarize(episodes, task="lifting", policy=label, sims="randomized", seed=seed)
    frames = [np.full((16, 16, 3), 20 * i, dtype=np.uint8) for i in range(8)]
    shown = [Clip(i, i % 2 == 0, "reach", frames, frames[::-1], 10.0) for i in range(clips)]
    effects = factor_effects(episodes.success, episodes.factors, episodes.factor_names)
    return Reported(label, summary, episodes, effects, shown, CURVE, "task: lifting\nseed: 3\n")


@pytest.fixture(scope="module")
def page() -> str:
    first, second = _policy("first", 0), _policy("a <second>", 1)
    pair = paired_difference(first.episodes.success, second.episodes.success)
    return report_html([first, second], [pair])


def test_everything_an_evaluation_tells_is_on_the_page() -> None:
    """Parts in their order, and all facts of where the numbers come from."""
    policy = _policy("first", 0)
    where = {"provenance": {"run": "r1", "env_steps": 4096}, "acts_through": "torch"}
    worlds = {"sims": "heldout", "heldout": ["camera"], "renderer": "classic", "worlds": "0a1b"}
    worlds["met_in_training"] = ["camera_pos"]
    summary = {**policy.summary, **where, **worlds}
    page = report_html([replace(policy, summary=summary)], [])
    heads = re.findall("<h[12]>(.*?)</h[12]>", page)
    assert [html.unescape(head) for head in heads] == [
        "lifting, heldout: camera; drawn by MuJoCo's classic renderer, 60 episodes, seed 0",
        "How far episodes came",
        "Success by factor",
        "Learning curves",
        "Episodes of first",
        "Settings of first",
    ]
    assert page.index('<table id="summary">') < page.index("How far episodes came")
    by = ("visuomotor", "git_commit", "git_changed", "policy", "acts_through", "stopped")
    facts = {name: summary[name] for name in (*by, *worlds)}
    facts |= summary["provenance"] | summary["versions"]
    told_facts, settings = map(html.unescape, re.findall("<pre>(.*?)</pre>", page, re.DOTALL))
    assert {f"{name}: {value}" for name, value in facts.items()} == set(told_facts.splitlines())
    assert settings == policy.settings
    for stage in ("start", "reach", "lifted", "success at the end"):
        assert f'"{stage}"' in page  # a bar of the funnel
    for factor in ("mass", "hue"):
        assert f"first: {factor}, p = " in page
    for kind in ("success", "failure"):
        assert page.count(f'<div class="clip {kind}">') == 1


class _Outline(HTMLParser):
    """What a page refers to, and the text of its table."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.cells: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        self._inside = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells.append(data)
            self._inside = False


def test_the_page_refers_to_nothing_outside_of_itself(page: str) -> None:
    outline = _Outline()
    outline.feed(page)
    assert outline.references  # the clips
    assert all(reference.startswith("data:video/mp4;base64,") for reference in outline.references)
    assert len(outline.references) == 2 * 2 * 2  # policies, clips, views


def test_the_table_has_every_rate_and_difference(page: str) -> None:
    outline = _Outline()
    outline.feed(page)
    first = _policy("first", 0).summary
    assert f"{100 * first['success_rate']:.1f}" in outline.cells
    assert f"{100 * first['success_low']:.1f} to {100 * first['success_high']:.1f}" in outline.cells
    assert f"{first['successes']} of 60" in outline.cells and first["mean_return"] > 0.0
    head = outline.cells[: outline.cells.index("first")]
    assert head[3:] == ["successes", "stopped", "mean return", "p (McNemar)"]
    pair = paired_difference(*(_policy("", seed).episodes.success for seed in (0, 1)))
    alone = f"{pair.only_second} gained, {pair.only_first} lost"
    after = outline.cells[outline.cells.index("a <second> - first") :]
    assert after[3:5] == [alone, f"{pair.p_value:.2g}"]  # below the p-values, empty cells apart
    assert "a <second> - first" in outline.cells  # a name is text, not markup
    assert "<second>" not in page.replace("a &lt;second&gt;", "")
    assert "lifting, randomized, 60 episodes, seed 0" in page
    assert first["git_commit"] is None or first["git_commit"] in page
    assert "task: lifting\nseed: 3" in page


def test_the_factors_that_matter_most_stand_in_a_table_by_effect() -> None:
    """Twelve factors, two of which matter: ten are shown, and those two first and marked."""
    rng = np.random.default_rng(0)
    factors = rng.random((400, 12))
    factors[:, 3] = rng.integers(0, 2, 400)
    success = rng.random(400) < np.where(factors[:, 3] == 1, 0.3, 0.9) - 0.2 * (factors[:, 5] > 0.6)
    names = [f"colour/{i}" for i in range(12)]
    names[3], names[5] = "camera_delay", "gravity_tilt/x"
    effects = factor_effects(success, factors, tuple(names))
    page = report_html([replace(_policy("first", 0), effects=effects)], [])
    table = re.findall('<table class="effects">(.*?)</table>', page, re.DOTALL)
    rows = [re.findall("<td>(.*?)</td>", row) for row in table[0].split("<tr")[2:]]
    assert len(table) == 1 and len(rows) == 10
    assert [row[0] for row in rows[:2]] == [
        "camera_delay, control steps",
        "gravity_tilt/x, degrees",
    ]
    assert [row[-1] for row in rows] == ["yes", "yes"] + ["no"] * 8
    sizes = [float(row[1]) for row in rows]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == pytest.approx(30, abs=5)
    worst, best = (int(factors[:, 3].tolist().count(value)) for value in (1, 0))
    lost = int(success[factors[:, 3] == 1].sum())
    assert (rows[0][2], rows[0][5]) == ("1", "0")  # which values
    assert rows[0][3].endswith(f"({lost} of {worst})") and rows[0][6].endswith(f"of {best})")
    low, high = wilson_interval(lost, worst)
    assert rows[0][4] == f"{100 * low:.1f} to {100 * high:.1f}"


def _figures(page: str) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Data and layout of each plot."""
    read, found = json.JSONDecoder(), []
    for call in re.finditer(r"Plotly\.newPlot\(\s*\"[^\"]*\",\s*", page):
        data, end = read.raw_decode(page, call.end())
        layout, _ = read.raw_decode(page, page.index("{", end))
        found.append((data, layout))
    return found


def test_whole_numbers_are_bars_with_ticks_of_their_own_in_the_policys_colour() -> None:
    rng = np.random.default_rng(0)
    factors = np.stack((rng.integers(0, 3, 300), rng.random(300)), axis=1)
    success = rng.random(300) < 0.9 - 0.2 * factors[:, 0] - 0.2 * factors[:, 1]
    effects = factor_effects(success, factors, ("camera_delay", "camera_pos/x"))
    both = [replace(_policy(label, 0), effects=effects) for label in ("first", "second")]
    pair = paired_difference(both[0].episodes.success, both[1].episodes.success)
    plots = [
        (data, layout)
        for data, layout in _figures(report_html(both, [pair]))
        if "updatemenus" in layout
    ]
    assert len(plots) == 2
    for colour, (data, layout) in zip(COLOURS, plots, strict=False):
        bars, line = data
        assert (bars["type"], bars["x"], bars["marker"]["color"]) == ("bar", [0, 1, 2], colour)
        assert (line["type"], line["line"]["color"]) == ("scatter", colour)
        assert layout["xaxis"]["title"]["text"] == "camera_delay, control steps"
        assert layout["xaxis"]["tickvals"] == [0, 1, 2]
        of_line = layout["updatemenus"][0]["buttons"][1]["args"][1]
        assert of_line["xaxis.title.text"] == "camera_pos/x, m"
        assert of_line["xaxis.tickmode"] == "auto"


def test_whiskers_of_swept_policies_stand_beside_each_other(sweep_page: str) -> None:
    ((data, layout),) = _figures(sweep_page)
    first, second = data[:2]
    assert all(a < b for a, b in zip(first["x"], second["x"], strict=True))
    assert first["x"] == pytest.approx([0.25, 1.0, 2.0], rel=0.02)
    assert [curve["error_y"]["color"] for curve in data[:2]] == list(COLOURS[:2])
    delay = SweptFactor("camera_delay", Factor("d", 0, 2, 0, "integer", unit="control steps"))
    points = [SweepPoint(float(value), 50, 40) for value in range(5)]
    record = {"task": "lifting", "seed": 7, **sweep_record(delay, points)}
    ((data, layout),) = _figures(sweep_html(delay, {"one": points}, [record], [""]))
    assert (data[0]["mode"], data[0]["x"]) == ("markers", [0, 1, 2, 3, 4])
    assert layout["xaxis"]["tickvals"] == [0, 1, 2, 3, 4]
    assert layout["xaxis"]["title"]["text"] == "camera_delay, control steps"


def test_without_curve_clips_or_varied_factors_their_parts_are_left_out() -> None:
    bare = replace(_policy("bare", 0, clips=0), curve=None, effects=[])
    page = report_html([bare], [])
    assert "Learning curves" not in page and "Success by factor" not in page
    assert "<video" not in page and "How far episodes came" in page


def _look(page: Path, folder: Path) -> dict[str, int]:
    """What headless Chromium has drawn once all clips play."""
    with browser(folder) as chromium:
        chromium.open(page.as_uri())
        chromium.wait(PLAYING)
        assert chromium.errors == []
        counts: dict[str, int] = chromium.value(COUNTS)
        return counts


def test_a_browser_draws_plots_and_plays_clips_without_errors(page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page)
    seen = _look(path, tmp_path)
    assert seen["plots"] >= 4  # funnel, two of factors, curves
    assert seen["bars"] == 2 * 2 * 4  # bars with whiskers: policies, stages and success
    assert seen["points"] >= 2 * 5 + 2
    assert (seen["videos"], seen["failed"]) == (8, 0)


@pytest.fixture(scope="module")
def sweep_page() -> str:
    swept = SweptFactor("damping", Factor("damping", 0.5, 2.0, 1.0, distribution="log_uniform"))
    holds = [SweepPoint(0.25, 50, 20), SweepPoint(1.0, 50, 50), SweepPoint(2.0, 50, 48)]
    curves = {"first": holds, "a <second>": [replace(point, successes=0) for point in holds]}
    facts = {"task": "lifting", "seed": 7, "git_commit": "0a1b", "acts_through": "torch"}
    records = [{**facts, **sweep_record(swept, points)} for points in curves.values()]
    return sweep_html(swept, curves, records, ["hidden: 3", "hidden: 4"])


def test_a_sweep_tells_what_it_comes_to_and_where_it_was_measured(sweep_page: str) -> None:
    page = sweep_page
    assert "<h1>lifting, damping alone, 50 episodes a value, seed 7</h1>" in page
    told = [html.unescape(text) for text in re.findall("<pre>(.*?)</pre>", page, re.DOTALL)]
    assert "success stays at 90 % or more from 1 to 2 (the end of the grid)" in told[0]
    assert "0.25   40.0 %" in told[0] and "below 90 % even at 1" in told[1]
    commit = "git_commit: 0a1b\nacts_through: torch"
    assert told[2:] == [commit, "hidden: 3", commit, "hidden: 4"]
    assert "<second>" not in page.replace("a &lt;second&gt;", "")


def test_a_browser_draws_a_sweep_without_errors(sweep_page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(sweep_page)
    with browser(tmp_path) as chromium:
        chromium.open(path.as_uri())
        chromium.wait('document.querySelectorAll(".scatterlayer .point").length == 6')
        assert chromium.errors == []


def test_the_command_writes_a_report_with_both_kinds_of_clips(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CONFIG)
    (run / "metrics.jsonl").write_text('{"env_steps": 4096, "success_rate": 0.0, "phase": "ril"}\n')
    out = tmp_path / "out"
    arguments = [f"policy={run}", "episodes=3", "video=false", "device=cpu", f"out={out}"]
    assert run_command(evaluate, arguments) == 0
    assert {entry.name for entry in out.iterdir()} == {
        *("evaluation.json", "episodes.csv", "factors.csv", "report.html")
    }
    page = (out / "report.html").read_text()
    assert page.count('<div class="clip failure">') == 3  # an untrained policy
    assert "Learning curves" in page and "episode_steps: 8" in page
    seen = _look(out / "report.html", tmp_path)
    assert (seen["videos"], seen["failed"]) == (6, 0)


def test_a_damaged_older_evaluation_does_not_stand_in_the_way_of_a_new_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CONFIG)
    (run / "evaluation.json").write_text("{half")
    arguments = [f"policy={run}", "episodes=1", "video=false", "device=cpu"]
    assert run_command(evaluate, arguments) == 0
    assert (run / "evaluations" / "randomized-seed0" / "report.html").exists()
    assert '"episodes": 1' in (run / "evaluation.json").read_text()
