"""The curves of a tuning as a picture: what each level adds to the held-out score, and the score by set size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crisp_stream.errors import import_extra
from crisp_stream.histograms.tuning import FLOOR, Tuning

_COLUMNS = 4


def plot_tuning(tuning: Tuning, path: str | Path, *, title: str) -> Path:
    """Draw a tuning as .svg, .png or .pdf: one panel per size, and one over all sizes. Returns the path."""
    import_extra("matplotlib", extra="write", purpose="drawing curves")
    from matplotlib.figure import Figure

    panels = len(tuning.sizes) + 1
    columns = min(_COLUMNS, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(3.4 * columns, 2.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    figure.suptitle(f"{title}: mean log w(c) of held-out windows, by level (raw: with {FLOOR:.0%} of base)")
    for axis, size in zip(axes, tuning.sizes, strict=False):
        for level, curve in zip(tuning.levels, size.curves, strict=True):
            axis.plot(tuning.strengths, curve, marker=".", color=f"C{level - 1}", label=f"level {level}")
        axis.axhline(0, color="gray", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_title(f"{size.examples:,} examples", fontsize=10)
        axis.set_xlabel("strength", fontsize=9)
    axes[0].set_ylabel("what the level adds, nats", fontsize=9)
    axes[0].legend(fontsize=8)
    _by_size(axes[panels - 1], tuning)
    for axis in axes[panels:]:
        axis.set_axis_off()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    return target


def _by_size(axis: Any, tuning: Tuning) -> None:
    examples = [size.examples for size in tuning.sizes]
    axis.plot(examples, [size.tuned for size in tuning.sizes], marker="o", color="black", label="tuned")
    for number, level in enumerate(tuning.levels):
        raw = [size.raw[number] for size in tuning.sizes]
        axis.plot(examples, raw, marker=".", linestyle=":", color=f"C{number}", label=f"raw, level {level}")
    axis.axhline(0, color="gray", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_title("over all sizes (base: 0)", fontsize=10)
    axis.set_xlabel("examples", fontsize=9)
    axis.legend(fontsize=8)
