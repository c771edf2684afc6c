"""Figures of all models on all sets, with a second model as the yardstick if one is named.

Which figures may be compared is decided in `pairing.py`: where tokenizers or packings differ, bits per byte alone, and
the table says so. What is compared with a second model is compared example by example: both are resampled together, so
the interval of a ratio or difference is far narrower than those of the two figures suggest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream import digits
from crisp_stream.results.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    difference_interval,
    mean_interval,
    ratio_interval,
    share_interval,
)
from crisp_stream.results.contaminated import (
    contaminated_columns,
    contaminated_examples,
    contamination_notes,
)
from crisp_stream.results.estimates import Estimate
from crisp_stream.results.pairing import AnyResults, JudgedSet, check_baseline, judged_sets, same_tokens
from crisp_stream.results.results import QuestionResults, TextResults
from crisp_stream.table import NONE, Table, TableGroup

PERPLEXITY, TOKEN_LEVEL, BITS_PER_BYTE = "perplexity", "token_level_perplexity", "bits_per_byte"
CLEAN = "_without_contaminated"
"""Suffix of a measure of the examples that are not in the training data."""
RATIO, RATIO_OF_BITS, DIFFERENCE = "ratio_of_perplexities", "ratio_of_bits_per_byte", "difference_of_"

WRITTEN = {PERPLEXITY: "perplexity", BITS_PER_BYTE: "bits/byte", "acc": "acc %", "acc_norm": "acc_norm %"}
"""The measures of `figure_of` as headings."""

INTERVALS = (
    f"[low, high]: {CONFIDENCE:.0%} intervals over examples; of shares by Wilson and Tango, of other figures by a "
    f"studentised bootstrap of {RESAMPLES:,} resamples"
)


PRECISION = f"all figures are {digits.JUDGED}, whatever the precision of the training"
MOST_COLUMNS = 100
"""Characters of a line of the table, unless it is asked to be wide."""
_LEAST_NAME = 12
"""Characters that a name keeps however narrow the table is."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One model on one set."""

    judged: JudgedSet
    results: AnyResults
    estimates: dict[str, Estimate]
    """Figures by measure; accuracies as shares."""
    than: str | None
    """The model that ratios and differences are to; None where there is none to pair with."""

    @property
    def num_contaminated(self) -> int | None:
        """Examples that stand in the training data, in part; None: not checked."""
        flags = self.results.contaminated
        return None if flags is None else int(flags.sum())

    @property
    def measure(self) -> str:
        """Measure that counts for the set, as of `figure_of`."""
        return measure_of(self.judged, self.results)

    @property
    def comparison(self) -> tuple[str, Estimate] | None:
        """Measure and estimate of the comparison with `than`; None without one."""
        return next((entry for entry in self.estimates.items() if _is_comparison(entry[0])), None)


def result_rows(results: Sequence[AnyResults], *, baseline: str | None = None) -> list[ResultRow]:
    """Estimate the figures of all models on all sets, and compare them with a baseline if one is named.

    Raises:
        InputError: no results, none of the baseline or of another, or two models of one name.
    """
    if baseline is not None:
        check_baseline(results, baseline)
    rows = []
    for judged in judged_sets(results):
        base = None if baseline is None else judged.of(baseline)
        for one in sorted(judged.results, key=lambda results: results is not base):
            estimates = text_estimates(one) if isinstance(one, TextResults) else question_estimates(one)
            if base is not None and one is not base:
                estimates |= compared(one, base)
            than = base.model_name if base is not None and one is not base else None
            rows.append(ResultRow(judged=judged, results=one, estimates=estimates, than=than))
    return rows


def text_estimates(results: TextResults) -> dict[str, Estimate]:
    """Estimate perplexity, perplexity over all tokens and bits per byte; perplexity without the contaminated, too."""
    sums, tokens, num_bytes = results.loss_sums, results.num_tokens, results.num_bytes
    per_token = ratio_interval([sums], [tokens])
    per_byte = ratio_interval([sums], [num_bytes])
    bits_per_byte = float(sums.sum() / num_bytes.sum() / math.log(2))
    estimates = {
        PERPLEXITY: perplexity_of(results.losses),
        TOKEN_LEVEL: Estimate(math.exp(sums.sum() / tokens.sum()), Interval(*np.exp(per_token))),
        BITS_PER_BYTE: Estimate(bits_per_byte, Interval(*(np.array(per_byte) / math.log(2)))),
    }
    if results.contaminated is not None:
        estimates[PERPLEXITY + CLEAN] = perplexity_of(results.losses[~results.contaminated])
    return estimates


