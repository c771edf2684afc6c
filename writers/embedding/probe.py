"""The probe of an encoder: its vectors of eight fixed texts, kept with a dataset and compared wherever it is loaded.

The digest (encoder_digest.py) says that files and settings are those that embedded the dataset. It cannot know what
the libraries make of them: another version, custom code of a model or a kernel that rounds otherwise. So a dataset
keeps `encoder/encoder.json`: the parts of the digest, which say what differs, and the vectors. Whoever embeds for the
dataset again compares the vectors before the first of its own; a worker process, too, because machines differ.

A text's cosine with what was kept must be at least MIN_COSINE. Measured with all-MiniLM-L6-v2, the smallest of the
eight: other batches, float64 and float16 1.000000, products in bfloat16, which are coarser than the TF32 of GPUs,
0.999970; all of a text read instead of its beginning 0.990, another length 0.961, another pooling 0.349
(benchmarks/writing/probe_tolerance.py).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError, MissingObjectError
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.storage.store import open_store
from crisp_stream.writers.embedding.encoder_digest import Parts
from crisp_stream.writers.embedding.pieces import Pieces
from crisp_stream.writers.embedding.text_encoder import TextEncoder

ENCODER_NAME = "encoder.json"
ENCODER_FILE = f"encoder/{ENCODER_NAME}"
"""Below the root of a dataset, and in the folder of a fitted tree."""
PROBE_VERSION = 1
"""Version of the texts."""
MIN_COSINE = 0.998
_LONG = " ".join(
    f"On day {day} the ship stood off cape {day * 7 % 31}, and the log records wind force {day % 9}, a falling glass "
    f"and {day % 4} sails in sight."
    for day in range(1, 41)
)
PROBE_TEXTS = (
    "The river rose in spring, and the farmers moved their cattle to the higher fields.",
    "Dr. Ångström's CAFÉ in São Paulo: Über-naïve FAÇADE, No. 42 (2nd Floor)!",
    "def mean(values):\n    return sum(values) / len(values)  # ZeroDivisionError if empty\n",
    "中文和日本語 — Русский текст, نص عربي, हिन्दी, ﬁ 🙂",
    "In 2019, 3.14 % of 1,250,000 patients (95% CI 2.9-3.4) received 5 mg/kg of the drug.",
    "Photosynthesis",
    "Question: Which planet is nearest to the SUN?\nA. Venus\nB. Mercury\nC. Mars\nAnswer: B",
    _LONG,
)
"""Of several scripts and cases, a word, code, and one that is longer than most encoders read (about 1,100 pieces)."""


@dataclass(frozen=True, kw_only=True)
class EncoderFile:
    """What a dataset keeps of its encoder beside the manifest: encoder/encoder.json."""

    parts: Parts = field(hash=False)
    """What decides the vectors, by part."""
    dim: int
    vectors: bytes
    """float16 [len(PROBE_TEXTS), dim], little-endian."""

    @classmethod
    def of(cls, encoder: TextEncoder) -> EncoderFile:
        """Embed the texts."""
        vectors = encoder.embed(PROBE_TEXTS)
        return cls(parts=encoder.parts, dim=vectors.shape[1], vectors=vectors.astype("<f2").tobytes())

    def to_json(self) -> bytes:
        """The content of the file."""
        probe = {
            "version": PROBE_VERSION,
            "dim": self.dim,
            "vectors": base64.b64encode(self.vectors).decode(),
        }
        return (json.dumps({"parts": self.parts, "probe": probe}, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> EncoderFile:
        """Read what `to_json` wrote. Raises FormatError."""
        try:
            record = json.loads(content)
            probe: dict[str, Any] = record["probe"]
            if probe["version"] != PROBE_VERSION:
                raise FormatError(
                    f"{where}: the probe must be of version {PROBE_VERSION}, got {probe['version']}. "
                    "Use the version of crisp-stream that wrote it, or write the dataset again."
                )
            made = cls(
                parts=dict(record["parts"]),
                dim=int(probe["dim"]),
                vectors=base64.b64decode(probe["vectors"], validate=True),
            )
            _ = made.rows
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{where}: must be what a write made of its encoder ({error}). Restore it.") from error
        return made

    @property
    def rows(self) -> NDArray[np.float32]:
        """[len(PROBE_TEXTS), dim]."""
        return np.frombuffer(self.vectors, "<f2").reshape(len(PROBE_TEXTS), self.dim).astype(np.float32)

    def cosines(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """[len(PROBE_TEXTS)], how near vectors of the texts are to those that were kept."""
        kept, now = self.rows.astype(np.float64), vectors.astype(np.float64)
        return (kept * now).sum(axis=1) / (np.linalg.norm(kept, axis=1) * np.linalg.norm(now, axis=1))


def encoder_file_of(root: str, record: EncoderRecord) -> EncoderFile:
    """What a dataset, or the folder of a fitted tree, keeps of its encoder.

    Raises:
        FormatError: it is missing, damaged, or of another encoder than the record. StorageError.
    """
    where = f"{root}/{ENCODER_FILE}"
    try:
        kept = EncoderFile.from_json(open_store(root).get(ENCODER_FILE), where)
    except MissingObjectError as error:
        raise FormatError(
            f"{where} is missing, without which nothing can be embedded as the dataset was. Restore the file, or write "
            "the dataset again."
        ) from error
    if kept.dim != record.dim:
        raise FormatError(f"{where}: must be of the {record.dim} numbers of the manifest, got {kept.dim}. Restore it.")
    return kept


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Vectors that an encoder must give; hashable, so that tasks carry it with their encoder."""

    kept: EncoderFile
    encoder: str
    """Its name, for the message."""
    root: str
    """What it embedded, for the message."""

    def check(self, encoder: TextEncoder) -> None:
        """Embed the texts and compare. Raises InputError: other vectors, or of another width."""
        vectors = encoder.embed(PROBE_TEXTS)
        if vectors.shape[1] != self.kept.dim:
            raise self._refusal(f"vectors of {vectors.shape[1]} numbers instead of {self.kept.dim}")
        cosines = self.kept.cosines(vectors)
        worst = int(cosines.argmin())
        if not cosines[worst] >= MIN_COSINE:
            text = " ".join(PROBE_TEXTS[worst][:40].split())
            raise self._refusal(f"a cosine of {cosines[worst]:.4f} where {MIN_COSINE} is needed (text: {text} …)")

    def _refusal(self, got: str) -> InputError:
        return InputError(
            f"encoder {self.encoder}: must give the vectors that embedded {self.root}. Its files and settings are "
            f"equal, but its vectors differ: got {got}. Another version of a library (sentence-transformers, "
            "transformers, torch, numpy) or other code of the model computes otherwise. Install the versions that "
            "manifest.json names under provenance.requests, or write the dataset again."
        )


class ProbedEncoder:
    """An encoder whose vectors are compared with a probe before its first ones are given out."""

    def __init__(self, encoder: TextEncoder, probe: Probe) -> None:
        self._encoder, self._probe = encoder, probe

    @cached_property
    def _checked(self) -> TextEncoder:
        self._probe.check(self._encoder)
        return self._encoder

    @cached_property
    def weights_sha256(self) -> str:
        """See TextEncoder."""
        return self._encoder.weights_sha256

    @cached_property
    def parts(self) -> Parts:
        """See TextEncoder."""
        return self._encoder.parts

    def record(self) -> EncoderRecord:
        """See TextEncoder. Compares, too."""
        return self._checked.record()

    def pieces(self, texts: Sequence[str]) -> Pieces:
        """See TextEncoder. Compares nothing, because this loads no weights."""
        return self._encoder.pieces(texts)

    def embed_pieces(self, pieces: Pieces) -> NDArray[np.float16]:
        """See TextEncoder."""
        return self._checked.embed_pieces(pieces)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """See TextEncoder."""
        return self._checked.embed(texts)
