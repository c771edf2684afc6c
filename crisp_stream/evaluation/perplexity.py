"""Perplexity on held-out text, as the paper defines it (CRISP, Sec. 3.1).

Perplexity is exp of the mean over examples of the mean token loss of each example, so a short text counts as much as a
long one; the token-level perplexity, where every token counts the same, and bits per byte, which can be compared
between tokenizers, are reported beside it. What the paper leaves open is decided here:

* A model trained on joined documents saw end-of-text before every document, so each text is preceded by it, and every
  token of the text is predicted. A model trained with packing "document" never saw that, so the first token of a text
  is context and not predicted.
* No end-of-text is predicted at the end: a text may be an excerpt.
* A text longer than the context is cut into non-overlapping runs; each token is predicted exactly once, and the text
  stays one example, whose loss is the mean over all its tokens.

Everything is computed in float32, whatever the training precision. Texts are read and judged in blocks, so memory does
not grow with the set; within a block, rows of similar length share a forward pass, which holds as many rows as fit
`batch_size` full contexts. The batch size changes results by rounding only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.counting.embedded_examples import split_in_batches
from crisp_stream.errors import InputError, import_extra
from crisp_stream.evaluation.models import JudgedModel, open_model, plain_record
from crisp_stream.examples.hashes import example_hash
from crisp_stream.models.checkpoint import LoadedGPT
from crisp_stream.results.results import TextResults

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_BLOCK_CHARACTERS = 8 << 20
"""Characters of text tokenised and sorted at once; each is held as about a third of a token id."""

_LOGITS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Logits whose losses are computed together: intermediate values stay in the cache of a CPU, and memory grows little
beyond the logits themselves."""

Long = Literal["cut", "drop", "error"]
"""What is done with an example that is longer than the model's context. cut: of a question the beginning of the prompt
is left out, and a text is read in windows that do not overlap. drop: it is left out. error: it is refused."""

ExamplesDone = Callable[[int], None]
"""Takes how many more examples are done."""


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """A text as the model reads it."""

    rows: list[list[int]]
    """Runs of 2 to n_positions + 1 tokens: the inputs are `row[:-1]`, the predictions `row[1:]`."""
    num_bytes: int
    """UTF-8 bytes of the predicted text."""

    @property
    def num_tokens(self) -> int:
        """Tokens predicted."""
        return sum(len(row) - 1 for row in self.rows)


def perplexity(checkpoint: str | Path | LoadedGPT, texts: Iterable[str], *, batch_size: int = 8) -> TextResults:
    """Judge texts (see the top of this file for what exactly is predicted), by this process alone.

    Args:
        checkpoint: a Composer `.pt` file, an exported folder, or a loaded model.
        texts: the examples; at least one must have a token to predict.
        batch_size: full contexts per forward pass.

    Raises:
        InputError: no text, or none with a token to predict.
        FormatError: not a checkpoint of a GPT-2 model.
    """
    loaded = checkpoint if isinstance(checkpoint, LoadedGPT) else open_model(str(checkpoint)).loaded
    return _judge(loaded, texts, batch_size=batch_size, shared=False)


def judge_texts(
    model: JudgedModel,
    texts: Iterable[str],
    *,
    set_name: str,
    batch_size: int = 8,
    device: str | None = None,
    long: Long = "cut",
    progress: ExamplesDone = lambda more: None,
) -> TextResults:
    """Measure the loss of every text. Processes of a launcher share the work; all of them call this.

    Args:
        texts: the examples, the same on every process; at least one must have a token to predict.
        batch_size: full contexts per forward pass.
        device: torch device. Default: a GPU if there is one.
        long: what is done with texts that are longer than the model's context.

    Raises:
        InputError: no text, none with a token to predict, or one that is too long and `long` is error.
    """
    results = _judge(
        model.loaded, texts, batch_size=batch_size, device=device, progress=progress, shared=True, long=long
    )
    return replace(results, model=plain_record(model.record), set_name=set_name)


