"""Judging checkpoints from the command line, and multiple-choice questions through lm-eval."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crisp_stream.checkpoint import load_gpt
from crisp_stream.errors import InputError, import_extra
from crisp_stream.evaluation.perplexity import PerplexityResult, context_token_of, perplexity
from crisp_stream.questions import read_questions


@dataclass(frozen=True, kw_only=True)
class MCQResult:
    """Accuracy on multiple-choice questions, zero-shot."""

    acc: float
    """Share of questions whose right answer has the highest log probability."""

    acc_norm: float
    """The same with log probabilities divided by the answer's length in characters (CRISP, App. D)."""

    num_questions: int


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
