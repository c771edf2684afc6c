"""The contract of the stream: passes, places, states and changes, over all kinds of loaders.

What is expected is written from FORMAT.md: the order of one phase after the other, which pure functions give. Every
iteration goes on where the stream stands; a state says where that is.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import pickle
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import InputError, ResumeError
from crisp_stream.format.dataset import Dataset
from crisp_stream.loading.reader import ReadOptions
from crisp_stream.loading.serving import Serving
from crisp_stream.order.blocks import Blocks, OrderPhase
from crisp_stream.order.draw_table import DrawTable
from crisp_stream.order.draws import LeafShares
from crisp_stream.order.order import SampleOrder
from tests.support.synthetic import write_synthetic_dataset

WINDOWS = {0: 300, 3: 50, 5: 70, 9: 40, 15: 200}
SEED = 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("contract"), WINDOWS)


def only(dataset: Dataset, *leaves: int) -> Histogram:
    return Histogram.from_leaves(list(leaves), dataset.tree, 2)


def made(dataset: Dataset, samples: int | None = None, **options: Any) -> MixtureDataset:
    mixture = Mixture([Phase(Histogram.base(dataset.manifest), samples)])
    options = {"batch_size": 10, "seed": SEED, "reading": ReadOptions(lookahead=20), **options}
    return MixtureDataset(dataset, mixture, **options)


def windows(batches: Iterable[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [batch["window"].tolist() for batch in batches]


def flat(parts: Iterable[list[int]]) -> list[int]:
    return [window for part in parts for window in part]


def take(batches: Iterator[dict[str, torch.Tensor]], number: int) -> list[list[int]]:
    return [next(batches)["window"].tolist() for _ in range(number)]


def stream_by_the_book(
    dataset: Dataset, pass_samples: int | None, length: int, changes: list[tuple[int, Histogram]]
) -> list[int]:
    """The first windows of the base mixture in passes of `pass_samples`, with changes."""

    def shares(histogram: Histogram) -> LeafShares:
        return LeafShares.of(Mixture([Phase(histogram)]).proportions_of_phase(0, dataset))

    cuts = {at: histogram for at, histogram in changes}  # the last one at a place holds
    base = Histogram.base(dataset.manifest)
    starts = {number: base for number in ([0] if pass_samples is None else range(0, length + 1, pass_samples))} | cuts
    ordered = sorted(starts)
    phases = [
        OrderPhase(
            shares=functools.partial(shares, starts[first]),
            first_sample=first,
            num_samples=None if following is None else following - first,
        )
        for first, following in zip(ordered, [*ordered[1:], None], strict=True)
    ]
    order = SampleOrder(DrawTable.of_leaves(dataset.leaves, dataset.windows_per_leaf), phases, Blocks(seed=SEED))
    return order.window_ids(np.arange(length)).tolist()


LOADERS = {
    "itself": lambda dataset: dataset,
    "loader 0": lambda dataset: dataset.loader(),
    "loader 1": lambda dataset: dataset.loader(1),
    "loader 2": lambda dataset: dataset.loader(2),
    "persistent": lambda dataset: dataset.loader(2, persistent_workers=True),
    "DataLoader": lambda dataset: DataLoader(dataset, batch_size=None),
    "StatefulDataLoader": lambda dataset: StatefulDataLoader(dataset, batch_size=None),
}


@pytest.mark.parametrize("samples", [200, 205])
@pytest.mark.parametrize("name", LOADERS)
def test_passes_follow_each_other_and_a_finished_pass_is_the_beginning_of_the_next(
    dataset: Dataset, name: str, samples: int
) -> None:
    expected = stream_by_the_book(dataset, samples, 4 * samples, [])
    passes = [expected[first : first + 200] for first in range(0, 4 * samples, samples)]
    stream = made(dataset, samples)
    loader = LOADERS[name](stream)
    states = [stream.state_dict()]
    for number in range(3):
        torch.manual_seed(0)  # the same random numbers in every pass
        assert flat(windows(loader)) == passes[number]
        states.append(stream.state_dict())
        assert stream.state_dict(0) == stream.state_dict(200) == states[-1]
        assert [states[-1][key] for key in ("pass", "position", "samples")] == [number + 1, 0, (number + 1) * samples]
    for number, state in enumerate(states):
        resumed = made(dataset, samples)
        resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        assert flat(windows(resumed)) == passes[number]


@pytest.mark.parametrize("name", LOADERS)
def test_an_iteration_goes_on_where_the_last_one_was_left(dataset: Dataset, name: str) -> None:
    for samples in (None, 205):
        expected = stream_by_the_book(dataset, samples, 250, [])
        stream = made(dataset, samples)
        loader = LOADERS[name](stream)
        found = [window for _ in range(3) for window in flat(take(iter(loader), 4))]
        assert found == expected[:120]
        assert stream.state_dict()["samples"] == 120
        assert stream.state_dict(120) == stream.state_dict()
        assert stream.state_dict(40, from_beginning=False) == stream.state_dict()


def test_an_iteration_begins_where_the_stream_stood_when_it_was_asked_for(dataset: Dataset) -> None:
    expected = stream_by_the_book(dataset, None, 60, [])
    for num_workers in (0, 1):
        stream = made(dataset)
        loader = stream.loader(num_workers)
        first = iter(loader)
        stream.skip_to(40)
        assert flat(take(iter(loader), 2)) == expected[40:60]
        assert flat(take(first, 2)) == expected[:20]


def test_a_pass_that_workers_have_planned_and_nobody_took_is_not_over(dataset: Dataset) -> None:
    stream = made(dataset, 160, batch_size=8, reading=ReadOptions(lookahead=1000))
    batches = iter(stream.loader(2, prefetch_factor=30))
    assert stream.state_dict(0)["samples"] == 0
    take(batches, 3)
    assert stream.state_dict(0)["samples"] == 0
    assert stream.state_dict()["samples"] == 24


def test_the_number_of_samples_is_that_of_one_pass(dataset: Dataset) -> None:
    stream = made(dataset, 200)
    list(stream)
    take(iter(stream), 3)
    assert stream.state_dict(30)["samples"] == 230
    with pytest.raises(InputError, match="num_samples counts those of one pass, which has 200; got 230"):
        stream.state_dict(230)
    with pytest.raises(InputError, match="at most what was delivered in this pass, 30; got 40"):
        stream.state_dict(40)
    for wrong in (20.0, "20", None if False else True, -1):
        with pytest.raises(InputError, match="num_samples must be a whole number"):
            stream.state_dict(wrong)  # pyright: ignore[reportArgumentType]
    for right in (np.int64(20), torch.tensor(20)):
        assert stream.state_dict(right) == stream.state_dict(20)  # pyright: ignore[reportArgumentType]
    assert made(dataset, 200, batch_size=np.int64(10), seed=torch.tensor(SEED)).state_dict(0)["seed"] == SEED
    with pytest.raises(InputError, match=r"batch_size must be a whole number, got 8\.0"):
        made(dataset, 200, batch_size=8.0)


@dataclass
class Case:
    """A stream that is served in stretches, by different loaders and topologies, changed and saved on the way."""

    samples: int | None
    stretches: list[tuple[int, int, int]] = field(default_factory=list)
    """Batch size, number of workers (0: the dataset itself), batches taken."""
    changes: list[tuple[int, int]] = field(default_factory=list)
    """Before which stretch, and how many batches ahead of the earliest place."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    stretches = draw(
        st.lists(st.tuples(st.sampled_from([4, 5, 10]), st.just(0), st.integers(0, 30)), min_size=1, max_size=5)
    )
    changes = draw(st.lists(st.tuples(st.integers(0, len(stretches) - 1), st.integers(0, 37)), max_size=4))
    return Case(draw(st.sampled_from([None, 60, 83, 200])), stretches, sorted(changes, key=lambda change: change[0]))


