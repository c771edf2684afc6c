"""What must hold of a study's record before anything is compared: names, one model each, and equal training tokens."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from crisp_stream.errors import InputError

if TYPE_CHECKING:
    from crisp_stream.study.results import StudyResults

_KINDS = ("text", "questions")
_LISTS = ("models", "selections", "weights", "judged")


def check_study(study: StudyResults) -> None:
    """Raises InputError: the record contradicts itself, or models that are compared saw different numbers of tokens."""
    _check_methods(study)
    _check_names(study)
    _check_tokens(study)
    _check_judged(study)
    _check_fractions(study)


def _check_methods(study: StudyResults) -> None:
    names = [method.name for method in study.methods]
    bases = [method.name for method in study.methods if method.kind == "base"]
    if len(bases) != 1:
        raise InputError(f"methods: exactly one must be of kind base, got {', '.join(bases) or 'none'}.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"methods: names must differ, got {', '.join(twice)} twice.")
    for method in study.methods:
        if method.dataset not in study.datasets:
            raise InputError(f"{method.name}: {method.dataset} is none of the datasets ({', '.join(study.datasets)}).")


def _check_names(study: StudyResults) -> None:
    methods = [method.name for method in study.methods]
    told = [] if study.reference is None else [("reference", study.reference)]
    told += [(f"curves: {curve.name}", name) for curve in study.curves for name in curve.methods]
    told += [(key, own.method) for key in _LISTS for own in getattr(study, key)]
    for what, name in told:
        if name not in methods:
            raise InputError(f"{what}: {name} is none of the methods ({', '.join(methods)}).")
    for what, own in ((key, own) for key in _LISTS for own in getattr(study, key)):
        if own.specialist and own.specialist not in study.specialists:
            known = ", ".join(study.specialists)
            raise InputError(f"{what}: {own.method} is for {own.specialist}, none of the specialists ({known}).")


def _check_tokens(study: StudyResults) -> None:
    """What every comparison rests on."""
    unequal = [model for model in study.models if model.chosen and model.tokens != study.tokens]
    if unequal:
        shown = ", ".join(f"{model.name} {model.tokens:,}" for model in unequal)
        raise InputError(
            f"models that are compared must be trained on equally many tokens, {study.tokens:,}; got {shown}. Train "
            "them again, or leave them out."
        )


def _check_judged(study: StudyResults) -> None:
    trained = {(model.method, model.specialist, model.seed, model.fraction) for model in study.models if model.chosen}
    seen: set[tuple[Any, ...]] = set()
    for row in study.judged:
        what = f"{row.model_name} on {row.set_name}"
        if row.kind not in _KINDS:
            raise InputError(f"{what}: kind must be one of {', '.join(_KINDS)}, got {row.kind}.")
        if row.values.ndim != 1 or not len(row.values) or not np.isfinite(row.values).all():
            raise InputError(f"{what}: values must be a finite number for each example, got {row.values!r}.")
        key = (row.method, row.specialist, row.seed, row.fraction)
        if key not in trained:
            raise InputError(f"{what}: must be a chosen model of the record, got none such. Add it to the models.")
        if (*key, row.set_name, row.kind) in seen:
            raise InputError(f"{what}: must stand in the record once, got it twice. Leave one out.")
        seen.add((*key, row.set_name, row.kind))


def _check_fractions(study: StudyResults) -> None:
    """Only the chosen fraction of fine-tuning may be judged: one for all seeds."""
    fractions: dict[tuple[str, str], float] = {}
    for row in study.judged:
        first = fractions.setdefault((row.method, row.specialist), row.fraction) if row.fraction else row.fraction
        if first != row.fraction:
            raise InputError(
                f"{row.model_name} on {row.set_name}: only the chosen fraction of fine-tuning may be judged, got "
                f"{first:g}, too."
            )
