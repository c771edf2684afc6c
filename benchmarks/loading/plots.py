"""The plots of the README, from the kept results of bench_loader.py. SVG, so that they stay sharp and small."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.support.report import Results, Row

mpl.use("agg")
mpl.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "legend.frameon": False,
        "svg.hashsalt": "crisp-stream",
        "svg.fonttype": "none",
    }
)
COLOURS = {"crisp-stream": "#0b6e4f", "StreamingDataset": "#d1495b", "LitData": "#3d6cb9", "multinomial": "#7fb69f"}
MARKERS = {"crisp-stream": "o", "StreamingDataset": "s", "LitData": "^", "multinomial": "D"}


def draw_all(results: Mapping[str, Results], folder: Path, pngs: Path) -> list[Path]:
    """Draw what there are results for, as SVG into `folder` and, to be looked at, as PNG; returns the files."""
    plots: dict[str, tuple[str, Callable[[list[Row]], Figure]]] = {
        "start": ("start.svg", start),
        "error": ("mixture_error.svg", error),
        "s3": ("amplification.svg", amplification),
    }
    paths = []
    for section, (name, draw) in plots.items():
        if section in results:
            figure = draw(results[section].rows)
            figure.savefig(folder / name, metadata={"Date": None})
            figure.savefig(pngs / name.replace(".svg", ".png"), dpi=110)
            paths += [folder / name, pngs / name.replace(".svg", ".png")]
    return paths


def _side(row: Row) -> str:
    name = str(row["side"])
    if "multinomial" in name:
        return "multinomial"
    return next(side for side in COLOURS if name.startswith(side))


def _plain(value: float, _: Any = None) -> str:
    """1,000 and 0.1 instead of powers of ten."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _clusters(value: float) -> str:
    return "16.7M" if value == 1 << 24 else f"{value:,.0f}"


def start(rows: list[Row]) -> Figure:
    """Time to the first batch and peak memory against the number of clusters, log-log."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = (
        ("seconds", 1.0, "time to the first batch (s)"),
        ("peak_bytes", 1e-6, "peak memory above imports (MB)"),
    )
    for axes, (key, scale, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for side in ("crisp-stream", "StreamingDataset", "LitData"):
            _line(axes, [row for row in rows if _side(row) == side and key in row], side, key, scale)
        ticks = sorted({row["clusters"] for row in rows})
        values = [row[key] * scale for row in rows if key in row]
        decades = (10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values))))
        axes.set(xscale="log", yscale="log", xlabel="clusters", ylabel=label, ylim=decades)
        axes.set_xticks(ticks, [_clusters(tick) for tick in ticks], rotation=30, ha="right", rotation_mode="anchor")
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.09)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _line(axes: Axes, rows: list[Row], side: str, key: str, scale: float) -> None:
    full = [row for row in rows if row["nonzero"] == row["clusters"]]
    label = f"{side}, all clusters" if side == "crisp-stream" else side
    xs, ys = [row["clusters"] for row in full], [row[key] * scale for row in full]
    axes.plot(xs, ys, color=COLOURS[side], marker=MARKERS[side], label=label)
    for row in rows:
        if row["nonzero"] != row["clusters"]:
            point = (row["clusters"], row[key] * scale)
            axes.plot(*point, color=COLOURS[side], marker=MARKERS[side], markerfacecolor="white", linestyle="none")
            text = f"{row['nonzero']:,}\nnon-zero"
            axes.annotate(text, point, (0, -7), textcoords="offset points", ha="center", va="top", size=8)


def error(rows: list[Row]) -> Figure:
    """Total variation against samples, one panel per tree, with the bound L / (2T), log-log."""
    cases = sorted({(row["leaves"], row["nonzero"]) for row in rows})
    columns = min(3, len(cases))
    lines = -(-len(cases) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.1 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    for axes, case in zip(grid, cases, strict=False):
        for row in rows:
            powers = [power for power in range(3, 8) if f"tv_{power}" in row]
            if (row["leaves"], row["nonzero"]) == case and powers:
                side = _side(row)
                ys = [row[f"tv_{power}"] for power in powers]
                axes.plot(
                    [10**power for power in powers],
                    ys,
                    color=COLOURS[side],
                    marker=MARKERS[side],
                    markersize=4,
                    linewidth=2.2 if side == "crisp-stream" else 1.2,
                    label=row["side"],
                )
        bound = [(10**power, min(1.0, case[1] / 2 / 10**power)) for power in range(3, 8)]
        axes.plot(*zip(*bound, strict=True), color="#888888", linestyle=":", label="bound L / (2T)")
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"{_clusters(case[0])} leaves, {_clusters(case[1])} non-zero (L)", size=9)
    for axes in list(grid)[len(cases) :]:
        axes.set_visible(False)
    figure.supxlabel("samples T", size=10)
    figure.supylabel("total variation, asked against served", size=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, columns + 1))
    return figure


def amplification(rows: list[Row]) -> Figure:
    """Bytes read per byte used over S3: ours beside whole shards of the same windows."""
    ours = [row for row in rows if _side(row) == "crisp-stream" and "amplification" in row][::-1]
    figure = Figure(figsize=(9.6, 0.75 * len(ours) + 1.3), layout="constrained")
    axes = figure.subplots()
    sides = (
        ("amplification", "crisp-stream", COLOURS["crisp-stream"], 0.2, "crisp-stream, measured"),
        ("whole_shards_amplification", "", COLOURS["StreamingDataset"], -0.2, "whole shards (StreamingDataset)"),
    )
    for key, _, colour, shift, label in sides:
        values = [row[key] for row in ours]
        bars = axes.barh([place + shift for place in range(len(ours))], values, height=0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in values], padding=3, size=9)
    names = [f"{row['side'].removeprefix('crisp-stream, ')}\n{row['samples']:,} samples" for row in ours]
    axes.set_yticks(range(len(ours)), names)
    axes.set(xscale="log", xlabel="bytes read per byte used (1 is the least)")
    axes.set_xlim(0.8, 2 * max(row["whole_shards_amplification"] for row in ours))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.axvline(1, color="#888888", linestyle=":")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    return figure
