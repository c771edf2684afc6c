"""Pairs of results that may be compared: of the same examples in the same order, and of one tokenisation.

A perplexity is per token. Two models that cut or begin texts differently (another tokenizer, or packing "document",
whose first token is not predicted) predict different tokens, so they are compared by bits per byte instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crisp_stream.errors import InputError
from crisp_stream.results.results import QuestionResults, Results, TextResults

AnyResults = TextResults | QuestionResults

_IDENTITY = ("run_name", "batch", "tokens", "num_parameters", "tokenizer_fingerprint", "mixture_fingerprint")
_FINGERPRINT_DIGITS = 8


@dataclass(frozen=True, kw_only=True)
class JudgedSet:
    """A set of examples and all models that were judged on it."""

    name: str
    """Name of the set; with the beginning of its fingerprint where other examples have the same name."""
    results: Sequence[AnyResults]
    """[num_models], all of one kind, in the order of the files."""

    def of(self, model: str) -> AnyResults | None:
        """Find the results of a model; None where it was not judged."""
        return next((results for results in self.results if results.model_name == model), None)

    @property
    def texts(self) -> list[TextResults]:
        """Results of a set of texts; empty for questions."""
        return [results for results in self.results if isinstance(results, TextResults)]

    @property
    def questions(self) -> list[QuestionResults]:
        """Results of a set of questions; empty for texts."""
        return [results for results in self.results if isinstance(results, QuestionResults)]

    @property
    def comparable(self) -> bool:
        """Whether all of its models predict the same tokens."""
        return all(same_tokens(self.results[0], results) for results in self.results[1:])


def same_tokens(first: Results, second: Results) -> bool:
    """Tell whether two models predict the same tokens of a text: equal tokenizer and packing."""
    return all(first.model.get(key) == second.model.get(key) for key in ("tokenizer_fingerprint", "packing"))


def judged_sets(results: Sequence[AnyResults]) -> list[JudgedSet]:
    """Group results by set, in the order of the files.

    Raises:
        InputError: there are none, two models have one name, or one set of questions has two metrics.
    """
    if not results:
        raise InputError("no results are named. `crisp-stream eval --out` writes them.")
    _check_models(results)
    by_examples: dict[tuple[str, str], list[AnyResults]] = {}
    for result in results:
        by_examples.setdefault((result.kind, result.fingerprint), []).append(result)
    names = [same[0].set_name for same in by_examples.values()]
    sets = []
    for same in by_examples.values():
        name = same[0].set_name
        if names.count(name) > 1:
            name = f"{name} ({same[0].fingerprint[:_FINGERPRINT_DIGITS]})"
        judged = JudgedSet(name=name, results=same)
        _check_metric(judged)
        sets.append(judged)
    return sets


def model_names(results: Iterable[Results]) -> list[str]:
    """Name each model once, in the order of the files."""
    return list(dict.fromkeys(result.model_name for result in results))


def check_baseline(results: Sequence[AnyResults], baseline: str) -> None:
    """Check that there are results of the baseline and of another model. Raises InputError."""
    names = model_names(results)
    if baseline not in names:
        raise InputError(f"--than {baseline}: there are no results of such a model, only of {', '.join(names)}.")
    if len(names) == 1:
        raise InputError(f"--than {baseline}: there are no results of another model. Name a folder with some.")


def pairs(judged: JudgedSet, baseline: str) -> list[tuple[AnyResults, AnyResults]]:
    """Pair each other model's results on a set with the baseline's; nothing where the baseline was not judged."""
    base = judged.of(baseline)
    return [] if base is None else [(result, base) for result in judged.results if result is not base]


def paired_sets(results: Sequence[AnyResults], baseline: str) -> list[JudgedSet]:
    """Find the sets on which a baseline and another model were judged.

    Raises:
        InputError: there is none, or a model was judged on other examples of a set than the baseline.
    """
    check_baseline(results, baseline)
    sets = judged_sets(results)
    of_baseline = {(result.kind, result.set_name): result for result in results if result.model_name == baseline}
    for judged in sets:
        for result in judged.results if judged.of(baseline) is None else []:
            base = of_baseline.get((result.kind, result.set_name))
            if base is not None:
                raise InputError(
                    f"{result.model_name} and {baseline} were judged on different examples of {result.set_name} "
                    f"({result.num_examples:,} and {base.num_examples:,}), which cannot be paired. Judge both on the "
                    "same files with the same --limit."
                )
    chosen = [judged for judged in sets if pairs(judged, baseline)]
    if not chosen:
        raise InputError(f"no other model was judged on a set of {baseline}. Judge both on the same files.")
    return chosen


def _check_models(results: Sequence[AnyResults]) -> None:
    known: dict[str, AnyResults] = {}
    for result in results:
        first = known.setdefault(result.model_name, result)
        for key in _IDENTITY:
            value, other = first.model.get(key), result.model.get(key)
            if value != other:
                raise InputError(
                    f"two models are called {result.model_name}: their {key} is {value!r} and {other!r}. Judge one "
                    "again with another --name, or leave its files out."
                )


def _check_metric(judged: JudgedSet) -> None:
    for result in judged.questions:
        if result.metric != judged.questions[0].metric:
            raise InputError(
                f"{judged.name}: {judged.questions[0].model_name} is scored by {judged.questions[0].metric}, "
                f"{result.model_name} by {result.metric}. Judge one again."
            )
