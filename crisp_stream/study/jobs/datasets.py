"""Jobs that make a study's datasets: the corpus, embeddings of its windows, and the text of specialists."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.histograms.arithmetic import generalist_histogram
from crisp_stream.study.jobs.job import JobPlace

if TYPE_CHECKING:
    from crisp_stream.writers.options import WriteOptions

EMBEDDINGS = "embeddings"
"""Folder of a dataset's embeddings, in the folder of a job."""
_ROOT = "dataset.json"


def dataset_of(folder: Path) -> Dataset:
    """Open the dataset that a job opened or wrote."""
    return open_dataset(json.loads((folder / _ROOT).read_text())["root"].replace("{job}", str(folder)))


def open_root(place: JobPlace, *, root: str, fingerprint: str) -> dict[str, Any]:
    """Open a dataset that exists already. Raises InputError: it was replaced since the plan was made."""
    noted = _noted(place, root)
    if noted["fingerprint"] != fingerprint:
        raise InputError(f"{root}: was replaced while the study ran. Start the study again.")
    return noted


def write_dataset(
    place: JobPlace,
    *,
    inputs: Sequence[str],
    text_column: str,
    limit: int | None,
    sample: float | None,
    window_tokens: int,
    min_split: int | None,
    seed: int,
    like: bool,
    other: Path | None = None,
    **model_and_tree: Any,
) -> dict[str, Any]:
    """Write the corpus as a dataset, with the tokenizer and windows of `other`; with `like` also with its tree.

    `model_and_tree`: the other keys of `DatasetSettings`.
    """
    from crisp_stream.writers.options import WriteOptions

    written = None if other is None else dataset_of(other)
    plain = WriteOptions(
        inputs=tuple(inputs),
        out=str(place.folder / "data"),
        text_column=text_column,
        limit=limit,
        sample=sample,
        seed=seed,
        processes=place.processes,
        embeddings=str(place.folder / EMBEDDINGS),
    )
    if written is not None and like:
        options = dataclasses.replace(plain, like=written.root)
    else:
        options = dataclasses.replace(
            plain,
            window_tokens=window_tokens if written is None else written.manifest.window_tokens,
            tokenizer=None if written is None else str(written.tokenizer_path()),
            min_examples_to_split=min_split,
            **model_and_tree,
        )
    return _written(place, options)


def _written(place: JobPlace, options: WriteOptions) -> dict[str, Any]:
    from crisp_stream.writers.write import write

    if not (place.folder / "data" / "manifest.json").is_file():  # published, but the job was stopped before it said so
        write(options, log=place.log)
    return _noted(place, "{job}/data")


def embed_dataset(place: JobPlace, *, dataset: Path) -> dict[str, Any]:
    """Embed all windows, or take the embeddings that were kept when the dataset was written."""
    from crisp_stream.format.embeddings import FACTS
    from crisp_stream.selection.embed_windows import embed_windows

    out, kept = place.folder / EMBEDDINGS, dataset / EMBEDDINGS
    if (kept / FACTS).is_file() and not out.exists():
        out.symlink_to(os.path.relpath(kept, out.parent))
    embeddings = embed_windows(dataset_of(dataset).root, str(out), processes=place.processes, log=place.log)
    return {"windows": len(embeddings.rows)}


def write_specialist_data(
    place: JobPlace, *, name: str, limit: int | None, dataset: Path, specialist: Path
) -> dict[str, Any]:
    """Write a specialist's documents as a dataset, with the corpus's tokenizer and length of windows.

    Methods choose nothing from it, so the cheapest tree is enough.
    """
    from crisp_stream.writers.options import WriteOptions

    corpus = dataset_of(dataset)
    options = WriteOptions(
        inputs=(str(specialist / f"{name}.train.jsonl"),),
        out=str(place.folder / "data"),
        limit=limit,
        window_tokens=corpus.manifest.window_tokens,
        packing=corpus.manifest.packing,
        tokenizer=str(corpus.tokenizer_path()),
        encoder="lsi",
        arity=2,
        depth=1,
        processes=1,
    )
    return _written(place, options)


def _noted(place: JobPlace, root: str) -> dict[str, Any]:
    """Note the place of the dataset for the jobs that use it, and describe it."""
    (place.folder / _ROOT).write_text(json.dumps({"root": root}) + "\n")
    dataset = dataset_of(place.folder)
    manifest = dataset.manifest
    levels = range(1, manifest.depth + 1)
    return {
        "fingerprint": manifest.fingerprint,
        "windows": manifest.num_windows,
        "window_tokens": manifest.window_tokens,
        "encoder": manifest.encoder.name,
        "nodes_per_level": [len(generalist_histogram(dataset, level).nodes) for level in levels],
    }
