"""The simulation of a write: its model beside a real write of toy size, and its schedule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.write_scale import joined, simulated, stages_table
from benchmarks.writing.counted_write import Cost, CountedStore, Measured, uploads
from benchmarks.writing.scale_check import made, predicted
from benchmarks.writing.scale_model import Scale, stages_of, work_objects
from benchmarks.writing.scale_schedule import Machines, makespan, play

_REQUESTS = ("PUT", "GET", "HEAD", "LIST")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scale, Measured]:
    """A write of five parts, with a tree of two levels."""
    folder = tmp_path_factory.mktemp("scale")
    shape = {"window_tokens": 16, "part_characters": 100_000, "dim": 32, "arity": 4, "depth": 2, "vocab_size": 1000}
    return made(folder, (), characters=500_000, **shape)


def _compared(scale: Scale, measured: Measured) -> dict[str, tuple[Cost, Cost]]:
    """(predicted, measured) of each stage."""
    foretold = predicted(scale)
    assert set(foretold) == set(measured.stages)
    return {stage: (foretold[stage], cost) for stage, cost in measured.stages.items()}


def test_tasks_and_requests_of_a_real_write_are_those_of_the_model(written: tuple[Scale, Measured]) -> None:
    compared = _compared(*written)
    foretold, found = compared.pop("driver")
    assert foretold.requests["PUT"] == found.requests["PUT"]
    for stage, (foretold, found) in compared.items():
        assert (stage, foretold.tasks) == (stage, found.tasks)
        requests = [{kind: cost.requests[kind] for kind in _REQUESTS} for cost in (foretold, found)]
        assert (stage, requests[0]) == (stage, requests[1])


def test_bytes_of_a_real_write_are_those_of_the_model_within_a_few_per_cent(written: tuple[Scale, Measured]) -> None:
    compared = _compared(*written)
    compared.pop("driver")
    for name in ("read", "written"):
        pairs = {stage: tuple(getattr(cost, name) for cost in costs) for stage, costs in compared.items()}
        assert sum(foretold for foretold, _ in pairs.values()) == pytest.approx(sum(f for _, f in pairs.values()), 0.03)
        for stage, (foretold, found) in pairs.items():
            assert (stage, foretold) == (stage, pytest.approx(found, rel=0.08, abs=8_000))


def test_an_upload_above_the_size_of_a_part_takes_its_parts_and_two_requests_more() -> None:
    assert [uploads(size, 10) for size in (0, 10, 11, 30)] == [1, 1, 4, 5]


def test_the_counted_store_gives_what_was_put_and_says_which_requests_that_took(tmp_path: Path) -> None:
    from benchmarks.writing.counted_write import _Tally

    tally = _Tally()
    store = CountedStore(tmp_path, tally, "s3://counted/work")
    store.put("a/one", b"content")
    assert store.get_range("a/one", 2, 3) == b"nte"
    assert (store.object_bytes("a/one"), store.list("a")) == (7, [("a/one", 7)])
    store.delete("a/one")
    cost = tally.costs["driver"]
    assert dict(cost.requests) == {"PUT": 1, "GET": 1, "HEAD": 1, "LIST": 1, "DELETE": 1}
    assert (cost.read, cost.written) == (3, 7)


def test_tasks_go_to_the_worker_that_is_free_first() -> None:
    assert makespan(1, 5.0, 8) == 5.0
    assert makespan(8, 1.0, 8) < 1.6
    assert makespan(800, 1.0, 8) == pytest.approx(100, rel=0.05)
    assert makespan(1_000_000, 1.0, 8) == pytest.approx(125_000, rel=0.01)


def test_stages_follow_each_other_but_gpus_embed_while_windows_are_cut() -> None:
    stages = stages_of(Scale(windows=1e7, depth=3))
    played = play(stages, Machines(machines=2, cores=8, gpus=1))
    ends = {one.tasks.stage: one.start + one.seconds for one in played}
    starts = {one.tasks.stage: one.start for one in reversed(played)}
    assert starts["windows"] < starts["embeddings"] < ends["windows"] < ends["embeddings"]
    assert starts["tree-draws"] >= ends["embeddings"]
    assert starts["shards"] >= ends["ranges"]
    assert played[-1].tasks.stage == "delete work"


def test_a_slow_store_bounds_what_waits_for_requests() -> None:
    machines = Machines(machines=2, cores=8, gpus=1)
    fast, slow = (play(stages_of(Scale(windows=1e7)), replace(machines, latency=wait)) for wait in (0.001, 1.0))
    assert [one.bound for one in slow].count("cores: requests") > [one.bound for one in fast].count("cores: requests")
    assert slow[-1].start > fast[-1].start


def test_a_table_has_a_row_for_each_stage_and_totals_in_dollars() -> None:
    scale, machines = Scale(windows=1e8, dedup=True), Machines(machines=4, cores=16, gpus=1)
    stages = stages_of(scale)
    assert stages_table(play(stages, machines), machines).count("\n") == len(stages) + 1
    rows = joined(play(stages, machines))
    assert sum(one.tasks.count for one in rows) == sum(one.count for one in stages)
    assert [one.tasks.stage for one in rows].count("tree-draws") == 1
    assert "duplicates" in {one.stage for one in stages}
    assert "100,000,000 windows" in simulated(scale, machines)
    assert "**$" in simulated(scale, machines)
    assert work_objects(stages) > 5 * scale.parts
