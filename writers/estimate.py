"""What a write will take: windows, tokens, minutes, disk and memory, by a sample of the input and a measurement.

The sample is the beginning of up to 32 files, spread over the input, 8 MB of text at most. Its text is tokenised and
cut, and some of its windows are embedded for some seconds, in one process of this machine with whatever else it does
meanwhile. So the figures are as good as the sample: a corpus whose files differ much in kind gives rougher ones. What
duplicates and evaluation sets remove is not known beforehand; it is not subtracted.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.processes import duration, num_processes
from crisp_stream.records.compression import Damage, decompressed
from crisp_stream.storage.inputs import open_input
from crisp_stream.table import aligned
from crisp_stream.writers.documents.bad_records import ANY_NUMBER, BadRecords
from crisp_stream.writers.documents.documents import read_input
from crisp_stream.writers.documents.drops import DropCounts
from crisp_stream.writers.documents.inputs import InputFile
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.embedding.embed import EncoderChoice, matching_encoder
from crisp_stream.writers.embedding.given_models import Models
from crisp_stream.writers.embedding.lsi import LSI_NAME, LsiEncoder
from crisp_stream.writers.embedding.student import DISTILLED_NAME, is_student
from crisp_stream.writers.embedding.text_encoder import TextEncoder
from crisp_stream.writers.engine.engine import ENCODERS_PER_GPU, LocalEngine
from crisp_stream.writers.engine.memory_limit import DRIVER_BYTES, ENCODER_BYTES, LEAST_WORK_BYTES, LIGHT_BYTES
from crisp_stream.writers.given_tokenizer import read_tokenizer
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages import windows as parts
from crisp_stream.writers.stages.models import teacher_choice, tree_settings
from crisp_stream.writers.tree.growth import end_of_growth, foretold
from crisp_stream.writers.windows import Cut, cut_documents, train_tokenizer, window_texts

SAMPLE_FILES = 32
SAMPLE_CHARACTERS = 8 << 20
_LEAST_CHARACTERS = 256 << 10
_TOKENISED_CHARACTERS = 2 << 20
_STRETCH_BYTES = 16 << 20
_EMBED_SECONDS = 10.0
_EMBEDDED_WINDOWS = 4096
_WINDOWS_AT_ONCE = 16
SORTED_BYTES_PER_SECOND = 120e6
"""Tokens that a core sorts into shards (docs/write/scale.md)."""
LSI_FIT_SECONDS, LSI_FIT_WINDOWS = 18.0, 20_000
"""CPU time of the fit of an LSI at its full sample (docs/write/embedding.md)."""
TOKENS_PER_SECOND = {"all-MiniLM-L6-v2": 3_600, "--reads all": 3_400, "distilled": 1_000_000, "lsi": 4_000_000}
"""Tokens that a core embeds by each encoder (docs/write/distilled.md); the first reads FIRST_TOKENS of a window."""
FIRST_TOKENS = 256
_PLACE_BYTES = 8
_VISIT_SECONDS, _VISIT_SECONDS_PER_NUMBER, _SEEDING_STEPS = 0.75e-6, 5e-9, 16
"""Of an example in a step of k-means (docs/write/tree.md), and steps that seeds take as long as."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a write will take."""

    documents: float
    characters: float
    tokens: float
    windows: float
    dataset_bytes: float
    work_bytes: float
    """Intermediate files beside the dataset, at the end."""
    memory_bytes: float
    processes: int
    encoders: int
    """Processes with an encoder at once."""
    seconds: dict[str, float]
    """Wall time of each stage, by its name."""
    rates: dict[str, str]
    """How fast one process is at each stage, and where that is from."""
    sample: str
    """What it is from."""
    tree: list[str]
    """Lines about the levels of the tree; none where one is given."""
    others: str
    """Line about the time that each encoder would take; empty where one is given."""

    def text(self) -> str:
        """For people, as `write --plan` prints it."""
        rows = [
            ("documents", f"{_rounded(self.documents)}"),
            ("text", f"{_size(self.characters)}"),
            ("tokens", f"{_rounded(self.tokens)}"),
            ("windows", f"{_rounded(self.windows)}"),
            ("dataset", _size(self.dataset_bytes)),
            ("intermediate files", f"{_size(self.work_bytes)} beside it"),
            ("memory", f"{_size(self.memory_bytes)} in {self.processes} processes"),
            ("time", f"about {duration(sum(self.seconds.values()))}, of which"),
            *((f"  {stage}", f"{duration(seconds)} ({self.rates[stage]})") for stage, seconds in self.seconds.items()),
        ]
        return "\n".join([f"estimate, from {self.sample}:", aligned(rows), *filter(None, [self.others]), *self.tree])


