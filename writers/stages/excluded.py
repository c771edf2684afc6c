"""Stage `excluded`: lists of ids to sorted hashes, which reading looks documents up in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from crisp_stream.writers.cleaning.excluded_ids import ExcludedIds, read_ids, save_hashes
from crisp_stream.writers.documents.inputs import InputFile
from crisp_stream.writers.engine.tasks import Record, Task, file_sizes
from crisp_stream.writers.engine.workspace import Workspace, scratch_folder


@dataclass(frozen=True, kw_only=True)
class ExcludedTask(Task):
    """Sort the hashes of all ids that are to be left out."""

    stage: ClassVar[str] = "excluded"

    files: tuple[InputFile, ...]

    def settings(self) -> Any:
        """The files."""
        return [asdict(file) for file in self.files]

    def make(self) -> Record:
        """Write the hashes in some files, and what the first of each is."""
        num_hashes = 0
        names: list[str] = []

        def save(number: int, hashes: Any) -> None:
            nonlocal num_hashes
            num_hashes += hashes.shape[1]
            names.append(_hashes_file(self.key, number))
            self.workspace.save_array(names[-1], hashes)

        with scratch_folder() as scratch:
            firsts = save_hashes((name for file in self.files for name in read_ids(file)), scratch, save)
        self.workspace.write(_firsts_file(self.key), json.dumps(firsts).encode())
        return {"num_units": num_hashes, "files": file_sizes(self, *names, _firsts_file(self.key))}


def excluded_ids(workspace: Workspace, key: str) -> ExcludedIds:
    """The ids of an `ExcludedTask`, by its key; files are copied here or mapped when they are first needed."""

    def load(number: int) -> Any:
        [path] = workspace.kept(_hashes_file(key, number))
        return np.load(path, mmap_mode="r", allow_pickle=False)

    return ExcludedIds(json.loads(workspace.read(_firsts_file(key))), load)


def _firsts_file(key: str) -> str:
    return f"{key}.firsts.json"


def _hashes_file(key: str, number: int) -> str:
    return f"{key}.{number:06d}.npy"
