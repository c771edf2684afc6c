"""The loss of every window of a batch, kept while the training loss is computed: no second pass over the logits.

The training loss is a mean over tokens, and by the time a callback sees it the windows are gone. Here the same
cross-entropy is computed without its last reduction, so that the sum of each window stands beside the mean. It costs
nothing that can be measured (docs/runs.md); a pass of its own over the logits would read them once more, in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from crisp_stream.loading.batches import IGNORED_LABEL


class WindowLosses:
    """A `loss_function` of transformers' causal models that keeps what each window contributed to its last mean."""

    def __init__(self) -> None:
        self.sums = torch.zeros(0)
        """[windows of the last forward pass], nats, float32, on the device of the model."""
        self.tokens = torch.zeros(0, dtype=torch.int64)
        """[windows of the last forward pass], predicted tokens."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
        """Mean over the predicted tokens, as transformers' ForCausalLMLoss.

        Args:
            logits: [windows, window_tokens, vocab_size]; used in float32.
            labels: [windows, window_tokens]; those after the first of each window are predicted, unless -100.
        """
        targets = functional.pad(labels, (0, 1), value=IGNORED_LABEL)[:, 1:].contiguous()
        losses = functional.cross_entropy(
            logits.float().view(-1, vocab_size), targets.view(-1), ignore_index=IGNORED_LABEL, reduction="none"
        )
        sums = losses.view(targets.shape).sum(dim=1)
        tokens = (targets != IGNORED_LABEL).sum(dim=1)
        self.sums, self.tokens = sums.detach(), tokens
        return sums.sum() / tokens.sum()
