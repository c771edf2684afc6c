"""Results of judged models: their figures as bars, the share of examples on which each is better than base, curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.report.charts import Curve
from crisp_stream.report.colours import Colours, task_of_set
from crisp_stream.report.elements import Cells, batch_figure, interval_below, named, safe, section, table, valued_bar
from crisp_stream.results.better import better_rows, natural_baseline
from crisp_stream.results.contaminated import names_in_figures
from crisp_stream.results.curves import TRAINING_LOSS, curves, run_identity
from crisp_stream.results.estimates import Estimate
from crisp_stream.results.pairing import AnyResults, JudgedSet, model_names
from crisp_stream.results.results import SUFFIX, TextResults
from crisp_stream.results.tables import (
    BITS_PER_BYTE,
    INTERVALS,
    PERPLEXITY,
    TOKEN_LEVEL,
    WRITTEN,
    ResultRow,
    clean_cell,
    figure_cell,
    long_cell,
    result_rows,
    row_notes,
    than_cell,
)
from crisp_stream.storage.store import is_remote, local_path, open_store
from crisp_stream.table import NONE

_CAPTIONS = {
    PERPLEXITY: "Lower is better: exp of the mean over texts of the mean loss per token.",
    BITS_PER_BYTE: "Lower is better: loss of all tokens in bits, over the bytes of their text. For models that cut "
    "text into tokens differently, whose perplexities cannot be compared.",
    "acc": "Higher is better: share of questions answered right.",
    "acc_norm": "Higher is better: share of questions answered right, by log probability per character.",
}
_TITLES = {
    PERPLEXITY: "Perplexity",
    TOKEN_LEVEL: "Token level",
    BITS_PER_BYTE: "Bits/byte",
    "acc": "Accuracy, %",
    "acc_norm": "Accuracy, % (acc_norm)",
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results that a page shows."""

    results: Sequence[AnyResults]
    baseline: str | None = None
    """Model that the others are compared with; the first with `base` in its name when None, if there is one."""

    @cached_property
    def newest(self) -> list[AnyResults]:
        """Results of the newest checkpoint of each run on each set, and of the baseline; older ones are for curves."""
        newest: dict[tuple[object, ...], AnyResults] = {}
        for results in self.results:
            key = (*run_identity(results), results.kind, results.fingerprint)
            if key not in newest or results.model["batch"] > newest[key].model["batch"]:
                newest[key] = results
        return [
            results
            for results in self.results
            if results.model_name == self.baseline or any(results is kept for kept in newest.values())
        ]

    @property
    def than(self) -> str | None:
        """The baseline, where there are other models; None: nothing is compared."""
        return (self.baseline or natural_baseline(self.newest)) if len(model_names(self.newest)) > 1 else None

    @cached_property
    def rows(self) -> list[ResultRow]:
        """Figures of the newest checkpoints on all sets.

        Raises:
            InputError: no results, none of the baseline, or two models of one name.
        """
        return result_rows(self.newest, baseline=self.than)

    def led_by(self, tasks: Sequence[str]) -> Evaluation:
        """The same results, with the sets of the tasks before other sets."""
        ordered = sorted(self.results, key=lambda results: task_of_set(results.set_name, tasks) is None)
        return replace(self, results=ordered)


def holds_results(path: str) -> bool:
    """Tell whether a path is a file of results or a folder with some. Raises StorageError."""
    if path.endswith(SUFFIX):
        return True
    if not is_remote(path) and not local_path(path).is_dir():
        return False
    return any(name.endswith(SUFFIX) for name, _ in open_store(path).list())


def score_section(evaluation: Evaluation, colours: Colours) -> str:
    """A table per measure that counts for a set: its bars on one scale, and all other figures.

    Raises:
        InputError: no results, none of the baseline, or two models of one name.
    """
    by_measure: dict[str, list[ResultRow]] = {measure: [] for measure in _CAPTIONS}
    for row in evaluation.rows:
        by_measure[row.measure].append(row)
    tables = "\n".join(_score_table(measure, rows, colours) for measure, rows in by_measure.items() if rows)
    notes = [INTERVALS, *row_notes(evaluation.rows)]
    if len(evaluation.newest) < len(evaluation.results):
        notes.append("tables: the newest checkpoint of each run; the curves show all")
    listed = "".join(f"<li>{safe(note)}</li>" for note in notes)
    return section("scores", "Scores of the judged models", f'{tables}\n<ul class="advice">{listed}</ul>')


