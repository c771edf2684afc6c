"""Stage `tree`: a sample of the embeddings, the root's clusters, then the 64 branches below it, all in parallel."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.keys import HASH_BITS, window_hashes
from crisp_stream.writers.engine.tasks import Record, Runner, Task, file_sizes, write_files
from crisp_stream.writers.stages.runs import part_places
from crisp_stream.writers.stages.windows import Part
from crisp_stream.writers.tree.fit_tree import Subtree, fit_root, fit_subtree, join_subtrees, root_labels
from crisp_stream.writers.tree.settings import TreeSettings

_SAMPLE_SALT = 1
_ROWS_SHARE = 16
"""Rows read per row sampled, about: in a huge corpus parts are chosen before rows."""


@dataclass(frozen=True, kw_only=True)
class TreeSampleTask(Task):
    """Collect the embeddings that the tree is fitted on: all, or about `fit_windows` chosen by a hash."""

    stage: ClassVar[str] = "tree-sample"
    title: ClassVar[str] = "choosing windows for the tree"

    parts: tuple[Part, ...]
    fit_windows: int
    seed: int

    def settings(self) -> Any:
        """Values that choose the rows."""
        return [self.fit_windows, self.seed, [part.number for part in self.parts]]

    def make(self) -> Record:
        """Write [num_sampled, dim] float16, and the places of the rows."""
        chosen = [(part, self._rows(part)) for part in self.parts if self._has_part(part)]
        num_sampled = sum(len(rows) for _, rows in chosen)
        arrays = self.file("embeddings.npy"), self.file("places.npy")
        places = []
        if not num_sampled:
            raise InputError("inputs: must give windows to fit a tree on, got none. Give more text.")
        dim = self.workspace.array(f"{chosen[0][0].embeddings_key}.embeddings.npy").shape[1]
        header = {"descr": "<f2", "fortran_order": False, "shape": (num_sampled, dim)}
        with self.workspace.created(arrays[0]) as path, path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)  # not through a map: a full disk would end the process
            for part, rows in chosen:
                embeddings = self.workspace.load_array(f"{part.embeddings_key}.embeddings.npy")
                file.write(np.ascontiguousarray(embeddings[rows], "<f2").data)
                places.append(part_places(part.number, rows.astype(np.uint32)))
        self.workspace.save_array(arrays[1], np.concatenate(places))
        return {"num_units": num_sampled, "num_sampled": num_sampled, "files": file_sizes(self, *arrays)}

    @property
    def _shares(self) -> tuple[float, float]:
        """(share of the parts, share of the rows of these)."""
        share = min(1.0, self.fit_windows / sum(part.num_windows for part in self.parts))
        of_parts = min(1.0, share * _ROWS_SHARE)
        return of_parts, share / of_parts

    def _has_part(self, part: Part) -> bool:
        hashed = window_hashes(np.array([[part.number, 1 << 31]], np.uint32), self.seed + _SAMPLE_SALT)
        return bool(hashed[0] < _threshold(self._shares[0]))

    def _rows(self, part: Part) -> NDArray[np.int64]:
        places = part_places(part.number, np.arange(part.num_windows, dtype=np.uint32))
        return np.flatnonzero(window_hashes(places, self.seed + _SAMPLE_SALT) < _threshold(self._shares[1]))


def _threshold(share: float) -> np.uint64:
    return np.uint64(round(share * (1 << HASH_BITS)))


@dataclass(frozen=True, kw_only=True)
class _FitTask(Task):
    tree: TreeSettings

    def settings(self) -> Any:
        """All settings of the tree."""
        return self.tree


@dataclass(frozen=True, kw_only=True)
class TreeRootTask(_FitTask):
    """Fit the centroids of level 1."""

    stage: ClassVar[str] = "tree-root"
    title: ClassVar[str] = "fitting the root of the tree"

    sample: str
    """Name of the sample's array."""

    def make(self) -> Record:
        """Write [arity, dim] float32, and the level-1 node of every row of the sample."""
        sample = np.load(self.workspace.kept(self.sample)[0], mmap_mode="r")
        started = time.perf_counter()
        centroids = fit_root(sample, self.tree)
        seconds = time.perf_counter() - started
        names = self.file("centroids.npy"), self.file("labels.npy")
        self.workspace.save_array(names[0], centroids)
        self.workspace.save_array(names[1], root_labels(sample, centroids))
        return {"seconds": seconds, "files": file_sizes(self, *names)}