def check_long(is_long: NDArray[np.bool_], long: Long, subject: str, n_positions: int) -> None:
    """Raise InputError: examples are too long and `long` is error, or all of them are and `long` is drop."""
    count = int(is_long.sum())
    if (long == "error" and count) or (long == "drop" and count == len(is_long)):
        others = "drop" if long == "error" else "cut"
        raise InputError(
            f"{subject} must fit into the model's context of {n_positions:,} tokens, but {count:,} of {len(is_long):,} "
            f"do not. Give --long {others}, or a model with a longer context."
        )


def example_rows(tokens: Sequence[int], *, context_token: int | None, n_positions: int) -> list[list[int]]:
    """Cut one tokenised text into runs for the model: the inputs are `row[:-1]`, the predictions `row[1:]`.

    Args:
        context_token: token before the text, which is not predicted. None: the text's first token is not predicted.

    Returns:
        Rows of 2 to n_positions + 1 tokens; a row begins with the last token of the row before it. Empty if there is
        nothing to predict.
    """
    sequence = list(tokens) if context_token is None else [context_token, *tokens]
    return [sequence[start : start + n_positions + 1] for start in range(0, len(sequence) - 1, n_positions)]


def context_token_of(loaded: LoadedGPT) -> int | None:
    """Choose the token that stands before a text: end-of-text, or None for a model trained on separate documents."""
    if loaded.provenance.get("packing") == "document":
        return None
    eot_id = loaded.gpt.config.eos_token_id
    if not isinstance(eot_id, int):
        raise InputError(
            f"the model's config.json must name an eos_token_id, got {eot_id}. Export it again with crisp-stream."
        )
    return eot_id


def encode_texts(loaded: LoadedGPT, texts: Sequence[str]) -> list[EncodedText]:
    """Tokenise texts and cut them as the model reads them; special tokens in a text count as plain text."""
    if not texts:
        return []
    context_token = context_token_of(loaded)
    n_positions = int(loaded.gpt.config.n_positions)
    encoded: Any = loaded.tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_offsets_mapping=context_token is None,
        verbose=False,
    )
    texts_encoded = []
    for number, (text, tokens) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
        rows = example_rows(tokens, context_token=context_token, n_positions=n_positions)
        predicted = text
        if context_token is None and tokens:
            predicted = text[encoded["offset_mapping"][number][0][1] :]
        texts_encoded.append(EncodedText(rows=rows, num_bytes=len(predicted.encode("utf-8", "surrogatepass"))))
    return texts_encoded


Row = tuple[int, list[int]]
"""Number of the example, and tokens."""


