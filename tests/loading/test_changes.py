"""Mixtures changed while training runs: exact, in every worker and rank, replayed on resume."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import InputError, ResumeError, StorageError
from crisp_stream.format.dataset import Dataset
from crisp_stream.loading import topology
from crisp_stream.loading.reader import ReadOptions
from tests.support.ports import free_port
from tests.support.synthetic import write_synthetic_dataset

WINDOWS = {0: 300, 3: 50, 5: 70, 9: 40, 15: 200}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("changes"), WINDOWS)


def only(dataset: Dataset, *leaves: int) -> Histogram:
    return Histogram.from_leaves(list(leaves), dataset.tree, 2)


def made(dataset: Dataset, *, samples: int | None = None, **options: object) -> MixtureDataset:
    mixture = Mixture([Phase(Histogram.base(dataset.manifest), samples)])
    options = {"batch_size": 10, "seed": 4, "reading": ReadOptions(lookahead=20), **options}
    return MixtureDataset(dataset.root, mixture, **options)  # pyright: ignore[reportArgumentType]


def served(dataset: Dataset, windows: list[int]) -> list[int]:
    return dataset.leaf_of_windows(np.array(windows)).tolist()


def front_to_back(dataset: Dataset, windows: list[int]) -> bool:
    """Whether every leaf was read cyclically, without a gap or a repeat."""
    ids = np.array(windows)
    rows = dataset.row_of_windows(ids)
    for row in np.unique(rows):
        own = ids[rows == row]
        count = int(dataset.windows_per_leaf[row])
        if not (np.diff(own) % count == 1 % count).all():
            return False
    return True


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_change_takes_effect_at_the_sample_that_is_returned(dataset: Dataset, num_workers: int) -> None:
    stream = made(dataset)
    batches = iter(DataLoader(stream, batch_size=None, num_workers=num_workers))
    windows = [int(window) for _ in range(5) for window in next(batches)["window"]]
    at = stream.set_proportions(only(dataset, 3, 9))
    assert at >= 50
    assert at % 10 == 0
    second = stream.set_proportions(only(dataset, 15), at_sample=at + 37)
    assert second == at + 37
    while len(windows) < at + 200:
        windows += next(batches)["window"].tolist()
    assert set(served(dataset, windows[:at])) == set(WINDOWS)
    assert set(served(dataset, windows[at : at + 37])) == {3, 9}
    assert set(served(dataset, windows[at + 37 :])) == {15}
    assert front_to_back(dataset, windows)
    unchanged = made(dataset).order().window_ids(np.arange(at)).tolist()
    assert windows[:at] == unchanged


def test_the_earliest_change_stands_behind_what_workers_have_planned(dataset: Dataset) -> None:
    stream = made(dataset, reading=ReadOptions(lookahead=1000))
    batches = iter(DataLoader(stream, batch_size=None, num_workers=2))
    for _ in range(30):
        next(batches)
    earliest = stream.set_proportions(only(dataset, 3))
    assert 300 < earliest <= 300 + 2 * 1000 + 2 * 10 * (100 + 3)
    with pytest.raises(InputError, match=f"at_sample {earliest - 10:,} is planned already"):
        stream.set_proportions(only(dataset, 5), at_sample=earliest - 10)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resume_replays_changes_made_and_to_come(dataset: Dataset, num_workers: int) -> None:
    stream = made(dataset)
    batches = iter(DataLoader(stream, batch_size=None, num_workers=num_workers))
    windows = [int(window) for _ in range(3) for window in next(batches)["window"]]
    at = stream.set_proportions(only(dataset, 0, 3, 9))
    stream.set_proportions(only(dataset, 5), at_sample=at + 55)
    while len(windows) < at + 300:
        windows += next(batches)["window"].tolist()
    for position in (30, at - 10, at, at + 20, at + 60, at + 290):
        state = pickle.loads(pickle.dumps(stream.state_dict(position)))
        resumed = made(dataset, batch_size=5)
        resumed.load_state_dict(state)
        again = iter(DataLoader(resumed, batch_size=None, num_workers=2))
        found = [int(window) for _ in range(12) for window in next(again)["window"]][: len(windows) - position]
        assert found == windows[position : position + len(found)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_new_mixture_for_every_batch(dataset: Dataset, num_workers: int) -> None:
    """As Soup-of-Experts training needs: mixtures are set a fixed number of batches ahead."""
    rng = np.random.default_rng(0)
    chosen = [sorted(int(leaf) for leaf in rng.choice(list(WINDOWS), 2, replace=False)) for _ in range(150)]
    ahead = 12
    stream = made(dataset)
    for number in range(ahead):
        stream.set_proportions(only(dataset, *chosen[number]), at_sample=10 * number)
    windows: list[int] = []
    states = {}
    batches = iter(DataLoader(stream, batch_size=None, num_workers=num_workers))
    for number in range(120):
        stream.set_proportions(only(dataset, *chosen[number + ahead]), at_sample=10 * (number + ahead))
        windows += next(batches)["window"].tolist()
        assert set(served(dataset, windows[-10:])) <= set(chosen[number])
        if number in (5, 60, 119):
            states[number] = stream.state_dict(len(windows))
    assert front_to_back(dataset, windows)
    assert len(pickle.dumps(states[119])) < 6000  # past mixtures are summed up, not kept
    for number, state in states.items():
        resumed = made(dataset)
        resumed.load_state_dict(state)
        again = next(iter(resumed))["window"].tolist()
        expected = windows[10 * (number + 1) : 10 * (number + 2)]
        assert again[: len(expected)] == expected
        assert set(served(dataset, again)) <= set(chosen[number + 1])


def test_a_change_in_a_mixture_with_an_end_lasts_until_the_end_of_the_pass(dataset: Dataset) -> None:
    stream = made(dataset, samples=200)
    stream.set_proportions(only(dataset, 3), at_sample=50)
    first = [int(window) for batch in stream for window in batch["window"]]
    second = [int(window) for batch in stream for window in batch["window"]]
    assert len(first) == len(second) == 200
    assert set(served(dataset, first[50:])) == {3}
    assert set(served(dataset, second)) == set(WINDOWS)
    assert front_to_back(dataset, first + second)


def test_changes_that_cannot_be_are_refused_and_leave_the_stream_as_it_was(dataset: Dataset, tmp_path: Path) -> None:
    stream = made(dataset)
    other = write_synthetic_dataset(tmp_path, {0: 10}, depth=1)
    with pytest.raises(InputError, match="counted with tree"):
        stream.set_proportions(Histogram.base(other.manifest))
    stream.set_proportions(only(dataset, 3), at_sample=100)
    with pytest.raises(InputError, match="at_sample 90 is planned already; the mixture can be changed from sample 100"):
        stream.set_proportions(only(dataset, 5), at_sample=90)
    ids = [int(window) for batch, _ in zip(stream, range(20), strict=False) for window in batch["window"]]
    assert set(served(dataset, ids[:100])) == set(WINDOWS)
    assert set(served(dataset, ids[100:])) == {3}


def test_a_change_that_is_never_finished_is_an_error_not_a_hang(dataset: Dataset) -> None:
    stream = made(dataset, reading=ReadOptions(lookahead=20, timeout=0.3))
    batches = iter(DataLoader(stream, batch_size=None, num_workers=1, timeout=100))  # below the stream's own 120 s
    next(batches)
    stream._control.hold()  # what a rank does whose others do not follow
    with pytest.raises(StorageError, match="a change of the mixture was begun but not finished within 0 s"):
        for _ in batches:
            pass


def test_ranks_agree_on_the_latest_of_their_positions(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = made(dataset)
    histogram = only(dataset, 3)
    others: list[tuple[int, list, int | None]] = [(70, [[1.0, "", histogram.fingerprint]], None)]

    def gather(into: list, own: tuple) -> None:
        into[:] = [own, *others]

    monkeypatch.setattr(topology.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(topology.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(topology.distributed, "all_gather_object", gather)
    assert stream.set_proportions(histogram) == 70
    others[0] = (100, [[1.0, "", "another"]], None)
    with pytest.raises(InputError, match="the same proportions and at_sample on every rank"):
        stream.set_proportions(histogram)


def test_a_damaged_saved_stream_is_refused(dataset: Dataset) -> None:
    stream = made(dataset)
    stream.set_proportions(only(dataset, 3), at_sample=100)
    for _ in zip(range(15), stream, strict=False):
        pass
    state = stream.state_dict(150)
    phase = state["stream"]["phases"][0]
    [component] = phase["components"]
    others = [{**component, "histogram": b"123"}, {**component, "windows": "0" * 64}, {**component, "source": "other"}]
    damages = [{"phases": [{**phase, "components": [other]}]} for other in others]
    for damage in ({"phases": []}, {"drawn": b"x"}, *damages):
        with pytest.raises(ResumeError, match="the saved stream of mixtures is damaged"):
            made(dataset).load_state_dict({**state, "stream": {**state["stream"], **damage}})


RANK_SCRIPT = """
import json, sys
from torch import distributed
from torch.utils.data import DataLoader
from crisp_stream import Histogram, Mixture, MixtureDataset, ReadOptions, open_dataset

