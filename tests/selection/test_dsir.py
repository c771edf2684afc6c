"""DSIR: the draw by hand, weights against a plain computation, topics that are found, bad input."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.counting.embedded_examples import ExampleSources
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_scores import WindowScores
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.inspection import window_reading
from crisp_stream.loading.reader import read_windows
from crisp_stream.selection import dsir
from crisp_stream.selection.dsir import gumbel_top_k, heaviest_share, select_dsir
from crisp_stream.selection.hashed_ngrams import SMOOTHING
from tests.selection.test_hashed_ngrams import bucket, ngrams
from tests.support.synthetic import EOT_ID, write_synthetic_dataset
from tests.support.topics import TOPICS, WINDOWS, topic_dataset

MEDICINE = "the doctor of a patient with fever and a tumor"
FIRST_OF_MUSIC, FIRST_OF_COMPUTING = 70, 370


def quiet(_: str) -> None:
    """No progress."""


def task_of(folder: Path, *texts: str) -> ExampleSources:
    path = folder / "task.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return ExampleSources((str(path),), "text", None, None, (), "files")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Leaves of two medical topics (windows 0 to 69), music (to 369) and computing (to 389)."""
    return topic_dataset(tmp_path_factory.mktemp("topics") / "data")


def chance(order: tuple[int, ...], weights: list[float]) -> float:
    """Of drawing places in this order without replacement, each in proportion to its weight among those left."""
    left, product = sum(weights), 1.0
    for place in order:
        product *= weights[place] / left
        left -= weights[place]
    return product


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_draw_has_exactly_the_chances_of_drawing_without_replacement(count: int) -> None:
    weights, draws = [0.5, 4.0, 1.0, 2.5], 20_000
    found = Counter(tuple(gumbel_top_k(np.log(weights), count, seed=seed).tolist()) for seed in range(draws))
    for chosen in itertools.combinations(range(4), count):
        expected = sum(chance(order, weights) for order in itertools.permutations(chosen))
        spread = (expected * (1 - expected) / draws) ** 0.5
        assert abs(found[chosen] / draws - expected) < 4 * spread


def test_a_draw_depends_on_its_seed_alone_and_may_be_of_everything() -> None:
    weights = np.random.default_rng(0).normal(size=1000)
    first = gumbel_top_k(weights, 100, seed=3)
    np.testing.assert_array_equal(gumbel_top_k(weights + 7, 100, seed=3), first)  # not normalised
    assert len(np.intersect1d(first, gumbel_top_k(weights, 100, seed=4))) < 50
    assert gumbel_top_k(weights, 1000, seed=3).tolist() == list(range(1000))


def test_how_many_of_a_draw_are_the_heaviest_is_counted() -> None:
    assert heaviest_share(np.array([5.0, 1.0, 4.0, 3.0]), np.array([0, 1])) == 0.5
    assert heaviest_share(np.array([5.0, 1.0, 4.0, 3.0]), np.array([0, 2])) == 1.0


def test_weights_are_those_of_a_plain_computation(dataset: Dataset, tmp_path: Path) -> None:
    found = select_dsir(task_of(tmp_path, MEDICINE, "Fever!"), data=dataset.root, num_windows=5, processes=1, log=quiet)
    windows = read_windows(dataset, np.arange(dataset.manifest.num_windows))["tokens"]
    texts = [bytes(token for token in window if token < 256).decode() for window in windows.tolist()]
    of_corpus = Counter(bucket(ngram) for text in texts for ngram in ngrams(text))
    of_task = Counter(bucket(ngram) for text in (MEDICINE, "Fever!") for ngram in ngrams(text))

    def ratio(place: int) -> float:
        task, corpus = of_task[place] / of_task.total(), of_corpus[place] / of_corpus.total()
        return float(np.log(task + SMOOTHING) - np.log(corpus + SMOOTHING))

    plain = [sum(ratio(bucket(ngram)) for ngram in ngrams(text)) for text in texts]
    np.testing.assert_allclose(found.log_weights, plain, rtol=1e-9)
    facts = found.selection.provenance
    assert (facts["task_ngrams"], facts["corpus_ngrams"]) == (of_task.total(), of_corpus.total())
    assert (facts["examples"], facts["fitted_windows"], facts["inputs"]) == (2, 390, ["task.jsonl"])


def test_windows_on_the_topic_of_the_task_are_selected(dataset: Dataset, tmp_path: Path) -> None:
    found = select_dsir(task_of(tmp_path, MEDICINE), data=dataset.root, num_windows=60, processes=1, log=quiet)
    chosen = found.selection.windows
    assert len(chosen) == 60
    assert chosen.max() < FIRST_OF_MUSIC
    task = task_of(tmp_path, "a compiler and the kernel", "a pointer to the compiler")
    found = select_dsir(task, data=dataset.root, num_windows=20, processes=1, log=quiet)
    assert found.selection.windows.tolist() == list(range(FIRST_OF_COMPUTING, 390))


