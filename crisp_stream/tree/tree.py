"""The clustering tree: centroids per level, assignment by greedy descent (paper, Appendix A).

A node at level l (the root is level 0) has the children `node * arity + 0 … arity - 1` at level l + 1, or none: then
it is a leaf, and its leaf id is its path padded with zeros to the full depth. So `leaf // arity ** (depth - l)` is
its node at level l, and every node of every level is one contiguous range of leaf ids.

Assignment is a float32 matrix product per node: numpy alone, so that counting a histogram needs no faiss.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crisp_stream.errors import FormatError, InputError, MissingObjectError
from crisp_stream.storage.store import Store, open_store
from crisp_stream.tree.descent import Descent

TREE_VERSION = 1


class ClusterTree:
    """Centroids of every level, and the assignment of embeddings to nodes."""

    def __init__(
        self,
        *,
        arity: int,
        depth: int,
        nodes_per_level: list[NDArray[np.uint32]],
        centroids_per_level: list[NDArray[np.float32]],
    ) -> None:
        """Args:
            arity: children per inner node.
            depth: number of levels below the root; ragged trees may not reach it everywhere.
            nodes_per_level: for levels 1 … depth, [num_nodes] sorted node ids; siblings are complete.
            centroids_per_level: for levels 1 … depth, [num_nodes, dim].

        Raises:
            FormatError: levels that do not fit together.
        """
        self.arity = arity
        self.depth = depth
        self.nodes_per_level = [np.ascontiguousarray(nodes, np.uint32) for nodes in nodes_per_level]
        self.centroids_per_level = [np.ascontiguousarray(c, np.float32) for c in centroids_per_level]
        _check(self)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.centroids_per_level[0].shape[1]

    @property
    def fingerprint(self) -> str:
        """sha256 over shape, node ids and centroids."""
        digest = hashlib.sha256(json.dumps([TREE_VERSION, self.arity, self.depth, self.dim]).encode())
        for nodes, centroids in zip(self.nodes_per_level, self.centroids_per_level, strict=True):
            digest.update(np.ascontiguousarray(nodes, "<u4").data)
            digest.update(np.ascontiguousarray(centroids, "<f4").data)
        return digest.hexdigest()

    @property
    def num_leaves(self) -> int:
        """Leaves of the tree, empty ones included."""
        inner = sum(len(nodes) // self.arity for nodes in self.nodes_per_level)
        return 1 + inner * (self.arity - 1)

    def node_of(self, leaves: ArrayLike, level: int) -> NDArray[np.uint32]:
        """The node at `level` above (or at) each leaf. Raises InputError for a level the tree does not have."""
        self.check_level(level)
        return (np.asarray(leaves, np.int64) // self.arity ** (self.depth - level)).astype(np.uint32)

    def check_level(self, level: int) -> None:
        """Raises InputError unless 0 <= level <= depth."""
        if not 0 <= level <= self.depth:
            raise InputError(
                f"level {level} is not in the tree, which has levels 1 to {self.depth}. Choose one of them."
            )

    def assign(self, embeddings: NDArray[Any], level: int | None = None) -> NDArray[np.uint32]:
        """Descend to the closest child at every level.

        Args:
            embeddings: [num_windows, dim], L2-normalised, float16 or float32.
            level: where to stop; the leaves when None.

        Returns:
            [num_windows], node ids at `level`; leaf ids when None.

        Raises:
            InputError: wrong width, or a level the tree does not have.
        """
        level = self.depth if level is None else level
        self.check_level(level)
        self._check_width(embeddings)
        if level == 0:
            return np.zeros(len(embeddings), np.uint32)
        return self._descent.nodes(embeddings, level)

    @cached_property
    def centroid_norms(self) -> list[NDArray[np.float32]]:
        """[num_nodes] L2 norms of the centroids, for levels 1 … depth."""
        return [np.linalg.norm(centroids, axis=1) for centroids in self.centroids_per_level]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made when first needed: for assignment, as large as the centroids."""
        return {name: self.__dict__[name] for name in ("arity", "depth", "nodes_per_level", "centroids_per_level")}

    def _check_width(self, embeddings: NDArray[Any]) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise InputError(
                f"embeddings must be [num_windows, {self.dim}], got {list(embeddings.shape)}. Use the tree's encoder."
            )

    @cached_property
    def _descent(self) -> Descent:
        return Descent(self.arity, self.nodes_per_level, self.centroids_per_level)

    def save(self, folder: str | Path) -> None:
        """Write tree.json and two .npy files per level into `folder`."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name, content in self.to_files().items():
            (target / name).write_bytes(content)

    def to_files(self) -> dict[str, bytes]:
        """File name to content, as `save` writes them."""
        files = {}
        for level, (nodes, centroids) in enumerate(zip(self.nodes_per_level, self.centroids_per_level, strict=True), 1):
            files[f"level{level}.nodes.npy"] = _npy_bytes(nodes.astype("<u4", copy=False))
            files[f"level{level}.centroids.npy"] = _npy_bytes(centroids.astype("<f4", copy=False))
        shape = {"tree_version": TREE_VERSION, "arity": self.arity, "depth": self.depth, "dim": self.dim}
        files["tree.json"] = (json.dumps({**shape, "fingerprint": self.fingerprint}, indent=2) + "\n").encode()
        return files

    @classmethod
    def load(cls, url: str | Path, *, timeout: float = 120.0) -> ClusterTree:
        """Read a saved tree from a local folder or an object-store prefix that holds tree.json.

        A request that fails is given up after `timeout` seconds.

        Raises:
            FormatError: files are missing, damaged or do not fit together.
        """
        store = open_store(str(url), timeout=timeout)
        try:
            shape = json.loads(store.get("tree.json"))
            if not isinstance(shape, dict) or shape.get("tree_version") != TREE_VERSION:
                raise FormatError(f"{url}/tree.json: tree_version must be {TREE_VERSION}. Upgrade crisp-stream.")
            arity, depth = int(shape["arity"]), int(shape["depth"])
            if not (2 <= arity <= 64 and 1 <= depth <= 24):
                raise FormatError(f"{url}/tree.json: arity must be 2 to 64 and depth 1 to 24, got {arity} and {depth}.")
            levels = range(1, depth + 1)
            tree = cls(
                arity=arity,
                depth=depth,
                nodes_per_level=[_load_npy(store, f"level{level}.nodes.npy") for level in levels],
                centroids_per_level=[_load_npy(store, f"level{level}.centroids.npy") for level in levels],
            )
        except (MissingObjectError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{url}: not a readable tree ({error}). Restore its files.") from error
        if tree.fingerprint != shape.get("fingerprint"):
            raise FormatError(f"{url}: the centroids do not match the fingerprint in tree.json. Restore its files.")
        return tree


def _npy_bytes(array: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()


def _load_npy(store: Store, name: str) -> NDArray[Any]:
    content = store.get(name)
    file = io.BytesIO(content)
    try:
        major, _ = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    except Exception as error:  # numpy reads the header with Python's own parser, which raises of all kinds
        raise ValueError(f"{name}: not a .npy file: {error}") from error
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell() or dtype.kind not in "uif":
        raise ValueError(f"{name}: {len(content)} bytes are not {shape} numbers of {dtype}")
    return np.load(io.BytesIO(content), allow_pickle=False)


def _check(tree: ClusterTree) -> None:
    if len(tree.nodes_per_level) != tree.depth or len(tree.centroids_per_level) != tree.depth:
        raise FormatError(f"a tree of depth {tree.depth} needs {tree.depth} levels, got {len(tree.nodes_per_level)}.")
    parents = np.zeros(1, np.int64)
    for level, (nodes, centroids) in enumerate(zip(tree.nodes_per_level, tree.centroids_per_level, strict=True), 1):
        if centroids.ndim != 2 or len(centroids) != len(nodes) or centroids.shape[1] != tree.dim:
            raise FormatError(
                f"level {level}: needs one centroid of width {tree.dim} per node, got {list(centroids.shape)}."
            )
        families = nodes.astype(np.int64).reshape(-1, tree.arity) if len(nodes) % tree.arity == 0 else None
        complete = (
            families is not None and (np.diff(families, axis=1) == 1).all() and (families[:, 0] % tree.arity == 0).all()
        )
        if families is None or not complete or (np.diff(nodes.astype(np.int64)) <= 0).any():
            raise FormatError(f"level {level}: node ids must be sorted, with {tree.arity} siblings each.")
        above = families[:, 0] // tree.arity
        if not np.isin(above, parents).all() or (level == 1 and len(families) != 1):
            raise FormatError(f"level {level}: every node needs its parent at level {level - 1}.")
        parents = nodes.astype(np.int64)
