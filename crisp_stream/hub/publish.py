"""Put the newest generation of a dataset on the hub: data by several commits, then in one what makes it a dataset.

A commit of very many files is refused or runs out of time, so shards and tables go by `COMMIT_FILES` and
`COMMIT_BYTES`. Nobody reads them before the last commit, which holds manifest.json, the indexes and the card: a
repository has the dataset whole or not at all. Where it has an older generation, that one is read until then, and
beside the new one afterwards. A command that was stopped begins by comparing what the hub lists, so it sends only what
is not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crisp_stream.errors import FormatError, InputError, StorageError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.listed_files import FILES, SHARED, listed_files
from crisp_stream.format.manifest import MANIFEST, Manifest, kept_manifest, places_path
from crisp_stream.hub.card import CARD, CARD_MARK, dataset_card, licence_of
from crisp_stream.hub.repository import HubRepository, Upload
from crisp_stream.loading.reader import ReadOptions, WindowReader
from crisp_stream.processes import Log
from crisp_stream.storage.download import download
from crisp_stream.storage.hub import HubRoot, is_hub, list_files
from crisp_stream.storage.object_store import ObjectStore
from crisp_stream.storage.store import local_path
from crisp_stream.writers.publishing.generations import indexes_are_of, used_files

COMMIT_FILES = 200
COMMIT_BYTES = 8 << 30
_BLOCK_BYTES = 1 << 20
_WINDOWS_READ = 8
"""Windows that are read from the hub at the end, spread over the dataset."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publication did."""

    url: str
    """The root to read, hf://datasets/…"""
    commit: str | None
    """The commit that made it whole; None where it was there already."""
    num_files: int
    """Files of the dataset on the hub."""
    num_bytes: int
    sent_files: int
    """Files that were sent by this command."""
    sent_bytes: int


def publish(
    root: str | Dataset,
    url: str,
    *,
    private: bool = False,
    licence: str | None = None,
    timeout: float = 600.0,
    log: Log = print,
) -> Published:
    """Put the newest generation of a dataset on the hub, with a dataset card, and compare every file there.

    Args:
        root: the dataset, local or in object storage, or its root.
        url: hf://datasets/OWNER/NAME[@BRANCH][/PATH]. Repository and branch are made where they are not there.
        private: make a new repository private.
        licence: of the texts, as the hub names it (such as cc-by-4.0), for the card.
        timeout: seconds after which a request that keeps failing is given up.
        log: receives progress.

    Raises:
        InputError: not such an address, or another dataset is there.
        FormatError: an append to the dataset has not finished.
        StorageError: no token, or one that may not write; the hub or the storage refused or failed; what arrived
            differs from what was sent.
        MissingExtraError: huggingface_hub is not installed.
    """
    if not is_hub(url):
        raise InputError(f"{url}: a dataset is published at hf://datasets/OWNER/NAME[@BRANCH][/PATH], got another URL.")
    place = HubRoot.parse(url)
    dataset = root if isinstance(root, Dataset) else open_dataset(root)
    if not indexes_are_of(dataset):
        raise FormatError(
            f"{dataset.root}: the indexes must be those of generation {dataset.manifest.generation}, got others: an "
            "append has not finished, or an older generation was opened. Run the append again, or open the newest."
        )
    repository = HubRepository(place, timeout=timeout)
    repository.create(private=private)
    job = _Job(dataset, place, repository, timeout, log)
    return job.run(licence)


