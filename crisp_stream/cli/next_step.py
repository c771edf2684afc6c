"""The last line of a command: what comes next, as a command that can be pasted, with the user's own paths in it.

Words in capitals stand for what only the user knows: TASK.jsonl for the examples of a task, HELD_OUT.jsonl for text to
judge by.
"""

from __future__ import annotations

import shlex
from pathlib import Path

TASK, HELD_OUT = "TASK.jsonl", "HELD_OUT.jsonl"
_SHORT_WINDOW = 256
_DEMO_TOKENS, _TOKENS = 800_000, 40_000_000_000


def say_next(*words: object) -> None:
    """Print the line."""
    print(f"next: {shlex.join(['crisp-stream', *map(str, words)])}", flush=True)


def size_for(window_tokens: int) -> str:
    """The recipe of a size that suits a window length."""
    return "demo" if window_tokens <= _SHORT_WINDOW else "gpt-350m"


def tokens_for(window_tokens: int) -> int:
    """The length of a run of that size, in tokens."""
    return _DEMO_TOKENS if window_tokens <= _SHORT_WINDOW else _TOKENS


def with_ending(path: str, ending: str) -> str:
    """A file name beside another one: task.parquet, .tuned.parquet -> task.tuned.parquet."""
    return str(Path(path).with_suffix("")) + ending


def train_on(windows: str, root: str, window_tokens: int) -> None:
    """Say how to train on a selection of windows."""
    say_next("train", size_for(window_tokens), "selected", f"data.remote={root}", f"mixture.phases.0.windows={windows}")
