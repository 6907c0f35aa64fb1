"""The roofline: what each case attained over the flops that it computes for each byte that it must move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Marker of each kind of primitive; the rest share the last.
MARKERS = {"fc_": "o", "activation": "s", "softmax": "^", "loss": "v", "maxout": "D", "training": "*"}
COLOURS = {"bfloat16": "#1b6ca8", "float16": "#3a923a", "float32": "#c44e52", "tf32": "#8172b3"}


def draw(lines: Sequence[Mapping[str, Any]], limits: Mapping[str, float], gpu: str, path: Path) -> None:
    """Draw measured cases under the measured ceilings; `limits` in bytes and flops per second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [line for line in lines if line.get("flops") and line.get("bytes") and line.get("ms")]
    figure, axes = pyplot.subplots(figsize=(9.0, 5.5), constrained_layout=True)
    for line in cases:
        kind = "tf32" if line["math"] == "tf32" else line["dtype"]
        marker = next((sign for start, sign in MARKERS.items() if line["op"].startswith(start)), "P")
        intensity, rate = line["flops"] / line["bytes"], line["flops"] / line["ms"] * 1e-9
        axes.plot(intensity, rate, marker, color=COLOURS.get(kind, "grey"), markersize=4, alpha=0.7, mew=0)
    _roofs(axes, cases, limits)
    _legend(axes, cases)
    axes.set(xscale="log", yscale="log", xlabel="flops for each byte that must be moved", ylabel="TFLOP/s")
    axes.set_title(f"Attained under the ceilings measured in the same run, {gpu}", fontsize=10)
    axes.grid(True, which="major", alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _roofs(axes: Any, cases: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> None:
    """The copy rate as a slope, each product rate as a level that begins where the two meet."""
    reach = [line["flops"] / line["bytes"] for line in cases] or [1.0]
    left, right = min(reach) / 2.0, max(*reach, 1.0) * 2.0
    copy = limits.get("copy", 0.0) * 1e-12
    tops = {name: rate * 1e-12 for name, rate in limits.items() if name != "copy"}
    if copy:
        ridge = min(right, max(tops.values(), default=copy * right) / copy)
        middle = (left * ridge) ** 0.5
        axes.plot([left, ridge], [copy * left, copy * ridge], color="black", linewidth=1)
        axes.annotate(f"copy {copy:.3g} TB/s", (middle, copy * middle), fontsize=8, ha="right", va="bottom")
    for i, (name, top) in enumerate(tops.items()):
        begin = min(right, top / copy) if copy else left
        aside = {"xytext": (-90 * (i % 2), 1), "textcoords": "offset points"}  # two of a height do not meet
        axes.plot([begin, right], [top, top], color=COLOURS.get(name, "grey"), linewidth=1)
        axes.annotate(f"{name} {top:.3g}", (right, top), fontsize=8, ha="right", va="bottom", **aside)


def _legend(axes: Any, cases: Sequence[Mapping[str, Any]]) -> None:
    """One entry for each kind of primitive, and one for each type."""
    from matplotlib.lines import Line2D

    used = {line["op"] for line in cases}
    kinds = {"tf32" if line["math"] == "tf32" else line["dtype"] for line in cases}
    entries = [
        Line2D([], [], marker=sign, linestyle="", color="grey", label=start.rstrip("_"))
        for start, sign in MARKERS.items()
        if any(op.startswith(start) for op in used)
    ]
    if any(not op.startswith(tuple(MARKERS)) for op in used):
        entries.append(Line2D([], [], marker="P", linestyle="", color="grey", label="other"))
    entries += [
        Line2D([], [], marker="s", linestyle="", color=colour, label=name)
        for name, colour in COLOURS.items()
        if name in kinds
    ]
    axes.legend(handles=entries, fontsize=8, loc="upper left")
