"""Multiple choice during a run: every so often, and at the end, on a sample of each question set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.misc import create_interval_scheduler
from torch.nn.parallel import DistributedDataParallel

from crisp_stream.evaluation.multiple_choice import ask_model
from crisp_stream.evaluation.question_sets import QuestionSet
from crisp_stream.models.checkpoint import LoadedGPT


class QuestionAccuracy(Callback):
    """Accuracies of the model in training; all ranks share the work."""

    def __init__(
        self, loaded: LoadedGPT, question_sets: Sequence[QuestionSet], *, interval: str, batch_size: int
    ) -> None:
        """Args:
        loaded: the model in training, with its tokenizer.
        question_sets: of different names, the same on every rank.
        interval: as `eval_interval` of a recipe.
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
        wrapped = state.model.module if isinstance(state.model, DistributedDataParallel) else state.model
        gpt: Any = wrapped.model  # as the trainer has wrapped or sharded it
        loaded = LoadedGPT(gpt=gpt, tokenizer=self._tokenizer, provenance=self._provenance)
        batch = int(state.timestamp.batch)
        gpt.eval()
        for questions in self._question_sets:
            results = ask_model(loaded, questions, described={}, batch_size=self._batch_size)
            acc, acc_norm = float(results.right.mean()), float(results.right_normalised.mean())
            self.measured.append((batch, questions.name, acc, acc_norm))
            logger.log_metrics(
                {f"metrics/eval/{questions.name}/acc": acc, f"metrics/eval/{questions.name}/acc_norm": acc_norm}
            )
            if dist.get_global_rank() == 0:
                print(
                    f"batch {batch:,}  {questions.name}  acc {acc:.3f}  acc_norm {acc_norm:.3f}"
                    f"  ({len(questions.questions):,} questions)",
                    file=sys.stderr,
                    flush=True,
                )
        gpt.train()

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self.measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured = [
            (int(batch), str(name), float(acc), float(acc_norm)) for batch, name, acc, acc_norm in state["measured"]
        ]
