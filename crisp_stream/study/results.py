"""The record of a study: a small folder from which all tables and figures are made, without any model.

    study.json        what was compared: methods, specialists, datasets, models, selections, weights
    results.parquet   one row per chosen model and test set, with the value of every example

Values of examples are kept, and not means, because methods are compared example by example. Losses are rounded to 2^-13
nats, which moves a mean by less than the last digit of any table and halves the file: it is meant to be committed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.study.results_checks import check_study

STUDY_VERSION = 1
STUDY_FILE, ROWS_FILE = "study.json", "results.parquet"
ALL = ""
"""In place of a specialist: the model is for none of them (base), or for all (multitask)."""

SetKind = Literal["text", "questions"]
Along = Literal["clusters", "examples", "corpus_windows", "generic_share"]

_STEPS_PER_NAT = 2.0**13
_COLUMNS = {
    "method": pa.string(),
    "specialist": pa.string(),
    "seed": pa.int64(),
    "fraction": pa.float64(),
    "set": pa.string(),
    "kind": pa.string(),
    "fingerprint": pa.string(),
    "values": pa.list_(pa.float32()),
}


@dataclass(frozen=True, kw_only=True)
class JudgedModel:
    """A model on a test set. A question set that is judged both ways has two: of kind text and of kind questions."""

    method: str
    specialist: str = ALL
    """For which it was trained or fine-tuned; `ALL` of a pretrained base or multitask model."""
    seed: int
    fraction: float = 0.0
    """Share of the steps of fine-tuning; 0: pretraining alone."""
    set_name: str
    kind: SetKind
    fingerprint: str
    """Of the examples of the set, in their order: only equal ones are paired."""
    values: NDArray[np.float32]
    """[num_examples]. Of texts the mean loss per token in nats; of questions 1 where right by its metric, or 0."""

    @property
    def model_name(self) -> str:
        """As messages call the model."""
        return _model_name(self.method, self.specialist, self.seed, self.fraction, {})


@dataclass(frozen=True, kw_only=True)
class StudyDataset:
    """A generalist dataset."""

    windows: int
    encoder: str
    nodes_per_level: tuple[int, ...]
    """Nodes that hold windows, from level 1 on."""
    cpu_seconds: float
    """Of writing it; 0 where it existed."""
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class StudySpecialist:
    """A task."""

    documents: int
    """That methods learn from."""
    windows: int
    kind: SetKind
    """How the task is judged."""
    own_set: str
    """Name of its test set."""


@dataclass(frozen=True, kw_only=True)
class StudyMethod:
    """A row of the tables."""

    name: str
    kind: str
    dataset: str
    clusters: int | None = None
    """Nodes of its level that hold windows; None: the method has no clusters."""
    examples: int | None = None
    """Of the specialist, that it may see; None: all."""
    corpus_windows: int
    """It draws from."""
    generic_share: float = 0.0
    """Share of the run on the base mixture, before the switch to its own."""
    finetuned: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    """Anything else, as plain data."""


@dataclass(frozen=True, kw_only=True)
class StudyModel:
    """A trained model, chosen or not."""

    method: str
    specialist: str = ALL
    seed: int
    fraction: float = 0.0
    candidate: dict[str, float] = field(default_factory=dict)
    """What was tried; empty where the method has one candidate."""
    chosen: bool
    tokens: int
    """Trained on, those of what it began from included."""
    repeated_share: float
    """Of the windows served, those that had been served before."""
    validation_perplexities: dict[str, float] = field(default_factory=dict)
    """By specialist; empty where the model was not validated."""
    wall_seconds: float
    cpu_seconds: float

    @property
    def name(self) -> str:
        """As messages call it."""
        return _model_name(self.method, self.specialist, self.seed, self.fraction, self.candidate)


@dataclass(frozen=True, kw_only=True)
class StudySelection:
    """What finding the training data of a method cost."""

    method: str
    specialist: str = ALL
    candidate: dict[str, float] = field(default_factory=dict)
    wall_seconds: float
    cpu_seconds: float
    tokens: int = 0
    """That a proxy model was trained or scored on."""
    shared: dict[str, float] = field(default_factory=dict)
    """CPU seconds of what is done once for all specialists, by what it is."""


@dataclass(frozen=True, kw_only=True)
class StudyWeights:
    """A method's histogram, cut to a level."""

    method: str
    specialist: str = ALL
    level: int
    nodes: tuple[int, ...]
    proportions: tuple[float, ...]
    """[num_nodes], of the training mixture."""
    corpus: tuple[float, ...]
    """[num_nodes], share of the corpus's windows."""
    terms: tuple[str, ...] = ()
    """[num_nodes], words that tell a cluster from the others; empty: none are known."""


