"""Requests to an object store through obstore, and one error text for each way in which they fail."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any

from crisp_stream.errors import ConflictError, MissingObjectError, StorageError
from crisp_stream.storage import hub
from crisp_stream.storage.access import access_options, account_remedy, endpoint_of
from crisp_stream.storage.file_sizes import FileSizes

UPLOAD_PART_BYTES = 16 << 20
WRITES = ("put", "put_file", "replace", "delete")

_client_used = False
_forked_after_use = False


def _mark_child() -> None:
    global _forked_after_use
    _forked_after_use = _forked_after_use or _client_used


os.register_at_fork(after_in_child=_mark_child)


def forked_after_use() -> bool:
    """Whether this process was forked from one that had used a client, so that obstore would wait for ever in it."""
    return _forked_after_use


class _EncodedAnswerError(Exception):
    """An answer has the Content-Encoding that is its argument."""


class ObjectClient:
    """obstore's clients of one prefix in this process, opened on first use: one that reads, one that writes."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url, self._timeout = url, timeout
        self._hub = hub.HubRoot.parse(url) if hub.is_hub(url) else None
        self._opened: dict[bool, Any] = {}
        self._opened_in_pid = -1

    def call(self, operation: str, path: str, *arguments: Any) -> Any:
        """Carry out one operation. Raises StorageError, about `timeout` seconds after it began at the latest."""
        action = action_of(operation, *arguments)
        try:
            if self._hub is not None and operation in ("describe", "list", "sizes", *WRITES):
                return _ask_hub(self._hub, operation, path, self._timeout, self._url)
            client = self.opened(writing=operation in WRITES)
            _require_support(client, operation, self._url)
            return _request(client, operation, path, *arguments)
        except Exception as error:
            if self._hub is not None and is_refusal(error):
                refusal = hub.refusal(self._hub, path, action, timeout=self._timeout)
                if refusal is not None:
                    raise refusal from error
            raise explain(error, f"{self._url}/{path}", action) from error

    def opened(self, *, writing: bool) -> Any:
        """The client of obstore for reading or for writing."""
        global _client_used
        if self._opened_in_pid != os.getpid():
            self._opened, self._opened_in_pid = {}, os.getpid()
        if writing not in self._opened:
            self._opened[writing] = _connect(self._url, self._timeout, writing)
            _client_used = True
        return self._opened[writing]


def _connect(url: str, timeout: float, writing: bool) -> Any:
    """A client whose retries, pauses and last attempt add up to `timeout`.

    A read that is silent for a fifth of it is tried again. A write has no such limit, because its silence includes the
    time that its body takes to go out.
    """
    from obstore.store import from_url

    silence, pause = min(timeout / 5, 20.0), min(timeout / 10, 10.0)
    client_options: dict[str, Any] = {
        "timeout": timedelta(seconds=min(timeout / 2, 60.0)),
        "connect_timeout": timedelta(seconds=min(silence, 10.0)),
    }
    if not writing:
        client_options["read_timeout"] = timedelta(seconds=silence)
    options: dict[str, Any] = {
        "retry_config": {
            "max_retries": 1000,  # time is the limit
            "retry_timeout": timedelta(seconds=timeout - silence - pause),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=pause), "base": 2},
        },
        "client_options": client_options,
    }
    if hub.is_hub(url):
        url = hub.HubRoot.parse(url).resolve_url
        client_options["default_headers"] = hub.hub_headers()
    options |= access_options(url)
    if endpoint_of(url, options).startswith("http://"):
        client_options["allow_http"] = True
    return from_url(url, **options)


def _ask_hub(root: hub.HubRoot, operation: str, path: str, timeout: float, url: str) -> Any:
    """What is asked of the hub's own interface, and not of the web server that it is, too."""
    if operation == "describe":
        return hub.describe(root, path, timeout=timeout)
    if operation in WRITES:
        raise StorageError(
            f"{url}: a dataset on the hub is read here, not written to. Write to a folder or a bucket, then: "
            "crisp-stream publish ROOT hf://datasets/OWNER/NAME"
        )
    found = hub.list_files(root, path, timeout=timeout)
    return sorted(found) if operation == "list" else FileSizes((name, size) for name, size, _ in found)


def _require_support(client: Any, operation: str, url: str) -> None:
    """Web servers are read by name only. Raises StorageError."""
    from obstore.store import HTTPStore

    if isinstance(client, HTTPStore) and operation in (*WRITES, "list", "sizes"):
        raise StorageError(
            f"{url}: a web server can be read, not {'written to' if operation in WRITES else 'listed'}. "
            "Use the folder that it serves, or s3://, gs:// or az://."
        )


def _request(client: Any, operation: str, path: str, *arguments: Any) -> Any:
    """Make the request of one operation of `ObjectStore`."""
    import obstore

    match operation, *arguments:
        case ["get"]:
            return _content(obstore.get(client, path))
        case ["get_range", start, length]:
            return _content(obstore.get(client, path, options={"range": (start, start + length)}))
        case ["get_versioned"]:
            answer = obstore.get(client, path)
            return _content(answer), _version_to_replace(client, answer.meta)
        case ["replace", content, version]:
            obstore.put(client, path, content, mode=version or "overwrite")
        case ["put", content, create]:
            obstore.put(client, path, content, mode="create" if create else "overwrite")
        case ["put_file", source]:
            obstore.put(client, path, source, chunk_size=UPLOAD_PART_BYTES)
        case ["describe"]:
            return path, *_size_and_version(obstore.head(client, path))
        case ["list"]:
            listed: Any = obstore.list(client, path or None)
            return sorted((meta["path"], *_size_and_version(meta)) for batch in listed for meta in batch)
        case ["sizes"]:
            found: Any = obstore.list(client, path or None)
            return FileSizes((meta["path"], meta["size"]) for batch in found for meta in batch)
        case ["delete"]:
            obstore.delete(client, path)
        case _:
            raise AssertionError(f"no operation {operation} with {len(arguments)} arguments")
    return None


