"""What `crisp-stream inspect` prints, in all its forms: text for people, in which no value looks like Python's."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.inspection.cluster import node_of_path
from crisp_stream.inspection.plain import facts_text, plain
from crisp_stream.inspection.summary import dataset_facts, describe_window
from tests.support.words import append_words, write_words

_LITERAL = re.compile(r"\b(None|True|False|nan|inf)\b|[\[\]{}]|\w\(\)|'|\"|np\.|<[a-z]")
_SUBJECTS = {
    "sea": "ship harbour sailor anchor storm wave captain island reef mast",
    "kitchen": "oven butter flour pepper onion kettle recipe spoon pastry bread",
    "court": "judge verdict lawyer witness appeal statute trial jury clause plaintiff",
}


def texts(seed: int, number: int) -> list[str]:
    """Documents of words that are no literals."""
    rng = random.Random(seed)
    subjects = list(_SUBJECTS.values())
    return [" ".join(rng.choices(f"{subjects[at % 3]} the of and was".split(), k=150)) for at in range(number)]


def write_file(path: Path, rows: list[str]) -> str:
    lines = [json.dumps({"id": f"{path.stem}-{at}", "text": text, "score": 0.75}) for at, text in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with options of many kinds, which has grown once."""
    folder = tmp_path_factory.mktemp("inspect")
    first = [*texts(0, 60), texts(0, 60)[0]]
    write_words(
        [write_file(folder / "a.jsonl", first)],
        folder / "root",
        id_column="id",
        dedup="exact",
        filters=("score >= 0.5",),
        limit=61,
        max_bad="5",
    )
    append_words([write_file(folder / "b.jsonl", texts(1, 30))], folder / "root", id_column="id")
    return folder / "root"


@pytest.fixture(scope="module")
def histogram(root: Path) -> Path:
    dataset = open_dataset(root)
    path = root.parent / "task.parquet"
    leaves = dataset.leaves.tolist()
    provenance = {"inputs": ["x.jsonl", "y.jsonl"], "limit": None, "answers": "right", "alike": {"exact": 0, "near": 0}}
    Histogram.from_leaves([leaves[0], leaves[0], leaves[-1]], dataset.tree, 2, provenance).save(path)
    return path


FORMS = {
    "dataset": ["{root}"],
    "another level": ["{root}", "--level", "2", "--top", "20"],
    "an older generation": ["{root}", "--generation", "0"],
    "a histogram": ["{histogram}"],
    "a histogram with its dataset": ["{histogram}", "--data", "{root}"],
    "a window": ["{root}", "--window", "7"],
    "a cluster": ["{root}", "--cluster", "0", "--n", "20"],
}


