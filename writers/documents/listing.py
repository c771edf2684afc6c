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
from crisp_stream.format.ledger import Ledger
from crisp_stream.storage.inputs import ListedFile, list_input, open_input, printable
from crisp_stream.storage.store import is_remote, local_path
from crisp_stream.writers.documents.hub import list_hub_shards
from crisp_stream.writers.documents.inputs import HUB_SCHEME, SUFFIXES_TEXT, DocumentSettings, InputFile, file_kind
from crisp_stream.writers.documents.redpajama import list_redpajama_files
from crisp_stream.writers.documents.standard_input import STANDARD_INPUT

OTHER_FILE = "file of another kind"
DATASET_RECORD = "record of the datasets library"
NOT_IN_STATE = "file that state.json does not name"
_ALWAYS_RECORDS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_STATE, _DICT = "state.json", "dataset_dict.json"
"""Files that `datasets` writes beside its .arrow files."""


def list_input_files(
    inputs: Sequence[str], settings: DocumentSettings, ledger: Ledger | None = None
) -> list[InputFile]:
    """The files behind `inputs` that hold documents, in reading order.

    A file that is named must be of a known kind; files of another kind inside a folder or glob are passed over, and so
    are hidden names (storage/local_listing.py has the rules).

    Args:
        inputs: files, folders, prefixes or globs, local or on an object store; `hf://NAME[:CONFIG][@SPLIT]`.
        settings: the layout, whether filters need the quality signals, and whether what cannot be read is left out.
        ledger: receives the paths that were passed over.

    Raises:
        InputError: no inputs; an input that matches nothing, or nothing of a known kind; a dataset of several splits.
        StorageError: the storage cannot be listed.
    """
    if not inputs:
        raise InputError("inputs: at least one file, folder, prefix or glob is needed, got none. Name your documents.")
    files: list[InputFile] = []
    ledger = Ledger() if ledger is None else ledger
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
        url = source if is_remote(source) else str(local_path(source).absolute())
        listing = list_input(url, leave_out=settings.skip_corrupt)
        for skipped in listing.skipped:
            ledger.skip(skipped.reason, skipped.path)
        if not listing.files:
            continue  # all of it was left out on request
        if settings.layout == "redpajama-v2":
            files += list_redpajama_files(source, listing.files, settings, ledger)
        elif listing.names_a_file:
            files += _plain_files(source, listing.files, ledger)
        else:
            files += _plain_files(source, _without_dataset_records(source, listing.files, ledger), ledger)
    if not files:
        raise InputError(
            f"{', '.join(inputs)}: at least one file that can be read is needed, got none. Check the permissions."
        )
    return _with_unique_names(files)


def _plain_files(source: str, offered: list[ListedFile], ledger: Ledger) -> list[InputFile]:
    files = [
        InputFile(url=file.url, name=file.path, kind=kind, num_bytes=file.num_bytes, version=file.version)
        for file in offered
        if (kind := file_kind(file.path)) is not None
    ]
    if not files:
        got = PurePosixPath(offered[0].path).name if offered else "records of the datasets library alone"
        raise InputError(
            f"{source}: documents come from {SUFFIXES_TEXT}; got {got}. "
            "Rename or convert the file, or name another input."
        )
    for file in offered:
        if file_kind(file.path) is None:
            ledger.skip(OTHER_FILE, file.path)
    return files


def _without_dataset_records(source: str, listed: list[ListedFile], ledger: Ledger) -> list[ListedFile]:
    """Leave out what `datasets` writes beside its files, and .arrow files that its record does not name.

    Raises:
        InputError: a DatasetDict of several splits. CorruptInputError: a file that the record names is not there.
    """
    by_path = {file.path: file for file in listed}
    folders = {_folder(path) for path in by_path if path.endswith(".arrow")}
    left_out: dict[str, str] = {}
    for path, file in by_path.items():
        name, folder = PurePosixPath(path).name, _folder(path)
        if name == _DICT and any(other.startswith(folder) for other in folders):
            _require_one_split(source, file)
        if name in _ALWAYS_RECORDS or (name == _STATE and folder in folders):
            left_out[path] = DATASET_RECORD
        if name == _STATE and folder in folders:
            left_out |= dict.fromkeys(sorted(_not_in_state(file, folder, by_path)), NOT_IN_STATE)
    for path, reason in left_out.items():
        ledger.skip(reason, path)
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
    above = PurePosixPath(file.url).parents[file.name.count("/")]
    return printable(above.name) or "root"
