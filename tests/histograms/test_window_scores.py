"""Score files: what comes back, what is refused, by which name conditions know them; quantiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_scores import WindowScores, load_scores, quantile_of, score_name_of
from crisp_stream.histograms.window_selection import WindowSelection
from tests.support.synthetic import write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("scores") / "data", {0: 60, 5: 40})


def scores_of(dataset: Dataset, scores: np.ndarray, name: str = "quality") -> WindowScores:
    return WindowScores(name=name, dataset_fingerprint=dataset.manifest.fingerprint, scores=scores)


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(-300, 100, 1000).astype(np.float32)
    saved = WindowScores(name="w", dataset_fingerprint="f" * 64, scores=scores, provenance={"method": "dsir"})
    saved.save(tmp_path / "w.scores.parquet")
    loaded = WindowScores.load(tmp_path / "w.scores.parquet")
    np.testing.assert_array_equal(loaded.scores, scores)
    assert (loaded.name, loaded.dataset_fingerprint, loaded.provenance) == ("w", "f" * 64, {"method": "dsir"})
    with pytest.raises(ValueError, match="read-only"):
        loaded.scores[0] = 0


def test_scores_must_be_finite_and_at_least_one() -> None:
    for scores in ([], [1.0, np.nan], [1.0, np.inf], [[1.0]]):
        with pytest.raises(InputError, match="scores must be finite numbers, one per window"):
            WindowScores(name="w", dataset_fingerprint="f" * 64, scores=np.array(scores, np.float32))


@pytest.mark.parametrize("name", ["", "1a", "a-b", "and", "or", "not", "q8", "a b", "ä"])
def test_a_name_is_one_that_conditions_can_use(name: str) -> None:
    with pytest.raises(InputError, match="the name of a score must be letters, digits and _"):
        WindowScores(name=name, dataset_fingerprint="f" * 64, scores=np.ones(2, np.float32))


def test_names_come_from_files() -> None:
    assert score_name_of("s3://bucket/a/my-quality.v2.scores.parquet") == "my_quality"
    assert score_name_of("q_8.scores.parquet") == "q_8"


def test_another_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.scores.parquet"
    WindowScores(name="w", dataset_fingerprint="f" * 64, scores=np.ones(100, np.float32)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(FormatError, match=r"w\.scores\.parquet: not scores of windows, or damaged"):
        WindowScores.load(path)
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])  # of the numbers
    with pytest.raises(FormatError, match="not scores of windows, or damaged"):
        WindowScores.load(path)
    WindowSelection(dataset_fingerprint="f" * 64, windows=np.arange(3), num_windows=100).save(path)
    with pytest.raises(FormatError, match="not scores of windows"):
        WindowScores.load(path)
    with pytest.raises(FormatError, match=r"absent\.scores\.parquet: no such file"):
        WindowScores.load(tmp_path / "absent.scores.parquet")


def test_scores_of_another_dataset_or_generation_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    other = write_synthetic_dataset(tmp_path / "other", {0: 30, 5: 70})
    scores_of(other, np.ones(100, np.float32)).save(tmp_path / "a.scores.parquet")
    with pytest.raises(InputError, match=r"a\.scores\.parquet was made for .* Make it with: crisp-stream score"):
        load_scores([str(tmp_path / "a.scores.parquet")], dataset)


def test_files_may_be_called_otherwise_and_names_are_used_once(dataset: Dataset, tmp_path: Path) -> None:
    path = str(tmp_path / "a.scores.parquet")
    scores_of(dataset, np.ones(100, np.float32)).save(path)
    assert list(load_scores([path, f"other={path}"], dataset)) == ["quality", "other"]
    with pytest.raises(InputError, match="scores must have different names, got quality twice"):
        load_scores([path, path], dataset)
    with pytest.raises(InputError, match="the name of a score must be"):
        load_scores([f"not={path}"], dataset)


def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed() -> None:
    values = np.random.default_rng(1).permutation(np.arange(10)).astype(np.float32)
    found = [quantile_of(values, quantile) for quantile in (0, 0.05, 0.1, 0.11, 0.5, 0.8, 0.81, 1)]
    assert found == [0, 0, 0, 1, 4, 7, 8, 9]
    expected = [float(np.quantile(values, quantile, method="inverted_cdf")) for quantile in (0, 0.11, 0.5, 0.81, 1)]
    assert [quantile_of(values, quantile) for quantile in (0, 0.11, 0.5, 0.81, 1)] == expected
    with pytest.raises(InputError, match=r"a quantile must be 0 to 1, got 80"):
        quantile_of(values, 80)
