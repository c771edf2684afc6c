"""Measure the model during a run, every so often and at the end: held-out text, and multiple-choice questions."""

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

from crisp_stream import digits
from crisp_stream.evaluation.multiple_choice import ask_model
from crisp_stream.evaluation.perplexity import encode_texts, in_batches, row_losses
from crisp_stream.evaluation.question_sets import QuestionSet
from crisp_stream.models.checkpoint import LoadedGPT
from crisp_stream.training.callbacks.as_judged import as_judged


class HeldOutPerplexity(Callback):
    """The paper's perplexity on held-out text; all ranks share the work."""

    def __init__(self, loaded: LoadedGPT, texts: Sequence[str], *, interval: str, batch_size: int) -> None:
        """Args:
        loaded: the model in training, with its tokenizer.
        texts: the held-out examples.
        interval: between measurements, as Composer writes intervals.
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
        loss_sums = np.zeros(len(self._tokens_per_example))
        world, rank = dist.get_world_size(), dist.get_global_rank()
        with as_judged(state.model) as gpt:
            for first in range(0, len(self._batches), world):
                # A sharded model needs every rank in every forward pass: a rank without a batch repeats the first.
                number = first + rank
                batch = self._batches[number if number < len(self._batches) else 0]
                sums = row_losses(gpt, [row for _, row in batch], device=next(gpt.parameters()).device)
                if number < len(self._batches):
                    np.add.at(loss_sums, [example for example, _ in batch], sums)
        gathered = dist.all_gather(state.device.tensor_to_device(torch.from_numpy(loss_sums)))
        summed = torch.stack([part.cpu() for part in gathered]).sum(dim=0).numpy()
        kept = self._tokens_per_example > 0
        perplexity = math.exp((summed[kept] / self._tokens_per_example[kept]).mean())
        self.measured.append((int(state.timestamp.batch), perplexity))
        logger.log_metrics({"metrics/eval/perplexity": perplexity})
        if rank == 0:
            print(
                f"batch {int(state.timestamp.batch):,}  held-out perplexity {digits.perplexity(perplexity)}"
                f"  ({digits.JUDGED})",
                file=sys.stderr,
                flush=True,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured = [(int(batch), float(perplexity)) for batch, perplexity in state["measured"]]


class QuestionAccuracy(Callback):
    """Accuracies of the model on samples of question sets; all ranks share the work."""

    def __init__(
        self, loaded: LoadedGPT, question_sets: Sequence[QuestionSet], *, interval: str, batch_size: int
    ) -> None:
        """Args:
        loaded: the model in training, with its tokenizer.
        question_sets: of different names, the same on every rank.
        interval: between measurements, as Composer writes intervals.
        batch_size: full contexts per forward pass.
        """
        self.measured: list[tuple[int, str, float, float]] = []
        """(batch, set, acc, acc_norm) of each measurement."""
        self._tokenizer, self._provenance = loaded.tokenizer, loaded.provenance
        self._question_sets = question_sets
        self._batch_size = batch_size
        self._due = create_interval_scheduler(interval, checkpoint_events=False, final_events={Event.BATCH_END})

    def batch_end(self, state: State, logger: Logger) -> None:
        if not self._due(state, Event.BATCH_END):
            return
        batch = int(state.timestamp.batch)
        with as_judged(state.model) as gpt:
            loaded = LoadedGPT(gpt=gpt, tokenizer=self._tokenizer, provenance=self._provenance)
            judged = [
                ask_model(loaded, questions, described={}, batch_size=self._batch_size)
                for questions in self._question_sets
            ]
        for questions, results in zip(self._question_sets, judged, strict=True):
            acc, acc_norm = float(results.right.mean()), float(results.right_normalised.mean())
            self.measured.append((batch, questions.name, acc, acc_norm))
            logger.log_metrics(
                {f"metrics/eval/{questions.name}/acc": acc, f"metrics/eval/{questions.name}/acc_norm": acc_norm}
            )
            if dist.get_global_rank() == 0:
                print(
                    f"batch {batch:,}  {questions.name}  acc {acc:.3f}  acc_norm {acc_norm:.3f}"
                    f"  ({digits.JUDGED}; {len(questions.questions):,} questions"
                    + (f", {results.num_long:,} of them cut)" if results.num_long else ")"),
                    file=sys.stderr,
                    flush=True,
                )

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured = [
            (int(batch), str(name), float(acc), float(acc_norm)) for batch, name, acc, acc_norm in state["measured"]
        ]
