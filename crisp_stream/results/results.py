"""Results of one model on one set, example by example, as a small Parquet file: what every table and plot is made of.

A file is written once, by whoever ran the model, and then read by all comparisons: none of them needs a model. Examples
are named by hashes of their content, so that two files can be compared example by example without the texts. The model
and the set are described in the file's metadata, as JSON under one key.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.parquet import RecordKind, load_record, save_record
from crisp_stream.storage.store import is_remote, local_path, open_store

SUFFIX = ".results.parquet"
_RECORD = RecordKind(
    name="a file of results",
    key=b"crisp_stream.results",
    version_key="results_version",
    version=1,
    remedy="`crisp-stream eval --out` writes them.",
)


def set_fingerprint(example_ids: NDArray[np.uint64]) -> str:
    """Hash the examples of a set, in their order: sha256."""
    return hashlib.sha256(np.ascontiguousarray(example_ids, "<u8").tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results of one model on one set, of any kind."""

    kind: ClassVar[str] = ""
    columns: ClassVar[dict[str, tuple[str, pa.DataType]]] = {}
    """Fields with a value per example, besides those that all kinds have, to their columns of the file and types."""
    facts: ClassVar[tuple[str, ...]] = ()
    """Fields of a kind that are no columns."""
    model: dict[str, Any]
    """`ModelRecord` as plain data."""
    set_name: str
    """Name of the set in tables: `medicine.test`, `arc_easy`."""
    example_ids: NDArray[np.uint64]
    """[num_examples], `example_hash` of each; in the order of the set."""
    contaminated: NDArray[np.bool_] | None = None
    """[num_examples], whether a part of the example stands in the training data; None: not checked."""
    long: NDArray[np.bool_] | None = None
    """[num_examples], whether the example is longer than the model's context, so that of a question the beginning of
    the prompt was cut off, and a text was read in several windows; None: not recorded."""
    seen: NDArray[np.bool_] | None = None
    """[num_examples], whether the example was found among those that the model was trained on, or that a histogram of
    its mixture was counted from; None: not recorded."""
    notes: dict[str, Any] = field(default_factory=dict)
    """More about the set or how it was judged, as plain data."""

    @property
    def model_name(self) -> str:
        """Name of the model in tables."""
        return self.model["name"]

    @property
    def num_examples(self) -> int:
        """Examples judged."""
        return len(self.example_ids)

    @property
    def num_long(self) -> int | None:
        """Examples that are longer than the model's context; None: not recorded."""
        return None if self.long is None else int(self.long.sum())

    @property
    def num_long_dropped(self) -> int:
        """Further examples, left out because they are longer than the model's context."""
        return int(self.notes.get("long_dropped", 0))

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the set: equal where the same examples were judged in the same order."""
        return set_fingerprint(self.example_ids)

    def only(self, kept: NDArray[np.bool_]) -> Self:
        """The results of some examples. `kept`: [num_examples]."""
        optional = [name for name in ("contaminated", "long") if getattr(self, name) is not None]
        columns: dict[str, Any] = {}
        for name in ("example_ids", *optional, *self.columns):
            values = getattr(self, name)
            columns[name] = values[kept] if isinstance(values, np.ndarray) else list(compress(values, kept))
        return replace(self, **columns)

    def save(self, folder: str | Path) -> str:
        """Write `MODEL.SET.results.parquet`, whole or not at all, replacing an older one.

        Returns:
            Where it is.

        Raises:
            StorageError: the storage refused or failed.
        """
        facts = {
            "kind": self.kind,
            "model": self.model,
            "set": {"name": self.set_name, "fingerprint": self.fingerprint},
            "facts": {name: getattr(self, name) for name in self.facts},
            "notes": self.notes,
        }
        columns = {"example": pa.array(self.example_ids, pa.uint64())}
        columns |= {column: pa.array(getattr(self, name), kind) for name, (column, kind) in self.columns.items()}
        if self.contaminated is not None:
            columns["contaminated"] = pa.array(self.contaminated, pa.bool_())
        for name in ("long", "seen"):
            if getattr(self, name) is not None:
                columns[name] = pa.array(getattr(self, name), pa.bool_())
        path = results_path(folder, self.model_name, self.set_name)
        save_record(path, _RECORD, columns, facts)
        return path


@dataclass(frozen=True, kw_only=True)
class TextResults(Results):
    """Losses of texts. Texts without a token to predict are not among them."""

    kind: ClassVar[str] = "text"
    columns: ClassVar[dict[str, tuple[str, pa.DataType]]] = {
        "loss_sums": ("loss_sum", pa.float64()),
        "num_tokens": ("tokens", pa.int64()),
        "num_bytes": ("bytes", pa.int64()),
    }
    facts: ClassVar[tuple[str, ...]] = ("num_empty",)
    loss_sums: NDArray[np.float64]
    """[num_examples], nats, summed over the predicted tokens of each text."""
    num_tokens: NDArray[np.int64]
    """[num_examples], predicted tokens, >= 1."""
    num_bytes: NDArray[np.int64]
    """[num_examples], UTF-8 bytes of the predicted text."""
    num_empty: int = 0
    """Texts without a token to predict, left out."""

    @property
    def losses(self) -> NDArray[np.float64]:
        """[num_examples], nats per token: the mean of each text."""
        return self.loss_sums / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean over examples of their mean token loss (CRISP, Sec. 3.1)."""
        return math.exp(self.losses.mean())

    @property
    def bits_per_byte(self) -> NDArray[np.float64]:
        """[num_examples], comparable between tokenizers."""
        return self.loss_sums / self.num_bytes / np.log(2)


