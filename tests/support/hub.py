"""A server that speaks as much of the Hugging Face hub's protocol as reading and publishing need.

It is two hosts, as the hub is: one with the repositories, one with the content of large files, to which the first
redirects by addresses that are signed for one method. The second must never see a token. Repositories are kept in
memory, commits by their id.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

OWNER = "owner"
TOKENS = {"write-token": "write", "read-token": "read"}
"""Tokens that are known, and what they may do."""
LARGE_BYTES = 1000
"""Files from this size on are large ones, kept by their sha256 on the other host."""
PAGE = 20
"""Files of one page of a listing."""


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    content: bytes
    is_large: bool

    @property
    def oid(self) -> str:
        """git's hash of a small file, the sha256 of a large one."""
        if self.is_large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    """A dataset repository."""

    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    """Files by path, by commit, oldest first."""
    refs: dict[str, str] = field(default_factory=dict)
    """Commit by branch."""

    def commit(self, files: dict[str, File], branch: str = "main") -> str:
        """Add a commit of these files."""
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[oid], self.refs[branch] = files, oid
        return oid

    def files(self, revision: str) -> dict[str, File] | None:
        """Files of a branch or a commit; None: there is no such revision."""
        return self.commits.get(self.refs.get(revision, revision))


@dataclass
class Trouble:
    """An answer in place of the right one."""

    where: Callable[[str, str], bool]
    """Of the method and the path of a request."""
    status: int
    """0: the connection is closed without an answer."""
    times: int
    """How many such requests still meet it."""
    late: bool = False
    """The request is carried out before, so that only its answer is lost."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeHub:
    """The running server. Its state can be looked at and changed at any time."""

    endpoint: str = ""
    storage: str = ""
    """Address of the host of large files."""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Content of large files by sha256, committed or not."""
    damaged: set[str] = field(default_factory=set)
    """Paths at which commits keep another content than they were given."""
    troubles: list[Trouble] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path, in order."""
    storage_requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers (names in lower case) of requests to the host of large files."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, repo: str, files: dict[str, bytes], *, private: bool = False, branch: str = "main") -> str:
        """Commit files to a repository, which is made if need be, in addition to those of the branch."""
        with self.lock:
            found = self.repos.setdefault(repo, Repo(private=private))
            if not found.commits:
                found.commit({})
            new = {path: File(content, len(content) >= LARGE_BYTES) for path, content in files.items()}
            self.blobs |= {file.oid: file.content for file in new.values() if file.is_large}
            return found.commit((found.files(branch) or found.files("main") or {}) | new, branch)

    def meet(
        self, status: int, times: int, where: Callable[[str, str], bool], *, late: bool = False, **headers: str
    ) -> Trouble:
        """Let the next requests of a kind meet trouble."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        trouble = Trouble(where, status, times, late, named)
        with self.lock:
            self.troubles.append(trouble)
        return trouble

    def content(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds, by path."""
        return {path: file.content for path, file in (self.repos[repo].files(revision) or {}).items()}

    def num(self, method: str, part: str) -> int:
        """How many requests there were of a method whose path has a part."""
        return sum(one == method and part in path for one, path in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub
    _silent = False
    """Answers are not sent."""

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def answer(self, status: int, content: bytes | Any = b"", **headers: str) -> None:
        """Send an answer; anything but bytes as JSON."""
        if self._silent:
            return
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        for name, text in ({"Content-Length": str(len(body))} | sent).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        """The body of the request."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def ranged(self, content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers for what was asked of some bytes."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            return 200, content, {}
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        return 206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}"}


class _StorageHandler(_Handler):
    """The host of large files."""

    def respond(self) -> None:
        found, digest = self.hub, self.path.partition("?")[0].rpartition("/")[2]
        with found.lock:
            headers = {name.lower(): text for name, text in self.headers.items()}
            found.storage_requests.append((self.command, self.path, headers))
        signed = parse_qs(urlsplit(self.path).query).get("signed")
        if signed != [self.command]:
            self.body()
            self.answer(403, b"SignatureDoesNotMatch")
        elif self.command == "PUT":
            content = self.body()
            with found.lock:
                found.blobs[digest] = content
            self.answer(200 if hashlib.sha256(content).hexdigest() == digest else 400)
        else:
            status, content, extra = self.ranged(found.blobs[digest])
            self.answer(status, content, ETag=f'"{digest}"', **extra)

    do_GET = do_HEAD = do_PUT = respond  # noqa: N815


