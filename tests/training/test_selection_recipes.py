"""Recipes whose phases draw from a window selection: what they train on, what they record, what they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.config.load import load_each
from crisp_stream.errors import CrispError, InputError, RecipeError, ResumeError
from crisp_stream.models import gpt as model
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.models.export import export
from crisp_stream.models.training_record import training_record
from crisp_stream.training.mixture import build_mixture
from crisp_stream.training.train import train
from tests.support.selections import random_selection
from tests.support.small_runs import SmallRun, account_of, losses_of, small_run, windows_of
from tests.support.synthetic import write_synthetic_dataset


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def selection_file(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("selection") / "task.windows.parquet"
    random_selection(done.dataset, 0.3).save(path)
    return path


def overrides(path: Path, phase: int = 1) -> list[str]:
    return [f"mixture.phases.{phase}.histogram=null", f"mixture.phases.{phase}.windows={path}"]


def test_a_run_trains_on_the_corpus_and_then_on_a_selection_and_says_so(
    done: SmallRun, selection_file: Path, tmp_path: Path
) -> None:
    selection = random_selection(done.dataset, 0.3)
    folder = tmp_path / "run"
    again = [f"load_path={done.checkpoint(8)}", f"save_folder={folder}", "run_name=chosen"]
    train(done.recipe(*overrides(selection_file), *again))
    served = np.array(windows_of(folder))
    assert np.isin(served[-4:], selection.windows).all()
    assert windows_of(done.save_folder)[:8] != served.tolist()
    assert account_of(folder)["phases"][-1]["histogram"] == str(selection_file)
    record = training_record(read_checkpoint(folder / "latest-rank0.pt"), folder)
    phase = record["mixture"]["phases"][1]
    assert phase["histogram"] == "task.windows.parquet"
    assert phase["windows"] == {
        "fingerprint": selection.fingerprint,
        "selected": selection.num_selected,
        "of": done.dataset.manifest.num_windows,
    }
    assert (phase["first_sample"], phase["samples"]) == (64, 32)
    export(str(folder / "latest-rank0.pt"), str(tmp_path / "exported"))
    listed = f"task.windows.parquet ({selection.num_selected:,} of {selection.num_windows:,} windows)"
    assert listed in (tmp_path / "exported" / "README.md").read_text()


@pytest.fixture(scope="module")
def chosen_run(done: SmallRun, selection_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a selection to the end."""
    folder = tmp_path_factory.mktemp("chosen") / "run"
    train(done.recipe(f"save_folder={folder}", f"mixture.phases=[{{windows: {selection_file}}}]"))
    return folder


def test_a_run_from_the_checkpoint_of_a_selection_equals_the_switch_within_one_run(
    done: SmallRun, selection_file: Path, chosen_run: Path, tmp_path: Path
) -> None:
    named = f"mixture.phases=[{{windows: {selection_file}, until: 8ba}}, {{histogram: {done.histogram}}}]"
    train(done.recipe(f"save_folder={tmp_path}/whole", named))
    start = f"load_path={chosen_run}/ep0-ba8-rank0.pt"
    first = f"{{histogram: checkpoint, windows: {selection_file}}}"
    from_checkpoint = f"mixture.phases=[{first}, {{histogram: {done.histogram}}}]"
    for phases, folder in ((from_checkpoint, tmp_path / "run"), (named, tmp_path / "named")):
        train(done.recipe(f"save_folder={folder}", phases, start))
        assert windows_of(folder) == windows_of(tmp_path / "whole")
        assert losses_of(folder) == losses_of(tmp_path / "whole")
    assert windows_of(tmp_path / "whole")[:8] == windows_of(chosen_run)[:8]
    assert [phase["histogram"] for phase in account_of(tmp_path / "run")["phases"]] == [
        "checkpoint",
        str(done.histogram),
    ]
    record = training_record(read_checkpoint(tmp_path / "run" / "latest-rank0.pt"), tmp_path)
    assert [phase["histogram"] for phase in record["mixture"]["phases"]] == ["task.windows.parquet", "task.histogram"]
    assert record["mixture"]["phases"][0]["windows"]["selected"] == random_selection(done.dataset, 0.3).num_selected

    restart = ["load_restart=[schedule]", "max_duration=6ba", "scheduler.t_warmup=1ba", "save_interval=2ba"]
    train(done.recipe(f"save_folder={tmp_path}/restarted", from_checkpoint, start, *restart))
    assert windows_of(tmp_path / "restarted")[:4] == windows_of(tmp_path / "whole")[8:]
    again = [from_checkpoint, start, *restart, "autoresume=true", f"save_folder={tmp_path}/again"]
    (tmp_path / "again").mkdir()
    for name in ("ep0-ba2-rank0.pt", "ep0-ba4-rank0.pt"):
        shutil.copy(tmp_path / "restarted" / name, tmp_path / "again")
    (tmp_path / "again" / "latest-rank0.pt").symlink_to("ep0-ba4-rank0.pt")
    assert train(done.recipe(*again)).resumed_at == 4
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "restarted")


