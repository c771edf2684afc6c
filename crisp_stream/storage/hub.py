"""Datasets on the Hugging Face hub as roots: where a file stands, which token asks, what the hub lists and refuses.

Bytes are read by obstore as from any web server, through the hub's resolve URLs. These redirect to another host, which
serves ranges and is not sent the token. What no web server can tell is asked of the hub here, by Python's own client: a
listing, and size and version of one file without following the redirect, whose address is signed for reading alone.
So reading needs no further library; only publishing uses `huggingface_hub`.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from crisp_stream.errors import InputError, MissingObjectError, StorageError

SCHEME = "hf"
_ROOT = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
_PAGE = 1000
"""Files of one answer of a listing; the hub gives at most this many."""
_AGAIN = (408, 429, 500, 502, 503, 504)
"""Answers after which a request is made again."""
_REDIRECTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0


@dataclass(frozen=True, kw_only=True)
class HubRoot:
    """A folder of a dataset repository at one revision."""

    endpoint: str
    """Address of the hub, without a trailing slash."""
    repo: str
    """OWNER/NAME."""
    revision: str
    """Branch, tag or commit."""
    path: str
    """The folder in the repository; empty for all of it."""

    @classmethod
    def parse(cls, url: str) -> HubRoot:
        """Read hf://datasets/OWNER/NAME[@REVISION][/PATH]. Raises InputError for any other form."""
        match = _ROOT.fullmatch(url.rstrip("/"))
        if match is None or ".." in url.split("/"):
            raise InputError(
                f"{url}: a place on the hub must be hf://datasets/OWNER/NAME[@REVISION][/PATH]. "
                "Write for example hf://datasets/you/corpus."
            )
        revision = unquote(match["revision"] or "main")
        return cls(
            endpoint=hub_endpoint(), repo=match["repo"], revision=revision, path=(match["path"] or "").strip("/")
        )

    @property
    def resolve_url(self) -> str:
        """Address below which the files of the folder are read."""
        base = f"{self.endpoint}/datasets/{self.repo}/resolve/{quote(self.revision, safe='')}"
        return f"{base}/{quote(self.path)}" if self.path else base

    def file_path(self, path: str) -> str:
        """Path in the repository of a file below this folder."""
        return "/".join(part for part in (self.path, path) if part)

    def tree_url(self, prefix: str) -> str:
        base = f"{self.endpoint}/api/datasets/{self.repo}/tree/{quote(self.revision, safe='')}"
        folder = quote(self.file_path(prefix))
        return f"{base}{'/' if folder else ''}{folder}?recursive=true&limit={_PAGE}"


def is_hub(url: str) -> bool:
    """Whether a URL names a place on the hub."""
    return url.startswith(f"{SCHEME}://")


def hub_endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_token() -> str | None:
    """The token that requests are made with, looked for where `huggingface_hub` looks; None: as anybody.

    HF_TOKEN comes first, then the file that `hf auth login` writes.
    """
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if text := os.environ.get(name, "").strip():
            return text
    try:
        return _token_file().read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _token_file() -> Path:
    if chosen := os.environ.get("HF_TOKEN_PATH"):
        return Path(chosen).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser() / "token"


def hub_headers() -> dict[str, str]:
    """Headers of every request to the hub."""
    token = hub_token()
    return {"User-Agent": "crisp-stream"} | ({} if token is None else {"Authorization": f"Bearer {token}"})


def describe(root: HubRoot, path: str, *, timeout: float, action: str = "look up") -> tuple[str, int, str]:
    """(path, bytes, version) of one file. Raises MissingObjectError, StorageError."""
    url = f"{root.resolve_url}/{quote(path)}"
    for _ in range(_REDIRECTS):
        answer = _ask("HEAD", url, root, path, action, timeout)
        size = answer.headers.get("X-Linked-Size") or (answer.headers.get("Content-Length") if answer.is_file else None)
        if size is not None:
            version = answer.headers.get("X-Linked-Etag") or answer.headers.get("ETag") or ""
            return path, int(size), version.removeprefix("W/").strip('"')
        url = urljoin(url, answer.headers.get("Location") or url)  # of a repository that was renamed
    raise StorageError(
        f"{_shown(root, path)}: the hub does not tell its size. Check HF_ENDPOINT, and that no proxy drops headers."
    )


def list_files(root: HubRoot, prefix: str, *, timeout: float) -> Iterator[tuple[str, int, str]]:
    """(path, bytes, version) of every file below a folder, in the hub's order; nothing where there is no such folder.

    The version is that of `describe`: the sha256 of a large file, git's hash of a small one.
    """
    url: str | None = root.tree_url(prefix)
    above = f"{root.path}/" if root.path else ""
    while url is not None:
        try:
            answer = _ask("GET", url, root, prefix, "list", timeout)
        except MissingObjectError:
            return
        for entry in answer.content():
            if entry.get("type") == "file":
                large = entry.get("lfs") or {}
                size, version = large.get("size", entry["size"]), large.get("oid", entry["oid"])
                yield str(entry["path"]).removeprefix(above), int(size), str(version)
        url = _next_page(answer.headers.get("Link"), url)


