"""Histograms in another tree: by kept embeddings they are those of a direct count, by centroids near it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.counting import carry as carrying
from crisp_stream.counting.carry import Carried, carry
from crisp_stream.counting.count_examples import count_examples
from crisp_stream.counting.task_embeddings import embed_task, histogram_of_task
from crisp_stream.counting.task_vectors import TaskEmbeddings, beside, embeddings_beside
from crisp_stream.errors import FormatError, InputError
from crisp_stream.examples.sketch import sketch_of
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.histograms.arithmetic import compare, cut, total_variation
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.history import counted_parts, smoothing_of
from crisp_stream.histograms.smoothing import smooth
from crisp_stream.writers.append import append
from crisp_stream.writers.write import WriteReport, write
from tests.support.synthetic import write_synthetic_dataset
from tests.support.written_dataset import TOPICS, small_options


def quiet(line: str) -> None:
    """Takes log lines."""


@pytest.fixture(scope="module")
def source(written: tuple[Path, WriteReport]) -> Dataset:
    """Arity 4, depth 3; the real all-MiniLM-L6-v2."""
    return open_dataset(written[0])


@pytest.fixture(scope="module")
def target(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same text and encoder, another tree: arity 3, depth 2."""
    root = tmp_path_factory.mktemp("other") / "root"
    write(small_options(text_file, root, arity=3, depth=2, seed=7), log=quiet)
    return open_dataset(root)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty examples of one or more windows, two of them alike."""
    path = tmp_path_factory.mktemp("task") / "task.jsonl"
    texts = [text[200:700] for text in TOPICS[:39]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, texts[0]]))
    return str(path)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Other examples."""
    path = tmp_path_factory.mktemp("others") / "others.jsonl"
    path.write_text("".join(json.dumps({"text": text[100:600]}) + "\n" for text in TOPICS[39:]))
    return str(path)