def run(dataset: Dataset, case: Case) -> tuple[list[tuple[int, list[int]]], list[tuple[int, Histogram]]]:
    """What was served, batch by batch with its position, and the changes that were made."""
    served: list[tuple[int, list[int]]] = []
    changes: list[tuple[int, Histogram]] = []
    chosen = itertools.cycle([only(dataset, *leaves) for leaves in ((0, 3), (5,), (9, 15), (0, 15))])
    state = None
    for number, (batch_size, num_workers, count) in enumerate(case.stretches):
        stream = made(dataset, case.samples, batch_size=batch_size)
        if state is not None:
            stream.load_state_dict(state)
        loader = stream.loader(num_workers)
        batches = iter(loader) if num_workers == 0 else None  # workers would go on planning between two changes
        for ahead in (ahead for before, ahead in case.changes if before == number):
            changes.append((stream.set_proportions(histogram := next(chosen)), histogram))
            at = changes[-1][0] + ahead
            changes.append((stream.set_proportions(histogram := next(chosen), at_sample=at), histogram))
        while count:
            batches = iter(loader) if batches is None else batches
            place = stream.state_dict()["samples"]
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                place, batch = stream.state_dict()["samples"], next(batches)
            served.append((place, batch["window"].tolist()))
            count -= 1
        state = json.loads(json.dumps(stream.state_dict()))  # a state can stand in a JSON file
    return served, changes


