"""Which jobs a study has, what their keys depend on, and how candidates and fractions are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import InputError
from crisp_stream.study.jobs.job import Done, Job
from crisp_stream.study.jobs.plan import StudyPlan
from crisp_stream.study.jobs.plan_jobs import fingerprint_of
from crisp_stream.study.settings import load_study
from tests.support.synthetic import write_synthetic_dataset
from tests.support.written_study import METHODS, small_study, write_study, write_texts


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts")


def plan_of(tmp_path: Path, texts: Path | None, **changes: Any) -> StudyPlan:
    study = load_study(write_study(tmp_path / "study.yaml", **changes))
    return StudyPlan(study, tmp_path / "out", text=texts)


def keys(jobs: list[Job]) -> dict[str, str]:
    return {job.name: job.key for job in jobs}


def finished(job: Job, values: dict[str, Any]) -> Done:
    return Done(name=job.name, key=job.key, values=values, wall_seconds=1.0, cpu_seconds=1.0)


def all_finished(plan: StudyPlan, perplexities: Mapping[str, float]) -> dict[str, Done]:
    """Every job finished, as often as the plan names more; judged models have these validation perplexities, or 100."""
    done: dict[str, Done] = {}
    while left := [job for job in plan(done) if job.name not in done]:
        for job in left:
            found = {"perplexity": perplexities.get(job.name, 100.0)}
            sets = {f"{name}.validation": found for name in ("statements", "exam")}
            done[job.name] = finished(job, {"sets": sets})
    return done


def test_jobs_come_after_what_they_need_and_are_named_once(tmp_path: Path, texts: Path) -> None:
    jobs = plan_of(tmp_path, texts)({})
    seen: set[str] = set()
    for job in jobs:
        assert set(job.needs) <= seen, job.name
        assert job.name not in seen
        seen.add(job.name)
    for name in ("dataset/all", "dataset/third", "embeddings/all", "specialist/exam", "held-out/generalist"):
        assert name in seen
    assert {"train/crisp.exam.base_share-0.seed-1", "train/crisp.exam.base_share-0.5.seed-1"} <= seen
    assert "train/crisp.exam.base_share-0.seed-2" not in seen, "the candidate is not chosen yet"


def test_the_candidate_with_the_lowest_validation_perplexity_goes_on_with_the_other_seeds(
    tmp_path: Path, texts: Path
) -> None:
    plan = plan_of(tmp_path, texts)
    done = all_finished(plan, {"judge/crisp.exam.base_share-0.5.seed-1": 90.0})
    assert plan.chosen("crisp", "exam") == {"base_share": 0.5}
    assert plan.chosen("crisp", "statements") == {"base_share": 0.0}, "of equal ones the first"
    assert "train/crisp.exam.base_share-0.5.seed-2" in done
    assert "train/crisp.exam.base_share-0.seed-2" not in done


def test_fine_tuning_goes_on_with_the_best_fraction_or_not_at_all(tmp_path: Path, texts: Path) -> None:
    plan = plan_of(tmp_path, texts)
    best = {"judge/base.exam.seed-1.finetuned-0.5": 90.0, "judge/base.statements.seed-1.finetuned-0.2": 110.0}
    best["judge/base.statements.seed-1.finetuned-0.5"] = 120.0
    done = all_finished(plan, best)
    assert plan.chosen_fraction("base", "exam") == 0.5
    assert plan.chosen_fraction("base", "statements") == 0.0
    assert "finetune/base.exam.seed-2.finetuned-0.5" in done
    assert "finetune/base.exam.seed-2.finetuned-0.2" not in done
    assert not any(name.startswith("finetune/base.statements.seed-2") for name in done)
    plan({})
    assert plan.chosen_fraction("base", "exam") is None


def test_fine_tuning_begins_where_the_pretraining_saved(tmp_path: Path, texts: Path) -> None:
    jobs = {job.name: job for job in plan_of(tmp_path, texts)({})}
    recipe = jobs["train/base.seed-1"].work.keywords["recipe"]  # type: ignore[attr-defined]
    assert recipe.save_at == ("5ba", "8ba")  # fractions 0.5 and 0.2 of 10 batches; the generic share of 0.5
    assert jobs["train/classifier.exam.seed-1"].work.keywords["recipe"].save_at == ()  # type: ignore[attr-defined]
    assert "train/base.seed-1" in jobs["train/continued.statements.seed-1"].needs


def test_every_model_is_judged_on_its_own_sets_and_models_for_all_on_all(tmp_path: Path, texts: Path) -> None:
    jobs = {job.name: job for job in plan_of(tmp_path, texts)({})}

    def sets(name: str) -> list[str]:
        return [".".join(own) for own in jobs[f"judge/{name}"].work.keywords["sets"]]  # type: ignore[attr-defined]

    both = ["statements.validation", "exam.validation", "statements.test", "exam.test", "generalist.test"]
    assert sets("base.seed-1") == both
    assert sets("base.seed-2") == both[2:]
    assert sets("classifier.exam.seed-1") == ["exam.validation", "exam.test", "generalist.test"]
    assert sets("crisp.exam.base_share-0.seed-1") == [
        "exam.validation",
        "statements.test",
        "exam.test",
        "generalist.test",
    ]


def changed_names(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if after.get(name) != before[name]}


def test_keys_change_with_what_decides_an_outcome_and_with_nothing_else(tmp_path: Path, texts: Path) -> None:
    before = keys(plan_of(tmp_path, texts)({}))
    assert keys(plan_of(tmp_path, texts)({})) == before
    moved = write_texts(tmp_path / "elsewhere")
    assert keys(plan_of(tmp_path, moved)({})) == before, "content counts, not the place"
    tests = changed_names(before, keys(plan_of(tmp_path, texts, test_limit=3)({})))
    assert tests
    assert {name.split("/")[0] for name in tests} == {"held-out", "judge"}
    other = {**METHODS, "classifier": {"share": 0.3}}
    selected = changed_names(before, keys(plan_of(tmp_path, texts, methods=other)({})))
    assert selected
    assert all(name.split("/")[1].startswith("classifier.") for name in selected)
    longer = changed_names(before, keys(plan_of(tmp_path, texts, recipe=[*small_study()["recipe"], "seed=9"])({})))
    assert longer == set(), "the seeds are the study's"
    (moved / "statements.train.jsonl").write_text('{"text": "something else"}\n')
    content = changed_names(before, keys(plan_of(tmp_path, moved)({})))
    assert "specialist/statements" in content
    assert "train/only-specialist.statements.seed-1" in content
    assert "train/base.seed-1" not in content
    assert "train/classifier.exam.seed-1" not in content


def test_a_dataset_that_exists_counts_by_what_is_in_it(tmp_path: Path, texts: Path) -> None:
    write_synthetic_dataset(tmp_path / "one", {0: 4, 3: 5})
    write_synthetic_dataset(tmp_path / "two", {0: 4, 3: 6})
    root = tmp_path / "root"
    found = []
    for name in ("one", "two", "one"):
        root.unlink(missing_ok=True)
        root.symlink_to(tmp_path / name)
        fingerprint_of.cache_clear()
        changes = {"datasets": {"all": {"root": str(root)}}, "methods": {"base": {}}, "finetune": None, "curves": None}
        found.append(keys(plan_of(tmp_path, texts, **changes)({})))
    assert found[0] == found[2]
    assert {"dataset/all", "train/base.seed-1"} <= changed_names(found[0], found[1])


def test_methods_of_all_seeds_come_before_those_of_some(tmp_path: Path, texts: Path) -> None:
    names = [job.name for job in plan_of(tmp_path, texts)({}) if job.name.startswith("train/")]
    assert names.index("train/multitask.seed-2") < names.index("train/dsir.statements.seed-1")


def test_text_is_fetched_first_where_the_study_says_so_and_no_folder_is_given(tmp_path: Path, texts: Path) -> None:
    fetched = plan_of(tmp_path, None, fetch="small")({})
    assert [job.name for job in fetched] == ["text"]
    assert "text" not in {job.name for job in plan_of(tmp_path, texts, fetch="small")({})}
    with pytest.raises(InputError, match=r"\{text\} is the folder of --text, which is missing"):
        plan_of(tmp_path, None)({})
