"""The student of a distilled encoder: token ids of a window to a vector near the one that a teacher would give it.

It is a table of vectors, one for each token of the dataset's tokenizer and for each pair of neighbouring tokens that
the sample has often enough; a text's vector is their sum, each weighted by how often it stands there. So no network is
run, no text is made of windows, and all of a window is read. It is fitted by student_fit.py.

All sums are of integers: counts are weighted by a table of integers, and vectors are int16. So a vector is the same, to
the last bit, on every machine, in every batch and in every order of summation; what is left, one square root and one
division, is exact to rounding by IEEE 754. A kernel that is not linear gave no better cosine (docs/write/distilled.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, import_extra
from crisp_stream.format.manifest import TOKENIZER_FILES, EncoderRecord
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.typed import Builder
from crisp_stream.writers.embedding.encoder_digest import Parts
from crisp_stream.writers.embedding.pieces import Pieces

DISTILLED_NAME = "distilled"
DISTILLED_POOLING = "token-pairs"
STUDENT_FACTS = "student.json"
STUDENT_FILES = (STUDENT_FACTS, *TOKENIZER_FILES, "pairs.npy", "vectors.npy")
STUDENT_VERSION = 1
_DECIDING = STUDENT_FILES[1:]
"""Files that the vectors depend on."""
_WEIGHT_OF_ONE = 8
"""Integer weight of what stands once in a text."""
_TEXTS_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class StudentQuality:
    """How near a student comes to its teacher, on windows that it was not fitted on; all of each is read by both."""

    windows: int
    cosine: float
    """Mean cosine of both vectors of a window."""
    cosine_of_worst: float
    """Cosine that 95 % of the windows reach."""
    distances: float
    """Correlation of the cosines between two windows, over all pairs of them: how far distances are kept.
    0 where all are equal."""

    def text(self, teacher_windows: int, teacher: str) -> str:
        """A line for people."""
        return (
            f"student: fitted on {teacher_windows:,} windows of {teacher}; on {self.windows:,} others its cosine to "
            f"the teacher is {self.cosine:.3f} (95 % reach {self.cosine_of_worst:.3f}), the correlation of distances "
            f"{self.distances:.3f}"
        )


@dataclass(frozen=True, kw_only=True)
class StudentFacts:
    """student.json: what a student is, and where it came from."""

    student_version: int
    tokenizer: str
    """sha256 of the tokenizer.json whose ids it reads."""
    vocab_size: int
    eot_token: str
    dim: int
    teacher: dict[str, Any]
    """The teacher's record, as a manifest has one of an encoder."""
    teacher_windows: int
    """Windows that it was fitted on."""
    stretch_tokens: int
    """Tokens of each that the teacher read."""
    quality: StudentQuality


