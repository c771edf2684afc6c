"""Batches that travel through mapped slots: right, whatever number of them is on its way."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import CorruptDataError
from crisp_stream.format.dataset import Dataset
from crisp_stream.loading import slots
from crisp_stream.loading.slots import GROUP_SLOTS, Slots
from tests.support.fault_runs import no_shared_memory_left
from tests.support.synthetic import synthetic_tokens, write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("slots"), {0: 300, 3: 50, 15: 200})


def stream(dataset: Dataset, samples: int = 400) -> MixtureDataset:
    mixture = Mixture([Phase(Histogram.base(dataset.manifest), samples)])
    return MixtureDataset(dataset.root, mixture, batch_size=8)


def check(batches: Any, dataset: Dataset) -> list[list[int]]:
    """The windows of batches, whose tokens are compared with the source."""
    tokens, windows = synthetic_tokens(dataset.manifest.num_windows, dataset.manifest.window_tokens), []
    for batch in batches:
        windows.append(batch["window"].tolist())
        assert (batch["input_ids"].numpy() == tokens[windows[-1]]).all()
        assert (batch["labels"] == batch["input_ids"]).all()
        assert (batch["cluster"].numpy() == dataset.leaf_of_windows(batch["window"].numpy())).all()
    return windows


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("prefetch_factor", [1, 3 * GROUP_SLOTS])
def test_batches_arrive_as_they_were_sent(dataset: Dataset, context: str, prefetch_factor: int) -> None:
    loader = stream(dataset).loader(2, prefetch_factor=prefetch_factor, multiprocessing_context=context)
    expected = check(stream(dataset), dataset)
    found = iter(loader)
    first = next(found)
    time.sleep(0.5)  # workers fill all their slots while nothing is taken
    assert [first["window"].tolist(), *check(found, dataset)] == expected


def test_two_iterations_at_once_do_not_mix(dataset: Dataset) -> None:
    one, other = (stream(dataset).loader(1) for _ in range(2))
    expected = check(stream(dataset), dataset)
    assert [check([a], dataset) + check([b], dataset) for a, b in zip(one, other, strict=True)] == [
        [windows, windows] for windows in expected
    ]
    same = stream(dataset, 200).loader(2)
    begun = iter(same)
    first = check([next(begun)], dataset)
    rest = check(same, dataset)  # while the workers of the first iteration are alive
    assert first + rest == check(stream(dataset, 200), dataset)
    assert check(begun, dataset) == rest


def test_full_slots_a_large_batch_and_a_slot_with_another_batch() -> None:
    made, samples = Slots(1000), np.arange(250, dtype=np.uint32)
    group = made.claim(1)
    assert group is not None
    places = [place for number in range(GROUP_SLOTS) if (place := made.put(group, samples + number)) is not None]
    assert len(places) == GROUP_SLOTS
    assert made.put(group, samples) is None
    assert made.put(group, np.zeros(100_000, np.uint8)) is None
    content, mark = slots.taken(places[0])
    for number, place in reversed(list(enumerate(places))):
        content, mark = slots.taken(place)
        assert (content.view(np.uint32) == samples + number).all()
        mark[:] = 0
    with pytest.raises(CorruptDataError, match="unpacked twice, or too late"):
        slots.taken(places[0])
    place = made.put(group, samples)
    assert place is not None
    del made, content, mark
    with pytest.raises(CorruptDataError, match="unpacked twice, or too late"):
        slots.taken(place)


def test_a_group_is_claimed_by_one_process_and_again_when_nothing_of_it_is_on_its_way() -> None:
    made, samples = Slots(1000), np.arange(250, dtype=np.uint32)
    assert made.claim(1) == made.claim(1) == 0
    assert made.put(0, samples) is not None
    made._owners[1] = os.getppid()  # a process that runs
    assert [made.claim(1), made.claim(2), made.claim(3)] == [2, 2, 0]
    assert made.put(0, samples) is not None
    made._owners[:] = 2**22 + 1  # one that does not
    assert [made.claim(4), made.claim(5)] == [1, 0]


def test_without_such_memory_batches_go_through_the_pipe(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.memfd_create")
    assert slots.made_slots(1000) is None
    assert check(stream(dataset).loader(2), dataset) == check(stream(dataset), dataset)


def test_nothing_is_left_behind(dataset: Dataset, tmp_path: Path) -> None:
    with no_shared_memory_left(tmp_path / "processes"):
        check(stream(dataset).loader(2), dataset)


@pytest.mark.parametrize("stay", [False, True])
def test_the_same_slots_serve_every_pass(dataset: Dataset, stay: bool) -> None:
    made = stream(dataset, 80)
    loader = made.loader(2, persistent_workers=stay)
    for _ in range(6):
        assert len(list(loader)) == 10
    assert made._slots is not None
    assert (made._slots._owners > 0).sum() <= 4
