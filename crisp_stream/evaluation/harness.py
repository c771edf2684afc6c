"""lm-eval on our models: a model in memory answers the requests that lm-eval makes of our question sets.

lm-eval makes the requests of a task, and the metrics of the answers. Scoring is ours. lm-eval's `HFLM` wants an
exported folder, reads the prompt again for every choice, computes the logits of whole prompts, and wants a share of the
questions per process. Here the choices of a question share a row (packed_rows.py), rows of similar length share a
forward pass, only logits from the first answer on are computed, and the processes of a launcher share the rows and all
see all results. A model in training can answer, sharded too: all ranks make the same number of forward passes.

As in HFLM a context is cut from the left where context and answer are longer than the model's context, and no
end-of-text stands before it. An answer that is itself longer than the model's context, which HFLM refuses, is scored in
consecutive runs, each after the last token of the one before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from numpy.typing import NDArray
from tokenizers import Tokenizer

from crisp_stream.errors import InputError
from crisp_stream.evaluation.packed_rows import PackedRow, add_scores, is_long, pack_rows
from crisp_stream.evaluation.perplexity import encode_texts, gather, in_batches, place_among_processes, text_blocks
from crisp_stream.evaluation.prompts import ReadRecord
from crisp_stream.evaluation.question_sets import QuestionSet, read_task
from crisp_stream.examples.questions import Question
from crisp_stream.models.checkpoint import LoadedGPT

ShareDone = Callable[[float], None]
"""Takes the share of the work that is done, 0 to 1."""

Request = tuple[tuple[str, str], list[int], list[int]]
"""(context, continuation) as texts; then the tokens of both."""

_ENCODED_CHARACTERS = 1 << 20
"""Characters tokenised at once; the tokenizer keeps about 100 bytes per token until it is read."""


class HarnessLM(TemplateLM):
    """A model in memory as lm-eval sees it: one process, also where a launcher started several."""

    backend = "causal"

    def __init__(self, loaded: LoadedGPT, *, batch_size: int = 8, share_done: ShareDone = lambda share: None) -> None:
        """Take a model on the device where it computes, in eval mode; whole, or a part of a sharded one."""
        super().__init__()
        self._loaded = loaded
        self._batch_size = batch_size
        self._share_done = share_done
        self._tokenizer = Tokenizer.from_str(loaded.tokenizer.backend_tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._device = next(loaded.gpt.parameters()).device
        self.max_length = int(loaded.gpt.config.n_positions)
        """Context limit in tokens, under the name that HFLM has for it."""
        self._is_long: dict[tuple[str, str], bool] = {}
        """Whether each (context, continuation) that was tokenised is longer than that."""

    @property
    def eot_token_id(self) -> int:
        config: Any = self._loaded.gpt.config
        return int(config.eos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._encode([string])[0]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score requests as lm-eval defines it, with all texts tokenised together.

        Equal requests are scored once: rounding must not tell equal choices of a question apart.
        """
        pairs = [_whole_words(*request.args) for request in requests]
        places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
        answers = self._answers(self._tokenised(list(places)), len(places))
        return [answers[places[pair]] for pair in pairs]

    def _tokenised(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[list[int], list[int]]]:
        """Tokens of (context, continuation), and note which are long.

        Raises:
            InputError: a continuation adds no token to its context, so there is nothing to score.
        """
        contexts = list(dict.fromkeys(context for context, _ in pairs))
        tokens_of = dict(zip(contexts, self._encode(contexts), strict=True))
        wholes = self._encode([context + continuation for context, continuation in pairs])
        for (context, continuation), whole in zip(pairs, wholes, strict=True):
            head = tokens_of[context]
            added = whole[len(head) :]
            if not added:
                raise InputError(
                    f"a choice must have a token of its own after the prompt, but {continuation!r} has none after "
                    f"{context[-40:]!r}. Write it as a text that the tokenizer keeps."
                )
            head = head or [self.prefix_token_id]
            self._is_long[context, continuation] = is_long(head, added, self.max_length)
            yield head, added

    def long_questions(self, questions: Sequence[Question]) -> NDArray[np.bool_]:
        """[num_questions], whether the prompt has to be cut for any choice, or a choice is longer than the context."""
        pairs = [[_whole_words(row.context, f" {choice}") for choice in row.choices] for row in questions]
        missing = dict.fromkeys(pair for row in pairs for pair in row if pair not in self._is_long)
        for _ in self._tokenised(list(missing)):
            pass
        return np.array([any(self._is_long[pair] for pair in row) for row in pairs], np.bool_)

    def _loglikelihood_tokens(self, requests: list[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._answers(((context, continuation) for _, context, continuation in requests), len(requests))

    def _answers(self, requests: Iterable[tuple[list[int], list[int]]], num_requests: int) -> list[tuple[float, bool]]:
        """Score pairs (context, continuation) of tokens."""
        log_probs, greedy = self._score(pack_rows(requests, self.max_length), num_requests)
        return list(zip(log_probs.tolist(), greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Compute the log probability of whole texts, cut and begun as in perplexity.py: equals `judge_texts`."""
        texts = encode_texts(self._loaded, [request.args[0] for request in requests])
        rows = [PackedRow(row[:1], [row[1:]], [number]) for number, text in enumerate(texts) for row in text.rows]
        return self._score(rows, len(requests))[0].tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("tasks that generate text need lm-eval's HFLM, on an exported folder")

    def _score(self, rows: Sequence[PackedRow], num_requests: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Score rows, shared among the processes of a launcher; all of them call this.

        Returns:
            [num_requests], log probabilities in nats; [num_requests], whether every token is the likeliest one.
        """
        log_probs, greedy = np.zeros(num_requests), np.ones(num_requests, np.bool_)
        numbered = ((number, [0] * (row.num_inputs + 1)) for number, row in enumerate(rows))
        batches = list(in_batches(numbered, batch_size=self._batch_size, n_positions=self.max_length))
        rank, world_size = place_among_processes()
        for first in range(0, len(batches), world_size):
            # A sharded model needs every rank in every forward pass: a rank without a batch repeats the first.
            mine = first + rank
            batch = [rows[number] for number, _ in batches[mine if mine < len(batches) else 0]]
            to_keep = (log_probs, greedy) if mine < len(batches) else (log_probs.copy(), greedy.copy())
            add_scores(self._loaded.gpt, batch, *to_keep, device=self._device)
            self._share_done(min(1.0, (first + world_size) / len(batches)))
        if world_size > 1:
            gathered = gather((log_probs, greedy))
            log_probs = np.sum([part for part, _ in gathered], axis=0)
            greedy = np.all([part for _, part in gathered], axis=0)
        return log_probs, greedy

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts; special tokens in a text count as plain text, as for perplexity."""
        blocks = (
            self._tokenizer.encode_batch_fast(block, add_special_tokens=False)
            for block in text_blocks(texts, _ENCODED_CHARACTERS)
        )
        return [encoding.ids for block in blocks for encoding in block]


class _Records(list[Mapping[str, Any]]):
    """Records with the one further property that lm-eval reads of a `datasets.Dataset`, at no cost per record."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(("question", "choices", "answer"))


class QuestionTask(ConfigurableTask):
    """A task of ours with the questions of a set."""

    def __init__(self, questions: QuestionSet) -> None:
        records = _Records(ReadRecord(question) for question in questions.questions)
        config = dict(read_task(questions.task))
        config |= {key: pkgutil.resolve_name(config[key]) for key in ("doc_to_text", "doc_to_choice", "doc_to_target")}
        config |= {"custom_dataset": lambda **about: {config["test_split"]: records}, "process_docs": None}
        super().__init__(config=config)

    def build_all_requests(self, **settings: Any) -> None:
        """Build requests as lm-eval does, without its progress bar, which no setting takes away."""
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
            super().build_all_requests(**settings)


class Answered(NamedTuple):
    """Results of lm-eval."""

    log_probs: list[list[float]]
    """[num_questions][num_choices], nats."""
    acc: float
    acc_norm: float


def ask(lm: HarnessLM, questions: QuestionSet) -> Answered:
    """Ask a model all questions. All processes of a launcher call this, and see all results."""
    # `simple_evaluate` seeds every random generator of the process, returns nothing on ranks but the first, and asks
    # git and pip about the machine, for seconds.
    with _quiet():
        output: Any = evaluate(
            lm=lm, task_dict={"tasks": {questions.task: QuestionTask(questions)}}, bootstrap_iters=0, log_samples=True
        )
    assert output is not None  # for lm-eval this is rank 0 of 1
    samples = output["samples"][questions.task]
    scores = output["results"][questions.task]
    return Answered(
        log_probs=[[float(log_prob) for log_prob, _ in sample["filtered_resps"]] for sample in samples],
        acc=float(scores["acc,none"]),
        acc_norm=float(scores["acc_norm,none"]),
    )


def _whole_words(context: str, continuation: str) -> tuple[str, str]:
    """Move spaces at the end of the context to the continuation: tokens of words begin with their space."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval, which logs at length."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
