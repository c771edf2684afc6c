"""The stages of a write as groups of equal tasks: how many, and CPU time, bytes, requests and memory of each.

What follows from formats and settings (tasks, sizes of arrays, requests) is computed as the stages do it, for an object
store. What had to be measured stands in `CONSTANTS`. scale_schedule.py plays the groups on machines;
benchmarks/write_scale.py is the command.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from benchmarks.writing.counted_write import LISTED_PER_REQUEST, PUT_PART_BYTES, uploads
from crisp_stream.examples.sketch import MAX_DOCUMENTS, MAX_NGRAMS
from crisp_stream.format.mds import TokenDtype, header_bytes, max_windows_per_shard, sample_dtype
from crisp_stream.storage.object_client import UPLOAD_PART_BYTES
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages.tree import BUNDLE_BYTES, GROUP_BYTES, MERGE_BYTES, MERGED_DRAWS
from crisp_stream.writers.stages.whole_corpus import PROBE_CHARACTERS, PROBE_DOCUMENTS
from crisp_stream.writers.tree.growth import LevelPlan, foretold
from crisp_stream.writers.tree.settings import TreeSettings
from crisp_stream.writers.tree.terms import BACKGROUND_WINDOWS, STORED_NODES, stretch_of, windows_per_node
from crisp_stream.writers.windows import SAMPLE_CHARACTERS

MEASURED = "`--measure`, 2026-11-30, one process on two cores that twenty wanted"
_TREE = "docs/write/tree.md: 300,000 windows/s, three levels, 384 numbers"
_SORT = "benchmarks/README.md: runs and shards, 144 MB per CPU second"
CONSTANTS: dict[str, tuple[float, str]] = {
    # CPU seconds, per stage and unit, of one core of the machine of the measurement; "tokens" and "windows" of windows
    # and embeddings are of the encoder that the measured writes make, those of a network stand apart
    "documents/tasks": (0.055, MEASURED),
    "documents/characters": (1.7e-08, MEASURED),
    "tokenizer/characters": (8.1e-07, MEASURED),
    "windows/tasks": (0.022, MEASURED),
    "windows/tokens": (7.1e-06, MEASURED),
    "windows/windows": (2.9e-05, MEASURED),
    "windows/network tokens": (1.07e-6, "docs/write/embedding.md: 2.84, 4.38 and 2.06 million tokens/s"),
    "embeddings/tasks": (0.08, MEASURED),
    "embeddings/windows": (1.1e-05, MEASURED),
    "embeddings/tokens": (4.4e-07, MEASURED),
    "tree-draws/windows": (7.1e-07, MEASURED),
    "tree-draws/numbers": (2.9e-09, _TREE),
    "tree-draws/examples": (1e-06, "assumed: a copy"),
    "tree-merges/examples": (1e-6, "as tree-draws/examples"),
    "tree-counts/draws": (0.012, MEASURED),
    "tree-nodes/nodes": (0.028, MEASURED),
    "tree-nodes/visits": (1.5e-07, MEASURED),
    "tree-nodes/numbers": (1.35e-08, MEASURED),
    "tree-levels/bundles": (0.015, MEASURED),
    "tree/tasks": (0.0064, MEASURED),
    "runs/windows": (1.9e-06, MEASURED),
    "runs/numbers": (2.9e-09, _TREE),
    "runs/bytes": (3.5e-09, _SORT),
    "range-samples/windows": (4.6e-08, MEASURED),
    "range-counts/windows": (1.3e-07, MEASURED),
    "shards/tasks": (0.012, MEASURED),
    "shards/windows": (3.1e-06, MEASURED),
    "shards/bytes": (3.5e-09, _SORT),
    "texts/characters": (3.3e-08, MEASURED),
    "sketch/sketches": (0.01, MEASURED),
    "provenance/documents": (7.7e-06, MEASURED),
    "driver/tasks": (0.001, "assumed"),
    "driver/command": (17.0, MEASURED),
    "duplicates-digests/documents": (3e-7, "assumed: a sort of 24 bytes"),
    "duplicates-exact/documents": (5e-7, "assumed: a sort of 24 bytes"),
    # bytes
    "bytes of a record": (410.0, MEASURED),
    "bytes of spans per part": (1540.0, MEASURED),
    "bytes of spans per document": (4.9, MEASURED),
    "bytes of table of documents per part": (1340.0, MEASURED),
    "bytes of table of documents per document": (7.7, MEASURED),
    # memory of a task beside the process, by what it holds
    "memory/process": (150e6, "docs/write/scale.md"),
    "memory/documents per character": (8.0, MEASURED),
    "memory/windows per character": (12.0, MEASURED),
    "memory/draws per byte": (1.3, MEASURED),
    "memory/nodes per byte": (2.5, MEASURED),
    "memory/runs per byte": (4.0, "writers/stages/dataset.py"),
    "memory/driver": (450e6, "docs/write/scale.md"),
    "memory/driver per part": (500.0, "assumed; changes with the driver"),
}
"""Name: (value, where it is from)."""

NPY_BYTES = 128
"""Of a .npy file before its rows."""
RANGE_BYTES = 4 << 30
"""Tokens of a range of sort keys at most, about."""
MOST_RANGE_WINDOWS = 1 << 21
MOST_RANGES = 4096
"""About so many at most."""
RUNS_PER_BUNDLE = 64
"""Runs whose keys a task samples or counts, at least."""
_SAMPLES_PER_RANGE = 256
_KEYS_AT_ONCE = 8
_DRAWS_AT_ONCE = 16
_DELETED_AT_ONCE = 64
_DRAWS_PER_MERGE = 256
_REQUEST_BYTES = 16 << 20
"""Of tokens, in a request of a `shards` task."""
_SKETCHES_PER_TASK = _BATCHES_PER_TASK = 64
_NODES_PER_BUNDLE = 256
_EXAMPLE_BYTES = 12
_INDEX_BYTES = 64
_SEEDING_STEPS = 16
"""Steps of k-means that its seeds take as long as."""
_OVERDRAWN = 1.1
"""Examples that are drawn for one that is used, below the root (docs/write/tree.md)."""
DUPLICATE_BYTES = 256 << 20
"""Memory of a task that finds equal documents."""
_BUNDLE_DOCUMENTS = 1 << 20
_BYTES_PER_DIGEST = 160
_REMOVED_SHARE = 0.1
"""Of documents that repeat others: assumed."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A write, by its size and options."""

    windows: float
    window_tokens: int = WriteOptions.window_tokens
    token_bytes: int = 2
    characters_per_token: float = 4.3
    document_characters: float = 3000.0
    compression: float = 0.36
    """Bytes of a batch by its characters."""
    file_characters: float = 1e9
    """Text of an input file, or of a group of small ones."""
    dim: int = 384
    network: bool = True
    """Vectors come from a network on GPUs; otherwise from a table, on cores."""
    pieces_per_window: float = 256.0
    tokenizer_bytes: float = 2.2e6
    part_characters: int = WriteOptions.part_characters
    run_bytes: int = WriteOptions.run_bytes
    shard_bytes: int = WriteOptions.shard_bytes
    arity: int = WriteOptions.arity
    depth: int = WriteOptions.depth
    min_split: int | None = None
    dedup: bool = False
    sort_memory_bytes: int = WriteOptions.sort_memory_bytes
    keep_work: bool = False

    @property
    def tokens(self) -> float:
        """In windows."""
        return self.windows * self.window_tokens

    @property
    def characters(self) -> float:
        """Of all documents."""
        return self.tokens * self.characters_per_token

    @property
    def documents(self) -> float:
        """Number of documents."""
        return self.characters / self.document_characters

    @property
    def groups(self) -> int:
        """`documents` tasks: one for a large input file, or for small ones together."""
        return max(1, math.ceil(self.characters / self.file_characters - 1e-9))

    @cached_property
    def parts(self) -> int:
        """Batches of documents; the last one of a group is smaller."""
        documents = self.documents / self.groups
        per_part = max(1, math.ceil(self.part_characters / self.document_characters))
        return self.groups * max(1, math.ceil(documents / per_part - 1e-9))

    @property
    def window_bytes(self) -> int:
        """Bytes of a window's tokens."""
        return self.window_tokens * self.token_bytes

    @property
    def windows_per_part(self) -> float:
        """In the mean."""
        return self.windows / self.parts

    def parts_per(self, num_bytes: float, window_bytes: float) -> int:
        """Parts that are taken together up to so many bytes."""
        return max(1, int(num_bytes / (self.windows_per_part * window_bytes)))

    @cached_property
    def runs(self) -> int:
        """Sorted runs."""
        return math.ceil(self.parts / self.parts_per(self.run_bytes, self.window_bytes))

    @cached_property
    def settings(self) -> TreeSettings:
        """Of the tree."""
        return TreeSettings(arity=self.arity, depth=self.depth, min_examples_to_split=self.min_split)

    @cached_property
    def levels(self) -> list[LevelPlan]:
        """Levels of the tree that are made."""
        return [plan for plan in foretold(self.windows, self.settings) if plan.num_split]

    @property
    def leaves(self) -> int:
        """Of the tree."""
        return 1 + sum(plan.num_split * (self.arity - 1) for plan in self.levels)

    @cached_property
    def draws(self) -> int:
        """Groups of parts that examples are drawn from."""
        return math.ceil(self.parts / self.parts_per(GROUP_BYTES, 2 * self.dim + _INDEX_BYTES))

    @property
    def windows_per_range(self) -> int:
        """Windows of a range of sort keys, about."""
        wanted = min(max(RANGE_BYTES // self.window_bytes, 1), MOST_RANGE_WINDOWS)
        return max(wanted, math.ceil(self.windows / MOST_RANGES))

    @property
    def ranges(self) -> int:
        """Ranges of the sort key, none across level-1 clusters, the last of each of these smaller."""
        per_node = self.windows / self.arity / self.windows_per_range
        return round(self.arity * (1 if per_node < 0.5 else per_node + 0.5))

    @property
    def shards(self) -> int:
        """Shards of the dataset."""
        full = max_windows_per_shard(self.shard_bytes, self.window_tokens, self._dtype)
        return self.arity * math.ceil(self.windows / self.arity / full)

    @property
    def _dtype(self) -> TokenDtype:
        return "uint16" if self.token_bytes == 2 else "uint32"

    @property
    def dataset_bytes(self) -> float:
        """Shards and places."""
        sample = sample_dtype(self.window_tokens, self._dtype).itemsize + 4
        head = len(header_bytes(0, self.window_tokens, self._dtype))
        return self.windows * (sample + 8) + self.shards * (head + NPY_BYTES)


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Equal tasks of a stage."""

    stage: str
    count: int
    units: dict[str, float] = field(default_factory=dict)
    """What CPU time grows with, per task; a name is that of a constant behind the stage's."""
    files: Sequence[float] = ()
    """Bytes of each file that a task writes and looks up; its record comes on top."""
    other_files: Sequence[float] = ()
    """Bytes of files that are written and not looked up."""
    read: float = 0.0
    gets: float = 0.0
    lists: float = 0.0
    deletes: float = 0.0
    at_once: int = 1
    """Requests for ranges that are under way at once."""
    gets_per_process: float = 0.0
    """Of what a process reads once."""
    read_per_process: float = 0.0
    memory: float = 0.0
    on: str = "cores"
    """cores, gpus, or driver."""
    has_record: bool = True
    part_bytes: int = UPLOAD_PART_BYTES
    """Larger objects are uploaded in parts of that size."""

    @property
    def puts(self) -> float:
        """PUT and POST requests of a task."""
        return sum(uploads(round(size), self.part_bytes) for size in (*self.files, *self.other_files)) + self.has_record

    @property
    def heads(self) -> float:
        """HEAD requests of a task."""
        return len(self.files)

    @property
    def objects(self) -> float:
        """Objects that a task leaves."""
        return len(self.files) + len(self.other_files) + self.has_record

    @property
    def written(self) -> float:
        """Bytes that a task writes."""
        return sum(self.files) + sum(self.other_files) + self.has_record * CONSTANTS["bytes of a record"][0]

    @property
    def cpu(self) -> float:
        """CPU seconds of a task; what a GPU is given to do is not among them."""
        if self.on == "gpus":
            return 0.0
        known = {"tasks": 1.0, **self.units}
        return sum(CONSTANTS.get(f"{self.stage}/{unit}", (0.0, ""))[0] * amount for unit, amount in known.items())

    @property
    def rounds(self) -> float:
        """Requests that a task waits for one after the other."""
        return self.gets / self.at_once + self.puts + self.heads + self.lists + self.deletes / self.at_once


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Tasks of a stage that differ, as so many equal ones."""

    stage: str
    count: int
    cpu: float
    read: float
    written: float
    puts: float
    gets: float
    heads: float
    lists: float
    gets_per_process: float
    memory: float
    on: str = "cores"


def constant(name: str) -> float:
    """The value of a constant."""
    return CONSTANTS[name][0]


def stages_of(scale: Scale) -> list[Tasks]:
    """All groups of tasks, in the order in which they run; each begins when the one before has ended."""
    stages = [*_reading(scale), *_cutting(scale), *_tree(scale), *_sorting(scale), _driver(scale)]
    return stages if scale.keep_work else [*stages, _deletion(stages)]


def _reading(scale: Scale) -> Iterator[Tasks]:
    yield Tasks(stage="encoder", count=1, files=(800.0,))
    batches = scale.parts / scale.groups
    documents = scale.documents / scale.groups
    arrays = [12 * documents + 192, *([16 * documents + NPY_BYTES] if scale.dedup else [])]
    batch_bytes = scale.characters / scale.parts * scale.compression + 1000
    yield Tasks(
        stage="documents",
        count=scale.groups,
        units={"characters": scale.characters / scale.groups},
        files=[*[batch_bytes] * round(batches), *arrays],
        memory=constant("memory/documents per character") * scale.part_characters,
    )
    if scale.dedup:
        yield from _duplicates(scale)
    sampled = max(1, min(scale.parts, math.ceil(scale.parts * SAMPLE_CHARACTERS / scale.characters)))
    probed = min(PROBE_CHARACTERS, PROBE_DOCUMENTS * scale.document_characters) * scale.parts / scale.characters
    probed = min(sampled, math.ceil(probed))
    yield Tasks(
        stage="tokenizer",
        count=1,
        units={"characters": min(SAMPLE_CHARACTERS, scale.characters)},
        files=(scale.tokenizer_bytes, 300.0),
        read=(sampled + probed) * batch_bytes,
        gets=sampled + probed,
        memory=300e6,
    )


def _duplicates(scale: Scale) -> Iterator[Tasks]:
    """Equal documents: digests of bundles of documents are parted into ranges, and pairs come back."""
    of_group = scale.documents / scale.groups
    whole = max(1, int(_BUNDLE_DOCUMENTS / of_group))
    cut = math.ceil(of_group / _BUNDLE_DOCUMENTS)
    bundles = math.ceil(scale.groups / whole) if cut == 1 else cut * scale.groups
    documents, removed = scale.documents / bundles, scale.documents * _REMOVED_SHARE
    ranges = max(1, math.ceil(scale.documents * _BYTES_PER_DIGEST / DUPLICATE_BYTES))
    yield Tasks(
        stage="duplicates-digests",
        count=bundles,
        units={"documents": documents},
        files=(24 * documents, 8.0 * (ranges + 1)),
        read=28 * documents,
        gets=8 * scale.groups / bundles,  # half of them ask for sizes
        memory=200 * documents,
    )
    yield Tasks(
        stage="duplicates-exact",
        count=ranges,
        units={"documents": scale.documents / ranges},
        files=(16 * removed / ranges, 8.0 * (bundles + 1)),
        read=24 * scale.documents / ranges,
        gets=2 * bundles,
        at_once=_DRAWS_AT_ONCE,
        memory=min(DUPLICATE_BYTES, scale.documents * _BYTES_PER_DIGEST),
    )
    yield Tasks(
        stage="duplicates",
        count=bundles,
        files=(21 * removed / bundles, 8.0 * (scale.groups / bundles + 1)),
        read=16 * removed / bundles,
        gets=2 * ranges,
        at_once=_DRAWS_AT_ONCE,
        memory=100 * removed / bundles,
    )


def _cutting(scale: Scale) -> Iterator[Tasks]:
    per_part, parts = scale.windows_per_part, scale.parts
    batch_bytes = scale.characters / parts * scale.compression + 1000
    documents = scale.documents / parts
    spans = constant("bytes of spans per part") + constant("bytes of spans per document") * documents
    pieces = per_part * (2 * scale.pieces_per_window + 8) + 900
    tokens = "network tokens" if scale.network else "tokens"
    yield Tasks(
        stage="windows",
        count=parts,
        units={tokens: per_part * scale.window_tokens, "windows": per_part},
        files=(per_part * scale.window_bytes + NPY_BYTES, 4 * per_part + NPY_BYTES, spans, pieces),
        read=batch_bytes,
        gets=1 + 2 * scale.dedup,
        gets_per_process=2,
        read_per_process=scale.tokenizer_bytes,
        memory=constant("memory/windows per character") * scale.characters / parts,
    )
    yield Tasks(
        stage="embeddings",
        count=parts,
        units={"windows": per_part, "tokens": per_part * scale.window_tokens},
        files=(per_part * 2 * scale.dim + NPY_BYTES,),
        read=pieces,
        gets=1,
        memory=2 * pieces + 4 * per_part * scale.dim,
        on="gpus" if scale.network else "cores",
    )


def _tree(scale: Scale) -> Iterator[Tasks]:
    draws, dim, arity = scale.draws, scale.dim, scale.arity
    windows = scale.windows / draws
    parts = scale.parts / draws
    settings = scale.settings
    nodes = 1
    for number, plan in enumerate(scale.levels):
        examples = _examples(scale, plan, number)
        drawn = examples / draws
        share = min(1.0, examples / scale.windows)
        read_parts = parts if number else parts * (1 - (1 - share) ** scale.windows_per_part)
        rows = [4 * windows + NPY_BYTES] if number else []
        counts = 24 * min(nodes, windows) + NPY_BYTES
        level_bytes = nodes * (4 * dim + 20) if number else 0
        yield Tasks(
            stage="tree-draws",
            count=draws,
            units={"windows": windows, "numbers": windows * dim * (number > 0), "examples": drawn},
            files=[counts, _EXAMPLE_BYTES * drawn + NPY_BYTES, 2 * dim * drawn + NPY_BYTES, *rows],
            read=read_parts * (2 * dim * scale.windows_per_part + NPY_BYTES) + (4 * windows if number > 1 else 0),
            gets=read_parts + (number > 1),
            gets_per_process=4.0 * (number > 0),
            read_per_process=level_bytes,
            memory=constant("memory/draws per byte") * windows * (2 * dim + _INDEX_BYTES) + level_bytes,
        )
        files = draws
        joined = math.ceil(draws / min(_DRAWS_PER_MERGE, max(1, int(MERGE_BYTES / drawn / (2 * dim + _EXAMPLE_BYTES)))))
        if draws > MERGED_DRAWS and draws >= 2 * joined:
            files, each = joined, draws / joined
            merged = counts, _EXAMPLE_BYTES * drawn * each + NPY_BYTES, 2 * dim * drawn * each + NPY_BYTES
            yield Tasks(
                stage="tree-merges",
                count=joined,
                units={"examples": drawn * each},
                files=merged,
                read=each * (counts + (_EXAMPLE_BYTES + 2 * dim) * drawn + 2 * NPY_BYTES),
                gets=3 * each,
                at_once=_DRAWS_AT_ONCE,
                memory=sum(merged) + 2 * max(min(_DRAWS_AT_ONCE * 2 * dim * drawn, 64 << 20), 2 * dim * drawn),
            )
        used = min(examples / max(plan.num_split, 1), settings.quota * _OVERDRAWN)
        per_bundle = max(1, min(_NODES_PER_BUNDLE, int(BUNDLE_BYTES / (2 * dim) / max(used, 1)), plan.num_split))
        bundles = math.ceil(plan.num_split / per_bundle)
        stretches = 8.0 * bundles * files + NPY_BYTES
        small = [8.0 * nodes, 8.0 * plan.num_split, 16.0 * bundles]
        yield Tasks(
            stage="tree-counts",
            count=1,
            units={"draws": files},
            files=(*(size + NPY_BYTES for size in small), stretches, 40.0 * files),
            read=2 * files * counts,
            gets=2 * files,
            at_once=_DRAWS_AT_ONCE,
            memory=stretches + 60.0 * nodes,
        )
        hit = files * (1 - (1 - 1 / files) ** (used * per_bundle))
        visits = min(used, settings.examples_per_step) * (settings.steps + _SEEDING_STEPS) + used
        yield Tasks(
            stage="tree-nodes",
            count=bundles,
            units={"nodes": per_bundle, "visits": per_bundle * visits, "numbers": per_bundle * visits * dim},
            files=[
                per_bundle * arity * (4 * dim + 8) + 1400,
                *([2 * dim * min(used, settings.quota) + NPY_BYTES] if not number else []),
            ],
            read=per_bundle * used * (2 * dim + _EXAMPLE_BYTES) + 48 * files + 16 * nodes,
            gets=7 + 2 * hit,
            at_once=_DRAWS_AT_ONCE,
            memory=constant("memory/nodes per byte") * per_bundle * used * 2 * dim,
        )
        nodes = plan.num_split * arity
        yield Tasks(
            stage="tree-levels",
            count=1,
            units={"bundles": bundles},
            files=(
                4.0 * nodes + NPY_BYTES,
                8.0 * (nodes // arity) + NPY_BYTES,
                8.0 * nodes + NPY_BYTES,
                4.0 * dim * nodes + NPY_BYTES,
            ),
            read=2.0 * bundles * (per_bundle * arity * (4 * dim + 8) + 1400),
            gets=2 * bundles,
            memory=nodes * (4 * dim / max(bundles, 1) + 100),
        )
    yield Tasks(
        stage="tree",
        count=1,
        part_bytes=PUT_PART_BYTES,
        files=[700.0, *(size for plan in scale.levels for size in _level_files(scale, plan)), *_empty_levels(scale)],
        read=sum(_level_files(scale, scale.levels[-1])),  # the others were read for draws
        gets=2,
        memory=2.0 * sum(sum(_level_files(scale, plan)) for plan in scale.levels),
    )


def _examples(scale: Scale, plan: LevelPlan, number: int) -> float:
    quota = scale.settings.quota
    if not number:
        return min(scale.windows, quota + 4 * quota**0.5) if scale.windows > quota else scale.windows
    if plan.windows / max(plan.num_nodes, 1) > quota:
        return min(float(plan.windows), plan.num_split * quota * _OVERDRAWN)
    return float(plan.windows)


def _level_files(scale: Scale, plan: LevelPlan) -> tuple[float, float]:
    nodes = plan.num_split * scale.arity
    return 4.0 * nodes + NPY_BYTES, 4.0 * scale.dim * nodes + NPY_BYTES


def _empty_levels(scale: Scale) -> list[float]:
    return [float(NPY_BYTES)] * 2 * (scale.depth - len(scale.levels))


def _sorting(scale: Scale) -> Iterator[Tasks]:
    runs = scale.runs
    windows, parts = scale.windows / runs, scale.parts / runs
    token_bytes = scale.window_bytes
    tree_bytes = sum(sum(_level_files(scale, plan)) for plan in scale.levels)
    yield Tasks(
        stage="runs",
        count=runs,
        units={
            "windows": windows,
            "numbers": windows * scale.dim * len(scale.levels),
            "bytes": windows * token_bytes,
        },
        files=(windows * token_bytes + NPY_BYTES, 8 * windows + NPY_BYTES, 8 * windows + NPY_BYTES),
        read=windows * (token_bytes + 2 * scale.dim + 4) + parts * 3 * NPY_BYTES,
        gets=3 * parts,
        gets_per_process=2 * scale.depth + 1,
        read_per_process=tree_bytes,
        lists=1,
        memory=constant("memory/runs per byte") * (windows * (token_bytes + 2 * scale.dim)) + 2 * tree_bytes,
    )
    texts = math.ceil(scale.parts / _BATCHES_PER_TASK)
    batches = scale.parts / texts
    batch_bytes = scale.characters / scale.parts * scale.compression + 1000
    sketch = _sketch_bytes(scale.documents / texts)
    yield Tasks(
        stage="texts",
        count=texts,
        units={"characters": scale.characters / texts},
        files=(sketch,),
        read=batches * batch_bytes,
        gets=batches * (1 + 2 * scale.dedup),
        memory=constant("memory/documents per character") * scale.part_characters,
    )
    while texts > 1:
        joined, texts = texts, math.ceil(texts / _SKETCHES_PER_TASK)
        yield Tasks(
            stage="sketch",
            count=texts,
            units={"sketches": joined / texts},
            files=(_sketch_bytes(math.inf),),
            read=joined / texts * sketch,
            gets=joined / texts,
            memory=60e6,
        )
    yield from _ranges(scale)
    yield _shards(scale)
    documents = scale.documents / scale.groups
    spans, tables = (
        constant(f"bytes of {kind} per part") * scale.parts / scale.groups for kind in ("spans", "table of documents")
    )
    yield Tasks(
        stage="provenance",
        count=scale.groups,
        units={"documents": documents},
        other_files=(tables + constant("bytes of table of documents per document") * documents,),
        read=spans + constant("bytes of spans per document") * documents,
        gets=scale.parts / scale.groups,
        memory=40 * documents,
    )


def _ranges(scale: Scale) -> Iterator[Tasks]:
    bundles = math.ceil(scale.runs / max(RUNS_PER_BUNDLE, math.isqrt(scale.runs)))
    keys, runs = 8 * scale.windows / bundles + NPY_BYTES * scale.runs / bundles, scale.runs / bundles
    samples = 8 * scale.windows / bundles / max(1, scale.windows_per_range // _SAMPLES_PER_RANGE) + NPY_BYTES
    cuts = 8.0 * scale.ranges + NPY_BYTES
    below = cuts + 8
    held = 8 * scale.windows / scale.runs * min(runs, _KEYS_AT_ONCE)
    yield Tasks(
        stage="range-samples",
        count=bundles,
        units={"windows": scale.windows / bundles},
        files=(samples,),
        read=keys,
        gets=runs,
        at_once=_KEYS_AT_ONCE,
        memory=held + samples,
    )
    yield Tasks(
        stage="range-cuts",
        count=1,
        files=(cuts,),
        read=bundles * samples,
        gets=bundles,
        memory=3 * bundles * samples,
    )
    nodes = 12.0 * scale.arity + 192
    counts = (4 * (scale.ranges + 1) * runs + NPY_BYTES, below, nodes, 48 * runs + 192)
    yield Tasks(
        stage="range-counts",
        count=bundles,
        units={"windows": scale.windows / bundles},
        files=counts,
        read=keys + cuts,
        gets=runs + 1,
        at_once=_KEYS_AT_ONCE,
        memory=held + sum(counts),
    )
    yield Tasks(
        stage="ranges",
        count=1,
        files=(40.0 * bundles, 72.0 * scale.ranges + 300),
        read=cuts + bundles * (below + nodes),
        gets=1 + 2 * bundles,
        memory=100.0 * scale.ranges,
    )


def _shards(scale: Scale) -> Tasks:
    """A range each; from every run its keys, its tokens in pieces and its places, and where the run stands."""
    ranges, windows = scale.ranges, scale.windows / scale.ranges
    bundles = math.ceil(scale.runs / max(RUNS_PER_BUNDLE, math.isqrt(scale.runs)))
    hit = min(scale.runs, windows)
    pieces = hit * max(1, math.ceil(windows / hit * scale.window_bytes / _REQUEST_BYTES))
    shards = scale.shards / ranges
    following = 8 * windows if ranges > scale.arity else 0
    shard = scale.dataset_bytes / scale.shards
    places = 8 * scale.windows / scale.shards + NPY_BYTES
    files = [size for _ in range(max(1, round(shards))) for size in (shard - places, places)]
    return Tasks(
        stage="shards",
        count=ranges,
        units={"windows": windows, "bytes": windows * scale.window_bytes},
        other_files=files,
        read=windows * (scale.window_bytes + 16) + following + 60 * scale.runs + 200 * bundles,
        gets=1 + 4 * bundles + 2 * hit + pieces,
        at_once=_KEYS_AT_ONCE,
        memory=28 * windows + following + 2.5 * max(shard, min(scale.sort_memory_bytes, windows * scale.window_bytes)),
    )


def _sketch_bytes(documents: float) -> float:
    return 8 * (min(MAX_DOCUMENTS, documents) + MAX_NGRAMS) + 1400


def _driver(scale: Scale) -> Tasks:
    """What the command does itself: small files, terms, publishing, and deleting its work."""
    return Tasks(
        stage="driver",
        count=1,
        units={"command": 1.0},
        other_files=[
            *([20e3] * (10 + scale.arity)),
            *(size for plan in scale.levels for size in _level_files(scale, plan)),
            *_empty_levels(scale),
            700.0,
            200.0 * scale.shards,
            _sketch_bytes(scale.documents),
        ],
        gets=_terms_requests(scale) + scale.groups + 13,
        lists=30 + 3 * math.ceil(2 * scale.shards / LISTED_PER_REQUEST),
        at_once=16,
        memory=constant("memory/driver") + constant("memory/driver per part") * scale.parts + 1000.0 * scale.shards,
        on="driver",
        has_record=False,
        part_bytes=PUT_PART_BYTES,
    )


def _deletion(stages: Sequence[Tasks]) -> Tasks:
    """The work folder is deleted, an object after the other."""
    objects = work_objects(stages)
    return Tasks(
        stage="delete work",
        count=1,
        deletes=objects,
        at_once=_DELETED_AT_ONCE,
        lists=math.ceil(objects / LISTED_PER_REQUEST),
        memory=300 * objects,
        on="driver",
        has_record=False,
    )


def _terms_requests(scale: Scale) -> float:
    requests = 0.0
    for plan in scale.levels:
        nodes = plan.num_split * scale.arity
        if nodes > STORED_NODES:
            break
        quota = windows_per_node(nodes)
        read = min(quota, scale.windows / nodes)
        requests += nodes * math.ceil(read / stretch_of(quota))
        requests += min(BACKGROUND_WINDOWS, scale.windows) / stretch_of(BACKGROUND_WINDOWS)
    return requests


def work_objects(stages: Sequence[Tasks]) -> float:
    """Objects that the work folder holds in the end."""
    in_root = {"shards", "provenance"}
    return sum(one.count * (one.objects if one.stage not in in_root else 1) for one in stages if one.on != "driver")


def work_bytes(stages: Sequence[Tasks]) -> float:
    """Bytes that the work folder holds in the end."""
    return sum(one.count * one.written for one in stages if one.stage not in ("shards", "provenance", "driver"))
