"""lm-eval on our models: a model in memory answers its requests, and its tasks are asked of our question sets.

lm-eval makes the requests of a task, and the metrics of what comes back. Scoring is ours and not lm-eval's `HFLM`,
which wants an exported folder, pads rows of unlike length, computes the logits of whole prompts, and wants one process
per part of the questions: here rows of similar length share a forward pass, only logits from the first answer on are
computed, and the processes of a launcher share the rows and all see all results. A model in training can be asked,
sharded too: all ranks make the same number of forward passes. `lm_eval.simple_evaluate` is not used for that reason:
it seeds every random generator of the process, returns nothing on ranks but the first, and asks git and pip about the
machine, for seconds.

What HFLM does is done here: a context is cut from the left where context and answer are longer than the model's, and
no end-of-text stands before it. An answer that is itself longer than the model's context, which HFLM refuses, is scored
in consecutive runs, each after the last token of the one before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from numpy.typing import NDArray

from crisp_stream.checkpoint import LoadedGPT
from crisp_stream.evaluation.perplexity import encode_texts, example_rows, in_batches
from crisp_stream.evaluation.question_sets import QuestionSet, read_task

ShareDone = Callable[[float], None]
"""Takes the share of the work that is done, 0 to 1."""

Request = tuple[tuple[str, str], list[int], list[int]]
"""(context, continuation) as texts; then the tokens of both."""

_ENCODED_CHARACTERS = 1 << 20
"""Characters tokenised at once; the tokenizer keeps about 100 bytes per token until it is read."""


class ScoredRow(NamedTuple):
    """Tokens of a forward pass: the inputs are `tokens[:-1]`."""

    tokens: list[int]
    """2 to n_positions + 1."""
    num_scored: int
    """So many at the end count, 1 to len(tokens) - 1."""


class HarnessLM(TemplateLM):
    """A model in memory as lm-eval sees one: a single process, whatever launcher this is a process of."""

    backend = "causal"

    def __init__(self, loaded: LoadedGPT, *, batch_size: int = 8, share_done: ShareDone = lambda share: None) -> None:
        """Args:
        loaded: on the device where it computes, in eval mode; whole, or a part of a sharded one.
        batch_size: full contexts per forward pass.
        share_done: told how far a call has come.
        """
        super().__init__()
        self._loaded = loaded
        self._batch_size = batch_size
        self._share_done = share_done
        self._device = next(loaded.gpt.parameters()).device
        self.max_length = int(loaded.gpt.config.n_positions)
        """Context limit in tokens, as HFLM calls it."""

    @property
    def eot_token_id(self) -> int:
        return int(self._loaded.gpt.config.eos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._encode([string])[0]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As lm-eval defines it, with all texts tokenised together."""
        pairs = [_whole_words(*request.args) for request in requests]
        contexts = list(dict.fromkeys(context for context, _ in pairs))
        tokens_of = dict(zip(contexts, self._encode(contexts), strict=True))
        wholes = self._encode([context + continuation for context, continuation in pairs])
        encoded: list[Request] = []
        for (context, continuation), whole in zip(pairs, wholes, strict=True):
            own = tokens_of[context]
            encoded.append(((context, continuation), own or [self.prefix_token_id], whole[len(own) :] or whole[-1:]))
        return self._loglikelihood_tokens(encoded)

    def _loglikelihood_tokens(self, requests: list[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        rows, owners = [], []
        for number, (_, context, continuation) in enumerate(requests):
            own = rows_of(context, continuation, self.max_length)
            rows += own
            owners += [number] * len(own)
        log_probs, greedy = np.zeros(len(requests)), np.ones(len(requests), np.bool_)
        row_log_probs, row_greedy = self.score(rows)
        np.add.at(log_probs, owners, row_log_probs)
        np.logical_and.at(greedy, owners, row_greedy)
        return list(zip(log_probs.tolist(), greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log probability of whole texts, cut and begun as for perplexity.py: the sums are those of `judge_texts`."""
        texts = encode_texts(self._loaded, [request.args[0] for request in requests])
        rows = [ScoredRow(row, len(row) - 1) for text in texts for row in text.rows]
        owners = [number for number, text in enumerate(texts) for _ in text.rows]
        log_probs = np.zeros(len(requests))
        np.add.at(log_probs, owners, self.score(rows)[0])
        return log_probs.tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("tasks that generate text need lm-eval's own model, on an exported folder")

    def score(self, rows: Sequence[ScoredRow]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Log probabilities of rows, shared among the processes of a launcher; all of them call this.

        Returns:
            [num_rows], nats; [num_rows], whether every scored token is the likeliest one.
        """
        log_probs, greedy = np.zeros(len(rows)), np.zeros(len(rows), np.bool_)
        numbered = ((number, row.tokens) for number, row in enumerate(rows))
        batches = [
            [number for number, _ in batch]
            for batch in in_batches(numbered, batch_size=self._batch_size, n_positions=self.max_length)
        ]
        rank, world_size = _place_among_processes()
        for first in range(0, len(batches), world_size):
            # A sharded model needs every rank in every forward pass: a rank without a batch repeats the first.
            mine = first + rank
            batch = batches[mine if mine < len(batches) else 0]
            scores = row_scores(self._loaded.gpt, [rows[number] for number in batch], device=self._device)
            if mine < len(batches):
                log_probs[batch], greedy[batch] = scores
            self._share_done(min(1.0, (first + world_size) / len(batches)))
        if world_size > 1:
            from composer.utils import dist

            gathered = dist.all_gather_object((log_probs, greedy))
            log_probs = np.sum([part for part, _ in gathered], axis=0)
            greedy = np.any([part for _, part in gathered], axis=0)
        return log_probs, greedy

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each; special tokens in a text count as plain text, as for perplexity."""
        found: list[list[int]] = []
        for block in _blocks(texts):
            encoded: Any = self._loaded.tokenizer(
                block,
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                verbose=False,
            )
            found += encoded["input_ids"]
        return found


def rows_of(context: Sequence[int], continuation: Sequence[int], n_positions: int) -> list[ScoredRow]:
    """Tokens of a request as rows: one, unless the continuation alone is longer than the context limit."""
    if len(continuation) <= n_positions:
        tokens = [*context, *continuation][-(n_positions + 1) :]
        return [ScoredRow(tokens, len(continuation))]
    runs = example_rows(continuation, context_token=context[-1], n_positions=n_positions)
    return [ScoredRow(run, len(run) - 1) for run in runs]


def row_scores(
    gpt: torch.nn.Module, rows: Sequence[ScoredRow], *, device: torch.device
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log probability of what is scored of each row, in nats, and whether it is what the model likes best.

    One forward pass over all rows, with logits from the first scored token of any row on. Rows are padded at the end,
    which a causal model cannot see.
    """
    width = max(len(row.tokens) for row in rows) - 1
    first = min(len(row.tokens) - 1 - row.num_scored for row in rows)
    inputs = np.zeros((len(rows), width), np.int64)
    targets = np.full((len(rows), width - first), -100, np.int64)
    for index, (tokens, num_scored) in enumerate(rows):
        inputs[index, : len(tokens) - 1] = tokens[:-1]
        end = len(tokens) - 1 - first
        targets[index, end - num_scored : end] = tokens[-num_scored:]
    expected = torch.from_numpy(targets).to(device)
    with torch.no_grad():
        kept = torch.arange(first, width, device=device)
        outputs = gpt(input_ids=torch.from_numpy(inputs).to(device), use_cache=False, logits_to_keep=kept)
        logits = outputs.logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), expected.flatten(), ignore_index=-100, reduction="none"
        )
        likeliest = (logits.argmax(dim=-1) == expected) | (expected == -100)
    sums = losses.view_as(expected).double().sum(dim=1)
    return -sums.cpu().numpy(), likeliest.all(dim=1).cpu().numpy()


class _Records(list[Mapping[str, Any]]):
    """Records with the one thing that lm-eval wants of a `datasets.Dataset` besides, at no cost per record."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(("question", "choices", "answer"))


class QuestionTask(ConfigurableTask):
    """A task of ours, asked of a question set."""

    def __init__(self, questions: QuestionSet) -> None:
        records = _Records(question.to_json() for question in questions.questions)
        config = dict(read_task(questions.task))
        config |= {key: pkgutil.resolve_name(config[key]) for key in ("doc_to_text", "doc_to_choice", "doc_to_target")}
        config |= {"custom_dataset": lambda **about: {config["test_split"]: records}, "process_docs": None}
        super().__init__(config=config)

    def build_all_requests(self, **settings: Any) -> None:
        """As lm-eval does, without its progress bar, which no setting takes away."""
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
            super().build_all_requests(**settings)


class Asked(NamedTuple):
    """What came back from lm-eval."""

    log_probs: list[list[float]]
    """[num_questions][num_choices], nats."""
    acc: float
    acc_norm: float


def ask(lm: HarnessLM, questions: QuestionSet) -> Asked:
    """Ask a model all questions. All processes of a launcher call this, and see all results."""
    with _quiet():
        output: Any = evaluate(
            lm=lm, task_dict={"tasks": {questions.task: QuestionTask(questions)}}, bootstrap_iters=0, log_samples=True
        )
    assert output is not None  # for lm-eval this is rank 0 of 1
    samples = output["samples"][questions.task]
    scores = output["results"][questions.task]
    return Asked(
        log_probs=[[float(log_prob) for log_prob, _ in sample["filtered_resps"]] for sample in samples],
        acc=float(scores["acc,none"]),
        acc_norm=float(scores["acc_norm,none"]),
    )


def _whole_words(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of the context go to the continuation: tokens of words begin with their space."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    block: list[str] = []
    characters = 0
    for text in texts:
        block.append(text)
        characters += len(text)
        if characters >= _ENCODED_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _place_among_processes() -> tuple[int, int]:
    """(rank, world size)."""
    processes = torch.distributed
    if not processes.is_available() or not processes.is_initialized():
        return 0, 1
    return processes.get_rank(), processes.get_world_size()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval says at length what it does."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
