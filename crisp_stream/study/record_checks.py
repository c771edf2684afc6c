"""What must hold of a study's record: names that are known, equal tokens, equal examples."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from crisp_stream.errors import InputError

if TYPE_CHECKING:
    from crisp_stream.study.record.record import StudyModel, StudyResults


def check_names(study: StudyResults) -> None:
    """Raises InputError: something names what the record does not hold, or there is not one base method."""
    names = [method.name for method in study.methods]
    bases = [method.name for method in study.methods if method.kind == "base"]
    if len(bases) != 1:
        raise InputError(f"{study.name}: exactly one method must be of kind base, got {', '.join(bases) or 'none'}.")
    if len(set(names)) < len(names):
        raise InputError(f"{study.name}: names of methods must differ, got {', '.join(names)}.")
    tasks = ["", *study.specialists]
    named = {
        "a method's dataset": ([method.dataset for method in study.methods], study.datasets),
        "a model's method": ([model.method for model in study.models], names),
        "a model's specialist": ([model.specialist for model in study.models], tasks),
        "a selection's method": ([own.method for own in study.selections], names),
        "a selection's specialist": ([own.specialist for own in study.selections], tasks),
        "the method of weights": ([own.method for own in study.weights], names),
        "the specialist of weights": ([own.specialist for own in study.weights], tasks),
        "a curve's method": ([method for curve in study.curves for method in curve.methods], names),
        "the reference": ([study.reference] if study.reference else [], names),
    }
    for what, (found, known) in named.items():
        for name in found:
            if name not in known:
                raise InputError(f"{study.name}: {what} must be one of {', '.join(known)}; got {name!r}.")
    for own in study.weights:
        lengths = [len(own.nodes), len(own.proportions), len(own.corpus), len(own.terms) or len(own.nodes)]
        if len(set(lengths)) > 1:
            raise InputError(f"{study.name}: weights of {own.method} must be one per node, got lengths {lengths}.")


def check_models(study: StudyResults) -> None:
    """Raises InputError: a chosen model was trained on other tokens, or two candidates of a method are chosen."""
    chosen = [model for model in study.models if model.chosen]
    others = [model for model in chosen if model.tokens != study.tokens]
    if others:
        shown = ", ".join(f"{model.name}: {model.tokens:,}" for model in others)
        raise InputError(
            f"{study.name}: every model must be trained on {study.tokens:,} tokens, or methods cannot be compared; "
            f"got {shown}. Train these again with the study's batches and batch size."
        )
    by_place: dict[tuple[Any, ...], list[StudyModel]] = defaultdict(list)
    for model in chosen:
        by_place[model.method, model.specialist, model.seed, model.fraction > 0].append(model)
    for (method, specialist, seed, _), found in by_place.items():
        if len(found) > 1:
            raise InputError(
                f"{study.name}: one candidate must be chosen of {method} for {specialist or 'all'} with seed {seed}, "
                f"got {', '.join(model.name for model in found)}."
            )


def check_judgements(study: StudyResults) -> None:
    """Raises InputError: one is of no chosen model, stands twice, or is of other examples than those of its set."""
    chosen = {(own.method, own.specialist, own.seed, own.fraction) for own in study.models if own.chosen}
    examples: dict[str, tuple[Any, ...]] = {}
    known: set[tuple[Any, ...]] = set()
    for own in study.judgements:
        place = (own.method, own.specialist, own.seed, own.fraction)
        who = f"{own.method} for {own.specialist or 'all'}, seed {own.seed}, fine-tuned {own.fraction:g}"
        if place not in chosen:
            raise InputError(f"{study.name}: {who} was judged on {own.set_name}, but is none of the chosen models.")
        if (*place, own.set_name) in known:
            raise InputError(f"{study.name}: {who} stands twice for {own.set_name}; it must be judged once.")
        known.add((*place, own.set_name))
        if own.kind not in ("text", "questions") or own.values.ndim != 1 or len(own.values) == 0:
            raise InputError(f"{study.name}: {own.set_name} must be text or questions and hold examples; {who}.")
        same = (own.kind, own.fingerprint, len(own.values))
        if examples.setdefault(own.set_name, same) != same:
            raise InputError(
                f"{study.name}: all models must be judged on the same examples of {own.set_name}; those of {who} are "
                "others. Judge it again."
            )
