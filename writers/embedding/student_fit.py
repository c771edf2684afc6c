"""Fitting a student to a teacher's vectors (student.py): ridge regression on tokens and pairs of neighbouring tokens.

The rows are stretches of windows, each with the teacher's vector of its text. A stretch's features are its tokens and
pairs, weighted by (1 + ln count) · idf and scaled to norm 1; pairs are those that stand in at least two stretches, the
most widespread first. What the teacher says of each token alone is known beforehand: a linear map of these vectors is
fitted together with the rest, so tokens that are rare in the sample have a direction, too. That is worth more than
twice the sample (docs/write/distilled.md), for the time of some hundred stretches.

The ridge is solved in its dual form: exactly up to MAX_EXACT stretches, by one Cholesky of a matrix of their products;
beyond, where that would not fit in memory, by conjugate gradients in a fixed number of steps. On one machine equal
samples give equal bytes; products are made on one thread.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format.manifest import TOKENIZER_FILES, EncoderRecord
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.writers.embedding.pieces import Pieces
from crisp_stream.writers.embedding.student import (
    STUDENT_FACTS,
    STUDENT_VERSION,
    StudentEncoder,
    StudentFacts,
    StudentQuality,
    counted,
    facts_json,
    integer_weights,
    pair_keys,
    text_of_id,
)

MAX_PAIRS = 1 << 16
MIN_TEXTS_PER_PAIR = 2
LEAST_WINDOWS = 32
"""Windows that a student is fitted on at least."""
RIDGE = 0.1
PAIR_WEIGHT = 0.5
"""Weight of a pair beside that of a token."""
MAX_EXACT = 12_000
"""Stretches whose matrix of products is made: 0.6 GB."""
STEPS = 60
"""Steps of conjugate gradients."""
_ROWS_AT_ONCE = 256
FIT_BYTES, FIT_BYTES_PER_WINDOW = 700 << 20, 16 << 10
"""Memory of a fit of 384 numbers with all pairs, and for each stretch of 256 tokens."""
_LARGEST = 32_767


def fit_student(
    pieces: Pieces,
    targets: NDArray[np.floating[Any]],
    token_vectors: NDArray[np.floating[Any]],
    *,
    tokenizer: Path,
    teacher: EncoderRecord,
    stretch_tokens: int,
    out: Path,
) -> StudentEncoder:
    """Fit a student and write its files; its quality is not yet known.

    Args:
        pieces: token ids of each stretch.
        targets: [num_stretches, dim], the teacher's vectors, of norm 1.
        token_vectors: [vocab_size, dim], those of each token alone.
        tokenizer: folder of the tokenizer whose ids they are.
        teacher: its record.
        stretch_tokens: tokens of a stretch.
        out: folder to write.

    Raises:
        InputError: too few stretches.
    """
    require_windows(len(pieces))
    threads: Any = import_extra("threadpoolctl", extra="write", purpose="fitting a student")
    document_tokenizer = DocumentTokenizer(tokenizer)
    record = document_tokenizer.record()
    pairs = _widespread_pairs(pieces)
    with threads.threadpool_limits(1):
        vectors = _ridge(pieces, np.asarray(targets, np.float32), np.asarray(token_vectors, np.float32), pairs)
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, out / name)
    np.save(out / "pairs.npy", pairs)
    np.save(out / "vectors.npy", vectors)
    facts = StudentFacts(
        student_version=STUDENT_VERSION,
        tokenizer=record.fingerprint,
        vocab_size=record.vocab_size,
        eot_token=record.eot_token,
        dim=vectors.shape[1],
        teacher=vars(teacher),
        teacher_windows=len(pieces),
        stretch_tokens=stretch_tokens,
        quality=StudentQuality(windows=0, cosine=0.0, cosine_of_worst=0.0, distances=0.0),
    )
    (out / STUDENT_FACTS).write_bytes(facts_json(facts))
    return StudentEncoder.load(out)


def require_windows(num_windows: int) -> None:
    """Raises InputError: too few windows to fit a student."""
    if num_windows < LEAST_WINDOWS:
        raise InputError(
            f"teacher_windows: a student must be fitted on at least {LEAST_WINDOWS} windows, got {num_windows}. Give "
            "more text, or embed it by the teacher itself: --encoder NAME, without distilled."
        )


def with_quality(student: StudentEncoder, quality: StudentQuality) -> StudentEncoder:
    """The student with its quality, in memory and in student.json."""
    facts = replace(student.facts, quality=quality)
    (student.folder / STUDENT_FACTS).write_bytes(facts_json(facts))
    return replace(student, facts=facts)


def quality_of(student: NDArray[Any], teacher: NDArray[Any]) -> StudentQuality:
    """Compare the vectors of windows that the student was not fitted on: [num_windows, dim] of norm 1 each."""
    mine, others = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    cosines = (mine * others).sum(axis=1)
    upper = np.triu_indices(len(mine), 1)
    between = [(rows @ rows.T)[upper] for rows in (mine, others)]
    vary = all(len(cosines) > 1 and np.ptp(cosines) > 0 for cosines in between)
    distances = float(np.asarray(np.corrcoef(np.stack(between)))[0, 1]) if vary else 0.0
    return StudentQuality(
        windows=len(mine),
        cosine=round(float(cosines.mean()), 4),
        cosine_of_worst=round(float(np.quantile(cosines, 0.05)), 4),
        distances=round(distances, 4),
    )


def _widespread_pairs(pieces: Pieces) -> NDArray[np.uint64]:
    """Keys of the pairs that stand in at least MIN_TEXTS_PER_PAIR texts, of MAX_PAIRS at most, ascending."""
    keys, at = pair_keys(pieces)
    texts = text_of_id(pieces)[at]
    known, numbers = np.unique(keys, return_inverse=True)
    in_texts = np.unique(numbers * np.int64(len(pieces)) + texts) // len(pieces)
    texts_per_pair = np.bincount(in_texts, minlength=len(known))
    widespread = np.lexsort((known, -texts_per_pair))[:MAX_PAIRS]
    return np.sort(known[widespread[texts_per_pair[widespread] >= MIN_TEXTS_PER_PAIR]])


def _ridge(
    pieces: Pieces, targets: NDArray[np.float32], token_vectors: NDArray[np.float32], pairs: NDArray[np.uint64]
) -> NDArray[np.int16]:
    """[vocab_size + num_pairs, dim]: vectors whose sums are near the targets in direction."""
    sparse: Any = import_extra("scipy.sparse", extra="write", purpose="fitting a student")
    vocab_size = len(token_vectors)
    texts, features, counts = counted(pieces, pairs, vocab_size)
    num_features = vocab_size + len(pairs)
    texts_per_feature = np.bincount(features, minlength=num_features)
    weights = (1 + np.log((1 + len(pieces)) / (1 + texts_per_feature))).astype(np.float32)
    weights[vocab_size:] *= np.float32(PAIR_WEIGHT)
    ends = np.searchsorted(texts, np.arange(len(pieces) + 1))
    values = integer_weights(counts).astype(np.float32) * weights[features]
    norms = np.sqrt(np.bincount(texts, values.astype(np.float64) ** 2, minlength=len(pieces))).astype(np.float32)
    rows = sparse.csr_matrix((values / norms[texts], features, ends), shape=(len(pieces), num_features))
    known = token_vectors - token_vectors.mean(axis=0)
    beforehand = rows[:, :vocab_size] @ known
    share = np.float32(1 / max(float(np.mean(np.square(beforehand).sum(axis=1))), 1e-12))
    solve = _solved_exactly if len(pieces) <= MAX_EXACT else _solved_in_steps
    solved = solve(rows, beforehand, share, targets)
    coefficients = np.asarray(rows.T @ solved, np.float32)
    coefficients[:vocab_size] += known @ (share * (beforehand.T @ solved))
    coefficients *= weights[:, None]
    largest = float(np.abs(coefficients).max(initial=0)) or 1.0
    return np.rint(coefficients * (_LARGEST / largest)).astype(np.int16)


def _solved_exactly(
    rows: Any, beforehand: NDArray[np.float32], share: np.float32, targets: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(rows · rowsᵀ + share · beforehand · beforehandᵀ + RIDGE)⁻¹ · targets."""
    linalg: Any = import_extra("scipy.linalg", extra="write", purpose="fitting a student")
    columns = rows.T.tocsr()
    products = np.empty((rows.shape[0], rows.shape[0]), np.float32)
    for start in range(0, len(products), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        products[some] = (rows[some] @ columns).toarray() + (share * beforehand[some]) @ beforehand.T
    products[np.diag_indices(len(products))] += np.float32(RIDGE)
    factor = linalg.cho_factor(products, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(linalg.cho_solve(factor, targets, check_finite=False), np.float32)


def _solved_in_steps(
    rows: Any, beforehand: NDArray[np.float32], share: np.float32, targets: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The same, by STEPS steps of conjugate gradients."""
    columns = rows.T.tocsr()
    found = np.zeros_like(targets)
    rest, direction = targets.copy(), targets.copy()
    square = (rest * rest).sum(axis=0)
    for _ in range(STEPS):
        product = rows @ (columns @ direction) + np.float32(RIDGE) * direction
        product += beforehand @ (share * (beforehand.T @ direction))
        step = square / np.maximum((direction * product).sum(axis=0), np.float32(1e-30))
        found += step * direction
        rest -= step * product
        before, square = square, (rest * rest).sum(axis=0)
        direction = rest + square / np.maximum(before, np.float32(1e-30)) * direction
    return found
