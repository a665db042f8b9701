"""`report.html`: one file that opens offline, with all that an evaluation or a sweep tells.

Plots are Plotly's, whose script is part of the file; clips are films inside it. Reads outcomes and
runs no policy.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.offline

from visuomotor.evaluation import Episodes
from visuomotor.factor_effects import EXPECTED, TOLD, WORST, Bin, Effect, by_effect
from visuomotor.factors import with_unit
from visuomotor.statistics import PairedDifference, wilson_interval
from visuomotor.sweep import HOLDS, SweepPoint, SweptFactor, sweep_text
from visuomotor.video import Clip, write_video

COLOURS = ("#1b6ca8", "#d1660a", "#3a8f3a", "#8a4fbf", "#b03a48", "#5d5d5d")
LIGHT = 0.55  # opacity of bars, so that whiskers are seen on them
# What evaluation.json names as `renderer`.
RENDERERS = {"classic": "MuJoCo's classic renderer", "rays": "the ray-caster"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em;
  color: #222; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .25em .9em; text-align: right;
  border-bottom: 1px solid #ddd; } td:first-child, th:first-child { text-align: left; }
.effects td, .effects th { padding: .15em .5em; font-size: 12px; } .chance td { color: #777; }
.effects td + td { white-space: nowrap; }
.effects .clear td:first-child { font-weight: 600; }
pre { background: #f6f6f6; padding: 1em; overflow: auto; font-size: 12px; max-height: 30em; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
.clip { border-left: 4px solid #3a8f3a; padding-left: 8px; }
.clip.failure { border-color: #b03a48; }
.clip video { width: 49%; image-rendering: pixelated; vertical-align: top; background: #000; }
.note { color: #666; }
"""
_EFFECTS_NOTE = f"""
The {WORST} factors with the largest effect. Effect: by how much the true success rate varies with
the factor, as a standard deviation over the episodes, less what chance makes (Bergsma 2013); 0: by
no more than chance. A bin is a fifth of the episodes, in the order of the factor, or one value
where those are whole numbers. Intervals and whiskers are for 95 % (Wilson). p: of all bins having
one rate (chi-square; by permutation where fewer than {EXPECTED} failures or successes are expected
in a bin). False finds: of all factors with this p or less, the share found by chance (Benjamini and
Hochberg); up to {TOLD:g} a factor is told apart from chance.
"""
_EFFECTS_HEAD = (
    *("factor", "effect, %", "worst at", "success, %", "95 %", "best at", "success, %"),
    *("p", "false finds", "told apart from chance"),
)


@dataclass(frozen=True)
class Reported:
    """One policy's part of a report."""

    label: str
    summary: dict[str, Any]  # of evaluation.json
    episodes: Episodes
    effects: list[Effect]
    clips: list[Clip]
    curve: str | None  # of curve.csv
    settings: str  # of config.yaml


def report_html(policies: Sequence[Reported], differences: Sequence[PairedDifference]) -> str:
    """differences: of every policy but the first one from the first."""
    first = policies[0].summary
    title = f"{_worlds(first)}, {first['episodes']} episodes, seed {first['seed']}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _table(policies, differences),
        "<h2>How far episodes came</h2>",
        _plot(_funnel(policies)),
    ]
    if any(policy.effects for policy in policies):
        parts += [
            "<h2>Success by factor</h2>",
            f'<p class="note">{_EFFECTS_NOTE}</p>',
            *(
                _effects(policy, _colour(index))
                for index, policy in enumerate(policies)
                if policy.effects
            ),
        ]
    if any(policy.curve for policy in policies):
        parts += ["<h2>Learning curves</h2>", _plot(_curves(policies))]
    for policy in policies:
        if policy.clips:
            parts.append(f"<h2>Episodes of {html.escape(policy.label)}</h2>")
            parts.append(f'<div class="clips">{"".join(map(_clip, policy.clips))}</div>')
    parts += [_settings(policy.label, policy.summary, policy.settings) for policy in policies]
    return _page(title, parts)