def test_one_process_and_two_give_the_same(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_reading, "_PART_BYTES", 2000)
    task = task_of(tmp_path, MEDICINE)
    one, two = (select_dsir(task, data=dataset.root, num_windows=40, processes=n, log=quiet) for n in (1, 2))
    assert one.selection == two.selection
    np.testing.assert_array_equal(one.log_weights, two.log_weights)


def test_the_size_of_parts_and_of_batches_changes_nothing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(tmp_path, MEDICINE, "fever")
    whole = select_dsir(task, data=dataset.root, num_windows=40, processes=1, log=quiet)
    monkeypatch.setattr(window_reading, "_PART_BYTES", 1)
    monkeypatch.setattr(window_reading, "_DECODED_WINDOWS", 3)
    monkeypatch.setattr(dsir, "_TASK_CHARACTERS", 1)
    parts = select_dsir(task, data=dataset.root, num_windows=40, processes=1, log=quiet)
    np.testing.assert_array_equal(whole.log_weights, parts.log_weights)
    assert parts.selection == whole.selection


def test_the_corpus_can_be_fitted_on_a_sample_spread_over_all_leaves(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dsir, "_RUN_WINDOWS", 2)
    task = task_of(tmp_path, MEDICINE)
    found = select_dsir(task, data=dataset.root, num_windows=60, fitted_windows=78, processes=1, log=quiet)
    # 39 runs of 2 at a distance of 10: none is cut by the end of a shard.
    assert found.selection.provenance["fitted_windows"] == 78
    assert found.selection.windows.max() < FIRST_OF_MUSIC
    parts = dsir._sampled_parts(dataset, 78)
    firsts = [int(dataset.first_window_per_shard[part.shard]) + part.start for part in parts]
    assert firsts == list(range(4, 390, 10))
    assert sum(part.num_windows for part in dsir._sampled_parts(dataset, 1)) == 1


def test_questions_count_with_their_right_answer(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": "Where is a fever?", "choices": ["tumor of the kidney", "violin concert"], "answer": 0}] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ExampleSources((str(path),), "text", None, "right", (), "files")
    found = select_dsir(task, data=dataset.root, num_windows=30, processes=1, log=quiet)
    assert found.selection.provenance["examples"] == 3
    assert found.selection.windows.min() >= WINDOWS[0]
    assert found.selection.windows.max() < FIRST_OF_MUSIC
    assert "kidney" in TOPICS[1]


@pytest.mark.parametrize("count", [0, 391])
def test_a_number_of_windows_outside_the_dataset_is_an_error(dataset: Dataset, tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match=rf"windows: must be 1 to 390, those of .*, got {count}\."):
        select_dsir(task_of(tmp_path, MEDICINE), data=dataset.root, num_windows=count, log=quiet)


def test_a_corpus_without_a_word_and_a_fit_on_nothing_are_errors(dataset: Dataset, tmp_path: Path) -> None:
    task = task_of(tmp_path, MEDICINE)
    empty = write_synthetic_dataset(tmp_path / "empty", {0: 3}, tokens=np.full((3, 32), EOT_ID, np.uint16))
    with pytest.raises(InputError, match=r"empty: must hold at least one word, got none in 3 windows\."):
        select_dsir(task, data=empty.root, num_windows=1, processes=1, log=quiet)
    with pytest.raises(InputError, match=r"fitted windows: must be at least 1, got 0\."):
        select_dsir(task, data=dataset.root, num_windows=5, fitted_windows=0, log=quiet)


def test_the_command_writes_selection_and_weights_and_prints_clusters_and_cost(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_of(tmp_path, MEDICINE).inputs[0]
    out, weights = tmp_path / "task.windows.parquet", tmp_path / "task.weights.parquet"
    command = ["select", "dsir", task, "--data", dataset.root, "--share", "0.1", "--processes", "1"]
    assert main([*command, "--out", str(out), "--weights", str(weights)]) == 0
    selection, scores = WindowSelection.load(out), WindowScores.load(weights)
    assert selection.num_selected == 39
    assert selection.provenance["method"] == scores.provenance["method"] == scores.name == "dsir"
    assert scores.dataset_fingerprint == dataset.manifest.fingerprint
    assert scores.scores[selection.windows].mean() > scores.scores[FIRST_OF_MUSIC:].max()
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["0", "70", "39", "55.71%", "100.00%"] in rows
    assert ["1", "300", "0", "0.00%", "0.00%"] in rows
    assert "39 of 390 windows (10.00%)" in printed
    assert "1 processes, no GPU" in printed


def test_the_command_wants_either_windows_or_a_share_that_is_one(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_of(tmp_path, MEDICINE).inputs[0]
    command = ["select", "dsir", task, "--data", dataset.root, "--out", str(tmp_path / "out.windows.parquet")]
    assert main([*command, "--share", "1.5"]) == 2
    assert "error: --share: must be above 0 and at most 1, got 1.5." in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "out.parquet"), "--windows", "5"]) == 2
    assert "--out: must end in .windows.parquet, by which mixtures know a selection, got " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(command)
    assert list(tmp_path.glob("*.parquet")) == []