def question_estimates(results: QuestionResults) -> dict[str, Estimate]:
    """Estimate both accuracies, of all questions and, for the one that counts, without the contaminated."""
    estimates = {"acc": share_of(results.right), "acc_norm": share_of(results.right_normalised)}
    if results.contaminated is not None:
        estimates[results.metric + CLEAN] = share_of(results.reported[~results.contaminated])
    return estimates


def measure_of(judged: JudgedSet, results: AnyResults) -> str:
    """Name the measure that counts for a set: the accuracy that the paper reports, perplexity, or bits per byte where
    not all models of the set predict the same tokens."""
    if isinstance(results, QuestionResults):
        return results.metric
    return PERPLEXITY if judged.comparable else BITS_PER_BYTE


def figure_of(judged: JudgedSet, results: AnyResults) -> tuple[str, Estimate]:
    """Estimate the measure that counts for a set; accuracies as shares."""
    measure = measure_of(judged, results)
    if isinstance(results, QuestionResults):
        return measure, share_of(results.reported)
    if measure == PERPLEXITY:
        return measure, perplexity_of(results.losses)
    columns = results.loss_sums / math.log(2), results.num_bytes.astype(np.float64)
    return measure, Estimate(float(columns[0].sum() / columns[1].sum()), ratio_interval(columns[:1], columns[1:]))


def perplexity_of(losses: NDArray[np.float64], *, least: float = 1.0) -> Estimate:
    """Take exp of the mean of losses of examples, which is at least `least`; NaN of none."""
    if not len(losses):
        return _NOTHING
    bounds = np.maximum(np.exp(mean_interval(losses)), least)
    return Estimate(math.exp(losses.mean()), Interval(*bounds.tolist()))


def mean_of(values: NDArray[Any]) -> Estimate:
    """Estimate the mean over examples; NaN of none."""
    return Estimate(float(values.mean()), mean_interval(values)) if len(values) else _NOTHING


def share_of(flags: NDArray[np.bool_]) -> Estimate:
    """Estimate the share of examples with a flag; NaN of none."""
    return Estimate(float(flags.mean()), share_interval(flags)) if len(flags) else _NOTHING


def figure_cell(measure: str, estimate: Estimate) -> str:
    """Show a figure of `figure_of` with its interval; accuracies in per cent."""
    if measure.startswith("acc"):
        return estimate.cell(1, scale=100)
    return estimate.cell(4 if measure == BITS_PER_BYTE else digits.PERPLEXITY_DECIMALS)


def clean_figure_of(judged: JudgedSet, results: AnyResults) -> Estimate | None:
    """Estimate the measure that counts for a set without the contaminated examples; None where nobody looked."""
    flags = contaminated_examples(results)
    if flags is None:
        return None
    return _NOTHING if flags.all() else figure_of(judged, results.only(~flags))[1]


_NOTHING = Estimate(math.nan)


def compared(results: AnyResults, base: AnyResults) -> dict[str, Estimate]:
    """Compare two models on the same examples: ratio of perplexities or bits per byte, difference of accuracies.

    Below 1, and above 0 for accuracies, the first model is the better one.
    """
    if isinstance(results, QuestionResults) and isinstance(base, QuestionResults):
        difference = results.reported.astype(np.float64) - base.reported.astype(np.float64)
        return {DIFFERENCE + results.metric: Estimate(float(difference.mean()), difference_interval(difference))}
    if not isinstance(results, TextResults) or not isinstance(base, TextResults):
        return {}
    if same_tokens(results, base):
        return {RATIO: perplexity_of(results.losses - base.losses, least=0.0)}
    columns = results.loss_sums, results.num_bytes, base.loss_sums, base.num_bytes
    ratio = float(columns[0].sum() / columns[1].sum() / (columns[2].sum() / columns[3].sum()))
    interval = ratio_interval([results.loss_sums, base.num_bytes], [results.num_bytes, base.loss_sums])
    return {RATIO_OF_BITS: Estimate(ratio, interval)}