class _HubHandler(_Handler):
    """The host of the repositories."""

    def respond(self) -> None:
        found, path = self.hub, unquote(self.path.partition("?")[0])
        content = self.body()
        with found.lock:
            found.requests.append((self.command, path))
            trouble = next((one for one in found.troubles if one.times and one.where(self.command, path)), None)
            if trouble is not None:
                trouble.times -= 1
        if trouble is not None and trouble.late:
            self._silent = True
        if trouble is None or trouble.late:
            with found.lock:
                self._route(path, content)
        self._silent = False
        if trouble is not None and not trouble.status:
            self.close_connection = True
        elif trouble is not None:
            self.answer(trouble.status, b"", **trouble.headers)

    do_GET = do_HEAD = do_POST = respond  # noqa: N815

    def _route(self, path: str, content: bytes) -> None:
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", r"/api/datasets/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            ("POST", r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            ("POST", r"/api/datasets/([^/]+/[^/]+)/commit/(.+)", self._commit),
            ("POST", r"/api/datasets/([^/]+/[^/]+)/branch/(.+)", self._branch),
            ("GET", r"/api/datasets/([^/]+/[^/]+)/revision/(.+)", self._revision),
            ("GET", r"/api/datasets/([^/]+/[^/]+)/tree/(refs/[^/]+/[^/]+|[^/]+)(?:/(.*))?", self._tree),
            ("GET|HEAD", r"/datasets/([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.*)", self._resolve),
        ]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            self._error(401, None, "Invalid credentials in Authorization header")
            return
        for method, pattern, route in routes:
            match = re.fullmatch(pattern, path)
            if match and re.fullmatch(method, self.command):
                if self.command == "POST" and TOKENS.get(token) != "write":
                    self._error(403 if token else 401, None, "You don't have the rights to do this")
                    return
                if match.groups() and not self._may_see(match[1], token):
                    self._error(404 if token else 401, "RepoNotFound", "Repository not found")
                    return
                route(*match.groups(), *([content] if self.command == "POST" else []))
                return
        self._error(404, None, f"no route for {self.command} {path}")

    def _may_see(self, name: str, token: str) -> bool:
        repo = self.hub.repos.get(name)
        return repo is not None and (not repo.private or token in TOKENS)

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({} if code is None else {"X-Error-Code": code})
        self.answer(status, {"error": message}, **headers)

    def _create(self, content: bytes) -> None:
        asked = json.loads(content)
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        url = f"{self.hub.endpoint}/datasets/{name}"
        if not name.startswith(f"{OWNER}/"):
            self._error(403, None, f"You don't have the rights to create a dataset under {asked['organization']}")
        elif name in self.hub.repos:
            self.answer(409, {"error": "You already created this dataset repo", "url": url})
        else:
            private = asked.get("private") is True or asked.get("visibility") == "private"
            self.hub.repos[name] = Repo(private=private)
            self.hub.repos[name].commit({".gitattributes": File(b"*.parquet filter=lfs\n", is_large=False)})
            self.answer(200, {"url": url, "name": name, "id": "0"})

    def _validate(self, content: bytes) -> None:
        valid = json.loads(content)["content"].startswith("---\n")
        self.answer(200 if valid else 400, {"errors": [] if valid else [{"message": "no front matter"}]})

    def _files(self, name: str, revision: str) -> dict[str, File] | None:
        files = self.hub.repos[name].files(revision)
        if files is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files

    def _preupload(self, name: str, revision: str, content: bytes) -> None:
        if (files := self._files(name, revision)) is None:
            return
        answers = []
        for asked in json.loads(content)["files"]:
            is_large = asked["size"] >= LARGE_BYTES or asked["path"].endswith((".parquet", ".mds"))
            there = files.get(asked["path"])
            oid = None if there is None else there.oid
            mode = "lfs" if is_large else "regular"
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": answers})

    def _batch(self, name: str, content: bytes) -> None:
        objects = []
        for asked in json.loads(content)["objects"]:
            href = f"{self.hub.storage}/{asked['oid']}?signed=PUT"
            upload = {} if asked["oid"] in self.hub.blobs else {"actions": {"upload": {"href": href, "header": {}}}}
            objects.append({**asked, **upload})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, revision: str, content: bytes) -> None:
        if (files := self._files(name, revision)) is None:
            return
        files, header = dict(files), json.loads(content.splitlines()[0])["value"]
        if header.get("parentCommit", head := self.hub.repos[name].refs[revision]) != head:
            self._error(412, None, "A commit has happened since. Please refresh and try again.")
            return
        for line in content.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), is_large=False)
                case "lfsFile":
                    files[value["path"]] = File(self.hub.blobs[value["oid"]], is_large=True)
                case "deletedFile":
                    del files[value["path"]]
        for path in self.hub.damaged & files.keys():
            files[path] = File(files[path].content[:-1] + b"?", is_large=False)
        oid = self.hub.repos[name].commit(files, revision)
        url = f"{self.hub.endpoint}/datasets/{name}/commit/{oid}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": oid, "hookOutput": ""})

    def _branch(self, name: str, branch: str, content: bytes) -> None:
        repo = self.hub.repos[name]
        if branch in repo.refs:
            self.answer(409, {"error": "Reference already exists"})
            return
        repo.refs[branch] = repo.refs["main"]
        self.answer(200, {})

    def _revision(self, name: str, revision: str) -> None:
        repo = self.hub.repos[name]
        if (files := self._files(name, revision)) is not None:
            siblings = [{"rfilename": path} for path in files]
            sha = repo.refs.get(revision, revision)
            self.answer(200, {"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []})

    def _tree(self, name: str, revision: str, folder: str | None) -> None:
        if (files := self._files(name, revision)) is None:
            return
        below = f"{folder}/" if folder else ""
        found = sorted(path for path in files if path.startswith(below))
        if below and not found:
            self._error(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            return
        first = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        entries: list[dict[str, Any]] = [{"type": "directory", "path": below + "folder", "oid": "0", "size": 0}]
        for path in found[first : first + PAGE]:
            file = files[path]
            large = {"lfs": {"oid": file.oid, "size": len(file.content), "pointerSize": 130}} if file.is_large else {}
            entries.append({"type": "file", "path": path, "oid": file.oid[:40], "size": len(file.content), **large})
        address = self.path.partition("?")[0]
        link = f'<{self.hub.endpoint}{address}?recursive=true&cursor={first + PAGE}>; rel="next"'
        self.answer(200, entries, **({"Link": link} if first + PAGE < len(found) else {}))

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if (files := self._files(name, revision)) is None:
            return
        file = files.get(path)
        if file is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        commit = self.hub.repos[name].refs.get(revision, revision)
        if file.is_large:
            linked = {"X-Linked-Size": str(len(file.content)), "X-Linked-Etag": f'"{file.oid}"'}
            location = f"{self.hub.storage}/{quote(file.oid)}?signed=GET"
            self.answer(302, b"", Location=location, ETag='"pointer"', X_Repo_Commit=commit, **linked)
        elif self.command == "HEAD":
            self.send_response(200)
            for header, text in {"ETag": f'"{file.oid}"', "Content-Length": str(len(file.content))}.items():
                self.send_header(header, text)
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
        else:
            status, content, extra = self.ranged(file.content)
            self.answer(status, content, ETag=f'"{file.oid}"', X_Repo_Commit=commit, **extra)


def _of_hub(kind: type[_Handler], hub: FakeHub, *arguments: Any) -> _Handler:
    """A handler for one connection; it works while it is made."""
    return type(kind.__name__, (kind,), {"hub": hub})(*arguments)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that HF_ENDPOINT names, and surroundings without any token."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a hub without repositories."""
    hub = FakeHub()
    with contextlib.ExitStack() as stack:
        handlers: tuple[tuple[str, type[_Handler]], ...] = (("endpoint", _HubHandler), ("storage", _StorageHandler))
        for name, kind in handlers:
            server = stack.enter_context(_Server(("127.0.0.1", 0), functools.partial(_of_hub, kind, hub)))
            stack.callback(server.shutdown)
            setattr(hub, name, f"http://127.0.0.1:{server.server_address[1]}")
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield hub
