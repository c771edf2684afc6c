"""Save a figure of matplotlib in the format that its name asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError, import_extra

PICTURES = (".svg", ".png", ".pdf")
"""File suffixes of plots."""


def check_picture(path: str | Path) -> Path:
    """Check the suffix of a plot's file. Raises InputError."""
    if Path(path).suffix.lower() not in PICTURES:
        raise InputError(f"--plot: must end in {', '.join(PICTURES)}, got {path}.")
    return Path(path)


def blank_figure(width: float, height: float) -> Any:
    """Make an empty matplotlib figure, in inches. Raises MissingExtraError: matplotlib is not installed."""
    import_extra("matplotlib", extra="eval", purpose="drawing figures")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a matplotlib figure, with the folder that it is in; the same figure gives the same SVG."""
    target = check_picture(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None} if target.suffix.lower() == ".svg" else None)
    return target
