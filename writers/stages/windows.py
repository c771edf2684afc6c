"""Stages `windows` and `embeddings`: a batch of documents becomes a part, windows of tokens and their vectors.

Windows are cut inside a part, so in joined packing each part drops its last partial window: half a window in about
500 (2 MB of text at 1,024 tokens), 0.1 % of the tokens, the price of parts that do not wait for each other. Cutting
and embedding are separate tasks: the first needs CPUs, the second the encoder, on a GPU where there is one, and
another encoder or tree does not cut again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.format.manifest import EncoderRecord, Packing, Reads
from crisp_stream.format.mds import TokenDtype
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.processes import report_units, worker_index
from crisp_stream.writers.cleaning.dropped import repeated_rows, save_listed
from crisp_stream.writers.documents.drops import merged_counts
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.embedding.fitted import FITTED_FILES
from crisp_stream.writers.embedding.pieces import Pieces
from crisp_stream.writers.embedding.probe import ENCODER_NAME, EncoderFile, Probe
from crisp_stream.writers.embedding.student import DISTILLED_NAME, token_pieces
from crisp_stream.writers.embedding.text_encoder import TextEncoder
from crisp_stream.writers.engine.tasks import Kind, Record, Task, file_sizes, task_key, write_files
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.stages.batches import DROPPED_LIST, Batch, read_batch
from crisp_stream.writers.stages.removal.duplicates import RemovedDocuments
from crisp_stream.writers.windows import cut_documents, window_texts

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json")
_ROWS_AT_ONCE = 128
"""Windows whose text is held, or that a fitted encoder embeds, at once. A part of 470 windows at once is 4 % faster and
takes 20 MB instead of 6."""


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """Settings by which text becomes windows."""

    tokenizer: str
    """Folder of the workspace with the tokenizer's files; its name holds their fingerprint."""
    fast_tokenizer: bool
    """Encode through tiktoken, which gives the same ids."""
    window_tokens: int
    packing: Packing


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The encoder of windows, and its settings."""

    name: str | None
    """Folder or hub name; None is all-MiniLM-L6-v2."""
    max_length: int | None = None
    """Word pieces the encoder reads at once; None is what it ships with."""
    reads: Reads = "first"
    """The first `max_length` word pieces of a window, or all of them."""
    prompt: str | None = None
    """Stands before the text of every window; None is what the encoder ships with."""
    static: bool = False
    """It is a table of vectors, for which no network is run."""
    weights_sha256: str = ""
    fitted: str | None = None
    """Folder of the workspace with the files of an encoder that a write fitted, whose kind is `name`; None before."""
    teacher: EncoderSettings | None = None
    """Encoder that a student is to be fitted to."""
    probe: Probe | None = None
    """Vectors that a given encoder must give; None where the encoder is new."""

    def choice(self, workspace: Workspace) -> EncoderChoice:
        """The encoder for a process of this machine to open."""
        if self.fitted is not None:
            assert self.name is not None
            files = workspace.kept(*(f"{self.fitted}/{name}" for name in FITTED_FILES[self.name]))
            return EncoderChoice(name=str(files[0].parent), fitted=self.name, probe=self.probe)
        return EncoderChoice(
            name=self.name, max_length=self.max_length, reads=self.reads, prompt=self.prompt, probe=self.probe
        )

    @property
    def is_light(self) -> bool:
        """True where no network is run."""
        return self.is_fitted or self.static

    @property
    def is_fitted(self) -> bool:
        """True where a write fits it, or fitted it."""
        return self.name in FITTED_FILES


@lru_cache(maxsize=2)
def load_tokenizer(folder: Path, fast: bool) -> DocumentTokenizer:
    """The tokenizer, kept for the next part of this process."""
    return DocumentTokenizer(folder, fast=fast)


@lru_cache(maxsize=2)
def _opened(choice: EncoderChoice, device: str | None) -> TextEncoder:
    return choice.open(device=device)


def load_encoder(choice: EncoderChoice, device: str | None) -> TextEncoder:
    """The encoder, kept for the next part of this process."""
    return _opened(choice, device)


def forget_encoders() -> None:
    """Let go of the memory of encoders, which no later stage needs."""
    _opened.cache_clear()


def worker_device() -> str:
    """cuda:N, spread over the workers of this machine, or cpu."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{worker_index() % gpus}" if gpus else "cpu"


