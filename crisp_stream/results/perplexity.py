"""Perplexity of a set of texts from the results of every text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from crisp_stream.results.bootstrap import Interval, bootstrap_interval, exp_mean, ratio_of_sums
from crisp_stream.results.results import TextResults


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """Perplexities of one model on one set of texts, each with its 95 % interval over examples."""

    perplexity: float
    """exp of the mean over examples of their mean token loss (CRISP, Sec. 3.1)."""

    interval: Interval

    token_level_perplexity: float
    """exp of the mean loss over all tokens."""

    token_level_interval: Interval

    bits_per_byte: float
    """Loss of all tokens in bits, over the UTF-8 bytes they stand for."""

    bits_per_byte_interval: Interval

    num_examples: int
    """Texts that had a token to predict."""

    num_tokens: int
    """Tokens predicted."""

    num_empty: int
    """Texts without a token to predict, left out."""


def summarise(results: TextResults) -> PerplexityResult:
    """Compute the perplexities of results, with their intervals."""
    losses, sums, tokens, num_bytes = results.losses, results.loss_sums, results.num_tokens, results.num_bytes
    per_token = bootstrap_interval(ratio_of_sums, sums, tokens)
    per_byte = bootstrap_interval(ratio_of_sums, sums, num_bytes)
    return PerplexityResult(
        perplexity=math.exp(losses.mean()),
        interval=bootstrap_interval(exp_mean, losses),
        token_level_perplexity=math.exp(sums.sum() / tokens.sum()),
        token_level_interval=Interval(*np.exp(per_token)),
        bits_per_byte=float(sums.sum() / num_bytes.sum() / math.log(2)),
        bits_per_byte_interval=Interval(*(np.array(per_byte) / math.log(2))),
        num_examples=len(losses),
        num_tokens=int(tokens.sum()),
        num_empty=results.num_empty,
    )