class _Job:
    """One publication."""

    def __init__(self, dataset: Dataset, place: HubRoot, repository: HubRepository, timeout: float, log: Log) -> None:
        self._dataset, self._place, self._repository = dataset, place, repository
        self._timeout, self._log = timeout, log
        self._url = _url_of(place)
        self._digests: dict[str, tuple[int, str, str]] = {}
        self._shard_bytes = {row.path: row.shard_bytes for row in dataset.shards}
        self._sent_files = self._sent_bytes = 0

    def run(self, licence: str | None) -> Published:
        there = self._listed()
        older = self._older_there(there)
        data, last = dataset_files(self._dataset)
        parent = self._send_data([path for path in data if not self._is_there(path, there)])
        ending = self._ending(last, older, licence, there)
        commit = None
        if ending:
            name = f"dataset {self._dataset.manifest.fingerprint[:16]}"
            commit = self._repository.commit(ending, f"crisp-stream: {name} complete", parent=parent)
            self._sent_files += len(ending)
            self._sent_bytes += sum(len(one.content) for one in ending if isinstance(one.content, bytes))
        num_bytes = self._verify([*data, *last], commit)
        return Published(
            url=self._url,
            commit=commit,
            num_files=len(data) + len(last),
            num_bytes=num_bytes,
            sent_files=self._sent_files,
            sent_bytes=self._sent_bytes,
        )

    def _listed(self, commit: str | None = None) -> dict[str, tuple[int, str]]:
        """(bytes, version) of the files below the place, by path."""
        place = self._place if commit is None else _at(self._place, commit)
        return {path: (size, version) for path, size, version in list_files(place, "", timeout=self._timeout)}

    def _older_there(self, there: dict[str, tuple[int, str]]) -> int | None:
        """The generation of this dataset that the hub has, if it is an older one.

        Raises:
            InputError: it has another dataset.
        """
        if MANIFEST not in there:
            return None
        content = ObjectStore(self._url, timeout=self._timeout).get(MANIFEST)
        try:
            found = Manifest.from_json(content).fingerprint
        except FormatError:
            found = ""
        if found == self._dataset.manifest.fingerprint:
            return None
        generation = self._dataset.generation_with(found)
        if generation is None:
            got = f"the dataset {found[:16]}" if found else "a manifest.json of another program"
            raise InputError(
                f"{self._url}: must be free, or hold this dataset or an older generation of it, got {got}. "
                "Publish under another name or path, or delete that one on the hub."
            )
        return generation

    def _is_there(self, path: str, there: dict[str, tuple[int, str]]) -> bool:
        """Whether the hub has a file as the dataset has it; content is compared where sizes are equal."""
        if path not in there:
            return False
        size, version = there[path]
        return self._size(path) == size and version in self._digest(path)[1:]

    def _size(self, path: str) -> int:
        known = self._shard_bytes.get(path)
        return self._dataset.store.object_bytes(path) if known is None else known

    def _digest(self, path: str) -> tuple[int, str, str]:
        """(bytes, sha256, git's hash) of a file of the dataset."""
        if path not in self._digests:
            with _local_copies(self._dataset, [path]) as files:
                self._digests[path] = file_digests(files[path])
        return self._digests[path]

    def _send_data(self, paths: Sequence[str]) -> str | None:
        """Commit files in several commits; the last of them."""
        commit, total = None, len(paths)
        for batch in self._batches(paths):
            with _local_copies(self._dataset, batch) as files:
                for path in batch:
                    self._digests.setdefault(path, file_digests(files[path]))
                uploads = [Upload(self._place.file_path(path), files[path]) for path in batch]
                first = self._sent_files + 1
                commit = self._repository.commit(
                    uploads, f"crisp-stream: files {first} to {first + len(batch) - 1} of {total}"
                )
            self._sent_files += len(batch)
            self._sent_bytes += sum(self._digests[path][0] for path in batch)
            self._log(f"{self._sent_files:,} of {total:,} files, {self._sent_bytes / 1e6:,.1f} MB sent")
        return commit

    def _batches(self, paths: Sequence[str]) -> Iterator[list[str]]:
        batch, num_bytes = list[str](), 0
        for path in paths:
            size = self._size(path)
            if batch and (len(batch) == COMMIT_FILES or num_bytes + size > COMMIT_BYTES):
                yield batch
                batch, num_bytes = [], 0
            batch.append(path)
            num_bytes += size
        if batch:
            yield batch

    def _ending(
        self, last: Sequence[str], older: int | None, licence: str | None, there: dict[str, tuple[int, str]]
    ) -> list[Upload]:
        """What the last commit holds; nothing where all of it is there."""
        store = self._dataset.store
        ending = [
            Upload(self._place.file_path(path), store.get(path)) for path in last if not self._is_there(path, there)
        ]
        if older is not None:
            kept = kept_manifest(older)
            ending.append(Upload(self._place.file_path(kept), store.get(kept)))
        found = ""
        if CARD in there:
            found = ObjectStore(self._url, timeout=self._timeout).get(CARD).decode(errors="replace")
            if CARD_MARK not in found:
                self._log(f"{self._url}/{CARD} was not written by crisp-stream publish, and is kept as it is")
                return ending
        card = dataset_card(self._dataset, self._url, licence=licence or licence_of(found))
        if found != card:
            ending.append(Upload(self._place.file_path(CARD), card.encode()))
        return ending

    def _verify(self, paths: Sequence[str], commit: str | None) -> int:
        """Compare all files with what the hub lists, open the dataset there and read windows of it; bytes in all."""
        there, num_bytes = self._listed(commit), 0
        for path in paths:
            size, *digests = self._digest(path)
            if there.get(path, (-1, ""))[0] != size or there[path][1] not in digests:
                raise StorageError(
                    f"{self._url}/{path}: must have the {size:,} bytes of {self._dataset.root}, got "
                    f"{there.get(path, 'no such file')}. Run the command again."
                )
            num_bytes += size
        read_from = self._url if commit is None else _url_of(_at(self._place, commit))
        opened = open_dataset(read_from, timeout=self._timeout)
        if opened.manifest.fingerprint != self._dataset.manifest.fingerprint:
            raise StorageError(f"{self._url}: was replaced by another dataset meanwhile. Run the command again.")
        count = opened.manifest.num_windows
        chosen = np.unique(np.linspace(0, count - 1, min(count, _WINDOWS_READ)).astype(np.int64))
        with (
            tempfile.TemporaryDirectory(prefix="crisp-publish-") as cache,
            WindowReader(opened, ReadOptions(local=cache, timeout=self._timeout)) as reader,
        ):
            reader.read(chosen)
        return num_bytes


