"""Tails of documents: counted, left out by a floor, and not preferred by any method."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.counting.embedded_examples import ExampleSources
from crisp_stream.counting.task_embeddings import TaskEmbeddings
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.selection.classifier import select_by_classifier
from crisp_stream.selection.dsir import select_dsir
from crisp_stream.selection.lengths import at_least, length_lines, text_tokens, window_lengths
from crisp_stream.selection.nearest import select_nearest
from tests.support.synthetic import DIM, EOT_ID, write_synthetic_dataset

TOKENS = 64
WORDS = np.array(["fever", "doctor", "tumor", "kidney", "nurse", "violin", "concert", "opera", "flute", "tenor"])


def quiet(_: str) -> None:
    """No progress."""


def made_window(rng: np.random.Generator, *, medical: bool, letters: int) -> np.ndarray:
    words = rng.choice(WORDS[:5] if medical else WORDS[5:], 20)
    # A fifth of the words are such that no text has twice: most log weights are below 0.
    rare = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(20)]
    text = " ".join(np.where(rng.random(20) < 0.2, rare, words)).encode()[:letters]
    return np.pad(np.frombuffer(text, np.uint8).astype(np.uint16), (0, TOKENS - letters), constant_values=EOT_ID)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """100 full medical windows, 300 full ones of music, 60 tails of 5 letters, of music."""
    rng = np.random.default_rng(0)
    rows = [made_window(rng, medical=True, letters=TOKENS) for _ in range(100)]
    rows += [made_window(rng, medical=False, letters=TOKENS) for _ in range(300)]
    rows += [made_window(rng, medical=False, letters=5) for _ in range(60)]
    folder = tmp_path_factory.mktemp("tails") / "data"
    windows = {0: 100, 5: 300, 15: 60}
    return write_synthetic_dataset(
        folder, windows, window_tokens=TOKENS, tokens=np.array(rows), packing="document", windows_per_shard=32
    )


@pytest.fixture
def task(tmp_path: Path) -> ExampleSources:
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps({"text": "The doctor and the nurse see a fever and a tumor of the kidney."}) + "\n")
    return ExampleSources((str(path),), "text", None, None, (), "files")


def test_tokens_are_counted_to_the_padding() -> None:
    windows = np.array([[1, 2, 3, 4], [1, 9, 2, 9], [1, 9, 9, 9], [9, 9, 9, 9]])
    assert text_tokens(windows, 9).tolist() == [4, 3, 1, 0]


def test_lengths_of_all_windows_are_read_and_a_floor_is_checked(dataset: Dataset) -> None:
    lengths = window_lengths(dataset, processes=1, log=quiet)
    assert lengths.tolist() == [TOKENS] * 400 + [5] * 60
    assert at_least(lengths, 6, dataset).sum() == 400
    with pytest.raises(InputError, match="min tokens: must be 0 to 64, the length of a window, got 65"):
        at_least(lengths, 65, dataset)


def test_dsir_does_not_select_tails(dataset: Dataset, task: ExampleSources) -> None:
    found = select_dsir(task, data=dataset.root, num_windows=90, processes=1, log=quiet)
    assert found.selection.provenance["min_tokens"] == TOKENS // 4
    assert (found.selection.windows < 100).mean() > 0.95
    # Without a floor, too: five letters of music are no better than a window of it.
    found = select_dsir(task, data=dataset.root, num_windows=90, min_tokens=0, processes=1, log=quiet)
    assert (found.selection.windows >= 400).mean() < 0.05
    with pytest.raises(InputError, match="must be at most 400, those of 16 tokens or more, got 401"):
        select_dsir(task, data=dataset.root, num_windows=401, processes=1, log=quiet)


def test_methods_by_embeddings_select_of_the_allowed_windows_alone(dataset: Dataset) -> None:
    """Tails lie where the task is: without a floor they are all that is selected."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(460, DIM))
    rows[400:, 0] += 9
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    examples = TaskEmbeddings(embeddings=rows[430:], examples=np.arange(30), provenance={})
    allowed = at_least(window_lengths(dataset, processes=1, log=quiet), 20, dataset)
    for select in (select_by_classifier, select_nearest):
        every = select(examples, rows, dataset, quantile=0.9).selection
        long = select(examples, rows, dataset, quantile=0.9, allowed=allowed).selection
        assert every.windows.min() >= 400
        assert long.windows.max() < 400
        assert long.num_selected == 40  # the quantile is of the allowed ones


def test_the_report_shows_the_lengths_of_what_was_selected(
    dataset: Dataset, task: ExampleSources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tails = WindowSelection(
        dataset_fingerprint=dataset.manifest.fingerprint, windows=np.arange(380, 460), num_windows=460
    )
    lines = length_lines(tails, dataset)
    assert "75% of the selected windows hold less than 25% of a window, of the dataset 13%" in lines[-1]
    command = ["select", "dsir", task.inputs[0], "--data", dataset.root, "--share", "0.1", "--processes", "1"]
    assert main([*command, "--out", str(tmp_path / "task.windows.parquet"), "--min-tokens", "30"]) == 0
    printed = capsys.readouterr().out
    assert "30 tokens (--min-tokens)" in printed
    assert "selected  quantiles 5% 64, 25% 64, 50% 64, 75% 64; full 100%" in printed
    assert "dataset   quantiles 5% 5, 25% 64, 50% 64, 75% 64; full 87%" in printed
    assert "warning" not in printed