@pytest.fixture(scope="module")
def counted(source: Dataset, task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A histogram of leaves, with its embeddings beside it."""
    path = tmp_path_factory.mktemp("counted") / "task.parquet"
    histogram = count_examples([task], data=source, processes=1, keep_embeddings=beside(path), log=quiet)
    histogram.save(path)
    return path


@pytest.fixture(scope="module")
def kept(counted: Path) -> TaskEmbeddings:
    found = embeddings_beside(counted, None)
    assert found is not None
    return found


def moved(counted: Path, source: Dataset, target: Dataset, **how: Any) -> Carried:
    return carry(Histogram.load(counted), source, target, log=quiet, **how)


def test_what_is_kept_gives_the_histogram_again(
    counted: Path, kept: TaskEmbeddings, source: Dataset, task: str
) -> None:
    histogram = Histogram.load(counted)
    plain = count_examples([task], data=source, processes=1, log=quiet)
    assert (histogram.fingerprint, histogram.provenance) == (plain.fingerprint, plain.provenance)
    again = histogram_of_task(kept, source, 3, log=quiet)
    assert again.fingerprint == histogram.fingerprint
    np.testing.assert_array_equal(again.examples, histogram.examples)
    assert kept.provenance["histogram"] == histogram.fingerprint
    assert kept.provenance["encoder"] == source.manifest.encoder.weights_sha256
    assert kept.alike is not None
    assert set(kept.alike[kept.examples == 39].tolist()) == {0}


@pytest.mark.parametrize("level", [None, 1, 2])
def test_by_embeddings_it_is_the_histogram_that_counting_there_gives(
    counted: Path, kept: TaskEmbeddings, source: Dataset, target: Dataset, task: str, level: int | None
) -> None:
    assert source.manifest.tree_fingerprint != target.manifest.tree_fingerprint
    assert source.manifest.tokenizer.fingerprint == target.manifest.tokenizer.fingerprint
    direct = count_examples([task], data=target, level=level, processes=1, log=quiet)
    done = moved(counted, source, target, embeddings=kept, level=level)
    assert done.way == "embeddings"
    assert done.histogram.level == (level or 2)
    assert done.histogram.fingerprint == direct.fingerprint
    for name in ("nodes", "counts", "examples"):
        np.testing.assert_array_equal(getattr(done.histogram, name), getattr(direct, name))
    for key in ("windows", "cosine", "corpus_cosine", "encoder", "examples", "example_hashes"):
        assert done.histogram.provenance[key] == direct.provenance[key]
    assert done.histogram.provenance["carried"]["by"] == "embeddings"
    assert done.histogram.provenance["carried"]["from_tree"] == source.manifest.tree_fingerprint
    assert smoothing_of(done.histogram) == "possible"


def test_by_centroids_it_is_what_a_plain_loop_gives(counted: Path, source: Dataset, target: Dataset) -> None:
    histogram = Histogram.load(counted)
    expected: dict[int, float] = {}
    for leaf, share in zip(histogram.nodes.tolist(), histogram.proportions.tolist(), strict=True):
        level = max(
            level
            for level in (1, 2, 3)
            if leaf // 4 ** (3 - level) in source.tree.nodes_per_level[level - 1].tolist()
            and all(leaf // 4 ** (3 - up) in source.tree.nodes_per_level[up - 1].tolist() for up in range(1, level))
        )
        row = source.tree.nodes_per_level[level - 1].tolist().index(leaf // 4 ** (3 - level))
        vector = source.tree.centroids_per_level[level - 1][row]
        (node,) = target.tree.assign((vector / np.linalg.norm(vector))[None]).tolist()
        expected[node] = expected.get(node, 0.0) + share
    done = moved(counted, source, target)
    assert done.way == "centroids"
    assert done.histogram.nodes.tolist() == sorted(expected)
    np.testing.assert_allclose(done.histogram.proportions, [expected[node] for node in sorted(expected)])
    assert done.histogram.counts is None
    assert done.error is None


def test_a_coarse_histogram_is_spread_over_the_leaves_below_it_by_size(
    counted: Path, source: Dataset, target: Dataset
) -> None:
    coarse = cut(Histogram.load(counted), 1)
    spread = carry(coarse, source, target, level=2, log=quiet).histogram
    shares, missing = coarse.expand(source.leaves, source.windows_per_leaf)
    assert missing == 0
    leaves = dataclasses.replace(coarse, level=3, nodes=source.leaves, proportions=shares, counts=None, examples=None)
    assert total_variation(spread, carry(leaves, source, target, level=2, log=quiet).histogram) < 1e-9


def test_what_carries_itself_by_centroids_stays_nearby(counted: Path, kept: TaskEmbeddings, source: Dataset) -> None:
    """To the tree itself, through the door for other trees: every leaf's centroid finds its leaf again."""
    histogram = Histogram.load(counted)
    again = carrying._by_centroids(histogram, source, source, 3)
    assert total_variation(again, histogram) < 0.15


def test_the_error_by_halves_is_that_of_a_plain_computation(
    counted: Path, kept: TaskEmbeddings, source: Dataset, target: Dataset
) -> None:
    done = moved(counted, source, target, embeddings=kept, seed=3)
    assert done.error is not None
    measured = {one.name: one for one in done.error.distances}
    groups, rng = np.unique(kept.groups), np.random.default_rng(3)
    assert len(groups) == 39  # two of forty examples are alike, and held out together
    found: dict[str, list[float]] = {"embeddings": [], "centroids": [], "before": []}
    old, new = source.tree.assign(kept.embeddings), target.tree.assign(kept.embeddings)
    for _ in range(10):
        chosen = np.isin(kept.groups, rng.permutation(groups)[:19])
        one, other = (Histogram.from_leaves(new[part], target.tree, 2) for part in (chosen, ~chosen))
        was, held = (Histogram.from_leaves(old[part], source.tree, 3) for part in (chosen, ~chosen))
        found["embeddings"].append(total_variation(one, other))
        found["centroids"].append(total_variation(carry(was, source, target, log=quiet).histogram, other))
        found["before"].append(total_variation(was, held))
    assert measured["carried by embeddings"].total_variation == pytest.approx(np.mean(found["embeddings"]))
    assert measured["carried by centroids"].total_variation == pytest.approx(np.mean(found["centroids"]))
    assert measured["before, in its own tree"].total_variation == pytest.approx(np.mean(found["before"]))
    assert 0 < measured["windows drawn from the carried one"].total_variation < 1
    record = done.histogram.provenance["carried"]["error"]
    assert record["splits"] == 10
    assert record["total_variation"]["carried by centroids"] == round(float(np.mean(found["centroids"])), 4)


def test_the_error_by_other_examples_compares_before_and_after(
    counted: Path, source: Dataset, target: Dataset, others: str
) -> None:
    held_out = embed_task([others], target, processes=1, log=quiet)
    done = moved(counted, source, target, held_out=held_out)
    assert done.error is not None
    assert (done.error.held_out_windows, done.error.splits) == (len(held_out.embeddings), 1)
    before, after, chance = done.error.distances
    assert before.total_variation == total_variation(
        Histogram.load(counted), histogram_of_task(held_out, source, 3, log=quiet)
    )
    compared = compare(done.histogram, histogram_of_task(held_out, target, 2, log=quiet))
    assert (after.total_variation, after.jensen_shannon) == (compared.total_variation, compared.jensen_shannon)
    assert 0 < chance.total_variation < after.total_variation


def test_few_examples_leave_the_error_unmeasured(source: Dataset, target: Dataset, kept: TaskEmbeddings) -> None:
    rows = kept.groups < 3
    few = dataclasses.replace(
        kept,
        embeddings=kept.embeddings[rows],
        examples=kept.examples[rows],
        alike=None if kept.alike is None else kept.alike[rows],
    )
    histogram = Histogram.from_leaves(source.tree.assign(few.embeddings), source.tree, 3)
    assert carry(histogram, source, target, embeddings=few, log=quiet).error is None


def test_a_smoothed_histogram_goes_by_centroids_and_keeps_its_history(
    counted: Path, kept: TaskEmbeddings, source: Dataset, target: Dataset
) -> None:
    smoothed = smooth(Histogram.load(counted), source, strength=3)
    done = carry(smoothed, source, target, log=quiet).histogram
    assert smoothing_of(done) == "done"
    ((part, is_smoothed),) = counted_parts(done.provenance)
    assert is_smoothed
    assert part["inputs"] == ["task.jsonl"]
    sketch = sketch_of(done.provenance)
    assert sketch is not None
    assert sketch.num_examples == 40
    with pytest.raises(InputError, match=r"must be those that the histogram was counted from.*by centroids"):
        carry(smoothed, source, target, embeddings=kept, log=quiet)


def test_mass_on_clusters_without_windows_is_carried_and_reported(tmp_path: Path) -> None:
    source = write_synthetic_dataset(tmp_path / "a", {0: 20, 5: 20, 10: 20})
    target = write_synthetic_dataset(tmp_path / "b", {0: 20}, arity=2, depth=3)
    whole = Histogram.from_leaves([0, 0, 15], source.tree, 2)  # no window in leaf 15
    done = carry(whole, source, target, log=quiet)
    vectors = source.tree.centroids_per_level[1][[0, 15]]
    full, empty = target.tree.assign(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 3).tolist()
    assert full != empty
    assert done.histogram.level == 3
    assert done.histogram.nodes.tolist() == sorted([full, empty])
    assert done.histogram.proportions[done.histogram.nodes == empty].sum() == pytest.approx(1 / 3)
    assert done.missing == pytest.approx(done.histogram.proportions[done.histogram.nodes != 0].sum())


def test_a_grown_dataset_needs_no_carrying(
    counted: Path,
    written: tuple[Path, WriteReport],
    source: Dataset,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = shutil.copytree(written[0], tmp_path / "grown")
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"text": text[900:2500]}) + "\n" for text in TOPICS[:20]))
    append(small_options(more, root), log=quiet)
    grown = open_dataset(root)
    assert grown.manifest.generation == 1
    done = moved(counted, source, grown)
    assert (done.way, done.missing, done.error) == ("as it is", 0, None)
    assert done.histogram.fingerprint == Histogram.load(counted).fingerprint
    out = tmp_path / "carried.parquet"
    assert main(["histogram", "carry", str(counted), "--from", source.root, "--to", str(root), "--out", str(out)]) == 0
    assert "have one tree, so the histogram is valid for both as it is" in capsys.readouterr().out
    assert Histogram.load(out).provenance == Histogram.load(counted).provenance


