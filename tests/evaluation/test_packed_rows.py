"""Continuations that share a row are scored as if each had its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from crisp_stream.evaluation.packed_rows import PackedRow, add_scores, pack_rows

CPU = torch.device("cpu")


def test_continuations_of_one_context_share_a_row_as_far_as_it_reaches() -> None:
    first, second = [1, 2, 3], [1, 2, 4]
    requests = [(first, [5, 6]), (first, [7]), (first, [8, 9, 10, 11]), (second, [5]), (first, [5])]
    assert pack_rows(requests, 100) == [
        PackedRow(first, [[5, 6], [7], [8, 9, 10, 11]], [0, 1, 2]),
        PackedRow(second, [[5]], [3]),
        PackedRow(first, [[5]], [4]),
    ]
    assert [(row.owners, row.num_inputs) for row in pack_rows(requests, 6)] == [
        ([0, 1], 4),
        ([2], 6),
        ([3], 3),
        ([4], 3),
    ]


def test_contexts_are_cut_from_the_left_and_long_continuations_into_runs() -> None:
    context = [1, 2, 3]
    assert pack_rows([(context, [4, 5])], 4) == [PackedRow(context, [[4, 5]], [0])]
    assert pack_rows([(context, [4, 5])], 3) == [PackedRow([2, 3], [[4, 5]], [0])]
    assert pack_rows([(context, [4, 5, 6])], 3) == [PackedRow([3], [[4, 5, 6]], [0])]
    assert pack_rows([(context, [4, 5, 6, 7])], 3) == [PackedRow([3], [[4, 5, 6]], [0]), PackedRow([6], [[7]], [0])]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_rows_score_like_rows_of_their_own(attention: str) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=5, n_embd=32, n_layer=2, n_head=2, n_positions=40, initializer_range=0.3)
    config._attn_implementation = attention
    gpt = GPT2LMHeadModel(config).eval()
    rng = np.random.default_rng(0)

    def tokens(low: int, high: int) -> list[int]:
        return rng.integers(0, 5, rng.integers(low, high)).tolist()

    requests = [(context, tokens(1, 8)) for context in (tokens(1, 20) for _ in range(12)) for _ in range(4)]
    rows = pack_rows(requests, 40)
    assert len(rows) < 20
    log_probs, greedy = np.zeros(48), np.ones(48, np.bool_)
    for start in range(0, len(rows), 5):
        add_scores(gpt, rows[start : start + 5], log_probs, greedy, device=CPU)
    for (context, continuation), log_prob, likeliest in zip(requests, log_probs, greedy, strict=True):
        with torch.no_grad():
            logits = gpt(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
        expected = torch.log_softmax(logits.double(), -1)[range(len(continuation)), continuation].sum().item()
        assert log_prob == pytest.approx(expected, abs=1e-4)
        assert likeliest == (logits.argmax(-1).tolist() == continuation)
    assert greedy.any()