@dataclass(frozen=True, kw_only=True)
class StudyCurve:
    """A figure of methods along what they differ in."""

    name: str
    along: Along
    methods: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """A whole study."""

    name: str
    tokens: int
    """Of every model."""
    num_parameters: int
    batches: int
    window_tokens: int
    seeds: tuple[int, ...]
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, StudyDataset]
    specialists: dict[str, StudySpecialist]
    generalist_set: str | None = None
    """Name of the held-out documents of the corpus; None: models were not judged on it."""
    methods: tuple[StudyMethod, ...]
    """In the order of the tables; one is of kind base."""
    reference: str | None = None
    """The method that the paper's claims are checked of; None: the first of kind crisp."""
    models: tuple[StudyModel, ...]
    selections: tuple[StudySelection, ...] = ()
    weights: tuple[StudyWeights, ...] = ()
    curves: tuple[StudyCurve, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    """Anything to be said of the study."""
    judged: tuple[JudgedModel, ...]
    """Of chosen models alone."""

    def __post_init__(self) -> None:
        check_study(self)

    @property
    def base(self) -> str:
        """The method that the others are compared with."""
        return next(method.name for method in self.methods if method.kind == "base")

    @property
    def crisp(self) -> str | None:
        """The method that the paper's claims are checked of; None where there is none."""
        if self.reference is not None:
            return self.reference
        return next((method.name for method in self.methods if method.kind == "crisp"), None)

    def method(self, name: str) -> StudyMethod:
        """A method by its name."""
        return next(method for method in self.methods if method.name == name)

    def save(self, folder: str | Path) -> Path:
        """Write the record, replacing an older one. Equal records give equal bytes, with equal versions of pyarrow."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "judged"}
        tree = {"study_version": STUDY_VERSION, **{name: _plain(value) for name, value in fields.items()}}
        _write_rows(target / ROWS_FILE, self.judged)
        _replace(target / STUDY_FILE, (json.dumps(tree, indent=1) + "\n").encode())
        return target

    @classmethod
    def load(cls, folder: str | Path) -> StudyResults:
        """Read a record.

        Raises:
            InputError: not the folder of a study's record, or it contradicts itself.
            FormatError: of a newer version, or damaged.
        """
        path = Path(folder) / STUDY_FILE
        try:
            tree = json.loads(path.read_bytes())
            version = tree.pop("study_version")
        except OSError as error:
            raise InputError(
                f"{folder}: must hold the record of a study ({STUDY_FILE}), got none ({error.strerror}). "
                "`crisp-stream study run` writes it."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} is not the record of a study ({error!r}). Run the study again.") from error
        if version != STUDY_VERSION:
            raise FormatError(
                f"{path}: study_version {version} is not that of this reader ({STUDY_VERSION}). Upgrade crisp-stream."
            )
        rows = _read_rows(Path(folder) / ROWS_FILE)
        try:
            return cls(**_typed(tree), judged=rows)
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}: a key is missing or unknown ({error}). Run the study again.") from error


def _model_name(method: str, specialist: str, seed: int, fraction: float, candidate: dict[str, float]) -> str:
    tried = ",".join(f"{key}-{value:g}" for key, value in candidate.items())
    tuned = f"finetuned-{fraction:g}" if fraction else ""
    return ".".join(part for part in (method, specialist, tried, f"seed-{seed}", tuned) if part)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(tree: dict[str, Any]) -> dict[str, Any]:
    """The fields of `StudyResults` from what `save` wrote."""
    by_name: dict[str, Any] = {"datasets": StudyDataset, "specialists": StudySpecialist}
    listed: dict[str, Any] = {
        "methods": StudyMethod,
        "models": StudyModel,
        "selections": StudySelection,
        "weights": StudyWeights,
        "curves": StudyCurve,
    }
    named = {key: {name: _of(kind, own) for name, own in tree[key].items()} for key, kind in by_name.items()}
    lists = {key: tuple(_of(kind, own) for own in tree[key]) for key, kind in listed.items()}
    return {**tree, **named, **lists, "seeds": tuple(tree["seeds"])}


def _of(kind: Any, tree: dict[str, Any]) -> Any:
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()})


def _write_rows(path: Path, judged: tuple[JudgedModel, ...]) -> None:
    columns: dict[str, list[Any]] = {
        "method": [row.method for row in judged],
        "specialist": [row.specialist for row in judged],
        "seed": [row.seed for row in judged],
        "fraction": [row.fraction for row in judged],
        "set": [row.set_name for row in judged],
        "kind": [row.kind for row in judged],
        "fingerprint": [row.fingerprint for row in judged],
        "values": [np.round(row.values.astype(np.float64) * _STEPS_PER_NAT) / _STEPS_PER_NAT for row in judged],
    }
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in _COLUMNS.items()})
    sink = pa.BufferOutputStream()
    encoding = {"values.list.element": "BYTE_STREAM_SPLIT"}
    pq.write_table(
        table, sink, compression="zstd", compression_level=19, use_dictionary=False, column_encoding=encoding
    )
    _replace(path, sink.getvalue().to_pybytes())


def _read_rows(path: Path) -> tuple[JudgedModel, ...]:
    try:
        table = pq.read_table(path, columns=list(_COLUMNS), use_threads=False)
        values = [np.asarray(own.values, np.float32) for own in table["values"]]
        told = table.drop_columns(["values"]).to_pylist()
        rows = ((own.pop("set"), own, value) for own, value in zip(told, values, strict=True))
        return tuple(JudgedModel(**own, set_name=set_name, values=value) for set_name, own, value in rows)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: holds no results of a study ({error}). Run the study again.") from error


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
