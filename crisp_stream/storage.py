"""One door to local folders and object stores.

obstore (the Rust `object_store` client) does the work: it was the fastest of the clients measured, retries with back-off,
and puts atomically. Local roots go through it too, except shards, which the reader memory-maps.
Credentials come from the environment, as every S3 tool has them: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL (S3_ENDPOINT_URL, which mosaicml-streaming reads, is taken when it is not set).
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, cast

import obstore
from obstore import exceptions as obstore_errors
from obstore.store import LocalStore, from_url

from crisp_stream.errors import InputError, StorageError

REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https")
UPLOAD_PART_BYTES = 16 << 20


def is_remote(url: str) -> bool:
    """Whether `url` names an object store rather than a local path.

    Raises:
        InputError: a scheme that is not supported.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        return False
    if scheme not in REMOTE_SCHEMES:
        raise InputError(f"{url}: unknown scheme {scheme}://. Use a local path or one of {', '.join(REMOTE_SCHEMES)}.")
    return True


def local_path(url: str) -> Path:
    """The file-system path of a local url (plain path or file://)."""
    return Path(url.removeprefix("file://"))


def cache_folder() -> Path:
    """Where data of remote roots is kept between runs: $CRISP_STREAM_CACHE, else crisp-stream below the user's cache folder."""
    chosen = os.environ.get("CRISP_STREAM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crisp-stream"


class Store:
    """Objects under one root. Paths are relative, with forward slashes."""

    def __init__(self, url: str, *, timeout: float = 120.0) -> None:
        """Args:
        url: local folder or s3://, gs://, az://, https:// prefix.
        timeout: seconds after which a request that keeps failing is given up.
        """
        self.url = url.rstrip("/") if is_remote(url) else str(local_path(url))
        self.is_local = not is_remote(url)
        self._timeout = timeout
        self._opened: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self.url, self._timeout))

    @property
    def _store(self) -> Any:
        # Opened on first use: a client must not cross a fork, and a local folder may not exist yet.
        if self._opened is None:
            if self.is_local:
                self._opened = LocalStore(Path(self.url).resolve(), mkdir=True)
            else:
                self._opened = _open_remote(self.url, self._timeout)
        return self._opened

    def object_url(self, path: str) -> str:
        """`path` with the root in front, for messages."""
        return f"{self.url}/{path}"

    def get(self, path: str) -> bytes:
        """The whole object. Raises StorageError."""
        with self._explained(path, "read"):
            return bytes(obstore.get(self._store, path).bytes())

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start`. Raises StorageError."""
        with self._explained(path, f"read bytes {start}-{start + length - 1} of"):
            return bytes(obstore.get_range(self._store, path, start=start, length=length))

    def put(self, path: str, content: bytes, *, create: bool = False) -> None:
        """Write atomically; with `create`, only if nothing is there. Raises StorageError."""
        with self._explained(path, "write"):
            obstore.put(self._store, path, content, mode="create" if create else "overwrite")

    def put_file(self, path: str, source: Path) -> None:
        """Upload a local file (multipart when large). Raises StorageError."""
        with self._explained(path, "write"):
            obstore.put(self._store, path, source, chunk_size=UPLOAD_PART_BYTES)

    def exists(self, path: str) -> bool:
        """Whether the object exists. Raises StorageError when that cannot be told."""
        try:
            self.object_bytes(path)
        except MissingObjectError:
            return False
        return True

    def object_bytes(self, path: str) -> int:
        """Size of the object in bytes. Raises StorageError."""
        with self._explained(path, "look up"):
            return int(obstore.head(self._store, path)["size"])

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """(path, bytes) of every object under `prefix`, sorted by path. Raises StorageError."""
        if self.is_local and not Path(self.url).is_dir():
            return []
        with self._explained(prefix, "list"):
            batches: Iterator[list[Any]] = iter(obstore.list(self._store, prefix or None))
            return sorted((meta["path"], int(meta["size"])) for batch in batches for meta in batch)

    def delete(self, path: str) -> None:
        """Delete one object. Raises StorageError."""
        with self._explained(path, "delete"):
            obstore.delete(self._store, path)

    @contextlib.contextmanager
    def _explained(self, path: str, action: str) -> Iterator[None]:
        try:
            yield
        except (obstore_errors.BaseError, OSError, ValueError) as error:
            raise _explain(error, self.object_url(path), action) from error


class MissingObjectError(StorageError):
    """The object is not there, though the storage answered."""


def _reopen(url: str, timeout: float) -> Store:
    return Store(url, timeout=timeout)


def open_store(url: str, *, timeout: float = 120.0) -> Store:
    """The objects under a local folder or an object-store prefix. Nothing is contacted yet."""
    return Store(url, timeout=timeout)


def _open_remote(url: str, timeout: float) -> Any:
    options: dict[str, Any] = {
        "retry_config": {"max_retries": 10, "retry_timeout": timedelta(seconds=timeout)},
        "client_options": {"timeout": timedelta(seconds=min(timeout, 60.0)), "connect_timeout": timedelta(seconds=10)},
    }
    if url.startswith(("s3://", "s3a://")):
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("S3_ENDPOINT_URL")
        if endpoint:
            options["config"] = {"endpoint": endpoint}
            options["client_options"]["allow_http"] = endpoint.startswith("http://")
    elif url.startswith("http://"):
        options["client_options"]["allow_http"] = True
    try:
        return from_url(url, **options)
    except (obstore_errors.BaseError, ValueError) as error:
        raise _explain(error, url, "open") from error


def _explain(error: Exception, url: str, action: str) -> StorageError:
    text = " ".join(str(error).split())
    if "NoSuchBucket" in text:
        container = "/".join(url.split("/")[:3])
        return StorageError(f"{container} does not exist (cannot {action} {url}). Create it, or check the name.")
    if isinstance(error, obstore_errors.NotFoundError | FileNotFoundError):
        return MissingObjectError(f"{url} does not exist (cannot {action} it). Check the path.")
    if isinstance(error, obstore_errors.AlreadyExistsError):
        return StorageError(f"{url} already exists and is not overwritten. Choose another root, or delete it first.")
    denied = isinstance(error, obstore_errors.PermissionDeniedError | obstore_errors.UnauthenticatedError | PermissionError)
    if denied or any(sign in text for sign in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403 ")):
        return StorageError(
            f"cannot {action} {url}: the credentials were refused. "
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or your provider's variables) and the permissions. "
            f"The storage said: {text[:300]}"
        )
    return StorageError(f"cannot {action} {url}: {text[:600]}. Check the network, the endpoint and the path.")


def list_inputs(url: str) -> list[str]:
    """The files that an input names: a file, a folder or prefix (all files below it), or a glob; sorted.

    Raises:
        InputError: nothing matches.
        StorageError: the storage cannot be listed.
    """
    found = _list_remote(url) if is_remote(url) else _list_local(str(local_path(url)))
    if not found:
        raise InputError(f"{url} matches no file. Give a file, a folder, a prefix or a glob that exists.")
    return found


def _list_local(path: str) -> list[str]:
    if Path(path).is_dir():
        below = (file for file in Path(path).rglob("*") if file.is_file())
        return sorted(str(file) for file in below if not any(part.startswith(".") for part in file.parts[1:]))
    if Path(path).is_file():
        return [path]
    return sorted(match for match in glob.glob(path, recursive=True) if Path(match).is_file())  # noqa: PTH207


def _list_remote(url: str) -> list[str]:
    from fnmatch import fnmatchcase

    parent, _, name = url.rstrip("/").rpartition("/")
    if any(sign in url for sign in "*?["):
        fixed = url[: min(url.index(sign) for sign in "*?[" if sign in url)].rpartition("/")[0]
        listed = [f"{fixed}/{path}" for path, _ in Store(fixed).list()]
        return [file for file in listed if fnmatchcase(file, url)]
    if name and parent.count("/") >= 2 and Store(parent).exists(name):
        return [url]
    return [f"{url.rstrip('/')}/{path}" for path, _ in Store(url).list()]


def input_bytes(url: str) -> int:
    """Size of one input file in bytes. Raises StorageError."""
    if not is_remote(url):
        return local_path(url).stat().st_size
    parent, _, name = url.rpartition("/")
    return Store(parent).object_bytes(name)


def open_input(url: str) -> IO[bytes]:
    """Open one input file for streaming, seekable reads; the caller closes it. Raises StorageError."""
    if not is_remote(url):
        try:
            return local_path(url).open("rb")
        except OSError as error:
            raise _explain(error, url, "open") from error
    parent, _, name = url.rpartition("/")
    store = Store(parent)
    with store._explained(name, "open"):
        return cast(IO[bytes], obstore.open_reader(store._store, name, buffer_size=8 << 20))