def sweep_html(
    swept: SweptFactor,
    curves: Mapping[str, list[SweepPoint]],
    records: Sequence[dict[str, Any]],
    settings: Sequence[str],
) -> str:
    """Of one factor over a grid.

    curves: by policy. records: of each policy's sweep.json; settings: of its config.yaml.
    """
    facts = records[0]
    episodes = f"{facts['points'][0]['episodes']} episodes a value, seed {facts['seed']}"
    title = f"{facts['task']}, {swept.name} alone, {episodes}"
    texts = (sweep_text(label, swept, points) for label, points in curves.items())
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        '<p class="note">All other factors are nominal, and every value meets the same start '
        "states. Shaded: trained with. Dotted: what is asked for. Whiskers are 95 % intervals "
        "(Wilson).</p>",
        _plot(_sweep(swept, curves)),
        *(f"<pre>{html.escape(text)}</pre>" for text in texts),
    ]
    parts += map(_settings, curves, records, settings)
    return _page(title, parts)


def _page(title: str, parts: Sequence[str]) -> str:
    script = plotly.offline.get_plotlyjs()
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_STYLE}</style><script>{script}</script></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _worlds(summary: dict[str, Any]) -> str:
    """Task and worlds; of held-out ones what is changed, and what draws them."""
    told = f"{summary['task']}, {summary['sims']}"
    if "heldout" not in summary:
        return told
    return f"{told}: {', '.join(summary['heldout'])}; drawn by {RENDERERS[summary['renderer']]}"


def _table(policies: Sequence[Reported], differences: Sequence[PairedDifference]) -> str:
    names = ["policy", "success, %", "95 %", "successes", "stopped", "mean return"]
    names += ["p (McNemar)"] if differences else []
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = []
    for policy in policies:
        facts = policy.summary
        low, high = 100 * facts["success_low"], 100 * facts["success_high"]
        cells = [
            f"{100 * facts['success_rate']:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{facts['successes']} of {facts['episodes']}",
            f"{facts['stopped']}",
            f"{facts['mean_return']:.2f}",
        ]
        rows.append(_row(policy.label, cells + [""] * (len(names) - 6)))
    for policy, pair in zip(policies[1:], differences, strict=True):
        cells = [
            f"{100 * pair.difference:+.1f}",
            f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f}",
            f"{pair.only_second} gained, {pair.only_first} lost",
            *("", "", f"{pair.p_value:.2g}"),
        ]
        rows.append(_row(f"{policy.label} - {policies[0].label}", cells))
    note = "Stopped: episodes in which the policy gave no action to the end, which count as failed."
    return f'<table id="summary"><tr>{head}</tr>{"".join(rows)}</table><p class="note">{note}</p>'


def _effects(policy: Reported, colour: str) -> str:
    """The factors that matter most, as a table and as plots to choose from."""
    head = "".join(f"<th>{name}</th>" for name in _EFFECTS_HEAD)
    rows = "".join(map(_effect_row, by_effect(policy.effects)[:WORST]))
    return (
        f"<h3>{html.escape(policy.label)}</h3>"
        f'<table class="effects"><tr>{head}</tr>{rows}</table>{_plot(_factors(policy, colour))}'
    )


def _effect_row(effect: Effect) -> str:
    low, high = wilson_interval(effect.worst.successes, effect.worst.episodes)
    cells = (
        f"{100 * effect.effect:.1f}",
        effect.worst.span,
        _rate(effect.worst),
        f"{100 * low:.1f} to {100 * high:.1f}",
        effect.best.span,
        _rate(effect.best),
        f"{effect.p_value:.2g}",
        f"{effect.false_share:.2g}",
        "yes" if effect.clear else "no",
    )
    kind = "clear" if effect.clear else "chance"
    return _row(with_unit(effect.name, effect.unit), cells, kind)


def _rate(part: Bin) -> str:
    return f"{100 * part.rate:.1f} ({part.successes} of {part.episodes})"


def _row(label: str, cells: Sequence[str], kind: str = "") -> str:
    told = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{kind}"><td>{html.escape(label)}</td>{told}</tr>'


def _settings(label: str, summary: dict[str, Any], settings: str) -> str:
    texts = "".join(f"<pre>{html.escape(text)}</pre>" for text in (_facts(summary), settings))
    return f"<h2>Settings of {html.escape(label)}</h2>{texts}"


