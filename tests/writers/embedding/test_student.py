"""The student of a distilled encoder: what it reads, exact sums, the fit, and its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.writers.embedding import student_fit
from crisp_stream.writers.embedding.pieces import Pieces
from crisp_stream.writers.embedding.static import StaticEncoder
from crisp_stream.writers.embedding.student import (
    STUDENT_FILES,
    StudentEncoder,
    counted,
    is_student,
    token_pieces,
    unit_rows,
)
from crisp_stream.writers.embedding.student_fit import fit_student, quality_of, with_quality
from crisp_stream.writers.windows import train_tokenizer, window_texts
from tests.support.encoders import make_static
from tests.support.written_dataset import TOPICS

TEACHER = EncoderRecord(name="teacher", weights_sha256="1" * 64, max_length=0, pooling="static", dim=12)
WINDOW_TOKENS = 32


class Sample:
    """Windows of text, and a teacher's vectors of them."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer_folder = folder / "tokenizer"
        train_tokenizer(TOPICS, self.tokenizer_folder, vocab_size=500)
        tokenizer = DocumentTokenizer(self.tokenizer_folder)
        self.eot_id = tokenizer.eot_id
        joined = np.concatenate([np.append(ids, self.eot_id) for ids in tokenizer.encode(TOPICS)])
        tokens = joined[: len(joined) // WINDOW_TOKENS * WINDOW_TOKENS].reshape(-1, WINDOW_TOKENS).astype(np.uint16)
        self.tokens = tokens[np.random.default_rng(0).permutation(len(tokens))][:600]
        make_static(folder / "teacher")
        teacher = StaticEncoder(str(folder / "teacher"))
        self.vectors = teacher.embed(window_texts(self.tokens, tokenizer, self.eot_id))
        alone = np.arange(tokenizer.vocab_size, dtype=np.uint16)[:, None]
        self.token_vectors = teacher.embed(window_texts(alone, tokenizer, self.eot_id))

    def fit(self, out: Path, windows: int = 500) -> StudentEncoder:
        """A student of the first windows."""
        return fit_student(
            token_pieces(self.tokens[:windows], self.eot_id),
            self.vectors[:windows],
            self.token_vectors,
            tokenizer=self.tokenizer_folder,
            teacher=TEACHER,
            stretch_tokens=WINDOW_TOKENS,
            out=out,
        )


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def student(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> StudentEncoder:
    return sample.fit(tmp_path_factory.mktemp("student"))


def pieces_of(*texts: list[list[int]]) -> Pieces:
    return Pieces.from_sequences(texts, 1 << 16)


def test_a_student_comes_near_its_teacher_on_windows_that_it_was_not_fitted_on(
    sample: Sample, student: StudentEncoder
) -> None:
    vectors = student.embed_pieces(token_pieces(sample.tokens[500:], sample.eot_id))
    quality = quality_of(vectors, sample.vectors[500:])
    assert quality.windows == len(vectors)
    assert quality.cosine > 0.6
    assert quality.distances > 0.4
    others = quality_of(vectors, np.roll(sample.vectors[500:], 1, axis=0))
    assert others.cosine < quality.cosine - 0.2


def test_what_the_teacher_says_of_single_tokens_makes_a_better_student(sample: Sample, tmp_path: Path) -> None:
    pieces = token_pieces(sample.tokens[500:], sample.eot_id)

    def cosine(folder: str) -> float:
        return quality_of(sample.fit(tmp_path / folder, 60).embed_pieces(pieces), sample.vectors[500:]).cosine

    with_tokens, known = cosine("with"), sample.token_vectors
    sample.token_vectors = np.zeros_like(known)
    try:
        assert cosine("without") < with_tokens
    finally:
        sample.token_vectors = known


def test_a_vector_does_not_depend_on_its_batch_to_the_last_bit(sample: Sample, student: StudentEncoder) -> None:
    rows = sample.tokens[:150]
    together = student.embed_pieces(token_pieces(rows, sample.eot_id))
    assert together.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(together.astype(np.float64), axis=1), 1, atol=2e-3)
    for size in (1, 7, 64):
        parts = [
            student.embed_pieces(token_pieces(rows[start : start + size], sample.eot_id))
            for start in range(0, 150, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), together)
    assert student.embed([]).shape == (0, 12)


def test_sums_are_those_of_plain_integers_in_any_order(sample: Sample, student: StudentEncoder) -> None:
    rows = sample.tokens[:5]
    sums = student._sums(token_pieces(rows, sample.eot_id))
    texts, features, counts = counted(token_pieces(rows, sample.eot_id), student.pairs, student.facts.vocab_size)
    expected = [[0] * 12 for _ in rows]
    for text, feature, count in reversed(list(zip(texts.tolist(), features.tolist(), counts.tolist(), strict=True))):
        weight = round(8 * (1 + float(np.log(count))))
        for column, value in enumerate(student.vectors[feature].tolist()):
            expected[text][column] += weight * value
    assert sums.tolist() == expected


def test_long_texts_are_summed_without_overflow(student: StudentEncoder) -> None:
    ids = np.resize(np.arange(300, dtype=np.uint16), 200_000)
    long = Pieces(ids, np.array([len(ids)], np.int32), np.ones(1, np.int32))
    largest = StudentEncoder(student.folder, student.facts, student.pairs, np.full_like(student.vectors, 32_767))
    texts, _, counts = counted(long, student.pairs, student.facts.vocab_size)
    weights = np.rint(8 * (1 + np.log(counts))).astype(int)
    assert len(texts) > 299
    assert largest._sums(long).tolist() == [[int(weights.sum()) * 32_767] * 12]


@pytest.mark.parametrize("scale", [1, 1 << 20, 1 << 45])
def test_rows_of_any_size_get_norm_1_and_rows_of_nothing_the_first_axis(scale: int) -> None:
    rows = np.array([[3, -4, 0], [0, 0, 0], [1, 1, 1]], np.int64) * scale
    expected = np.array([[0.6, -0.8, 0], [1, 0, 0], [3**-0.5] * 3], np.float64).astype(np.float16)
    np.testing.assert_array_equal(unit_rows(rows), expected)
    assert unit_rows(np.zeros((0, 3), np.int64)).shape == (0, 3)


def test_windows_are_read_document_by_document_without_end_of_text() -> None:
    tokens = np.array([[5, 6, 0, 7], [0, 0, 0, 0], [0, 8, 9, 0], [1, 0, 0, 2]], np.uint16)
    pieces = token_pieces(tokens, 0)
    assert pieces.ids.tolist() == [5, 6, 7, 8, 9, 1, 2]
    assert pieces.lengths.tolist() == [2, 1, 0, 2, 1, 1]
    assert pieces.sequences_per_text.tolist() == [2, 1, 1, 2]


def test_tokens_and_known_pairs_are_counted_and_no_pair_crosses_a_document() -> None:
    pieces = pieces_of([[1, 2, 1, 2]], [[2, 3], [1, 2]], [[]])
    pairs = np.array([(1 << 32) + 2, (2 << 32) + 3], np.uint64)
    found = [array.tolist() for array in counted(pieces, pairs, 10)]
    assert list(zip(*found, strict=True)) == [
        *((0, 1, 2), (0, 2, 2), (0, 10, 2)),
        *((1, 1, 1), (1, 2, 2), (1, 3, 1), (1, 10, 1), (1, 11, 1)),
    ]
    none = [array.tolist() for array in counted(pieces, np.zeros(0, np.uint64), 10)]
    assert list(zip(*none, strict=True))[:2] == [(0, 1, 2), (0, 2, 2)]


def test_pairs_are_those_of_two_texts_the_most_widespread_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = pieces_of([[1, 2, 3, 4, 3, 4]], [[1, 2, 5, 6]], [[5, 6, 1, 2]])
    assert student_fit._widespread_pairs(pieces).tolist() == [(1 << 32) + 2, (5 << 32) + 6]
    monkeypatch.setattr(student_fit, "MAX_PAIRS", 1)
    assert student_fit._widespread_pairs(pieces).tolist() == [(1 << 32) + 2]


def test_solving_in_steps_comes_to_the_exact_solution(
    sample: Sample, student: StudentEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student_fit, "MAX_EXACT", 0)
    pieces = token_pieces(sample.tokens[500:], sample.eot_id)
    stepped = sample.fit(tmp_path / "steps").embed_pieces(pieces).astype(np.float64)
    assert ((stepped * student.embed_pieces(pieces)).sum(axis=1) > 0.999).all()


def test_equal_samples_give_equal_files(sample: Sample, student: StudentEncoder, tmp_path: Path) -> None:
    again = sample.fit(tmp_path / "again")
    for name in STUDENT_FILES:
        assert (tmp_path / "again" / name).read_bytes() == (student.folder / name).read_bytes(), name
    assert again.weights_sha256 == student.weights_sha256
    assert sample.fit(tmp_path / "fewer", 499).weights_sha256 != student.weights_sha256


def test_text_is_embedded_as_its_tokens_are(sample: Sample, student: StudentEncoder) -> None:
    tokenizer = DocumentTokenizer(sample.tokenizer_folder)
    ids = np.asarray(tokenizer.encode(TOPICS[:1])[0])[None, :]
    np.testing.assert_array_equal(student.embed(TOPICS[:1]), student.embed_pieces(token_pieces(ids, sample.eot_id)))


def test_the_record_and_the_digest_cover_what_decides_the_vectors_and_not_the_quality(
    student: StudentEncoder, tmp_path: Path
) -> None:
    assert student.record() == EncoderRecord(
        name="distilled", weights_sha256=student.weights_sha256, max_length=0, pooling="token-pairs", dim=12
    )
    shutil.copytree(student.folder, tmp_path / "copy")
    other = with_quality(StudentEncoder.load(tmp_path / "copy"), quality_of(np.eye(3), np.eye(3)))
    assert StudentEncoder.load(tmp_path / "copy").facts.quality == other.facts.quality != student.facts.quality
    assert other.weights_sha256 == student.weights_sha256
    assert is_student(str(tmp_path / "copy"))
    assert not is_student(str(tmp_path))


def test_too_few_windows_are_refused(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teacher_windows: a student must be fitted on at least 32 windows, got 31"):
        sample.fit(tmp_path / "few", 31)


def _changed(folder: Path, name: str) -> None:
    path = folder / name
    if name == "student.json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "student_version": 9}))
    elif name.endswith(".npy"):
        rows: NDArray[Any] = np.load(path)
        np.save(path, rows[1:])
    else:
        path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("student.json", r"student\.json: student_version must be 1, got 9"),
        ("vectors.npy", r"the files of a distilled encoder must agree: uint64 \[pairs\] and int16 \["),
        ("pairs.npy", r"the files of a distilled encoder must agree"),
        ("tokenizer.json", r"tokenizer\.json must be the tokenizer that the encoder was fitted on"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    student: StudentEncoder, tmp_path: Path, name: str, message: str
) -> None:
    shutil.copytree(student.folder, tmp_path / "copy")
    _changed(tmp_path / "copy", name)
    with pytest.raises(FormatError, match=message):
        StudentEncoder.load(tmp_path / "copy")


@pytest.mark.parametrize("name", ["student.json", "pairs.npy", "vectors.npy", "tokenizer.json"])
def test_a_missing_file_is_named(student: StudentEncoder, tmp_path: Path, name: str) -> None:
    shutil.copytree(student.folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(FormatError, match=rf"{name}.*Restore the file"):
        StudentEncoder.load(tmp_path / "copy")