@dataclass(frozen=True, eq=False)
class StudentEncoder:
    """Token ids to unit vectors."""

    folder: Path
    """Folder of its files."""
    facts: StudentFacts
    pairs: NDArray[np.uint64]
    """[num_pairs], first id · 2^32 + second id, ascending."""
    vectors: NDArray[np.int16]
    """[vocab_size + num_pairs, dim]."""

    def pieces(self, texts: Sequence[str]) -> Pieces:
        """The token ids of each text, one sequence a text."""
        ids = self._tokenizer.encode(texts)
        lengths = np.array([len(of_text) for of_text in ids], np.int32)
        joined = np.concatenate([np.zeros(0, self._tokenizer.token_dtype), *ids])
        return Pieces(joined, lengths, np.ones(len(ids), np.int32))

    @cached_property
    def _tokenizer(self) -> DocumentTokenizer:
        return DocumentTokenizer(self.folder)

    def embed_pieces(self, pieces: Pieces) -> NDArray[np.float16]:
        """Embed token ids; a row depends on its own alone.

        Returns:
            [num_texts, dim], L2 norm 1 up to float16 rounding. A text without a token gets the first axis.
        """
        made = [unit_rows(self._sums(some)) for some in _batches(pieces, _TEXTS_AT_ONCE)]
        return np.concatenate([np.zeros((0, self.facts.dim), np.float16), *made])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """`pieces` and `embed_pieces`: [num_texts, dim]."""
        return self.embed_pieces(self.pieces(texts))

    def _sums(self, pieces: Pieces) -> NDArray[np.int64]:
        """[num_texts, dim], exact."""
        sparse: Any = import_extra("scipy.sparse", extra="write", purpose="embedding windows")
        texts, features, counts = counted(pieces, self.pairs, self.facts.vocab_size)
        is_used = np.zeros(len(self.vectors), np.bool_)
        is_used[features] = True
        used, columns = np.flatnonzero(is_used), np.cumsum(is_used, dtype=np.int32)[features] - 1
        weights = integer_weights(counts)
        largest = int(np.bincount(texts, weights, minlength=1).max()) << 15
        dtype = np.int32 if largest < 1 << 31 else np.int64
        ends = np.searchsorted(texts, np.arange(len(pieces) + 1))
        matrix = sparse.csr_matrix(
            (weights.astype(dtype), columns, ends.astype(np.int32)), shape=(len(pieces), len(used))
        )
        return np.asarray(matrix @ self.vectors[used].astype(dtype), np.int64)

    def record(self) -> EncoderRecord:
        """The encoder's entry in the manifest."""
        return EncoderRecord(
            name=DISTILLED_NAME,
            weights_sha256=self.weights_sha256,
            max_length=0,
            pooling=DISTILLED_POOLING,
            dim=self.facts.dim,
        )

    @cached_property
    def weights_sha256(self) -> str:
        """Hex digest over the files that the vectors depend on."""
        return hashlib.sha256(json.dumps(list(self.parts.values())).encode()).hexdigest()

    @cached_property
    def parts(self) -> Parts:
        """The sha256 of each of these files."""
        return {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in _DECIDING}

    @classmethod
    def load(cls, folder: Path) -> StudentEncoder:
        """Read a student's files; the vectors are mapped, so that the processes of a machine hold them once.

        Raises:
            FormatError: a file is missing, or they do not belong together.
        """
        facts = read_facts(folder)
        try:
            pairs = np.load(folder / "pairs.npy", allow_pickle=False)
            vectors = np.asarray(np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False))
            tokenizer = hashlib.sha256((folder / TOKENIZER_FILES[0]).read_bytes()).hexdigest()
        except (OSError, ValueError, EOFError) as error:
            raise FormatError(
                f"{folder}: must hold {', '.join(STUDENT_FILES)} of a distilled encoder, got: {error}. "
                "Restore the files."
            ) from error
        rows = facts.vocab_size + len(pairs)
        if pairs.dtype != np.uint64 or vectors.dtype != np.int16 or vectors.shape != (rows, facts.dim):
            raise FormatError(
                f"{folder}: the files of a distilled encoder must agree: uint64 [pairs] and int16 "
                f"[{rows}, {facts.dim}], got {pairs.dtype} {pairs.shape} and {vectors.dtype} {vectors.shape}. "
                "Restore the files."
            )
        if tokenizer != facts.tokenizer:
            raise FormatError(
                f"{folder}: {TOKENIZER_FILES[0]} must be the tokenizer that the encoder was fitted on "
                f"({facts.tokenizer[:12]}…), got another one ({tokenizer[:12]}…). Restore the file."
            )
        return cls(folder, facts, pairs, vectors)


def is_student(name: str | None) -> bool:
    """Say whether an encoder's name is a folder with a student."""
    return name is not None and (Path(name) / STUDENT_FACTS).is_file()


def read_facts(folder: Path) -> StudentFacts:
    """Read student.json. Raises FormatError."""
    path = folder / STUDENT_FACTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: must be readable, got: {error}. Restore the file.") from error
    return facts_of(content, str(path))


def facts_of(content: bytes, where: str) -> StudentFacts:
    """Read the content of student.json. Raises FormatError."""
    try:
        record = json.loads(content)
        version = record["student_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{where}: must be what a write made of its distilled encoder ({error}). Restore the file."
        ) from error
    if version != STUDENT_VERSION:
        raise FormatError(
            f"{where}: student_version must be {STUDENT_VERSION}, got {version}. Use the version of crisp-stream that "
            "wrote it, or fit it again."
        )
    return Builder(error=FormatError, place=where, remedy="Restore the file.").build(StudentFacts, record)