def _facts(summary: dict[str, Any]) -> str:
    names = (
        *("visuomotor", "git_commit", "git_changed", "policy", "acts_through", "device", "sims"),
        *("heldout", "met_in_training", "untold_origins", "strength", "renderer", "worlds"),
        "stopped",
    )
    lines = [f"{name}: {summary[name]}" for name in names if name in summary]
    lines += [f"{name}: {value}" for name, value in (summary.get("provenance") or {}).items()]
    lines += [f"{name}: {value}" for name, value in (summary.get("versions") or {}).items()]
    return "\n".join(lines)


# --- plots ----------------------------------------------------------------------------------------


def _colour(index: int) -> str:
    """Of a policy, by its place."""
    return COLOURS[index % len(COLOURS)]


def _plot(figure: go.Figure) -> str:
    figure.update_layout(template="plotly_white", margin={"l": 50, "r": 20, "t": 30, "b": 40})
    text: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
    )
    return text


def _funnel(policies: Sequence[Reported]) -> go.Figure:
    figure = go.Figure()
    for index, policy in enumerate(policies):
        stages = policy.episodes.stages
        best, count = policy.episodes.best_stage, len(policy.episodes.success)
        reached = [int((best >= stage).sum()) for stage in range(len(stages))]
        names, values = (
            [*stages, "success at the end"],
            [*reached, int(policy.episodes.success.sum())],
        )
        bounds = [wilson_interval(value, count) for value in values]
        rates = [100 * value / count for value in values]
        figure.add_bar(
            name=policy.label,
            x=names,
            y=rates,
            marker={"color": _colour(index), "opacity": LIGHT},
            error_y=_whiskers(rates, bounds),
            customdata=values,
            hovertemplate="%{x}: %{y:.1f} %, %{customdata} episodes<extra></extra>",
        )
    figure.update_layout(yaxis_title="episodes, %", yaxis_range=[0, 103], height=340)
    return figure


def _whiskers(
    rates: Sequence[float], bounds: Sequence[tuple[float, float]], colour: str = "#222"
) -> dict[str, Any]:
    above = [100 * high - rate for rate, (_, high) in zip(rates, bounds, strict=True)]
    below = [rate - 100 * low for rate, (low, _) in zip(rates, bounds, strict=True)]
    look = {"thickness": 1.5, "width": 4, "color": colour}
    return {"type": "data", "array": above, "arrayminus": below, **look}


def _factors(policy: Reported, colour: str) -> go.Figure:
    """A choice among factors, the largest effect first: bars of whole numbers, else a line."""
    figure = go.Figure()
    buttons: list[dict[str, Any]] = []
    shown = by_effect(policy.effects)[:WORST]
    for index, effect in enumerate(shown):
        rates = [100 * part.rate for part in effect.bins]
        bounds = [wilson_interval(part.successes, part.episodes) for part in effect.bins]
        values = _middles(effect)
        add = figure.add_bar if effect.whole else figure.add_scatter
        bar = {"marker": {"color": colour, "opacity": LIGHT}, "width": 0.6}
        line = {"mode": "lines+markers", "line_color": colour}
        add(
            x=values,
            y=rates,
            error_y=_whiskers(rates, bounds),
            visible=index == 0,
            customdata=[[part.span, part.successes, part.episodes] for part in effect.bins],
            hovertemplate="%{customdata[0]}: %{y:.1f} %, %{customdata[1]} of %{customdata[2]}"
            "<extra></extra>",
            **(bar if effect.whole else line),
        )
        title = (
            f"{policy.label}: {effect.name}, p = {effect.p_value:.2g}, "
            f"share of false finds {effect.false_share:.2g}"
        )
        change = {"title.text": title, "xaxis.title.text": with_unit(effect.name, effect.unit)}
        change |= {f"xaxis.{name}": value for name, value in _ticks(values, effect.whole).items()}
        visible = [other == index for other in range(len(shown))]
        buttons.append({"label": effect.name, "method": "update", "args": [{"visible": visible}]})
        buttons[-1]["args"].append(change)
    start = shown[0]
    ticks = _ticks(_middles(start), start.whole)
    figure.update_xaxes(title_text=with_unit(start.name, start.unit), **ticks)
    figure.update_layout(
        title={"text": buttons[0]["args"][1]["title.text"], "font": {"size": 13}},
        yaxis_title="success, %",
        yaxis_range=[0, 103],
        showlegend=False,
        height=380,
        updatemenus=[{"buttons": buttons, "x": 1.0, "xanchor": "right", "y": 1.16}],
    )
    return figure