def in_batches(rows: Iterable[Row], *, batch_size: int, n_positions: int) -> Iterator[list[Row]]:
    """Group rows of similar length into batches of at most batch_size x n_positions inputs, padding included.

    Raises:
        InputError: batch_size is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch size: must be 1 or more, got {batch_size}. Leave it out for 8.")
    batch: list[Row] = []
    for row in sorted(rows, key=lambda item: len(item[1])):
        if batch and (len(batch) + 1) * (len(row[1]) - 1) > batch_size * n_positions:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Let GPUs multiply float32 as it is. Composer has them round factors to TF32, in training and for `--nproc`."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def row_losses(gpt: torch.nn.Module, rows: Sequence[Sequence[int]], *, device: torch.device) -> NDArray[np.float64]:
    """Compute the summed loss of each row, in nats, by one forward pass over all rows.

    Rows are padded at the end, which a causal model cannot see.

    Returns:
        [num_rows]
    """
    import torch

    width = max(len(row) for row in rows) - 1
    padded = np.full((len(rows), width + 1), -100, np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    whole = torch.from_numpy(padded).to(device)
    with torch.no_grad(), in_float32():
        logits = gpt(input_ids=whole[:, :-1].clamp(min=0), use_cache=False).logits.flatten(0, 1)
        targets = whole[:, 1:].flatten()
        step = tokens_at_once(logits)
        losses = [
            torch.nn.functional.cross_entropy(part.float(), expected, ignore_index=-100, reduction="none")
            for part, expected in zip(logits.split(step), targets.split(step), strict=True)
        ]
    return torch.cat(losses).view(len(rows), width).double().sum(dim=1).cpu().numpy()


def tokens_at_once(logits: torch.Tensor) -> int:
    """Choose how many of the predicted tokens, [num_tokens, vocab_size], are computed together."""
    return max(1, _LOGITS_AT_ONCE["cpu" if logits.device.type == "cpu" else "cuda"] // logits.shape[1])


def _judge(
    loaded: LoadedGPT,
    texts: Iterable[str],
    *,
    batch_size: int,
    device: str | None = None,
    progress: ExamplesDone = lambda more: None,
    shared: bool,
    long: Long = "cut",
) -> TextResults:
    """Measure texts for a model and a set without names. With `shared`, processes of a launcher share the batches.

    Raises InputError: no text has a token to predict.
    """
    torch = import_extra("torch", extra="train", purpose="computing perplexity")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loaded.gpt.to(chosen).eval()
    n_positions = int(loaded.gpt.config.n_positions)
    rank, world_size = place_among_processes() if shared else (0, 1)
    loss_sums, measured, example_ids, is_long = [np.empty(0)], [], [], [np.empty(0, np.bool_)]
    for block in text_blocks(texts, _BLOCK_CHARACTERS):
        encoded = encode_texts(loaded, block)
        is_long.append(np.array([len(text.rows) > 1 for text in encoded], np.bool_))
        if long == "error":
            check_long(is_long[-1], long, "every text", n_positions)
        if long == "drop":
            encoded = [replace(text, rows=text.rows if len(text.rows) == 1 else []) for text in encoded]
        rows = ((example, row) for example, text in enumerate(encoded) for row in text.rows)
        sums = np.zeros(len(block))
        batches = list(in_batches(rows, batch_size=batch_size, n_positions=n_positions))
        for batch in batches[rank::world_size]:
            losses = row_losses(loaded.gpt, [row for _, row in batch], device=chosen)
            np.add.at(sums, [example for example, _ in batch], losses)
        loss_sums.append(np.sum(gather(sums), axis=0) if world_size > 1 else sums)
        measured += [(text.num_tokens, text.num_bytes) for text in encoded]
        example_ids += [example_hash(text) for text in block]
        progress(len(block))
    num_tokens, num_bytes = np.array(measured, np.int64).reshape(-1, 2).T
    kept, all_long = num_tokens > 0, np.concatenate(is_long)
    if long == "drop" and len(kept):
        check_long(all_long, long, "some text", n_positions)
    if not kept.any():
        raise InputError(f"perplexity needs at least one text with a token to predict, got none in {len(kept)} texts.")
    return TextResults(
        model={"name": ""},
        set_name="",
        example_ids=np.array(example_ids, np.uint64)[kept],
        loss_sums=np.concatenate(loss_sums)[kept],
        num_tokens=num_tokens[kept],
        num_bytes=num_bytes[kept],
        num_empty=int((~kept & ~all_long).sum()),
        long=all_long[kept],
        notes={"long": long, "long_dropped": int(all_long.sum()) if long == "drop" else 0},
    )


def text_blocks(texts: Iterable[str], least_characters: int) -> Iterator[list[str]]:
    """Group consecutive texts into blocks of at least so many characters; the last may have fewer."""
    for block in split_in_batches(enumerate(texts), least_characters):
        yield [text for _, text in block]


def place_among_processes() -> tuple[int, int]:
    """Return rank and world size; 0 and 1 without a launcher."""
    import torch.distributed as processes

    if not processes.is_available() or not processes.is_initialized():
        return 0, 1
    return processes.get_rank(), processes.get_world_size()


def gather(values: T) -> list[T]:
    """Collect the values of all processes of a launcher; all of them call this."""
    return import_extra("composer.utils.dist", extra="train", purpose="several processes").all_gather_object(values)
