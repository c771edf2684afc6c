"""On how many examples a model is better."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.results.better import better_rows, better_table, natural_baseline, plot_better
from tests.support.made_results import question_results, text_results


def test_a_tie_counts_as_half() -> None:
    base = text_results("base", [1.0, 2.0, 3.0, 4.0])
    crisp = text_results("crisp", [0.5, 2.0, 3.5, 3.0])
    (row,) = better_rows([base, crisp], baseline="base")
    assert row.fraction.value == (2 + 0.5) / 4
    assert (row.num_ties, row.results.num_examples, row.measure) == (1, 4, "perplexity")
    (back,) = better_rows([base, crisp], baseline="crisp")
    assert back.fraction.value == 1 - row.fraction.value


def test_perplexity_is_compared_per_token_and_not_per_text() -> None:
    base = text_results("base", [2.0], num_tokens=[10])
    crisp = text_results("crisp", [1.0], num_tokens=[10])
    longer = text_results("longer", [1.0], num_tokens=[30])  # a greater sum, a lower perplexity
    rows = better_rows([base, crisp, longer], baseline="base")
    assert [row.fraction.value for row in rows] == [1.0, 1.0]


def test_the_interval_is_that_of_a_share() -> None:
    rng = np.random.default_rng(5)
    wins = rng.random(500) < 0.8
    base = text_results("base", [1.0] * 500)
    crisp = text_results("crisp", np.where(wins, 0.5, 1.5).tolist())
    (row,) = better_rows([base, crisp], baseline="base")
    share = wins.mean()
    half = 1.96 * math.sqrt(share * (1 - share) / 500)
    assert np.allclose(row.fraction.interval, (share - half, share + half), atol=0.006)


def test_questions_are_compared_by_the_probability_of_the_right_answer() -> None:
    base = question_results("base", [[-2.0, -1.0], [-2.0, -1.0], [-1.0, -5.0]], answers=[0, 1, 0])
    crisp = question_results("crisp", [[-1.5, -0.1], [-0.1, -1.5], [-1.0, -5.0]], answers=[0, 1, 0])
    (row,) = better_rows([base, crisp], baseline="base")
    assert row.fraction.value == (1 + 0 + 0.5) / 3  # the first is still answered wrong, but the answer is likelier
    assert row.measure == "probability_of_answer"


def test_other_tokenizers_are_compared_by_bits_per_byte() -> None:
    base = text_results("base", [1.0, 1.0], num_tokens=[8, 8])
    other = text_results("other", [3.0, 5.0], num_tokens=[2, 2], tokenizer_fingerprint="u" * 64)
    (row,) = better_rows([base, other], baseline="base")
    assert row.measure == "bits_per_byte"
    assert row.fraction.value == 0.5  # 6 nats against 8, 10 against 8, over equal bytes
    assert "compare their bits per byte only" in better_table([row]).text()


def test_different_examples_are_never_paired() -> None:
    base, other = text_results("base", [1.0, 2.0]), text_results("crisp", [1.0, 2.0], ids=[1, 0])
    with pytest.raises(InputError, match="crisp and base were judged on different examples of news") as error:
        better_rows([base, other], baseline="base")
    assert "--limit" in str(error.value)
    with pytest.raises(InputError, match="no other model was judged on a set of base"):
        better_rows([base, text_results("crisp", [1.0], set_name="law", ids=[7])], baseline="base")


def test_sets_that_only_other_models_were_judged_on_do_not_matter() -> None:
    found = [
        text_results("base", [1.0, 2.0]),
        text_results("crisp", [0.5, 2.5]),
        text_results("crisp", [1.0], set_name="law", ids=[7]),
        text_results("third", [1.0], set_name="law", ids=[7]),
    ]
    rows = better_rows(found, baseline="base")
    assert [(row.judged.name, row.results.model_name) for row in rows] == [("news", "crisp")]


def test_the_baseline_that_suggests_itself_is_the_first_with_base_in_its_name() -> None:
    found = [text_results(name, [1.0]) for name in ("crisp", "demo-base-ba9", "Base", "zz")]
    assert natural_baseline(found) == "Base"
    assert natural_baseline(found[:1]) is None


def test_the_command_prints_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, crisp = text_results("base", [1.0, 2.0, 3.0]), text_results("crisp", [0.5, 2.0, 3.5])
    for found in (base, crisp):
        found.save(tmp_path)
    csv, plot = tmp_path / "b.csv", tmp_path / "plots" / "b.svg"
    command = ["results", "better", str(tmp_path), "--than", "base", "--csv", str(csv), "--plot", str(plot)]
    assert main(command) == 0
    assert "50.0 [" in capsys.readouterr().out
    head, line = (row.split(",") for row in csv.read_text().splitlines())
    row = dict(zip(head, line, strict=True))
    assert (row["model"], row["fraction_better"], row["ties"]) == ("crisp", "0.5", "1")
    drawn = plot.read_bytes()
    assert b"</svg>" in drawn
    plot_better(better_rows([base, crisp], baseline="base"), tmp_path / "again.png")
    assert (tmp_path / "again.png").stat().st_size > 1000
    with pytest.raises(InputError, match=r"--plot: must end in .svg, .png, .pdf"):
        plot_better(better_rows([base, crisp], baseline="base"), tmp_path / "again.jpg")
    assert better_table(better_rows([base, crisp], baseline="base")).records[0]["examples"] == 3
