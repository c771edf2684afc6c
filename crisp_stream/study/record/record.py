"""The record of a study: what every table and figure of it is made of, without a model.

`study.json` says what was run, what it cost and what was chosen; `results.parquet` holds the figure of every example of
every set for the chosen models. The two are small, so that records can be kept beside the tables that they give. What
must hold for the tables to be fair is checked here, for records just made and for records read: equal tokens, equal
examples.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.storage.store import open_store
from crisp_stream.study.record.files import judgements_of_parquet, judgements_parquet, made
from crisp_stream.study.record_checks import check_judgements, check_models, check_names

STUDY_VERSION = 1
STUDY, RESULTS = "study.json", "results.parquet"
"""The two files of a record."""
MAX_ROWS = 1_000_000

SetKind = Literal["text", "questions"]


@dataclass(frozen=True, kw_only=True)
class StudyDataset:
    """A generalist dataset that methods chose from."""

    windows: int
    encoder: str
    nodes_per_level: tuple[int, ...]
    """[depth], nodes that hold windows, by level from 1 on."""
    cpu_seconds: float
    """Of writing it; 0 where it existed."""
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class StudySpecialist:
    """A task."""

    documents: int
    """Examples that methods learnt from."""
    windows: int
    kind: SetKind
    own_set: str
    """Its test set: texts, or questions whose accuracy counts."""
    text_set: str | None = None
    """Of questions: the set of the same questions with their right answers as texts, if judged."""

    @property
    def perplexity_set(self) -> str | None:
        """The set that its perplexity is of."""
        return self.own_set if self.kind == "text" else self.text_set


@dataclass(frozen=True, kw_only=True)
class StudyMethod:
    """A row of the tables."""

    name: str
    kind: str
    dataset: str
    clusters: int | None = None
    """Nodes of its level that hold windows; None where it has no clusters."""
    examples: int | None = None
    """Of D^s that it might see; None: all."""
    corpus_windows: int
    """Windows of its dataset."""
    generic_share: float = 0.0
    """Share of the run on the base mixture before the switch."""
    finetuned: bool = False
    """Whether fine-tuning was tried."""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyModel:
    """A trained model, chosen or not."""

    method: str
    specialist: str
    """Empty: for none, or for all."""
    seed: int
    fraction: float = 0.0
    """Share of the steps of fine-tuning; 0: pretraining alone."""
    candidate: dict[str, float] = field(default_factory=dict)
    chosen: bool
    """Whether tables hold it; others lost by validation."""
    tokens: int
    """All that it was trained on, those of the model it began from included."""
    repeated_share: float | None = None
    """Of its samples, those whose window had been served before in its own run."""
    validation_of: dict[str, float] = field(default_factory=dict)
    """Perplexity by specialist on its validation set; empty where the model was not validated."""
    wall_seconds: float
    """Of its own training."""
    cpu_seconds: float

    @property
    def name(self) -> str:
        """As errors and notes call it."""
        parts = [self.method, self.specialist, *(f"{key}-{value:g}" for key, value in self.candidate.items())]
        parts += [f"seed-{self.seed}", f"finetuned-{self.fraction:g}" if self.fraction else ""]
        return ".".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class StudySelection:
    """What a method did before training, for one specialist."""

    method: str
    specialist: str
    candidate: dict[str, float] = field(default_factory=dict)
    wall_seconds: float
    cpu_seconds: float
    """Its own alone."""
    tokens: int = 0
    """That a proxy model was trained on."""
    shared: dict[str, float] = field(default_factory=dict)
    """CPU seconds of what was done once and serves other selections, too, such as embedding the corpus."""


@dataclass(frozen=True, kw_only=True)
class StudyWeights:
    """Proportions of clusters by one method, for the comparison of methods."""

    method: str
    specialist: str
    level: int
    nodes: tuple[int, ...]
    proportions: tuple[float, ...]
    """[num_nodes], shares of the mixture."""
    corpus: tuple[float, ...]
    """[num_nodes], shares of the corpus's windows."""
    terms: tuple[str, ...] = ()
    """[num_nodes], what each is about; empty where it is not known."""


