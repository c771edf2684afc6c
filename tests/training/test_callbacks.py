from __future__ import annotations

import json
from pathlib import Path

import pytest

from crisp_stream.training.prepare import prepare
from crisp_stream.training.start import StartingPoint
from crisp_stream.training.train import build_trainer
from tests.evaluation.test_harness import write_questions
from tests.support.small_runs import SmallRun, small_run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def test_the_callbacks_of_a_run_stand_in_this_order(done: SmallRun, tmp_path: Path) -> None:
    write_questions(tmp_path / "questions.jsonl", 5)
    (tmp_path / "held-out.jsonl").write_text(json.dumps({"text": "a cat sat"}) + "\n")
    evaluation = [f"eval.inputs={tmp_path}/held-out.jsonl", f"eval.questions={tmp_path}/questions.jsonl"]
    recipe = done.recipe(f"save_folder={tmp_path}/run", "loggers.file=true", *evaluation)
    start = StartingPoint(url=None, path=None, resumes=False)
    run = build_trainer(prepare(recipe, start), tmp_path / "run")
    names = [type(callback).__name__ for callback in run.trainer.state.callbacks]
    run.close()
    assert names == [
        "FileLogger",
        "RunAccount",
        "Divergence",
        "RunMonitor",
        "Progress",
        "RecipeRates",
        "Lineage",
        "HeldOutPerplexity",
        "QuestionAccuracy",
        "LogFiles",
        "GracefulStop",
        "Checkpoints",
    ]
