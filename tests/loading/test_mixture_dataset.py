"""MixtureDataset: ranks, workers, resume, phases, padding."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import FormatError, InputError, ResumeError
from crisp_stream.format.dataset import Dataset
from crisp_stream.loading.reader import ReadOptions
from crisp_stream.loading.topology import Topology
from tests.support.seaweed import S3Server
from tests.support.synthetic import EOT_ID, synthetic_tokens, upload, write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("mixed"), {0: 300, 3: 50, 5: 70, 15: 200})


@pytest.fixture(scope="module")
def mixture(dataset: Dataset) -> Mixture:
    """130 samples of the corpus, then 200 of a specialist."""
    specialist = Histogram.from_leaves([0, 0, 3, 15], dataset.tree, 2)
    return Mixture([Phase(Histogram.base(dataset.manifest), 130), Phase(specialist, 200)])


def windows(batches: Iterable[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [batch["window"].tolist() for batch in batches]


def flat(parts: Iterable[list[int]]) -> list[int]:
    return [window for part in parts for window in part]


def test_batches_have_the_tokens_of_their_windows(dataset: Dataset, mixture: Mixture) -> None:
    made = MixtureDataset(dataset.root, mixture, batch_size=6)
    batch: dict[str, torch.Tensor] = {}
    for batch in made:
        assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
        assert batch["input_ids"].shape == (6, 32)
        assert (batch["input_ids"][:, 0] + 256 * batch["input_ids"][:, 1] == batch["window"]).all()
        assert (dataset.leaf_of_windows(batch["window"].numpy()) == batch["cluster"].numpy()).all()
        assert (batch["labels"] == batch["input_ids"]).all()
    alone = made.window(int(batch["window"][3]))
    assert all((alone[key][0] == batch[key][3]).all() for key in batch)
    with pytest.raises(InputError, match="window must be a whole number from 0 to 619, got 620"):
        made.window(620)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # more than the cores here
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_batches_do_not_depend_on_workers(dataset: Dataset, mixture: Mixture, num_workers: int) -> None:
    made = MixtureDataset(dataset.root, mixture, batch_size=8, seed=3)
    expected = made.order().window_ids(np.arange(328)).reshape(-1, 8).tolist()
    assert windows(made.loader(num_workers)) == expected
    again = MixtureDataset(dataset.root, mixture, batch_size=8, seed=3)
    assert windows(DataLoader(again, batch_size=None, num_workers=num_workers)) == expected


def test_a_resume_at_any_batch_continues_the_uninterrupted_run(dataset: Dataset, mixture: Mixture) -> None:
    made = MixtureDataset(dataset.root, mixture, batch_size=10)
    whole, second_pass = windows(made), windows(made)
    for num_batches in (0, 1, 12, 13, 14, 32, 33):
        running = MixtureDataset(dataset.root, mixture, batch_size=10)
        batches = iter(running.loader())
        for _ in range(num_batches):
            next(batches)
        saved = running.state_dict(num_batches * 10, from_beginning=True)
        assert saved == running.state_dict() == running.loader().state_dict()
        resumed = MixtureDataset(dataset.root, mixture, batch_size=5)
        resumed.load_state_dict(saved)
        expected = whole[num_batches:] if num_batches < 33 else second_pass
        assert flat(windows(resumed.loader(2))) == flat(expected)


@pytest.mark.parametrize(("world_size", "ranks_per_node"), [(2, 2), (2, 1), (4, 2), (6, 3)])
def test_ranks_together_make_the_global_batches_of_one_process(
    dataset: Dataset, mixture: Mixture, world_size: int, ranks_per_node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = windows(MixtureDataset(dataset.root, mixture, batch_size=12))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_per_node))
    parts = []
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        made = MixtureDataset(dataset.root, mixture, batch_size=12 // world_size)
        parts.append(windows(made.loader(rank % 2)))
    for number, expected in enumerate(one):
        assert sorted(flat(part[number] for part in parts)) == sorted(expected)


def test_the_switch_stands_at_the_exact_sample(dataset: Dataset, mixture: Mixture) -> None:
    clusters = [int(batch["cluster"]) for batch in MixtureDataset(dataset.root, mixture, batch_size=1)]
    assert len(clusters) == 330
    assert 5 in clusters[:130]
    assert 5 not in clusters[130:]


def test_the_part_of_a_last_batch_is_left_out_and_said_so(
    dataset: Dataset, mixture: Mixture, caplog: pytest.LogCaptureFixture
) -> None:
    made = MixtureDataset(dataset.root, mixture, batch_size=100)
    with caplog.at_level(logging.WARNING):
        assert len(windows(made)) == len(made) == 3
    assert "the last 30 samples of the mixture do not fill a global batch of 100" in caplog.text


def test_a_state_of_something_else_is_refused_by_name(dataset: Dataset, mixture: Mixture, tmp_path: Path) -> None:
    state = MixtureDataset(dataset.root, mixture, batch_size=4, seed=1).state_dict(0)
    other_root = write_synthetic_dataset(tmp_path, {0: 300, 3: 50, 5: 70, 15: 201})
    others = {
        "seed was 1, is 2": MixtureDataset(dataset.root, mixture, batch_size=4, seed=2),
        "mixture was": MixtureDataset(dataset.root, Mixture.base(dataset.manifest), batch_size=4, seed=1),
        "dataset was": MixtureDataset(other_root.root, mixture, batch_size=4, seed=1),
    }
    for message, other in others.items():
        with pytest.raises(ResumeError, match=f"cannot resume: {message}"):
            other.load_state_dict(state)
    same = MixtureDataset(dataset.root, mixture, batch_size=4, seed=1)
    with pytest.raises(ResumeError, match="order_version was 99, is 3"):
        same.load_state_dict({**state, "order_version": 99})
    with pytest.raises(
        ResumeError, match=r"pass, position and samples must be integers >= 0, got \[None, None, None\]"
    ):
        same.load_state_dict({})


def test_document_packing_masks_what_follows_the_end_of_the_text(tmp_path: Path) -> None:
    tokens = synthetic_tokens(4, 32)
    tokens[1, 10:] = EOT_ID
    tokens[2, 31] = EOT_ID
    made = write_synthetic_dataset(tmp_path / "document", {0: 4}, tokens=tokens, packing="document")
    once = Mixture([Phase(Histogram.base(made.manifest), 4)])
    labels = {int(batch["window"]): batch["labels"][0] for batch in MixtureDataset(made.root, once, batch_size=1)}
    assert labels[0].tolist() == tokens[0].tolist()
    assert labels[1].tolist() == [*tokens[1, :11].tolist(), *[-100] * 21]
    assert labels[2].tolist() == tokens[2].tolist()


@pytest.mark.parametrize(("replication", "ranks_per_node"), [(2, 4), (4, 4), (4, 2), (2, 2)])
def test_ranks_of_a_replication_group_get_the_same_samples(
    dataset: Dataset, mixture: Mixture, replication: int, ranks_per_node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world_size = 8
    groups = world_size // replication
    one = windows(MixtureDataset(dataset.root, mixture, batch_size=12))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_per_node))
    parts = []
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        made = MixtureDataset(dataset.root, mixture, batch_size=12 // groups, replication=replication)
        assert made.global_batch_size == 12
        parts.append(windows(made))
    for rank in range(world_size):
        assert parts[rank] == parts[rank // replication * replication]
    for number, expected in enumerate(one):
        served = [parts[group * replication][number] for group in range(groups)]
        assert sorted(flat(served)) == sorted(expected)


def test_a_replication_that_does_not_divide_the_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match="replication must divide the 8 ranks, got 3"):
        Topology.current(replication=3)
    with pytest.raises(InputError, match="replication must divide the 8 ranks, got 0"):
        Topology.current(replication=0)


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_without_drop_last_the_tail_is_served_in_equal_parts(
    dataset: Dataset,
    mixture: Mixture,
    world_size: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch_size = 100 // world_size
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    parts = []
    for rank in range(world_size):
        monkeypatch.setenv("RANK", str(rank))
        made = MixtureDataset(dataset.root, mixture, batch_size=batch_size, drop_last=False)
        parts.append(windows(made.loader(rank % 2 * 2)))
        assert len(made) == len(parts[-1])
    left = 330 % (batch_size * world_size)
    assert [[len(batch) for batch in part] for part in parts] == [[batch_size] * 3 + [left // world_size]] * world_size
    together = flat(batch for part in parts for batch in part)
    order = MixtureDataset(dataset.root, mixture, batch_size=1).order().window_ids(np.arange(330))
    assert sorted(together) == sorted(order[: 330 - left % world_size])
    assert (f"the last {left % world_size} samples" in caplog.text) == bool(left % world_size)


@pytest.mark.parametrize(("batch_size", "world_size", "drop_last"), [(331, 1, True), (111, 3, True), (400, 400, False)])
def test_a_mixture_that_is_shorter_than_a_batch_is_refused(
    dataset: Dataset,
    mixture: Mixture,
    batch_size: int,
    world_size: int,
    drop_last: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setenv("RANK", "0")
    of_all = f"{batch_size * world_size:,}"
    with pytest.raises(InputError, match=f"a mixture of 330 samples does not fill one global batch of {of_all}"):
        MixtureDataset(dataset.root, mixture, batch_size=batch_size, drop_last=drop_last)


def test_a_collate_function_may_look_into_batches_of_a_worker(dataset: Dataset, mixture: Mixture) -> None:
    def shifted(batch: Any) -> dict[str, torch.Tensor]:
        return {**batch, "labels": batch["labels"] + 1}

    made = MixtureDataset(dataset.root, mixture, batch_size=8)
    plain = next(iter(DataLoader(made, batch_size=None, num_workers=1)))
    again = MixtureDataset(dataset.root, mixture, batch_size=8)
    shifted_batch = next(iter(DataLoader(again, batch_size=None, num_workers=1, collate_fn=shifted)))
    alone = next(iter(MixtureDataset(dataset.root, mixture, batch_size=8)))
    assert isinstance(plain, dict)
    assert plain.keys() == alone.keys()
    for key, expected in alone.items():
        assert plain[key].dtype == expected.dtype == torch.int64
        assert plain[key].shape == expected.shape
    assert (alone["labels"] == alone["input_ids"]).all()
    assert (plain["window"] == alone["window"]).all()
    assert (shifted_batch["labels"] == shifted_batch["input_ids"] + 1).all()


def test_training_straight_from_s3_with_forked_workers_equals_the_folder(
    dataset: Dataset, mixture: Mixture, s3: S3Server, tmp_path: Path
) -> None:
    url = upload(dataset, s3.fresh_prefix())
    expected = windows(MixtureDataset(dataset.root, mixture, batch_size=10))
    for num_workers in (0, 2):
        made = MixtureDataset(
            url, mixture, batch_size=10, reading=ReadOptions(local=tmp_path / str(num_workers), cache_limit=1 << 20)
        )
        assert windows(made.loader(num_workers)) == expected
        assert 0 < made.requests < 120  # those of workers count, too
        assert made.bytes_read > 0


def test_a_root_without_dataset_and_a_bad_batch_size_are_refused(
    dataset: Dataset, mixture: Mixture, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=r"manifest\.json is missing"):
        MixtureDataset(tmp_path, mixture, batch_size=1)
    with pytest.raises(InputError, match="lookahead must be at least 1, got 0"):
        ReadOptions(lookahead=0)
    with pytest.raises(InputError, match="batch_size must be a whole number of at least 1, got 0"):
        MixtureDataset(dataset.root, mixture, batch_size=0)


def test_an_impossible_topology_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="rank 3 of 2"):
        Topology.current()
