"""The verdict: one sentence that says whether a model beats base, by how much, and under which conditions.

With several models it speaks of the best on the first set, and says among how many it is the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crisp_stream import digits
from crisp_stream.errors import InputError
from crisp_stream.report.elements import definitions, safe, section
from crisp_stream.report.evaluation import Evaluation, examples
from crisp_stream.results.bootstrap import CONFIDENCE, RESAMPLES
from crisp_stream.results.pairing import AnyResults, model_names, paired_sets
from crisp_stream.results.tables import RATIO, RATIO_OF_BITS, ResultRow

_MAX_FURTHER_SETS = 2
"""Sets besides the first that the sentence names; more are counted."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The difference that a model makes to the baseline on a set."""

    row: ResultRow
    """Model and set."""
    measure: str
    """Perplexity, loss in bits per byte, or accuracy."""
    change: float
    """Relative change of a perplexity or of bits per byte, or difference of accuracies."""
    low: float
    """Lower end of the interval of the change; NaN for a single example."""
    high: float
    """Upper end."""

    @property
    def sign(self) -> int:
        """1 better, -1 worse, 0 not clear: the interval holds 0, or there is none."""
        towards_better = 1 if self.measure == "accuracy" else -1
        return towards_better * ((self.low > 0) - (self.high < 0))

    @property
    def gain(self) -> float:
        """The change, above 0 where the model is better."""
        return self.change if self.measure == "accuracy" else -self.change

    def amount(self) -> str:
        """Text such as `44% lower (95% interval 43% to 45%)`."""
        if math.isnan(self.low):
            return f"{self._directed(self.change)} (one example, so no interval)"
        if (self.low > 0) == (self.high > 0):
            bounds = sorted((self.low, self.high), key=abs)
            interval = f"{self._size(bounds[0])} to {self._size(bounds[1])}"
        else:
            interval = f"{self._directed(self.low)} to {self._directed(self.high)}"
        return f"{self._directed(self.change)} ({CONFIDENCE:.0%} interval {interval})"

    def _directed(self, change: float) -> str:
        unit = " points" if self.measure == "accuracy" else ""
        return f"{self._size(change)}{unit} {'lower' if change < 0 else 'higher'}"

    def _size(self, change: float) -> str:
        size = 100 * abs(change)
        if self.measure == "accuracy":
            return f"{size:.1f}"
        return f"{size:.0f}%" if size >= 10 else f"{size:.1f}%"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A model against the baseline."""

    baseline: str
    """Name of the model that the others are compared with."""
    first: Effect
    """Effect on the set that decides, the first of all."""
    further: Sequence[Effect]
    """Effects of the same model on the other sets."""
    num_models: int
    """Models compared with the baseline on the first set."""

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.first.row.results.model_name

    @property
    def sentence(self) -> str:
        """The outcome in a sentence, whichever it is."""
        subject, other = self.model, self.baseline
        if self.num_models > 1:
            subject, other = f"{subject}, the best of {self.num_models} models compared with {other},", "it"
        outcome = {1: f"beats {other}", 0: f"does not differ clearly from {other}", -1: f"does worse than {other}"}
        head = f"{subject} {outcome[self.first.sign]} on {self.first.row.judged.name}"
        return f"{head}: its {self.first.measure} is {self.first.amount()}{self._further()}."

    def _further(self) -> str:
        if len(self.further) > _MAX_FURTHER_SETS:
            better, worse, unclear = (sum(effect.sign == sign for effect in self.further) for sign in (1, -1, 0))
            return (
                f"; of {len(self.further)} other sets it is better on {better}, worse on {worse} and not clearly "
                f"different on {unclear}"
            )
        text, measure = "", self.first.measure
        for effect in self.further:
            subject = "it" if effect.measure == measure else f"its {effect.measure}"
            text += f"; on {effect.row.judged.name} {subject} is {effect.amount()}"
            measure = effect.measure
        return text

    @property
    def conditions(self) -> dict[str, str]:
        """Models, examples and intervals behind the sentence, by name."""
        base = self.first.row.judged.of(self.baseline)
        assert base is not None
        models = {self.baseline: _training(base), self.model: _training(self.first.row.results)}
        if len(set(models.values())) == 1:
            models = {f"{self.baseline} and {self.model}, each": _training(base)}
        sets = [_set_in_words(effect.row) for effect in (self.first, *self.further)]
        return {
            **models,
            "Judged on": f"{', '.join(sets)}; {digits.JUDGED}",
            "Intervals": f"{CONFIDENCE:.0%} over examples, both models together (studentised bootstrap of "
            f"{RESAMPLES:,} resamples; of accuracies by Tango); another training seed moves the figures, too",
        }


def verdict_of(evaluation: Evaluation) -> Verdict:
    """Compare the judged models with the baseline, on the first set and on others.

    Raises:
        InputError: there is nothing to compare, and why.
    """
    names, baseline = model_names(evaluation.newest), evaluation.than
    if len(names) == 1:
        raise InputError(f"only {names[0]} was judged. Judge a second model on the same files.")
    if baseline is None:
        raise InputError(f"none of {', '.join(names)} is called base. Name the one to compare with: --than MODEL.")
    paired_sets(evaluation.newest, baseline)
    rows = [row for row in evaluation.rows if row.than is not None]
    effects = list(map(_effect, rows))
    deciding = [effect for effect in effects if effect.row.judged.name == effects[0].row.judged.name]
    best = max(deciding, key=lambda effect: effect.gain)
    model = best.row.results.model_name
    further = [effect for effect in effects if effect is not best and effect.row.results.model_name == model]
    return Verdict(baseline=baseline, first=best, further=further, num_models=len(deciding))


def verdict_section(evaluation: Evaluation | None) -> str:
    """The section of the page: the sentence with its conditions, or why there is none."""
    sentence = "Nothing to compare: no model was judged. Judge two with crisp-stream eval, and name its folder."
    conditions = ""
    try:
        if evaluation is not None:
            verdict = verdict_of(evaluation)
            sentence, conditions = verdict.sentence, definitions(verdict.conditions, kind="conditions")
    except InputError as error:
        sentence = f"Nothing to compare: {error}"
    return section("verdict", "Verdict", f'<p class="verdict">{safe(sentence)}</p>\n{conditions}')


def _effect(row: ResultRow) -> Effect:
    assert row.comparison is not None
    measure, estimate = row.comparison
    words = {RATIO: "perplexity", RATIO_OF_BITS: "loss in bits per byte"}.get(measure, "accuracy")
    same = 0 if words == "accuracy" else 1
    low, high = estimate.interval
    return Effect(row=row, measure=words, change=estimate.value - same, low=low - same, high=high - same)


def _set_in_words(row: ResultRow) -> str:
    """Name of a set, its examples, and those that are in the training data, where somebody looked."""
    seen = f", {row.num_contaminated:,} of them in part in the training data" if row.num_contaminated else ""
    return f"{row.judged.name} ({examples(row.results)}{seen})"


def _training(results: AnyResults) -> str:
    """Size of a model, and the tokens and seed of its training as far as they are known."""
    model = results.model
    seed = (model.get("training") or {}).get("seed")
    parts = [f"{model['num_parameters']:,} parameters"]
    if model.get("tokens") is not None:
        parts.append(f"trained on {model['tokens']:,} tokens")
    if seed is not None:
        parts.append(f"seed {seed}")
    return ", ".join(parts)
