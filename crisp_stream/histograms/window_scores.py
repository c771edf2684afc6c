"""Score files: one number for every window of a dataset, such as its length or its quality.

Whatever scores windows writes this one kind of file: `crisp-stream score`, and `select` for the scores that it selected
by. Conditions, tiers, the report page and `inspect` read it. Scores are float32: 4 bytes per window before compression,
seven digits. A file is Parquet and no plain array, because an array cannot say which windows its numbers belong to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.parquet import RecordKind, load_record, numbers, save_record
from crisp_stream.storage.store import file_name

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

SCORES_SUFFIX = ".scores.parquet"
RESERVED_NAMES = ("and", "or", "not")
"""Words of conditions, which no score can be called."""

_RECORD = RecordKind(
    name="scores of windows",
    key=b"crisp_stream.window_scores",
    version_key="scores_version",
    version=2,
    remedy="Write them again.",
    max_rows=1 << 36,
    options={"use_dictionary": False, "use_byte_stream_split": True, "write_page_checksum": True},
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUANTILE = re.compile(r"q[0-9]+")


@dataclass(frozen=True, kw_only=True)
class WindowScores:
    """Scores of all windows of one generation of one dataset.

    Raises:
        InputError: no scores, or some that are not finite; a name that conditions could not use.
    """

    name: str
    """Name by which conditions and tables know the score: letters, digits and `_`."""
    dataset_fingerprint: str
    """Fingerprint of the dataset's manifest."""
    scores: NDArray[np.float32]
    """[num_windows], in the dataset's numbering."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the scores: `method`, and its inputs and settings."""

    def __post_init__(self) -> None:
        check_score_name(self.name)
        scores = np.array(self.scores, np.float32)
        if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
            raise InputError(
                f"scores must be finite numbers, one per window, got shape {scores.shape} with "
                f"{int((~np.isfinite(scores)).sum())} that are not. Make them again."
            )
        scores.flags.writeable = False
        object.__setattr__(self, "scores", scores)

    def check_dataset(self, dataset: Dataset, *, what: str | None = None) -> None:
        """Raise InputError if these are scores of another dataset or generation; `what` names them in the message."""
        manifest, what = dataset.manifest, what or f"the score {self.name}"
        if (self.dataset_fingerprint, len(self.scores)) == (manifest.fingerprint, manifest.num_windows):
            return
        generation = dataset.generation_with(self.dataset_fingerprint)
        if generation is not None:
            raise InputError(
                f"{what} is one of generation {generation} of {dataset.root}, which is opened in generation "
                f"{manifest.generation}: windows are numbered anew. Score it again, or give --generation {generation}."
            )
        raise InputError(
            f"{what} was made for dataset {self.dataset_fingerprint[:12]} of {len(self.scores):,} windows, "
            f"{dataset.root} is {manifest.fingerprint[:12]} of {manifest.num_windows:,}. "
            f"Make it with: crisp-stream score {dataset.root} …"
        )

    def save(self, path: str | Path) -> None:
        """Write one Parquet file, by convention *.scores.parquet, whole or not at all. Raises StorageError."""
        facts = {
            "name": self.name,
            "dataset_fingerprint": self.dataset_fingerprint,
            "num_windows": len(self.scores),
            "provenance": self.provenance,
        }
        save_record(path, _RECORD, {"score": pa.array(self.scores, pa.float32())}, facts)

    @classmethod
    def load(cls, path: str | Path) -> WindowScores:
        """Read what `save` wrote. Raises FormatError: something else, or damaged. StorageError: the storage failed."""
        with load_record(path, _RECORD) as record:
            facts, scores = record.facts, numbers(record.table()["score"], pa.float32())
            if len(scores) != facts["num_windows"]:
                raise FormatError(f"{facts['num_windows']:,} windows must have a score, got {len(scores):,}.")
            return cls(
                name=str(facts["name"]),
                dataset_fingerprint=str(facts["dataset_fingerprint"]),
                scores=scores,
                provenance=dict(facts["provenance"]),
            )


def check_score_name(name: str) -> None:
    """Raise InputError unless conditions can use the name."""
    if not _NAME.fullmatch(name) or name in RESERVED_NAMES or _QUANTILE.fullmatch(name):
        raise InputError(
            f"the name of a score must be letters, digits and _, and none of {', '.join(RESERVED_NAMES)} or q and a "
            f"number, which conditions read otherwise; got {name!r}. Give --name NAME."
        )


def score_name_of(path: str) -> str:
    """The name that a score gets from the name of its file: what stands before the first dot, hyphens as `_`."""
    return file_name(path).partition(".")[0].replace("-", "_")


def load_scores(files: list[str], dataset: Dataset) -> dict[str, WindowScores]:
    """Load score files of a dataset, by name. A file may be given as NAME=FILE, to call its score otherwise.

    Raises:
        InputError: scores of another dataset or generation, or two of one name. FormatError, StorageError.
    """
    found: dict[str, WindowScores] = {}
    for given in files:
        name, equals, path = given.partition("=")
        if not equals or not _NAME.fullmatch(name):
            name, path = "", given
        scores = WindowScores.load(path)
        scores.check_dataset(dataset, what=path)
        if name:
            check_score_name(name)
        name = name or scores.name
        if name in found:
            raise InputError(f"{path}: scores must have different names, got {name} twice. Give one as NAME={path}")
        found[name] = scores
    return found


def quantile_of(values: NDArray[np.floating[Any]], quantile: float) -> float:
    """Find the smallest value that at least this share of the values does not exceed; 0 is the smallest one.

    Raises:
        InputError: not 0 to 1.
    """
    if not 0 <= quantile <= 1:
        raise InputError(f"a quantile must be 0 to 1, got {quantile}. 0.8 is above four of five windows.")
    place = max(0, int(np.ceil(quantile * len(values) - 1e-9)) - 1)
    return float(np.partition(values, place)[place])