def _score_table(measure: str, rows: Sequence[ResultRow], colours: Colours) -> str:
    """Models by set; columns of comparisons, long and contaminated examples only where there are some."""
    title = _TITLES[measure]
    scale = 1.0 if measure.startswith("acc") else max(row.estimates[measure].value for row in rows)
    than = next((row.than for row in rows if row.than), None)
    checked = any(row.num_contaminated for row in rows)
    any_long = any(row.results.num_long or row.results.num_long_dropped for row in rows)
    groups: dict[str, list[Cells]] = {}
    for row in rows:
        colour, figure = colours.of_run(run_identity(row.results)), row.estimates[measure]
        cells = {
            "Model": named(row.results.model_name, colour),
            title: valued_bar(figure_cell(measure, figure), figure.value / scale, colour),
        }
        if than is not None:
            cells[f"than {than}"] = interval_below(than_cell(row))
        for other in _TITLES:
            if other != measure and other in row.estimates:
                cells[_TITLES[other]] = interval_below(figure_cell(other, row.estimates[other]))
        if any_long:
            cells["Too long"] = long_cell(row)
        if checked:
            cells["Contaminated"] = NONE if row.num_contaminated is None else f"{row.num_contaminated:,}"
            cells["Without them"] = interval_below(clean_cell(row))
        groups.setdefault(_set_heading(row.judged, colours), []).append(cells)
    return table(groups, title=title, caption=_CAPTIONS[measure], kinds={title: "bar"})


def _set_heading(judged: JudgedSet, colours: Colours) -> str:
    return f"{named(judged.name, colours.of_set(judged.name))} <small>{examples(judged.results[0])}</small>"


def examples(results: AnyResults) -> str:
    """Number of examples of a set, in words."""
    kind = "text" if isinstance(results, TextResults) else "question"
    return f"{results.num_examples:,} {kind}{'s' * (results.num_examples != 1)}"


def evaluation_section(evaluation: Evaluation, colours: Colours) -> str:
    """Shares of examples that got better, and curves over training; nothing where there is neither."""
    parts = [part for part in (_better_part(evaluation, colours), _curve_part(evaluation.results, colours)) if part]
    return section("evaluation", "Evaluation example by example and over training", "\n".join(parts)) if parts else ""


def _better_part(evaluation: Evaluation, colours: Colours) -> str:
    """Shares of the examples on which each model is better than the baseline."""
    than = evaluation.than
    if than is None:
        return ""
    try:
        rows = better_rows(evaluation.newest, baseline=than)
    except InputError as error:  # nothing that may be paired: the scores stand, and this says why it does not
        return f'<p class="warning">{safe(str(error))}</p>'
    groups: dict[str, list[Cells]] = {}
    for row in rows:
        colour = colours.of_run(run_identity(row.results))
        cells = {
            "Model": named(row.results.model_name, colour),
            "% better": valued_bar(row.fraction.cell(1, scale=100), row.fraction.value, colour),
            "Ties": f"{row.num_ties:,}",
        }
        if any(row.num_contaminated for row in rows):
            cells["Contaminated"] = NONE if row.num_contaminated is None else f"{row.num_contaminated:,}"
            cells["Without them"] = interval_below(row.clean_cell)
        groups.setdefault(_set_heading(row.judged, colours), []).append(cells)
    title = "Where it got better"
    caption = (
        f"Share of the examples on which each model is better than {safe(than)}: a lower perplexity, or a likelier "
        "right answer. A tie counts as half."
    )
    return f"<h3>{title}</h3>\n{table(groups, title=title, caption=caption, kinds={'% better': 'bar'})}"


def _curve_part(results: Sequence[AnyResults], colours: Colours) -> str:
    """A chart per set on which several checkpoints of a run were judged."""
    try:
        drawn = curves(results)
    except InputError:  # models of no run, or two of one batch: there is no curve to draw
        return ""
    colour_of = {judged.model_name: colours.of_run(run_identity(judged)) for judged in results}
    by_set: dict[tuple[str, str], list[Curve]] = {}
    for (run, set_name), points in drawn.lines().items():
        if set_name != TRAINING_LOSS:
            measure = points[0].measure
            scale = 100 if measure.startswith("acc") else 1
            values = np.array([(point.batch, scale * point.estimate.value) for point in points], np.float64)
            label = f"{run}: {figure_cell(measure, Estimate(points[-1].estimate.value))} at the end"
            curve = Curve(points=values, colour=colour_of[points[0].model], label=label)
            by_set.setdefault((set_name, WRITTEN[measure]), []).append(curve)
    names = names_in_figures(drawn.sets)
    figures = "\n".join(
        batch_figure(
            f"<h4>{safe(names[set_name])}</h4>",
            "Checkpoints of each run, on all examples; sets of one measure have one scale.",
            measure,
            lines,
            beside=[line for (_, other), beside in by_set.items() if other == measure for line in beside],
        )
        for (set_name, measure), lines in by_set.items()
    )
    return f'<h3>Over training</h3>\n<div class="pair">\n{figures}\n</div>' if figures.strip() else ""