@dataclass(frozen=True, kw_only=True)
class QuestionResults(Results):
    """Log probabilities of the choices of multiple-choice questions."""

    kind: ClassVar[str] = "questions"
    columns: ClassVar[dict[str, tuple[str, pa.DataType]]] = {
        "answers": ("answer", pa.int64()),
        "log_probs": ("log_probs", pa.list_(pa.float64())),
        "num_characters": ("characters", pa.list_(pa.int64())),
        "topics": ("topic", pa.string()),
    }
    facts: ClassVar[tuple[str, ...]] = ("metric",)
    metric: str
    """Metric that the paper reports for this set (Appendix D): `acc` or `acc_norm`."""
    answers: NDArray[np.int64]
    """[num_examples], index of the right choice."""
    log_probs: list[list[float]]
    """[num_examples][num_choices], nats."""
    num_characters: list[list[int]]
    """[num_examples][num_choices], length of each choice in characters."""
    topics: list[str | None]
    """[num_examples], as MMLU has them."""

    @property
    def answer_log_probs(self) -> NDArray[np.float64]:
        """[num_examples], log probability of the right choice, nats."""
        return np.array([row[answer] for row, answer in zip(self.log_probs, self.answers, strict=True)], np.float64)

    @property
    def right(self) -> NDArray[np.bool_]:
        """[num_examples], whether the right choice has the highest log probability (`acc`)."""
        return np.array([int(np.argmax(row)) for row in self.log_probs]) == self.answers

    @property
    def right_normalised(self) -> NDArray[np.bool_]:
        """[num_examples], the same with log probabilities divided by characters (`acc_norm`)."""
        scored = zip(self.log_probs, self.num_characters, strict=True)
        return np.array([int(np.argmax(np.array(row) / lengths)) for row, lengths in scored]) == self.answers

    @property
    def reported(self) -> NDArray[np.bool_]:
        """[num_examples], whether the right choice wins by `metric`."""
        return self.right_normalised if self.metric == "acc_norm" else self.right


def results_path(folder: str | Path, model_name: str, set_name: str) -> str:
    """Name the file that `save` writes."""
    return f"{str(folder).rstrip('/')}/{_file_part(model_name)}.{_file_part(set_name)}{SUFFIX}"


def load_results(path: str | Path) -> TextResults | QuestionResults:
    """Read one file.

    Raises:
        FormatError: not a file of results, of a newer version, or damaged. StorageError: the storage failed.
    """
    with load_record(path, _RECORD) as record:
        table, facts = record.table(), record.facts
        shared = {
            "model": facts["model"],
            "set_name": facts["set"]["name"],
            "example_ids": table["example"].to_numpy().astype(np.uint64),
            "contaminated": table["contaminated"].to_numpy() if "contaminated" in table.column_names else None,
            "long": table["long"].to_numpy() if "long" in table.column_names else None,
            "seen": table["seen"].to_numpy() if "seen" in table.column_names else None,
            "notes": facts["notes"],
        }
        kind = {kind.kind: kind for kind in (TextResults, QuestionResults)}[facts["kind"]]
        columns = {
            name: table[column].to_numpy() if pa.types.is_primitive(of) else table[column].to_pylist()
            for name, (column, of) in kind.columns.items()
        }
        results = kind(**shared, **columns, **facts["facts"])
        if results.fingerprint != facts["set"]["fingerprint"]:
            raise FormatError("its examples are not those it says. Judge the model again.")
        return results


def load_all(paths: Sequence[str | Path]) -> list[TextResults | QuestionResults]:
    """Read files, and all results of folders, in the order of `paths` and by name. Of a model judged twice on a set
    the first results are kept.

    Raises:
        InputError: a folder without results, or two models of one name. FormatError, StorageError: as `load_results`.
    """
    loaded: list[TextResults | QuestionResults] = []
    for path in map(str, paths):
        if path.endswith(SUFFIX):
            loaded.append(load_results(path))
            continue
        if not is_remote(path) and not local_path(path).is_dir():
            raise InputError(f"{path}: must be a folder of results or a file ending in {SUFFIX}, got neither.")
        names = sorted(name for name, _ in open_store(path).list() if name.endswith(SUFFIX))
        if not names:
            raise InputError(f"{path}: holds no results (*{SUFFIX}). `crisp-stream eval --out` writes them.")
        loaded += [load_results(f"{path.rstrip('/')}/{name}") for name in names]
    once: dict[tuple[str, str], TextResults | QuestionResults] = {}
    for results in loaded:
        first = once.setdefault((results.model_name, results.fingerprint), results)
        if first.model != results.model:
            raise InputError(
                f"two models are called {results.model_name} on {results.set_name}. Give each another --name, or leave "
                "one of the files out."
            )
    return list(once.values())


def _file_part(name: str) -> str:
    """Make a name fit for a part of a file name."""
    return re.sub(r"[^\w.+,-]", "-", name)
