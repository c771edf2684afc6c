"""The claim of a root: who writes there, and what was asked.

`claim.json` is created before any work, only if it is not there, and deleted at the end of success, or of a failure
that put nothing into the root. The same request joins: it makes the same bytes under the same names. Another one is
refused, until it is told to take over (`--take-over`); a claim whose process has ended on this machine before it put
anything there stands in nobody's way. Whoever has lost the claim sees it before the next file, and puts no more.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from crisp_stream.errors import ConflictError, CrispError, FormatError, InputError, MissingObjectError
from crisp_stream.format.manifest import MANIFEST, Manifest
from crisp_stream.processes import Log
from crisp_stream.storage.store import Store, local_path, open_store
from crisp_stream.writers.publishing.request import Request

CLAIM = "claim.json"
_CHECK_SECONDS = 0.5
_TRIES = 50
_TRY_SECONDS = 0.1


class ClaimLostError(InputError):
    """The root belongs to another request now."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that claimed a root."""

    host: str
    pid: int
    process: str
    """What tells it from a later process of that number: boot of the machine, space of the numbers, start."""
    token: str
    """Random."""
    since: str
    """UTC."""

    @classmethod
    def here(cls) -> Self:
        """This process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            process=_process_mark(os.getpid()) or "",
            token=uuid.uuid4().hex,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def has_ended(self) -> bool:
        """Whether it is known to have ended: it ran on this machine, in this space of process numbers."""
        space = self.process.rpartition(" ")[0]
        own = (_process_mark(os.getpid()) or "").rpartition(" ")[0]
        return bool(space) and space == own and _process_mark(self.pid) != self.process

    def __str__(self) -> str:
        ended = ", which has ended" if self.has_ended() else ""
        return f"process {self.pid} on {self.host}{ended}, since {self.since}"


def _process_mark(pid: int) -> str | None:
    """Boot, space of process numbers, and start of a process; None where it is not there, or not on Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if status[0] in "ZX" else f"{boot} {space} {status[19]}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The content of `claim.json`."""

    request: Request
    owner: Owner
    has_begun: bool = False
    """Files of the request may stand in the root."""
    clears: bool = False
    """Files of an earlier claim are being deleted, before anything else is done."""
    is_shared: bool = False
    """Another process with the same request has joined while the owner may have been at work."""

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Raises ValueError, TypeError, KeyError, InputError."""
        record = json.loads(content)
        return cls(
            request=Request.from_json(record["request"]),
            owner=Owner(**record["owner"]),
            has_begun=bool(record["has_begun"]),
            clears=bool(record["clears"]),
            is_shared=bool(record["is_shared"]),
        )

    def to_json(self) -> bytes:
        """The bytes of the file."""
        record: dict[str, Any] = {
            "request": self.request.to_json(listed=True),
            "owner": asdict(self.owner),
            "has_begun": self.has_begun,
            "clears": self.clears,
            "is_shared": self.is_shared,
        }
        return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()


def standing_claim(store: Store) -> tuple[Claim | None, Any]:
    """The claim of a root and its version; None where there is none. Raises InputError where it cannot be read."""
    try:
        content, version = store.get_versioned(CLAIM)
    except MissingObjectError:
        return None, None
    try:
        return Claim.from_json(content), version
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{store.url}/{CLAIM}: must be what a write or append of this version left, got: {error}. If none is "
            "running, delete it and run the command again."
        ) from error


def requests_of(manifest: Manifest) -> list[Request | None]:
    """The requests that made a dataset, one per generation; None for those that are not known."""
    records = manifest.provenance.get("requests", [])
    try:
        return [None if record is None else Request.from_json(record) for record in records]
    except (InputError, TypeError) as error:
        raise FormatError(f"{MANIFEST}: provenance.requests cannot be read: {error} Restore the file.") from error


def is_made_by(manifest: Manifest, request: str) -> bool:
    """Whether a request, by its fingerprint, is one of those that made a dataset."""
    return any(one is not None and one.fingerprint == request for one in requests_of(manifest))


def manifest_of(store: Store) -> tuple[Manifest, bytes] | None:
    """The newest manifest of a root and its bytes; None where there is none. Raises FormatError, StorageError."""
    try:
        content = store.get(MANIFEST)
    except MissingObjectError:
        return None
    return Manifest.from_json(content), content


class Hold:
    """A claimed root, as long as it is. Can be pickled, for the tasks that put files there."""

    def __init__(self, root: str, request: str) -> None:
        """`request`: fingerprint."""
        self.root, self.request = root, request
        self._checked = -_CHECK_SECONDS

    def __reduce__(self) -> tuple[Any, ...]:
        return Hold, (self.root, self.request)

    def check(self, *, now: bool = False) -> None:
        """Raises ClaimLostError: the root is not claimed by the request any more. Looks twice a second at most."""
        if not now and time.monotonic() - self._checked < _CHECK_SECONDS:
            return
        self._own(open_store(self.root))
        self._checked = time.monotonic()

    def is_own(self, claim: Claim) -> bool:
        """Whether a claim is of the request of this hold."""
        return claim.request.fingerprint == self.request

    def _own(self, store: Store) -> tuple[Claim, Any]:
        claim, version = standing_claim(store)
        if claim is None or not self.is_own(claim):
            whose = "no claim is there" if claim is None else f"it was taken over by {claim.owner}"
            raise ClaimLostError(
                f"{store.url}: must be claimed by this command while it works, but {whose}. Nothing more was put "
                "there. Run the command again if the dataset is still wanted."
            )
        return claim, version

    def begin(self) -> None:
        """Say that files are put into the root from here on. Raises ClaimLostError."""
        store = open_store(self.root)
        for _ in range(_TRIES):
            claim, version = self._own(store)
            if claim.has_begun:
                return
            with contextlib.suppress(ConflictError):  # of a process with the same request
                store.replace(CLAIM, replace(claim, has_begun=True).to_json(), version)

    def release(self, *, failed: bool = False, token: str | None = None) -> None:
        """Delete the claim. Of a command that failed, it stays if files may be in the root, or others joined."""
        store = open_store(self.root)
        try:
            claim, version = self._own(store)
        except ClaimLostError:
            return
        if failed and (claim.has_begun or claim.clears or claim.is_shared or claim.owner.token != token):
            return
        with contextlib.suppress(ConflictError):
            store.delete_version(CLAIM, version)


def check_free(store: Store, request: Request) -> None:
    """Raises InputError where another request has claimed the root, and it is not free to be taken."""
    claim, _ = standing_claim(store)
    if claim is not None and claim.request.fingerprint != request.fingerprint and not _is_over(claim, store):
        raise _refused(store, claim, request)


def _is_over(claim: Claim, store: Store) -> bool:
    """Whether nobody needs a claim any more: its process has ended and put nothing there, or it is published."""
    if claim.owner.has_ended() and not claim.has_begun and not claim.clears:
        return True
    found = manifest_of(store)
    return found is not None and is_made_by(found[0], claim.request.fingerprint)


def _refused(store: Store, claim: Claim, request: Request) -> InputError:
    what = "; ".join(request.differences(claim.request))
    return InputError(
        f"{store.url}: must be written by one request at a time, but {CLAIM} there is of another {claim.request.kind}, "
        f"of {claim.owner}. This command differs: {what}. Wait for the other one, or run it again to finish it; if it "
        "was given up, run this one with --take-over."
    )


def claim_root(store: Store, request: Request, *, take_over: bool, log: Log) -> tuple[Hold, str]:
    """Claim a root for a request; joins where the same request has claimed it.

    Returns:
        The hold, and the token of the owner, which this process is now.

    Raises:
        InputError: another request has claimed it. StorageError: the store refuses.
    """
    owner = Owner.here()
    wanted = Claim(request=request, owner=owner)
    for _ in range(_TRIES):
        claim, version = standing_claim(store)
        try:
            if claim is None:
                store.put(CLAIM, wanted.to_json(), create=True)
                _warn_of_store(store, wanted, log)
            elif claim.request.fingerprint == request.fingerprint:
                joined = replace(claim, owner=owner, is_shared=claim.is_shared or not claim.owner.has_ended())
                store.replace(CLAIM, joined.to_json(), version)
                log(f"claim: going on with the same request, of {claim.owner}")
            elif take_over or _is_over(claim, store):
                clears = request.kind == "write" and (claim.has_begun or claim.clears)
                store.replace(CLAIM, replace(wanted, clears=clears).to_json(), version)
                log(f"claim: taken over from {claim.owner}")
            else:
                raise _refused(store, claim, request)
        except ConflictError:
            with contextlib.suppress(CrispError):  # a request that is sent again finds its own first answer
                standing = standing_claim(store)[0]
                if standing is not None and standing.owner.token == owner.token:
                    break
            time.sleep(_TRY_SECONDS)
            continue
        break
    else:
        raise InputError(f"{store.url}/{CLAIM}: changes again and again. See who else writes there.")
    return Hold(store.url, request.fingerprint), owner.token


def clear(
    store: Store, hold: Hold, names: Callable[[Store], Sequence[str]], forget: Callable[[], object] | None = None
) -> None:
    """Delete what an earlier claim left, where this one took over from it; goes on where that was interrupted.

    `forget` lets this writer put all its files anew: none of the other one's, not even one that arrives late, is taken
    for its own.
    """
    claim, version = standing_claim(store)
    if claim is None or not claim.clears or claim.request.fingerprint != hold.request:
        return
    for name in [] if store.exists(MANIFEST) else names(store):
        with contextlib.suppress(MissingObjectError):
            store.delete(name)
    if forget is not None:
        forget()
    store.replace(CLAIM, replace(claim, clears=False).to_json(), version)


def _warn_of_store(store: Store, claim: Claim, log: Log) -> None:
    """A store that takes a second create-only put, or one for another version, ignores the condition: then two writers
    could both have a root."""
    if store.is_local:
        return
    content, ignored = claim.to_json(), list[str]()
    with contextlib.suppress(ConflictError):
        store.put(CLAIM, content, create=True)
        ignored.append("If-None-Match")
    with contextlib.suppress(ConflictError):
        store.replace(CLAIM, content, {"e_tag": '"0"', "version": "0"})
        ignored.append("If-Match")
    if ignored:
        log(
            f"claim: warning: {store.url} ignores conditional puts ({', '.join(ignored)}), so it cannot tell which of "
            "two writers came first. Start one write or append of it at a time."
        )


def remove_folders(made: Sequence[Path]) -> None:
    """Remove the folders that were made for a root, where they are empty."""
    with contextlib.suppress(OSError):
        for folder in made:
            folder.rmdir()


def missing_folders(store: Store) -> list[Path]:
    """Folders that the first file of a local root makes, from the root up."""
    if not store.is_local:
        return []
    path = local_path(store.url).resolve()
    return [folder for folder in (path, *path.parents) if not folder.exists()]