@dataclass(frozen=True, kw_only=True)
class _Sample:
    texts: list[str]
    num_files: int
    files: int
    """Files of the input."""
    characters_per_byte: float
    documents_per_byte: float
    total_bytes: int
    seconds: float

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


def estimate_write(options: WriteOptions, models: Models | None = None) -> Estimate:
    """Measure and estimate; writes nothing.

    Args:
        models: tokenizer, encoder and tree that are given.

    Raises:
        InputError: nothing to read, or no window's worth of text in the sample. Others as of a write.
    """
    sample = _read_sample(options)
    characters = sample.characters_per_byte * sample.total_bytes * (options.sample or 1.0)
    documents = sample.documents_per_byte * sample.total_bytes * (options.sample or 1.0)
    if options.limit is not None and documents > options.limit:
        characters, documents = characters * options.limit / documents, float(options.limit)
    cutting = _measure_cutting(options, models, sample)
    tokens, windows = characters * cutting.tokens_per_character, characters * cutting.windows_per_character
    embedding = _measure_embedding(options, models, cutting)
    processes, encoders = _processes(options, embedding)
    window_bytes = cutting.window_tokens * cutting.token_bytes
    reading_rate = sample.characters / max(sample.seconds, 1e-6)
    seconds = {
        "reading documents": characters / reading_rate / processes,
        "cutting windows": characters / cutting.characters_per_second / processes,
        "embedding windows": windows / embedding.windows_per_second / encoders + embedding.fit_seconds(windows),
        "sorting, writing shards": windows * window_bytes / SORTED_BYTES_PER_SECOND / processes,
    }
    tree = [] if models is not None else _tree_lines(options, windows)
    if models is None:
        seconds["fitting the tree"] = _tree_seconds(options, windows, embedding.dim) / processes
    rates = {
        "reading documents": f"measured {_size(reading_rate)}/s a process",
        "cutting windows": f"measured {_size(cutting.characters_per_second)}/s a process",
        "embedding windows": embedding.text(),
        "sorting, writing shards": f"at {_size(SORTED_BYTES_PER_SECOND)}/s a process, measured elsewhere",
        "fitting the tree": f"at {_rounded(1 / _visit_seconds(embedding.dim))} examples/s a process, measured "
        "elsewhere",
    }
    kept = characters * cutting.compressed_share
    return Estimate(
        documents=documents,
        characters=characters,
        tokens=tokens,
        windows=windows,
        dataset_bytes=windows * (window_bytes + 2 * _PLACE_BYTES),
        work_bytes=kept + windows * (2 * window_bytes + embedding.bytes_per_window + 2 * _PLACE_BYTES),
        memory_bytes=options.memory_bytes or _memory(processes, encoders, embedding),
        processes=processes,
        encoders=encoders,
        seconds=seconds,
        rates=rates,
        sample=f"{_rounded(len(sample.texts))} documents of {sample.num_files:,} of {sample.files:,} files "
        f"({_size(sample.characters)} of text)",
        tree=tree,
        others="" if models is not None else _by_encoder(options, windows, cutting.window_tokens, processes),
    )


def _by_encoder(options: WriteOptions, windows: float, window_tokens: int, processes: int) -> str:
    """A line with the time that each way of embedding would take on these cores, by rates measured elsewhere."""
    parts: list[str] = []
    for name, rate in TOKENS_PER_SECOND.items():
        tokens = min(FIRST_TOKENS, window_tokens) if name == "all-MiniLM-L6-v2" else window_tokens
        seconds = windows * tokens / rate / processes
        if name == LSI_NAME:
            seconds += LSI_FIT_SECONDS * min(1.0, windows / LSI_FIT_WINDOWS)
        if name == DISTILLED_NAME:
            read = min(options.teacher_windows, windows) * min(FIRST_TOKENS, window_tokens)
            seconds += read / TOKENS_PER_SECOND["all-MiniLM-L6-v2"] / processes
        parts.append(f"{name} {duration(seconds)}")
    return f"embedding by each encoder, without a GPU, at rates measured elsewhere: {', '.join(parts)}"


