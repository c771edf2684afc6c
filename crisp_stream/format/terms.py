"""provenance/terms.parquet: what the clusters of a dataset are about, in words, and a text of each.

Found once, when a dataset is written or grows, and read by whatever names a cluster: so one cluster has one name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, MissingObjectError
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.parquet import DAMAGE, parquet_bytes, read_parquet

TERMS = "provenance/terms.parquet"
TERMS_VERSION = 1
TERMS_KEY = b"crisp_stream.terms"
"""Key of the facts in the file's metadata: `terms_version`, and `purities`, one for each level."""
STORED_NODES = 4_096
"""Levels with more nodes than that are not stored: their terms are found, by the same rule, where they are shown."""
LEAST_PURITY = 0.76
"""Clusters below that are not of topics alone. Measured on mixed corpora of 150 to 3,300 windows: those of MiniLM have
0.77 to 0.81, those of an LSI 0.67 to 0.75 (docs/write/embedding.md)."""
_MAX_ROWS = 24 * STORED_NODES


@dataclass(frozen=True, kw_only=True)
class LevelTerms:
    """Terms and a sample text of nodes of one level."""

    nodes: NDArray[np.uint32]
    """[num_nodes], node ids, sorted where they are all of a level."""
    windows_read_per_node: NDArray[np.int64]
    """[num_nodes], how many of them were looked at."""
    terms: list[tuple[str, ...]]
    """[num_nodes], the terms that set each node apart, strongest first; none where no term stands out."""
    texts: list[str]
    """[num_nodes], the beginning of the window that holds most of the node's terms, among those read."""


@dataclass(frozen=True, kw_only=True)
class StoredTerms:
    """The terms of the levels that are stored."""

    levels: Mapping[int, LevelTerms]
    """Of all nodes of each level that have windows."""
    purities: Mapping[int, float] = field(default_factory=dict)
    """The topical purity of levels, 0 to 1: how far their clusters are told apart by content words, not by style."""

    def to_parquet(self) -> bytes:
        """The bytes of the file."""
        rows = [
            {"level": level, "node": node, "windows_read": read, "terms": terms, "text": text}
            for level, found in sorted(self.levels.items())
            for node, read, terms, text in zip(
                found.nodes.tolist(), found.windows_read_per_node.tolist(), found.terms, found.texts, strict=True
            )
        ]
        purities = {str(level): round(purity, 4) for level, purity in sorted(self.purities.items())}
        facts = json.dumps({"terms_version": TERMS_VERSION, "purities": purities}, sort_keys=True)
        schema = _SCHEMA.with_metadata({TERMS_KEY: facts.encode()})
        return parquet_bytes(pa.Table.from_pylist(rows, schema=schema), write_page_checksum=True)


_SCHEMA = pa.schema(
    [
        ("level", pa.uint8()),
        ("node", pa.uint32()),
        ("windows_read", pa.uint32()),
        ("terms", pa.list_(pa.string())),
        ("text", pa.string()),
    ]
)


def stored_terms(dataset: Dataset) -> StoredTerms | None:
    """What a dataset has stored; None for one that was made without.

    Raises:
        FormatError: the file is damaged. StorageError.
    """
    path = dataset.own_path(TERMS)
    try:
        content = dataset.store.get(path)
    except MissingObjectError:
        return None
    try:
        return _read(read_parquet(content, max_rows=_MAX_ROWS))
    except DAMAGE as error:
        raise FormatError(
            f"{dataset.root}/{path}: must be a table of terms, got: {error}. Restore the file."
        ) from error


def _read(table: pa.Table) -> StoredTerms:
    facts: dict[str, Any] = json.loads((table.schema.metadata or {})[TERMS_KEY])
    if facts["terms_version"] != TERMS_VERSION:
        raise ValueError(f"terms_version {facts['terms_version']}, this version reads {TERMS_VERSION}")
    table = table.cast(_SCHEMA)
    level_per_row = table["level"].to_numpy()
    levels = {}
    for level in np.unique(level_per_row).tolist():
        rows = table.take(np.flatnonzero(level_per_row == level))
        levels[level] = LevelTerms(
            nodes=rows["node"].to_numpy(),
            windows_read_per_node=rows["windows_read"].to_numpy().astype(np.int64),
            terms=[tuple(terms) for terms in rows["terms"].to_pylist()],
            texts=[str(text) for text in rows["text"].to_pylist()],
        )
    purities = {int(level): float(purity) for level, purity in facts["purities"].items()}
    return StoredTerms(levels=levels, purities=purities)
