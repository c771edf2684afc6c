"""Elasticity: the same global batches for any nodes, ranks and workers, by arithmetic and by real processes.

One run is interrupted three times and goes on with another number of processes each time: 1, 2, 4, and 1 again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crisp_stream import MixtureDataset
from crisp_stream.loading.topology import Topology
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.order.blocks import Blocks
from crisp_stream.order.draw_table import DrawTable
from crisp_stream.order.order import SampleOrder, phases_in_turn
from crisp_stream.training.mixture import build_mixture
from crisp_stream.training.train import train
from tests.support.small_runs import BATCHES, SmallRun, account_of, copy_until, launch, losses_of, small_run, windows_of

UNSCALED = ("optimizer.eps=1e-3", "gradient_clipping=50.0")
"""With these a gradient twice too large shows; clipping and Adam's usual eps would hide it."""

CLIPPED = ("optimizer.eps=1e-3", "gradient_clipping=0.02")
"""With these every gradient is clipped, to so little that a run without clipping goes elsewhere."""


def served_by(topology: Topology, start: int, batch: int, num_workers: int, num_batches: int) -> list[np.ndarray]:
    """A rank's positions, batch by batch as its DataLoader hands them out: worker w makes batches w, w + W, …"""
    queues = [
        iter([topology.positions(start + number * batch, batch // topology.world_size) for number in numbers])
        for numbers in (range(worker, num_batches, num_workers) for worker in range(num_workers))
    ]
    return [next(queues[number % num_workers]) for number in range(num_batches)]


@st.composite
def segments(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int, int]]]:
    """A global batch, and stretches of a run: (nodes, ranks per node, workers, batches), where the ranks divide it."""
    batch = draw(st.sampled_from([1, 6, 12, 16, 30]))
    divisors = [count for count in range(1, batch + 1) if batch % count == 0]
    stretch = st.sampled_from(divisors).flatmap(
        lambda world: st.tuples(
            st.sampled_from([count for count in divisors if world % count == 0]),
            st.just(world),
            st.integers(1, 4),
            st.integers(1, 5),
        )
    )
    drawn = draw(st.lists(stretch, min_size=1, max_size=4))
    return batch, [(nodes, world // nodes, workers, count) for nodes, world, workers, count in drawn]


@given(segments(), st.integers(0, 2**63 - 1), st.sampled_from(["systematic", "multinomial"]))
def test_any_nodes_ranks_and_workers_serve_the_global_batches_of_one_process(
    made: tuple[int, list[tuple[int, int, int, int]]], seed: int, way: str
) -> None:
    batch, stretches = made
    leaves, windows = np.arange(7), np.array([3, 50, 8, 1, 20, 13, 9])
    phases = [(windows / windows.sum(), 37), (np.array([0.5, 0, 0, 0.2, 0.3, 0, 0]), None)]
    blocks = Blocks(seed=seed, draw=way, first_block_samples=64, block_samples=64)  # pyright: ignore[reportArgumentType]
    order = SampleOrder(DrawTable.of_leaves(leaves, windows), phases_in_turn(phases), blocks)
    start = 0
    for nodes, ranks_per_node, num_workers, num_batches in stretches:
        world = nodes * ranks_per_node
        topologies = [Topology(rank=rank, world_size=world, ranks_per_node=ranks_per_node) for rank in range(world)]
        ranks = [served_by(topology, start, batch, num_workers, num_batches) for topology in topologies]
        for number in range(num_batches):
            first = start + number * batch
            positions = np.concatenate([rank[number] for rank in ranks])
            assert {len(rank[number]) for rank in ranks} == {batch // world}
            assert sorted(positions.tolist()) == list(range(first, first + batch))
            together = np.concatenate([order.window_ids(rank[number]) for rank in ranks])
            assert sorted(together.tolist()) == sorted(order.window_ids(np.arange(first, first + batch)).tolist())
        start += num_batches * batch


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def two_processes(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save folders of two processes: `resumed` from batch 4 of the run of one; from the start `sharded`, `clipped`."""
    folder = tmp_path_factory.mktemp("two")
    copy_until(done.save_folder, 4, folder / "resumed")
    resumed = [f"save_folder={folder}/resumed", "autoresume=true", "data.num_workers=2"]
    sharded = [f"save_folder={folder}/sharded", "device_train_microbatch_size=2", "fsdp={}", "data.num_workers=1"]
    clipped = [f"save_folder={folder}/clipped", "fsdp={}", *CLIPPED]
    phases = f"[{{histogram: checkpoint}}, {{histogram: {done.histogram}}}]"
    continued = [f"save_folder={folder}/continued", f"load_path={done.checkpoint(8)}", f"mixture.phases={phases}"]
    launch(done, 2, [resumed, [*sharded, *UNSCALED], clipped, [*continued, "fsdp={}"]], folder)
    return folder


@pytest.fixture(scope="module")
def four_processes(done: SmallRun, two_processes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save folder of four processes that went on from batch 8 of the two."""
    folder = tmp_path_factory.mktemp("four")
    copy_until(two_processes / "resumed", 8, folder / "resumed")
    overrides = [f"save_folder={folder}/resumed", "autoresume=true", "save_interval=2ba", "data.num_workers=1"]
    launch(done, 4, [overrides], folder)
    return folder / "resumed"


@pytest.fixture(scope="module")
def one_process_again(done: SmallRun, four_processes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save folder of this process that went on from batch 10 of the four."""
    folder = tmp_path_factory.mktemp("one") / "resumed"
    copy_until(four_processes, 10, folder, first=10)
    report = train(done.recipe(f"save_folder={folder}", "autoresume=true"))
    assert report.resumed_at == 10
    return folder


def test_device_time_is_that_of_all_processes_of_each_part(
    done: SmallRun, two_processes: Path, four_processes: Path, one_process_again: Path
) -> None:
    stretches = [(done.save_folder, 4, 1), (two_processes / "resumed", 8, 2), (four_processes, 10, 4)]
    expected, before = 0.0, 0.0
    for folder, batch, processes in [*stretches, (one_process_again, BATCHES, 1)]:
        account = read_checkpoint(folder / f"ep0-ba{batch}-rank0.pt")["state"]["callbacks"]["RunAccount"]
        wall = account["totals"]["wall_seconds"]
        expected, before = expected + processes * (wall - before), wall
        assert account["device_seconds"] == {"CPU": pytest.approx(expected)}
        assert wall > 0
    assert expected > before


def check_equal_run(done: SmallRun, folder: Path) -> None:
    """The windows of every global batch are those of the pure order; losses and account are those of one process."""
    mixture = build_mixture(done.recipe(), done.dataset)
    order = MixtureDataset(done.dataset.root, mixture, batch_size=8, seed=done.recipe().seed).order()
    expected = order.window_ids(np.arange(BATCHES * 8)).reshape(BATCHES, 8)
    assert [sorted(batch) for batch in windows_of(folder)] == np.sort(expected, axis=1).tolist()
    one, several = (np.array(losses_of(run), float) for run in (done.save_folder, folder))
    np.testing.assert_allclose(several, one, rtol=1e-3)
    assert account_of(folder)["mixture_error"] == account_of(done.save_folder)["mixture_error"]
    models = (
        read_checkpoint(run / f"ep0-ba{BATCHES}-rank0.pt")["state"]["model"] for run in (done.save_folder, folder)
    )
    one_model, other_model = models
    for key, value in one_model.items():
        torch.testing.assert_close(other_model[key], value, rtol=1e-2, atol=1e-3)


def test_one_process_serves_the_pure_order(done: SmallRun) -> None:
    check_equal_run(done, done.save_folder)


def test_two_processes_go_on_from_one(done: SmallRun, two_processes: Path) -> None:
    check_equal_run(done, two_processes / "resumed")


def test_four_processes_go_on_from_two(done: SmallRun, four_processes: Path) -> None:
    check_equal_run(done, four_processes)


def test_one_process_goes_on_from_four(done: SmallRun, one_process_again: Path) -> None:
    check_equal_run(done, one_process_again)


def test_a_sharded_model_trains_alike_and_saves_a_whole_checkpoint(
    done: SmallRun, two_processes: Path, tmp_path: Path
) -> None:
    train(done.recipe(f"save_folder={tmp_path}/run", *UNSCALED))
    assert windows_of(two_processes / "sharded") == windows_of(tmp_path / "run")
    one, two = (np.array(losses_of(folder), float) for folder in (tmp_path / "run", two_processes / "sharded"))
    np.testing.assert_allclose(two, one, rtol=1e-4)
    folders = (tmp_path / "run", two_processes / "sharded")
    one_model, two_model = (read_checkpoint(folder / "ep0-ba12-rank0.pt")["state"]["model"] for folder in folders)
    for key, value in one_model.items():
        torch.testing.assert_close(two_model[key], value, rtol=1e-2, atol=1e-3)


def test_sharded_processes_go_on_from_a_checkpoint_of_one_process_as_after_a_switch(
    done: SmallRun, two_processes: Path
) -> None:
    assert windows_of(two_processes / "continued") == windows_of(done.save_folder)
    one, two = (np.array(losses_of(folder), float) for folder in (done.save_folder, two_processes / "continued"))
    np.testing.assert_allclose(two, one, rtol=1e-3)
    assert [phase["samples"] for phase in account_of(two_processes / "continued")["phases"]] == [64, 32]


def test_the_gradient_of_a_sharded_model_is_clipped_as_a_whole(
    done: SmallRun, two_processes: Path, tmp_path: Path
) -> None:
    train(done.recipe(f"save_folder={tmp_path}/run", *CLIPPED))
    train(done.recipe(f"save_folder={tmp_path}/unclipped", *UNSCALED))
    runs = (tmp_path / "run", two_processes / "clipped", tmp_path / "unclipped")
    one, two, unclipped = (np.array(losses_of(folder), float) for folder in runs)
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert abs(unclipped - one).max() > 0.1