def _tree_lines(options: WriteOptions, windows: float) -> list[str]:
    """The levels of the tree, if its nodes are as uneven as measured, and a warning where some are missing."""
    settings, limit = tree_settings(options), options.fit_windows
    plans = foretold(windows if limit is None else min(windows, limit), settings)
    lines, num_leaves = [], 1
    for plan in plans:
        lines.append(f"tree, {plan.text(settings, num_leaves)}")
        num_leaves += plan.num_split * (settings.arity - 1)
    return [*lines, *end_of_growth(plans, settings, are_all=limit is None or limit >= windows)]


def _tree_seconds(options: WriteOptions, windows: float, dim: int) -> float:
    """CPU time of all nodes: k-means++ on a step's examples costs as much as a dozen steps; and a pass per level."""
    settings = tree_settings(options)
    plans = foretold(min(windows, options.fit_windows or windows), settings)
    steps = settings.steps + _SEEDING_STEPS
    visits = sum(plan.num_split * steps * min(plan.examples.median, settings.examples_per_step) for plan in plans)
    placed = windows * sum(plan.num_split > 0 for plan in plans[1:])
    return (visits + placed) * _visit_seconds(dim)


def _visit_seconds(dim: int) -> float:
    return _VISIT_SECONDS + dim * _VISIT_SECONDS_PER_NUMBER


