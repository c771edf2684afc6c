"""The rows of a study's record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

STUDY_VERSION = 1
SetKind = Literal["text", "questions"]
Along = Literal["clusters", "examples", "corpus_windows", "generic_share"]
"""Quantity that a curve is drawn along."""


@dataclass(frozen=True, kw_only=True)
class StudyDataset:
    """A generalist dataset that methods chose from."""

    windows: int
    encoder: str
    nodes_per_level: tuple[int, ...]
    """[depth], nodes that hold windows, by level from 1 on."""
    cpu_seconds: float
    """CPU time of writing it; 0 where it existed."""
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class StudySpecialist:
    """A task."""

    documents: int
    """Examples that methods learnt from."""
    windows: int
    kind: SetKind
    own_set: str
    """Name of its test set: texts, or questions whose accuracy counts."""
    text_set: str | None = None
    """Set of the same questions with their right answers as texts, if judged. Only for questions."""

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
    """Examples of D^s that it may see; None: all."""
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
    """Task that it is for; empty: for none, or for all."""
    seed: int
    fraction: float = 0.0
    """Share of the steps of fine-tuning; 0: pretraining alone."""
    candidate: dict[str, float] = field(default_factory=dict)
    chosen: bool
    """Whether tables hold it; others lost by validation."""
    tokens: int
    """All that it was trained on, those of the model it began from included."""
    repeated_share: float | None = None
    """Share of its samples whose window had been served before in the same run."""
    validation_of: dict[str, float] = field(default_factory=dict)
    """Perplexity by specialist on its validation set; empty where the model was not validated."""
    wall_seconds: float
    """Time of its training, without that of the model it began from."""
    cpu_seconds: float

    @property
    def name(self) -> str:
        """Name in errors and notes."""
        parts = [self.method, self.specialist, *(f"{key}-{value:g}" for key, value in self.candidate.items())]
        parts += [f"seed-{self.seed}", f"finetuned-{self.fraction:g}" if self.fraction else ""]
        return ".".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class StudySelection:
    """The cost of a method before training, for one specialist."""

    method: str
    specialist: str
    candidate: dict[str, float] = field(default_factory=dict)
    wall_seconds: float
    cpu_seconds: float
    """CPU time without `shared`."""
    tokens: int = 0
    """Tokens that a proxy model was trained on."""
    shared: dict[str, float] = field(default_factory=dict)
    """CPU seconds of work that was done once and serves other selections, too, such as embedding the corpus."""


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
    """[num_nodes], typical words of each; empty where they are not known."""


@dataclass(frozen=True, kw_only=True)
class StudyCurve:
    """Methods that differ in one thing, for a figure along it."""

    name: str
    along: Along
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
    """Fingerprint of the set: equal where the examples are the same in the same order."""
