"""Classifier and nearest neighbours on small cases worked by hand, and the command on real text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.counting.task_embeddings import TaskEmbeddings
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.selection.classifier import REGULARISATIONS, fit_classifier, select_by_classifier
from crisp_stream.selection.nearest import nearest_scores, select_nearest
from crisp_stream.selection.scores import QUANTILES, select_above, threshold_of
from tests.support.synthetic import DIM, write_synthetic_dataset


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def task_of(embeddings: np.ndarray, examples: np.ndarray | None = None) -> TaskEmbeddings:
    numbers = np.arange(len(embeddings)) if examples is None else examples
    return TaskEmbeddings(embeddings=unit(embeddings), examples=numbers, provenance={"inputs": ["task.jsonl"]})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("scores") / "data", {0: 400, 5: 300, 9: 300})


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    """1,000 windows: the first 100 lie around the first axis, where the task is."""
    rows = np.random.default_rng(0).normal(size=(1000, DIM))
    rows[:100, 0] += 6
    return unit(rows).astype(np.float16)


@pytest.fixture(scope="module")
def task() -> TaskEmbeddings:
    rows = np.random.default_rng(1).normal(size=(60, DIM))
    rows[:, 0] += 6
    return task_of(rows)


def test_the_ranges_are_those_of_table_5() -> None:
    assert REGULARISATIONS == (None, 1000, 100, 10, 1, 0.1, 0.01, 0.001)
    assert QUANTILES == (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.975, 0.98, 0.9875, 0.99, 0.995, 0.9975)


@pytest.mark.parametrize(
    ("quantile", "threshold", "above"),
    [(0, float("-inf"), 8), (0.125, 1, 7), (0.5, 4, 4), (0.75, 6, 2), (0.76, 7, 1), (0.875, 7, 1)],
)
def test_a_threshold_leaves_the_share_above_its_quantile(quantile: float, threshold: float, above: int) -> None:
    scores = np.array([3, 8, 1, 6, 2, 7, 4, 5], np.float32)
    found = threshold_of(scores, quantile)
    assert found == threshold
    assert (scores > found).sum() == above


@pytest.mark.parametrize("quantile", QUANTILES)
def test_a_quantile_of_a_round_number_of_scores_selects_exactly_the_rest(quantile: float) -> None:
    scores = np.random.default_rng(0).permutation(10_000).astype(np.float32)
    assert (scores > threshold_of(scores, quantile)).sum() == round((1 - quantile) * 10_000)


def test_equal_scores_stand_on_one_side_of_the_threshold(dataset: Dataset) -> None:
    scores = np.zeros(1000, np.float32)
    scores[[7, 500]] = 1
    selection = select_above(scores, threshold_of(scores, 0.9), dataset, {"method": "by hand"})
    assert selection.windows.tolist() == [7, 500]
    assert selection.provenance == {"method": "by hand", "threshold": 0.0}
    with pytest.raises(InputError, match=r"must have a score above 1, got at most 1\. Use a lower quantile"):
        select_above(scores, threshold_of(scores, 0.999), dataset, {})
    with pytest.raises(InputError, match="quantile: must be at least 0 and below 1, got 1"):
        threshold_of(scores, 1)


def test_one_dimension_gives_the_odds_that_can_be_worked_out() -> None:
    """Positives at 1 in 3 of 4 cases, negatives at 1 in 1 of 4: without a penalty the log odds at ±1 are ±ln 3."""
    rows = np.array([[1], [1], [1], [-1]] * 50, np.float32)
    task = TaskEmbeddings(embeddings=rows, examples=np.arange(200), provenance={})
    corpus = -rows
    found = fit_classifier(task, corpus, regularisations=[None], num_negatives=200)
    assert found.weights == pytest.approx([np.log(3)], abs=1e-3)
    assert found.intercept == pytest.approx(0, abs=1e-3)
    assert found.scores(np.array([[1], [-1]])) == pytest.approx([np.log(3), -np.log(3)], abs=2e-3)
    # The entropy of 1 in 4, and the pairs of which the task's is higher, ties counting half.
    assert found.chosen.log_loss == pytest.approx(0.5623, abs=0.12)
    assert found.chosen.auc == pytest.approx(9 / 16 + 3 / 16, abs=0.12)
    assert (found.positives, found.negatives) == (200, 200)


def test_more_negatives_do_not_move_the_odds() -> None:
    rows = np.array([[1], [1], [1], [-1]] * 50, np.float32)
    task = TaskEmbeddings(embeddings=rows, examples=np.arange(200), provenance={})
    found = fit_classifier(task, np.tile(-rows, (20, 1)), regularisations=[None])
    assert found.negatives == 4000  # all, as there are fewer than 10,000
    assert found.weights == pytest.approx([np.log(3)], abs=1e-3)


def test_a_smaller_c_is_a_stronger_penalty_and_the_least_log_loss_is_chosen(
    task: TaskEmbeddings, corpus: np.ndarray
) -> None:
    norms = [
        float(np.linalg.norm(fit_classifier(task, corpus, regularisations=[strength]).weights))
        for strength in REGULARISATIONS
    ]
    assert norms == sorted(norms, reverse=True)
    found = fit_classifier(task, corpus)
    assert [trial.regularisation for trial in found.trials] == list(REGULARISATIONS)
    assert found.chosen.log_loss == min(trial.log_loss for trial in found.trials)
    assert len({round(trial.log_loss, 6) for trial in found.trials}) == len(REGULARISATIONS)
    assert found.chosen.auc > 0.9


def test_windows_of_one_example_are_held_out_together() -> None:
    """Examples are points of their own and labels are noise: who sees a copy of what is held out would be too good."""
    rng = np.random.default_rng(0)
    points, negatives = rng.normal(size=(40, 200)), rng.normal(size=(400, 200))
    copies = np.repeat(points, 10, axis=0)
    together = fit_classifier(task_of(copies, np.repeat(np.arange(40), 10)), unit(negatives), regularisations=[1000])
    leaking = fit_classifier(task_of(copies), unit(negatives), regularisations=[1000])
    assert together.chosen.auc < 0.75
    assert leaking.chosen.auc > 0.9


def test_what_is_accepted_is_told_of_windows_that_were_not_fitted_on(dataset: Dataset) -> None:
    """Labels are noise in as many dimensions as there are examples: in-sample nearly all are accepted."""
    rng = np.random.default_rng(0)
    noisy = task_of(rng.normal(size=(100, 8)))
    wide = TaskEmbeddings(embeddings=unit(rng.normal(size=(100, 200))), examples=np.arange(100), provenance={})
    negatives = unit(rng.normal(size=(300, 200)))
    found = fit_classifier(wide, negatives, regularisations=[1000])
    assert (found.scores(wide.embeddings) > threshold_of(found.scores(negatives), 0.9)).mean() > 0.7
    assert found.accepted(0.9) == pytest.approx(0.1, abs=0.08)
    selected = select_by_classifier(noisy, unit(rng.normal(size=(1000, 8))), dataset, quantile=0.9)
    assert selected.task_accepted == pytest.approx(0.1, abs=0.1)


@pytest.mark.parametrize("strength", [10, 1000])
def test_a_fit_ends_where_no_other_solver_finds_a_better_one(strength: float) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    middle = 0.15 * rng.normal(size=50)
    task, corpus = task_of(rng.normal(size=(300, 50)) + middle), unit(rng.normal(size=(1000, 50)))
    found = fit_classifier(task, corpus, regularisations=[strength])
    rows, labels = np.concatenate([task.embeddings, corpus]).astype(np.float64), np.arange(1300) < 300
    exact = LogisticRegression(C=strength, class_weight="balanced", solver="newton-cholesky", tol=1e-10)
    exact.fit(rows, labels)
    assert found.weights == pytest.approx(exact.coef_[0], rel=2e-3, abs=2e-3)


def test_alike_examples_are_held_out_together() -> None:
    """As above, but each copy is an example of its own: only their likeness tells that they belong together."""
    rng = np.random.default_rng(0)
    copies, negatives = np.repeat(rng.normal(size=(40, 200)), 10, axis=0), unit(rng.normal(size=(400, 200)))
    told = dataclasses.replace(task_of(copies), alike=np.repeat(np.arange(40) * 10, 10))
    leaking = fit_classifier(task_of(copies), negatives, regularisations=[1000])
    assert fit_classifier(told, negatives, regularisations=[1000]).chosen.auc < 0.75 < 0.9 < leaking.chosen.auc


def test_copies_of_an_example_are_one_neighbour(dataset: Dataset) -> None:
    """The mean of the two nearest: twice the copied example would be a cosine of 1."""
    rows = np.zeros((1000, DIM))
    rows[:, 7] = 1
    rows[3], rows[500] = np.eye(DIM)[0], np.eye(DIM)[1] + np.eye(DIM)[2]
    copied = task_of(np.eye(DIM)[[0, 0, 1, 2]])
    known = dataclasses.replace(copied, alike=np.array([0, 0, 2, 3]))
    found = [select_nearest(one, unit(rows), dataset, quantile=0.999, neighbours=2) for one in (copied, known)]
    assert [each.selection.windows.tolist() for each in found] == [[3], [500]]


def test_the_selected_windows_are_those_where_the_task_is(
    task: TaskEmbeddings, corpus: np.ndarray, dataset: Dataset
) -> None:
    found = select_by_classifier(task, corpus, dataset, quantile=0.9)
    assert found.selection.num_selected == 100
    assert (found.selection.windows < 100).mean() > 0.95
    assert found.task_accepted > 0.9
    provenance = found.selection.provenance
    assert (provenance["method"], provenance["inputs"], provenance["quantile"]) == ("classifier", ["task.jsonl"], 0.9)
    assert provenance["regularisation"] == found.classifier.chosen.regularisation
    again = select_by_classifier(task, corpus, dataset, quantile=0.9)
    assert again.selection == found.selection


def test_a_quantile_of_the_task_accepts_that_part_of_it(
    task: TaskEmbeddings, corpus: np.ndarray, dataset: Dataset
) -> None:
    found = select_by_classifier(task, corpus, dataset, quantile=0.5, quantile_of="task")
    assert found.task_accepted_in_sample == 0.5
    assert 0.2 < found.task_accepted < 0.7
    assert 20 < found.selection.num_selected < 80


def test_what_cannot_be_fitted_is_refused(task: TaskEmbeddings, corpus: np.ndarray, dataset: Dataset) -> None:
    few = TaskEmbeddings(embeddings=task.embeddings[:8], examples=np.repeat(np.arange(4), 2), provenance={})
    with pytest.raises(InputError, match="at least 5 examples, got 4"):
        fit_classifier(few, corpus)
    with pytest.raises(InputError, match="regularisation: must be above 0"):
        fit_classifier(task, corpus, regularisations=[1, 0])
    with pytest.raises(InputError, match="at least one strength"):
        fit_classifier(task, corpus, regularisations=[])
    with pytest.raises(InputError, match="negatives: must be at least 5, got 1"):
        fit_classifier(task, corpus, num_negatives=1)
    with pytest.raises(InputError, match=r"must be \[1,000, 8\], got \[999, 8\].*crisp-stream embed"):
        select_by_classifier(task, corpus[:999], dataset, quantile=0.9)


def test_nearest_scores_are_cosines_to_the_nearest_examples() -> None:
    task = unit(np.array([[1, 0], [0, 1], [1, 1]]))
    corpus = unit(np.array([[1, 0], [-1, 0], [1, 3]]))
    root = 2**-0.5
    assert nearest_scores(task, corpus) == pytest.approx([1, 0, 0.9**0.5], abs=1e-6)
    expected = [(1 + root) / 2, (0 - root) / 2, (0.9**0.5 + 0.8**0.5) / 2]
    assert nearest_scores(task, corpus, neighbours=2) == pytest.approx(expected, abs=1e-6)
    assert nearest_scores(task, corpus, neighbours=3) == pytest.approx((corpus @ task.T).mean(axis=1), abs=1e-6)
    with pytest.raises(InputError, match="neighbours: must be 1 to 3, the windows of the task, got 4"):
        nearest_scores(task, corpus, neighbours=4)


def test_scores_do_not_depend_on_how_the_corpus_is_sliced(
    task: TaskEmbeddings, corpus: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [nearest_scores(task.embeddings, corpus, neighbours=n) for n in (1, 4)]
    monkeypatch.setattr("crisp_stream.selection.scores.SLICE_WINDOWS", 77)
    monkeypatch.setattr("crisp_stream.selection.nearest._PRODUCTS", 1000)
    for neighbours, expected in zip((1, 4), whole, strict=True):
        assert nearest_scores(task.embeddings, corpus, neighbours=neighbours) == pytest.approx(expected, abs=1e-6)


def test_nearest_windows_may_be_near_to_any_of_the_examples(dataset: Dataset) -> None:
    rows = np.zeros((1000, DIM))
    rows[:, 7] = 1
    rows[[3, 500], 0], rows[[4, 501], 1] = 9, 9
    found = select_nearest(task_of(np.eye(DIM)[:2]), unit(rows), dataset, quantile=0.996)
    assert found.selection.windows.tolist() == [3, 4, 500, 501]
    assert found.selection.provenance["method"] == "nearest"


def test_scores_of_a_mapped_array_are_those_of_one_in_memory(
    task: TaskEmbeddings, corpus: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", corpus)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert fit_classifier(task, mapped).scores(mapped).tolist() == fit_classifier(task, corpus).scores(corpus).tolist()
