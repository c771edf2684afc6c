"""A task embedded once: what is counted from it, what is kept of it, and what a damaged file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.counting import embedded_examples
from crisp_stream.counting.count_examples import count_examples
from crisp_stream.counting.task_embeddings import TaskEmbeddings, embed_task, histogram_of_task
from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.writers.write import WriteReport
from tests.support.written_dataset import text_file, written

__all__ = ["text_file", "written"]  # fixtures

TEXTS = ["The import statement finds a module.", "Loops repeat.", "", "A class has a metaclass. " * 30, "Break."]


def quiet(line: str) -> None:
    """Takes log lines."""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    rows = [
        {"question": "What does import find?", "choices": ["a module", "a loop"], "answer": 0},
        {"question": "What has a metaclass?", "choices": ["a loop", "a class", "a name"], "answer": 1},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "asked", [{}, {"limit": 2}, {"packing": "joined"}, {"answers": "right"}, {"answers": "all"}], ids=str
)
def test_a_histogram_of_embeddings_is_that_of_the_examples(
    written: tuple[Path, WriteReport],
    task_file: Path,
    question_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
) -> None:
    monkeypatch.setattr(embedded_examples, "EXAMPLE_BATCH_CHARACTERS", 60)  # several batches
    dataset = open_dataset(written[0])
    inputs, asked = [str(question_file if "answers" in asked else task_file)], {"processes": 1, **asked}
    task = embed_task(inputs, dataset, log=quiet, **asked)
    for level in (1, 3):
        counted = count_examples(inputs, data=dataset.root, level=level, log=quiet, **asked)
        ours = histogram_of_task(task, dataset, level, log=quiet)
        assert ours.fingerprint == counted.fingerprint
        for name in ("nodes", "counts", "examples", "proportions"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(counted, name))
        cosines = [one.provenance["cosine"] for one in (ours, counted)]
        assert cosines[0] == pytest.approx(cosines[1], abs=2e-4)  # kept embeddings are of norm 1, not float16
        assert ours.provenance | {"cosine": 0} == counted.provenance | {"cosine": 0}
        assert ours.provenance["example_hashes"]["number"] == ours.provenance["examples"] > 1


def test_batches_may_come_in_any_order(
    written: tuple[Path, WriteReport], task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from several processes, which take seconds to start."""
    dataset = open_dataset(written[0])
    in_order = embed_task([str(task_file)], dataset, processes=1, log=quiet)
    monkeypatch.setattr(embedded_examples, "EXAMPLE_BATCH_CHARACTERS", 60)
    monkeypatch.setattr(embedded_examples, "map_unordered", lambda work, tasks, processes: map(work, list(tasks)[::-1]))
    task = embed_task([str(task_file)], dataset, log=quiet)
    np.testing.assert_array_equal(task.examples, in_order.examples)
    np.testing.assert_allclose(task.embeddings, in_order.embeddings, atol=2e-3)
    assert task.provenance == in_order.provenance