def result_tables(rows: Sequence[ResultRow], *, wide: bool = False) -> TableGroup:
    """Tabulate all models on all sets, with notes on what may not be compared.

    Args:
        rows: of `result_rows`.
        wide: show all columns. Otherwise the table has lines of at most 100 characters: columns of nothing but zeros
            are left out, then those that matter least, and a note names them.
    """
    columns = _columns(rows, zeros=wide)
    notes = [INTERVALS]
    if not wide:
        columns, hidden = _narrowed(columns, rows)
        notes += [f"left out: {hidden}; all columns: --wide"] if hidden else []
    if any(heading.startswith("acc") for heading in columns):
        notes.append("*: the metric that counts for the set, as the paper reports it")
    table = Table(head=list(columns), rows=list(zip(*columns.values(), strict=True)), words=(0, 1))
    return TableGroup(tables=[table], notes=[*notes, *row_notes(rows)], records=_records(rows))


Columns = dict[str, list[str]]


def _columns(rows: Sequence[ResultRow], *, zeros: bool) -> Columns:
    """Cells of all columns by heading; those of texts alone, or of questions alone, where there are such rows."""
    columns = {
        "set": [row.judged.name for row in rows],
        "model": [row.results.model_name for row in rows],
        "perplexity": [_text_cell(row, PERPLEXITY) for row in rows],
        "token level": [_text_cell(row, TOKEN_LEVEL) for row in rows],
        "bits/byte": [_text_cell(row, BITS_PER_BYTE) for row in rows],
        "acc %": [_accuracy_cell(row, "acc") for row in rows],
        "acc_norm %": [_accuracy_cell(row, "acc_norm") for row in rows],
        **_than_column(rows),
        "examples": [f"{row.results.num_examples:,}" for row in rows],
        "tokens": [
            f"{row.results.num_tokens.sum():,}" if isinstance(row.results, TextResults) else NONE for row in rows
        ],
        "too long": [long_cell(row) for row in rows],
        **contaminated_columns([row.num_contaminated for row in rows], [clean_cell(row) for row in rows], zeros=zeros),
    }
    return {heading: cells for heading, cells in columns.items() if any(cell.strip() != NONE for cell in cells)}


def _narrowed(columns: Columns, rows: Sequence[ResultRow]) -> tuple[Columns, str]:
    """Leave columns out until lines have at most MOST_COLUMNS characters, and say which."""
    shown = {heading: cells for heading, cells in columns.items() if {cell.strip() for cell in cells} - {"0", NONE}}
    hidden: list[str] = []
    measures = {WRITTEN[row.measure] for row in rows}
    if len(measures) > 1 and _width(shown) > MOST_COLUMNS:
        shown = _with_one_figure(shown, rows)
        hidden += [heading for heading in _FIGURES if heading in columns]
    for heading in _LEAST_FIRST:
        if heading in shown and heading not in measures and _width(shown) > MOST_COLUMNS:
            del shown[heading]
            hidden.append(heading)
    for heading in _WITHOUT_INTERVAL_FIRST:
        for one in [one for one in shown if one == heading or (heading == "than" and one.startswith("than "))]:
            if _width(shown) > MOST_COLUMNS:
                shown[one] = [cell.partition(" [")[0] for cell in shown[one]]
                hidden.append(f"intervals of {one}")
    for heading in ("set", "model"):
        if (excess := _width(shown) - MOST_COLUMNS) > 0:
            shown[heading] = _shortened(shown[heading], excess)
    if (excess := _width(shown) - MOST_COLUMNS) > 0:
        shown = {_shortened([heading], excess)[0]: cells for heading, cells in shown.items()}
    return shown, ", ".join(dict.fromkeys(hidden))


