"""Measure perplexity on held-out text during a run."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.misc import create_interval_scheduler
from torch.nn.parallel import DistributedDataParallel

from crisp_stream.evaluation.perplexity import encode_texts, in_batches, row_losses
from crisp_stream.models.checkpoint import LoadedGPT


class HeldOutPerplexity(Callback):
    """The paper's perplexity on held-out text, every so often and at the end; all ranks share the work."""

    def __init__(self, loaded: LoadedGPT, texts: Sequence[str], *, interval: str, batch_size: int) -> None:
        """Args:
        loaded: the model in training, with its tokenizer.
        texts: the held-out examples.
        interval: as `eval_interval` of a recipe.
        batch_size: full contexts per forward pass.
        """
        self.measured: list[tuple[int, float]] = []
        """(batch, perplexity) of each measurement."""
        self._due = create_interval_scheduler(interval, checkpoint_events=False, final_events={Event.BATCH_END})
        encoded = encode_texts(loaded, texts)
        self._tokens_per_example = np.array([text.num_tokens for text in encoded])
        rows = ((example, row) for example, text in enumerate(encoded) for row in text.rows)
        n_positions = int(loaded.gpt.config.n_positions)
        self._batches = list(in_batches(rows, batch_size=batch_size, n_positions=n_positions))

    def batch_end(self, state: State, logger: Logger) -> None:
        if not self._due(state, Event.BATCH_END):
            return
        wrapped = state.model.module if isinstance(state.model, DistributedDataParallel) else state.model
        gpt = wrapped.model
        assert isinstance(gpt, torch.nn.Module)
        loss_sums = np.zeros(len(self._tokens_per_example))
        world, rank = dist.get_world_size(), dist.get_global_rank()
        gpt.eval()
        for first in range(0, len(self._batches), world):
            # A sharded model needs every rank in every forward pass: a rank without a batch repeats the first.
            mine = first + rank
            batch = self._batches[mine if mine < len(self._batches) else 0]
            sums = row_losses(gpt, [row for _, row in batch], device=next(gpt.parameters()).device)
            if mine < len(self._batches):
                np.add.at(loss_sums, [example for example, _ in batch], sums)
        gpt.train()
        gathered = dist.all_gather(state.device.tensor_to_device(torch.from_numpy(loss_sums)))
        summed = torch.stack([part.cpu() for part in gathered]).sum(dim=0).numpy()
        kept = self._tokens_per_example > 0
        perplexity = math.exp((summed[kept] / self._tokens_per_example[kept]).mean())
        self.measured.append((int(state.timestamp.batch), perplexity))
        logger.log_metrics({"metrics/eval/perplexity": perplexity})
        if rank == 0:
            print(
                f"batch {int(state.timestamp.batch):,}  held-out perplexity {perplexity:.3f}",
                file=sys.stderr,
                flush=True,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured = [(int(batch), float(perplexity)) for batch, perplexity in state["measured"]]
