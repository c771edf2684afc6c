"""Datasets by name, `hf://NAME[:CONFIG][@SPLIT]`, streamed through the `datasets` library shard by shard.

NAME is a dataset of the Hugging Face hub, as `allenai/c4`, or a local folder that `datasets.load_dataset` takes. All
that `datasets` reads can be read so; files that are at hand are read faster and with better errors by their paths.
"""

from __future__ import annotations

import gzip
import itertools
import os
import socket
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from crisp_stream.errors import CorruptInputError, InputError, StorageError, import_extra
from crisp_stream.records.readers import Record
from crisp_stream.writers.documents.inputs import HUB_SCHEME, InputFile

_CONNECT_SECONDS = 5.0


def list_hub_shards(source: str) -> list[InputFile]:
    """The shards of a dataset by name, in its order.

    Raises:
        InputError: not such a name, no such dataset, configuration or split, or several splits and none named.
        StorageError: the hub cannot be reached.
    """
    name, config, split = _parse(source)
    builder = _builder(source, name, config)
    by_split = _call(source, builder.as_streaming_dataset)
    splits = list(by_split)
    if split is None and len(splits) > 1:
        raise InputError(
            f"{source}: one split must be named, got {', '.join(splits)}. Write for example {source}@{splits[0]}."
        )
    split = split or splits[0]
    if split not in splits:
        raise InputError(f"{source}: the split must be one of {', '.join(splits)}, got {split}. Name one of these.")
    num_shards = int(by_split[split].num_shards)
    shown = PurePosixPath(name).name if Path(name).is_dir() else name
    suffix = f"{f':{config}' if config else ''}@{split}"
    return [
        InputFile(
            url=f"{HUB_SCHEME}{name}{suffix}",
            name=f"{shown}{suffix}/{shard:05d}-of-{num_shards:05d}",
            kind="hub",
            num_bytes=0,
            version=str(builder.hash),
            shard=shard,
            num_shards=num_shards,
        )
        for shard in range(num_shards)
    ]


def read_hub(file: InputFile, paths: Sequence[str]) -> Iterator[Record]:
    """The rows of one shard.

    Raises:
        InputError: the dataset was changed since it was listed. CorruptInputError: a file of it is damaged.
        StorageError: the hub cannot be reached.
    """
    name, config, split = _parse(file.url)
    builder = _builder(file.url, name, config)
    if str(builder.hash) != file.version:
        raise InputError(
            f"{file.url}: the dataset must stay as it was listed, got another revision. Start again with the new one."
        )
    rows = _call(file.url, lambda: builder.as_streaming_dataset(split=split))
    top_columns = {path.partition(".")[0] for path in paths}
    if rows.column_names and top_columns <= set(rows.column_names):
        rows = rows.select_columns(sorted(top_columns))
    rows = iter(rows.shard(num_shards=file.num_shards, index=file.shard))
    for number in itertools.count(1):
        row = _next_row(rows, f"{file.url}, shard {file.shard}: row {number}")
        if row is None:
            return
        yield number, row


def _next_row(rows: Iterator[dict[str, Any]], place: str) -> dict[str, Any] | None:
    import pyarrow as pa

    try:
        return next(rows, None)
    except (pa.ArrowException, ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptInputError(
            f"{place}: must be readable through datasets, got {type(error).__name__}: {error}. "
            "Fetch the dataset again, or leave it out."
        ) from error
    except OSError as error:
        raise StorageError(f"{place}: cannot be read: {error}. Check the network and the disk.") from error


def _parse(source: str) -> tuple[str, str | None, str | None]:
    """(name, configuration, split). Raises InputError."""
    rest, _, split = source.removeprefix(HUB_SCHEME).partition("@")
    name, _, config = rest.partition(":")
    if not name or rest.endswith(":") or source.endswith("@"):
        raise InputError(
            f"{source}: a dataset by name must be hf://NAME[:CONFIG][@SPLIT]. Write for example hf://a/b@train."
        )
    return name, config or None, split or None


def _builder(source: str, name: str, config: str | None) -> Any:
    datasets = import_extra("datasets", extra="write", purpose="a dataset by name")
    if not Path(name).is_dir():
        _require_connection(source)
    return _call(source, lambda: datasets.load_dataset_builder(name, name=config))


def _call(source: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # of any library under `datasets`
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):  # an unknown dataset is "not found"
            raise _unreachable(f"{source}:", error) from error
        raise InputError(
            f"{source}: must be a dataset that datasets can load, got {type(error).__name__}: {error}. "
            "Check the name, the configuration and the split, and HF_TOKEN if it is not public."
        ) from error


def _unreachable(subject: str, error: OSError) -> StorageError:
    return StorageError(
        f"{subject} cannot be reached: {error}. Check the network and HF_ENDPOINT, or fetch the dataset and name its "
        "folder."
    )


def _require_connection(source: str) -> None:
    """Ask for a connection once: `datasets` would try for half a minute. Raises StorageError."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(f"{source}: the hub at {endpoint.geturl()}", error) from error