def facts_json(facts: StudentFacts) -> bytes:
    """The content of student.json."""
    return (json.dumps(asdict(facts), indent=2, ensure_ascii=False) + "\n").encode()


def token_pieces(tokens: NDArray[Any], eot_id: int) -> Pieces:
    """What a student reads of windows [num_windows, window_tokens]: their ids, a sequence for each document."""
    inside = tokens != eot_id
    begins = inside.copy()
    begins[:, 1:] &= ~inside[:, :-1]
    rows = np.nonzero(begins)[0]
    numbers = np.cumsum(begins, axis=None).reshape(tokens.shape)[inside] - 1
    lengths = np.bincount(numbers, minlength=len(rows)).astype(np.int32)
    per_window = np.bincount(rows, minlength=len(tokens))
    if (per_window == 0).any():  # a window of end-of-text alone has one empty sequence
        empty = np.flatnonzero(per_window == 0)
        lengths = np.insert(lengths, np.searchsorted(rows, empty), 0).astype(np.int32)
    return Pieces(tokens[inside], lengths, np.maximum(per_window, 1).astype(np.int32))


def pair_keys(pieces: Pieces) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Keys of all pairs of neighbours within a sequence, and the place of the first of each among the ids."""
    ids = pieces.ids.astype(np.uint64)
    sequence_of_id = np.repeat(np.arange(len(pieces.lengths)), pieces.lengths)
    at = np.flatnonzero(sequence_of_id[1:] == sequence_of_id[:-1])
    return (ids[at] << np.uint64(32)) + ids[at + 1], at


def text_of_id(pieces: Pieces) -> NDArray[np.int64]:
    """[num_ids], the text that each id stands in."""
    text_of_sequence = np.repeat(np.arange(len(pieces)), pieces.sequences_per_text)
    return np.repeat(text_of_sequence, pieces.lengths)


def counted(
    pieces: Pieces, pairs: NDArray[np.uint64], vocab_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(text, feature, count) of the tokens and known pairs that stand in each text, in this order.

    A feature is the id of a token, or vocab_size and the number of a pair.
    """
    texts = text_of_id(pieces)
    keys, at = pair_keys(pieces)
    if len(pairs):
        numbers = np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)
        known = pairs[numbers] == keys
        numbers, at = numbers[known], at[known]
    else:
        numbers, at = np.zeros(0, np.int64), np.zeros(0, np.int64)
    num_features = vocab_size + len(pairs)
    both = np.concatenate([pieces.ids.astype(np.int64), vocab_size + numbers])
    both += np.concatenate([texts, texts[at]]) * num_features
    found, counts = np.unique(both, return_counts=True)
    return found // num_features, found % num_features, counts


def integer_weights(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(1 + ln count) in eighths, rounded: an integer of at least 8."""
    return np.rint(_WEIGHT_OF_ONE * (1 + np.log(counts))).astype(np.int64)


def unit_rows(sums: NDArray[np.int64]) -> NDArray[np.float16]:
    """Rows of integers scaled to norm 1; those that are 0 get the first axis."""
    bits = (62 - sums.shape[1].bit_length()) // 2  # squares of so many bits add up within 63
    lengths = np.frexp(np.abs(sums).max(axis=1, initial=0).astype(np.float64))[1]
    sums = sums >> np.maximum(lengths - bits, 0)[:, None]
    squares = (sums * sums).sum(axis=1)
    sums[squares == 0, 0] = 1
    norms = np.sqrt(np.maximum(squares, 1).astype(np.float64))
    return (sums / norms[:, None]).astype(np.float16)


def _batches(pieces: Pieces, texts: int) -> list[Pieces]:
    """The pieces of some texts at a time."""
    sequence_ends = np.append(0, np.cumsum(pieces.sequences_per_text, dtype=np.int64))
    id_ends = np.append(0, np.cumsum(pieces.lengths, dtype=np.int64))
    made: list[Pieces] = []
    for start in range(0, len(pieces), texts):
        stop = min(start + texts, len(pieces))
        first, last = sequence_ends[start], sequence_ends[stop]
        ids = pieces.ids[id_ends[first] : id_ends[last]]
        made.append(Pieces(ids, pieces.lengths[first:last], pieces.sequences_per_text[start:stop]))
    return made