root = sys.argv[1]
distributed.init_process_group("gloo")
rank = distributed.get_rank()
dataset = open_dataset(root)
mixture, reading = Mixture.base(dataset.manifest), ReadOptions(lookahead=30)
stream = MixtureDataset(dataset, mixture, batch_size=6, seed=4, reading=reading)
batches = iter(DataLoader(stream, batch_size=None, num_workers=2 * rank))
taken = [next(batches)["window"].tolist() for _ in range(3)]
changes = []
for leaf in (3, 15):
    changes.append(stream.set_proportions(Histogram.from_leaves([leaf], dataset.tree, 2)))
    taken += [next(batches)["window"].tolist() for _ in range(8)]
while len(taken) * 12 < changes[-1] + 60:
    taken.append(next(batches)["window"].tolist())
print(json.dumps([changes, taken]))
distributed.destroy_process_group()
"""


def test_real_ranks_with_different_workers_change_at_the_same_sample(dataset: Dataset) -> None:
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_SCRIPT, dataset.root],
            env={**os.environ, **common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = [json.loads(process.communicate(timeout=1500)[0]) for process in ranks]
    assert results[0][0] == results[1][0]
    first, second = results[0][0]
    assert first % 12 == second % 12 == 0
    windows = [one + other for one, other in zip(results[0][1], results[1][1], strict=True)]
    for number, batch in enumerate(windows):
        expected = {3} if first <= 12 * number < second else {15} if 12 * number >= second else set(WINDOWS)
        assert set(served(dataset, batch)) <= expected
    together = np.array([window for batch in windows for window in batch])
    assert len(np.unique(together[:first])) == first  # no window twice, no rank on its own
