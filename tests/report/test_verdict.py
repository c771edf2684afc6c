"""The verdict and the perplexities at the top of the page: what is compared, what is said, and what cannot be said."""

from __future__ import annotations

import re

import numpy as np
import pytest

from crisp_stream.errors import InputError
from crisp_stream.report.colours import assign_colours
from crisp_stream.report.evaluation import Evaluation, score_section
from crisp_stream.report.verdict import verdict_of, verdict_section
from crisp_stream.results.curves import run_identity
from crisp_stream.results.pairing import AnyResults
from crisp_stream.results.results import TextResults
from tests.support.made_results import answered, text_results

BASE = np.linspace(4.0, 6.0, 50)
NOISE = np.linspace(-0.1, 0.1, 50)


def texts(model: str, change: float, set_name: str = "task") -> TextResults:
    """Losses of base plus a change, with the same small noise for all."""
    noise = NOISE if model != "base" else 0
    ids = [1000 * sum(set_name.encode()) + number for number in range(len(BASE))]
    losses = (BASE + change + noise).tolist()
    return text_results(model, losses, set_name=set_name, ids=ids, training={"seed": 17})


def sentence(*results: AnyResults, tasks: tuple[str, ...] = ("task",), than: str | None = None) -> str:
    return verdict_of(Evaluation(results=results, baseline=than).led_by(tasks)).sentence


def test_a_model_that_beats_base_is_said_to_with_its_interval_and_its_price() -> None:
    said = sentence(
        texts("base", 0, "corpus"), texts("base", 0), texts("crisp", 0.4, "corpus"), texts("crisp", np.log(0.56))
    )
    assert said == (
        "crisp beats base on task: its perplexity is 44% lower (95% interval 43% to 45%); "
        "on corpus it is 49% higher (95% interval 47% to 52%)."
    )


def test_a_model_that_lost_is_said_to() -> None:
    assert sentence(texts("base", 0), texts("crisp", 0.1)).startswith(
        "crisp does worse than base on task: its perplexity is 11% higher"
    )


def test_a_difference_within_its_interval_is_no_victory() -> None:
    assert sentence(texts("base", 0), texts("crisp", -0.001)) == (
        "crisp does not differ clearly from base on task: its perplexity is 0.1% lower (95% interval 1.8% lower to "
        "1.6% higher)."
    )


def test_accuracies_are_compared_in_points_and_more_is_better() -> None:
    said = sentence(answered("base", 40, 100, set_name="quiz"), answered("crisp", 70, 100, set_name="quiz"))
    assert said.startswith("crisp beats base on quiz: its accuracy is 30.0 points higher (95% interval")


def test_the_sets_of_a_task_come_before_others() -> None:
    results = [
        texts(model, change, name) for model, change in (("base", 0), ("crisp", -0.4)) for name in ("a", "b.test")
    ]
    assert "on a:" in sentence(*results)
    assert "on b.test:" in sentence(*results, tasks=("b",))


def test_the_best_of_several_models_is_named_with_their_number() -> None:
    results = [texts("base", 0), texts("crisp", -0.2), texts("dsir", -0.4)]
    assert sentence(*results).startswith("dsir, the best of 2 models compared with base, beats it on task:")


def test_many_sets_are_counted_instead_of_named() -> None:
    changes = {"task": -0.4, "a": -0.3, "b": 0.3, "c": 0.0, "d": -0.5}
    results = [texts("base", 0, name) for name in changes]
    results += [texts("crisp", change, name) for name, change in changes.items()]
    assert "; of 4 other sets it is better on 2, worse on 1 and not clearly different on 1." in sentence(*results)


def test_models_of_different_tokenizers_are_compared_by_bits_per_byte() -> None:
    other = texts("crisp", -1)
    other.model["tokenizer_fingerprint"] = "o" * 64
    assert "crisp beats base on task: its loss in bits per byte is" in sentence(texts("base", 0), other)


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([texts("base", 0)], "only base was judged. Judge a second model on the same files."),
        ([texts("one", 0), texts("two", 0)], "none of one, two is called base. Name the one to compare with: --than"),
        (
            [texts("base", 0, "a"), text_results("crisp", [1.0], set_name="b", ids=[99])],
            "no other model was judged on a set of base. Judge both on the same files.",
        ),
    ],
)
def test_where_nothing_can_be_compared_the_page_says_why(results: list[TextResults], reason: str) -> None:
    evaluation = Evaluation(results=results)
    with pytest.raises(InputError, match=re.escape(reason)):
        verdict_of(evaluation)
    assert f"Nothing to compare: {reason}" in verdict_section(evaluation)


