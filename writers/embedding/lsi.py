"""Latent semantic indexing: TF-IDF and a truncated SVD, the paper's other representation (Appendix A, Table 6; 256-d).

Fitted on a sample of the corpus's windows, and stored with the dataset, because a task's examples must be embedded
by the same terms. It reads the whole window and needs no neural network: measured 4,000 windows of 4,000 characters/s
per core, 280 times MiniLM's rate. The paper finds its clusters worse at every size (Figure 5);
docs/write/embedding.md has a comparison.

A term is a run of two or more letters, digits or underscores, lower-cased, that stands in at least two texts; the
`max_terms` most widespread are kept. Weight of a term in a text: (1 + ln count) · (1 + ln((1 + texts) / (1 + texts with
the term))), which is scikit-learn's TfidfVectorizer with sublinear_tf; a test holds them together. The counting is our
own so that fitting and embedding are one code, and no file needs unpickling.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError, import_extra
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.writers.embedding.encoder_digest import Parts
from crisp_stream.writers.embedding.pieces import Pieces

LSI_NAME = "lsi"
LSI_POOLING = "tfidf-svd"
LSI_FILES = ("vocabulary.json", "weight_per_term.npy", "components.npy")
MIN_TEXTS_PER_TERM = 2
FIT_BYTES, FIT_BYTES_PER_CHARACTER = 128 << 20, 4
"""Memory of a fit, and for each character of its texts (measured 0.17 GB with 17 million of them, 0.42 with 86)."""
_POWER_ITERATIONS = 5
_TERM = re.compile(r"\w\w+")


@dataclass(frozen=True, eq=False)
class LsiEncoder:
    """Texts to unit vectors by the terms they share."""

    terms: list[str]
    weight_per_term: NDArray[np.float32]
    """[num_terms], inverse document frequencies."""
    components: NDArray[np.float32]
    """[num_terms, dim]: right singular vectors, the most important first."""

    @classmethod
    def fit(cls, texts: Sequence[str], *, dim: int = 256, max_terms: int = 50_000, seed: int = 0) -> LsiEncoder:
        """Choose terms and axes by a sample of texts; equal texts give equal bytes on one kind of machine.

        Args:
            texts: windows; some ten thousand say enough. Held as counts: about 3 kB per window.
            dim: axes; fewer where there are fewer texts or terms.
            max_terms: vocabulary, the most widespread terms first.
            seed: of the randomised SVD.

        Raises:
            InputError: fewer than two terms that stand in two texts; dim or max_terms below 2.
        """
        if min(dim, max_terms) < 2:
            raise InputError(f"lsi: dim and max_terms must be at least 2, got {dim} and {max_terms}.")
        extmath: Any = import_extra("sklearn.utils.extmath", extra="write", purpose="fitting LSI")
        threads: Any = import_extra("threadpoolctl", extra="write", purpose="fitting LSI")
        texts_per_term = Counter(chain.from_iterable(set(_words(text)) for text in texts))
        kept = [term for term, number in texts_per_term.items() if number >= MIN_TEXTS_PER_TERM]
        kept = sorted(kept, key=lambda term: (-texts_per_term[term], term))[:max_terms]
        if len(kept) < 2:
            raise InputError(
                f"lsi: needs at least 2 terms that stand in {MIN_TEXTS_PER_TERM} texts, got {len(kept)} from "
                f"{len(texts)} texts. Give more text."
            )
        frequencies = np.array([texts_per_term[term] for term in kept], np.float64)
        weight_per_term = (1 + np.log((1 + len(texts)) / (1 + frequencies))).astype(np.float32)
        unfinished = cls(kept, weight_per_term, np.zeros((len(kept), 0), np.float32))
        matrix = unfinished.weights(unfinished.pieces(texts))
        with threads.threadpool_limits(1):
            _, _, rows = extmath.randomized_svd(
                matrix,
                n_components=min(dim, *matrix.shape),
                n_iter=_POWER_ITERATIONS,
                random_state=np.random.RandomState(seed % (1 << 32)),
            )
        components = np.asarray(rows.T, np.float32, order="C")
        components *= np.where(components.sum(axis=0) < 0, np.float32(-1), np.float32(1))
        return cls(kept, weight_per_term, components)

    def pieces(self, texts: Sequence[str]) -> Pieces:
        """The known terms of each text, as numbers: one sequence per text, which may be empty."""
        known = self._number_per_term
        dtype = np.uint16 if len(self.terms) <= 1 << 16 else np.uint32
        numbers = [np.array([known[word] for word in _words(text) if word in known], dtype) for text in texts]
        return Pieces(
            np.concatenate([*numbers, np.zeros(0, dtype)]),
            np.array([len(of_text) for of_text in numbers], np.int32),
            np.ones(len(numbers), np.int32),
        )

    @cached_property
    def _number_per_term(self) -> dict[str, int]:
        return {term: number for number, term in enumerate(self.terms)}

    def weights(self, pieces: Pieces) -> Any:
        """The TF-IDF matrix: scipy CSR, float32 [num_texts, num_terms], rows of L2 norm 1 or all zero."""
        sparse: Any = import_extra("scipy.sparse", extra="write", purpose="embedding text")
        ends = np.append(0, np.cumsum(pieces.lengths, dtype=np.int64))
        counts = np.ones(len(pieces.ids), np.float32)
        matrix = sparse.csr_matrix(
            (counts, pieces.ids.astype(np.int32), ends), shape=(len(pieces.lengths), len(self.terms))
        )
        matrix.sum_duplicates()
        matrix.data = (1 + np.log(matrix.data)) * self.weight_per_term[matrix.indices]
        norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1), np.float32)).ravel()
        matrix.data /= np.repeat(norms, np.diff(matrix.indptr))
        return matrix

    def embed_pieces(self, pieces: Pieces) -> NDArray[np.float16]:
        """Embed what `pieces` made; a row depends on its text alone.

        Returns:
            [num_texts, dim], L2 norm 1 up to float16 rounding. A text without a known term gets the first axis, the
            direction that most text shares, so that every vector has a norm and a place in the tree.
        """
        vectors = np.asarray(self.weights(pieces) @ self.components, np.float32)
        norms = np.linalg.norm(vectors, axis=1)
        vectors[norms == 0, 0] = 1
        return (vectors / np.where(norms == 0, np.float32(1), norms)[:, None]).astype(np.float16)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """`pieces` and `embed_pieces`: [num_texts, dim]."""
        return self.embed_pieces(self.pieces(texts))

    def record(self) -> EncoderRecord:
        """The encoder's entry in the manifest."""
        return EncoderRecord(
            name=LSI_NAME,
            weights_sha256=self.weights_sha256,
            max_length=0,
            pooling=LSI_POOLING,
            dim=self.components.shape[1],
        )

    def _contents(self) -> Iterator[tuple[bytes | memoryview, ...]]:
        """The files' contents in pieces: the arrays, 50 MB of axes among them, are not copied."""
        yield ((json.dumps(self.terms, ensure_ascii=False, indent=0) + "\n").encode(),)
        yield _npy(self.weight_per_term)
        yield _npy(self.components)

    @cached_property
    def weights_sha256(self) -> str:
        """Hex digest over all files."""
        return hashlib.sha256(json.dumps(list(self.parts.values())).encode()).hexdigest()

    @cached_property
    def parts(self) -> Parts:
        """The sha256 of each file."""
        digests: Parts = {}
        for name, content in zip(LSI_FILES, self._contents(), strict=True):
            digest = hashlib.sha256()
            for piece in content:
                digest.update(piece)
            digests[name] = digest.hexdigest()
        return digests

    def save(self, folder: Path) -> None:
        """Write `LSI_FILES` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip(LSI_FILES, self._contents(), strict=True):
            with (folder / name).open("wb") as file:
                file.writelines(content)

    @classmethod
    def load(cls, folder: Path) -> LsiEncoder:
        """Read what `save` wrote; the components are mapped, so that the processes of a machine hold them once.

        Raises:
            FormatError: a file is missing, or they do not belong together.
        """
        try:
            terms = json.loads((folder / LSI_FILES[0]).read_text(encoding="utf-8"))
            weight_per_term = np.load(folder / LSI_FILES[1], allow_pickle=False)
            components = np.asarray(np.load(folder / LSI_FILES[2], mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise FormatError(
                f"{folder}: must hold {', '.join(LSI_FILES)} of an LSI encoder, got: {error}. Restore the files."
            ) from error
        fits = (
            isinstance(terms, list)
            and all(isinstance(term, str) for term in terms)
            and weight_per_term.dtype == components.dtype == np.float32
            and weight_per_term.shape == (len(terms),)
            and components.ndim == 2
            and components.shape[0] == len(terms)
            and components.shape[1] >= 1
        )
        if not fits:
            raise FormatError(
                f"{folder}: the files of an LSI encoder must agree: a list of terms, float32 [terms] and "
                f"[terms, dim], got {weight_per_term.dtype} {weight_per_term.shape} and "
                f"{components.dtype} {components.shape}. Restore the files."
            )
        return cls(terms, weight_per_term, components)


def _words(text: str) -> Iterable[str]:
    return _TERM.findall(text.lower())


def _npy(array: NDArray[Any]) -> tuple[bytes, memoryview]:
    """The bytes that np.save writes of an array in C order: header and content, not copied."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue(), np.ascontiguousarray(array).data.cast("B")