def tokenizer_of(workspace: Workspace, settings: WindowSettings) -> DocumentTokenizer:
    """The tokenizer of a write, in any process."""
    files = workspace.kept(*(f"{settings.tokenizer}/{name}" for name in TOKENIZER_NAMES))
    return load_tokenizer(files[0].parent, settings.fast_tokenizer)


SPANS = pa.schema(
    [
        ("part", pa.uint32()),
        ("file", pa.uint32()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("first_token", pa.int64()),
        ("num_tokens", pa.int64()),
    ]
)
"""One row per document of a part: window `index` of the part holds its tokens index · window_tokens and on, and
`first_token` counts in the same line of tokens. `num_tokens` does not count end-of-text."""


@dataclass(frozen=True, kw_only=True)
class WindowsTask(Task):
    """Tokenise a batch of documents and cut it into windows; `number` is the part's."""

    stage: ClassVar[str] = "windows"
    title: ClassVar[str] = "cutting windows"
    version: ClassVar[int] = 2

    batch: str
    """Name of the batch's file."""
    first_document: int
    """Number of its first document among those of its `DocumentsTask`."""
    removed: RemovedDocuments | None
    """Documents of the batch and of others that repeat others."""
    windows: WindowSettings
    encoder: EncoderSettings

    def settings(self) -> Any:
        """Values that determine the windows and word pieces; for a fitted encoder there are none."""
        digest = None if self.encoder.is_fitted else self.encoder.weights_sha256
        return [self.batch, self.first_document, self.windows, digest]

    def make(self) -> Record:
        """Write tokens, places of the windows, spans of the documents, and word pieces for the encoder."""
        batch, dropped = self._selected()
        tokenizer = tokenizer_of(self.workspace, self.windows)
        encoded = tokenizer.encode(batch.texts)
        num_documents, num_characters = len(batch.texts), sum(map(len, batch.texts))
        batch.texts.clear()  # a large one takes more than its tokens
        cut = cut_documents(
            encoded,
            packing=self.windows.packing,
            window_tokens=self.windows.window_tokens,
            eot_id=tokenizer.eot_id,
            token_dtype=tokenizer.token_dtype,
        )
        self.workspace.save_array(self.file("tokens.npy"), cut.tokens)
        self.workspace.save_array(self.file("places.npy"), cut.places)
        kinds = ["tokens.npy", "places.npy", "spans.arrow"]
        self._write_spans(batch, encoded)
        if dropped is not None:
            with self.workspace.created(self.file(DROPPED_LIST)) as path:
                save_listed(path, [dropped])
            kinds.append(DROPPED_LIST)
        if not self.encoder.is_fitted:
            encoder = load_encoder(self.encoder.choice(self.workspace), None)
            pieces = Pieces.joined([encoder.pieces(texts) for texts in texts_in_batches(cut.tokens, tokenizer)])
            with self.workspace.created(self.file("pieces.npz")) as path:
                pieces.save(path)
            kinds.append("pieces.npz")
        num_tokens = sum(len(document) + 1 for document in encoded) - sum(cut.dropped_tokens.values())
        return {
            "num_units": len(cut.tokens),
            "num_windows": len(cut.tokens),
            "num_documents": num_documents,
            "num_characters": num_characters,
            "num_tokens": num_tokens,
            "dropped_tokens": cut.dropped_tokens,
            "repeats": 0 if dropped is None else len(dropped),
            "files": file_sizes(self, *map(self.file, kinds)),
        }

    def _selected(self) -> tuple[Batch, pa.Table | None]:
        """The documents that are kept, and the list of the others, if any."""
        batch = read_batch(self.workspace, self.batch)
        if self.removed is None:
            return batch, None
        at, removed = batch.removed(self.removed.load(self.workspace))
        if not len(at):
            return batch, None
        return batch.without(at), repeated_rows(batch.files[at], batch.rows[at], [batch.ids[n] for n in at], removed)

    def _write_spans(self, batch: Batch, encoded: list[NDArray[Any]]) -> None:
        tokens_per_document = np.array([len(document) for document in encoded], np.int64)
        if self.windows.packing == "joined":
            room = tokens_per_document + 1
        else:
            room = -(-(tokens_per_document + 1) // self.windows.window_tokens) * self.windows.window_tokens
        table = pa.table(
            [
                np.full(len(encoded), self.number, np.uint32),
                batch.files,
                batch.rows,
                pa.array(batch.ids, pa.string()),
                np.cumsum(room) - room,
                tokens_per_document,
            ],
            schema=SPANS,
        )
        with self.workspace.created(self.file("spans.arrow")) as path, pa.OSFile(str(path), "wb") as sink:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.ipc.new_file(sink, SPANS, options=options) as writer:
                writer.write_table(table)


@dataclass(frozen=True, kw_only=True)
class EncoderTask(Task):
    """Open the encoder and embed its probe, so that what is wrong with it shows before documents are read."""

    stage: ClassVar[str] = "encoder"
    title: ClassVar[str] = "trying the encoder"
    version: ClassVar[int] = 2

    encoder: EncoderSettings

    @property
    def kind(self) -> Kind:
        """As of the tasks that embed."""
        return "light" if self.encoder.is_light else "encoder"

    def settings(self) -> Any:
        """Digest of everything that decides the vectors, and those that it must give."""
        probe = self.encoder.probe
        return [self.encoder.weights_sha256, None if probe is None else probe.kept.vectors.hex()]

    def make(self) -> Record:
        """Write what a dataset keeps of its encoder below the task's key; the record says what the manifest will."""
        record, kept = self.tried()
        return write_files(self, {ENCODER_NAME: kept.to_json()}, encoder=asdict(record))

    def tried(self) -> tuple[EncoderRecord, EncoderFile]:
        """Try the encoder and write nothing. Raises InputError."""
        device = None if self.encoder.is_light else worker_device()
        encoder = load_encoder(self.encoder.choice(self.workspace), device)
        return encoder.record(), EncoderFile.of(encoder)


@dataclass(frozen=True, kw_only=True)
class EmbeddingsTask(Task):
    """Embed the windows of a part."""

    stage: ClassVar[str] = "embeddings"
    title: ClassVar[str] = "embedding windows"

    windows_key: str
    """Key of the part's `WindowsTask`."""
    windows: WindowSettings
    encoder: EncoderSettings

    @property
    def kind(self) -> Kind:
        """A fitted and a static encoder are light."""
        return "light" if self.encoder.is_light else "encoder"

    def settings(self) -> Any:
        """The weights; all else is in the inputs."""
        return [self.encoder.weights_sha256, self.encoder.fitted]

    def make(self) -> Record:
        """Write [num_windows, dim] float16, L2-normalised."""
        choice = self.encoder.choice(self.workspace)
        if choice.fitted:
            encoder = load_encoder(choice, None)
            tokenizer = tokenizer_of(self.workspace, self.windows)
            tokens = self.workspace.load_array(f"{self.windows_key}.tokens.npy")
            embeddings = np.concatenate(
                [
                    _embed_and_report(encoder, window_pieces(choice, encoder, rows, tokenizer))
                    for rows in _in_batches(tokens)
                ]
            )
        else:
            encoder = load_encoder(choice, None if self.encoder.is_light else worker_device())
            with self.workspace.opened(f"{self.windows_key}.pieces.npz") as path:
                embeddings = encoder.embed_pieces(Pieces.load(path))
        self.workspace.save_array(self.file("embeddings.npy"), embeddings)
        return {
            "num_units": len(embeddings),
            "encoder": asdict(encoder.record()),
            "files": file_sizes(self, self.file("embeddings.npy")),
        }


def texts_in_batches(tokens: NDArray[Any], tokenizer: DocumentTokenizer) -> Iterator[list[str]]:
    """The texts of windows, of some at a time; one batch at least."""
    for rows in _in_batches(tokens):
        yield window_texts(rows, tokenizer, tokenizer.eot_id)


def _in_batches(tokens: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, max(len(tokens), 1), _ROWS_AT_ONCE):
        yield tokens[start : start + _ROWS_AT_ONCE]


def window_pieces(
    choice: EncoderChoice, encoder: TextEncoder, tokens: NDArray[Any], tokenizer: DocumentTokenizer
) -> Pieces:
    """What an encoder reads of windows [num_windows, window_tokens]: their ids where it is a student, else word pieces
    of their text."""
    if choice.fitted == DISTILLED_NAME:
        return token_pieces(tokens, tokenizer.eot_id)
    return encoder.pieces(window_texts(tokens, tokenizer, tokenizer.eot_id))


def _embed_and_report(encoder: TextEncoder, pieces: Pieces) -> NDArray[np.float16]:
    embeddings = encoder.embed_pieces(pieces)
    report_units(len(embeddings))
    return embeddings


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part, as later stages know it."""

    number: int
    num_windows: int
    windows_key: str
    embeddings_key: str
    fingerprint: str
    """Fingerprint of its embeddings task, which depends on its windows."""


class Parts(Sequence[Part]):
    """Parts, held as rows of 24 bytes; a `Part` is made when it is needed. A slice of them is one of rows."""

    ROW = np.dtype([("number", "<u4"), ("num_windows", "<u4"), ("windows", "<u8"), ("embeddings", "<u8")])
    """Number and windows of a part, and the fingerprints of its two tasks."""

    def __init__(self, rows: NDArray[np.void]) -> None:
        """`rows`: [num_parts] of ROW."""
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Part: ...
    @overload
    def __getitem__(self, at: slice) -> Parts: ...
    def __getitem__(self, at: int | slice) -> Part | Parts:
        if isinstance(at, slice):
            return Parts(self._rows[at])
        number, num_windows, windows, embeddings = self._rows[at].tolist()
        is_embedded = embeddings != 0
        return Part(
            number=number,
            num_windows=num_windows,
            windows_key=task_key(WindowsTask.stage, number, f"{windows:016x}"),
            embeddings_key=task_key(EmbeddingsTask.stage, number, f"{embeddings:016x}") if is_embedded else "",
            fingerprint=f"{embeddings if is_embedded else windows:016x}",
        )

    def where(self, chosen: NDArray[np.bool_]) -> Parts:
        """Those of the parts that are chosen."""
        return Parts(self._rows[chosen])


def chosen_parts(parts: Sequence[Part], keep: Callable[[Part], bool]) -> Sequence[Part]:
    """The parts that `keep` says, held as `parts` are."""
    if isinstance(parts, Parts):
        return parts.where(np.fromiter(map(keep, parts), np.bool_, len(parts)))
    return tuple(filter(keep, parts))


class PartCounts:
    """What the records of all `WindowsTask`s say together; of each part only the number of its windows is
    held, and whether it has repeats."""

    def __init__(self, num_parts: int, *, first_part: int) -> None:
        """The tasks are numbered from `first_part` on."""
        self.windows_per_part = np.zeros(num_parts, np.uint32)
        self.has_repeats = np.zeros(num_parts, np.bool_)
        """Whether documents of each were removed as duplicates."""
        self.sums: Counter[str] = Counter()
        """Of the numbers of documents, characters and tokens, by their names in a record."""
        self.dropped_tokens: Counter[str] = Counter()
        self._first_part = first_part

    def add(self, number: int, record: Record) -> None:
        """Take the record of a task."""
        self.windows_per_part[number - self._first_part] = record["num_windows"]
        self.has_repeats[number - self._first_part] = record["repeats"] > 0
        for name in ("num_documents", "num_characters", "num_tokens"):
            self.sums[name] += int(record[name])
        self.dropped_tokens.update(record["dropped_tokens"])


@dataclass(frozen=True, kw_only=True)
class PartsSummary:
    """All parts of a write together."""

    num_windows: int
    num_documents: int
    num_characters: int
    num_tokens: int
    dropped_tokens: dict[str, int]
    token_dtype: TokenDtype
    encoder: EncoderRecord

    @classmethod
    def of(cls, counts: PartCounts, *, encoder: EncoderRecord, token_dtype: TokenDtype) -> PartsSummary:
        """The counts, with what is known of all windows."""
        return cls(
            num_windows=int(counts.windows_per_part.sum()),
            num_documents=counts.sums["num_documents"],
            num_characters=counts.sums["num_characters"],
            num_tokens=counts.sums["num_tokens"],
            dropped_tokens=merged_counts([counts.dropped_tokens]),
            token_dtype=token_dtype,
            encoder=encoder,
        )
