"""The record of a study, from which all its tables and figures are made without a model.

`study.json` says what was run, what it cost and what was chosen; `results.parquet` holds the figure of every example of
every set for the chosen models. The two are small, so that records can be kept beside the tables that they give. What
must hold for the tables to be fair is checked here, for records just made and for records read: equal tokens, equal
examples.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from crisp_stream.errors import FormatError, InputError
from crisp_stream.storage.store import open_store
from crisp_stream.study.record.files import judgements_of_parquet, judgements_parquet
from crisp_stream.study.record.values import (
    STUDY_VERSION,
    Judgement,
    StudyCurve,
    StudyDataset,
    StudyMethod,
    StudyModel,
    StudySelection,
    StudySpecialist,
    StudyWeights,
)
from crisp_stream.typed import Builder, plain

STUDY, RESULTS = "study.json", "results.parquet"
"""The two files of a record."""
MAX_ROWS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """The record of a study."""

    name: str
    tokens: int
    """Tokens that every model was trained on."""
    num_parameters: int
    batches: int
    window_tokens: int
    seeds: tuple[int, ...]
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    generalist_set: str | None = None
    """The set of held-out texts of the corpus; None where models were not judged on one."""
    reference: str | None = None
    """Method that the paper's claims are checked on; None: the first of kind crisp."""
    tags: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, StudyDataset]
    specialists: dict[str, StudySpecialist]
    methods: tuple[StudyMethod, ...]
    """Methods in the order of the tables."""
    models: tuple[StudyModel, ...]
    selections: tuple[StudySelection, ...] = ()
    weights: tuple[StudyWeights, ...] = ()
    curves: tuple[StudyCurve, ...] = ()
    judgements: tuple[Judgement, ...]
    """Judgements of chosen models alone."""

    def __post_init__(self) -> None:
        check_names(self)
        check_models(self)
        check_judgements(self)

    @property
    def base(self) -> str:
        """Method that the others are compared with."""
        return next(method.name for method in self.methods if method.kind == "base")

    @property
    def crisp(self) -> str | None:
        """Method that the paper's claims are checked on; None where the study has none."""
        return self.reference or next((method.name for method in self.methods if method.kind == "crisp"), None)

    def method(self, name: str) -> StudyMethod:
        """Look a method up by its name."""
        return next(method for method in self.methods if method.name == name)

    def judged(self, method: str, specialist: str, set_name: str, *, finetuned: bool = False) -> Sequence[Judgement]:
        """Judgements of the models of a method for a specialist on a set, one per seed, in the order of seeds.

        Models for all count where the specialist has none. `finetuned`: those fine-tuned for the specialist, instead of
        those that were only pretrained.
        """
        places = ((method, whom, set_name, finetuned) for whom in (specialist, ""))
        return next((self._by_place[place] for place in places if place in self._by_place), [])

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, str, bool], list[Judgement]]:
        judgements: dict[tuple[str, str, str, bool], list[Judgement]] = defaultdict(list)
        for row in sorted(self.judgements, key=lambda judgement: judgement.seed):
            judgements[row.method, row.specialist, row.set_name, row.fraction > 0].append(row)
        return judgements

    def save(self, folder: str | Path) -> list[str]:
        """Write both files, study.json last, replacing older ones, and return their paths. Raises StorageError.

        Equal records give equal bytes.
        """
        names = [entry.name for entry in dataclasses.fields(self) if entry.name != "judgements"]
        facts = {name: plain(getattr(self, name)) for name in names}
        store = open_store(str(folder))
        store.put(RESULTS, judgements_parquet(self.judgements))
        store.put(STUDY, (json.dumps({"study_version": STUDY_VERSION, **facts}, indent=1) + "\n").encode())
        return [f"{str(folder).rstrip('/')}/{name}" for name in (STUDY, RESULTS)]

    @classmethod
    def load(cls, folder: str | Path) -> StudyResults:
        """Read a record. Raises FormatError: not a record, of another version, or damaged; StorageError."""
        store = open_store(str(folder))
        place, rows_place = (f"{str(folder).rstrip('/')}/{name}" for name in (STUDY, RESULTS))
        try:
            facts = json.loads(store.get(STUDY))
            version = facts.pop("study_version")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{place}: is not the record of a study ({error!r}). Run the study again.") from error
        if version != STUDY_VERSION:
            raise FormatError(
                f"{place}: study_version {version} is not that of this reader ({STUDY_VERSION}). Upgrade crisp-stream."
            )
        rows = judgements_of_parquet(store.get(RESULTS), place=rows_place, most=MAX_ROWS)
        builder = Builder(error=FormatError, place=place, remedy="Run the study again, or upgrade crisp-stream.")
        try:
            return builder.build(cls, facts, others={"judgements": tuple(Judgement(**row) for row in rows)})
        except InputError as error:
            raise FormatError(f"{place}: {error}") from error


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
        "a selection's method": ([selection.method for selection in study.selections], names),
        "a selection's specialist": ([selection.specialist for selection in study.selections], tasks),
        "the method of weights": ([weights.method for weights in study.weights], names),
        "the specialist of weights": ([weights.specialist for weights in study.weights], tasks),
        "a curve's method": ([method for curve in study.curves for method in curve.methods], names),
        "the reference": ([study.reference] if study.reference else [], names),
    }
    for what, (names_used, known) in named.items():
        for name in names_used:
            if name not in known:
                raise InputError(f"{study.name}: {what} must be one of {', '.join(known)}; got {name!r}.")
    for weights in study.weights:
        columns = (weights.nodes, weights.proportions, weights.corpus, weights.terms or weights.nodes)
        lengths = [len(column) for column in columns]
        if len(set(lengths)) > 1:
            raise InputError(f"{study.name}: weights of {weights.method} must be one per node, got lengths {lengths}.")


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
    for (method, specialist, seed, _), models in by_place.items():
        if len(models) > 1:
            raise InputError(
                f"{study.name}: one candidate must be chosen of {method} for {specialist or 'all'} with seed {seed}, "
                f"got {', '.join(model.name for model in models)}."
            )


def check_judgements(study: StudyResults) -> None:
    """Raises InputError: one is of no chosen model, stands twice, or is of other examples than those of its set."""
    chosen = {(model.method, model.specialist, model.seed, model.fraction) for model in study.models if model.chosen}
    examples: dict[str, tuple[Any, ...]] = {}
    known = set()
    for row in study.judgements:
        place = (row.method, row.specialist, row.seed, row.fraction)
        who = f"{row.method} for {row.specialist or 'all'}, seed {row.seed}, fine-tuned {row.fraction:g}"
        if place not in chosen:
            raise InputError(f"{study.name}: {who} was judged on {row.set_name}, but is none of the chosen models.")
        if (*place, row.set_name) in known:
            raise InputError(f"{study.name}: {who} stands twice for {row.set_name}; it must be judged once.")
        known.add((*place, row.set_name))
        if row.kind not in ("text", "questions") or row.values.ndim != 1 or len(row.values) == 0:
            raise InputError(f"{study.name}: {row.set_name} must be text or questions and hold examples; {who}.")
        same = (row.kind, row.fingerprint, len(row.values))
        if examples.setdefault(row.set_name, same) != same:
            raise InputError(
                f"{study.name}: all models must be judged on the same examples of {row.set_name}; those of {who} are "
                "others. Judge it again."
            )