def refusal(root: HubRoot, path: str, action: str, *, timeout: float) -> StorageError | None:
    """Why the hub refuses a file, in its own words; None where it does not refuse it."""
    try:
        describe(root, path, timeout=timeout, action=action)
    except StorageError as error:
        return error
    return None


def _next_page(link: str | None, url: str) -> str | None:
    for part in (link or "").split(","):
        match = re.fullmatch(r'\s*<([^>]+)>\s*;\s*rel="?next"?\s*', part)
        if match:
            return urljoin(url, match[1])
    return None


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str] | Message
    body: bytes

    @property
    def is_file(self) -> bool:
        return self.status < 300

    def content(self) -> list[dict[str, Any]]:
        try:
            found = json.loads(self.body)
            assert isinstance(found, list)
        except (ValueError, AssertionError) as error:
            raise StorageError(f"the hub's listing is not one ({error!r}). Check HF_ENDPOINT.") from error
        return found


class _Unfollowed(urllib.request.HTTPRedirectHandler):
    """Redirects are given back: they lead to other hosts, which the token is not for."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _ask(method: str, url: str, root: HubRoot, path: str, action: str, timeout: float) -> _Answer:
    """Make a request, again while the hub is busy or out of reach. Raises StorageError after `timeout` seconds."""
    opener, deadline, pause = urllib.request.build_opener(_Unfollowed), time.monotonic() + timeout, _FIRST_PAUSE
    headers = hub_headers() | {"Accept-Encoding": "identity"}
    if urlsplit(url).netloc != urlsplit(root.endpoint).netloc:
        headers.pop("Authorization", None)
    while True:
        left = deadline - time.monotonic()
        try:
            request = urllib.request.Request(url, method=method, headers=headers)
            with opener.open(request, timeout=max(min(left, 60.0), 0.1)) as answer:
                return _Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                if 300 <= error.code < 400:
                    return _Answer(error.code, error.headers, b"")
                reason = f"{error.code} {error.reason}"
                refused = _refused(root, path, action, error) if error.code not in _AGAIN else None
                wait = _asked_pause(error.headers)
            if refused is not None:
                raise refused from error
        except (OSError, ValueError) as error:  # no connection, an answer that is cut short
            reason, wait = str(getattr(error, "reason", error)), None
        pause = min(wait if wait is not None else pause * 2, _LONGEST_PAUSE)
        if time.monotonic() + pause >= deadline:
            limit = " The hub limits requests: wait some minutes, or set HF_TOKEN." if reason.startswith("429") else ""
            raise StorageError(
                f"cannot {action} {_shown(root, path)}: {reason} from {root.endpoint}, again and again for "
                f"{timeout:.0f} s. Check the network and HF_ENDPOINT.{limit}"
            )
        time.sleep(pause)


def _asked_pause(headers: Mapping[str, str] | Message) -> float | None:
    """Seconds after which the hub wants to be asked again, where it says so."""
    match = re.fullmatch(r"\s*(\d+)\s*", headers.get("Retry-After") or "")
    return float(match[1]) if match else None


def _refused(root: HubRoot, path: str, action: str, error: urllib.error.HTTPError) -> StorageError:
    """The error for an answer that will not change by asking again."""
    code, where = error.headers.get("X-Error-Code") or "", _shown(root, path)
    told = error.headers.get("X-Error-Message") or f"{error.code} {error.reason}"
    if code == "RevisionNotFound":
        return StorageError(
            f"{where}: the dataset {root.repo} has no revision {root.revision!r}. Name a branch, a tag or a commit."
        )
    if code == "EntryNotFound" or (error.code == 404 and code != "RepoNotFound"):
        return MissingObjectError(f"{where} does not exist (cannot {action} it). Check the path and the revision.")
    page = f"{root.endpoint}/datasets/{root.repo}"
    if code == "GatedRepo":
        return StorageError(
            f"cannot {action} {where}: {root.repo} is gated. Ask for access at {page}, and set HF_TOKEN."
        )
    if hub_token() is None:
        return StorageError(
            f"cannot {action} {where}: the hub knows no public dataset {root.repo}, and no token was found. If it is "
            "private, set HF_TOKEN or log in with: hf auth login. Otherwise check the name."
        )
    if error.code == 401 and code != "RepoNotFound":
        return StorageError(
            f"cannot {action} {where}: the token was refused ({told}). Set HF_TOKEN to one that is valid, or log in "
            "again with: hf auth login."
        )
    if code == "RepoNotFound":
        return StorageError(
            f"cannot {action} {where}: there is no dataset {root.repo} at {root.endpoint}, or the token may not see "
            "it. Check the name, and whose the token is."
        )
    return StorageError(f"cannot {action} {where}: the hub refused it ({told}). Check what the token may do.")


def _shown(root: HubRoot, path: str) -> str:
    revision = "" if root.revision == "main" else f"@{root.revision}"
    return "/".join(part for part in (f"hf://datasets/{root.repo}{revision}", root.path, path) if part)
