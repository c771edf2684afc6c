"""Continuations of one context in one row: the choices of a question share the computation of its prompt.

A row holds the context once and then the continuations, each at the positions right behind the context; a mask keeps
them from seeing one another. The log probabilities are those of a row per continuation, up to rounding. On the 4,183
questions of MedMCQA's validation set the model reads 279,280 tokens in this way instead of 710,633. A cache of keys and
values would save as much, but needs two forward passes, and does not work on a sharded model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.evaluation.perplexity import example_rows, in_float32, tokens_at_once


class PackedRow(NamedTuple):
    """A context and its continuations."""

    context: list[int]
    """At least one token."""
    continuations: list[list[int]]
    """At least one, of at least one token each; the last token of each is predicted only."""
    owners: list[int]
    """[num_continuations], number of the request that each belongs to."""

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads."""
        return len(self.context) + sum(len(continuation) - 1 for continuation in self.continuations)


def is_long(context: Sequence[int], continuation: Sequence[int], n_positions: int) -> bool:
    """Tell whether context and continuation are longer than the model reads, so that the context has to be cut."""
    return len(context) + len(continuation) > n_positions + 1


def pack_rows(requests: Iterable[tuple[list[int], list[int]]], n_positions: int) -> list[PackedRow]:
    """Pack requests, (context, continuation), into rows; those of one context share a row if they follow one another.

    A context is cut from the left where context and continuation together are longer than the model's context. A
    continuation that is longer itself is cut into runs, each after the last token of the one before.

    Args:
        n_positions: context limit; also the most inputs of a row of several continuations.

    Raises:
        InputError: a continuation without a token.
    """
    rows: list[PackedRow] = []
    for number, (context, continuation) in enumerate(requests):
        if not continuation:
            raise InputError(f"continuation {number}: must have at least one token to score, got none. Leave it out.")
        if len(continuation) > n_positions:
            runs = example_rows(continuation, context_token=context[-1], n_positions=n_positions)
            rows += [PackedRow(run[:1], [run[1:]], [number]) for run in runs]
        elif is_long(context, continuation, n_positions):
            rows.append(PackedRow(context[len(continuation) - n_positions - 1 :], [continuation], [number]))
        elif rows and rows[-1].context == context and rows[-1].num_inputs + len(continuation) - 1 <= n_positions:
            rows[-1].continuations.append(continuation)
            rows[-1].owners.append(number)
        else:
            rows.append(PackedRow(context, [continuation], [number]))
    return rows


class _Laid(NamedTuple):
    """Rows side by side, each [num_rows, width]."""

    inputs: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]
    """0 in a context, 1 in its first continuation, and so on; -1 behind the end of a row."""


def _lay(rows: Sequence[PackedRow]) -> _Laid:
    width = max(row.num_inputs for row in rows)
    laid = _Laid(*(np.full((len(rows), width), value, np.int64) for value in (0, 0, -1)))
    for index, row in enumerate(rows):
        begin, end = 0, len(row.context)
        for segment, tokens in enumerate([row.context, *(continuation[:-1] for continuation in row.continuations)]):
            first_position = len(row.context) if segment else 0
            end = begin + len(tokens)
            laid.inputs[index, begin:end] = tokens
            laid.positions[index, begin:end] = range(first_position, first_position + len(tokens))
            laid.segments[index, begin:end] = segment
            begin = end
    return laid


def _scored(rows: Sequence[PackedRow], first: int, width: int) -> tuple[list[int], list[int], list[int]]:
    """List the place of each scored token among the logits from `first` on, the token, and its request."""
    places, targets, owners = [], [], []
    for index, row in enumerate(rows):
        offset, begin = index * (width - first) - first, len(row.context)
        for owner, continuation in zip(row.owners, row.continuations, strict=True):
            end = begin + len(continuation) - 1
            places += [offset + len(row.context) - 1, *range(offset + begin, offset + end)]
            targets += continuation
            owners += [owner] * len(continuation)
            begin = end
    return places, targets, owners


def _mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Make the mask that is added to attention scores, [num_rows, 1, width, width].

    A place sees its segment and the context, both up to itself.
    """
    seen = (segments[:, None, :] == segments[:, :, None]) | (segments[:, None, :] == 0)
    seen &= torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=segments.device).masked_fill_(~seen, torch.finfo(dtype).min)[
        :, None
    ]


def add_scores(
    gpt: torch.nn.Module,
    rows: Sequence[PackedRow],
    log_probs: NDArray[np.float64],
    greedy: NDArray[np.bool_],
    *,
    device: torch.device,
) -> None:
    """Score rows in one forward pass, with logits from the first scored token of any row on.

    Args:
        log_probs: [num_requests], nats; those of the rows are added to their requests'.
        greedy: [num_requests], made false where a token of a continuation is not the likeliest.
    """
    laid = _lay(rows)
    width, first = laid.inputs.shape[1], min(len(row.context) for row in rows) - 1
    places, targets, owners = _scored(rows, first, width)
    inputs, positions, segments = (torch.from_numpy(array).to(device) for array in laid)
    alone = all(len(row.continuations) == 1 for row in rows)
    with torch.no_grad(), in_float32():
        logits = gpt(
            input_ids=inputs,
            position_ids=positions,
            attention_mask=None if alone else _mask(segments, next(gpt.parameters()).dtype),
            use_cache=False,
            logits_to_keep=torch.arange(first, width, device=device),
        ).logits.flatten(0, 1)
        step = tokens_at_once(logits)
        at, expected = (torch.tensor(values, device=device) for values in (places, targets))
        scored, likeliest = [], []
        for some, tokens in zip(at.split(step), expected.split(step), strict=True):
            part = logits[some].float()
            scores, best = part.gather(1, tokens[:, None])[:, 0], part.amax(dim=1)
            sums = part.sub_(best[:, None]).exp_().sum(dim=1)  # in place, and once over the logits for both answers
            scored.append((scores - best - sums.log()).double())
            likeliest.append(scores == best)
    np.add.at(log_probs, owners, torch.cat(scored).cpu().numpy())
    np.logical_and.at(greedy, owners, torch.cat(likeliest).cpu().numpy())
