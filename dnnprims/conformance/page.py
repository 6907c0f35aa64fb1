"""A report as one self-contained page: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from .cases import DTYPES
from .results import EDGES, failed, offered

TEMPLATE = Path(__file__).with_suffix(".html")

#: A picture, in units of its own: width, height of a strip, room on the left for its name, below for the axis.
_WIDTH, _STRIP, _LEFT, _BELOW = 320, 26, 52, 16

#: Failures that a page shows of each run; the rest is in the JSON report.
_MOST_FAILURES = 50


def render(runs: Sequence[dict[str, Any]], support: Sequence[tuple[str, str, list[str]]]) -> str:
    """The page of some runs; `support` are rows of (family, primitive, backends for each dtype)."""
    bad, cases = failed(runs), sum(run["cases"] for run in runs)
    broken_off = any(run["cases"] < run["asked"] for run in runs)
    verdict = f"{cases:,} cases, {bad:,} failed" + (" - broken off before the end" if broken_off else "")
    subjects = ", ".join(dict.fromkeys(run["subject"] for run in runs))
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Conformance of dnnprims: {subjects}"),
        tone="bad" if bad or broken_off else "good",
        verdict=verdict,
        failures=_failures(runs),
        runs="\n".join(map(_run, runs)),
        support=_table(("family", "primitive", *DTYPES), ((f, p, *cells) for f, p, cells in support), numbers=9),
    )


def _run(run: dict[str, Any]) -> str:
    facts = {
        "date": run["date"],
        "command": run["command"],
        "cases": f"{run['cases']:,} of {run['asked']:,} in {run['seconds']} s, seed {run['seed']}",
        **run["environment"],
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    shown = [group for group in run["groups"] if offered(group)]
    absent = sorted({group["op"] for group in run["groups"] if not offered(group)})
    missing = f'<p class="dim">Not offered: {escape(", ".join(absent))}.</p>' if absent else ""
    return (
        f"<h2>On {escape(run['subject'])}</h2>\n<dl>{listed}</dl>\n{missing}\n"
        f"<h3>Error over bound</h3>\n"
        '<p class="dim">Share of elements at each ratio, on a logarithmic axis; the first bar: exact, or below '
        "2<sup>-16</sup>, and the dashed line is the bound.</p>\n"
        f'<div class="pictures">{_pictures(shown)}</div>\n'
        f'<h3>Figures</h3>\n<div class="scroll">{_figures(shown)}</div>'
    )


def _figures(groups: Sequence[dict[str, Any]]) -> str:
    head = ("primitive", "dtype", "cases", "failed", "not taken", "elements", "exact", "median", "p99", "max")
    rows = (
        (
            group["op"],
            group["dtype"],
            f"{group['cases']:,}",
            f"{group['failed']:,}",
            f"{sum(group['declined'].values()):,}",
            f"{group['elements']:,}",
            f"{group['exact'] / group['elements']:.0%}" if group["elements"] else "-",
            *("-" if group[name] is None else f"{group[name]:.3g}" for name in ("median", "p99", "max")),
        )
        for group in groups
    )
    return _table(head, rows, numbers=2)


def _pictures(groups: Sequence[dict[str, Any]]) -> str:
    by_op: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        if group["elements"]:
            by_op.setdefault(group["op"], []).append(group)
    return "\n".join(
        f"<figure><figcaption>{escape(op)}</figcaption>{_picture(op, own)}</figure>" for op, own in by_op.items()
    )


def _picture(op: str, groups: Sequence[dict[str, Any]]) -> str:
    """A strip for each dtype: bars of the share of elements, the axis of ratios, the bound at 1."""
    height = _STRIP * len(groups) + _BELOW
    limit = _at(1.0)
    words = "; ".join(f"{group['dtype']}: median {group['median']:.2g}, largest {group['max']:.3g}" for group in groups)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(f"{op}, error over bound. {words}")}">'
    ]
    for i, group in enumerate(groups):
        base = _STRIP * (i + 1) - 3
        parts.append(f'<text x="0" y="{base - 4}">{group["dtype"]}</text>')
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{base}" y2="{base}"/>')
        parts += _bars(group, base)
    parts.append(f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="0" y2="{height - _BELOW}"/>')
    for power in (-16, -12, -8, -4, 0, 4):
        label, anchor = "1" if power == 0 else f"2^{power}", "end" if power == 4 else "middle"
        x = _WIDTH if power == 4 else _at(2.0**power)
        parts.append(f'<text x="{x:.1f}" y="{height - 3}" text-anchor="{anchor}">{label}</text>')
    return "".join([*parts, "</svg>"])


def _bars(group: dict[str, Any], base: int) -> Iterable[str]:
    """Heights go with the root of the share, so that a few elements near the bound are still seen."""
    step = (_WIDTH - _LEFT) / (len(EDGES) + 1)
    for k, many in enumerate(group["histogram"]):
        if many:
            share = many / group["elements"]
            tall = max(1.0, (_STRIP - 6) * share**0.5)
            over = (k < len(EDGES) and EDGES[k] > 1.0) or k == len(EDGES)
            title = f"{share:.2%} {'beyond the bound' if over else f'up to {EDGES[k]:.3g}'}"
            yield (
                f'<rect class="{"over" if over else "bar"}" x="{_LEFT + k * step:.1f}" y="{base - tall:.1f}" '
                f'width="{step - 0.6:.1f}" height="{tall:.1f}"><title>{title}</title></rect>'
            )


def _at(ratio: float) -> float:
    """Where a ratio lies on the axis: at the right edge of the bin that it closes."""
    place = int(abs(EDGES - ratio).argmin())
    return _LEFT + (place + 1) * (_WIDTH - _LEFT) / (len(EDGES) + 1)


def _failures(runs: Sequence[dict[str, Any]]) -> str:
    parts = []
    for run in runs:
        for one in run["failures"][:_MOST_FAILURES]:
            parts.append(f"<p>{escape(one['complaint'])}</p><pre>{escape(one['replay'])}</pre>")
        hidden = len(run["failures"]) - _MOST_FAILURES
        if hidden > 0:
            parts.append(f'<p class="dim">{hidden:,} more on {escape(run["subject"])}.</p>')
    return "<h2>What failed</h2>" + "".join(parts) if parts else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """A table whose columns from `numbers` on are figures."""
    cells = "".join(f'<th scope="col"{_kind(i, numbers)}>{escape(name)}</th>' for i, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{_kind(i, numbers)}>{escape(cell or '-')}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _kind(i: int, numbers: int) -> str:
    return ' class="n"' if i >= numbers else ""
