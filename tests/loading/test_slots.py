"""Batches that travel through mapped slots: right, whatever number of them is on its way."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import CorruptDataError
from crisp_stream.format.dataset import Dataset
from crisp_stream.loading import ring
from crisp_stream.loading.ring import NUM_SLOTS, Ring
from tests.support.fault_runs import no_shared_memory_left
from tests.support.synthetic import synthetic_tokens, write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("ring"), {0: 300, 3: 50, 15: 200})


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
@pytest.mark.parametrize("prefetch_factor", [1, 3 * NUM_SLOTS])
def test_batches_arrive_as_they_were_sent(dataset: Dataset, context: str, prefetch_factor: int) -> None:
    loader = DataLoader(
        stream(dataset),
        batch_size=None,
        num_workers=2,
        prefetch_factor=prefetch_factor,
        multiprocessing_context=context,
    )
    expected = check(stream(dataset), dataset)
    found = iter(loader)
    first = next(found)
    time.sleep(0.5)  # workers fill all their slots while nothing is taken
    assert [first["window"].tolist(), *check(found, dataset)] == expected


def test_two_iterations_at_once_do_not_mix(dataset: Dataset) -> None:
    one, other = (DataLoader(stream(dataset), batch_size=None, num_workers=1) for _ in range(2))
    same = DataLoader(stream(dataset, 200), batch_size=None, num_workers=2)
    expected = check(stream(dataset), dataset)
    assert [check([a], dataset) + check([b], dataset) for a, b in zip(one, other, strict=True)] == [
        [windows, windows] for windows in expected
    ]
    begun = iter(same)
    next(begun)
    assert len(check(same, dataset)) == 25  # while the workers of the first iteration are alive
    assert len(check(begun, dataset)) == 24


def test_a_full_ring_a_large_batch_and_a_slot_with_another_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "_received", {})
    made, samples = Ring(1000), np.arange(250, dtype=np.uint32)
    places = [place for number in range(NUM_SLOTS) if (place := made.put(samples + number)) is not None]
    assert len(places) == NUM_SLOTS
    assert made.put(samples) is None
    assert made.put(np.zeros(100_000, np.uint8)) is None
    for number, place in reversed(list(enumerate(places))):
        content, mark = ring.taken((*place[:3], Duplicate(made), *place[4:]))
        assert (content.view(np.uint32) == samples + number).all()
        mark[:] = 0
    place = places[0]
    with pytest.raises(CorruptDataError, match="unpacked twice, or too late"):
        ring.taken(place)
    assert made.put(samples) is not None
    monkeypatch.setattr(ring, "_received", {})
    with pytest.raises(CorruptDataError, match="unpacked twice, or too late"):
        ring.taken((*place[:3], None, *place[4:]))


class Duplicate:
    """A descriptor as it arrives in the other process."""

    def __init__(self, made: Ring) -> None:
        self._file = made._file

    def detach(self) -> int:
        return os.dup(self._file)


def test_without_such_memory_batches_go_through_the_pipe(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.memfd_create")
    assert ring.made_ring(1000) is None
    assert check(DataLoader(stream(dataset), batch_size=None, num_workers=2), dataset) == check(
        stream(dataset), dataset
    )


def test_nothing_is_left_behind(dataset: Dataset, tmp_path: Path) -> None:
    with no_shared_memory_left(tmp_path / "processes"):
        check(DataLoader(stream(dataset), batch_size=None, num_workers=2), dataset)


def test_rings_of_workers_that_ended_are_let_go(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "_received", {})
    loader = DataLoader(stream(dataset, 80), batch_size=None, num_workers=2)
    for _ in range(4):
        assert len(list(loader)) == 10
    assert len(ring._received) <= 2
    monkeypatch.setattr(ring, "_received", {})
    stays = DataLoader(stream(dataset, 80), batch_size=None, num_workers=2, persistent_workers=True)
    for _ in range(4):
        assert len(list(stays)) == 10
    assert len(ring._received) == 2