def test_without_results_the_page_says_that_nothing_was_judged() -> None:
    assert "Nothing to compare: no model was judged." in verdict_section(None)


def test_the_conditions_name_what_the_models_share_and_what_they_do_not() -> None:
    base, crisp = texts("base", 0), texts("crisp", -0.4)
    assert verdict_of(Evaluation(results=[base, crisp])).conditions["base and crisp, each"] == (
        "10 parameters, trained on 1,000 tokens, seed 17"
    )
    longer = texts("crisp", -0.4)
    longer.model["tokens"] = 2000
    conditions = verdict_of(Evaluation(results=[base, longer])).conditions
    assert conditions["crisp"] == "10 parameters, trained on 2,000 tokens, seed 17"
    assert conditions["Judged on"] == "task (50 texts); computed in float32"


def test_examples_of_the_training_data_are_named_among_the_conditions() -> None:
    base, crisp = (text_results(name, [2.0, 3.0], contaminated=[True, False]) for name in ("base", "crisp"))
    conditions = verdict_of(Evaluation(results=[base, crisp])).conditions
    assert conditions["Judged on"] == "news (2 texts, 1 of them in part in the training data); computed in float32"


def test_a_measure_that_changes_from_set_to_set_is_named_each_time() -> None:
    results = [
        *(texts(model, change) for model, change in (("base", 0), ("crisp", -0.4))),
        *(answered(model, right, 100, set_name="quiz") for model, right in (("base", 40), ("crisp", 70))),
        *(texts(model, change, "corpus") for model, change in (("base", 0), ("crisp", 0.4))),
    ]
    said = sentence(*results)
    assert "; on quiz its accuracy is 30.0 points higher" in said
    assert "; on corpus its perplexity is 49% higher" in said


def scores(*results: AnyResults) -> str:
    runs = [(run_identity(one), one.model.get("histograms") or []) for one in results]
    return score_section(Evaluation(results=results), assign_colours(["task"], runs))


def test_the_bars_of_all_perplexities_share_a_scale() -> None:
    html = scores(
        texts("base", 0), texts("base", 1, "corpus"), texts("crisp", np.log(0.5)), texts("crisp", 1, "corpus")
    )
    bars = re.findall(r'class="value">([\d.]+)</span>.*?class="fill (\w+)" style="width:([\d.]+)%', html)
    assert len(bars) == 4
    values = [float(value) for value, _, _ in bars]
    assert [float(width) for *_, width in bars] == pytest.approx([100 * v / max(values) for v in values], abs=0.1)
    assert [colour for _, colour, _ in bars] == ["base", "colour1", "base", "colour1"]


def test_accuracies_are_bars_of_their_own_and_names_are_only_text() -> None:
    html = scores(
        text_results("base", [1.0, 2.0], set_name="<b>"),
        answered("base", 3, 4, set_name="quiz"),
        answered("<i>", 1, 4, set_name="quiz"),
    )
    assert html.index("<caption>Lower is better: exp of the mean") < html.index("<caption>Higher is better: share of")
    assert 'style="width:75.0%"' in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert "-50.0" in html


def test_a_model_has_the_colour_of_its_run_and_base_is_grey() -> None:
    runs = [
        (("demo-base", 1, "m", 17), ["base"]),
        (("demo-crisp", 1, "n", 17), ["task"]),
        (("going", None, None, None), []),
    ]
    colours = assign_colours(["medicine", "law"], runs)
    assert colours.tasks == {"medicine": "colour0", "law": "colour1"}
    assert colours.of_run(("demo-base", 1, "m", 17)) == "base"
    assert colours.of_run(("demo-crisp", 1, "n", 17)) == "colour2"
    assert colours.of_run(("going", 10, "o", 3)) == "colour3"
    assert colours.of_set("law.test") == "colour1"
    assert colours.of_set("lawn") is None


def test_a_run_is_base_by_its_histograms_and_by_its_name_where_they_are_not_known() -> None:
    keys = [
        ((name, number, None, None), names)
        for number, (name, names) in enumerate(
            [("base", ["task"]), ("x", ["base", "base"]), ("run-base-2", []), ("database", [])]
        )
    ]
    colours = assign_colours([], keys)
    assert [colours.of_run(key) for key, _ in keys] == ["colour0", "base", "base dashed", "colour1"]


def test_more_tasks_than_colours_use_them_again_dashed() -> None:
    colours = assign_colours([f"task {number}" for number in range(10)], [])
    assert len(set(colours.tasks.values())) == 10
    assert colours.tasks["task 8"] == "colour0 dashed"
