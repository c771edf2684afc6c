"""Training through Composer: it learns, accounts for itself, and resumes, switches and scales out window by window."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from crisp_stream import digits
from crisp_stream.errors import CrispError, FormatError, InputError, RecipeError, ResumeError, StorageError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.models import gpt as model
from crisp_stream.models.checkpoint import latest_checkpoint, local_copy, read_checkpoint
from crisp_stream.models.training_record import training_record
from crisp_stream.training.callbacks import lineage
from crisp_stream.training.callbacks.progress import Progress
from crisp_stream.training.train import _count_tokens, _split_batch, train
from tests.support.seaweed import S3Server
from tests.support.small_runs import (
    BATCHES,
    LEAVES,
    SmallRun,
    account_of,
    copy_until,
    leaf_histogram,
    losses_of,
    small_run,
    windows_of,
    write_dataset,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def test_a_run_learns_and_accounts_for_itself(done: SmallRun, tmp_path: Path) -> None:
    report = train(done.recipe(f"save_folder={tmp_path}/run", "max_duration=40ba", "mixture.phases.0.until=30ba"))
    assert report.batches == len(report.losses) == 40
    assert report.losses[0] == pytest.approx(np.log(260), abs=0.3)
    assert report.final_loss < report.losses[0] - 1.0
    assert report.samples == 40 * 8
    assert report.tokens == report.samples * 32
    assert report.bytes_read >= report.samples * done.dataset.manifest.sample_bytes
    assert [phase["samples"] for phase in report.phases] == [240, 80]
    assert [phase["first_batch"] for phase in report.phases] == [1, 31]
    assert [phase["leaves"] for phase in report.phases] == [16, 3]
    assert report.mixture_error < 0.03
    assert report.checkpoint == str(tmp_path / "run" / "ep0-ba40-rank0.pt")
    record = account_of(tmp_path / "run")
    assert record["dataset_fingerprint"] == done.dataset.manifest.fingerprint
    assert record["samples"] == 320
    assert "mixture error" in report.table()


def test_served_windows_stand_in_the_account(done: SmallRun) -> None:
    served = np.array([window for windows in windows_of(done.save_folder) for window in windows])
    leaves = done.dataset.leaf_of_windows(served)
    error = account_of(done.save_folder)["mixture_error"]
    asked = np.array(list(LEAVES.values())) / sum(LEAVES.values()) * 8 / 12
    asked[:3] += 4 / 12 / 3
    assert error == pytest.approx(np.abs(np.bincount(leaves, minlength=16) / len(served) - asked).sum() / 2)


def test_the_mixture_switches_between_two_batches(done: SmallRun) -> None:
    before, after = np.split(np.array(windows_of(done.save_folder)), [8])
    assert len(np.unique(done.dataset.leaf_of_windows(before.ravel()))) == 16
    assert set(done.dataset.leaf_of_windows(after.ravel())) == {0, 1, 2}


def test_the_same_recipe_gives_the_same_run(done: SmallRun, tmp_path: Path) -> None:
    train(done.recipe(f"save_folder={tmp_path}/run"))
    assert losses_of(tmp_path / "run") == losses_of(done.save_folder)
    assert windows_of(tmp_path / "run") == windows_of(done.save_folder)


@pytest.mark.parametrize(("batch", "workers"), [(4, 0), (8, 2)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    done: SmallRun, tmp_path: Path, batch: int, workers: int
) -> None:
    copy_until(done.save_folder, batch, tmp_path / "run")
    overrides = [f"save_folder={tmp_path}/run", "autoresume=true", f"data.num_workers={workers}"]
    report = train(done.recipe(*overrides))
    assert report.resumed_at == batch
    assert losses_of(tmp_path / "run") == losses_of(done.save_folder)
    assert windows_of(tmp_path / "run") == windows_of(done.save_folder)
    whole = account_of(done.save_folder)
    assert (report.samples, report.mixture_error) == (whole["samples"], whole["mixture_error"])
    assert report.bytes_read >= whole["bytes_read"]  # workers read ahead of the last batch


def test_a_run_whose_last_phase_is_capped_ends_and_resumes_like_any_other(done: SmallRun, tmp_path: Path) -> None:
    # 32 samples of the 24, 25 and 26 windows of leaves 0, 1 and 2: 10.7 each are asked, leaf 0 may have 10.3.
    capped = ("mixture.phases.1.max_repeats=0.43", "mixture.phases.1.on_excess=cap")
    whole = train(done.recipe(f"save_folder={tmp_path}/whole", *capped))
    assert (whole.batches, whole.samples) == (BATCHES, BATCHES * 8)
    assert whole.phases[1]["top_leaves"][-1] == {"leaf": 0, "proportion": pytest.approx(24 * 0.43 / 32)}
    copy_until(tmp_path / "whole", 8, tmp_path / "run")
    train(done.recipe(f"save_folder={tmp_path}/run", "autoresume=true", *capped))
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    assert windows_of(tmp_path / "run") == windows_of(tmp_path / "whole")


def test_autoresume_writes_again_what_an_interruption_left_beyond_the_newest_checkpoint(
    done: SmallRun, tmp_path: Path
) -> None:
    copy_until(done.save_folder, 8, tmp_path / "run")
    (tmp_path / "run" / "ep0-ba12-rank0.pt").write_bytes(b"half a checkpo")
    train(done.recipe(f"save_folder={tmp_path}/run", "autoresume=true"))
    assert losses_of(tmp_path / "run") == losses_of(done.save_folder)
    assert "model" in read_checkpoint(tmp_path / "run" / "ep0-ba12-rank0.pt")["state"]


def test_autoresume_of_a_finished_run_trains_nothing_more_and_says_so(
    done: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_until(done.save_folder, 12, tmp_path / "run")
    report = train(done.recipe(f"save_folder={tmp_path}/run", "autoresume=true"))
    assert report.batches == BATCHES
    assert report.checkpoint == str(tmp_path / "run" / "ep0-ba12-rank0.pt")
    assert losses_of(tmp_path / "run") == losses_of(done.save_folder)
    said = f"small is finished: {report.checkpoint} is where `max_duration` = 12ba ends, or beyond. Nothing is trained"
    assert said in capsys.readouterr().err


def test_how_and_how_long_a_run_is_carried_out_may_change_when_it_is_resumed(done: SmallRun, tmp_path: Path) -> None:
    copy_until(done.save_folder, 8, tmp_path / "run")
    changed = ["device_train_microbatch_size=2", "data.num_workers=1", "save_interval=3ba", "max_duration=14ba"]
    report = train(done.recipe(f"save_folder={tmp_path}/run", "autoresume=true", "run_name=other", *changed))
    assert (report.resumed_at, report.batches) == (8, 14)
    assert windows_of(tmp_path / "run")[:12] == windows_of(done.save_folder)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["optimizer.lr=0.5", "seed=6"], "`optimizer.lr` was 0.01, is 0.5; `seed` was 5, is 6"),
        (["data.remote={folder}/other"], "the dataset at `data.remote` was"),
        (["model.n_embd=16"], "`model.n_embd` was 32, is 16"),
        (
            ["mixture.phases.1.histogram={folder}/law.histogram"],
            "`mixture.phases.1.histogram` was task.histogram, is law.histogram",
        ),
        (["mixture.phases.1.histogram={folder}/task.histogram"], "has the same name and other contents"),
        (["global_train_batch_size=16"], "`global_train_batch_size` was 8, is 16"),
        (
            ["global_train_batch_size=16", "max_duration=6144tok", "scheduler.t_warmup=512tok"],
            "`global_train_batch_size` was 8, is 16",
        ),
    ],
)
def test_another_recipe_or_dataset_in_the_folder_of_a_run_is_refused_by_what_differs(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], part: str
) -> None:
    write_dataset(tmp_path / "other", seed=9)
    for name in ("law", "task"):
        leaf_histogram(done.dataset, [5, 6]).save(tmp_path / f"{name}.histogram")
    copy_until(done.save_folder, 8, tmp_path / "run")
    before = sorted((tmp_path / "run").iterdir())
    monkeypatch.setattr(model, "build_gpt", None)
    filled = [override.format(folder=tmp_path) for override in overrides]
    with pytest.raises(
        ResumeError, match=f"run holds another run: .*{part}.* For a run of its own: save_folder=FOLDER"
    ):
        train(done.recipe(f"save_folder={tmp_path}/run", "autoresume=true", *filled))
    assert sorted((tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("length", [["max_duration=12ba"], ["max_duration=6144tok", "scheduler.t_warmup=512tok"]])
def test_a_schedule_does_not_go_on_in_other_batches(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: list[str]
) -> None:
    monkeypatch.setattr(model, "build_gpt", None)
    overrides = [f"save_folder={tmp_path}/run", f"load_path={done.checkpoint(8)}", "global_train_batch_size=16"]
    with pytest.raises(RecipeError, match="is 16, but the checkpoint at `load_path` has counted batches of 8"):
        train(done.recipe(*overrides, *length))


def test_load_path_continues_a_run_in_another_folder(done: SmallRun, tmp_path: Path) -> None:
    train(done.recipe(f"save_folder={tmp_path}/run", f"load_path={done.checkpoint(8)}"))
    assert losses_of(tmp_path / "run") == losses_of(done.save_folder)


def test_weights_alone_start_a_new_run(done: SmallRun, tmp_path: Path) -> None:
    overrides = [f"save_folder={tmp_path}/run", f"load_path={done.checkpoint(12)}", "load_weights_only=true"]
    report = train(done.recipe(*overrides, "mixture.phases=[{histogram: base}]", "seed=6", "max_duration=4ba"))
    assert report.batches == 4
    assert report.resumed_at is None
    assert report.losses[0] < float(losses_of(done.save_folder)[0]) - 0.5


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["seed=6"], "seed was 5, is 6"),
        (["mixture.phases.0.until=7ba"], "phases begun before sample 64: 1 in the checkpoint, 2 in this mixture"),
        (["mixture.phases.0.histogram={histogram}"], "phase 1 was drawn by another histogram"),
        (["mixture.draw=multinomial"], "phase 1 had systematic draws, now multinomial"),
        (["data.remote={other}"], "dataset was"),
    ],
)
def test_resuming_something_else_fails_before_a_model_is_built(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], part: str
) -> None:
    write_dataset(tmp_path / "other", seed=9)
    monkeypatch.setattr(model, "build_gpt", None)
    changed = [override.format(other=tmp_path / "other", histogram=done.histogram) for override in overrides]
    with pytest.raises(ResumeError, match=part):
        train(done.recipe(f"save_folder={tmp_path}/run", f"load_path={done.checkpoint(8)}", *changed))


def test_a_folder_with_checkpoints_is_not_trained_into_by_accident(done: SmallRun) -> None:
    with pytest.raises(InputError, match=r"holds checkpoints of an earlier run\. Add autoresume=true"):
        train(done.recipe())
    other = ["optimizer.lr=0.5", f"save_folder={done.folder}/{{run_name}}", "run_name=run"]
    with pytest.raises(InputError, match=r"run holds another run: `optimizer.lr` was 0.01, is 0.5\. .*run_name=NAME"):
        train(done.recipe(*other))


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("true",))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.remote={folder}/nowhere"], FormatError, "manifest.json is missing"),
        (["precision=amp_bf16"], RecipeError, "`precision` amp_bf16 needs a GPU"),
        (["model.n_positions=16"], RecipeError, "`model.n_positions` is 16, but the dataset's windows have 32"),
        (["mixture.phases.0.histogram={folder}/no.histogram"], FormatError, "no such file"),
        (["mixture.phases=[{{histogram: {folder}/alien.histogram}}]"], InputError, "counted with tree"),
        (
            ["mixture.phases=[{{histogram: [base, {folder}/alien.histogram]}}]"],
            RecipeError,
            "`base` cannot be averaged",
        ),
        (["mixture.phases.0.until=100000tok"], RecipeError, "must lie after batch 0, .* and before batch 12"),
        (["load_path={folder}/none.pt"], InputError, "is not a checkpoint file"),
        (["load_path={folder}/text.pt"], FormatError, "text.pt"),
        (["load_path={folder}/code.pt"], FormatError, "holds something other than plain data and was not loaded"),
        (["load_path={folder}/list.pt"], FormatError, "is not a Composer checkpoint"),
        (
            ["load_path={saved}", "load_weights_only=true", "model.n_embd=16"],
            InputError,
            "holds a model with n_embd = 32",
        ),
        (["eval={{inputs: {folder}/none.jsonl}}"], CrispError, "none.jsonl"),
    ],
)
def test_what_cannot_work_fails_before_a_model_is_built(
    done: SmallRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    error: type[CrispError],
    message: str,
) -> None:
    write_dataset(tmp_path / "alien", arity=5)
    leaf_histogram(open_dataset(tmp_path / "alien"), [1]).save(tmp_path / "alien.histogram")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save({"state": {"model": _Code()}}, tmp_path / "code.pt")
    torch.save([1], tmp_path / "list.pt")
    monkeypatch.setattr(model, "build_gpt", None)
    filled = [override.format(folder=tmp_path, saved=done.checkpoint(8)) for override in overrides]
    with pytest.raises(error, match=message):
        train(done.recipe(f"save_folder={tmp_path}/runs/run", *filled))
    assert not (tmp_path / "runs").exists()


def test_microbatches_do_not_change_the_loss_when_windows_are_padded(done: SmallRun, tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(97, 123, (sum(LEAVES.values()), 32)).astype(np.uint16)
    for row, length in enumerate(np.random.default_rng(2).integers(2, 32, len(tokens))):
        tokens[row, length:] = 256
    write_dataset(tmp_path / "padded", packing="document", tokens=tokens)
    overrides = [f"data.remote={tmp_path}/padded", "mixture.phases=[{histogram: base}]", "max_duration=3ba"]
    overrides += ["save_folder=null", "log_windows=false"]
    whole = train(done.recipe(*overrides, "device_train_microbatch_size=8")).losses
    split = train(done.recipe(*overrides, "device_train_microbatch_size=1")).losses
    np.testing.assert_allclose(split, whole, rtol=1e-5)


def test_intervals_and_warm_up_may_be_shares_of_the_run(done: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text('{"text": "abcdefgh"}\n')
    shares = ["save_interval=0.5dur", "eval_interval=.25dur", "scheduler.t_warmup=0.25dur", "scheduler.alpha_f=1"]
    report = train(done.recipe(f"save_folder={tmp_path}/run", f"eval.inputs={tmp_path}/held.jsonl", *shares))
    assert sorted(path.name for path in (tmp_path / "run").glob("ep0*")) == ["ep0-ba12-rank0.pt", "ep0-ba6-rank0.pt"]
    assert [batch for batch, _ in report.held_out] == [3, 6, 9, 12]
    rates = [float(line.split(",")[2]) for line in (tmp_path / "run" / "losses.csv").read_text().splitlines()[1:]]
    assert rates[:4] == pytest.approx([0, 0, 0.01 / 3, 0.02 / 3])
    assert rates[4:] == pytest.approx([0.01] * 8)
    train(done.recipe(f"save_folder={tmp_path}/default", "save_interval=1dur"))
    assert [path.name for path in (tmp_path / "default").glob("ep0*")] == ["ep0-ba12-rank0.pt"]


def test_held_out_perplexity_during_the_run_is_that_of_its_checkpoint(
    done: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same figure, to the digits that both print, and with the precision beside it."""
    from crisp_stream.cli.main import main
    from crisp_stream.evaluation.perplexity import perplexity

    texts = ["abcdefgh" * length for length in range(1, 12)]
    (tmp_path / "held.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    overrides = [f"save_folder={tmp_path}/run", f"eval.inputs={tmp_path}/held.jsonl", "eval_interval=8ba"]
    report = train(done.recipe(*overrides))
    assert [batch for batch, _ in report.held_out] == [8, 12]
    assert report.checkpoint is not None
    assert report.held_out[-1][1] == pytest.approx(perplexity(report.checkpoint, texts).perplexity, rel=1e-5)
    assert losses_of(tmp_path / "run") == losses_of(done.save_folder)
    said = digits.perplexity(report.held_out[-1][1])
    assert f"batch 12  held-out perplexity {said}  (computed in float32)" in capsys.readouterr().err
    assert f"{said} at batch 12 (computed in float32)" in report.table()
    assert main(["eval", report.checkpoint, "--text", f"{tmp_path}/held.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert f" {said} [" in printed
    assert "all figures are computed in float32, whatever the precision of the training" in printed


def test_the_last_loss_is_one_figure_wherever_it_stands(done: SmallRun, tmp_path: Path) -> None:
    """The table of the run, run.json, the record of its checkpoint with the model card, and the page."""
    from crisp_stream.models.model_card import model_card
    from crisp_stream.models.training_record import training_record
    from crisp_stream.report.page import page_html
    from crisp_stream.report.runs import read_run

    folder = tmp_path / "run"
    report = train(done.recipe(f"save_folder={folder}", "max_duration=40ba", "mixture.phases.0.until=30ba"))
    mean = float(np.mean(report.losses[-4:]))
    assert mean != report.losses[-1]
    said = f"{mean:.4f}"
    assert f"last loss {said} (mean of the last 4 batches, in fp32)" in report.table()
    assert json.loads((folder / "run.json").read_text())["final_loss"] == pytest.approx(mean)
    assert report.checkpoint is not None
    with local_copy(report.checkpoint) as path:
        record = training_record(read_checkpoint(path), path)
    assert record["loss"] == {"final": pytest.approx(mean), "batches": 4}
    card = model_card(record | {"weights": {"parameters": 1, "dtype": "float32"}})
    assert f"| last loss (training) | {said} nats per token, mean of the last 4 batches, in fp32 |" in card
    page = page_html(done.dataset, {}, [read_run(str(folder), done.dataset)])
    assert f"small: last loss {said}<" in page
    assert f'{said} <span class="interval">mean of the last 4 batches</span>' in page


def test_a_run_saves_to_and_resumes_from_object_storage(done: SmallRun, tmp_path: Path, s3: S3Server) -> None:
    folder = s3.fresh_prefix("runs")
    report = train(done.recipe(f"save_folder={folder}", f"load_path={done.checkpoint(4)}"))
    assert report.checkpoint == f"{folder}/ep0-ba12-rank0.pt"
    assert latest_checkpoint(folder) == report.checkpoint
    assert report.losses == [float(loss) for loss in losses_of(done.save_folder)]
    train(done.recipe(f"save_folder={tmp_path}/run", f"load_path={folder}/ep0-ba8-rank0.pt"))
    assert losses_of(tmp_path / "run") == losses_of(done.save_folder)
    with local_copy(f"{folder}/latest-rank0.pt") as path:
        assert read_checkpoint(path)["state"]["timestamp"]["Timestamp"]["batch"] == 12
    with pytest.raises(StorageError):
        train(done.recipe(f"save_folder={tmp_path}/other", f"load_path={folder}/ep0-ba9-rank0.pt"))


def test_labels_are_counted_before_a_microbatch_is_on_the_device() -> None:
    labels = torch.tensor([[-100, 1, 2, 3], [5, 6, -100, -100], [7, 8, 9, -100]])
    batch = {"input_ids": torch.zeros((3, 4), dtype=torch.int64), "labels": labels}
    parts = _split_batch(batch, 2)
    without_values = [
        {key: value.to("meta") if key in batch else value for key, value in part.items()} for part in parts
    ]
    assert [_count_tokens(part) for part in without_values] == [
        {"total": 8, "loss_generating": 4},
        {"total": 4, "loss_generating": 2},
    ]
    assert _count_tokens(batch) == {"total": 12, "loss_generating": 6}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "start", "end"), [(io.StringIO(), "", "\n"), (_Terminal(), "\r\x1b[K", "")])
def test_progress_is_a_line_per_interval_or_one_line_that_keeps_up(stream: io.StringIO, start: str, end: str) -> None:
    progress, no_logger = Progress(num_batches=3, log_interval=2, stream=stream), cast(Any, None)
    for batch in range(4):
        timestamp = SimpleNamespace(batch=batch, token=100 * batch)
        state: Any = SimpleNamespace(timestamp=timestamp, total_loss_dict={"loss/train/total": 2.5})
        (progress.batch_end if batch else progress.fit_start)(state, no_logger)
    lines = stream.getvalue().split(start)[1:] if start else stream.getvalue().splitlines(keepends=True)
    assert len(lines) == 2
    assert lines[0].startswith("batch 1/3" if start else "batch 2/3")
    assert lines[-1].startswith("batch 3/3  loss 2.5000  300 tokens")
    assert lines[-1].endswith("0:00 left\n")
    assert lines[0].endswith(f"left{end}")


def test_a_run_resumed_on_other_packages_names_those_before(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_until(done.save_folder, 8, tmp_path / "run")
    monkeypatch.setattr(lineage, "_PACKAGES", {"torch": "numpy"})  # another version under the name of torch
    train(done.recipe(f"save_folder={tmp_path}/run", "autoresume=true"))
    records = [
        training_record(read_checkpoint(path), path)
        for path in (done.checkpoint(8), tmp_path / "run" / "ep0-ba12-rank0.pt")
    ]
    assert records[0]["earlier_versions"] == []
    assert records[1]["earlier_versions"] == [{"until_batch": 8, **records[0]["versions"]}]
