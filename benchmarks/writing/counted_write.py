"""A real write of which every task is measured: CPU time, memory, and the bytes and requests of an object store.

The store is a folder that takes an object store's place below `s3://counted/`, so that a write goes the way of an
object store (copies on local disk, ranges, uploads) and each operation is counted as the requests that it takes there:
a listing one per 1,000 objects, an upload above the client's part size its parts and two more. All tasks run in this
process, one after the other. Requests for the claim of a root, which is looked at twice a second, are left out.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.support.measure import memory_bytes, reset_peak
from crisp_stream.records.compression import opened
from crisp_stream.storage.object_client import UPLOAD_PART_BYTES
from crisp_stream.storage.store import FolderStore
from crisp_stream.writers.engine import engine as engines
from crisp_stream.writers.engine.tasks import Record, Task, execute
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.claim import CLAIM
from crisp_stream.writers.write import write

PREFIX = "s3://counted"
DRIVER = "driver"
"""Stage of what the command itself does between tasks."""
LISTED_PER_REQUEST = 1000
PUT_PART_BYTES = 5 << 20
"""Part size of the client where it puts bytes that it has in memory."""


def uploads(num_bytes: int, part_bytes: int = UPLOAD_PART_BYTES) -> int:
    """PUT and POST requests that an upload takes."""
    return 1 if num_bytes <= part_bytes else -(-num_bytes // part_bytes) + 2


@dataclass
class Cost:
    """What tasks took together."""

    tasks: int = 0
    cpu: float = 0.0
    read: int = 0
    written: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    """By GET, PUT (and POST), HEAD, LIST, DELETE."""
    memory: int = 0
    """Most that a task added to what the process held before it."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A write, measured."""

    stages: dict[str, Cost]
    """In the order of their first task; the driver last."""
    records: dict[str, list[tuple[Task, Record, float]]]
    """Task, record and CPU seconds of every task, by stage."""
    seconds: float
    peak: int
    """Most memory that the process held."""


class _Tally:
    def __init__(self) -> None:
        self.stage = DRIVER
        self.costs: defaultdict[str, Cost] = defaultdict(Cost)
        self.records: defaultdict[str, list[tuple[Task, Record, float]]] = defaultdict(list)
        self._lock = threading.Lock()

    def count(self, path: str, kind: str, number: int = 1, *, read: int = 0, written: int = 0) -> None:
        if path == CLAIM:
            return
        with self._lock:
            cost = self.costs[self.stage]
            cost.requests[kind] += number
            cost.read += read
            cost.written += written

    def execute(self, task: Task) -> Record:
        self.stage = task.stage
        reset_peak()
        held, began = memory_bytes("VmRSS"), time.process_time()
        try:
            record = execute(task)
        finally:
            self.stage = DRIVER
        seconds = time.process_time() - began
        cost = self.costs[task.stage]
        cost.tasks += 1
        cost.cpu += seconds
        cost.memory = max(cost.memory, memory_bytes("VmHWM") - held)
        self.records[task.stage].append((task, record, seconds))
        return record