@dataclass(frozen=True, kw_only=True)
class StudyCurve:
    """Methods that differ in one thing, for a figure along it."""

    name: str
    along: Literal["clusters", "examples", "corpus_windows", "generic_share"]
    methods: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One chosen model on one set, example by example."""

    method: str
    specialist: str
    seed: int
    fraction: float = 0.0
    set_name: str
    kind: SetKind
    values: NDArray[np.float32]
    """[num_examples]: of texts the mean loss per token in nats; of questions 1 where the answer was right, else 0."""
    fingerprint: str
    """Of the set: equal where the examples are the same in the same order."""


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """The record of a study."""

    name: str
    tokens: int
    """That every model was trained on."""
    num_parameters: int
    batches: int
    window_tokens: int
    seeds: tuple[int, ...]
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    generalist_set: str | None = None
    """The set of held-out texts of the corpus; None where models were not judged on one."""
    reference: str | None = None
    """The method that the paper's claims are checked of; None: the first of kind crisp."""
    tags: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, StudyDataset]
    specialists: dict[str, StudySpecialist]
    methods: tuple[StudyMethod, ...]
    """In the order of the tables."""
    models: tuple[StudyModel, ...]
    selections: tuple[StudySelection, ...] = ()
    weights: tuple[StudyWeights, ...] = ()
    curves: tuple[StudyCurve, ...] = ()
    judgements: tuple[Judgement, ...]
    """Of chosen models alone."""

    def __post_init__(self) -> None:
        check_names(self)
        check_models(self)
        check_judgements(self)

    @property
    def base(self) -> str:
        """The method that ratios are to."""
        return next(method.name for method in self.methods if method.kind == "base")

    @property
    def crisp(self) -> str | None:
        """The method that the paper's claims are checked of; None where the study has none."""
        return self.reference or next((method.name for method in self.methods if method.kind == "crisp"), None)

    def method(self, name: str) -> StudyMethod:
        """A method by its name."""
        return next(method for method in self.methods if method.name == name)

    def judged(self, method: str, specialist: str, set_name: str, *, finetuned: bool = False) -> Sequence[Judgement]:
        """What the models of a method for a specialist made of a set, one per seed, in the order of seeds.

        Args:
            method: its name.
            specialist: for which the models are; models for all count where there are none of its own.
            set_name: the set.
            finetuned: those fine-tuned for the specialist, instead of those that were only pretrained.
        """
        found = self._by_place.get((method, specialist, set_name, finetuned))
        return found or self._by_place.get((method, "", set_name, finetuned), [])

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, str, bool], list[Judgement]]:
        found: dict[tuple[str, str, str, bool], list[Judgement]] = {}
        for own in sorted(self.judgements, key=lambda own: own.seed):
            found.setdefault((own.method, own.specialist, own.set_name, own.fraction > 0), []).append(own)
        return found

    def save(self, folder: str | Path) -> list[str]:
        """Write both files, study.json last, replacing older ones. Equal records give equal bytes.

        Returns:
            Their paths.

        Raises:
            StorageError: the storage refused or failed.
        """
        facts = {own.name: _plain(getattr(self, own.name)) for own in dataclasses.fields(self)}
        del facts["judgements"]
        store = open_store(str(folder))
        store.put(RESULTS, judgements_parquet(self.judgements))
        store.put(STUDY, (json.dumps({"study_version": STUDY_VERSION, **facts}, indent=1) + "\n").encode())
        return [f"{str(folder).rstrip('/')}/{name}" for name in (STUDY, RESULTS)]

    @classmethod
    def load(cls, folder: str | Path) -> StudyResults:
        """Read a record.

        Raises:
            FormatError: not a record, of another version, or damaged. StorageError: the storage failed.
        """
        place, store = f"{str(folder).rstrip('/')}/{STUDY}", open_store(str(folder))
        try:
            facts = json.loads(store.get(STUDY))
            version = facts.pop("study_version")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{place}: is not the record of a study ({error!r}). Run the study again.") from error
        if version != STUDY_VERSION:
            raise FormatError(
                f"{place}: study_version {version} is not that of this reader ({STUDY_VERSION}). Upgrade crisp-stream."
            )
        rows = judgements_of_parquet(store.get(RESULTS), place=f"{str(folder).rstrip('/')}/{RESULTS}", most=MAX_ROWS)
        try:
            return made(cls, facts, place=place, given={"judgements": tuple(Judgement(**row) for row in rows)})
        except InputError as error:
            raise FormatError(f"{place}: {error}") from error


def _plain(value: Any) -> Any:
    """Dataclasses within as dictionaries."""
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(own) for own in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
