"""Parts: the unit of work and of restarting. A part is a fixed stretch of documents, whatever the number of processes.

A worker tokenises, cuts and embeds a part and publishes three files by rename, the .json last: a part whose .json is
there is never made again. Windows are cut inside a part, so in joined packing each part drops its last partial
window: half a window in about 500 (2 MB of text at 1,024 tokens), 0.1 % of the tokens, the price of parts that do not
wait for each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.format import EncoderRecord, Packing
from crisp_stream.writers.documents import DropCounts
from crisp_stream.writers.embed import Encoder
from crisp_stream.writers.pool import worker_index
from crisp_stream.writers.shards import part_path, save_array
from crisp_stream.writers.windows import DocumentTokenizer, cut_documents, window_texts

PART_CHARACTERS = 2 << 20
"""A part ends with the document that brings it to this many characters."""


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How text becomes embedded windows."""

    tokenizer_folder: Path
    fast_tokenizer: bool
    """Encode through tiktoken."""
    window_tokens: int
    packing: Packing
    encoder: str | None
    """Folder or hub name; None is all-MiniLM-L6-v2."""
    max_length: int | None
    """Word pieces the encoder reads; None is what it ships with."""


@lru_cache(maxsize=2)
def load_tokenizer(folder: Path, fast: bool) -> DocumentTokenizer:
    """The tokenizer, kept for the next part of this process."""
    return DocumentTokenizer(folder, fast=fast)


@lru_cache(maxsize=2)
def load_encoder(name: str | None, max_length: int | None) -> Encoder:
    """The encoder, kept for the next part of this process; on the GPU of this worker where there are any."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Encoder(name, max_length=max_length, device=f"cuda:{worker_index() % gpus}" if gpus else "cpu")


@dataclass(frozen=True, kw_only=True)
class PartTask:
    """The documents of one part."""

    part: int
    texts: list[str]
    folder: Path
    settings: WindowSettings


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What became of a part."""

    num_documents: int
    num_characters: int
    num_windows: int
    num_tokens: int
    """In windows, end-of-text included, padding not."""
    dropped_tokens: dict[str, int]
    encoder: EncoderRecord

    @classmethod
    def load(cls, path: Path) -> PartRecord:
        """Read what `make_part` published."""
        record = json.loads(path.read_text())
        return cls(**{**record, "encoder": EncoderRecord(**record["encoder"])})


def split_in_parts(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Consecutive documents, at least `characters` of them together (the last part may have fewer)."""
    held: list[str] = []
    num_characters = 0
    for text in texts:
        held.append(text)
        num_characters += len(text)
        if num_characters >= characters:
            yield held
            held, num_characters = [], 0
    if held:
        yield held


def make_part(task: PartTask) -> int:
    """Tokenise, cut, embed and publish one part, unless it is there. Returns its number of windows."""
    path = part_path(task.folder, task.part, "json")
    if not path.exists():
        settings = task.settings
        tokenizer = load_tokenizer(settings.tokenizer_folder, settings.fast_tokenizer)
        encoder = load_encoder(settings.encoder, settings.max_length)
        documents = tokenizer.encode(task.texts)
        cut = cut_documents(
            documents,
            packing=settings.packing,
            window_tokens=settings.window_tokens,
            eot_id=tokenizer.eot_id,
            token_dtype=tokenizer.token_dtype,
        )
        embeddings = encoder.embed(window_texts(cut.tokens, tokenizer, tokenizer.eot_id))
        save_array(part_path(task.folder, task.part, "tokens.npy"), cut.tokens)
        save_array(part_path(task.folder, task.part, "embeddings.npy"), embeddings)
        tokens_read = sum(len(document) + 1 for document in documents)
        record = PartRecord(
            num_documents=len(task.texts),
            num_characters=sum(map(len, task.texts)),
            num_windows=len(cut.tokens),
            num_tokens=tokens_read - sum(cut.dropped_tokens.values()),
            dropped_tokens=cut.dropped_tokens,
            encoder=encoder.record(),
        )
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(asdict(record), sort_keys=True))
        temporary.replace(path)
    return PartRecord.load(path).num_windows


@dataclass(frozen=True, kw_only=True)
class PartsSummary:
    """All parts of a write together."""

    windows_per_part: list[int]
    num_documents: int
    num_characters: int
    num_tokens: int
    dropped_documents: dict[str, int]
    dropped_tokens: dict[str, int]
    encoder: EncoderRecord

    @property
    def num_windows(self) -> int:
        """Windows of all parts."""
        return sum(self.windows_per_part)

    @classmethod
    def of_parts(cls, folder: Path, num_parts: int, dropped_documents: dict[str, int]) -> PartsSummary:
        """Add up the records of the parts.

        Raises:
            InputError: the parts were embedded by different encoders (the weights changed between two runs).
        """
        records = [PartRecord.load(part_path(folder, part, "json")) for part in range(num_parts)]
        encoders = {record.encoder for record in records}
        if len(encoders) != 1:
            digests = ", ".join(sorted({encoder.weights_sha256[:12] for encoder in encoders}))
            raise InputError(
                f"{folder}: all parts must be embedded by one encoder, got weights {digests}. "
                "The encoder changed between two runs: delete this work folder and write again."
            )
        dropped_tokens = DropCounts()
        for record in records:
            dropped_tokens.merge(record.dropped_tokens)
        return cls(
            windows_per_part=[record.num_windows for record in records],
            num_documents=sum(record.num_documents for record in records),
            num_characters=sum(record.num_characters for record in records),
            num_tokens=sum(record.num_tokens for record in records),
            dropped_documents=dropped_documents,
            dropped_tokens=dropped_tokens.as_dict(),
            encoder=encoders.pop(),
        )

    def save(self, path: Path) -> None:
        """Write under its final name, whole or not at all."""
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(asdict(self), sort_keys=True))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> PartsSummary:
        """Read what `save` wrote."""
        record: dict[str, Any] = json.loads(path.read_text())
        return cls(**{**record, "encoder": EncoderRecord(**record["encoder"])})
