"""The same windows in the layouts that the peers need: one folder per cluster, MDS or LitData.

A `Stream` of mosaicml-streaming is one folder, a `StreamingDataset` of LitData too. Our folders are level-1 clusters:
up to 64 streams read our shards as they are; beyond that the windows are copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.support.measure import UnavailableError
from crisp_stream.format import mds
from crisp_stream.format.dataset import open_dataset
from crisp_stream.loading.reader import read_windows

_LITDATA_ITEM_TOKENS = 1 << 20
_LITDATA_CHUNK_BYTES = 64 << 20


def folders_below(parent: str | Path) -> list[str]:
    """The folders of a peer's clusters, in order (thousands: too many for a command line)."""
    return sorted(str(folder) for folder in Path(parent).iterdir() if folder.is_dir())


def mds_folders(root: Path, out: Path, clusters: int) -> Path:
    """Copy a dataset into `clusters` MDS datasets of neighbouring leaves; done once.

    Args:
        root: of our dataset.
        out: parent of the new folders.
        clusters: how many; at most the leaves of the dataset.

    Returns:
        Their parent.
    """
    target = out / f"{root.name}.mds{clusters}"
    if not target.exists():
        unfinished = target.with_name(f".{target.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        for number, samples in enumerate(_groups(root, clusters)):
            folder = unfinished / f"{number:06d}"
            folder.mkdir(parents=True)
            row = mds.write_shard(folder / "shard.00000.mds", samples, root=unfinished, identity=0)
            width = samples["tokens"].shape[1]
            index = mds.index_bytes([row], below=folder.name, window_tokens=width, token_dtype="uint16")
            (folder / "index.json").write_bytes(index)
        unfinished.rename(target)
    return target


def litdata_folders(root: Path, out: Path, clusters: int) -> Path:
    """Copy a dataset into `clusters` LitData datasets of tokens; done once. LitData's own writer writes them."""
    target = out / f"{root.name}.litdata{clusters}"
    if not target.exists():
        try:
            import torch

            loaders, writers = (import_module(f"litdata.streaming.{name}") for name in ("item_loader", "writer"))
        except ImportError as error:
            raise UnavailableError("litdata is not installed (pip install 'crisp-stream[bench]')") from error
        unfinished = target.with_name(f".{target.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        for number, samples in enumerate(_groups(root, clusters)):
            folder = unfinished / f"{number:06d}"
            folder.mkdir(parents=True)
            writer = writers.BinaryWriter(
                str(folder), chunk_bytes=_LITDATA_CHUNK_BYTES, item_loader=loaders.TokensLoader()
            )
            step = max(1, _LITDATA_ITEM_TOKENS // samples["tokens"].shape[1])  # whole windows in every item
            for item, start in enumerate(range(0, len(samples), step)):
                writer[item] = torch.from_numpy(samples["tokens"][start : start + step].reshape(-1).astype(np.uint16))
            writer.done()
            writer.merge()
        unfinished.rename(target)
    return target


def _groups(root: Path, clusters: int) -> Iterator[NDArray[Any]]:
    """Samples of `clusters` groups of neighbouring leaves."""
    dataset = open_dataset(root)
    groups = np.array_split(np.arange(len(dataset.leaves)), clusters)
    for rows in groups:
        first = int(dataset.first_window_per_leaf[rows[0]])
        stop = int(dataset.first_window_per_leaf[rows[-1]] + dataset.windows_per_leaf[rows[-1]])
        yield read_windows(dataset, np.arange(first, stop))
