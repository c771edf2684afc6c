"""Question sets: every schema, what is wrong with them, and that lm-eval asks the very text that is counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.errors import CrispError, InputError
from crisp_stream.evaluation import question_sets
from crisp_stream.evaluation.question_sets import TASKS, QuestionSet, hub_source, open_question_set, read_task
from crisp_stream.examples.question_files import open_questions, question_of, read_questions
from crisp_stream.examples.questions import Question, question_hash

ARC = {"question": "Which?", "choices": {"text": ["one", "two", "three"], "label": ["A", "B", "C"]}, "answerKey": "B"}
MMLU = {"question": "How many?", "subject": "abstract_algebra", "choices": ["0", "4", "2", "6"], "answer": 1}
PAIR = {"prompt": "Add a and b.", "chosen": "return a + b", "rejected": "return a - b", "subset": "hep-python"}
OWN = {"question": "Why?", "choices": ["so", "not so"], "answer": 0, "topic": "logic"}


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_hubs_schemas_and_ours_become_questions() -> None:
    assert question_of(ARC, "x") == Question(question="Which?", choices=("one", "two", "three"), answer=1)
    assert question_of(MMLU, "x") == Question(
        question="How many?", choices=("0", "4", "2", "6"), answer=1, topic="abstract algebra"
    )
    assert question_of(OWN, "x") == Question(question="Why?", choices=("so", "not so"), answer=0, topic="logic")
    pair = question_of(PAIR, "x")
    assert (pair.question, pair.choices[pair.answer], pair.prompt) == ("Add a and b.", "return a + b", "instructions")
    digits = {**ARC, "choices": {"text": ["one", "two"], "label": ["1", "2"]}, "answerKey": "2"}
    assert question_of(digits, "x").answer == 1


def test_the_prompts_are_those_of_table_7() -> None:
    assert question_of(ARC, "x").text(1) == "Question: Which?\nAnswer: two"
    assert question_of(MMLU, "x").text(0) == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n"
        "Question: How many?\nAnswer: 0"
    )
    pair = question_of(PAIR, "x")
    assert pair.text(pair.answer) == (
        "Follow the instructions below.\nInstructions: Add a and b.\nAnswer: return a + b"
    )


def test_a_question_is_the_same_after_it_was_written() -> None:
    for record in (ARC, MMLU, PAIR, {**OWN, "half": "test"}):
        question = question_of(record, "x")
        assert question_of(question.to_json(), "x") == question
        assert question_hash(question_of({**question.to_json(), "half": "specialist"}, "x")) == question_hash(question)


def test_the_chosen_answer_stands_first_in_about_half_of_the_pairs() -> None:
    first = Counter(question_of({**PAIR, "prompt": f"task {number}"}, "x").answer for number in range(400))
    assert 150 < first[0] < 250
    swapped = {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    assert question_of(swapped, "x").answer == question_of(PAIR, "x").answer  # the content decides, not the label


@pytest.mark.parametrize("record", [ARC, MMLU, PAIR, OWN])
def test_parquet_is_read_like_json_lines(tmp_path: Path, record: Mapping[str, Any]) -> None:
    pq.write_table(pa.Table.from_pylist([dict(record)] * 2), tmp_path / "questions.parquet")
    lines = write_lines(tmp_path / "questions.jsonl", [record] * 2)
    assert read_questions(tmp_path / "questions.parquet") == read_questions(lines)
    assert open_questions(tmp_path / "questions.parquet").placed[1].place == f"{tmp_path}/questions.parquet:2"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**ARC, "answerKey": "D"}, r"answerKey must be the label of one choice, of \['A', 'B', 'C'\]; got 'D'"),
        ({**ARC, "choices": {"text": ["one", "two"], "label": ["A"]}}, "choices must hold as many labels as texts"),
        ({**ARC, "choices": ["a", "b"], "answerKey": "C"}, "answerKey must be the index of a choice, 0 to 1; got 'C'"),
        ({**MMLU, "answer": 4}, "answer must be the index of a choice, 0 to 3; got 4"),
        ({**MMLU, "choices": ["0", " "]}, "choices must be a list of texts"),
        ({**PAIR, "chosen": ""}, "chosen must be text, got ''"),
        ({**OWN, "half": "first"}, "half must be specialist or test where there is one; got 'first'"),
        ({**OWN, "topic": ""}, "topic must be text, got ''"),
        (
            {"prompt": "a", "b": 1},
            r"a question needs the keys of one of these .* Got the keys prompt, b\. Name",
        ),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path: Path, record: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"questions\.jsonl:2: {message}"):
        read_questions(write_lines(tmp_path / "questions.jsonl", [OWN, record]))


def test_a_file_that_is_no_parquet_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_text("text")
    with pytest.raises(InputError, match=r"bad\.parquet: must be a readable Parquet file"):
        read_questions(tmp_path / "bad.parquet")


def test_repeated_questions_are_kept_and_counted(tmp_path: Path) -> None:
    shuffled = {**OWN, "choices": ["not so", "so"], "answer": 1}
    other_choices = {**OWN, "choices": ["so", "perhaps"], "answer": 1}
    path = write_lines(tmp_path / "medicine.test.jsonl", [OWN, OWN, shuffled, other_choices])
    questions = open_question_set(path)
    assert (questions.name, len(questions.questions), questions.num_repeated) == ("medicine.test", 4, 2)
    assert questions.warnings == ["medicine.test: 2 questions are repeated; each counts again."]


def test_a_repeated_question_with_another_right_answer_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [OWN, ARC, {**OWN, "answer": 1}])
    with pytest.raises(InputError, match=r"q\.jsonl:3: the question stands at .*q\.jsonl:1 already.*'so' there, 'not"):
        open_question_set(path)


def test_benchmarks_that_contradict_themselves_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [MMLU, {**MMLU, "answer": 0}])
    questions = open_question_set(f"mmlu={path}")
    assert questions.num_contradicting == 1
    assert "mmlu has 2 questions, in the paper 14,042." in questions.warnings


def test_a_choice_equal_to_the_right_one_is_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [{**OWN, "choices": ["a", "b", "a"]}, {**OWN, "choices": ["c", "a", "a"]}])
    assert open_question_set(path).num_equal_choices == 1


def test_a_sample_is_random_by_seed_and_keeps_the_order(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [{**OWN, "question": f"{number}"} for number in range(100)])
    questions = open_question_set(path)
    numbers = [int(question.question) for question in questions.sample(10, seed=1).questions]
    assert numbers == sorted(set(numbers))
    assert numbers != list(range(10))
    assert numbers == [int(question.question) for question in questions.sample(10, seed=1).questions]
    assert numbers != [int(question.question) for question in questions.sample(10, seed=2).questions]
    assert questions.sample(None) is questions
    assert questions.sample(10).notes()["asked_of"] == 100
    with pytest.raises(InputError, match="must be 1 or more"):
        questions.sample(0)


def test_fingerprints_tell_sets_apart(tmp_path: Path) -> None:
    def fingerprint(*rows: Mapping[str, Any]) -> str:
        return open_question_set(write_lines(tmp_path / "q.jsonl", rows)).fingerprint

    assert fingerprint(OWN, ARC) == fingerprint({**OWN, "half": "test"}, ARC)
    other = {**OWN, "choices": ["so", "not at all"]}
    assert len({fingerprint(OWN, ARC), fingerprint(ARC, OWN), fingerprint(OWN), fingerprint(other)}) == 4


def test_the_tasks_report_what_appendix_d_says() -> None:
    reported = {task: read_task(task)["metadata"]["reported"] for task in (*TASKS, "questions")}
    assert reported == {
        "arc_easy": "acc",
        "arc_challenge": "acc_norm",
        "mmlu": "acc_norm",
        "rewardbench_reasoning": "acc",
        "questions": "acc_norm",
    }
    assert {read_task(task)["num_fewshot"] for task in (*TASKS, "questions")} == {0}
    assert [hub_source(task) for task in TASKS] == [
        "hf://allenai/ai2_arc:ARC-Easy@test",
        "hf://allenai/ai2_arc:ARC-Challenge@test",
        "hf://cais/mmlu:all@test",
        "hf://allenai/reward-bench@filtered",
    ]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Local datasets where the hub's would be, with its configurations and splits, read by `datasets`."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    other = {**PAIR, "subset": "alpacaeval-easy"}
    rows = {
        "allenai/ai2_arc": {"ARC-Easy": ("test", [ARC, ARC]), "ARC-Challenge": ("test", [ARC])},
        "cais/mmlu": {"all": ("test", [MMLU] * 3)},
        "allenai/reward-bench": {"default": ("filtered", [PAIR, other, PAIR, other])},
    }
    for name, configurations in rows.items():
        folder, listed = tmp_path / name, []
        for configuration, (split, records) in configurations.items():
            (folder / configuration).mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(records), folder / configuration / f"{split}.parquet")
            listed.append(
                f"- config_name: {configuration}\n  data_files:\n  - split: {split}\n"
                f"    path: {configuration}/{split}.parquet\n"
            )
        (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(listed)}---\n")
    real = hub_source
    monkeypatch.setattr(question_sets, "hub_source", lambda task: real(task).replace("hf://", f"hf://{tmp_path}/"))
    return tmp_path


@pytest.mark.parametrize(
    ("task", "record", "number"),
    [("arc_easy", ARC, 2), ("arc_challenge", ARC, 1), ("mmlu", MMLU, 3), ("rewardbench_reasoning", PAIR, 2)],
)
def test_a_task_reads_its_configuration_and_split(hub: Path, task: str, record: Mapping[str, Any], number: int) -> None:
    questions = open_question_set(task)
    assert questions.questions == [question_of(record, "x")] * number
    assert (questions.name, questions.task, questions.metric) == (task, task, read_task(task)["metadata"]["reported"])


def test_a_task_whose_hub_is_out_of_reach_names_the_local_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(CrispError, match=r"allenai/ai2_arc.*cannot be reached.* are named arc_easy=FILE"):
        open_question_set("arc_easy")


def test_a_local_file_of_a_task_is_filtered_and_named_like_it(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rewards.jsonl", [PAIR, {**PAIR, "subset": "donotanswer"}])
    questions = open_question_set(f"rewardbench_reasoning={path}", metric="acc_norm")
    assert (questions.name, len(questions.questions), questions.metric) == ("rewardbench_reasoning", 1, "acc_norm")


@pytest.mark.parametrize(
    ("task", "records"),
    [
        ("arc_easy", [ARC, {**ARC, "question": "2"}]),
        ("arc_challenge", [ARC]),
        ("mmlu", [MMLU, {**MMLU, "subject": "world_religions"}]),
        ("rewardbench_reasoning", [PAIR, {**PAIR, "prompt": "Again."}]),
        ("questions", [OWN, {"question": "42", "choices": ["1", "2", "3"], "answer": 2}]),
    ],
)
def test_lm_eval_asks_the_text_that_histograms_count(
    tmp_path: Path, task: str, records: Sequence[Mapping[str, Any]]
) -> None:
    from crisp_stream.evaluation.harness import QuestionTask

    path = write_lines(tmp_path / "q.jsonl", records)
    questions: QuestionSet = open_question_set(path if task == "questions" else f"{task}={path}")
    asked = QuestionTask(questions)
    asked.build_all_requests()
    texts = [question.text(choice) for question in questions.questions for choice in range(len(question.choices))]
    assert ["".join(request.args) for request in asked.instances] == texts
    records_asked: list[Any] = list(asked.eval_docs)
    assert [asked.doc_to_target(record) for record in records_asked] == [row.answer for row in questions.questions]
