"""Multiple choice during a run: measured by one process and by several as it is from the checkpoint."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from crisp_stream.config.load import load_recipe
from crisp_stream.errors import InputError, MissingExtraError, RecipeError
from crisp_stream.evaluation.models import open_model
from crisp_stream.evaluation.multiple_choice import judge_questions
from crisp_stream.evaluation.question_sets import open_question_set
from crisp_stream.training.prepare import sampled_questions
from crisp_stream.training.train import train
from tests.evaluation.test_harness import write_questions
from tests.support.small_runs import SmallRun, launch, small_run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def folder(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process, of two data-parallel ranks and of two sharded ones."""
    folder = tmp_path_factory.mktemp("accuracy")
    write_questions(folder / "own.jsonl", 30)
    write_questions(folder / "other.jsonl", 9, seed=1)
    train(done.recipe(f"save_folder={folder}/one", *evaluation(folder)))
    runs = [
        [f"save_folder={folder}/{name}", *evaluation(folder), "device_train_microbatch_size=1", *own]
        for name, own in (("ddp", []), ("sharded", ["fsdp={}"]))
    ]
    launch(done, 2, runs, folder)
    return folder


def evaluation(folder: Path) -> list[str]:
    return [
        f"eval.questions=[{folder}/own.jsonl, arc_easy={folder}/other.jsonl]",
        "eval.question_limit=20",
        "eval_interval=8ba",
    ]


def measured(run: Path) -> list[list[object]]:
    return json.loads((run / "run.json").read_text())["questions"]


def test_accuracies_during_the_run_are_those_of_its_checkpoints(folder: Path) -> None:
    expected = []
    for batch in (8, 12):
        model = open_model(f"{folder}/one/ep0-ba{batch}-rank0.pt")
        for source in (f"{folder}/own.jsonl", f"arc_easy={folder}/other.jsonl"):
            questions = open_question_set(source).sample(20)
            results = judge_questions(model, questions, device="cpu")
            right = [float(results.right.mean()), float(results.right_normalised.mean())]
            expected.append([batch, questions.name, *(pytest.approx(value) for value in right)])
    assert measured(folder / "one") == expected
    assert len({tuple(row[2:]) for row in measured(folder / "one")}) > 1


@pytest.mark.parametrize("name", ["ddp", "sharded"])
def test_two_ranks_measure_what_one_process_measures(folder: Path, name: str) -> None:
    rows, one = measured(folder / name), measured(folder / "one")
    assert [row[:2] for row in rows] == [row[:2] for row in one]
    model = open_model(f"{folder}/{name}/ep0-ba12-rank0.pt")
    results = judge_questions(model, open_question_set(f"{folder}/own.jsonl").sample(20), device="cpu")
    assert rows[2] == [12, "own", results.right.mean(), results.right_normalised.mean()]


def test_checkpoints_keep_what_was_measured_and_the_report_shows_it(folder: Path, done: SmallRun) -> None:
    state = torch.load(folder / "one/ep0-ba12-rank0.pt", weights_only=False)["state"]["callbacks"]["QuestionAccuracy"]
    assert [list(row) for row in state["measured"]] == measured(folder / "one")
    report = train(done.recipe(f"save_folder={folder}/one", *evaluation(folder), "autoresume=true"))
    assert [list(row) for row in report.questions] == measured(folder / "one")
    assert f"acc {report.questions[-1][2]:.3f}" in report.table()


def test_asking_does_not_change_the_training(folder: Path, done: SmallRun) -> None:
    def losses(run: Path) -> list[str]:
        with (run / "losses.csv").open() as file:
            return [row["loss"] for row in csv.DictReader(file)]

    assert losses(folder / "one") == losses(done.save_folder)


def test_a_bad_question_stops_the_run_before_its_model_is_built(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crisp_stream.models.gpt.build_gpt", None)
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "choices": ["a"], "answer": 0}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:1: a question needs at least two choices, got 1"):
        train(done.recipe(f"save_folder={tmp_path}/run", f"eval.questions={tmp_path}/bad.jsonl"))


def test_two_sets_of_one_name_are_an_error(done: SmallRun, tmp_path: Path) -> None:
    paths = [tmp_path / folder / "own.jsonl" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        write_questions(path, 3)
    recipe = done.recipe(f"eval.questions=[{paths[0]}, {paths[1]}]")
    with pytest.raises(RecipeError, match=r"`eval\.questions` has 2 sets called own"):
        sampled_questions(recipe)


def test_a_missing_lm_eval_is_named_before_the_run(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_questions(tmp_path / "own.jsonl", 3)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"multiple choice needs lm-eval.*crisp-stream\[eval\]"):
        sampled_questions(done.recipe(f"eval.questions={source}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval={}"], r"`eval` needs `eval\.inputs` \(held-out text\) or `eval\.questions`; there is neither"),
        (["eval.questions=q.jsonl", "eval.question_limit=0"], "`eval.question_limit` must be above 0; got 0"),
    ],
)
def test_contradictions_are_recipe_errors(done: SmallRun, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(done.recipe_file, overrides)
