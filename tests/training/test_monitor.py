"""What a run says of itself: mixture, repeats, losses by cluster, waits, all against the ids and losses it served."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import IterableDataset

from crisp_stream.config.sections import ModelRecipe
from crisp_stream.format.dataset import open_dataset
from crisp_stream.loading.loader import MixtureLoader
from crisp_stream.models import gpt as gpt_module
from crisp_stream.models.gpt import build_gpt, compile_blocks, gpt_config
from crisp_stream.training.callbacks.cluster_losses import ClusterLosses, WindowLosses
from crisp_stream.training.callbacks.served import ServedMixture
from crisp_stream.training.mixture import build_mixture
from crisp_stream.training.train import train
from tests.support.small_runs import SmallRun, account_of, copy_until, losses_of, small_run, windows_of, write_dataset

LONG = ("max_duration=90ba", "mixture.phases.0.until=70ba", "log_interval=5", "loggers.file=true", "save_interval=33ba")
"""720 samples of 504 windows: leaves run out."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def long(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save folder of a run through two phases with windows that come again."""
    folder = tmp_path_factory.mktemp("long") / "run"
    train(done.recipe(*LONG, f"save_folder={folder}"))
    return folder


def metrics_of(folder: Path) -> dict[str, dict[int, float]]:
    """Metric -> batch -> value, from the file logger of a run that was started once."""
    found: dict[str, dict[int, float]] = {}
    (log,) = (folder / "logs").glob("*-rank0.txt")
    for batch, name, value in re.findall(r"\[metric\]\[batch=(\d+)\]: (\S+): (\S+)", log.read_text()):
        found.setdefault(name, {})[int(batch)] = float(value)
    return found


def rows_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "cluster_losses.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_the_mixture_error_is_that_of_the_windows_served_over_phases_and_of_each_phase(
    done: SmallRun, long: Path
) -> None:
    leaves = done.dataset.leaf_of_windows(np.array(windows_of(long)))
    base, task = build_mixture(done.recipe(*LONG), done.dataset).leaf_proportions(done.dataset)
    metrics = metrics_of(long)

    def error(first: int, last: int, asked: np.ndarray) -> float:
        served = np.bincount(leaves[first:last].ravel(), minlength=16)
        return np.abs(served / served.sum() - asked).sum() / 2

    for batch in (5, 35, 70, 75, 90):
        after = max(batch - 70, 0)
        asked = (base * (batch - after) + task * after) / batch
        first, of_phase = (0, base) if batch <= 70 else (70, task)
        assert metrics["mixture/error"][batch] == pytest.approx(error(0, batch, asked), abs=2e-4)
        # At the end of a phase the next has served nothing: the error is that of the phase that ended.
        assert metrics["mixture/phase_error"][batch] == pytest.approx(error(first, batch, of_phase), abs=2e-4)
    phases = account_of(long)["phases"]
    assert phases[0]["mixture_error"] == pytest.approx(error(0, 70, base))
    assert phases[1]["mixture_error"] == pytest.approx(error(70, 90, task))


def test_repeated_windows_are_counted_as_a_set_of_all_ids_would(long: Path) -> None:
    metrics = metrics_of(long)["mixture/repeated"]
    seen: set[int] = set()
    repeats = served = 0
    for batch, windows in enumerate(windows_of(long), 1):
        for window in windows:
            repeats += window in seen
            seen.add(window)
        served += len(windows)
        if batch % 5 == 0:
            assert metrics[batch] == pytest.approx(repeats / served, abs=2e-4)
    assert repeats > 100
    assert account_of(long)["repeated_share"] == repeats / served


def test_losses_of_clusters_add_up_to_those_of_the_batches(long: Path) -> None:
    rows, losses = rows_of(long), np.array(losses_of(long), float)
    assert sorted({(row["first_batch"], row["last_batch"]) for row in rows}) == [
        (i + 1, i + 5) for i in range(0, 90, 5)
    ]
    for first in range(1, 90, 5):
        part = [row for row in rows if row["first_batch"] == first]
        assert sum(row["windows"] for row in part) == 5 * 8
        tokens = sum(row["tokens"] for row in part)
        assert tokens == 5 * 8 * 31
        mean = sum(row["tokens"] * row["loss"] for row in part) / tokens
        assert mean == pytest.approx(losses[first - 1 : first + 4].mean(), rel=1e-6)


