"""Perplexity against a plain computation, and multiple choice through the real lm-eval."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from crisp_stream.checkpoint import LoadedGPT, load_gpt
from crisp_stream.errors import InputError, StorageError
from crisp_stream.evaluate import evaluate, multiple_choice
from crisp_stream.evaluation.perplexity import example_rows, perplexity
from crisp_stream.export import export
from crisp_stream.questions import read_questions
from tests.small_runs import SmallRun, small_run

TEXTS = ["a short one", "b", "longer than the context of thirty-two tokens, and then some", "x" * 64, "q" * 33]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def checkpoint(done: SmallRun) -> str:
    return str(done.checkpoint(12))


def plain_example_loss(loaded: LoadedGPT, text: str) -> tuple[float, int]:
    """Token by token, without batches: (summed loss, tokens)."""
    tokens = [256, *loaded.tokenizer.encode(text)]
    losses = []
    for position in range(1, len(tokens)):
        start = (position - 1) // 32 * 32
        with torch.no_grad():
            logits = loaded.gpt(torch.tensor([tokens[start:position]])).logits[0, -1]
        losses.append(-torch.log_softmax(logits.double(), dim=-1)[tokens[position]].item())
    return sum(losses), len(losses)


def test_perplexity_equals_a_plain_computation(checkpoint: str) -> None:
    loaded = load_gpt(checkpoint)
    plain = [plain_example_loss(loaded, text) for text in TEXTS]
    result = perplexity(checkpoint, TEXTS)
    np.testing.assert_allclose(result.example_losses, [loss / tokens for loss, tokens in plain], rtol=1e-5)
    assert result.perplexity == pytest.approx(math.exp(np.mean([loss / tokens for loss, tokens in plain])), rel=1e-5)
    total_loss, total_tokens = map(sum, zip(*plain, strict=True))
    assert result.token_level_perplexity == pytest.approx(math.exp(total_loss / total_tokens), rel=1e-5)
    assert (result.num_examples, result.num_tokens, result.num_empty) == (5, total_tokens, 0)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_does_not_matter(checkpoint: str, batch_size: int) -> None:
    losses = perplexity(checkpoint, TEXTS, batch_size=batch_size).example_losses
    np.testing.assert_allclose(losses, perplexity(checkpoint, TEXTS).example_losses, rtol=1e-5)


def test_an_exported_folder_is_judged_like_its_checkpoint(checkpoint: str, tmp_path: Path) -> None:
    folder = export(checkpoint, tmp_path / "model")
    assert perplexity(folder, TEXTS).perplexity == perplexity(checkpoint, TEXTS).perplexity


def test_training_lowers_the_perplexity_of_text_like_the_corpus(done: SmallRun) -> None:
    texts = ["".join(chr(97 + (7 * i + j * j) % 26) for j in range(40)) for i in range(8)]
    assert perplexity(done.checkpoint(12), texts).perplexity < perplexity(done.checkpoint(4), texts).perplexity / 2


def test_every_token_is_predicted_once() -> None:
    tokens = list(range(100, 170))
    for context, first in ((7, 0), (None, 1)):
        rows = example_rows(tokens, context_token=context, n_positions=32)
        assert [token for row in rows for token in row[1:]] == tokens[first:]
        assert all(2 <= len(row) <= 33 for row in rows)
    assert example_rows([], context_token=7, n_positions=32) == []
    assert example_rows([1], context_token=None, n_positions=32) == []


def test_a_model_of_separate_documents_is_given_the_first_token(checkpoint: str) -> None:
    loaded = load_gpt(checkpoint)
    separate = LoadedGPT(gpt=loaded.gpt, tokenizer=loaded.tokenizer, provenance={"packing": "document"})
    result = perplexity(separate, [*TEXTS, "", "z"])
    assert result.num_tokens == perplexity(loaded, TEXTS).num_tokens - len(TEXTS)
    assert (result.num_examples, result.num_empty) == (4, 3)


def test_end_of_text_inside_a_text_is_plain_text(checkpoint: str) -> None:
    assert perplexity(checkpoint, ["<|endoftext|>"]).num_tokens == len("<|endoftext|>")


def test_nothing_to_judge_is_an_error(checkpoint: str) -> None:
    with pytest.raises(InputError, match="no text was given"):
        perplexity(checkpoint, [])
    with pytest.raises(InputError, match="none of the 2 texts has a token to predict"):
        perplexity(checkpoint, ["", ""])
    with pytest.raises(InputError, match="batch_size must be 1 or more"):
        perplexity(checkpoint, TEXTS, batch_size=0)


def test_two_checkpoints_are_compared_in_a_table(
    done: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "held.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    names = [str(done.checkpoint(12)), str(done.checkpoint(4))]
    first, second = evaluate(names, [str(path)], text_column="body", limit=4)
    assert first.num_examples == second.num_examples == 4
    table = capsys.readouterr().out
    assert f"{first.perplexity:.3f}" in table
    assert f"first / second: {first.perplexity / second.perplexity:.4f}" in table
    assert "the first is better on" in table
    with pytest.raises(InputError, match="takes one checkpoint, or two"):
        evaluate([*names, names[0]], [str(path)])


def write_questions(path: Path) -> list[tuple[str, list[str], int]]:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(20):
        choices = ["".join(map(chr, rng.integers(97, 123, rng.integers(1, 8)))) for _ in range(rng.integers(2, 5))]
        rows.append(("".join(map(chr, rng.integers(97, 123, 6))), choices, int(rng.integers(len(choices)))))
    lines = (json.dumps({"question": q, "choices": c, "answer": a}) + "\n" for q, c, a in rows)
    path.write_text("".join(lines))
    return rows


def test_multiple_choice_equals_a_plain_computation(checkpoint: str, tmp_path: Path) -> None:
    rows = write_questions(tmp_path / "questions.jsonl")
    loaded = load_gpt(checkpoint)
    right, right_norm = [], []
    for question, choices, answer in rows:
        scores = []
        for choice in choices:
            prompt = f"Question: {question}\nAnswer:"
            context, whole = (loaded.tokenizer.encode(text) for text in (prompt, f"{prompt} {choice}"))
            kept = torch.tensor([whole[-33:]])
            with torch.no_grad():
                logs = torch.log_softmax(loaded.gpt(kept[:, :-1]).logits.double(), dim=-1)
            scored = len(whole) - len(context)
            scores.append(logs[0, -scored:].gather(1, kept[0, -scored:, None]).sum().item())
        right.append(int(np.argmax(scores)) == answer)
        right_norm.append(int(np.argmax(np.array(scores) / [len(choice) for choice in choices])) == answer)
    result = multiple_choice(checkpoint, tmp_path / "questions.jsonl")
    assert result.num_questions == 20
    assert result.acc == pytest.approx(np.mean(right))
    assert result.acc_norm == pytest.approx(np.mean(right_norm))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ('{"question": "q", "choices": ["a", "b"]}', "a question needs the keys question, choices and answer"),
        ('{"question": "", "choices": ["a", "b"], "answer": 0}', "question must be text"),
        ('{"question": "q", "choices": "ab", "answer": 0}', "choices must be a list of texts"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "a question needs at least two choices, got 1"),
        (
            '{"question": "q", "choices": ["a", "b"], "answer": 2}',
            "answer must be the index of a choice, 0 to 1",
        ),
        ('{"question": "q", "choices": ["a", "b"], "answer": "B"}', "answer must be the index of a choice"),
    ],
)
def test_a_bad_question_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "q", "choices": ["a", "b"], "answer": 1}\n\n' + line + "\n")
    with pytest.raises(InputError, match=f"questions.jsonl:3: {message}"):
        read_questions(path)


def test_a_file_without_questions_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no questions"):
        read_questions(tmp_path / "empty.jsonl")
    with pytest.raises(StorageError, match=r"none\.jsonl"):
        read_questions(tmp_path / "none.jsonl")


def test_questions_may_be_compressed(tmp_path: Path) -> None:
    rows = write_questions(tmp_path / "questions.jsonl")
    for suffix, codec in ((".gz", "gzip"), (".zst", "zstd")):
        path = tmp_path / f"questions.jsonl{suffix}"
        with pa.CompressedOutputStream(str(path), codec) as stream:
            stream.write((tmp_path / "questions.jsonl").read_bytes())
        assert [row.question for row in read_questions(path)] == [question for question, _, _ in rows]
        assert len(read_questions(path, limit=3)) == 3
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    with pytest.raises(InputError, match="is not gzip"):
        read_questions(tmp_path / "plain.jsonl.gz")
