"""The files behind the inputs, in reading order: inputs as given, the files of a folder, prefix or glob by name.

One listing per input, whatever the number of files: sizes and versions come with it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.storage.inputs import ListedFile, describe_inputs, open_input
from crisp_stream.storage.store import is_remote, local_path
from crisp_stream.writers.documents.drops import OTHER_FILE, DropCounts
from crisp_stream.writers.documents.hub import list_hub_shards
from crisp_stream.writers.documents.inputs import HUB_SCHEME, SUFFIXES_TEXT, DocumentSettings, InputFile, file_kind
from crisp_stream.writers.documents.redpajama import list_redpajama_files
from crisp_stream.writers.documents.standard_input import STANDARD_INPUT

_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"
"""Files that `datasets` writes beside its .arrow files."""


def list_input_files(inputs: Sequence[str], settings: DocumentSettings, counts: DropCounts) -> list[InputFile]:
    """The files behind `inputs` that hold documents, in reading order.

    A file that is named must be of a known kind; files of another kind inside a folder or glob are passed over and
    counted.

    Args:
        inputs: files, folders, prefixes or globs, local or on an object store; `hf://NAME[:CONFIG][@SPLIT]`.
        settings: the layout, and whether filters need the quality signals.
        counts: receives the files that were passed over.

    Raises:
        InputError: no inputs; an input that matches nothing, or nothing of a known kind; a dataset of several splits.
        StorageError: the storage cannot be listed.
    """
    if not inputs:
        raise InputError("inputs: at least one file, folder, prefix or glob is needed, got none. Name your documents.")
    files: list[InputFile] = []
    for source in inputs:
        if source == STANDARD_INPUT:
            raise InputError(
                "-: standard input is read by the commands write, append and tree fit alone. Put the documents into a "
                "file and name it."
            )
        if source.startswith(HUB_SCHEME):
            if settings.layout != "files":
                raise InputError(f"{source}: the layout {settings.layout} is one of files, got a name. Leave it out.")
            files += list_hub_shards(source)
            continue
        listed = describe_inputs(source if is_remote(source) else str(local_path(source).absolute()))
        if settings.layout == "redpajama-v2":
            files += list_redpajama_files(source, listed, settings, counts)
        else:
            files += _plain_files(source, listed, counts)
    return _with_unique_names(files)


def _plain_files(source: str, listed: list[ListedFile], counts: DropCounts) -> list[InputFile]:
    offered = _without_dataset_records(source, listed)
    files = [
        InputFile(url=file.url, name=file.path, kind=kind, num_bytes=file.num_bytes, version=file.version)
        for file in offered
        if (kind := file_kind(file.path)) is not None
    ]
    if not files:
        raise InputError(
            f"{source}: documents come from {SUFFIXES_TEXT}; got {PurePosixPath(listed[0].path).name}. "
            "Rename or convert the file, or name another input."
        )
    counts.add(OTHER_FILE, len(offered) - len(files))
    return files


def _without_dataset_records(source: str, listed: list[ListedFile]) -> list[ListedFile]:
    """Leave out what `datasets` writes beside its .arrow files, and .arrow files that its record does not name.

    Raises:
        InputError: a DatasetDict of several splits. CorruptInputError: a file that the record names is not there.
    """
    by_path = {file.path: file for file in listed}
    folders = {_folder(path) for path in by_path if path.endswith(".arrow")}
    left_out: set[str] = set()
    for path, file in by_path.items():
        name, folder = PurePosixPath(path).name, _folder(path)
        if name == _DICT and any(other.startswith(folder) for other in folders):
            _require_one_split(source, file)
            left_out.add(path)
        elif name in (_STATE, _INFO) and folder in folders:
            left_out.add(path)
            if name == _STATE:
                left_out |= _not_in_state(file, folder, by_path)
    return [file for path, file in by_path.items() if path not in left_out]


def _folder(path: str) -> str:
    return path[: path.rfind("/") + 1]


def _require_one_split(source: str, file: ListedFile) -> None:
    splits = [str(split) for split in _read_record(file).get("splits", [])]
    if len(splits) > 1:
        raise InputError(
            f"{source}: a dataset must have one split to be read whole, got {', '.join(splits)}. "
            f"Name the folder of one, for example {_folder(file.url)}{splits[0]}."
        )


def _not_in_state(file: ListedFile, folder: str, by_path: dict[str, ListedFile]) -> set[str]:
    """The .arrow files of `folder` that state.json does not name: left from an earlier save."""
    try:
        named = {folder + str(entry["filename"]) for entry in _read_record(file)["_data_files"]}
    except (KeyError, TypeError) as error:
        raise CorruptInputError(
            f"{file.url}: must name the files of the dataset, got no {error}. Save the dataset again."
        ) from error
    for path in sorted(named - by_path.keys()):
        raise CorruptInputError(
            f"{file.url}: every file of the dataset must be there, {PurePosixPath(path).name} is not. "
            "Copy the folder again, or save the dataset again."
        )
    return {path for path in by_path if path.endswith(".arrow") and _folder(path) == folder} - named


def _read_record(file: ListedFile) -> dict[str, Any]:
    try:
        with open_input(file.url) as content:
            return dict(json.loads(content.read()))
    except (ValueError, TypeError) as error:
        raise CorruptInputError(
            f"{file.url}: must be the JSON object that `datasets` writes, got: {error}. Save the dataset again."
        ) from error


def _with_unique_names(files: list[InputFile]) -> list[InputFile]:
    """Names that several inputs share get the folder of their input in front; where that is shared too, a number."""
    taken = Counter(file.name for file in files)
    longer = [
        replace(file, name=f"{_input_folder(file)}/{file.name}") if taken[file.name] > 1 else file for file in files
    ]
    seen: Counter[str] = Counter()
    unique: list[InputFile] = []
    for file in longer:
        seen[file.name] += 1
        unique.append(file if seen[file.name] == 1 else replace(file, name=f"{file.name}~{seen[file.name]}"))
    return unique


def _input_folder(file: InputFile) -> str:
    return PurePosixPath(file.url.removesuffix(file.name)).name or "root"
