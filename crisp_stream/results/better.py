"""The share of examples on which one model is better than another (CRISP, Table 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crisp_stream.figure import blank_figure, save_figure
from crisp_stream.results.bootstrap import Interval, difference_interval
from crisp_stream.results.contaminated import (
    contaminated_columns,
    contaminated_examples,
    contaminated_record,
    names_in_figures,
)
from crisp_stream.results.estimates import Estimate
from crisp_stream.results.pairing import AnyResults, JudgedSet, model_names, paired_sets, pairs, same_tokens
from crisp_stream.results.results import QuestionResults, TextResults
from crisp_stream.results.tables import INTERVALS, set_notes
from crisp_stream.table import NONE, Table, TableGroup

Measure = Literal["perplexity", "bits_per_byte", "probability_of_answer"]

_WRITTEN: dict[Measure, str] = {
    "perplexity": "lower perplexity",
    "bits_per_byte": "fewer bits per byte",
    "probability_of_answer": "right answer more probable",
}


@dataclass(frozen=True, kw_only=True)
class BetterRow:
    """One model against the baseline on one set."""

    judged: JudgedSet
    results: AnyResults
    """Results of the model."""
    baseline: str
    measure: Measure
    fraction: Estimate
    """Share of examples on which the model is better, in [0, 1]; a tie counts as half."""
    num_ties: int
    num_contaminated: int | None = None
    """Examples that stand in the training data, in part; None: nobody looked."""
    clean: Estimate | None = None
    """`fraction` without these."""

    @property
    def clean_cell(self) -> str:
        """Show the share without contaminated examples."""
        return NONE if self.clean is None else self.clean.cell(1, scale=100)


def better_rows(results: Sequence[AnyResults], *, baseline: str) -> list[BetterRow]:
    """Compare all models with a baseline, example by example, on each set that both were judged on.

    Raises:
        InputError: no results of the baseline or of another model, or of different examples.
    """
    rows = []
    for judged in paired_sets(results, baseline):
        for results_of_model, base in pairs(judged, baseline):
            measure, gain = example_gains(results_of_model, base)
            seen = contaminated_examples(results_of_model, base)
            rows.append(
                BetterRow(
                    judged=judged,
                    results=results_of_model,
                    baseline=baseline,
                    measure=measure,
                    fraction=_fraction_better(gain),
                    num_ties=int((gain == 0).sum()),
                    num_contaminated=None if seen is None else int(seen.sum()),
                    clean=None if seen is None else _fraction_better(gain[~seen]),
                )
            )
    return rows


def _fraction_better(gains: NDArray[np.float64]) -> Estimate:
    """Half of 1 + wins - losses, each as a share: a tie is half a win, and half a loss."""
    if not len(gains):
        return Estimate(math.nan)
    signs = np.sign(gains)
    low, high = difference_interval(signs)
    return Estimate((1 + float(signs.mean())) / 2, Interval((1 + low) / 2, (1 + high) / 2))


def example_gains(results: AnyResults, base: AnyResults) -> tuple[Measure, NDArray[np.float64]]:
    """Compute how much better a model is on each example, by the finest measure that is comparable.

    Returns:
        The measure, and [num_examples] differences, above 0 where the model is better: nats per token, bits per byte,
        or nats of the right answer.
    """
    if isinstance(results, QuestionResults) and isinstance(base, QuestionResults):
        return "probability_of_answer", results.answer_log_probs - base.answer_log_probs
    assert isinstance(results, TextResults)
    assert isinstance(base, TextResults)
    if same_tokens(results, base):
        return "perplexity", base.losses - results.losses
    return "bits_per_byte", base.bits_per_byte - results.bits_per_byte


def better_table(rows: Sequence[BetterRow]) -> TableGroup:
    """Tabulate rows of `better_rows`, one line per set and model."""
    columns = {
        "set": [row.judged.name for row in rows],
        "model": [row.results.model_name for row in rows],
        f"% better than {rows[0].baseline}": [row.fraction.cell(1, scale=100) for row in rows],
        "ties": [f"{row.num_ties:,}" for row in rows],
        "examples": [f"{row.results.num_examples:,}" for row in rows],
        **contaminated_columns([row.num_contaminated for row in rows], [row.clean_cell for row in rows]),
        "better is": [_WRITTEN[row.measure] for row in rows],
    }
    table = Table(head=list(columns), rows=list(zip(*columns.values(), strict=True)), words=(0, 1))
    return TableGroup(
        tables=[table],
        notes=[f"A tie counts as half. {INTERVALS}", *set_notes([row.judged for row in rows])],
        records=[
            {
                "set": row.judged.name,
                "model": row.results.model_name,
                "than": row.baseline,
                "measure": row.measure,
                **row.fraction.columns("fraction_better"),
                "ties": row.num_ties,
                "examples": row.results.num_examples,
                **contaminated_record(row.num_contaminated, row.clean),
            }
            for row in rows
        ],
    )


def plot_better(rows: Sequence[BetterRow], path: str | Path) -> Path:
    """Draw fractions as dots with their intervals, a line per set, a colour per model.

    Raises:
        InputError: not .svg, .png or .pdf. MissingExtraError: matplotlib is not installed.
    """
    sets = list(dict.fromkeys(row.judged.name for row in rows))
    models = list(dict.fromkeys(row.results.model_name for row in rows))
    figure = blank_figure(6.4, 1.3 + 0.5 * len(sets) + 0.1 * len(models))
    axis = figure.subplots()
    for number, model in enumerate(models):
        dots = [row for row in rows if row.results.model_name == model]
        values = np.array([100 * row.fraction.value for row in dots])
        bounds = 100 * np.array([row.fraction.interval for row in dots]).T
        shift = (number - (len(models) - 1) / 2) * 0.5 / len(models)
        errors = np.nan_to_num(np.abs(bounds - values))
        places = [sets.index(row.judged.name) + shift for row in dots]
        axis.errorbar(values, places, xerr=errors, fmt="o", color=f"C{number}", label=model, capsize=2)
    axis.axvline(50, color="gray", linewidth=0.8)
    axis.set(xlim=(0, 100), ylim=(len(sets) - 0.5, -0.5), xlabel=f"% of examples better than {rows[0].baseline}")
    names = names_in_figures([row.judged for row in rows])
    axis.set_yticks(range(len(sets)), [names[name] for name in sets])
    figure.legend(fontsize=8, loc="outside upper center", ncols=2)
    return save_figure(figure, path)


def natural_baseline(results: Sequence[AnyResults]) -> str | None:
    """Name the first model, by name, that has `base` in its name; None without one."""
    return next((name for name in sorted(model_names(results)) if "base" in name.lower()), None)
