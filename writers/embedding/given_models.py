"""Tokenizer, encoder and tree that exist already: of a dataset (`write --like`), or of a folder of `tree fit`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.storage.store import open_store
from crisp_stream.tree.tree import ClusterTree
from crisp_stream.writers.embedding.fitted import FITTED_FILES, FITTED_FOLDER, fitted_kind
from crisp_stream.writers.embedding.probe import encoder_file_of

FITTED = "fitted.json"
"""File in a folder of `tree fit` that says how the tree was fitted."""
FITTED_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Models:
    """Tokenizer, encoder and tree for new windows."""

    root: str
    """Dataset root or folder, for messages."""
    window_tokens: int
    encoder: EncoderRecord
    tree: ClusterTree
    tokenizer: Path
    """Folder."""
    origin: dict[str, Any]
    """Their entry in the provenance of a dataset."""

    def fitted_files(self) -> dict[str, bytes]:
        """The encoder's files, where a write fitted it."""
        kind, store = fitted_kind(self.encoder), open_store(self.root)
        return {name: store.get(f"{FITTED_FOLDER}/{name}") for name in FITTED_FILES.get(kind or "", ())}

    def encoder_file(self) -> bytes:
        """What is kept of the encoder beside its record. Raises FormatError, StorageError."""
        return encoder_file_of(self.root, self.encoder).to_json()


def models_of_dataset(dataset: Dataset) -> Models:
    """Load those of a dataset. Raises FormatError, StorageError."""
    return Models(
        root=dataset.root,
        window_tokens=dataset.manifest.window_tokens,
        encoder=dataset.manifest.encoder,
        tree=dataset.tree,
        tokenizer=dataset.tokenizer_path(),
        origin={"like": dataset.manifest.fingerprint},
    )


def models_of_folder(folder: str) -> Models:
    """Load those of a folder that `tree fit` made.

    Raises:
        InputError: it is no such folder. FormatError: its files are damaged.
    """
    path = Path(folder)
    if not (path / FITTED).is_file():
        raise InputError(f"tree {folder}: must be a folder of `crisp-stream tree fit`, got none with {FITTED}.")
    try:
        record = json.loads((path / FITTED).read_text())
        version = record["fitted_version"]
        if version != FITTED_VERSION:
            raise FormatError(f"{path / FITTED}: fitted_version must be {FITTED_VERSION}, got {version}. Fit it again.")
        tree = ClusterTree.load(path / "tree")
        if tree.fingerprint != record["tree_fingerprint"]:
            raise FormatError(f"{path}: the tree is not the one of {FITTED}. Fit it again.")
        return Models(
            root=folder,
            window_tokens=int(record["window_tokens"]),
            encoder=EncoderRecord(**record["encoder"]),
            tree=tree,
            tokenizer=path / "tokenizer",
            origin={"fitted": tree.fingerprint},
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path / FITTED}: not readable ({error}). Fit the tree again.") from error


def fitted_json(window_tokens: int, encoder: EncoderRecord, tree: ClusterTree, known: dict[str, Any]) -> bytes:
    """The content of `fitted.json`; `known` is kept beside."""
    record = {
        "fitted_version": FITTED_VERSION,
        "window_tokens": window_tokens,
        "encoder": dataclasses.asdict(encoder),
        "tree_fingerprint": tree.fingerprint,
        **known,
    }
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