def test_another_encoder_is_refused(counted: Path, source: Dataset, target: Dataset, tmp_path: Path) -> None:
    other = write_synthetic_dataset(tmp_path / "other", {0: 20, 5: 20})
    message = (
        rf"must have one encoder, got .*all-MiniLM-L6-v2 .* and synthetic .*histogram count TASK… --data {other.root}"
    )
    with pytest.raises(InputError, match=message):
        moved(counted, source, other)


def test_bad_input_is_refused(counted: Path, kept: TaskEmbeddings, source: Dataset, target: Dataset) -> None:
    histogram = Histogram.load(counted)
    with pytest.raises(InputError, match="carry: the histogram was counted with tree"):
        carry(histogram, target, source, log=quiet)
    with pytest.raises(InputError, match=r"level 0 is all of its corpus. Use `base`"):
        carry(Histogram.base(source), source, target, log=quiet)
    with pytest.raises(InputError, match=r"level: must be 1 to 2, the depth of the tree of .*, got 3"):
        carry(histogram, source, target, level=3, log=quiet)
    with pytest.raises(InputError, match=r"level: must be 0 to 3, that of the histogram, got 4"):
        carry(histogram, source, source, level=4, log=quiet)
    with pytest.raises(InputError, match=r"embeddings must be there to be counted again, got none. Count with --keep"):
        carry(histogram, source, target, way="embeddings", log=quiet)
    foreign = dataclasses.replace(kept, provenance={**kept.provenance, "encoder": "ab" * 32})
    for name in ("embeddings", "held_out"):
        given: dict[str, Any] = {name: foreign}
        with pytest.raises(InputError, match=r"must be of the datasets' encoder .*got those of abababababab, 384"):
            carry(histogram, source, target, log=quiet, **given)
    narrow = dataclasses.replace(kept, embeddings=kept.embeddings[:, :8])
    with pytest.raises(InputError, match=r"384 numbers\), got those of .*, 8 numbers"):
        carry(histogram, source, target, embeddings=narrow, log=quiet)
    half = dataclasses.replace(kept, embeddings=kept.embeddings[::-1][:9], provenance={})
    with pytest.raises(InputError, match=r"got others \(they differ by .*%\). Name the right file"):
        carry(histogram, source, target, embeddings=half, log=quiet)


