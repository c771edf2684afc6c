"""Progress bars of transformers 5 for files that it reads and writes in a moment: out of our output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from crisp_stream.errors import import_extra


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Have transformers show none meanwhile."""
    library: Any = import_extra("transformers.utils.logging", extra="train", purpose="loading a model")
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bar()