def test_a_histogram_of_given_embeddings_is_that_of_their_files(
    written: tuple[Path, WriteReport], task_file: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(written[0])
    np.save(tmp_path / "e.npy", embed_task([str(task_file)], dataset, processes=1, log=quiet).embeddings)
    inputs = [str(tmp_path / "e.npy")]
    counted = count_examples(inputs, data=dataset.root, level=2, log=quiet)
    ours = histogram_of_task(embed_task(inputs, dataset, log=quiet), dataset, 2, log=quiet)
    assert (ours.fingerprint, ours.provenance) == (counted.fingerprint, counted.provenance)


def test_what_was_saved_is_loaded_bit_for_bit_and_counts_the_same(
    written: tuple[Path, WriteReport], task_file: Path, tmp_path: Path
) -> None:
    dataset, path = open_dataset(written[0]), tmp_path / "kept" / "task.parquet"
    task = embed_task([str(task_file)], dataset, processes=1, log=quiet)
    assert task.embeddings.dtype == np.float32
    task.save(path)
    loaded = TaskEmbeddings.load(path)
    assert loaded.embeddings.dtype == np.float32
    assert loaded.embeddings.tobytes() == task.embeddings.tobytes()
    np.testing.assert_array_equal(loaded.examples, task.examples)
    assert loaded.provenance == task.provenance
    one, other = (histogram_of_task(each, dataset, 3, log=quiet) for each in (task, loaded))
    assert (one.fingerprint, one.provenance) == (other.fingerprint, other.provenance)
    assert [file.name for file in path.parent.iterdir()] == ["task.parquet"]


def test_alike_examples_are_counted_said_and_kept_together(written: tuple[Path, WriteReport], tmp_path: Path) -> None:
    path, lines = tmp_path / "twice.jsonl", list[str]()
    texts = [TEXTS[0], TEXTS[1], TEXTS[3], TEXTS[0].upper(), TEXTS[3] + "Loops repeat."]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    dataset = open_dataset(written[0])
    task = embed_task([str(path)], dataset, processes=1, log=lines.append)
    said = "2 of 5 examples are like an earlier one (1 of the same words, 1 near-duplicates)"
    assert any(line.startswith(said) for line in lines)
    assert set(task.groups.tolist()) == {0, 1, 2} < set(task.examples.tolist())
    task.save(tmp_path / "task.parquet")
    assert TaskEmbeddings.load(tmp_path / "task.parquet").groups.tolist() == task.groups.tolist()
    counted = count_examples([str(path)], data=dataset, level=2, processes=1, log=quiet)
    assert counted.examples is not None
    assert set(counted.examples.tolist()) == {0, 1, 2}
    assert counted.provenance["alike_examples"] == {"exact": 1, "near": 1, "groups": 3}
    np.save(tmp_path / "rows.npy", np.repeat(task.embeddings[:2], 3, axis=0))
    counted = count_examples([str(tmp_path / "rows.npy")], data=dataset, level=2, log=quiet)
    assert counted.provenance["alike_examples"] == {"exact": 4, "near": 0, "groups": 2}


def test_a_level_the_tree_does_not_have_is_refused(written: tuple[Path, WriteReport], task_file: Path) -> None:
    dataset = open_dataset(written[0])
    task = embed_task([str(task_file)], dataset, processes=1, log=quiet)
    with pytest.raises(InputError, match=r"level: must be 1 to 3, the depth of the tree of .*, got 4"):
        histogram_of_task(task, dataset, 4, log=quiet)


def small_task() -> TaskEmbeddings:
    rows = np.eye(6, 4, dtype=np.float32)
    return TaskEmbeddings(embeddings=rows, examples=np.arange(6), provenance={"inputs": ["task.jsonl"]})


@pytest.mark.parametrize("kept", [0, 3, 60, -20, -1])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "task.parquet"
    small_task().save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FormatError, match=r"task.parquet: not embeddings of a task, or damaged .*Count the examples"):
        TaskEmbeddings.load(path)


def test_a_byte_that_changed_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path, task = tmp_path / "task.parquet", small_task()
    task.save(path)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            loaded = TaskEmbeddings.load(path)
        except FormatError:
            refused += 1
            continue
        assert loaded.embeddings.tobytes() == task.embeddings.tobytes(), place
        np.testing.assert_array_equal(loaded.examples, task.examples)
    assert refused > len(content) // 4


def test_another_file_and_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.parquet"
    pq.write_table(pa.table({"example": [0], "embedding": [[1.0]]}), path)
    with pytest.raises(FormatError, match="not embeddings of a task"):
        TaskEmbeddings.load(path)
    small_task().save(path)
    table = pq.read_table(path)
    told = {key: value.replace(b'"version": 1', b'"version": 2') for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(told), path)
    with pytest.raises(FormatError, match=r"version 2 is not 1\. Upgrade crisp-stream"):
        TaskEmbeddings.load(path)
