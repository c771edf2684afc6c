"""A run on the page beside the generation of the dataset that it was trained on, not beside what was added later."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.report.map import coarser, levels_of
from crisp_stream.report.page import page_html
from crisp_stream.report.runs import TrainingRun, read_run, served_shares
from crisp_stream.writers.append import append
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.embedding.encoder_files import DEFAULT_ENCODER
from crisp_stream.writers.write import write
from tests.report.test_page import tree_of, unpacked
from tests.support.written_dataset import TOPICS, WordEncoder, small_options


@pytest.fixture
def root(tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Written of documents of all topics, and grown by many of one topic alone: other shares in every cluster."""
    monkeypatch.setattr(
        "crisp_stream.writers.stages.models.matching_encoder",
        lambda record, name, root: EncoderChoice(name=DEFAULT_ENCODER),
    )
    texts = {"a.jsonl": [text[:1500] for text in TOPICS], "b.jsonl": [text[:1500] for text in TOPICS[:3]] * 9}
    for name, documents in texts.items():
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    write(small_options(tmp_path / "a.jsonl", tmp_path / "root"), log=lambda line: None)
    append(small_options(tmp_path / "b.jsonl", tmp_path / "root"), log=lambda line: None)
    return tmp_path / "root"


def finished_run(folder: Path, dataset: Dataset) -> Path:
    """The files of a run of the corpus as it is; there is no checkpoint."""
    folder.mkdir()
    record = {
        "run_name": "early",
        "dataset_fingerprint": dataset.manifest.fingerprint,
        "recipe": {"seed": 0, "precision": "fp32"},
        "phases": [{"histogram": "base"}],
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "losses.csv").write_text("batch,loss,learning_rate\n1,5.0,0.1\n2,4.0,0.1\n")
    return folder


def served(run: TrainingRun, dataset: Dataset) -> TrainingRun:
    """What a checkpoint would say: every window of the dataset once."""
    return dataclasses.replace(
        run, served_leaves=dataset.leaves.astype(np.int64), served_windows=dataset.windows_per_leaf
    )


def test_a_run_is_compared_with_the_generation_that_it_was_trained_on(root: Path, tmp_path: Path) -> None:
    old, new = open_dataset(root, generation=0), open_dataset(root)
    assert new.manifest.num_windows > old.manifest.num_windows
    found = served(read_run(str(finished_run(tmp_path / "run", old)), new), old)
    assert found.other is not None
    assert found.other.manifest.generation == 0
    levels = levels_of(new)
    task = served_shares(found, levels, new.manifest.depth, new.manifest.arity)
    assert task is not None
    assert task.corpus is not None
    np.testing.assert_allclose(task.shares, task.corpus)  # the corpus as it is, in the same shares: w is 1 everywhere
    assert not np.allclose(task.shares, levels[-1].shares, atol=1e-3)
    top = coarser(task, 1, tree_of(new))
    assert top.corpus is not None
    np.testing.assert_allclose(top.shares, top.corpus)
    html = page_html(new, {}, [found])
    cards = html[html.index("Mixture served so far") :].split("</section>")[0]
    assert set(re.findall(r"· w ([\d.]+)<", cards)) == {"1.00"}
    assert "served to early (generation 0)" in cards
    assert "finished; on generation 0 of the dataset" in html
    header, arrays = unpacked(re.findall(r'id="payload">([^<]*)', html)[0])
    assert [layer["name"] for layer in header["tasks"]] == ["served to early (generation 0)"]
    np.testing.assert_array_equal(arrays["corpus_0"], task.corpus)


def test_a_run_on_the_generation_of_the_page_is_compared_with_it(root: Path, tmp_path: Path) -> None:
    for generation in (0, 1):
        dataset = open_dataset(root, generation=generation)
        found = served(read_run(str(finished_run(tmp_path / f"run{generation}", dataset)), dataset), dataset)
        assert found.other is None
        html = page_html(dataset, {}, [found])
        assert "served to early<" in html
        assert "corpus_0" not in unpacked(re.findall(r'id="payload">([^<]*)', html)[0])[1]


def test_a_page_of_an_older_generation_shows_a_later_run_beside_its_own(root: Path, tmp_path: Path) -> None:
    old, new = open_dataset(root, generation=0), open_dataset(root)
    found = served(read_run(str(finished_run(tmp_path / "run", new)), old), new)
    html = page_html(old, {}, [found])
    cards = html[html.index("Mixture served so far") :].split("</section>")[0]
    assert set(re.findall(r"· w ([\d.]+)<", cards)) == {"1.00"}
    assert "(generation 1)" in cards


def test_a_generation_that_was_deleted_is_named(root: Path, tmp_path: Path) -> None:
    old = open_dataset(root, generation=0)
    folder = finished_run(tmp_path / "run", old)
    (root / "manifest.g0.json").unlink()
    with pytest.raises(InputError, match="Name the dataset that the run was trained on"):
        read_run(str(folder), open_dataset(root))
