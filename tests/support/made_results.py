"""Results as files of an evaluation hold them, with figures that a test chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from crisp_stream.results.results import QuestionResults, TextResults


def model(name: str, **changes: Any) -> dict[str, Any]:
    """A model's record, as far as comparisons look at it."""
    return {
        "name": name,
        "run_name": name,
        "batch": 100,
        "tokens": 1000,
        "num_parameters": 10,
        "n_positions": 32,
        "packing": "joined",
        "tokenizer_fingerprint": "t" * 64,
        "mixture_fingerprint": name * 8,
        "training": {},
        **changes,
    }


def text_results(
    name: str,
    losses: Sequence[float],
    *,
    set_name: str = "news",
    num_tokens: Sequence[int] | None = None,
    num_bytes: Sequence[int] | None = None,
    ids: Sequence[int] | None = None,
    contaminated: Sequence[bool] | None = None,
    num_empty: int = 0,
    **changes: Any,
) -> TextResults:
    """Texts of given mean losses in nats; of 1 token and 4 bytes each unless told otherwise."""
    count = len(losses)
    tokens = np.array([1] * count if num_tokens is None else num_tokens, np.int64)
    return TextResults(
        model=model(name, **changes),
        set_name=set_name,
        example_ids=np.array(range(count) if ids is None else ids, np.uint64),
        loss_sums=np.array(losses, np.float64) * tokens,
        num_tokens=tokens,
        num_bytes=np.array([4] * count if num_bytes is None else num_bytes, np.int64),
        contaminated=None if contaminated is None else np.array(contaminated),
        num_empty=num_empty,
    )


def question_results(
    name: str,
    log_probs: Sequence[Sequence[float]],
    *,
    set_name: str = "quiz",
    metric: str = "acc",
    answers: Sequence[int] | None = None,
    characters: Sequence[Sequence[int]] | None = None,
    ids: Sequence[int] | None = None,
    contaminated: Sequence[bool] | None = None,
    **changes: Any,
) -> QuestionResults:
    """Questions whose right choice is the first, with choices of 1 character, unless told otherwise."""
    count = len(log_probs)
    lengths = [[1] * len(row) for row in log_probs] if characters is None else [list(row) for row in characters]
    return QuestionResults(
        model=model(name, **changes),
        set_name=set_name,
        example_ids=np.array(range(count) if ids is None else ids, np.uint64),
        metric=metric,
        answers=np.array([0] * count if answers is None else answers, np.int64),
        log_probs=[list(row) for row in log_probs],
        num_characters=lengths,
        topics=[None] * count,
        contaminated=None if contaminated is None else np.array(contaminated),
    )


def answered(name: str, right: int, of: int, *, set_name: str, **changes: Any) -> QuestionResults:
    """So many questions answered right, the others wrong."""
    rows = [[-1.0, -2.0]] * right + [[-2.0, -1.0]] * (of - right)
    return question_results(name, rows, set_name=set_name, **changes)
