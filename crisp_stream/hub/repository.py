"""A dataset repository on the hub, written to through `huggingface_hub`: made, and given files by commits."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from crisp_stream.errors import ConflictError, CrispError, StorageError, import_extra
from crisp_stream.storage.hub import HubRoot, hub_token

T = TypeVar("T")
_AGAIN = (408, 429, 500, 502, 503, 504)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0


@dataclass(frozen=True)
class Upload:
    """A file to be committed."""

    path: str
    """Path in the repository."""
    content: bytes | Path
    """What it holds, or the local file that does."""


class HubRepository:
    """A dataset repository and a branch of it. Every method raises StorageError."""

    def __init__(self, root: HubRoot, *, timeout: float) -> None:
        """Nothing is contacted yet.

        Raises:
            MissingExtraError: huggingface_hub is not installed. StorageError: there is no token.
        """
        self.root = root
        self._timeout = timeout
        self._library: Any = import_extra("huggingface_hub", extra="write", purpose="publishing on the hub")
        token = hub_token() or self._library.get_token()
        if token is None:
            raise StorageError(
                f"hf://datasets/{root.repo}: publishing needs a token that may write, got none. Set HF_TOKEN, or log "
                "in with: hf auth login."
            )
        self._api: Any = self._library.HfApi(endpoint=root.endpoint, token=token, library_name="crisp-stream")

    def create(self, *, private: bool) -> None:
        """Make the repository and its branch where they are not there yet; what is there keeps its visibility."""
        self._call(
            "create the dataset",
            lambda: self._api.create_repo(self.root.repo, repo_type="dataset", private=private, exist_ok=True),
        )
        if self.root.revision != "main":
            self._call(
                f"create the branch {self.root.revision}",
                lambda: self._api.create_branch(
                    self.root.repo, repo_type="dataset", branch=self.root.revision, exist_ok=True
                ),
            )

    def commit(self, uploads: Sequence[Upload], message: str, *, parent: str | None = None) -> str:
        """Upload files and commit them, all of them in one step; return the id of the commit.

        Args:
            uploads: the files.
            message: what the commit says.
            parent: commit that the branch must stand at; any when None.

        Raises:
            ConflictError: the branch stands at another commit.
        """

        def carry_out() -> str:
            additions = [
                self._library.CommitOperationAdd(path_in_repo=one.path, path_or_fileobj=one.content) for one in uploads
            ]
            with self._without_progress_bars():
                done = self._api.create_commit(
                    self.root.repo,
                    additions,
                    commit_message=message,
                    repo_type="dataset",
                    revision=self.root.revision,
                    parent_commit=parent,
                )
            return str(done.oid)

        return self._call(f"upload {len(uploads):,} files", carry_out)

    def _call(self, action: str, request: Callable[[], T]) -> T:
        """Make a request, again while the hub is busy. Raises StorageError."""
        deadline, pause = time.monotonic() + self._timeout, _FIRST_PAUSE
        while True:
            try:
                return request()
            except CrispError:
                raise
            except Exception as error:  # of the libraries below huggingface_hub, which change with its versions
                status, asked = _status_of(error)
                pause = min(asked if asked is not None else pause * 2, _LONGEST_PAUSE)
                passes = status in _AGAIN or (status is None and _is_of_the_connection(error))
                if not passes or time.monotonic() + pause >= deadline:
                    raise self._explained(action, error, status) from error
                time.sleep(pause)

    def _explained(self, action: str, error: Exception, status: int | None) -> StorageError:
        where = f"hf://datasets/{self.root.repo}"
        told = " ".join(str(error.__cause__ or error).split())[:400].rstrip(".")
        if status == 412:
            return ConflictError(f"{where} was changed by another commit meanwhile. Run the command again.")
        if status in (401, 403):
            return StorageError(
                f"cannot {action} at {where}: the token may not ({told}). Use one that may write to "
                f"{self.root.repo.partition('/')[0]}, and check the name."
            )
        if status == 429:
            return StorageError(
                f"cannot {action} at {where}: the hub limits requests (429). Wait some minutes, then run the same "
                "command: what was committed is kept."
            )
        return StorageError(
            f"cannot {action} at {where}: {type(error).__name__}: {told}. Check the network and HF_ENDPOINT; the same "
            "command goes on where it stopped."
        )

    @contextlib.contextmanager
    def _without_progress_bars(self) -> Iterator[None]:
        bars: Any = self._library.utils
        shown = not bars.are_progress_bars_disabled()
        if shown:
            bars.disable_progress_bars()
        try:
            yield
        finally:
            if shown:
                bars.enable_progress_bars()


def _status_of(error: BaseException | None) -> tuple[int | None, float | None]:
    """Status of the answer that an error is of, and the seconds it asks to wait; uploads wrap the error of theirs."""
    while error is not None:
        answer = getattr(error, "response", None)
        if answer is not None:
            asked = re.fullmatch(r"\s*(\d+)\s*", answer.headers.get("Retry-After") or "")
            return int(answer.status_code), float(asked[1]) if asked else None
        error = error.__cause__
    return None, None


def _is_of_the_connection(error: BaseException | None) -> bool:
    """Whether no answer came: by the names that httpx and requests give such errors."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & {"TransportError", "ConnectionError", "Timeout", "TimeoutError"}:
            return True
        error = error.__cause__
    return False