_FIGURES = ("perplexity", "token level", "bits/byte", "acc %", "acc_norm %")
_LEAST_FIRST = ("tokens", "token level", "acc %", "acc_norm %", "bits/byte", "perplexity", "examples", "too long")
"""Headings in the order in which they are left out; never the measure that counts. What is too long stands in the
notes."""
_WITHOUT_INTERVAL_FIRST = ("without them", "figure", *_FIGURES, "than")


def _with_one_figure(columns: Columns, rows: Sequence[ResultRow]) -> Columns:
    """Sets of several measures, in one column of figures and one of what they are."""
    one = {
        "figure": [figure_cell(row.measure, row.estimates[row.measure]) for row in rows],
        "": [WRITTEN[row.measure] for row in rows],
    }
    before = {heading: cells for heading, cells in columns.items() if heading in ("set", "model")}
    after = {heading: cells for heading, cells in columns.items() if heading not in (*before, *_FIGURES)}
    return before | one | after


def _width(columns: Columns) -> int:
    return sum(max(len(heading), *map(len, cells)) for heading, cells in columns.items()) + 2 * (len(columns) - 1)


def _shortened(names: Sequence[str], excess: int) -> list[str]:
    """Cut names in the middle, with an ellipsis, as far as they stay different."""
    room = max(_LEAST_NAME, max(map(len, names)) - excess)
    for characters in range(room, max(map(len, names))):
        head, tail = characters // 2, characters - characters // 2 - 1
        short = {name: name if len(name) <= characters else f"{name[:head]}…{name[-tail:]}" for name in names}
        if len(set(short.values())) == len(set(names)):
            return [short[name] for name in names]
    return list(names)


def _text_cell(row: ResultRow, measure: str) -> str:
    return figure_cell(measure, row.estimates[measure]) if measure in row.estimates else NONE


def _accuracy_cell(row: ResultRow, metric: str) -> str:
    """Show an accuracy in per cent; the metric that counts is marked, and others leave room for the mark."""
    if metric not in row.estimates:
        return NONE + " "
    marked = isinstance(row.results, QuestionResults) and row.results.metric == metric
    return figure_cell(metric, row.estimates[metric]) + ("*" if marked else " ")


def _than_column(rows: Sequence[ResultRow]) -> Columns:
    than = next((row.than for row in rows if row.than), None)
    return {} if than is None else {f"than {than}": [than_cell(row) for row in rows]}


def than_cell(row: ResultRow) -> str:
    """Show a model against the baseline: `x` a ratio of perplexities, `bits x` one of bits per byte, or points."""
    if row.comparison is None:
        return NONE
    measure, estimate = row.comparison
    if measure.startswith(DIFFERENCE):
        return estimate.cell(1, scale=100, signed=True)
    return f"{'x' if measure == RATIO else 'bits x'} {estimate.cell(digits.RATIO_DECIMALS)}"


def _is_comparison(measure: str) -> bool:
    return measure in (RATIO, RATIO_OF_BITS) or measure.startswith(DIFFERENCE)


def long_cell(row: ResultRow) -> str:
    """Show how many examples are longer than the model's context, and what was done with them."""
    dropped, long = row.results.num_long_dropped, row.results.num_long
    if dropped:
        return f"{dropped:,} dropped"
    if not long:
        return NONE if long is None else "0"
    return f"{long:,} {'cut' if isinstance(row.results, QuestionResults) else 'in windows'}"


def _long_notes(rows: Sequence[ResultRow]) -> list[str]:
    notes = []
    for row in rows:
        results, dropped = row.results, row.results.num_long_dropped
        about = f"{row.judged.name}, {results.model_name}"
        context = f"its context of {results.model.get('n_positions')} tokens"
        if dropped:
            notes.append(f"{about}: {dropped:,} examples longer than {context} were left out (--long drop)")
        elif results.num_long and isinstance(results, QuestionResults):
            notes.append(
                f"WARNING: {about}: {results.num_long:,} of {results.num_examples:,} questions are longer than "
                f"{context}; the beginning of their prompts was cut off"
            )
        elif results.num_long:
            notes.append(f"{about}: {results.num_long:,} texts longer than {context} were read in windows, one by one")
    return notes