@dataclass(frozen=True, kw_only=True)
class TreeBranchTask(_FitTask):
    """Fit all levels below one level-1 node, which is `number`."""

    stage: ClassVar[str] = "tree-branches"
    title: ClassVar[str] = "fitting the branches of the tree"

    sample: str
    root: str
    """Name of the array of the root's centroids."""
    labels: str
    """Name of the array of the level-1 nodes of the sample."""

    def make(self) -> Record:
        """Write the branch."""
        sample = np.load(self.workspace.kept(self.sample)[0], mmap_mode="r")
        centroids, labels = self.workspace.load_array(self.root), self.workspace.load_array(self.labels)
        branch = fit_subtree(sample, centroids, self.number, self.tree, labels=labels)
        with self.workspace.created(self.file("npz")) as path:
            branch.save(path)
        return {"files": file_sizes(self, self.file("npz"))}


@dataclass(frozen=True, kw_only=True)
class TreeTask(_FitTask):
    """Join the branches to a tree."""

    stage: ClassVar[str] = "tree"
    title: ClassVar[str] = "making the tree"

    root: str
    branches: tuple[str, ...]

    def make(self) -> Record:
        """Write the tree's files below the task's key."""
        branches = []
        for name in self.branches:
            with self.workspace.opened(name) as path:
                branches.append(Subtree.load(path))
        tree = join_subtrees(self.workspace.load_array(self.root), branches, self.tree)
        below = [branch.seconds_per_level for branch in branches]
        return write_files(
            self,
            tree.to_files(),
            num_leaves=tree.num_leaves,
            seconds_below_root=[sum(level) for level in zip(*below, strict=True)],
            devices=sorted({branch.device for branch in branches}),
        )


@dataclass(frozen=True, kw_only=True)
class FittedTree:
    """A tree of a write, and how it came about."""

    key: str
    """Folder of the workspace with its files."""
    fingerprint: str
    """Fingerprint of its task."""
    num_sampled: int
    """Windows it was fitted on."""
    sample: str
    """Name of the array of their embeddings."""
    fit_seconds: list[float]
    """[depth], spent fitting each level, all processes together."""
    devices: list[str]
    """Devices that searched nearest centroids: cpu or gpu."""


def fit_tree_in_stages(
    runner: Runner, parts: tuple[Part, ...], settings: TreeSettings, *, fit_windows: int
) -> FittedTree:
    """Fit the tree with every task that can run at once doing so.

    Raises:
        InputError: fewer windows than the arity, or than are distinct enough to split the root.
    """
    workspace = runner.workspace
    sample = TreeSampleTask(
        workspace=workspace,
        number=0,
        inputs=tuple(part.fingerprint for part in parts),
        parts=parts,
        fit_windows=fit_windows,
        seed=settings.seed,
    )
    [sampled] = runner.run([sample], unit="windows")
    num_sampled = int(sampled["num_sampled"])
    if num_sampled < settings.arity:
        raise InputError(
            f"inputs: must give at least {settings.arity} windows to split the root in {settings.arity}, got "
            f"{num_sampled}. Give more text, a smaller --window-tokens, or a smaller --arity."
        )
    array = sample.file("embeddings.npy")
    root = TreeRootTask(workspace=workspace, number=0, inputs=(sample.fingerprint,), sample=array, tree=settings)
    [rooted] = runner.run([root], unit="")
    centroids = root.file("centroids.npy")
    branches: list[TreeBranchTask] = []
    if settings.depth > 1:
        branches = [
            TreeBranchTask(
                workspace=workspace,
                number=child,
                inputs=(root.fingerprint,),
                sample=array,
                root=centroids,
                labels=root.file("labels.npy"),
                tree=settings,
            )
            for child in range(settings.arity)
        ]
        runner.run(branches, unit="branches", num_units=[1] * len(branches))
    tree = TreeTask(
        workspace=workspace,
        number=0,
        inputs=(root.fingerprint, *(branch.fingerprint for branch in branches)),
        root=centroids,
        branches=tuple(branch.file("npz") for branch in branches),
        tree=settings,
    )
    [record] = runner.run([tree], unit="")
    runner.log(f"tree: {record['num_leaves']:,} leaves, fitted on {num_sampled:,} windows")
    return FittedTree(
        key=tree.key,
        fingerprint=tree.fingerprint,
        num_sampled=num_sampled,
        sample=array,
        fit_seconds=[rooted["seconds"], *record["seconds_below_root"]],
        devices=record["devices"],
    )