def printed(form: list[str], root: Path, histogram: Path, capsys: pytest.CaptureFixture[str]) -> str:
    arguments = [part.format(root=root, histogram=histogram) for part in form]
    assert main(["inspect", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("form", FORMS)
def test_nothing_that_is_printed_looks_like_python(
    form: str, root: Path, histogram: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(FORMS[form], root, histogram, capsys).replace("score >= 0.5", "")  # as it was asked
    assert len(out.splitlines()) > 3
    assert [line for line in out.splitlines() if _LITERAL.search(line)] == []


def test_all_of_the_provenance_is_there(root: Path, histogram: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(FORMS["dataset"], root, histogram, capsys)
    for expected in (
        r"documents +\d+\n",
        "exact duplicate",
        r"inputs +a\.jsonl\n",
        "score >= 0.5",
        r"appended 1 .*b\.jsonl",
    ):
        assert re.search(expected, out, re.DOTALL), expected
    assert max(map(len, out.splitlines())) < 260


def test_a_cluster_is_read_in_many_windows_that_begin_at_words(
    root: Path, histogram: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_dataset(root)
    level, node = 2, int(dataset.tree.node_of(int(dataset.leaves[-1]), 2))
    path = f"{node // dataset.manifest.arity}/{node % dataset.manifest.arity}"
    out = printed(["{root}", "--cluster", path, "--n", "20"], root, histogram, capsys)
    assert out.startswith(f"cluster {path} (level {level}, number {node}) of ")
    shown = [int(number) for number in re.findall(r"^window (\d+)$", out, re.MULTILINE)]
    assert len(shown) == min(20, len(shown)) > 1
    assert shown == sorted(set(shown))
    leaves = dataset.leaf_of_windows(np.array(shown))
    assert {int(dataset.tree.node_of(int(leaf), level)) for leaf in leaves} == {node}
    words = set(" ".join(texts(0, 60) + texts(1, 30)).split())
    beginnings = re.findall(r"^window \d+\n  (\w+) (\w+)", out, re.MULTILINE)
    assert len(beginnings) == len(shown)
    assert {word for words_of in beginnings for word in words_of} <= words
    assert printed(["{root}", "--cluster", str(node), "--level", "2", "--n", "20"], root, histogram, capsys) == out


def test_paths_that_the_tree_does_not_have_are_refused(root: Path, histogram: Path) -> None:
    dataset = open_dataset(root)
    assert node_of_path(dataset, "3/2") == (2, 14)
    assert node_of_path(dataset, "3") == (1, 3)
    for path, level, message in (
        ("a/b", None, "must be a path of numbers from the root, such as 0/10"),
        ("4/0", None, "must be at most 3 numbers of 0 to 3"),
        ("0/0/0/0", None, "must be at most 3 numbers"),
        ("0/1", 1, "--level: must be left out with a path"),
        ("16", 2, "must be 0 to 15 at level 2"),
    ):
        with pytest.raises(InputError, match=message):
            node_of_path(dataset, path, level=level)


def test_what_is_for_datasets_is_refused_with_a_histogram(histogram: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(histogram), "--cluster", "0"]) == 2
    assert "--cluster: must be given with a dataset, got the histogram" in capsys.readouterr().err
    assert main(["inspect", str(histogram), "--n", "0"]) == 2


def test_the_text_of_a_window_begins_at_a_word_and_says_what_stands_before(root: Path) -> None:
    dataset = open_dataset(root)
    words, kinds = set(" ".join(texts(0, 60) + texts(1, 30)).split()), set()
    for window in range(dataset.manifest.num_windows):
        page = describe_window(dataset, window)
        head, _, text = page.partition("\n\n")
        assert text.split()[0] in words
        [*before] = re.findall(r"before the text +(\S+) \(perhaps the end of a word", head)
        starts = re.search(r"from token    0 .*, its tokens 0 to ", head) is not None
        assert len(before) <= (0 if starts else 1)
        kinds.add(starts)
    assert kinds == {True, False}


def test_values_are_plain() -> None:
    assert [plain(value) for value in (None, [], {}, "", True, 1234, 0.25, "a")] == [
        *"----",
        "yes",
        "1,234",
        "0.25",
        "a",
    ]
    assert plain({"a": None, "b": [1, 2]}) == "b 1, 2"
    lines = facts_text([("levels", [{"level": 1}, {"level": 2}]), ("tree", {"like": {"of": "x"}})]).splitlines()
    assert [line.split() for line in lines] == [
        ["levels", "1", "level", "1"],
        ["levels", "2", "level", "2"],
        ["tree", "like", "of", "x"],
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "first 32 word pieces of a window"),
        ({"reads": "all"}, "all of a window, 32 word pieces at once"),
        ({"max_length": 0, "pooling": "static"}, "all of a window"),
    ],
)
def test_what_the_encoder_reads_is_said(root: Path, changes: dict[str, object], expected: str) -> None:
    dataset: Dataset = open_dataset(root)
    known: dict[str, object] = {"name": "e", "weights_sha256": "0" * 64, "max_length": 32, "pooling": "mean", "dim": 4}
    object.__setattr__(dataset.manifest, "encoder", EncoderRecord(**{**known, **changes}))  # type: ignore[arg-type]
    assert dataset_facts(dataset)["encoder"] == f"e, {expected}"