def _content(answer: Any) -> bytes:
    """The body of an answer. Raises StorageError: it is compressed, so that its bytes are not those of the object."""
    encoding = answer.attributes.get("Content-Encoding", "")
    if any(part.strip().lower() not in ("", "identity", "aws-chunked") for part in encoding.split(",")):
        raise _EncodedAnswerError(encoding)
    return bytes(answer.bytes())


def _version_to_replace(client: Any, meta: Any) -> dict[str, str]:
    """What a conditional put asks for: the generation on Google's, else the entity tag; empty where the server tells
    neither, so that nothing can be compared."""
    from obstore.store import GCSStore

    if meta["version" if isinstance(client, GCSStore) else "e_tag"] is None:
        return {}
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


def _size_and_version(meta: Any) -> tuple[int, str]:
    return int(meta["size"]), (meta["e_tag"] or "").strip('"') or meta["last_modified"].isoformat()


_CAUSES = {
    r"(?i)invalid ?certificate": "the server's certificate is not trusted; SSL_CERT_FILE may name one that is",
    r"dns error": "the host name cannot be resolved",
    r"kind: ConnectionRefused": "the connection was refused",
    r"kind: ConnectionReset|kind: ConnectionAborted|kind: BrokenPipe": "the connection was reset",
    r"IncompleteBody|IncompleteMessage": "the answer ended before its promised length",
    r"kind: Timeout|TimedOut": "no answer in time",
}


_SHORTER = [
    (r"^Generic \w+ error: ", ""),
    (r", max_retries: .*?, retry_timeout: [0-9.]+m?s", ""),
    (r"Error performing ([A-Z]+) (\w+://[^/ ]+)\S* in ([0-9]+(?:\.[0-9])?)[0-9]*(\S*?s)\b", r"\1 from \2 for \3 \4"),
    (r"Server returned non-2xx status code: ", ""),
    (r": <\?xml.*?<Code>(.*?)</Code>.*?<Message>(.*?)</Message>.*", r", \1: \2"),
]


def _cause(error: Exception) -> str:
    """One line from obstore's error: its message without the address, and what its debug output says of the reason."""
    message, _, debug = str(error).partition("Debug source")
    text = " ".join(message.split())[:1000]
    for pattern, short in _SHORTER:
        text = re.sub(pattern, short, text)
    text = text.rstrip(".")
    causes = [cause for pattern, cause in _CAUSES.items() if re.search(pattern, debug)]
    return f"{causes[0]} ({text})" if causes else text


_ACTIONS = {
    "get": "read",
    "get_versioned": "read",
    "put": "write",
    "replace": "write",
    "put_file": "write",
    "describe": "look up",
    "sizes": "list",
}


def action_of(operation: str, *arguments: Any) -> str:
    """What an operation does, as in "cannot …"."""
    if operation == "get_range":
        start, length = arguments
        return f"read bytes {start}-{start + length - 1} of"
    return _ACTIONS.get(operation, operation)


def is_refusal(error: Exception) -> bool:
    """Whether the server answered that it does not give the object: it is not there, or not for this account."""
    from obstore import exceptions as refused

    kinds = (refused.NotFoundError, refused.PermissionDeniedError, refused.UnauthenticatedError)
    return isinstance(error, (*kinds, FileNotFoundError))


def explain(error: Exception, url: str, action: str) -> StorageError:
    from obstore import exceptions as refused

    if isinstance(error, StorageError):
        return error
    if isinstance(error, _EncodedAnswerError):
        return StorageError(
            f"cannot {action} {url}: the answer is encoded (Content-Encoding: {error}), so its bytes are not those "
            "that were written. Store the object without that header, and let no server or proxy compress it."
        )
    text = _cause(error)
    if "Range request not supported" in text or "non-partial response" in text:
        return StorageError(
            f"cannot {action} {url}: the server does not serve ranges (it answered 200 with the whole object, not 206 "
            "with the bytes that were asked for). Use a server that does, and no proxy that drops them."
        )
    if "External AWS credential provider: " in text:
        reason = text.partition("External AWS credential provider: ")[2][:500]
        return StorageError(
            f"cannot {action} {url}: the credentials cannot be renewed: {reason}. {account_remedy(url)}"
        )
    if "NoSuchBucket" in text:
        container = "/".join(url.split("/")[:3])
        return StorageError(f"{container} does not exist (cannot {action} {url}). Create it, or check the name.")
    if isinstance(error, refused.NotFoundError | FileNotFoundError):
        return MissingObjectError(f"{url} does not exist (cannot {action} it). Check the path.")
    if isinstance(error, refused.AlreadyExistsError):
        return ConflictError(f"{url} already exists and is not overwritten. Choose another root, or delete it first.")
    if isinstance(error, refused.PreconditionError):
        return ConflictError(f"{url} was changed by another process meanwhile. Run the command again.")
    denied = isinstance(error, refused.PermissionDeniedError | refused.UnauthenticatedError)
    if denied or any(sign in text for sign in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")):
        return StorageError(
            f"cannot {action} {url}: the credentials were refused. {account_remedy(url)} The storage said: {text[:300]}"
        )
    return StorageError(f"cannot {action} {url}: {text}. Check the network, the endpoint and the path.")
