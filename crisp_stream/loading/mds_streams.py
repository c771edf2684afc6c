"""Plain mosaicml-streaming Streams with proportions, for those who must stay on StreamingDataset.

Every cluster of the histogram becomes one Stream: its remote is the level-1 folder that holds its shards, and its
index.json, written below `local` from the checked shard table, lists the shards of that cluster alone. StreamingDataset
uses an index that is already there, so starting makes no request. Making 64 streams of a local root took 0.05 s, 1,024
took 1.1 s.

Eviction (`cache_limit`) must never reach the user's files. mosaicml-streaming deletes what lies in `local`, also where
that is the dataset itself, so a local root is never given as `local`: its shards are linked into the stream's
folder, which takes no disk; evicting removes the link, and reading again copies the shard.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.mds import SHARD_HASH, ShardRow, index_bytes
from crisp_stream.histograms.component import check_tree, report_missing, windows_per_node
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.storage.hub import HubRoot
from crisp_stream.storage.store import cache_folder, local_path

if TYPE_CHECKING:
    from streaming import Stream

_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "hf": "hf"}
_INDEX = "index.json"


def to_streams(
    root: str | Path, histogram: Histogram, *, local: str | Path | None = None, level: int | None = None
) -> list[Stream]:
    """Streams for `streaming.StreamingDataset(streams=…)`, one per cluster, whose proportions are a histogram.

    Prefer `MixtureDataset`. StreamingDataset rounds proportions per epoch and hands the rest out at random, downloads
    whole shards, starts in time and memory that grow with streams and epoch, cannot change the mixture, and ends its
    iterator as if the data were used up when a download fails.

    Args:
        root: a local folder, an s3:// or gs:// prefix, or hf://datasets/OWNER/NAME without a revision.
        histogram: of the dataset's tree. Base gives a stream per level-1 cluster, in proportion to its windows.
        local: folder for indexes and cached shards, the same on every rank of a node; the user's cache folder when
            None. Each dataset has a separate folder in it.
        level: cut the histogram at this coarser level: its clusters then share their mass by size. None: not cut.

    Returns:
        Streams in cluster order. Samples have the columns checksum, cluster (leaf id), tokens.

    Raises:
        InputError: a histogram of another tree, a level it does not have, too much mass on clusters without windows,
            or shards that hold windows of two of its clusters.
        FormatError, StorageError: the root cannot be opened.
        MissingExtraError: mosaicml-streaming is not installed.
    """
    stream_class = import_extra("streaming", extra="streaming", purpose="making streams").Stream
    dataset = open_dataset(root)
    check_tree(histogram, dataset, what="to_streams")
    histogram = _at_level(histogram, dataset, level)
    kept = windows_per_node(histogram, dataset) > 0
    if not kept.all():
        missing = float(histogram.proportions.sum(where=~kept))
        report_missing(histogram, dataset, missing, limit=Mixture.max_missing_mass, what="to_streams")
    nodes = histogram.nodes[kept].astype(np.int64)
    shards = _shards_of_nodes(dataset, nodes, histogram.level)
    remote = _streaming_url(dataset)
    parent = cache_folder() / "streams" if local is None else Path(local)
    parent = parent.absolute() / dataset.manifest.fingerprint[:16] / f"level{histogram.level}"
    streams = []
    for node, (first, stop), proportion in zip(nodes, shards, histogram.proportions[kept], strict=True):
        rows = dataset.shards[first:stop]
        below = rows[0].path.rpartition("/")[0]
        folder = parent / f"{node:08d}"
        _prepare_folder(folder, rows, below, dataset)
        streams.append(
            stream_class(
                remote=f"{remote}/{below}", local=str(folder), proportion=float(proportion), validate_hash=SHARD_HASH
            )
        )
    return streams


def _at_level(histogram: Histogram, dataset: Dataset, level: int | None) -> Histogram:
    """Cut the histogram at `level`; base becomes a histogram of level 1."""
    if histogram.level == 0:
        if level not in (None, 1):
            raise InputError(f"level must be 1 for base, got {level}. Base has one stream per level-1 cluster.")
        nodes = dataset.leaves // histogram.arity ** (histogram.depth - 1)
        windows = np.bincount(nodes, weights=dataset.windows_per_leaf).astype(np.float64)
        return _of_level(histogram, 1, np.arange(len(windows)), windows / dataset.manifest.num_windows)
    if level is None or level == histogram.level:
        return histogram
    if not 1 <= level < histogram.level:
        raise InputError(
            f"level must be 1 to {histogram.level}, the level of the histogram, got {level}. "
            "Count the histogram at the level that is meant."
        )
    nodes, positions = np.unique(
        histogram.nodes.astype(np.int64) // histogram.arity ** (histogram.level - level), return_inverse=True
    )
    shares = np.bincount(positions, weights=histogram.proportions).astype(np.float64)
    return _of_level(histogram, level, nodes, shares)


def _of_level(
    histogram: Histogram, level: int, nodes: NDArray[np.int64], proportions: NDArray[np.float64]
) -> Histogram:
    return Histogram(
        level=level,
        nodes=nodes.astype(np.uint32),
        proportions=proportions,
        arity=histogram.arity,
        depth=histogram.depth,
        tree_fingerprint=histogram.tree_fingerprint,
    )


def _shards_of_nodes(dataset: Dataset, nodes: NDArray[np.int64], level: int) -> NDArray[np.int64]:
    """[num_nodes, 2]: first shard and the one after the last of every node.

    Raises:
        InputError: a shard holds windows of two nodes.
    """
    manifest = dataset.manifest
    leaves_per_node = manifest.arity ** (manifest.depth - level)
    edges = np.append(dataset.first_window_per_leaf, manifest.num_windows)
    ends = np.append(dataset.first_window_per_shard, manifest.num_windows)
    leaf_bounds = np.stack([nodes, nodes + 1], axis=1) * leaves_per_node
    window_bounds = edges[np.searchsorted(dataset.leaves, leaf_bounds.astype(np.uint32))]
    shards = np.searchsorted(ends, window_bounds)
    aligned = (ends[shards] == window_bounds).all(axis=1)
    if not aligned.all():
        at = int(np.argmin(aligned))
        raise InputError(
            f"{dataset.root}: {int((~aligned).sum()):,} of {len(nodes):,} clusters of level {level} share a shard with "
            f"another (such as cluster {nodes[at]}), so they cannot be streams. Write the dataset with "
            f"--shard-level {level}, or pass level= to cut the histogram at a coarser level."
        )
    return shards


def _streaming_url(dataset: Dataset) -> str:
    """The root as mosaicml-streaming spells it."""
    if dataset.store.is_local:
        return str(local_path(dataset.root).absolute())
    scheme, _, rest = dataset.root.partition("://")
    if scheme not in _SCHEMES:
        raise InputError(
            f"{dataset.root}: to_streams takes local folders, s3://, gs:// and hf://, got {scheme}://. Use "
            "MixtureDataset."
        )
    if scheme == "hf" and HubRoot.parse(dataset.root).revision != "main":
        raise InputError(
            f"{dataset.root}: mosaicml-streaming reads the branch main of the hub alone, got a revision. Use "
            "MixtureDataset."
        )
    return f"{_SCHEMES[scheme]}://{rest}"


def _prepare_folder(folder: Path, rows: list[ShardRow], below: str, dataset: Dataset) -> None:
    """Put a stream's index in place, and links to the shards of a local root. Any number of ranks may do so at once."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = dataset.manifest
    index = index_bytes(rows, below=below, window_tokens=manifest.window_tokens, token_dtype=manifest.token_dtype)
    if not (folder / _INDEX).is_file() or (folder / _INDEX).read_bytes() != index:
        temporary = folder / f".{_INDEX}.{uuid.uuid4().hex}"
        temporary.write_bytes(index)
        temporary.replace(folder / _INDEX)
    if not dataset.store.is_local:
        return
    for row in rows:
        link, target = folder / row.path.rpartition("/")[2], local_path(dataset.root).absolute() / row.path
        if link.is_symlink() and link.readlink() != target:
            link.unlink(missing_ok=True)  # the dataset was moved
        if not link.exists():
            with contextlib.suppress(FileExistsError):
                link.symlink_to(target)
