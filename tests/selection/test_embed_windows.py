"""Embeddings of all windows: those that the write placed windows by, resumable; and `select` on real text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.embeddings import WindowEmbeddings
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.histograms.window_scores import WindowScores
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.loading.reader import read_windows
from crisp_stream.selection import embed_windows as window_embeddings
from crisp_stream.selection.embed_windows import embed_windows
from crisp_stream.writers.windows import window_texts
from crisp_stream.writers.write import WriteReport
from tests.support.synthetic import write_synthetic_dataset
from tests.support.written_dataset import TOPICS, text_file, written

__all__ = ["text_file", "written"]  # fixtures


@pytest.fixture(scope="module")
def folder(written: tuple[Path, WriteReport], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embeddings") / "out"
    embed_windows(str(written[0]), str(out), processes=1, log=lambda line: None)
    return out


def test_windows_lie_in_the_leaves_that_the_write_put_them_in(written: tuple[Path, WriteReport], folder: Path) -> None:
    dataset = open_dataset(written[0])
    rows = WindowEmbeddings.load(folder, dataset).rows
    assert rows.shape == (dataset.manifest.num_windows, 384)
    assert rows.dtype == np.float16
    assert np.linalg.norm(rows.astype(np.float32), axis=1) == pytest.approx(1, abs=2e-3)
    leaves = dataset.leaf_of_windows(np.arange(len(rows)))
    assert (dataset.tree.assign(np.asarray(rows)) == leaves).mean() > 0.99
    assert sorted(path.name for path in folder.iterdir()) == ["embeddings.json", "embeddings.npy"]


def test_a_stopped_run_goes_on_with_what_is_missing(
    written: tuple[Path, WriteReport], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_embeddings, "TASK_WINDOWS", 40)
    root, lines = str(written[0]), []
    real, calls = window_embeddings.parts.window_pieces, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(window_embeddings.parts, "window_pieces", stopping)
    with pytest.raises(KeyboardInterrupt):
        embed_windows(root, str(tmp_path / "out"), processes=1, log=lines.append)
    dataset = open_dataset(root)
    with pytest.raises(InputError, match="not all embeddings are there"):
        WindowEmbeddings.load(tmp_path / "out", dataset)
    found = embed_windows(root, str(tmp_path / "out"), processes=1, log=lines.append)
    assert any("window-embeddings: 2 of" in line for line in lines)
    whole = WindowEmbeddings.load(folder, dataset).rows.astype(np.float32)
    assert np.einsum("nd,nd->n", whole, found.rows.astype(np.float32)) == pytest.approx(1, abs=3e-3)
    before = len(calls)
    embed_windows(root, str(tmp_path / "out"), processes=1, log=lines.append)
    assert len(calls) == before
    assert "already" in lines[-1]


def test_embeddings_of_something_else_are_refused(
    written: tuple[Path, WriteReport], folder: Path, tmp_path: Path
) -> None:
    dataset, other = open_dataset(written[0]), write_synthetic_dataset(tmp_path / "other", {0: 9, 3: 4})
    with pytest.raises(InputError, match=r"the embeddings are of dataset .* Name another folder"):
        WindowEmbeddings.load(folder, other)
    with pytest.raises(InputError, match=r"holds no embeddings. Make them with: crisp-stream embed"):
        WindowEmbeddings.load(tmp_path, dataset)
    facts = json.loads((folder / "embeddings.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    for changed, rows, message in [
        ({}, np.zeros((3, 384), np.float16), "must be .* rows of 384 float16, got"),
        ({"embeddings_version": 2}, np.zeros((3, 384), np.float16), "embeddings_version 2 is not 1"),
    ]:
        np.save(copy / "embeddings.npy", rows)
        (copy / "embeddings.json").write_text(json.dumps({**facts, **changed}))
        with pytest.raises(FormatError, match=message):
            WindowEmbeddings.load(copy, dataset)
    (copy / "embeddings.npy").write_bytes(b"")
    with pytest.raises(FormatError, match="damaged"):
        WindowEmbeddings.load(copy, dataset)
    with pytest.raises(InputError, match="must be a folder, got s3://bucket/out"):
        embed_windows(str(written[0]), "s3://bucket/out")


@pytest.mark.parametrize("method", ["classifier", "nearest"])
def test_the_commands_select_windows_like_the_task(
    written: tuple[Path, WriteReport],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    about = [text[:1200] for text in TOPICS if "operator" in text[:1200]]
    assert 5 <= len(about) <= 40
    task = tmp_path / "task.jsonl"
    task.write_text("".join(json.dumps({"text": text}) + "\n" for text in about))
    out = tmp_path / "task.windows.parquet"
    asked = ["select", method, str(task), "--data", str(written[0]), "--embeddings", str(folder), "--processes", "1"]
    assert main([*asked, "--quantile", "0.8", "--out", str(out), "--scores", str(tmp_path / "a.scores.parquet")]) == 0
    shown = capsys.readouterr().out
    selection, dataset = WindowSelection.load(out), open_dataset(written[0])
    assert selection.share == pytest.approx(0.2, abs=0.01)
    assert f"{selection.num_selected:,} of {selection.num_windows:,} windows" in shown
    assert "seconds: " in shown
    assert ("AUC" in shown) == (method == "classifier")
    scores = WindowScores.load(tmp_path / "a.scores.parquet")
    above = np.flatnonzero(scores.scores > selection.provenance["threshold"])
    assert (scores.name, above.tolist()) == (method, selection.windows.tolist())
    assert selection.provenance["examples"] == len(about)
    assert selection.provenance["example_hashes"]["number"] == len(about)
    tokenizer = DocumentTokenizer(dataset.tokenizer_path())
    tokens = read_windows(dataset, np.arange(selection.num_windows))["tokens"]
    texts = window_texts(tokens, tokenizer, dataset.manifest.tokenizer.eot_id)
    from_task = np.array(["operator" in text for text in texts])
    chosen = selection.contains(0, selection.num_windows)
    assert from_task[chosen].mean() > 2 * from_task[~chosen].mean()
    assert main([*asked, "--out", str(tmp_path / "task.parquet")]) == 2
    assert "must end in .windows.parquet" in capsys.readouterr().err


def test_a_strength_that_is_no_number_is_refused(
    written: tuple[Path, WriteReport], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = WindowEmbeddings.load(folder, open_dataset(written[0])).rows
    np.save(tmp_path / "task.npy", rows[:20].astype(np.float32))
    asked = ["select", "classifier", str(tmp_path / "task.npy"), "--data", str(written[0])]
    asked += ["--embeddings", str(folder), "--out", str(tmp_path / "a.windows.parquet"), "--regularisation"]
    assert main([*asked, "strong"]) == 2
    assert "must be numbers or none, got 'strong'" in capsys.readouterr().err
    assert main([*asked, "none", "0.1"]) == 0
    shown = capsys.readouterr().out
    assert "fitted on 20 windows of the task" in shown
    assert shown.count("chosen") == 1