def test_the_cut_of_a_counted_histogram_knows_its_embeddings(
    counted: Path, kept: TaskEmbeddings, source: Dataset, target: Dataset
) -> None:
    done = carry(cut(Histogram.load(counted), 1), source, target, embeddings=kept, log=quiet)
    assert (done.way, done.histogram.level) == ("embeddings", 1)


def test_the_commands_keep_and_carry(
    source: Dataset, target: Dataset, task: str, others: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (str(tmp_path / f"{number}.parquet") for number in range(3))
    count = ["histogram", task, "--data", source.root, "--processes", "1", "--out", first]
    assert main(count) == 0
    assert not Path(beside(first)).exists()
    carry_on = ["histogram", "carry", first, "--from", source.root, "--to", target.root, "--out", second]
    assert main(carry_on) == 0
    shown = capsys.readouterr().out
    assert "each leaf's centroid was assigned again\nall windows of a leaf went one way: a coarser --level" in shown
    assert "error: not measured, for want of examples. Give others of the task (--examples)" in shown
    assert main([*carry_on, "--keep-embeddings"]) == 2
    assert "--keep-embeddings: H must have embeddings to keep, got none beside it" in capsys.readouterr().err
    assert main([*count, "--keep-embeddings"]) == 0
    assert f"embeddings of its examples written to {tmp_path / '0.examples.parquet'}" in capsys.readouterr().out
    assert main([*carry_on, "--keep-embeddings", "--json", str(tmp_path / "c.json")]) == 0
    shown = capsys.readouterr().out
    assert "its examples' embeddings were counted again" in shown
    assert "held-out windows, means over 10 random halves" in shown
    record = json.loads((tmp_path / "c.json").read_text())
    assert (record["way"], record["missing"], record["error"]["splits"]) == ("embeddings", 0, 10)
    back = ["histogram", "carry", second, "--from", target.root, "--to", source.root, "--out", third]
    assert main([*back, "--examples", others, "--processes", "1"]) == 0  # by what was kept beside the second
    assert Histogram.load(third).fingerprint == Histogram.load(first).fingerprint
    assert "distance to " in capsys.readouterr().out
    assert main([*carry_on, "--by", "centroids", "--examples", others, "--processes", "1"]) == 0
    assert Histogram.load(second).counts is None
    assert main([*carry_on, "--embeddings", str(tmp_path / "none.parquet")]) == 2
    assert "no such file. Count the examples again: crisp-stream histogram count TASK…" in capsys.readouterr().err


def test_a_damaged_file_of_embeddings_is_told(counted: Path, tmp_path: Path) -> None:
    shutil.copy(counted, tmp_path / "h.parquet")
    assert embeddings_beside(tmp_path / "h.parquet", None) is None
    (tmp_path / "h.examples.parquet").write_bytes(Path(beside(counted)).read_bytes()[:-50])
    with pytest.raises(FormatError, match=r"h\.examples\.parquet: not embeddings of a task, or damaged"):
        embeddings_beside(tmp_path / "h.parquet", None)
    with pytest.raises(FormatError, match="not embeddings of a task"):
        embeddings_beside(tmp_path / "h.parquet", counted)