def clean_cell(row: ResultRow) -> str:
    """Show the figure of the examples that are not in the training data."""
    return clean_figure_cell(row.measure, clean_figure_of(row.judged, row.results))


def clean_figure_cell(measure: str, estimate: Estimate | None) -> str:
    """Show a figure of `clean_figure_of`."""
    return NONE if estimate is None else figure_cell(measure, estimate)


def row_notes(rows: Sequence[ResultRow]) -> list[str]:
    """List what a reader of the figures must know, a line each."""
    notes = []
    if any(row.than for row in rows):
        notes.append("than: ratio of perplexities (below 1 is better), difference of accuracies in points; paired")
    notes += set_notes([row.judged for row in rows])
    for row in rows:
        if isinstance(row.results, TextResults) and row.results.num_empty:
            left_out = f"{row.results.num_empty:,} texts without a token to predict were left out"
            notes.append(f"{row.judged.name}, {row.results.model_name}: {left_out}")
    notes += _long_notes(rows)
    return notes


def set_notes(sets: Sequence[JudgedSet]) -> list[str]:
    """What every view says of its sets: precision, what may not be compared, which examples are contaminated."""
    return [PRECISION, *comparability_notes(sets), *contamination_notes(sets)]


def comparability_notes(sets: Sequence[JudgedSet]) -> list[str]:
    """Say what may not be compared, and why, a line per set; nothing where all may. Sets may come more than once."""
    notes = []
    once = {judged.name: judged for judged in sets}.values()
    for judged in once:
        examples, different = judged.results[0].num_examples, len(np.unique(judged.results[0].example_ids))
        if different < examples:
            notes.append(
                f"WARNING: {judged.name}: {examples - different:,} of the {examples:,} examples are copies of others. "
                "Intervals take them for examples of their own, and are too narrow: judge on each once"
            )
    for judged in once:
        if judged.texts and not judged.comparable:
            notes.append(
                f"{judged.name}: models of different tokenizers or packings predict different tokens: compare their "
                "bits per byte only"
            )
        contexts = {results.model.get("n_positions") for results in judged.texts}
        if len(contexts) > 1:
            shown = ", ".join(f"{one.model_name} {one.model.get('n_positions')}" for one in judged.texts)
            notes.append(f"{judged.name}: the models read contexts of different lengths ({shown} tokens)")
    notes += [note for judged in once for results in judged.results for note in _seen_note(judged, results)]
    shared = [judged.name for judged in once if judged.name != judged.results[0].set_name]
    if shared:
        notes.append(f"{', '.join(shared)}: different examples; do not compare across them")
    return notes


def _seen_note(judged: JudgedSet, results: AnyResults) -> list[str]:
    """Say that a model was trained on examples of the set, and what its figure is without those that were found."""
    lines = results.notes.get("seen")
    if not lines or results.seen is None:
        return []
    kept = ~results.seen
    if isinstance(results, QuestionResults):
        clean = f"{WRITTEN[results.metric]} {share_of(results.reported[kept]).cell(1, scale=100)}"
    else:
        clean = f"perplexity {perplexity_of(results.losses[kept]).cell(2)}"
    without = f"; without the {int(results.seen.sum()):,} that were found, {clean}" if kept.any() else ""
    return [f"WARNING: {judged.name}, {results.model_name}: {', '.join(lines)}{without}"]


def _records(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Make a line per model, set and measure: value and bounds in full precision, accuracies as shares."""
    return [
        {
            "set": row.judged.name,
            "kind": row.results.kind,
            "model": row.results.model_name,
            "measure": measure,
            **estimate.columns(),
            "than": row.than if _is_comparison(measure) else None,
            "reported": measure in (PERPLEXITY, getattr(row.results, "metric", None)),
            "examples": row.results.num_examples,
            "tokens": int(row.results.num_tokens.sum()) if isinstance(row.results, TextResults) else None,
            "contaminated": row.num_contaminated,
            "seen": None if row.results.seen is None else int(row.results.seen.sum()),
            "long": row.results.num_long,
            "long_dropped": row.results.num_long_dropped,
            "set_fingerprint": row.results.fingerprint,
        }
        for row in rows
        for measure, estimate in row.estimates.items()
    ]