def _middles(effect: Effect) -> list[float]:
    """Of the bins."""
    return [(part.low + part.high) / 2 for part in effect.bins]


def _ticks(values: Sequence[float], whole: bool) -> dict[str, Any]:
    """Of an axis: at whole numbers where there are no others."""
    return {"tickmode": "array" if whole else "auto", "tickvals": list(values) if whole else None}


def _sweep(swept: SweptFactor, curves: Mapping[str, list[SweepPoint]]) -> go.Figure:
    """Policies stand beside each other at a value: their whiskers would hide one another."""
    figure, factor = go.Figure(), swept.factor
    whole, logarithmic = factor.distribution == "integer", factor.distribution == "log_uniform"
    values = sorted({point.value for points in curves.values() for point in points})
    scale = np.log10 if logarithmic else np.asarray
    reach = float(scale(values[-1]) - scale(values[0]))
    for index, (label, points) in enumerate(curves.items()):
        rates = [100 * point.rate for point in points]
        aside = 0.008 * (index - (len(curves) - 1) / 2) * reach
        places = [float(scale(point.value)) + aside for point in points]
        figure.add_scatter(
            x=[10.0**place for place in places] if logarithmic else places,
            y=rates,
            error_y=_whiskers(rates, [point.interval for point in points], _colour(index)),
            name=label,
            mode="markers" if whole else "lines+markers",
            marker={"size": 8},
            line_color=_colour(index),
            customdata=[[point.value, point.successes, point.episodes] for point in points],
            hovertemplate="%{customdata[0]:.4g}: %{y:.1f} %, %{customdata[1]} of %{customdata[2]}"
            "<extra></extra>",
        )
    trained = {"fillcolor": "#ddd", "opacity": 0.4, "line_width": 0, "layer": "below"}
    figure.add_vrect(x0=factor.low, x1=factor.high, **trained)
    figure.add_hline(y=100 * HOLDS, line_dash="dot", line_color="#888")
    if logarithmic:
        figure.update_xaxes(type="log", tickvals=values, ticktext=[f"{v:.3g}" for v in values])
    if whole:
        figure.update_xaxes(**_ticks(values, whole))
    figure.update_layout(
        xaxis_title=with_unit(swept.name, factor.unit),
        yaxis_title="success, %",
        yaxis_range=[0, 103],
        height=400,
    )
    return figure


def _curves(policies: Sequence[Reported]) -> go.Figure:
    figure = go.Figure()
    for index, policy in enumerate(policies):
        rows = list(csv.DictReader(io.StringIO(policy.curve or "")))
        colour = _colour(index)
        for column, name, dash in (
            ("success_rate", "in training", "dot"),
            ("evaluation_success_rate", "evaluated", "solid"),
        ):
            points = [
                (float(row["env_steps"]), 100 * float(row[column]))
                for row in rows
                if row.get(column) not in (None, "", "None", "null")
            ]
            if points:
                steps, rates = zip(*points, strict=True)
                line = {"color": colour, "dash": dash}
                figure.add_scatter(x=steps, y=rates, name=f"{policy.label}, {name}", line=line)
    figure.update_layout(
        xaxis_title="environment steps, all phases",
        yaxis_title="success, %",
        yaxis_range=[0, 103],
        height=360,
    )
    return figure


# --- clips ----------------------------------------------------------------------------------------


def _clip(clip: Clip) -> str:
    kind = "success" if clip.success else "failure"
    views = "".join(_video(frames, clip.rate) for frames in (clip.policy_view, clip.wide_view))
    told = f"episode {clip.episode}: {kind}, ends in stage “{html.escape(clip.stage)}”"
    return f'<div class="clip {kind}">{views}<br>{told}</div>'


def _video(frames: list[np.ndarray], rate: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, [frame[None] for frame in frames], rate)
        data = base64.b64encode(path.read_bytes()).decode()
    source = f'src="data:video/mp4;base64,{data}"'
    return f"<video controls loop muted playsinline autoplay {source}></video>"
