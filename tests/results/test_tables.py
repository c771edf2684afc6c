"""The table of all results: figures worked by hand, intervals computed otherwise, and what may not be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.results.bootstrap import difference_interval
from crisp_stream.results.pairing import AnyResults
from crisp_stream.results.results import load_all
from crisp_stream.results.tables import (
    BITS_PER_BYTE,
    CLEAN,
    PERPLEXITY,
    RATIO,
    RATIO_OF_BITS,
    TOKEN_LEVEL,
    result_rows,
    result_tables,
)
from tests.support.made_results import answered, question_results, text_results

LN2 = math.log(2)


def results_table(results: Sequence[AnyResults], *, baseline: str | None = None) -> str:
    return result_tables(result_rows(results, baseline=baseline)).text()


def test_the_figures_of_two_texts_are_those_worked_by_hand() -> None:
    (row,) = result_rows([text_results("a", [LN2, 3 * LN2], num_tokens=[4, 2], num_bytes=[12, 8])])
    assert row.estimates[PERPLEXITY].value == pytest.approx(4)
    assert row.estimates[TOKEN_LEVEL].value == pytest.approx(2 ** (10 / 6))
    assert row.estimates[BITS_PER_BYTE].value == pytest.approx(10 / 20)
    # Two texts say next to nothing: Student's t of one degree of freedom is 12.7, and a perplexity is at least 1.
    assert row.estimates[PERPLEXITY].interval == pytest.approx((1, 4 * 2**12.7062), rel=1e-4)
    half = stats.t.ppf(0.975, 1) * np.std([6 / 8, 4 / 12])  # leaving out either
    assert row.estimates[BITS_PER_BYTE].interval == pytest.approx((0, 0.5 + half))


def test_an_interval_agrees_with_resampling_by_hand() -> None:
    rng = np.random.default_rng(3)
    losses = rng.normal(3, 0.5, 400)
    (row,) = result_rows([text_results("a", losses.tolist())])
    means = [losses[rng.integers(0, 400, 400)].mean() for _ in range(4000)]
    expected = np.exp(np.quantile(means, [0.025, 0.975]))
    assert np.allclose(row.estimates[PERPLEXITY].interval, expected, rtol=0.01)
    assert row.estimates[PERPLEXITY].interval.high / row.estimates[PERPLEXITY].interval.low > 1.08


def test_a_ratio_is_paired_by_example() -> None:
    losses = np.random.default_rng(0).normal(3, 1, 50)
    base, better = text_results("base", losses.tolist()), text_results("crisp", (losses - LN2).tolist())
    row = result_rows([base, better], baseline="base")[1]
    assert row.estimates[RATIO].value == pytest.approx(0.5)
    assert row.estimates[RATIO].interval == pytest.approx((0.5, 0.5))
    assert RATIO not in result_rows([base, better], baseline="base")[0].estimates
    assert "x 0.5000 [0.5000, 0.5000]" in results_table([base, better], baseline="base")


def test_models_of_other_tokenizers_or_packings_are_compared_by_bits_per_byte_alone() -> None:
    base = text_results("base", [1.0, 2.0], num_tokens=[4, 4])
    for key, value in (("tokenizer_fingerprint", "u" * 64), ("packing", "document")):
        other = text_results("other", [1.0, 2.0], num_tokens=[2, 2])
        other.model[key] = value
        row = result_rows([base, other], baseline="base")[1]
        assert RATIO not in row.estimates
        assert row.estimates[RATIO_OF_BITS].value == pytest.approx(0.5)
        text = results_table([base, other], baseline="base")
        assert "bits x 0.5000" in text
        assert "news: models of different tokenizers or packings predict different tokens" in text
    assert "different tokenizers" not in results_table([base, text_results("other", [1.0, 2.0])])


def test_other_examples_under_one_name_are_another_set() -> None:
    base, other = text_results("base", [1.0, 2.0]), text_results("crisp", [1.0, 2.0, 3.0])
    rows = result_rows([base, other], baseline="base")
    assert rows[1].than is None
    assert RATIO not in rows[1].estimates
    assert rows[0].judged.name != rows[1].judged.name
    assert f"news ({base.fingerprint[:8]}), news ({other.fingerprint[:8]}): different examples" in results_table(
        [base, other]
    )


def test_accuracies_are_both_shown_and_the_one_that_counts_is_marked() -> None:
    rows = [[-1.0, -4.0], [-3.0, -2.0], [-1.0, -2.0], [-9.0, -8.0]]
    lengths = [[1, 8], [3, 1], [1, 1], [1, 1]]  # by characters the first is wrong and the second right
    found = question_results("a", rows, characters=lengths, metric="acc_norm")
    (row,) = result_rows([found])
    assert row.estimates["acc"].value == 0.5
    assert row.estimates["acc_norm"].value == 0.5
    assert found.right.tolist() == [True, False, True, False]
    assert found.right_normalised.tolist() == [False, True, True, False]
    line = next(line for line in results_table([found]).splitlines() if line.startswith("quiz"))
    assert line.index("*") > line.index("] ")
    assert line.count("*") == 1


def test_a_difference_of_accuracies_is_paired_and_in_points() -> None:
    base = answered("base", 2, 10, set_name="quiz")
    crisp = answered("crisp", 5, 10, set_name="quiz")
    row = result_rows([crisp, base], baseline="base")[1]  # the baseline comes first
    found = row.estimates["difference_of_acc"]
    assert found.value == pytest.approx(0.3)
    wins = np.array([0] * 2 + [1] * 3 + [0] * 5)
    assert found.interval == difference_interval(wins)
    assert "+30.0 [" in results_table([crisp, base], baseline="base")


def test_contaminated_examples_are_counted_and_left_out_of_a_second_figure() -> None:
    texts = text_results("a", [LN2, 3 * LN2, 5 * LN2], contaminated=[True, False, False])
    quiz = question_results("a", [[-1, -2], [-2, -1]], contaminated=[True, False])
    rows = result_rows([texts, quiz])
    assert [row.num_contaminated for row in rows] == [1, 1]
    assert rows[0].estimates[PERPLEXITY + CLEAN].value == pytest.approx(16)
    assert rows[1].estimates["acc" + CLEAN].value == 0
    text = results_table([texts, quiz])
    assert "without them" in text
    assert "WARNING: news: 33.3% of the examples stand in the training data" in text
    assert "contaminated" not in results_table([text_results("a", [1.0, 2.0])])


def test_a_set_of_nothing_but_contaminated_examples_has_no_clean_figure() -> None:
    (row,) = result_rows([text_results("a", [1.0, 2.0], contaminated=[True, True])])
    assert math.isnan(row.estimates[PERPLEXITY + CLEAN].value)
    clean = [line["value"] for line in result_tables([row]).records if str(line["measure"]).endswith(CLEAN)]
    assert len(clean) == 1
    assert math.isnan(clean[0])


def test_texts_left_out_and_contexts_of_other_lengths_are_said() -> None:
    text = results_table([text_results("a", [1.0, 2.0], num_empty=3), text_results("b", [1.0, 2.0], n_positions=64)])
    assert "news, a: 3 texts without a token to predict were left out" in text
    assert "news: the models read contexts of different lengths (a 32, b 64 tokens)" in text


def test_two_models_of_one_name_are_refused() -> None:
    first, second = text_results("a", [1.0]), text_results("a", [1.0], set_name="law", ids=[9], batch=200)
    with pytest.raises(InputError, match=r"two models are called a: their batch is 100 and 200. .* --name"):
        results_table([first, second])


def test_sets_scored_by_two_metrics_are_refused() -> None:
    found = [question_results("a", [[-1, -2]]), question_results("b", [[-1, -2]], metric="acc_norm")]
    with pytest.raises(InputError, match="quiz: a is scored by acc, b by acc_norm"):
        results_table(found)


def test_a_baseline_without_results_is_refused() -> None:
    with pytest.raises(InputError, match="--than c: there are no results of such a model, only of a, b"):
        results_table([text_results("a", [1.0]), text_results("b", [1.0])], baseline="c")
    with pytest.raises(InputError, match="no results of another model"):
        results_table([text_results("a", [1.0])], baseline="a")
    with pytest.raises(InputError, match="no results are named"):
        results_table([])


def test_the_command_prints_the_table_and_writes_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for found in (
        text_results("base", [1.0, 2.0, 3.0]),
        text_results("crisp", [1.0, 1.5, 2.0]),
        answered("base", 3, 9, set_name="quiz"),
        answered("crisp", 4, 9, set_name="quiz"),
    ):
        found.save(tmp_path / "results")
    out = tmp_path / "new" / "table.csv"
    assert main(["results", "table", str(tmp_path / "results"), "--than", "base", "--csv", str(out)]) == 0
    printed = capsys.readouterr().out
    assert results_table(load_all([tmp_path / "results"]), baseline="base") in printed
    lines = [line.split(",") for line in out.read_text().splitlines()]
    head, body = lines[0], lines[1:]
    assert len(body) == 2 * 3 + 1 + 2 * 2 + 1
    by_name = [dict(zip(head, line, strict=True)) for line in body]
    (ratio,) = [row for row in by_name if row["measure"] == RATIO]
    assert float(ratio["value"]) == pytest.approx(math.exp(-0.5))
    assert (ratio["model"], ratio["than"], ratio["set"]) == ("crisp", "base", "news")
    assert [row["value"] for row in by_name if row["measure"] == "acc" and row["model"] == "base"] == [str(1 / 3)]
