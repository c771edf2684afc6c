"""Save a figure of matplotlib in the format that its name asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError, import_extra

_PICTURES = (".svg", ".png", ".pdf")


def blank_figure(width: float, height: float) -> Any:
    """Make an empty matplotlib figure, in inches. Raises MissingExtraError: matplotlib is not installed."""
    import_extra("matplotlib", extra="eval", purpose="drawing figures")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure, with the folder that it is in; equal figures give equal SVG. Raises InputError: other formats."""
    target = check_picture(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None} if target.suffix.lower() == ".svg" else None)
    return target


def check_picture(path: str | Path) -> Path:
    """The path of a picture. Raises InputError: its name asks for another format."""
    target = Path(path)
    if target.suffix.lower() not in _PICTURES:
        raise InputError(f"--plot: must end in {', '.join(_PICTURES)}, got {path}.")
    return target
