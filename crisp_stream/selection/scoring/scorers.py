"""The kinds of scores. A scorer is plain values, so that any process can score any windows with it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.embeddings import WindowEmbeddings
from crisp_stream.inspection.window_reading import decoded
from crisp_stream.inspection.window_texts import WindowDecoder
from crisp_stream.selection.lengths import text_tokens
from crisp_stream.selection.scoring.text_measures import Measure, repeat_shares, symbol_shares, type_shares
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.engine.tasks import Kind
from crisp_stream.writers.stages import windows as parts
from crisp_stream.writers.windows import window_texts

TextMeasure = Literal["symbols", "repeats", "types"]
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Scorer(ABC):
    """What windows are scored by."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """How the score is made: `method`, its version and settings. Fit for JSON; becomes the file's provenance."""

    @property
    def kind(self) -> Kind:
        """Workers that score: light ones, or those that hold an encoder."""
        return "light"

    @property
    def reads_text(self) -> bool:
        """Whether the tokens of the windows are read."""
        return True

    @abstractmethod
    def score(self, dataset: Dataset, decoder: WindowDecoder, first: int, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """Score consecutive windows.

        Args:
            dataset: as this process opened it.
            decoder: of the dataset.
            first: id of the first of the windows.
            tokens: [num_windows, window_tokens]; without columns where `reads_text` is false.

        Returns:
            [num_windows]
        """


@dataclass(frozen=True, kw_only=True)
class LengthScorer(Scorer):
    """Tokens of text: of all but the padding. In a dataset of packing `joined` every window is full."""

    @property
    def facts(self) -> dict[str, Any]:
        return {"method": "length", "method_version": 1}

    def score(self, dataset: Dataset, decoder: WindowDecoder, first: int, tokens: NDArray[Any]) -> NDArray[np.float64]:
        if dataset.manifest.packing == "joined":
            return np.full(len(tokens), tokens.shape[1], np.float64)
        return text_tokens(tokens, dataset.manifest.tokenizer.eot_id).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class TextScorer(Scorer):
    """A measure of the text (text_measures.py)."""

    measure: TextMeasure
    ngram: int
    """Words of an n-gram, for `repeats`."""

    def __post_init__(self) -> None:
        if not 2 <= self.ngram <= 100:
            raise InputError(f"--ngram: must be 2 to 100 words, got {self.ngram}. Gopher's rules have 5 to 10.")

    @property
    def facts(self) -> dict[str, Any]:
        ngram = {"ngram": self.ngram} if self.measure == "repeats" else {}
        return {"method": self.measure, "method_version": 1, **ngram}

    def score(self, dataset: Dataset, decoder: WindowDecoder, first: int, tokens: NDArray[Any]) -> NDArray[np.float64]:
        measures: dict[TextMeasure, Measure] = {
            "symbols": symbol_shares,
            "repeats": partial(repeat_shares, ngram=self.ngram),
            "types": type_shares,
        }
        measure = measures[self.measure]
        scores: list[NDArray[np.float64]] = []
        for batch in decoded(decoder, tokens):
            some = [at for at, text in enumerate(batch.texts) if text]  # padding is empty texts
            texts = [batch.texts[at].strip("\ufffd") for at in some]
            scores.append(measure(texts, batch.owners[some], batch.num_windows))
        return np.concatenate(scores)


@dataclass(frozen=True, kw_only=True)
class CentroidScorer(Scorer):
    """Cosine of a window's embedding to the centroid of its leaf: how typical it is of its cluster."""

    embeddings: str | None
    """Folder of `crisp-stream embed`; None: windows are embedded again."""
    choice: EncoderChoice | None
    """The dataset's encoder, where they are."""

    @property
    def facts(self) -> dict[str, Any]:
        return {"method": "centroid", "method_version": 1}

    @property
    def kind(self) -> Kind:
        return "light" if self.choice is None or self.choice.is_light else "encoder"

    @property
    def reads_text(self) -> bool:
        return self.choice is not None

    def score(self, dataset: Dataset, decoder: WindowDecoder, first: int, tokens: NDArray[Any]) -> NDArray[np.float64]:
        rows = self._vectors(dataset, first, tokens).astype(np.float64)
        leaves = dataset.leaf_of_windows(np.arange(first, first + len(tokens)))
        those, places = np.unique(leaves, return_inverse=True)
        centroids = _leaf_centroids(dataset.tree, those).astype(np.float64)
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(centroids, axis=1)[places]
        return np.einsum("nd,nd->n", rows, centroids[places]) / np.maximum(norms, 1e-30)

    def _vectors(self, dataset: Dataset, first: int, tokens: NDArray[Any]) -> NDArray[Any]:
        if self.choice is None:
            assert self.embeddings is not None
            return WindowEmbeddings.load(self.embeddings, dataset).rows[first : first + len(tokens)]
        tokenizer = parts.load_tokenizer(dataset.tokenizer_path(), False)
        encoder = parts.load_encoder(self.choice, None if self.choice.is_light else parts.worker_device())
        eot_id = dataset.manifest.tokenizer.eot_id
        return np.concatenate(
            [
                encoder.embed(window_texts(tokens[start : start + _TEXTS_AT_ONCE], tokenizer, eot_id))
                for start in range(0, len(tokens), _TEXTS_AT_ONCE)
            ]
        )


def _leaf_centroids(tree: ClusterTree, leaves: NDArray[np.uint32]) -> NDArray[np.float32]:
    """[num_leaves, dim], the centroid of each leaf: of the deepest node on its path."""
    centroids = np.zeros((len(leaves), tree.dim), np.float32)
    inside = np.ones(len(leaves), np.bool_)
    for level, (nodes, of_level) in enumerate(zip(tree.nodes_per_level, tree.centroids_per_level, strict=True), 1):
        if not len(nodes):
            break
        wanted = tree.node_of(leaves, level)
        at = np.minimum(np.searchsorted(nodes, wanted), len(nodes) - 1)
        inside &= nodes[at] == wanted
        centroids[inside] = of_level[at[inside]]
    return centroids


@dataclass(frozen=True, kw_only=True)
class FunctionScorer(Scorer):
    """A function of the user: from texts of windows to numbers.

    It gets a list of texts, those of documents in a window separated by blank lines; and, where it has a parameter
    `tokens`, their tokens [num_texts, window_tokens], too.
    """

    function: str
    """`module:name` or `file.py:name`."""
    folder: str
    """Working directory of the command, in which modules are looked for first."""
    sha256: str
    """Digest of the file that the function stands in."""

    @classmethod
    def of(cls, function: str) -> FunctionScorer:
        """Find the function. Raises InputError: there is none."""
        folder = str(Path.cwd())
        _function.cache_clear()  # the file may have changed since
        module, _ = _function(function, folder)
        file = getattr(module, "__file__", None)
        content = Path(file).read_bytes() if file else b""
        return cls(function=function, folder=folder, sha256=hashlib.sha256(content).hexdigest())

    @property
    def facts(self) -> dict[str, Any]:
        module, _, name = self.function.rpartition(":")
        shown = Path(module).name if module.endswith(".py") else module
        return {"method": "function", "method_version": 1, "function": f"{shown}:{name}", "sha256": self.sha256}

    def score(self, dataset: Dataset, decoder: WindowDecoder, first: int, tokens: NDArray[Any]) -> NDArray[np.float64]:
        _, function = _function(self.function, self.folder)
        with_tokens = "tokens" in inspect.signature(function).parameters
        scores = np.empty(len(tokens))
        for start in range(0, len(tokens), _TEXTS_AT_ONCE):
            batch = tokens[start : start + _TEXTS_AT_ONCE]
            texts = _joined_texts(decoder, batch)
            place = f"{self.function}: windows {first + start:,} to {first + start + len(batch) - 1:,}"
            try:
                given = function(texts, tokens=batch) if with_tokens else function(texts)
            except Exception as error:
                raise InputError(
                    f"{place}: raised {error!r} ({_last_line(error)}). Mend the function; parts that are finished are "
                    "scored again if its file changes."
                ) from error
            scores[start : start + len(batch)] = _numbers_of(given, len(batch), place)
        return scores


def _joined_texts(decoder: WindowDecoder, tokens: NDArray[Any]) -> list[str]:
    texts, owners = decoder.documents(tokens)
    joined: list[list[str]] = [[] for _ in range(len(tokens))]
    for text, owner in zip(texts, owners.tolist(), strict=True):
        if stripped := text.strip("\ufffd").strip():
            joined[owner].append(stripped)
    return ["\n\n".join(documents) for documents in joined]


def _last_line(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def _numbers_of(given: Any, expected: int, place: str) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: must give a list of numbers, got {type(given).__name__}: {error}.") from error
    if numbers.shape != (expected,):
        raise InputError(
            f"{place}: must give one number per text, {expected} of them, got shape {list(numbers.shape)}."
        )
    return numbers


@lru_cache(maxsize=1)
def _function(spec: str, folder: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The module and the function of a name like `module:function`. Raises InputError."""
    module_name, _, name = spec.rpartition(":")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = _module_of_file(module_name, folder) if module_name.endswith(".py") else None
        module = importlib.import_module(module_name) if module is None else module
    except Exception as error:
        raise InputError(
            f"--by {spec}: must name a module that can be imported, got {error!r}. It may also be a file: "
            "path/to/file.py:function"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--by {spec}: {module_name} must have a function {name}, but has none. Check the spelling.")
    return module, function


def _module_of_file(path: str, folder: str) -> ModuleType:
    file = Path(folder) / path
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    spec = importlib.util.spec_from_file_location(f"_scored_by_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, kw_only=True)
class ArrayScorer:
    """Numbers that were made elsewhere: a .npy file of one per window, in the order of window ids. Nothing is computed,
    so it needs no workers."""

    path: str
    name: str
    """Name of the file or column, for the provenance."""
    method: Literal["array", "column"]
    sha256: str
    settings: tuple[tuple[str, Any], ...] = ()
    """Further facts of the provenance."""

    @property
    def facts(self) -> dict[str, Any]:
        """As of a `Scorer`."""
        return {
            "method": self.method,
            "method_version": 1,
            self.method: self.name,
            "sha256": self.sha256,
            **dict(self.settings),
        }

    def scores(self) -> NDArray[np.float32]:
        """[num_windows]. Raises InputError: one is not finite."""
        rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return require_finite(np.asarray(rows, np.float64), 0, f"{self.method} {self.name}")


def array_of_file(path: str, dataset: Dataset) -> ArrayScorer:
    """Open a .npy file of numbers. Raises InputError: it is none, or not of as many as there are windows."""
    num_windows = dataset.manifest.num_windows
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--by array:{path}: must be a .npy file of numbers, got: {error}.") from error
    if rows.shape != (num_windows,) or rows.dtype.kind not in "fiub":
        raise InputError(
            f"--by array:{path}: must hold one number for each of {num_windows:,} windows of {dataset.root}, got "
            f"{list(rows.shape)} of {rows.dtype}."
        )
    with Path(path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ArrayScorer(path=str(Path(path).resolve()), name=Path(path).name, method="array", sha256=sha256)


def require_finite(scores: NDArray[np.float64], first: int, what: str) -> NDArray[np.float32]:
    """Round scores to float32. Raises InputError where one is none, or infinite."""
    with np.errstate(over="ignore"):
        rounded = scores.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(rounded))
    if len(bad):
        value = float(scores[bad[0]])
        shown = "NaN" if math.isnan(value) else f"{value:g}"
        raise InputError(
            f"{what}: every window must have a finite score that float32 holds, got {shown} for window "
            f"{first + int(bad[0]):,}. Give such windows a number."
        )
    return rounded
