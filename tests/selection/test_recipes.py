"""Recipes whose phases draw from a window selection: what they train on, what they record, what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crisp_stream.checkpoint import read_checkpoint
from crisp_stream.config import load_each
from crisp_stream.errors import InputError, RecipeError
from crisp_stream.export import export
from crisp_stream.prepare import build_mixture
from crisp_stream.train import train
from crisp_stream.training_record import training_record
from tests.selection.selections import random_selection
from tests.small_runs import SmallRun, account_of, small_run, windows_of
from tests.synthetic import write_synthetic_dataset


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


def test_a_phase_that_names_both_or_neither_is_refused(done: SmallRun, selection_file: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"phases.1` has both `histogram` and `windows`.*mixture.phases.1.histogram=null"
    ):
        done.recipe(f"mixture.phases.1.windows={selection_file}")
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
    with pytest.raises(InputError, match=r"phase 2: 32 samples of the \d+ selected windows repeat each"):
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
