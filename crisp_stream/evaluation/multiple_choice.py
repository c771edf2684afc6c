"""Multiple choice through lm-eval: zero-shot, with the prompts of the paper's Table 7 and the scores of Appendix D.

Each choice is scored by its log probability after the prompt, which holds none of the choices. `acc` compares these,
`acc_norm` divides them by the characters of the choice first. Where prompt and choice are longer than the model's
context, the prompt loses its beginning, topic and "Question:" first; how many questions that are is kept and shown.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from crisp_stream.errors import InputError, import_extra
from crisp_stream.evaluation.models import JudgedModel, plain_record
from crisp_stream.evaluation.perplexity import ExamplesDone, Long, check_long
from crisp_stream.evaluation.question_sets import QuestionSet
from crisp_stream.models.checkpoint import LoadedGPT
from crisp_stream.results.results import QuestionResults

if TYPE_CHECKING:
    from crisp_stream.evaluation.harness import ShareDone


def judge_questions(
    model: JudgedModel,
    questions: QuestionSet,
    *,
    batch_size: int = 8,
    device: str | None = None,
    long: Long = "cut",
    progress: ExamplesDone = lambda more: None,
) -> QuestionResults:
    """Compute the log probability of every choice, on a GPU if there is one and no other device is named.

    Processes of a launcher share the work; all of them call this, with the same questions.

    Args:
        batch_size: full contexts per forward pass.
        device: torch device.
        long: what is done with questions that are longer than the model's context.

    Raises:
        InputError: batch_size is not positive, the model gives no number for a choice, or a question is too long and
            `long` is error.
        MissingExtraError: lm-eval is not installed.
    """
    torch = import_extra("torch", extra="eval", purpose="multiple choice")
    model.loaded.gpt.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))).eval()
    reported = 0

    def share_done(share: float) -> None:
        nonlocal reported
        done = int(share * len(questions.questions))
        progress(done - reported)
        reported = done

    results = ask_model(
        model.loaded,
        questions,
        described=plain_record(model.record),
        batch_size=batch_size,
        long=long,
        share_done=share_done,
    )
    if not all(math.isfinite(log_prob) for row in results.log_probs for log_prob in row):
        raise InputError(
            f"{questions.name}: every choice must get a finite log probability, got one that is not. The weights of "
            "the model are broken; judge an earlier checkpoint."
        )
    return results


def ask_model(
    loaded: LoadedGPT,
    questions: QuestionSet,
    *,
    described: dict[str, Any],
    batch_size: int,
    long: Long = "cut",
    share_done: ShareDone = lambda share: None,
) -> QuestionResults:
    """Do the work of `judge_questions` with a model in eval mode on its device, which may be sharded.

    Raises:
        InputError: batch_size is not positive, a choice has no token, or a question is too long and `long` is error.
        RuntimeError: lm-eval has other accuracies.
    """
    import_extra("lm_eval", extra="eval", purpose="multiple choice")
    from crisp_stream.evaluation.harness import HarnessLM, ask

    lm = HarnessLM(loaded, batch_size=batch_size, share_done=share_done)
    dropped = 0
    if long != "cut":
        is_long = lm.long_questions(questions.questions)
        check_long(is_long, long, f"{questions.name}: every question", lm.max_length)
        questions, dropped = questions.without(is_long), int(is_long.sum())
    answered = ask(lm, questions)
    results = QuestionResults(
        model=described,
        set_name=questions.name,
        example_ids=questions.example_ids,
        long=lm.long_questions(questions.questions),
        notes={**questions.notes(), "long": long, "long_dropped": dropped},
        metric=questions.metric,
        answers=np.array([question.answer for question in questions.questions], np.int64),
        log_probs=answered.log_probs,
        num_characters=[[len(choice) for choice in question.choices] for question in questions.questions],
        topics=[question.topic for question in questions.questions],
    )
    for name, computed, theirs in (
        ("acc", results.right.mean(), answered.acc),
        ("acc_norm", results.right_normalised.mean(), answered.acc_norm),
    ):
        if not math.isclose(computed, theirs, abs_tol=1e-9):
            raise RuntimeError(f"{questions.name}: {name} is {computed} by its log probabilities, {theirs} by lm-eval")
    return results
