"""`crisp-stream tree fit` and `tree inspect`, and writing with a tree that was fitted before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.writers.embedding.given_models import models_of_folder
from crisp_stream.writers.embedding.lsi import LSI_FILES
from crisp_stream.writers.tree_command import fit, inspect
from crisp_stream.writers.write import write
from tests.support.written_dataset import files_below, small_options


def quiet(line: str) -> None:
    """Takes log lines."""


@pytest.fixture(scope="module")
def fitted(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `tree fit`, with an LSI, whose intermediate files are kept beside it."""
    folder = tmp_path_factory.mktemp("fitted")
    options = small_options(
        text_file, folder / "tree", encoder="lsi", max_length=None, work=str(folder / "work"), keep_work=True
    )
    lines: list[str] = []
    report = fit(options, log=lines.append)
    assert report.text().rstrip() in lines
    return folder


def test_a_fitted_folder_holds_tree_tokenizer_encoder_sample_and_report(fitted: Path) -> None:
    root = fitted / "tree"
    models = models_of_folder(str(root))
    embeddings = np.load(root / "embeddings.npy")
    assert models.encoder.name == "lsi"
    assert {*LSI_FILES, "encoder.json"} == {path.name for path in (root / "encoder").iterdir()}
    assert embeddings.shape == (json.loads((root / "fitted.json").read_text())["fitted_windows"], models.tree.dim)
    report = json.loads((root / "report.json").read_text())
    assert report["quality"]["num_windows"] == len(embeddings)
    assert [level["level"] for level in report["quality"]["levels"]] == [1, 2, 3]
    assert all(level["fit_seconds"] >= 0 for level in report["quality"]["levels"])
    assert (root / "report.svg").read_text().lstrip().startswith("<?xml")


def test_a_dataset_written_with_a_fitted_tree_has_its_leaves(fitted: Path, text_file: Path, tmp_path: Path) -> None:
    options = small_options(text_file, tmp_path / "out", tree=str(fitted / "tree"), max_length=None, window_tokens=99)
    report = write(options, log=quiet)
    dataset = open_dataset(tmp_path / "out")
    models = models_of_folder(str(fitted / "tree"))
    assert dataset.manifest.tree_fingerprint == models.tree.fingerprint
    assert dataset.manifest.window_tokens == 64
    assert dataset.manifest.encoder == models.encoder
    assert dataset.manifest.provenance["tree"] == {"fitted": models.tree.fingerprint}
    assert (tmp_path / "out" / "encoder" / "vocabulary.json").is_file()
    leaves = models.tree.assign(np.load(fitted / "tree" / "embeddings.npy"))
    assert report.windows == len(leaves), "all windows were in the sample"
    np.testing.assert_array_equal(np.bincount(leaves)[dataset.leaves], dataset.windows_per_leaf)


def test_the_same_write_in_one_go_gives_the_same_windows(fitted: Path, text_file: Path, tmp_path: Path) -> None:
    write(small_options(text_file, tmp_path / "one", encoder="lsi", max_length=None), log=quiet)
    write(small_options(text_file, tmp_path / "two", tree=str(fitted / "tree"), max_length=None), log=quiet)
    one, two = files_below(tmp_path / "one"), files_below(tmp_path / "two")
    assert {n: c for n, c in one.items() if n != "manifest.json"} == {
        n: c for n, c in two.items() if n != "manifest.json"
    }


def test_inspecting_compares_seeds_and_draws(
    fitted: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = small_options(
        text_file, tmp_path / "other", encoder="lsi", max_length=None, seed=1, work=str(fitted / "work"), keep_work=True
    )
    fit(other, log=quiet)
    plot, out = tmp_path / "plot.png", tmp_path / "report.json"
    asked = ["--against", str(tmp_path / "other"), "--plot", str(plot), "--json", str(out)]
    assert main(["tree", "inspect", str(fitted / "tree"), *asked]) == 0
    text = capsys.readouterr().out
    assert re.search(r"level +clusters +leaves +empty +imbalance", text)
    assert re.search(r"adjusted Rand index", text)
    assert plot.read_bytes().startswith(b"\x89PNG")
    agreements = json.loads(out.read_text())["agreements"]
    assert [own["level"] for own in agreements] == [1, 2, 3]
    assert all(0 < own["normalised_mutual_information"] < 1 for own in agreements)
    same = json.loads(_json_of(fitted / "tree", tmp_path, against=str(fitted / "tree")))["agreements"]
    assert [own["adjusted_rand"] for own in same] == [1, 1, 1]


def _json_of(target: Path, folder: Path, against: str | None = None) -> str:
    path = folder / "inspected.json"
    inspect(str(target), against=against, out=str(path))
    return path.read_text()


def test_a_dataset_is_inspected_by_its_own_counts_and_sums(fitted: Path, text_file: Path, tmp_path: Path) -> None:
    write(small_options(text_file, tmp_path / "out", tree=str(fitted / "tree"), max_length=None), log=quiet)
    of_dataset = json.loads(_json_of(tmp_path / "out", tmp_path))["quality"]
    of_folder = json.loads(_json_of(fitted / "tree", tmp_path))["quality"]
    assert of_dataset["leaf_sizes"] == of_folder["leaf_sizes"]
    for one, other in zip(of_dataset["levels"], of_folder["levels"], strict=True):
        assert one["imbalance"] == pytest.approx(other["imbalance"])
        assert one["squared_distance"] == pytest.approx(other["squared_distance"], abs=2e-4)


def test_what_is_no_tree_is_refused(fitted: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a folder of `tree fit`, of a tree, or a dataset root"):
        inspect(str(tmp_path))
    with pytest.raises(InputError, match=r"embeddings: must be a \.npy file"):
        inspect(str(fitted / "tree"), embeddings=str(text_file))
    with pytest.raises(InputError, match=r"out: must be a new local folder"):
        fit(small_options(text_file, fitted / "tree"), log=quiet)
    with pytest.raises(InputError, match=r"tree .*: must be a folder of `crisp-stream tree fit`"):
        write(small_options(text_file, tmp_path / "out", tree=str(tmp_path)), log=quiet)
    with pytest.raises(InputError, match=r"tree: must be left out when like gives one"):
        small_options(text_file, tmp_path / "out", tree="a", like="b")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "fitted.json").write_text('{"fitted_version": 1}')
    with pytest.raises(FormatError, match=r"fitted\.json: not readable|not a readable tree"):
        models_of_folder(str(damaged))