def check(dataset: Dataset, case: Case) -> None:
    served, changes = run(dataset, case)
    if not served:
        return
    expected = stream_by_the_book(dataset, case.samples, served[-1][0] + 10, changes)
    for place, found in served:
        assert found == expected[place : place + len(found)]
    for (place, found), (following, _) in itertools.pairwise(served):
        gap = following - place - len(found)
        # Only the tail of a pass may be left out: less than a batch.
        assert gap == 0 or (case.samples is not None and following % case.samples == 0 and 0 < gap < 10)


@settings(max_examples=60)
@given(cases())
def test_any_run_serves_the_stream_of_the_book(dataset: Dataset, case: Case) -> None:
    check(dataset, case)


@pytest.mark.parametrize("samples", [None, 205])
def test_any_workers_serve_the_stream_of_the_book(dataset: Dataset, samples: int | None) -> None:
    stretches = [(10, 2, 13), (5, 1, 9), (4, 2, 30), (10, 0, 22)]
    check(dataset, Case(samples, stretches, [(0, 7), (1, 0), (2, 33), (3, 5)]))


def test_the_same_changes_give_the_same_stream_whatever_was_planned(dataset: Dataset) -> None:
    streams = []
    for num_workers, lookahead in ((0, 1), (0, 2000), (2, 20), (1, 500)):
        stream = made(dataset, reading=ReadOptions(lookahead=lookahead))
        batches = iter(stream.loader(num_workers))
        found = take(batches, 2)
        stream.set_proportions(only(dataset, 3), at_sample=5_000)
        stream.set_proportions(only(dataset, 0, 15), at_sample=5_007)
        stream.skip_to(4_990)
        streams.append((found, take(iter(stream.loader(num_workers)), 5)))
    assert streams == [streams[0]] * 4


def test_a_place_long_before_many_changes_is_refused_by_name_not_served_wrongly(dataset: Dataset) -> None:
    stream = made(dataset)
    batches = iter(stream)
    for number in range(40):
        stream.set_proportions(only(dataset, 3 if number % 2 else 5))
        next(batches)
    with pytest.raises(InputError, match=r"changed many times since sample 10, and is known from sample \d+ on"):
        stream.state_dict(10)
    assert stream.state_dict(390)["samples"] == 390  # the last few can be gone back to


def test_a_damaged_place_is_refused(dataset: Dataset) -> None:
    for samples, damage in ((205, {"pass": 10**15}), (205, {"position": 10**18}), (None, {"pass": 1})):
        with pytest.raises(ResumeError, match="the saved place is damaged"):
            made(dataset, samples).load_state_dict({**made(dataset, samples).state_dict(), **damage})


@pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])
def test_changes_reach_every_kind_of_copy_once(dataset: Dataset, context: str) -> None:
    stream = made(dataset, 400)
    first = flat(take(iter(stream), 2))
    changes = [(stream.set_proportions(only(dataset, 3, 9)), only(dataset, 3, 9))]
    changes.append((stream.set_proportions(only(dataset, 15), at_sample=changes[0][0] + 30), only(dataset, 15)))
    expected = stream_by_the_book(dataset, 400, 400, changes)
    copies = [copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))]
    assert first + flat(windows(stream.loader(2, multiprocessing_context=context))) == expected
    for copied in copies:
        assert flat(windows(copied)) == expected[20:]


@pytest.mark.parametrize("name", ["loader 2", "persistent", "itself"])
def test_changes_in_a_later_pass_and_between_loading_and_iterating(dataset: Dataset, name: str) -> None:
    stream = made(dataset, 200)
    loader = LOADERS[name](stream)
    for _ in range(2):
        windows(loader)
    at = stream.set_proportions(only(dataset, 3))
    assert at == 400
    assert stream.set_proportions(only(dataset, 5), at_sample=450) == 450
    third = flat(windows(loader))
    changes = [(400, only(dataset, 3)), (450, only(dataset, 5))]
    assert third == stream_by_the_book(dataset, 200, 600, changes)[400:]
    resumed = made(dataset, 200)
    again = LOADERS[name](resumed)
    resumed.skip_to(0)
    state = stream.state_dict()
    windows(again)
    resumed.load_state_dict(state)  # workers that stay follow it, too
    assert resumed.set_proportions(only(dataset, 9)) == 600
    assert flat(windows(again)) == stream_by_the_book(dataset, 200, 800, [*changes, (600, only(dataset, 9))])[600:]


def test_a_change_behind_the_last_whole_batch_stands_in_the_next_pass(dataset: Dataset) -> None:
    stream = made(dataset, 205)
    batches = iter(stream)
    take(batches, 20)
    assert stream.set_proportions(only(dataset, 3)) == 205
    assert set(dataset.leaf_of_windows(np.array(flat(windows(stream))))) == {3}