class CountedStore:
    """A folder in the place of an object store."""

    is_local = False

    def __init__(self, folder: Path, tally: _Tally, url: str, *, timeout: float = 0.0) -> None:
        self.url = url
        self._store: Any = FolderStore(folder / url.removeprefix(PREFIX).strip("/"))
        self._tally = tally

    def get(self, path: str) -> bytes:
        self._tally.count(path, "GET")
        content = self._store.get(path)
        self._tally.count(path, "GET", 0, read=len(content))
        return content

    def get_range(self, path: str, start: int, length: int) -> bytes:
        content = self._store.get_range(path, start, length)
        self._tally.count(path, "GET", read=len(content))
        return content

    def get_versioned(self, path: str) -> tuple[bytes, Any]:
        self._tally.count(path, "GET")
        return self._store.get_versioned(path)

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        self._tally.count(path, "PUT", uploads(len(content), PUT_PART_BYTES), written=len(content))
        self._store.put(path, content, create=create)

    def replace(self, path: str, content: bytes, version: Any) -> None:
        self._tally.count(path, "PUT", written=len(content))
        self._store.replace(path, content, version)

    def put_file(self, path: str, source: Path) -> None:
        num_bytes = source.stat().st_size
        self._tally.count(path, "PUT", uploads(num_bytes), written=num_bytes)
        self._store.put_file(path, source)

    def object_bytes(self, path: str) -> int:
        self._tally.count(path, "HEAD")
        return self._store.object_bytes(path)

    def exists(self, path: str) -> bool:
        self._tally.count(path, "HEAD")
        return self._store.exists(path)

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        found = self._store.list(prefix)
        self._tally.count(prefix, "LIST", max(1, -(-len(found) // LISTED_PER_REQUEST)))
        return found

    def sizes(self, prefix: str = "") -> Any:
        found = self._store.sizes(prefix)
        self._tally.count(prefix, "LIST", max(1, -(-len(found) // LISTED_PER_REQUEST)))
        return found

    def delete(self, path: str) -> None:
        self._tally.count(path, "DELETE")
        self._store.delete(path)

    def delete_version(self, path: str, version: Any) -> None:
        self._tally.count(path, "DELETE")
        self._store.delete_version(path, version)


def measured_write(inputs: Sequence[str], folder: Path, **options: Any) -> Measured:
    """Write a dataset below `folder`, and measure it. `options` are those of a write."""
    tally = _Tally()
    asked = WriteOptions(
        inputs=list(inputs), out=f"{PREFIX}/data", work=f"{PREFIX}/work", processes=1, keep_work=True, **options
    )
    _prepare()
    began, cpu = time.monotonic(), time.process_time()
    reset_peak()
    with (
        mock.patch("crisp_stream.storage.object_store.ObjectStore", partial(CountedStore, folder, tally)),
        mock.patch.object(engines, "execute", tally.execute),
    ):
        write(asked, log=lambda line: None)
    driver = tally.costs.pop(DRIVER, Cost())
    driver.cpu = time.process_time() - cpu - sum(cost.cpu for cost in tally.costs.values())
    return Measured(
        stages={**tally.costs, DRIVER: driver},
        records=dict(tally.records),
        seconds=time.monotonic() - began,
        peak=memory_bytes("VmHWM"),
    )


def _prepare() -> None:
    """Load what stages import on first use, and let no library start threads, as in a worker."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for module in ("pyarrow.parquet", "tokenizers", "tiktoken", "sklearn.cluster", "faiss", "scipy.sparse"):
        importlib.import_module(module)


def make_texts(
    folder: Path, characters: int, *, texts: Sequence[str] = (), document_characters: int = 3000, seed: int = 0
) -> tuple[str, ...]:
    """Files of JSON lines with that much text: of `texts`, with other cuts each time it is read, or else made-up words.

    Each document has `document_characters`. Files hold 64 MB at most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made, written, paths = 0, 1 << 60, list[Path]()
    with contextlib.ExitStack() as stack:
        file: Any = None
        for document in _documents(texts, document_characters, seed):
            if made >= characters:
                break
            if written > 64 << 20:
                paths.append(folder / f"{len(paths):04d}.jsonl")
                file, written = stack.enter_context(paths[-1].open("w")), 0
            file.write(json.dumps({"text": document}) + "\n")
            made, written = made + len(document), written + len(document)
    return tuple(map(str, paths))


def _documents(texts: Sequence[str], length: int, seed: int) -> Iterator[str]:
    for turn in range(1 << 30):
        held = ""
        for piece in _texts_of(texts) if texts else _made_up(seed + turn):
            held += (piece[turn * 7 % 100 :] if texts else piece) + "\n"
            while len(held) >= length:
                yield held[:length]
                held = held[length:]


def _texts_of(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        with opened(path) as lines:
            for line in lines:
                yield json.loads(line)["text"]


def _made_up(seed: int) -> Iterator[str]:
    """Words of Zipf's frequencies, a million characters at a time."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, size=size)) for size in rng.integers(2, 9, 20_000)]
    shares = 1 / np.arange(3, len(words) + 3)
    for _ in range(64):
        yield " ".join(words[at] for at in rng.choice(len(words), 1 << 17, p=shares / shares.sum()))


def make_encoder(folder: Path, *, dim: int = 32, seed: int = 0) -> str:
    """A table of random vectors for 4,000 pieces of made-up words: the cheapest encoder that there is."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([next(_made_up(seed))], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    vectors = np.random.default_rng(seed).standard_normal((tokenizer.get_vocab_size(), dim), np.float32)
    entry = {"dtype": "F32", "shape": list(vectors.shape), "data_offsets": [0, vectors.nbytes]}
    header = json.dumps({"embedding.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + vectors.tobytes())
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps([module]))
    return str(folder)
