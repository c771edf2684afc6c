"""Static encoders (sentence-transformers' StaticEmbedding, model2vec): the mean of one vector for each token.

No network is run, so neither torch nor a GPU is needed: the table of vectors is mapped from its file, and the processes
of a machine hold it once. All of a window is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.writers.embedding.encoder_digest import Parts, digest_of, encoder_parts, modules_of
from crisp_stream.writers.embedding.encoder_files import find_file, prompt_of, resolve_encoder, weights_files
from crisp_stream.writers.embedding.pieces import Pieces, unit_vectors

_TYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I32": np.int32, "I64": np.int64}
_TABLES = ("embedding.weight", "embeddings")
"""Names of the table of vectors, in sentence-transformers and in model2vec."""
_TEXTS_AT_ONCE = 64


class StaticEncoder:
    """A table of vectors, one for each token; a text's vector is their mean, scaled to norm 1."""

    def __init__(self, name: str, *, max_length: int | None = None, reads: str = "first", prompt: str | None = None):
        """Args:
            name: folder or hub name.
            max_length: None, as all of a text is read.
            prompt: stands before every text; None is what the encoder ships with.

        Raises:
            InputError: another way of reading than all of the text, or modules that are not supported.
        """
        self._source, self.name = resolve_encoder(name)
        if max_length or reads != "first":
            option = "max_length" if max_length else "reads"
            raise InputError(
                f"{option}: must be left out with the static encoder {self.name}, which reads all of a window, got "
                f"{max_length or reads}. Leave it out."
            )
        modules = modules_of(self._source)
        if len(modules) > 1:
            raise InputError(
                f"encoder {self._source}: behind a StaticEmbedding there may be a Normalize alone, got "
                f"{modules[1].kind}. Choose another encoder."
            )
        self._folder = modules[0].folder
        self.prompt = prompt_of(self._source) if prompt is None else prompt

    @cached_property
    def weights_sha256(self) -> str:
        """Hex digest of what decides the vectors. Raises InputError."""
        return digest_of(self.parts)

    @cached_property
    def parts(self) -> Parts:
        """What decides the vectors, by part. Raises InputError."""
        return encoder_parts(self._source, max_length=0, reads="first", prompt=self.prompt)

    @cached_property
    def _tokenizer(self) -> Any:
        path = find_file(self._source, f"{self._folder}/tokenizer.json" if self._folder else "tokenizer.json")
        library: Any = import_extra("tokenizers", extra="write", purpose="embedding text")
        try:
            tokenizer = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"encoder {self._source}: tokenizer.json must be readable, got: {error}.") from error
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _tables(self) -> dict[str, NDArray[Any]]:
        [file, *more] = weights_files(self._source, self._folder)
        if more or file.suffix != ".safetensors":
            raise InputError(
                f"encoder {self._source}: a static encoder's vectors must be one model.safetensors, got {file.name}. "
                "Load it with sentence-transformers and save it again."
            )
        return _mapped(file, self._source)

    @cached_property
    def _vectors(self) -> NDArray[Any]:
        named = [self._tables[name] for name in _TABLES if name in self._tables]
        if not named or named[0].ndim != 2:
            raise InputError(
                f"encoder {self._source}: model.safetensors must hold {' or '.join(_TABLES)}, got neither."
            )
        return named[0]

    def record(self) -> EncoderRecord:
        """The encoder's entry in the manifest."""
        return EncoderRecord(
            name=self.name,
            weights_sha256=self.weights_sha256,
            max_length=0,
            pooling="static",
            dim=self._vectors.shape[1],
            prompt=self.prompt,
        )

    def pieces(self, texts: Sequence[str]) -> Pieces:
        """Tokenise on one core."""
        self._tokenizer.encode_special_tokens = False
        ids = [
            encoding.ids
            for start in range(0, len(texts), _TEXTS_AT_ONCE)
            for encoding in self._tokenizer.encode_batch_fast(
                [self.prompt + text for text in texts[start : start + _TEXTS_AT_ONCE]], add_special_tokens=False
            )
        ]
        return Pieces.from_sequences([[one] for one in ids], self._tokenizer.get_vocab_size(with_added_tokens=True))

    def embed_pieces(self, pieces: Pieces) -> NDArray[np.float16]:
        """[num_texts, dim], L2 norm 1 up to float16 rounding; a text without a token gets the first axis."""
        vectors = np.zeros((len(pieces), self._vectors.shape[1]), np.float32)
        ends = np.cumsum(pieces.lengths, dtype=np.int64)
        for row, (start, end) in enumerate(zip(ends - pieces.lengths, ends, strict=True)):
            if end > start:
                vectors[row] = self._of_tokens(pieces.ids[start:end]).mean(axis=0)
        return unit_vectors(vectors, pieces.lengths, pieces.sequences_per_text)

    def _of_tokens(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        rows = self._tables["mapping"][ids] if "mapping" in self._tables else ids
        try:
            vectors = self._vectors[rows].astype(np.float32)
        except IndexError as error:
            raise InputError(
                f"encoder {self._source}: must have a vector for every token, got {len(self._vectors):,} for ids up to "
                f"{int(ids.max()):,}. Its files are not of one model."
            ) from error
        weights = self._tables.get("weights")
        return vectors if weights is None else vectors * weights[ids].astype(np.float32)[:, None]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """`pieces` and `embed_pieces`."""
        return self.embed_pieces(self.pieces(texts))


def _mapped(file: Path, source: str) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file, mapped. Raises InputError."""
    try:
        with file.open("rb") as opened:
            num_bytes = int.from_bytes(opened.read(8), "little")
            header: dict[str, Any] = json.loads(opened.read(num_bytes))
        arrays = {}
        for key, entry in header.items():
            if key != "__metadata__":
                dtype, shape = np.dtype(_TYPES[entry["dtype"]]), tuple(entry["shape"])
                start = 8 + num_bytes + int(entry["data_offsets"][0])
                arrays[key] = np.asarray(np.memmap(file, dtype, "r", start, shape))
    except KeyError as error:
        raise InputError(
            f"encoder {source}: a static encoder's vectors must be of {', '.join(_TYPES)}, got {error}. "
            "Save it in float32."
        ) from error
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"encoder {source}: {file.name} must be readable, got: {error}. Restore the file.") from error
    return arrays