def dataset_files(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Paths of the files of the newest generation: its data, and what makes it a dataset (manifest and indexes)."""
    folders = sorted({row.path.rpartition("/")[0] for row in dataset.shards})
    last = [MANIFEST, "shards/index.json", *(f"{folder}/index.json" for folder in folders)]
    if dataset.manifest.files_sha256:
        data = {*listed_files(dataset), dataset.own_path(FILES), *(row.path for row in dataset.shards)}
        data |= {places_path(row.path) for row in dataset.shards}
    else:  # written without a list of files
        found = [path for path, _ in dataset.store.list()]
        used = used_files(dataset)
        data = {path for path in found if path in used or path.startswith(SHARED)}
    return sorted(data - set(last)), last


def file_digests(file: Path) -> tuple[int, str, str]:
    """(bytes, sha256, git's hash) of a local file: the hub has the one of large files, the other of small ones."""
    size = file.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with file.open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            sha256.update(block)
            blob.update(block)
    return size, sha256.hexdigest(), blob.hexdigest()


@contextlib.contextmanager
def _local_copies(dataset: Dataset, paths: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Files of a dataset as local files, by path; those of object storage are downloaded and deleted again."""
    store = dataset.store
    if not isinstance(store, ObjectStore):
        yield {path: local_path(dataset.root) / path for path in paths}
        return
    with tempfile.TemporaryDirectory(prefix="crisp-publish-") as folder:
        files = {path: Path(folder) / str(number) for number, path in enumerate(paths)}
        for path, file in files.items():
            download(store, path, file)
        yield files


def _at(place: HubRoot, commit: str) -> HubRoot:
    return dataclasses.replace(place, revision=commit)


def _url_of(place: HubRoot) -> str:
    revision = "" if place.revision == "main" else f"@{place.revision}"
    return f"hf://datasets/{place.repo}{revision}" + (f"/{place.path}" if place.path else "")