def _read_sample(options: WriteOptions) -> _Sample:
    files = list_input_files(options.inputs, options.documents)
    at = sorted({round(place) for place in np.linspace(0, len(files) - 1, min(len(files), SAMPLE_FILES))})
    budget = max(SAMPLE_CHARACTERS // max(len(at), 1), _LEAST_CHARACTERS)
    texts: list[str] = []
    num_bytes, begun = 0.0, time.monotonic()
    for file in (files[number] for number in at):
        read, is_whole = _read_beginning(options, file, budget)
        texts += [text for text, _ in read]
        num_bytes += file.num_bytes if is_whole else _bytes_behind(file, read)
    if not texts or num_bytes <= 0:
        raise InputError(
            f"{', '.join(options.inputs)}: the sample must hold a document with text, got none in {len(at)} files. "
            "Check the files, the text column and the filters."
        )
    return _Sample(
        texts=texts,
        num_files=len(at),
        files=len(files),
        characters_per_byte=sum(map(len, texts)) / num_bytes,
        documents_per_byte=len(texts) / num_bytes,
        total_bytes=sum(file.num_bytes for file in files),
        seconds=time.monotonic() - begun,
    )


def _read_beginning(options: WriteOptions, file: InputFile, budget: int) -> tuple[list[tuple[str, int]], bool]:
    """Texts and rows from the beginning of a file, and whether that is all of it."""
    read: list[tuple[str, int]] = []
    characters = 0
    documents: Any = read_input(file, options.documents, DropCounts(), BadRecords(ANY_NUMBER))
    with closing(documents):
        for document in documents:
            if characters >= budget:
                return read, False
            read.append((document.text, document.row))
            characters += len(document.text)
    return read, True


def _bytes_behind(file: InputFile, read: Sequence[tuple[str, int]]) -> float:
    """Bytes of a file that what was read of its beginning stands for.

    By rows, where the file says how many it has; by lines of a stretch of it; else as if it held text alone.
    """
    rows = read[-1][1] + 1
    if file.url.endswith(".parquet"):
        import pyarrow.parquet as pq

        with open_input(file.url) as source:
            num_rows = pq.ParquetFile(source, pre_buffer=False).metadata.num_rows
        return file.num_bytes * rows / max(num_rows, 1)
    per_line = _bytes_per_line(file.url) if ".json" in file.url else None
    if per_line is not None:
        return min(rows * per_line, float(file.num_bytes))
    return min(float(sum(map(len, (text for text, _ in read)))), float(file.num_bytes))


def _bytes_per_line(url: str) -> float | None:
    """Stored bytes of a line, from the first megabytes of a file; None where it is damaged, or an array."""
    with suppress(CorruptInputError), open_input(url) as raw, Damage(url):
        stream = decompressed(url, raw)  # closes the file when it goes
        content = stream.read(_STRETCH_BYTES)
        num_lines = 0 if content.lstrip().startswith(b"[") else content.count(b"\n")
        return raw.tell() / num_lines if num_lines else None
    return None


@dataclass(frozen=True, kw_only=True)
class _Cutting:
    texts: list[str]
    """Of some windows, as the encoder reads them."""
    window_tokens: int
    token_bytes: int
    tokens_per_character: float
    windows_per_character: float
    characters_per_second: float
    compressed_share: float
    """Bytes of stored text for each character."""


def _measure_cutting(options: WriteOptions, models: Models | None, sample: _Sample) -> _Cutting:
    window_tokens = models.window_tokens if models else options.window_tokens
    texts = list(_head(sample.texts, _TOKENISED_CHARACTERS))
    with tempfile.TemporaryDirectory(prefix="crisp-stream-") as scratch:
        folder = Path(scratch)
        if models is not None:
            read_tokenizer(str(models.tokenizer)).save(folder)
        elif options.tokenizer is not None:
            read_tokenizer(options.tokenizer, eot_token=options.eot_token).save(folder)
        else:  # trained on other texts than those that are measured
            train_tokenizer(texts[::2], folder, vocab_size=options.vocab_size)
            texts = texts[1::2] or texts
        fast = DocumentTokenizer(folder).equals_tiktoken(texts[:16], log=lambda line: None)
        tokenizer = DocumentTokenizer(folder, fast=fast)
        begun = time.monotonic()
        encoded = tokenizer.encode(texts)
        cut = cut_documents(
            encoded,
            packing=options.packing,
            window_tokens=window_tokens,
            eot_id=tokenizer.eot_id,
            token_dtype=tokenizer.token_dtype,
        )
        window_text = window_texts(cut.tokens, tokenizer, tokenizer.eot_id)
        seconds = max(time.monotonic() - begun, 1e-6)
        num_characters = sum(map(len, texts))
        num_tokens = sum(len(ids) + 1 for ids in encoded)
        joined = "\n".join(texts).encode("utf-8", "surrogatepass")
        return _Cutting(
            texts=window_text or texts[:1],
            window_tokens=window_tokens,
            token_bytes=np.dtype(tokenizer.token_dtype).itemsize,
            tokens_per_character=num_tokens / num_characters,
            windows_per_character=_windows(options, cut, num_tokens, window_tokens) / num_characters,
            characters_per_second=num_characters / seconds,
            compressed_share=len(pa.compress(joined, codec="zstd", asbytes=True)) / num_characters,
        )


def _windows(options: WriteOptions, cut: Cut, num_tokens: int, window_tokens: int) -> float:
    return num_tokens / window_tokens if options.packing == "joined" else float(len(cut.tokens))


def _head(texts: Sequence[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)


@dataclass(frozen=True, kw_only=True)
class _Embedding:
    windows_per_second: float
    num_windows: int
    bytes_per_window: float
    """Of vectors and word pieces."""
    dim: int
    is_light: bool
    is_fitted: bool
    """An LSI of this corpus is to be fitted."""
    teacher_rate: float = 0.0
    """Stretches that a teacher embeds in a second, where a student is to be fitted."""
    teacher_windows: int = 0

    def text(self) -> str:
        """Where the rate is from."""
        if self.teacher_rate:
            return (
                f"the teacher measured {self.teacher_rate:,.1f} windows/s on {self.num_windows} windows, in one "
                f"process; then {self.windows_per_second:,.0f} windows/s a process, measured elsewhere"
            )
        return f"measured {self.windows_per_second:,.1f} windows/s a process on {self.num_windows} windows"

    def fit_seconds(self, windows: float) -> float:
        """The fit of an LSI, which is one task; or the work of a teacher in one process."""
        if self.teacher_rate:
            return min(self.teacher_windows, windows) / self.teacher_rate
        return LSI_FIT_SECONDS * min(1.0, windows / LSI_FIT_WINDOWS) if self.is_fitted else 0.0


def _measure_embedding(options: WriteOptions, models: Models | None, cutting: _Cutting) -> _Embedding:
    if models is None and options.encoder == DISTILLED_NAME:
        return _measure_teacher(options, cutting)
    fitted = models is None and options.encoder == LSI_NAME
    texts = cutting.texts[:_EMBEDDED_WINDOWS]
    encoder: TextEncoder
    if fitted:
        encoder, is_light = LsiEncoder.fit(texts if len(texts) > 1 else texts * 2), True
    else:
        choice = EncoderChoice(
            name=options.encoder, max_length=options.max_length, reads=options.reads, prompt=options.encoder_prompt
        )
        if is_student(options.encoder):
            choice = EncoderChoice(name=options.encoder, fitted=DISTILLED_NAME)
        if models is not None:
            choice = matching_encoder(models.encoder, options.encoder, models.root)
        is_light = choice.is_light
        encoder = parts.load_encoder(choice, None if is_light else parts.worker_device())
    encoder.embed(texts[:2])  # loads, and warms up
    done, piece_bytes, dim, begun = 0, 0, 0, time.monotonic()
    at_once = _WINDOWS_AT_ONCE if is_light or LocalEngine().has_gpus is False else len(texts)
    while done < len(texts) and time.monotonic() - begun < _EMBED_SECONDS:
        pieces = encoder.pieces(texts[done : done + at_once])
        dim = encoder.embed_pieces(pieces).shape[1]
        piece_bytes += 0 if is_light else int(getattr(pieces, "ids", np.zeros(0)).nbytes)
        done += at_once
    done = min(done, len(texts))
    return _Embedding(
        windows_per_second=done / max(time.monotonic() - begun, 1e-6),
        num_windows=done,
        bytes_per_window=2 * dim + piece_bytes / max(done, 1),
        dim=max(dim, 1),
        is_light=is_light,
        is_fitted=fitted,
    )


def _measure_teacher(options: WriteOptions, cutting: _Cutting) -> _Embedding:
    """The teacher's rate is measured; a student's is one that was measured elsewhere."""
    choice, share = teacher_choice(options), min(1.0, FIRST_TOKENS / cutting.window_tokens)
    texts = [text[: max(1, round(len(text) * share))] for text in cutting.texts[:_EMBEDDED_WINDOWS]]
    encoder = parts.load_encoder(choice, None if choice.is_light else parts.worker_device())
    dim = encoder.embed(texts[:2]).shape[1]
    done, begun = 0, time.monotonic()
    while done < len(texts) and time.monotonic() - begun < _EMBED_SECONDS:
        encoder.embed(texts[done : done + _WINDOWS_AT_ONCE])
        done += _WINDOWS_AT_ONCE
    done = min(done, len(texts))
    return _Embedding(
        windows_per_second=TOKENS_PER_SECOND[DISTILLED_NAME] / cutting.window_tokens,
        num_windows=done,
        bytes_per_window=2 * dim,
        dim=dim,
        is_light=True,
        is_fitted=False,
        teacher_rate=done / max(time.monotonic() - begun, 1e-6),
        teacher_windows=options.teacher_windows,
    )


def _processes(options: WriteOptions, embedding: _Embedding) -> tuple[int, int]:
    """Processes, and processes with an encoder; two encoders on a GPU share it."""
    engine = LocalEngine(
        processes=num_processes(options.processes),
        memory_bytes=options.memory_bytes if options.engine == "local" else None,
    )
    light = engine.workers("light")
    if embedding.is_light:
        return light, light
    encoders = engine.workers("encoder")
    return light, max(1, encoders // ENCODERS_PER_GPU) if engine.has_gpus else encoders


def _memory(processes: int, encoders: int, embedding: _Embedding) -> float:
    light = DRIVER_BYTES + (processes * (LIGHT_BYTES + LEAST_WORK_BYTES) if processes > 1 else 0)
    return max(light, 0 if embedding.is_light else DRIVER_BYTES + encoders * ENCODER_BYTES)


def _rounded(number: float) -> str:
    """Three digits that say something: 1,230,000."""
    if number < 1000:
        return f"{round(number):,}"
    digits = 10 ** (int(math.log10(number)) - 2)
    return f"{round(number / digits) * digits:,}"


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:,.0f} {unit}" if unit in ("B", "kB") or num_bytes >= 100 else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError
