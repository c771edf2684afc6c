"""Judging a model: the paper's perplexity on held-out text, and multiple-choice questions through lm-eval.

Perplexity is exp of the mean over examples of the mean token loss of each example (CRISP, Sec. 3.1), so a short text
counts as much as a long one; the token-level perplexity, where every token counts the same, is reported beside it.
What the paper leaves open is decided here:

* A model trained on joined documents saw end-of-text before every document, so each text is preceded by it, and every
  token of the text is predicted. A model trained with packing "document" never saw that, so its first token is given.
* No end-of-text is predicted at the end: a text may be an excerpt.
* A text longer than the context is cut into non-overlapping runs; each token is predicted exactly once, and the text's
  loss is the mean over all of them.

Everything is computed in float32, whatever the training precision, in batches of similar length; the batch size changes
results by rounding only.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.checkpoint import LoadedGPT, load_gpt
from crisp_stream.errors import InputError, import_extra
from crisp_stream.questions import read_questions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """Perplexity of one model on one set of texts."""

    perplexity: float
    """exp of the mean over examples of their mean token loss (CRISP, Sec. 3.1)."""

    token_level_perplexity: float
    """exp of the mean loss over all tokens."""

    num_examples: int
    """Texts that had a token to predict."""

    num_tokens: int
    """Tokens predicted."""

    num_empty: int
    """Texts without a token to predict, left out."""

    example_losses: NDArray[np.float64]
    """[num_examples], nats per token, in the order of the texts."""


@dataclass(frozen=True, kw_only=True)
class MCQResult:
    """Accuracy on multiple-choice questions, zero-shot."""

    acc: float
    """Share of questions whose right answer has the highest log probability."""

    acc_norm: float
    """The same with log probabilities divided by the answer's length in characters (CRISP, App. D)."""

    num_questions: int


def example_rows(tokens: Sequence[int], *, context_token: int | None, n_positions: int) -> list[list[int]]:
    """Cut one tokenised text into runs for the model: the inputs are `row[:-1]`, the predictions `row[1:]`.

    Args:
        tokens: token ids of the text.
        context_token: stands before the text and is not predicted. None: the text's first token is not predicted.
        n_positions: context limit.

    Returns:
        Rows of 2 to n_positions + 1 tokens; a row begins with the last token of the row before it. Empty if there is
        nothing to predict.
    """
    sequence = list(tokens) if context_token is None else [context_token, *tokens]
    return [sequence[start : start + n_positions + 1] for start in range(0, len(sequence) - 1, n_positions)]


def row_losses(gpt: torch.nn.Module, rows: Sequence[Sequence[int]], *, device: torch.device) -> NDArray[np.float64]:
    """Summed loss of each row, in nats: one forward pass over all of them.

    Rows are padded at the end, which a causal model cannot see.

    Returns:
        [num_rows]
    """
    import torch

    width = max(len(row) for row in rows) - 1
    inputs = torch.zeros((len(rows), width), dtype=torch.int64)
    targets = torch.full((len(rows), width), -100, dtype=torch.int64)
    for index, row in enumerate(rows):
        inputs[index, : len(row) - 1] = torch.tensor(row[:-1])
        targets[index, : len(row) - 1] = torch.tensor(row[1:])
    with torch.no_grad():
        logits = gpt(input_ids=inputs.to(device), use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.to(device).flatten(), ignore_index=-100, reduction="none"
        )
    return losses.view(len(rows), width).double().sum(dim=1).cpu().numpy()


def context_token_of(loaded: LoadedGPT) -> int | None:
    """The token that stands before a text: end-of-text, or None for a model trained on separate documents."""
    if loaded.provenance.get("packing") == "document":
        return None
    eot_id = loaded.gpt.config.eos_token_id
    if not isinstance(eot_id, int):
        raise InputError("the model's config.json names no eos_token_id. Export it again with crisp-stream.")
    return eot_id


def perplexity(
    checkpoint: str | Path | LoadedGPT, texts: Iterable[str], *, batch_size: int = 8, device: str | None = None
) -> PerplexityResult:
    """Perplexity of a model on texts (CRISP, Sec. 3.1; see the top of this file for what exactly is predicted).

    Args:
        checkpoint: a Composer `.pt` file, an exported folder, or a loaded model.
        texts: the examples; at least one must have a token to predict.
        batch_size: rows per forward pass; of the context length at most.
        device: torch device. Default: a GPU if there is one.

    Raises:
        InputError: no text, or none with a token to predict.
        FormatError: not a checkpoint of a GPT-2 model.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, got {batch_size}.")
    loaded = checkpoint if isinstance(checkpoint, LoadedGPT) else load_gpt(str(checkpoint))
    torch = import_extra("torch", extra="train", purpose="computing perplexity")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    encoded = encode_examples(loaded, texts)
    loaded.gpt.to(chosen).eval()
    rows = [(example, row) for example, rows_ in enumerate(encoded) for row in rows_]
    if not rows:
        problem = "no text was given" if not encoded else f"none of the {len(encoded)} texts has a token to predict"
        raise InputError(f"perplexity needs at least one text: {problem}.")
    rows.sort(key=lambda item: len(item[1]))
    loss_sums = np.zeros(len(encoded))
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        sums = row_losses(loaded.gpt, [row for _, row in batch], device=chosen)
        np.add.at(loss_sums, [example for example, _ in batch], sums)
    tokens_per_example = np.array([sum(len(row) - 1 for row in rows_) for rows_ in encoded])
    return summarise(loss_sums, tokens_per_example)


def encode_examples(loaded: LoadedGPT, texts: Iterable[str]) -> list[list[list[int]]]:
    """The rows of each text; special tokens in the text count as plain text."""
    context_token = context_token_of(loaded)
    n_positions = int(loaded.gpt.config.n_positions)
    encoded = []
    for text in texts:
        tokens = loaded.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        encoded.append(example_rows(tokens, context_token=context_token, n_positions=n_positions))
    return encoded


def summarise(loss_sums: NDArray[np.float64], tokens_per_example: NDArray[np.int64]) -> PerplexityResult:
    """Perplexities from each example's summed loss and token count; examples without tokens are left out."""
    kept = tokens_per_example > 0
    losses = loss_sums[kept] / tokens_per_example[kept]
    num_tokens = int(tokens_per_example.sum())
    return PerplexityResult(
        perplexity=math.exp(losses.mean()),
        token_level_perplexity=math.exp(loss_sums[kept].sum() / num_tokens),
        num_examples=int(kept.sum()),
        num_tokens=num_tokens,
        num_empty=int((~kept).sum()),
        example_losses=losses,
    )


def evaluate(
    checkpoints: Sequence[str],
    inputs: Sequence[str],
    *,
    text_column: str = "text",
    limit: int | None = None,
    batch_size: int = 8,
) -> list[PerplexityResult]:
    """Perplexity of one or two checkpoints on the same held-out documents, printed as a table.

    Args:
        checkpoints: one, or two to compare.
        inputs: files, folders or globs of documents, as for `crisp-stream write`.
        text_column: field or column that holds the text.
        limit: most documents to use. None: all.

    Returns:
        One result per checkpoint.

    Raises:
        InputError: no documents, more than two checkpoints, or two whose perplexities cannot be compared.
    """
    from crisp_stream.writers.documents import DropCounts, read_documents

    if not 1 <= len(checkpoints) <= 2:
        raise InputError(f"evaluation takes one checkpoint, or two to compare; got {len(checkpoints)}.")
    texts = list(read_documents(inputs, text_column=text_column, limit=limit, counts=DropCounts()))
    loaded = [load_gpt(checkpoint) for checkpoint in checkpoints]
    if len({context_token_of(one) is None for one in loaded}) == 2:
        raise InputError(
            "the two models were trained with different packings, so their first tokens are not predicted alike. "
            "Evaluate them one by one."
        )
    results = [perplexity(one, texts, batch_size=batch_size) for one in loaded]
    print(comparison_table(checkpoints, results))
    same_vocabulary = len({json.dumps(one.tokenizer.get_vocab(), sort_keys=True) for one in loaded}) == 1
    if not same_vocabulary:
        print("The two models have different tokenizers: losses per token are not comparable.")
    return results


def comparison_table(names: Sequence[str], results: Sequence[PerplexityResult]) -> str:
    """The results as text; with two, also their ratio and on how many texts the first is better."""
    width = max(len("checkpoint"), *(len(name) for name in names))
    lines = [f"{'checkpoint':<{width}}  perplexity  token-level  examples      tokens"]
    for name, result in zip(names, results, strict=True):
        lines.append(
            f"{name:<{width}}  {result.perplexity:>10.3f}  {result.token_level_perplexity:>11.3f}"
            f"  {result.num_examples:>8,}  {result.num_tokens:>10,}"
        )
    if results[0].num_empty:
        lines.append(f"{results[0].num_empty:,} texts had no token to predict and were left out.")
    if len(results) == 2:
        first, second = results
        lines.append(f"first / second: {first.perplexity / second.perplexity:.4f}")
        if len(first.example_losses) == len(second.example_losses):
            better = float((first.example_losses < second.example_losses).mean())
            lines.append(f"the first is better on {better:.1%} of the texts")
    return "\n".join(lines)


_TASK = """\
task: crisp_mcq
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
output_type: multiple_choice
test_split: test
num_fewshot: 0
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


def multiple_choice(
    checkpoint: str | Path, questions: str | Path, *, limit: int | None = None, batch_size: int = 8
) -> MCQResult:
    """Zero-shot accuracy through lm-eval, with the ARC prompt of the paper's Table 7.

    The prompt is `Question: <question>`, a new line, `Answer: <choice>`; each choice is scored by its log probability.

    Args:
        checkpoint: a Composer `.pt` file or an exported folder.
        questions: JSONL, see `read_questions`.
        limit: most questions to ask. None: all.

    Raises:
        InputError: bad questions. FormatError: not a checkpoint of a GPT-2 model.
    """
    from crisp_stream.export import export

    rows = read_questions(questions, limit=limit)
    lm_eval = import_extra("lm_eval", extra="eval", purpose="multiple-choice evaluation")
    tasks = import_extra("lm_eval.tasks", extra="eval", purpose="multiple-choice evaluation")
    torch = import_extra("torch", extra="eval", purpose="multiple-choice evaluation")
    with tempfile.TemporaryDirectory(prefix="crisp-mcq-") as name:
        folder = Path(name)
        model = Path(checkpoint) if Path(checkpoint).is_dir() else export(str(checkpoint), folder / "model")
        data = folder / "questions.jsonl"
        data.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows), encoding="utf-8")
        (folder / "tasks").mkdir()
        text = _TASK.format(data=json.dumps(str(data)), cache=json.dumps(str(folder / "cache")))
        (folder / "tasks" / "crisp_mcq.yaml").write_text(text, encoding="utf-8")
        output = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": "float32"},
            tasks=["crisp_mcq"],
            task_manager=tasks.TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
            batch_size=batch_size,
            device="cuda" if torch.cuda.is_available() else "cpu",
            bootstrap_iters=0,
            log_samples=False,
        )
    scores = output["results"]["crisp_mcq"]
    return MCQResult(acc=float(scores["acc,none"]), acc_norm=float(scores["acc_norm,none"]), num_questions=len(rows))