def test_a_compiled_run_has_the_losses_of_one_that_is_not(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpt_module, "compile_blocks", lambda model, **_: compile_blocks(model, backend="aot_eager"))
    short = ("max_duration=4ba", "mixture.phases.0.until=2ba", "log_interval=2")
    for name, keys in {"plain": short, "compiled": (*short, "compile_config={}")}.items():
        train(done.recipe(*keys, f"save_folder={tmp_path / name}"))
    plain, compiled = (rows_of(tmp_path / name) for name in ("plain", "compiled"))
    assert len(plain) > 2
    for one, other in zip(plain, compiled, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_losses_of_clusters_are_logged_when_an_interval_ends(long: Path) -> None:
    metrics = metrics_of(long)
    for row in rows_of(long):
        logged = metrics[f"loss/cluster/{row['cluster']:.0f}"][int(row["last_batch"])]
        assert logged == pytest.approx(row["loss"], abs=1e-4)


def test_clusters_are_those_of_the_windows(done: SmallRun, long: Path) -> None:
    leaves = done.dataset.leaf_of_windows(np.array(windows_of(long)[:5]).ravel())
    manifest = done.dataset.manifest
    expected = np.bincount(leaves // manifest.arity ** (manifest.depth - 1), minlength=manifest.arity)
    served = {int(row["cluster"]): row["windows"] for row in rows_of(long) if row["first_batch"] == 1}
    assert served == {cluster: count for cluster, count in enumerate(expected.tolist()) if count}


def test_a_resumed_run_goes_on_with_what_was_measured(done: SmallRun, long: Path, tmp_path: Path) -> None:
    copy_until(long, 66, tmp_path / "run", first=33, every=33)
    train(done.recipe(*LONG, f"save_folder={tmp_path}/run", "autoresume=true"))
    assert (tmp_path / "run" / "cluster_losses.csv").read_text() == (long / "cluster_losses.csv").read_text()
    whole, resumed = account_of(long), account_of(tmp_path / "run")
    assert resumed["phases"] == whole["phases"]
    assert resumed["repeated_share"] == whole["repeated_share"]
    before, after = metrics_of(long), metrics_of(tmp_path / "run")
    for name in ("mixture/error", "mixture/phase_error", "mixture/repeated"):
        assert after[name] == {batch: value for batch, value in before[name].items() if batch > 66}


def test_losses_of_clusters_can_be_switched_off_and_change_no_loss(done: SmallRun, tmp_path: Path) -> None:
    train(done.recipe(f"save_folder={tmp_path}/run", "cluster_losses=false"))
    assert not (tmp_path / "run" / "cluster_losses.csv").exists()
    without, with_them = (np.array(losses_of(folder), float) for folder in (tmp_path / "run", done.save_folder))
    np.testing.assert_allclose(without, with_them, rtol=1e-5)


def test_losses_of_padded_windows_count_their_tokens(done: SmallRun, tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(97, 123, (504, 32)).astype(np.uint16)
    for row, length in enumerate(np.random.default_rng(2).integers(2, 32, len(tokens))):
        tokens[row, length:] = 256
    write_dataset(tmp_path / "padded", packing="document", tokens=tokens)
    overrides = [f"data.remote={tmp_path}/padded", "mixture.phases=[{histogram: base}]", "max_duration=3ba"]
    report = train(done.recipe(*overrides, f"save_folder={tmp_path}/run", "log_interval=1"))
    for batch, loss in enumerate(report.losses, 1):
        part = [row for row in rows_of(tmp_path / "run") if row["last_batch"] == batch]
        weights = [row["tokens"] for row in part]
        assert np.average([row["loss"] for row in part], weights=weights) == pytest.approx(loss, rel=1e-6)


def test_a_run_that_goes_on_from_another_measures_the_phases_that_it_serves(done: SmallRun, tmp_path: Path) -> None:
    train(done.recipe(f"save_folder={tmp_path}/generic", "mixture.phases=[{histogram: base}]"))
    start = [f"load_path={tmp_path}/generic/ep0-ba8-rank0.pt", "log_interval=2"]
    start.append(f"mixture.phases=[{{histogram: checkpoint}}, {{histogram: {done.histogram}}}]")
    train(done.recipe(f"save_folder={tmp_path}/same", *start))
    whole, same = account_of(done.save_folder), account_of(tmp_path / "same")
    assert [row["mixture_error"] for row in same["phases"]] == [row["mixture_error"] for row in whole["phases"]]
    assert all(row["mixture_error"] is not None for row in whole["phases"])
    restarted = ["load_restart=[schedule]", "max_duration=6ba", "loggers.file=true"]
    train(done.recipe(f"save_folder={tmp_path}/restarted", *start, *restarted))
    account, served = account_of(tmp_path / "restarted"), np.array(windows_of(tmp_path / "restarted"))
    counts = np.bincount(done.dataset.leaf_of_windows(served.ravel()), minlength=16)
    asked = np.array([1 / 3] * 3 + [0] * 13)
    error = np.abs(counts / counts.sum() - asked).sum() / 2
    assert [row["mixture_error"] for row in account["phases"]] == [None, pytest.approx(error)]
    assert account["mixture_error"] == pytest.approx(error)
    assert metrics_of(tmp_path / "restarted")["mixture/error"][6] == pytest.approx(error, abs=1e-4)
    assert {(row["first_batch"], row["last_batch"]) for row in rows_of(tmp_path / "restarted")} == {
        (1, 2),
        (3, 4),
        (5, 6),
    }


def small_gpt() -> tuple[Any, torch.Tensor]:
    model = ModelRecipe(n_embd=16, n_layer=1, n_head=2)
    gpt = build_gpt(gpt_config(model, vocab_size=50, window_tokens=12, eot_id=0), seed=1)
    labels = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(2))
    labels[1, 5:] = -100
    labels[3, 1:] = -100
    return gpt, labels


def test_the_loss_and_its_gradients_are_those_of_transformers() -> None:
    gpt, labels = small_gpt()
    inputs = labels.clamp(min=0)
    expected = gpt(input_ids=inputs, labels=labels).loss
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in gpt.parameters()]
    gpt.zero_grad()
    gpt.loss_function = kept = WindowLosses()
    loss = gpt(input_ids=inputs, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for parameter, gradient in zip(gpt.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert kept.tokens.tolist() == [11, 4, 11, 0]
    alone = gpt(input_ids=inputs[1:2], labels=labels[1:2]).loss
    torch.testing.assert_close(kept.sums[0] / kept.tokens[0], alone)


def test_losses_of_windows_are_float32_where_the_model_computes_in_bfloat16() -> None:
    gpt, labels = small_gpt()
    gpt.loss_function = kept = WindowLosses()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = gpt(input_ids=labels.clamp(min=0), labels=labels)
    assert (outputs.logits.dtype, kept.sums.dtype, outputs.loss.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(outputs.loss.detach(), kept.sums.sum() / kept.tokens.sum())


def test_a_compiled_training_step_keeps_the_losses_of_its_windows() -> None:
    torch._dynamo.reset()  # graphs of the tests before
    gpt, labels = small_gpt()
    gpt.loss_function = kept = WindowLosses()
    graphs = CompileCounterWithBackend("aot_eager")
    compile_blocks(gpt, backend=graphs, fullgraph=True)
    for rows in (labels, labels.flip(0)):
        loss = gpt(input_ids=rows.clamp(min=0), labels=rows).loss
        loss.backward()
        torch.testing.assert_close(loss.detach(), kept.sums.sum() / kept.tokens.sum())
    assert graphs.frame_count == 2  # the block, and the loss
    assert kept.tokens.tolist() == [0, 11, 4, 11]
    assert not kept.sums.requires_grad


def test_a_long_run_over_many_clusters_writes_few_rows(done: SmallRun) -> None:
    losses = ClusterLosses(done.dataset, first_batch=1, last_batch=10**6, log_interval=30)
    assert losses.interval % 30 == 0
    assert losses.num_clusters * 10**6 / losses.interval <= 1 << 16
    assert ClusterLosses(done.dataset, first_batch=901, last_batch=1000, log_interval=30).interval == 30


def test_the_error_of_an_open_phase_after_a_short_one_is_its_own(done: SmallRun, tmp_path: Path) -> None:
    dataset = open_dataset(done.dataset.root)
    mixture = build_mixture(done.recipe(), dataset)
    served = ServedMixture(mixture, dataset)
    base, task = mixture.leaf_proportions(dataset)
    counts = np.round(base * 64).astype(np.int64)
    counts[0] += 64 - counts.sum()
    served.advance(counts, 64)
    assert served.phase == 1
    counts[15] += 8
    served.advance(counts, 72)
    assert served.errors_of_phases(counts)[1] == pytest.approx(1.0)
    assert served.error(counts) == pytest.approx(np.abs(counts / 72 - (base * 64 + task * 8) / 72).sum() / 2)


class _Slow(IterableDataset[dict[str, torch.Tensor]]):
    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        import time

        for number in range(3):
            time.sleep(0.05)
            yield {"number": torch.tensor([number])}


def test_the_wait_for_the_loader_is_the_time_in_its_next() -> None:
    import time

    loader = MixtureLoader(_Slow())  # pyright: ignore[reportArgumentType]
    for _ in loader:
        time.sleep(0.1)
    assert 0.15 <= loader.waited < 0.25


def test_the_share_of_waiting_stands_in_the_account_and_is_logged_for_every_batch(long: Path) -> None:
    metrics = metrics_of(long)
    assert sorted(metrics["data/wait_share"]) == list(range(1, 91))
    assert all(0 <= share <= 1 for share in metrics["data/wait_share"].values())
    assert 0 < account_of(long)["data_wait_share"] < 1
    assert metrics["data/bytes_read"][90] == account_of(long)["bytes_read"]
    assert metrics["data/requests"][90] == account_of(long)["requests"]
