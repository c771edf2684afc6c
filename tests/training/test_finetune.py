"""Fine-tuning with the fraction of steps validated, and one generic checkpoint for several tasks, by their commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from crisp_stream.cli.main import main
from crisp_stream.config.load import load_each, load_recipe
from crisp_stream.errors import InputError, RecipeError
from crisp_stream.evaluation.perplexity import perplexity
from crisp_stream.models.checkpoint import checkpoints_by_batch
from crisp_stream.training.finetune import FinetunedModel, best, finetune, table
from tests.support.ranks import Command, start_ranks
from tests.support.small_runs import (
    SmallRun,
    account_of,
    leaf_histogram,
    losses_of,
    small_run,
    windows_of,
    write_dataset,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("valid") / "valid.jsonl"
    path.write_text("".join(json.dumps({"text": "abcdefgh" * length}) + "\n" for length in range(1, 9)))
    return path


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("specialist") / "dataset", seed=9).root


def arguments(done: SmallRun, specialist: str, folder: Path) -> list[str]:
    return [
        str(done.recipe_file),
        f"data.remote={specialist}",
        f"save_folder={folder}",
        "mixture.phases=[{histogram: base}]",
        "autoresume=true",
    ]


def test_each_fraction_starts_where_the_pretraining_leaves_it_and_the_best_is_named(
    done: SmallRun, specialist: str, valid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["finetune", *arguments(done, specialist, tmp_path / "tuned"), "--pretrained", str(done.save_folder)]
    given += ["--text", str(valid), "--fractions", "1", "0.3", "0.67"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    with (tmp_path / "tuned" / "finetune.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(round(float(row["fraction"]), 3), int(row["batches"])) for row in rows] == [
        (0.0, 0),
        (0.333, 4),
        (0.667, 8),
        (1.0, 12),
    ]
    assert [Path(row["start"]).name for row in rows] == [
        "ep0-ba12-rank0.pt",
        "ep0-ba8-rank0.pt",
        "ep0-ba4-rank0.pt",
        "",
    ]
    texts = [json.loads(line)["text"] for line in valid.read_text().splitlines()]
    for row in rows:
        assert float(row["perplexity"]) == perplexity(row["checkpoint"], texts).perplexity
    chosen = min(rows, key=lambda row: float(row["perplexity"]))
    marked = [line for line in printed.splitlines() if line.endswith("<- best")]
    assert len(marked) == 1
    assert chosen["checkpoint"] in marked[0]
    alone = windows_of(Path(rows[3]["checkpoint"]).parent)
    assert windows_of(Path(rows[1]["checkpoint"]).parent) == alone[:4]
    # Again: everything is kept, and the same is found.
    assert main(given) == 0
    assert f"batch {12:,}/{12:,}" not in capsys.readouterr().err
    with (tmp_path / "tuned" / "finetune.csv").open() as file:
        assert list(csv.DictReader(file)) == rows


def test_two_processes_find_what_one_finds(done: SmallRun, specialist: str, valid: Path, tmp_path: Path) -> None:
    def given(name: str) -> list[str]:
        own = arguments(done, specialist, tmp_path / name)
        return [*own, "--pretrained", str(done.save_folder), "--text", str(valid), "--fractions", "0.3", "1"]

    assert main(["finetune", *given("one")]) == 0
    first, second = start_ranks(2, Command("finetune", *given("two")), tmp_path)
    assert (first.end(), second.end()) == (0, 0), first.text + second.text
    assert (first.text.count("<- best"), second.text.count("<- best")) == (1, 0)
    one, two = (
        list(csv.DictReader((tmp_path / name / "finetune.csv").read_text().splitlines())) for name in ("one", "two")
    )
    for first, second in zip(one, two, strict=True):
        assert float(second["perplexity"]) == pytest.approx(float(first["perplexity"]), rel=1e-4)
        assert (second["fraction"], second["start"]) == (first["fraction"], first["start"])
    failed = given("failed")
    failed[failed.index(str(valid))] = str(tmp_path / "none.jsonl")
    both = start_ranks(2, Command("finetune", *failed), tmp_path)
    assert [rank.end() for rank in both] == [2, 2]
    assert all("none.jsonl" in rank.text for rank in both)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ([0.0], "a fraction must lie above 0 and at most at 1, got 0"),
        ([1.5], "a fraction must lie above 0 and at most at 1, got 1.5"),
        ([0.03], r"no checkpoint near batch 12, where fine-tuning 3.00% of 12 steps would start; saved are 4, 8, 12"),
    ],
)
def test_a_fraction_without_a_checkpoint_is_refused(
    done: SmallRun, specialist: str, valid: Path, tmp_path: Path, fractions: list[float], message: str
) -> None:
    path, *overrides = arguments(done, specialist, tmp_path / "tuned")
    recipe = load_recipe([path, "finetune"], [f"eval.inputs={valid}", *overrides])
    with pytest.raises(InputError, match=message):
        finetune(recipe, pretrained=str(done.save_folder), fractions=fractions, log=print)
    assert not (tmp_path / "tuned").exists()


def test_a_pretraining_of_another_length_or_none_is_refused(
    done: SmallRun, specialist: str, valid: Path, tmp_path: Path
) -> None:
    path, *overrides = arguments(done, specialist, tmp_path / "tuned")
    longer = load_recipe([path, "finetune"], [f"eval.inputs={valid}", *overrides, "max_duration=20ba"])
    with pytest.raises(InputError, match=r"finished run of `max_duration` = 20 batches, but its last .* batch 12"):
        finetune(longer, pretrained=str(done.save_folder), fractions=[0.3], log=print)
    with pytest.raises(InputError, match="but it holds no checkpoint"):
        finetune(longer, pretrained=str(tmp_path), fractions=[0.3], log=print)
    with pytest.raises(RecipeError, match="fine-tuning needs `eval`; there is none"):
        finetune(load_recipe([path, "finetune"], overrides), pretrained="p", fractions=[0.3], log=print)
    in_tokens = ["max_duration=3072tok", "scheduler.t_warmup=0tok"]
    tokens = load_recipe([path, "finetune"], [f"eval.inputs={valid}", *overrides, *in_tokens])
    with pytest.raises(RecipeError, match="`max_duration` in batches"):
        finetune(tokens, pretrained="p", fractions=[0.3], log=print)


def test_of_equal_models_the_one_with_least_fine_tuning_is_best() -> None:
    made = [
        FinetunedModel(fraction=share, start=None, batches=1, perplexity=value, checkpoint=f"c{share}")
        for share, value in ((0.0, 9.0), (0.1, 7.5), (0.3, 7.5), (1.0, 20.0))
    ]
    assert best(made).fraction == 0.1
    assert [line.endswith("<- best") for line in table(made).body().splitlines()] == [False, False, True, False, False]


def test_one_generic_checkpoint_serves_several_tasks_by_one_command(
    done: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.parquet"
    leaf_histogram(done.dataset, [7, 9]).save(other)
    given = [
        "train",
        str(done.recipe_file),
        "from-checkpoint",
        f"load_path={done.checkpoint(4)}",
        f"save_folder={tmp_path}/{{run_name}}",
        "--each",
        str(done.histogram),
        str(other),
    ]
    assert main(given) == 0
    assert capsys.readouterr().out.count("mixture error") == 2
    task, others = account_of(tmp_path / "small-task"), account_of(tmp_path / "small-other")
    assert {row["leaf"] for row in task["phases"][1]["top_leaves"]} == {0, 1, 2}
    assert {row["leaf"] for row in others["phases"][1]["top_leaves"]} == {7, 9}
    assert losses_of(tmp_path / "small-task")[:4] == losses_of(tmp_path / "small-other")[:4]
    assert windows_of(tmp_path / "small-task")[:4] == windows_of(done.save_folder)[:4]


def test_each_needs_runs_that_can_be_told_apart(done: SmallRun) -> None:
    with pytest.raises(RecipeError, match="these must differ; got a, a"):
        load_each(done.recipe_file, ["save_folder=runs/{run_name}"], ["a.parquet", "b/a.parquet"])
    with pytest.raises(RecipeError, match=r"`save_folder` must hold \{run_name\}"):
        load_each(done.recipe_file, [], ["a.parquet", "b.parquet"])
    assert load_each(done.recipe_file, [], []) == [done.recipe()]


def test_checkpoints_are_found_by_their_batch(done: SmallRun, tmp_path: Path) -> None:
    assert list(checkpoints_by_batch(str(done.save_folder))) == [4, 8, 12]
    assert checkpoints_by_batch(str(tmp_path)) == {}