def test_a_plain_dataloader_with_workers_is_refused_where_it_would_repeat(dataset: Dataset) -> None:
    for samples in (None, 205):
        stream = made(dataset, samples)
        loader = DataLoader(stream, batch_size=None, num_workers=1)
        take(iter(loader), 3)
        for other in (loader, stream.loader(), stream.loader(1), stream, DataLoader(stream, batch_size=None)):
            with pytest.raises(InputError, match=r"Iterate dataset\.loader\(num_workers=…\)"):
                next(iter(other))
        with pytest.raises(InputError, match="say how many samples were trained on"):
            stream.state_dict()
        stream.load_state_dict(stream.state_dict(30))
        assert flat(take(iter(loader), 2)) == stream_by_the_book(dataset, samples, 50, [])[30:]
    with pytest.raises(InputError, match="num_samples 0 is the beginning of this pass or of the next"):
        stream.state_dict(0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_dataloader_that_collates_once_more_is_refused_in_its_first_batch(dataset: Dataset, num_workers: int) -> None:
    with pytest.raises(InputError, match=r"a MixtureDataset yields whole batches"):
        next(iter(DataLoader(made(dataset), batch_size=4, num_workers=num_workers)))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("taken", [0, 1, 2, 7, 19, 20])
def test_torchdata_goes_on_exactly_or_refuses_another_topology(dataset: Dataset, num_workers: int, taken: int) -> None:
    expected = stream_by_the_book(dataset, 205, 410, [])
    loader = StatefulDataLoader(made(dataset, 205), batch_size=None, num_workers=num_workers)
    batches = iter(loader)
    assert flat(take(batches, taken)) == expected[: 10 * taken]
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    again = StatefulDataLoader(made(dataset, 205), batch_size=None, num_workers=num_workers)
    again.load_state_dict(state)
    rest = flat(windows(again))
    assert rest == (expected[10 * taken : 200] if taken < 20 or num_workers else expected[205:405])
    if num_workers and taken:
        other = StatefulDataLoader(made(dataset, 205, batch_size=5), batch_size=None, num_workers=num_workers)
        other.load_state_dict(state)
        with pytest.raises(ResumeError, match="global_batch_size was 10, is 5"):
            next(iter(other))


def test_evaluation_serves_the_same_pass_each_time(dataset: Dataset) -> None:
    stream = made(dataset, 205, same_pass=True)
    expected = windows(made(dataset, 205))
    for loader in (stream.loader(), stream.loader(2), stream.loader(2, persistent_workers=True), stream):
        assert len(loader) == 20
        take(iter(loader), 3)  # left in the middle
        assert windows(loader) == windows(loader) == expected
    with pytest.raises(InputError, match="same_pass needs a mixture with an end"):
        made(dataset, same_pass=True)


def test_an_open_ended_stream_has_no_length(dataset: Dataset) -> None:
    for endless in (made(dataset), made(dataset).loader(2)):
        with pytest.raises(TypeError, match="open-ended"):
            len(endless)
        assert endless  # truth does not ask for the length


def test_a_dataset_can_be_read_by_a_person_and_misuse_names_the_argument(dataset: Dataset) -> None:
    stream = made(dataset, 205)
    take(iter(stream), 2)
    assert repr(stream) == (
        f"MixtureDataset({dataset.root!r}, 1 phase, 205 samples, batches of 10 x 1, seed 4, at sample 20)"
    )
    assert windows([next(iter(MixtureDataset(dataset, only(dataset, 3), batch_size=2)))])  # a histogram alone
    with pytest.raises(InputError, match="MixtureDataset needs a Mixture or a Histogram, got str"):
        MixtureDataset(dataset, "law.parquet", batch_size=2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="got an empty path"):
        MixtureDataset("", only(dataset, 3), batch_size=2)


def test_a_batch_that_does_not_come_is_an_error_that_names_the_worker(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Serving, "_claim", lambda *_, **__: time.sleep(60))
    with pytest.raises(
        OSError, match=r"no batch from DataLoader worker 0 of 2 \(process \d+, still running\) within 1 s"
    ):
        next(iter(made(dataset).loader(2, timeout=1)))


def test_batches_need_no_sockets_so_a_long_tmpdir_does_no_harm(
    dataset: Dataset, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    expected = windows(made(dataset, 205))
    assert windows(made(dataset, 205).loader(2, timeout=60)) == expected
    foreign = DataLoader(made(dataset, 205), batch_size=None, num_workers=2, timeout=60)
    assert windows(foreign) == expected
