"""Tables of made-up studies, whose effects are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import StudyCurve, StudyModel
from crisp_stream.study.tables.comparisons import Column, Place, against, figure, task_columns
from crisp_stream.study.tables.costs import candidate_tables, cost_tables
from crisp_stream.study.tables.curves import curve_points, curve_tables
from crisp_stream.study.tables.methods import generalist_tables, value_tables
from crisp_stream.study.tables.report import conditions, study_tables, study_text
from crisp_stream.study.tables.transfer import transfer_tables
from crisp_stream.study.tables.verdicts import verdict_lines, verdict_tables, verdicts
from crisp_stream.study.tables.weights import weight_tables
from crisp_stream.table import Table, csv_text, mark_of
from tests.support.made_study import full_study, made_study, made_weights

MEDICINE = Column(title="medicine", places=(Place("medicine", "medicine.test"),))


def table(tables: Sequence[Table], name: str) -> Table:
    return next(own for own in tables if own.name == name)


def cells(own: Table, method: str) -> list[str]:
    """The cells of a row, by the first column."""
    return next(list(row) for row in own.rows if row[0] == method)


def losses(study: StudyResults, method: str, specialist: str, seed: int) -> np.ndarray:
    (found,) = [
        own.values
        for own in study.judgements
        if (own.method, own.specialist, own.seed, own.fraction) == (method, specialist, seed, 0.0)
        and own.set_name == "medicine.test"
    ]
    return found.astype(float)


def test_the_ratio_is_paired_by_seed_and_example_and_the_perplexity_is_the_mean_over_seeds() -> None:
    study = made_study()
    differences = [losses(study, "crisp", "medicine", seed) - losses(study, "base", "", seed) for seed in (1, 2, 3)]
    found = against(study, "crisp", "base", MEDICINE)
    assert found is not None
    assert found.estimate.value == pytest.approx(np.exp(np.mean(differences)))
    assert found.estimate.interval.high - found.estimate.interval.low < 0.2
    assert (found.seeds, found.left_out, found.num_examples) == ((1, 2, 3), (), 60)
    alone = figure(study, "crisp", MEDICINE)
    assert alone is not None
    assert alone.estimate.value == pytest.approx(
        np.exp(np.mean([losses(study, "crisp", "medicine", seed) for seed in (1, 2, 3)]))
    )
    assert found.estimate.interval.high < 1 < alone.estimate.interval.low


def test_a_seed_without_a_pair_is_left_out_and_said() -> None:
    study = made_study()
    fewer = tuple(own for own in study.judgements if (own.method, own.seed) != ("crisp", 2))
    study = dataclasses.replace(study, judgements=fewer)
    found = against(study, "crisp", "base", MEDICINE)
    assert found is not None
    assert (found.seeds, found.left_out) == ((1, 3), (2,))
    differences = [losses(study, "crisp", "medicine", seed) - losses(study, "base", "", seed) for seed in (1, 3)]
    assert found.estimate.value == pytest.approx(np.exp(np.mean(differences)))
    notes = table(value_tables(study, questions=False), "ratio-pretrained").notes
    assert notes == ["without a pair and left out, seed 2: crisp"]


def test_one_seed_is_said_to_give_intervals_over_examples_alone() -> None:
    notes = table(value_tables(made_study(seeds=(4,)), questions=False), "ratio-pretrained").notes
    assert notes == ["one seed, so intervals are over examples alone and say nothing of other seeds: all"]


def test_the_best_is_marked_and_so_are_those_that_cannot_be_told_from_it() -> None:
    study = made_study({"base": 0.0, "crisp": 0.2, "classifier": 0.2, "doge": 0.05}, finetuned=(), noise=0.02)
    own = table(value_tables(study, questions=False), "perplexity")
    marks = {row[0]: [mark_of(cell) for cell in row[1:]] for row in own.rows}
    for column in range(3):
        assert {marks["crisp"][column], marks["classifier"][column]} == {"best", "close"}
        assert marks["base"][column] == marks["doge"][column] == ""
    assert own.head == ("method", "medicine", "religion", "geo. mean")
    best = next(row for row in own.rows if mark_of(row[1]) == "best")[1]
    assert f"{best}*" in own.text()
    assert f"**{best}**" in own.markdown()
    assert "≈: cannot be told from it" in own.text()


def test_the_geometric_mean_is_that_of_the_specialists() -> None:
    study = made_study()
    one, other, mean = (against(study, "crisp", "base", column) for column in task_columns(study, questions=False))
    assert one is not None
    assert other is not None
    assert mean is not None
    assert mean.estimate.value == pytest.approx((one.estimate.value * other.estimate.value) ** 0.5)


def test_fine_tuning_that_was_not_tried_or_did_not_help_is_a_dash() -> None:
    study = made_study(finetuned=("base", "crisp", "classifier"), unhelped=("classifier",))
    own = table(value_tables(study, questions=False), "perplexity")
    assert own.head[1:3] == ("medicine", "+ft")
    assert cells(own, "doge")[2] == cells(own, "classifier")[2] == "-"
    assert float(cells(own, "crisp")[2]) < float(cells(own, "crisp")[1])
    ratios = table(value_tables(study, questions=False), "ratio-finetuned")
    assert [row[0] for row in ratios.rows] == ["crisp", "classifier"]
    # a pretrained classifier against a fine-tuned base: gain 0.17 against 0.3
    assert float(cells(ratios, "classifier")[1].split()[0]) == pytest.approx(np.exp(0.30 - 0.17), abs=0.03)


def test_accuracies_are_in_per_cent_and_compared_in_points() -> None:
    study = made_study(questions=("exam",), num_examples=400)
    values = table(value_tables(study, questions=True), "accuracy")
    difference = table(value_tables(study, questions=True), "accuracy-difference-pretrained")
    assert values.head == ("method", "exam", "+ft")
    gained = float(cells(values, "crisp")[1]) - float(cells(values, "base")[1])
    assert float(cells(difference, "crisp")[1].split()[0]) == pytest.approx(gained, abs=0.11)
    assert 15 < gained < 25
    assert cells(difference, "crisp")[1].startswith("+")
    best = {row[0] for row in values.rows if mark_of(row[1]) == "best"}
    assert best == {"crisp"}
    assert value_tables(made_study(), questions=True) == []


def test_specialised_models_are_better_on_their_own_set_and_worse_on_the_corpus() -> None:
    study = made_study()
    ratio, better = generalist_tables(study)
    assert float(cells(ratio, "crisp")[1].split()[0]) == pytest.approx(np.exp(0.1), abs=0.03)
    corpus, own = map(float, cells(better, "crisp")[1:3])
    assert corpus < 25
    assert own > 95
    assert generalist_tables(dataclasses.replace(study, generalist_set=None)) == []


def test_transfer_shows_models_that_were_judged_on_the_sets_of_others() -> None:
    study = made_study({"base": 0.0, "crisp": 0.2, "multitask": 0.1, "doge": 0.1}, transfer=("crisp",))
    (own,) = transfer_tables(study)
    assert [tuple(row[:2]) for row in own.rows] == [
        ("base", "all"),
        ("crisp", "medicine"),
        ("crisp", "religion"),
        ("multitask", "all"),
    ]
    assert [[mark_of(cell) for cell in row[2:]] for row in own.rows] == [["", ""], ["best", ""], ["", "best"], ["", ""]]
    assert transfer_tables(made_study(transfer=())) == []


def test_costs_are_per_method_and_repeats_are_mean_occurrences() -> None:
    (own,) = cost_tables(made_study())
    head = dict(zip(own.head, range(len(own.head)), strict=True))
    crisp, doge, base = (cells(own, method) for method in ("crisp", "doge", "base"))
    assert (crisp[head["selection"]], crisp[head["once for all"]]) == ("1.5", "300")
    assert (crisp[head["repeated"]], crisp[head["occurrences"]]) == ("50.0%", "2.00")
    assert doge[head["proxy tokens"]] == "250,000"
    assert (base[head["selection"]], base[head["models"]]) == ("-", "9")  # three seeds, and two specialists fine-tuned
    assert float(crisp[head["all training"]].replace(",", "")) == 12 * 90


def test_what_validation_tried_and_chose_is_shown() -> None:
    study = made_study(finetuned=())
    at = next(number for number, own in enumerate(study.models) if own.method == "classifier")
    chosen = dataclasses.replace(study.models[at], candidate={"share": 0.1}, validation_of={"medicine": 40.0})
    lost = dataclasses.replace(chosen, candidate={"share": 0.5}, chosen=False, validation_of={"medicine": 44.0})
    models: tuple[StudyModel, ...] = (*study.models[:at], chosen, *study.models[at + 1 :], lost)
    (own,) = candidate_tables(dataclasses.replace(study, models=models))
    assert [list(row) for row in own.rows] == [["classifier", "medicine", "share", "0.1", "0.1: 40.00 · 0.5: 44.00"]]
    assert [line["chosen"] for line in own.records] == [True, False]
    assert candidate_tables(study) == []


def test_no_fine_tuning_at_all_is_the_choice_where_validation_preferred_it() -> None:
    study = made_study({"base": 0.0, "crisp": 0.2}, unhelped=("crisp",))
    (own,) = candidate_tables(study)
    chosen = {(row[0], row[1]): row[3] for row in own.rows}
    assert chosen == {
        ("base", "medicine"): "0.1",
        ("base", "religion"): "0.1",
        ("crisp", "medicine"): "none",
        ("crisp", "religion"): "none",
    }


def test_weights_of_two_methods_stand_beside_one_another_with_their_distance() -> None:
    weights = made_weights(("medicine",), ("doge", "crisp"))
    (own,) = weight_tables(made_study(weights=weights))
    mean = np.mean([each.proportions for each in weights], axis=0)
    assert [row[0] for row in own.rows] == [str(node) for node in np.argsort(-mean)]
    distance = np.abs(np.diff([each.proportions for each in weights], axis=0)).sum() / 2
    assert own.notes == [f"total variation between doge and crisp: {distance:.3f} over 16 clusters"]
    assert own.rows[0][1] == f"word{own.rows[0][0]}, other"


def test_verdicts_say_yes_no_or_not_distinguishable() -> None:
    study = made_study({"base": 0.0, "crisp": 0.2, "classifier": 0.2, "doge": -0.1}, finetuned=(), noise=0.01)
    said = {(own.better, own.than): own.answer for own in verdicts(study) if own.column.title == "medicine"}
    assert said == {
        ("crisp", "classifier"): "not distinguishable",
        ("crisp", "doge"): "yes",
        ("crisp", "base"): "yes",
        ("doge", "base"): "no",
        ("classifier", "base"): "yes",
    }
    assert "doge better than base in perplexity, pretrained: on 0 of 2 (worse: medicine, religion)" in verdict_lines(
        study
    )
    (own,) = verdict_tables(study)
    assert [cell.split()[0] for cell in own.rows[0][2:]] == ["n.d."] * 3


def test_the_reference_is_the_crisp_of_verdicts() -> None:
    gains = {"base": 0.0, "crisp": 0.1, "crisp-2": 0.2}
    study = made_study(gains, kinds={"base": "base", "crisp": "crisp", "crisp-2": "crisp"}, finetuned=())
    assert {own.better for own in verdicts(study)} == {"crisp"}
    assert {own.better for own in verdicts(dataclasses.replace(study, reference="crisp-2"))} == {"crisp-2"}


def test_verdicts_of_questions_go_by_accuracy() -> None:
    study = made_study({"base": 0.0, "crisp": 0.3}, questions=("exam",), specialists=(), num_examples=400, finetuned=())
    assert "crisp better than base in accuracy, pretrained: on 1 of 1" in verdict_lines(study)
    worse = made_study({"base": 0.3, "crisp": 0.0}, questions=("exam",), specialists=(), num_examples=400, finetuned=())
    assert "crisp better than base in accuracy, pretrained: on 0 of 1 (worse: exam, accuracy)" in verdict_lines(worse)


def test_curves_are_ordered_by_place_a_line_for_each_encoder_and_base_on_all_of_them() -> None:
    study = full_study()
    (own,) = [each for each in curve_tables(study) if each.name == "curve-clusters-pretrained"]
    assert [list(row[:3]) for row in own.rows] == [
        ["crisp, lsi", "crisp-2-lsi", "236"],
        ["crisp, minilm", "crisp-1", "16"],
        ["crisp, minilm", "crisp-2", "240"],
        ["crisp, minilm", "crisp-3", "3,100"],
    ]
    curve = StudyCurve(name="c", along="clusters", methods=("crisp-2", "crisp-2-lsi", "base"))
    points = [own for own in curve_points(study, curve, "pretrained") if own.column.title == "medicine"]
    assert [(own.line, own.place, own.compared is None) for own in points] == [
        ("crisp, lsi", 1.0, True),
        ("crisp, lsi", 236.0, False),
        ("crisp, minilm", 1.0, True),
        ("crisp, minilm", 240.0, False),
    ]
    continued = [
        own.place for own in curve_points(study, study.curves[2], "pretrained") if own.column.title == "medicine"
    ]
    assert continued == [0.0, 0.9, 1.0]


def test_a_method_that_may_see_all_examples_stands_where_the_specialist_ends() -> None:
    study = made_study(methods={"doge": {"examples": 100}})
    curve = StudyCurve(name="c", along="examples", methods=("crisp", "doge"))
    assert {(own.method, own.place) for own in curve_points(study, curve, "pretrained")} == {
        ("doge", 100),
        ("crisp", 500),
    }


def test_questions_count_as_texts_too_and_weights_of_one_method_alone_are_no_comparison() -> None:
    study = made_study(questions=("exam",), weights=made_weights(("medicine",), ("doge", "crisp"))[:1])
    assert table(value_tables(study, questions=False), "ratio-pretrained").head == (
        *("method", "medicine", "religion", "exam, text", "geo. mean"),
    )
    assert weight_tables(study) == []


def test_everything_is_written_as_text_markdown_and_csv() -> None:
    study = full_study()
    tables = study_tables(study)
    assert len({own.name for own in tables}) == len(tables) == 19
    for own in tables:
        widths = {line.count(" | ") for line in own.markdown().splitlines() if line.startswith("|")}
        assert widths == {len(own.head) - 1}
        assert all(len(row) == len(own.head) for row in own.rows)
        assert len(csv_text(own.records).splitlines()) == len(own.records) + 1
    text = study_text(study)
    assert "every model: 1,000,000 tokens in 400 batches (checked)" in conditions(study)[0]
    assert text.index("every model") < text.index("Perplexity: mean over seeds")


def test_a_record_of_half_a_study_still_has_tables() -> None:
    """While a study runs: base and one method, one specialist of two, no fine-tuning judged yet."""
    study = made_study()
    kept = [own for own in study.judgements if own.fraction == 0 and own.specialist in ("", "medicine")]
    kept = [own for own in kept if own.method in ("base", "crisp")]
    models = tuple(own for own in study.models if own.fraction == 0 and own.method in ("base", "crisp"))
    half = dataclasses.replace(study, judgements=tuple(kept), models=models, selections=())
    own = table(study_tables(half), "perplexity")
    assert [row[0] for row in own.rows] == ["base", "crisp"]
    assert list(own.rows[1][2:]) == ["-"] * 5
    assert study_text(half)
