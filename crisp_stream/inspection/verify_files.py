"""The deep part of a verification that reads the small files: each has the bytes that were written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from crisp_stream.errors import CrispError, MissingObjectError
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.listed_files import listed_files
from crisp_stream.format.manifest import MANIFEST, Manifest, kept_manifest
from crisp_stream.format.provenance import has_provenance


def file_problems(dataset: Dataset, known: Sequence[str]) -> list[str]:
    """Compare all small files with the list of them, and the manifests with themselves.

    Args:
        known: problems that were found already; files that they begin with are passed over.
    """
    problems = _manifest_problems(dataset)
    if not dataset.manifest.files_sha256 and not has_provenance(dataset):
        return problems  # it has neither, as is said already
    try:
        listed = listed_files(dataset)
    except CrispError as error:
        return [*problems, str(error)]
    for path, sha256 in listed.items():
        if not any(path in problem.partition(": ")[0] for problem in known):
            problems += _file_problem(dataset, path, sha256)
    return problems


def _file_problem(dataset: Dataset, path: str, sha256: str) -> list[str]:
    try:
        digest = hashlib.sha256(dataset.store.get(path)).hexdigest()
    except CrispError as error:
        return [str(error)]
    return [] if digest == sha256 else [f"{path}: has sha256 {digest[:12]}, the list of files says {sha256[:12]}"]


def _manifest_problems(dataset: Dataset) -> list[str]:
    """What is wrong with the manifest, and with those that are kept of older generations, byte for byte."""
    newest = Manifest.from_json(dataset.store.get(MANIFEST)).generation
    paths = [kept_manifest(generation) for generation in range(newest)]
    problems: list[str] = []
    for path in (MANIFEST, *paths):
        try:
            content = dataset.store.get(path)
            manifest = Manifest.from_json(content)
        except MissingObjectError:
            continue  # pruned
        except CrispError as error:
            problems.append(f"{path}: {error}")
            continue
        if manifest.to_json() != content:
            problems.append(f"{path}: is not written as its content wants it; a byte of it was changed")
        if path != MANIFEST and kept_manifest(manifest.generation) != path:
            problems.append(f"{path}: is the manifest of generation {manifest.generation}")
    return problems
