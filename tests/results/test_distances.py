"""Improvement by distance to the specialist set: small cases by hand, and neighbours found otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import FormatError, InputError
from crisp_stream.results.distances import Distances, distance_bins, distances_table, nearest_distances, sorted_once
from tests.support.made_results import text_results


def made_distances(values: list[float], *, test: list[float] | None = None, first: int = 0) -> Distances:
    """Of examples numbered from `first`."""
    return Distances(
        examples=np.arange(first, first + len(values), dtype=np.uint64),
        distances=np.array(values),
        test_distances=np.array(test or []),
        facts={"specialist_examples": 7},
    )


def unit_rows(count: int, dim: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [7, 4096])
def test_the_nearest_neighbour_is_exact_for_any_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crisp_stream.results.distances._BLOCK_ROWS", block)
    queries, specialist = unit_rows(50, 12, 0), unit_rows(33, 12, 1)
    squared = ((queries[:, None].astype(float) - specialist[None].astype(float)) ** 2).sum(axis=2)
    assert np.allclose(nearest_distances(queries, specialist), squared.min(axis=1) / 2, atol=1e-6)


def test_distances_by_hand() -> None:
    queries = np.array([[1, 0], [0, 1], [-1, 0], [0.6, 0.8]], np.float32)
    specialist = np.array([[1, 0], [0.8, 0.6]], np.float32)
    assert np.allclose(nearest_distances(queries, specialist), [0, 0.4, 1.8, 0.04], atol=1e-6)


def test_the_improvement_is_the_mean_of_the_loss_saved_in_groups_of_equal_size() -> None:
    base = text_results("base", [1.0, 1.0, 2.0, 2.0])
    crisp = text_results("crisp", [0.5, 2.0, 1.0, 2.5])
    near, far = distance_bins([base, crisp], made_distances([0.1, 0.9, 0.2, 0.8]), baseline="base", bins=2)
    assert (near.num_examples, near.low, near.high, near.distance) == (2, 0.1, 0.2, pytest.approx(0.15))
    assert near.improvement.value == pytest.approx((0.5 + 1.0) / 2)
    half = 12.7062 * 0.25  # Student's t of two examples, and their standard error
    assert near.improvement.interval == pytest.approx((0.75 - half, 0.75 + half), rel=1e-4)
    assert far.improvement.value == pytest.approx((-1.0 - 0.5) / 2)


def test_every_example_is_in_one_bin_also_where_distances_are_equal() -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(0, 6, 200) / 10
    base, crisp = text_results("base", [1.0] * 200), text_results("crisp", (1 - values).tolist())
    bins = distance_bins([base, crisp], made_distances(values.tolist()), baseline="base", bins=10)
    assert sum(own.num_examples for own in bins) == 200
    for own in bins:
        inside = (values >= own.low) & (values <= own.high)
        assert own.num_examples == inside.sum()
        assert own.improvement.value == pytest.approx(values[inside].mean())
    same = distance_bins([base, crisp], made_distances([0.5] * 200), baseline="base")
    assert [own.num_examples for own in same] == [200]


def test_the_band_is_the_middle_half_of_the_specialist_test_examples() -> None:
    distances = made_distances([0.1, 0.2, 0.6, 0.9], test=[0.0, 0.1, 0.2, 0.3, 0.4])
    assert distances.band == (0.1, pytest.approx(0.3))
    base, crisp = text_results("base", [1.0] * 4), text_results("crisp", [0.5] * 4)
    bins = distance_bins([base, crisp], distances, baseline="base", bins=2)
    text = distances_table(bins, distances, baseline="base").text()
    rows = [line for line in text.splitlines() if line.startswith("news")]
    assert [row.endswith("band") for row in rows] == [True, False]
    assert "middle half of 5 specialist test examples, at distances 0.100 to 0.300" in text
    assert made_distances([0.1]).band is None


def test_examples_are_found_by_their_hashes_whatever_their_order() -> None:
    ids = np.array([2**63 + 5, 9, 40, 9], np.uint64)
    examples, values = sorted_once(ids, np.array([0.5, 0.9, 0.4, 0.9]))
    found = Distances(examples=examples, distances=values, test_distances=np.empty(0), facts={})
    assert found.of(np.array([40, 2**63 + 5, 9], np.uint64)).tolist() == [0.4, 0.5, 0.9]
    assert np.isnan(found.of(np.array([0, 2**64 - 1], np.uint64))).all()


def test_a_set_whose_examples_have_no_distance_is_left_alone_and_one_that_has_some_refused() -> None:
    results = [
        text_results("base", [1.0, 1.0]),
        text_results("crisp", [0.5, 1.5]),
        text_results("base", [1.0, 1.0], set_name="law", ids=[70, 71]),
        text_results("crisp", [1.0, 1.0], set_name="law", ids=[70, 71]),
    ]
    bins = distance_bins(results, made_distances([0.1, 0.2]), baseline="base", bins=1)
    assert [own.judged.name for own in bins] == ["news"]
    with pytest.raises(InputError, match="news: 1 of 2 examples have no distance"):
        distance_bins(results, made_distances([0.1]), baseline="base")
    with pytest.raises(InputError, match="no set that was judged has distances"):
        distance_bins(results, made_distances([0.1], first=900), baseline="base")
    with pytest.raises(InputError, match="--bins: must be at least 1, got 0"):
        distance_bins(results, made_distances([0.1, 0.2]), baseline="base", bins=0)


def test_saved_distances_are_read_as_they_were(tmp_path: Path) -> None:
    distances = made_distances([0.25, 0.5], test=[0.125])
    read = Distances.load(distances.save(tmp_path / "d.parquet"))
    assert read.examples.tolist() == [0, 1]
    assert read.distances.tolist() == [0.25, 0.5]
    assert read.test_distances.tolist() == [0.125]
    assert read.facts == {"specialist_examples": 7}


def test_a_file_of_something_else_or_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    for name in ("other.parquet", "text.parquet"):
        with pytest.raises(FormatError, match="not distances, or damaged"):
            Distances.load(tmp_path / name)
    table = pq.read_table(made_distances([0.5]).save(tmp_path / "d.parquet"))
    newer = {b"crisp_stream.distances": json.dumps({"distances_version": 2}).encode()}
    pq.write_table(table.replace_schema_metadata(newer), tmp_path / "newer.parquet")
    with pytest.raises(FormatError, match="distances_version 2 is not 1"):
        Distances.load(tmp_path / "newer.parquet")


def test_the_command_reads_distances_prints_draws_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for found in (text_results("base", [1.0] * 8), text_results("crisp", [0.5] * 4 + [1.5] * 4)):
        found.save(tmp_path)
    saved = made_distances([n / 10 for n in range(8)], test=[0.1, 0.2]).save(tmp_path / "d.parquet")
    csv, plot = tmp_path / "o.csv", tmp_path / "o.svg"
    command = ["results", "distance", str(tmp_path), "--than", "base", "--bins", "2", "--csv", str(csv)]
    assert main([*command, "--distances", saved, "--plot", str(plot)]) == 0
    assert "+0.5000 [+0.5000, +0.5000]" in capsys.readouterr().out
    head, *body = (line.split(",") for line in csv.read_text().splitlines())
    assert [float(line[head.index("improvement")]) for line in body] == [0.5, -0.5]
    assert [float(line[head.index("band_low")]) for line in body] == [pytest.approx(0.125)] * 2
    assert plot.read_bytes().endswith(b"</svg>\n")
    assert main(command) == 2
    assert "needs --distances FILE, or --specialist" in capsys.readouterr().err
    assert main([*command, "--specialist", "x.jsonl"]) == 2
    assert "need --texts INPUT… and --data ROOT" in capsys.readouterr().err