@pytest.mark.parametrize(
    ("first", "restart", "error", "message"),
    [
        ("histogram: checkpoint", "", ResumeError, r"phase 1 was drawn from the window selection .* Name its file"),
        ("histogram: checkpoint, windows: {other}", "", ResumeError, "; named: "),
        ("windows: {file}, until: 4ba", "schedule", RecipeError, r"`histogram: checkpoint` \(with `windows: FILE`"),
        ("histogram: checkpoint, windows: {file}, until: 4ba", "", RecipeError, "has neither `until` nor"),
    ],
)
def test_a_checkpoint_of_a_selection_needs_its_file(
    done: SmallRun,
    selection_file: Path,
    chosen_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    restart: str,
    error: type[CrispError],
    message: str,
) -> None:
    monkeypatch.setattr(model, "build_gpt", None)
    other = tmp_path / "other.windows.parquet"
    random_selection(done.dataset, 0.3, 7).save(other)
    phase = first.format(file=selection_file, other=other)
    with pytest.raises(error, match=message):
        train(
            done.recipe(
                f"save_folder={tmp_path}/run",
                f"load_path={chosen_run}/ep0-ba8-rank0.pt",
                f"load_restart=[{restart}]",
                f"mixture.phases=[{{{phase}}}, {{histogram: {done.histogram}}}]",
            )
        )


def test_a_phase_that_names_nothing_is_refused(done: SmallRun, selection_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"names no histogram, nor `mixture.phases.1.windows` a selection"):
        done.recipe("mixture.phases.1.histogram=null")


def test_a_selection_of_another_dataset_is_refused_before_training(done: SmallRun, tmp_path: Path) -> None:
    other = write_synthetic_dataset(tmp_path / "other", {0: 50, 6: 40, 12: 30})
    random_selection(other, 0.5).save(tmp_path / "other.windows.parquet")
    recipe = done.recipe(*overrides(tmp_path / "other.windows.parquet"))
    with pytest.raises(InputError, match="was made for dataset"):
        build_mixture(recipe, done.dataset)


def test_the_limit_on_repeats_counts_selected_windows(done: SmallRun, selection_file: Path) -> None:
    few = ["mixture.phases.1.max_repeats=0.1", "mixture.phases.1.on_excess=error"]
    with pytest.raises(InputError, match=r"phase 2: .* 32 samples of \d+ selected windows repeat each"):
        build_mixture(done.recipe(*overrides(selection_file), *few), done.dataset)
    mixture = build_mixture(done.recipe(*overrides(selection_file), "mixture.phases.1.max_repeats=1"), done.dataset)
    assert mixture.phases[1].windows == random_selection(done.dataset, 0.3)


def test_each_takes_histograms_and_selections(done: SmallRun, selection_file: Path) -> None:
    recipes = load_each(
        done.recipe_file, [f"save_folder={done.folder}/{{run_name}}"], ["a.parquet", str(selection_file)]
    )
    assert [recipe.run_name for recipe in recipes] == ["small-a", "small-task"]
    assert [recipe.mixture.phases[1].source for recipe in recipes] == ["a.parquet", str(selection_file)]
    assert [recipe.mixture.phases[1].windows for recipe in recipes] == [None, str(selection_file)]
