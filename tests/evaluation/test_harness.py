"""Multiple choice on models in memory: against lm-eval's own model, a plain computation, and several processes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from crisp_stream.errors import InputError
from crisp_stream.evaluation import multiple_choice
from crisp_stream.evaluation.harness import Answered, HarnessLM
from crisp_stream.evaluation.models import JudgedModel, open_model
from crisp_stream.evaluation.multiple_choice import judge_questions
from crisp_stream.evaluation.perplexity import judge_texts
from crisp_stream.evaluation.question_sets import TASK_FOLDER, QuestionSet, open_question_set
from crisp_stream.models.checkpoint import LoadedGPT
from crisp_stream.models.export import export
from crisp_stream.results.results import load_results
from tests.support.ranks import judge_as_rank, run_ranks
from tests.support.small_runs import SmallRun, small_run

TEXTS = ["a short one", "b", "longer than the context of thirty-two tokens, and then some", "", "x" * 64, "q" * 33]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(done: SmallRun) -> JudgedModel:
    return open_model(str(done.checkpoint(12)))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> QuestionSet:
    """Prompts within and beyond the context of 32 tokens, of 2 to 5 choices of 1 to 12 letters."""
    return open_question_set(write_questions(tmp_path_factory.mktemp("questions") / "own.jsonl", 30))


def write_questions(path: Path, number: int, *, seed: int = 0, longest: int = 12) -> str:
    rng = np.random.default_rng(seed)

    def word(low: int, high: int) -> str:
        return "".join(map(chr, rng.integers(97, 123, rng.integers(low, high))))

    rows = []
    for _ in range(number):
        choices = [word(1, longest + 1) for _ in range(rng.integers(2, 6))]
        rows.append({"question": word(3, 25), "choices": choices, "answer": int(rng.integers(len(choices)))})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def plain_log_prob(loaded: LoadedGPT, context: str, continuation: str) -> float:
    """Token by token, without batches."""
    tokens = loaded.tokenizer.encode(context + continuation)
    total = 0.0
    for position in range(len(loaded.tokenizer.encode(context)), len(tokens)):
        kept = tokens[-33:]
        seen = kept[: len(kept) - (len(tokens) - position)]
        with torch.no_grad():
            logits = loaded.gpt(torch.tensor([seen])).logits[0, -1]
        total += torch.log_softmax(logits.double(), dim=-1)[tokens[position]].item()
    return total


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def requests_of(pairs: list[tuple[Any, ...]], kind: Any = "loglikelihood") -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=0) for pair in pairs]


def pairs_of(questions: QuestionSet) -> list[tuple[str, str]]:
    return [(question.context, f" {choice}") for question in questions.questions for choice in question.choices]


def test_log_probabilities_equal_a_plain_computation(model: JudgedModel, questions: QuestionSet) -> None:
    results = judge_questions(model, questions, device="cpu")
    plain = [
        [plain_log_prob(model.loaded, question.context, f" {choice}") for choice in question.choices]
        for question in questions.questions
    ]
    assert [len(row) for row in results.log_probs] == [len(row) for row in plain]
    np.testing.assert_allclose(flat(results.log_probs), flat(plain), atol=1e-4)
    right = [int(np.argmax(row)) == question.answer for row, question in zip(plain, questions.questions, strict=True)]
    assert results.right.tolist() == right
    assert 0 < sum(right) < len(right)


def test_log_probabilities_equal_those_of_lm_evals_own_model(
    model: JudgedModel, done: SmallRun, questions: QuestionSet, tmp_path: Path
) -> None:
    folder = export(str(done.checkpoint(12)), tmp_path / "model")
    hugging_face: Any = HFLM
    theirs = hugging_face(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    spaced = [("ends in spaces  ", "word"), ("", " without a prompt"), ("one", "x")]
    pairs = [*pairs_of(questions), *spaced]
    expected = theirs.loglikelihood(requests_of(pairs), disable_tqdm=True)
    found = HarnessLM(model.loaded).loglikelihood(requests_of(pairs))
    np.testing.assert_allclose([row[0] for row in found], [row[0] for row in expected], atol=1e-4)
    assert [row[1] for row in found] == [row[1] for row in expected]


def test_equal_choices_have_equal_scores(model: JudgedModel, tmp_path: Path) -> None:
    rows = [{"question": "of two", "choices": ["same", "other one", "same"], "answer": 2} for _ in range(3)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = judge_questions(model, open_question_set(str(tmp_path / "own.jsonl")))
    assert all(row[0] == row[2] for row in results.log_probs)
    assert results.log_probs[0] == results.log_probs[1]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_rounding_only(model: JudgedModel, questions: QuestionSet, batch_size: int) -> None:
    few, many = (judge_questions(model, questions, batch_size=size, device="cpu") for size in (batch_size, 8))
    np.testing.assert_allclose(flat(few.log_probs), flat(many.log_probs), atol=1e-5)


def test_an_answer_longer_than_the_context_is_scored_whole(model: JudgedModel) -> None:
    answer = " " + "".join(chr(97 + 7 * index % 26) for index in range(70))
    ((found, _),) = HarnessLM(model.loaded).loglikelihood(requests_of([("Question?", answer)]))
    encode = model.loaded.tokenizer.encode
    tokens = [*encode("Question?")[-1:], *encode(answer)]
    with torch.no_grad():
        expected = sum(
            torch.log_softmax(model.loaded.gpt(torch.tensor([tokens[start:end]])).logits[0].double(), -1)[
                range(end - start), tokens[start + 1 : end + 1]
            ].sum()
            for start, end in ((0, 32), (32, 64), (64, 71))
        )
    assert found == pytest.approx(float(expected), abs=1e-4)


def test_greedy_means_that_every_token_is_the_likeliest(model: JudgedModel) -> None:
    loaded = model.loaded
    tokens = loaded.tokenizer.encode("abc")
    with torch.no_grad():
        for _ in range(4):
            tokens.append(int(loaded.gpt(torch.tensor([tokens])).logits[0, -1].argmax()))
    liked = str(loaded.tokenizer.decode(tokens))[3:]
    other = liked[:-1] + chr(ord(liked[-1]) ^ 1)
    found = HarnessLM(loaded).loglikelihood(requests_of([("abc", liked), ("abc", other), ("abc", liked[:2])]))
    assert [greedy for _, greedy in found] == [True, False, True]


def test_rolling_log_probabilities_are_the_sums_of_perplexity(model: JudgedModel) -> None:
    found = HarnessLM(model.loaded).loglikelihood_rolling(requests_of([(text,) for text in TEXTS], "x"))
    assert found[3] == 0
    expected = judge_texts(model, TEXTS, set_name="texts", device="cpu").loss_sums
    np.testing.assert_allclose([-row for row in found if row], expected, rtol=1e-5)


def test_the_tasks_run_in_lm_eval_as_they_are(model: JudgedModel, questions: QuestionSet, tmp_path: Path) -> None:
    """The packaged file, with a data folder of its own, and lm-eval's word and byte perplexity beside it."""
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps(question.to_json()) + "\n" for question in questions.questions)
    )
    files = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}, cache_dir: {tmp_path}}}\n"
    )
    (tmp_path / "own.yaml").write_text(f"include: {TASK_FOLDER}/questions.yaml\ntask: own\n{files}")
    (tmp_path / "rolling.yaml").write_text(
        f"task: rolling\noutput_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ''\n{files}"
        "doc_to_target: question\nmetric_list: [{metric: byte_perplexity}, {metric: word_perplexity}]\n"
    )
    found: Any = simple_evaluate(
        HarnessLM(model.loaded),
        tasks=["own", "rolling"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    results = judge_questions(model, questions, device="cpu")
    assert found["results"]["own"]["acc,none"] == pytest.approx(results.right.mean())
    assert found["results"]["own"]["acc_norm,none"] == pytest.approx(results.right_normalised.mean())
    texts = judge_texts(model, [row.question for row in questions.questions], set_name="texts", device="cpu")
    expected = np.exp(texts.loss_sums.sum() / texts.num_bytes.sum())
    assert found["results"]["rolling"]["byte_perplexity,none"] == pytest.approx(expected, rel=1e-5)


def test_results_are_saved_with_all_that_tables_need(
    model: JudgedModel, questions: QuestionSet, tmp_path: Path
) -> None:
    results = judge_questions(model, questions, device="cpu")
    loaded = load_results(results.save(tmp_path))
    assert (loaded.set_name, loaded.model_name, loaded.fingerprint) == ("own", "small-ba12", questions.fingerprint)
    assert loaded.notes == {**questions.notes(), "long": "cut", "long_dropped": 0}
    assert loaded.long is not None
    assert loaded.long.tolist() == (results.long if results.long is None else results.long.tolist())
    assert (results.metric, results.topics) == ("acc_norm", [None] * 30)
    assert results.num_characters == [[len(choice) for choice in row.choices] for row in questions.questions]


def test_accuracies_other_than_lm_evals_stop_the_evaluation(
    model: JudgedModel, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crisp_stream.evaluation import harness

    def wrong(lm: HarnessLM, asked: QuestionSet) -> Answered:
        return true_ask(lm, asked)._replace(acc_norm=1.5)

    true_ask = harness.ask
    monkeypatch.setattr(harness, "ask", wrong)
    with pytest.raises(RuntimeError, match=r"acc_norm is .* by its log probabilities, 1\.5 by lm-eval"):
        judge_questions(model, questions, device="cpu")


def test_a_model_that_gives_no_number_is_an_error(done: SmallRun, questions: QuestionSet) -> None:
    broken = open_model(str(done.checkpoint(12)))
    with torch.no_grad():
        broken.loaded.gpt.transformer.wte.weight[ord("a")] = float("nan")
    with pytest.raises(InputError, match="own: every choice must get a finite log probability"):
        judge_questions(broken, questions, device="cpu")
    assert multiple_choice.ask_model(broken.loaded, questions, described={}, batch_size=8).num_examples == 30


def test_nothing_is_printed_and_no_random_state_is_touched(
    model: JudgedModel, questions: QuestionSet, capfd: pytest.CaptureFixture[str]
) -> None:
    before = torch.random.get_rng_state(), np.random.get_state(legacy=False)
    told: list[int] = []
    judge_questions(model, questions, device="cpu", progress=told.append)
    assert capfd.readouterr() == ("", "")
    assert sum(told) == 30
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert str(before[1]) == str(np.random.get_state(legacy=False))


def test_two_processes_find_what_one_finds(
    model: JudgedModel, done: SmallRun, questions: QuestionSet, tmp_path: Path
) -> None:
    source = write_questions(tmp_path / "own.jsonl", 30)
    run_ranks(2, functools.partial(judge_as_rank, str(done.checkpoint(12)), source, tmp_path), tmp_path)
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in ("0", "1"))
    assert first == second
    alone = judge_questions(model, questions, batch_size=1, device="cpu").log_probs
    np.testing.assert_allclose(flat(first), flat(alone), atol=1e-5)
