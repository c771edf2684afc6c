"""`kill -9` at random moments of writes and appends, then the same request again, or another one.

`python -m tests.support.random_kills --kills 200` prints what was done and what came of it, and exits 1 at the first
wrong byte or unnamed refusal. A round makes a root (a local folder, one on another file system than the work folder, or
an S3 prefix), starts a request there and kills it one to three times; half of the kills wait until publishing has
begun. Then the same request must end with the bytes of an uninterrupted one, or another request must be refused with
a reason, and with `--take-over` end with its own bytes. In the end, the request that was served last is asked once
more: it is done already.

Commands run in processes forked from this one, which has imported all that they need and has used no object store.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PLACES = ("folder", "other file system", "s3")
KINDS = ("write", "append")
_ROUNDS_PER_LINE = 12
_SHARED_MEMORY = Path("/dev/shm")
_REFUSALS = {
    "claimed by another request": r"must be written by one request at a time, but claim\.json .* --take-over",
    "made by another request": r"must not hold a dataset, but it has a manifest\.json of another request",
}


class WrongOutcomeError(Exception):
    """A round that did not end as it must."""


def forked(work: Callable[[], Any], log: Path) -> int:
    """Start a process that carries out `work`; it ends with 0, with 2 for an expected error, with 1 for a bug."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        from crisp_stream.errors import CrispError

        try:
            result = work()
            log.write_text(json.dumps(result))
            status = 0
        except CrispError as error:
            log.write_text(str(error))
            status = 2
    except BaseException:
        log.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def finished(work: Callable[[], Any], log: Path) -> tuple[int, str]:
    """Status and result (or error) of a process that is not killed."""
    _, status = os.waitpid(forked(work, log), 0)
    return os.waitstatus_to_exitcode(status), log.read_text()


def digests(root: str) -> dict[str, str]:
    """Path to hash of every object below a root."""
    import xxhash

    from crisp_stream.storage.store import open_store

    store = open_store(root)
    return {path: xxhash.xxh3_128_hexdigest(store.get(path)) for path, _ in store.list()}


class Rounds:
    """What all rounds share: inputs, the bytes of uninterrupted requests, and how long these took."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._log = folder / "log"
        self.counts: Counter[str] = Counter()
        self._inputs = self._write_inputs()
        self._expected: dict[tuple[str, int], dict[str, str]] = {}
        self._seconds: dict[str, float] = {}
        self._base = str(folder / "base")
        self._succeed(lambda: self._run("write", 0, self._base))
        for kind in KINDS:
            for variant in (0, 1):
                root = str(folder / f"{kind}{variant}")
                if kind == "append":
                    shutil.copytree(self._base, root)
                began = time.monotonic()
                self._succeed(lambda kind=kind, variant=variant, root=root: self._run(kind, variant, root))
                self._seconds[kind] = time.monotonic() - began
                self._expected[kind, variant] = json.loads(self._succeed(lambda root=root: digests(root)))

    def _write_inputs(self) -> list[str]:
        from tests.support.written_dataset import TOPICS

        paths = []
        for number in range(3):
            path = self._folder / f"{'abc'[number]}.jsonl"
            rows = [{"id": row, "text": text[:900]} for row, text in enumerate(TOPICS[number::3])]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            paths.append(str(path))
        return paths

    def _run(self, kind: str, variant: int, root: str, **changes: Any) -> None:
        from crisp_stream.writers.append import append
        from crisp_stream.writers.write import write
        from tests.support.written_dataset import small_options

        lines: list[str] = []
        chosen = {"encoder": "lsi", "max_length": None, "group_bytes": 1, "min_examples_to_split": 8}
        chosen |= {"dedup": "near", **changes}
        if kind == "write":
            options = small_options(Path(self._inputs[0]), root, seed=variant, **chosen)
            write(options, log=lines.append)
        else:
            given = {**chosen, "inputs": self._inputs[1 + variant : 2 + variant], "encoder": None}
            append(small_options(Path(self._inputs[0]), root, **given), prune=True, log=lines.append)

    def _succeed(self, work: Callable[[], Any]) -> str:
        status, result = finished(work, self._log)
        if status:
            raise WrongOutcomeError(f"must end with 0, got {status}: {result}")
        return result

    def one(self, kind: str, place: str, prefix: str | None) -> int:
        """Do a round; the number of kills."""
        name = f"round-{self._random.getrandbits(48):012x}"
        folder = self._folder / name
        work = _SHARED_MEMORY / f"crisp-{name}" if place == "other file system" else folder / "work"
        root = f"{prefix}/{name}" if prefix is not None else str(folder / "root")
        folder.mkdir()
        try:
            if kind == "append":
                self._succeed(lambda: _copy(self._base, root))
            kills = sum(self._kill(kind, root, work) for _ in range(self._random.randint(1, 3)))
            self._end(kind, root, work, same=self._random.random() < 0.5)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)
        return kills

    def _kill(self, kind: str, root: str, work: Path) -> bool:
        """Start request 0 and kill it; False if it was faster."""
        pid = forked(lambda: self._run(kind, 0, root, work=str(work)), self._log)
        if self._random.random() < 0.5:
            point, pause = "publishing", self._random.uniform(0, 0.12)
            while not (work / "publishing.json").exists() and _runs(pid):
                time.sleep(0.002)
        else:
            point, pause = "any moment", self._random.uniform(0, self._seconds[kind])
        time.sleep(pause)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):
            raise WrongOutcomeError(f"{kind} in {root}, to be killed: got {code}: {self._log.read_text()}")
        self.counts[f"killed at {point}" if code else "ended before its kill"] += 1
        return code != 0

    def _end(self, kind: str, root: str, work: Path, *, same: bool) -> None:
        variant = 0 if same else 1
        if not same:
            status, result = finished(lambda: self._run(kind, 1, root, work=str(work)), self._log)
            reason = next((name for name, pattern in _REFUSALS.items() if re.search(pattern, result)), None)
            if status and (status != 2 or reason is None):
                raise WrongOutcomeError(f"another {kind} in {root}: must end or be refused, got {status}: {result}")
            self.counts[f"another request: {reason}" if status else "another request: free to begin"] += 1
            if reason == "made by another request":
                variant = 0
        take_over = not same and variant == 1
        self._succeed(lambda: self._run(kind, variant, root, work=str(work), take_over=take_over))
        self._compare(kind, variant, root, work)
        before = self._succeed(lambda: digests(root))
        self._succeed(lambda: self._run(kind, variant, root, work=str(work)))
        if self._succeed(lambda: digests(root)) != before:
            raise WrongOutcomeError(f"{kind} in {root}: done already, but the root changed")
        self.counts["same request: right bytes" if same else "another request: right bytes"] += 1

    def _compare(self, kind: str, variant: int, root: str, work: Path) -> None:
        found = json.loads(self._succeed(lambda: digests(root)))
        expected = self._expected[kind, variant]
        if kind == "append" and variant == 1 and found != expected:
            problems = json.loads(self._succeed(lambda: _problems(root)))
            if problems:
                raise WrongOutcomeError(f"append in {root}: {problems}")
            self.counts["of these, appended after the first request had ended"] += 1
        elif found != expected:
            names = sorted(set(found.items()) ^ set(expected.items()))
            raise WrongOutcomeError(f"{kind} in {root}: other bytes than those of an uninterrupted one: {names[:9]}")
        if work.exists() and any(work.iterdir()):
            raise WrongOutcomeError(f"{kind} in {root}: left {sorted(work.iterdir())[:5]}")


def _problems(root: str) -> list[str]:
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.inspection.verify import verify_dataset

    if open_dataset(root).manifest.generation != 2:
        return ["must be of generation 2"]
    return [str(problem) for problem in verify_dataset(root, deep=True).problems]


def _copy(source: str, root: str) -> None:
    from crisp_stream.storage.store import open_store

    store, target = open_store(source), open_store(root)
    for path, _ in store.list():
        target.put(path, store.get(path))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    """An S3 server that another process looks after, so that this one uses no object store; its prefix."""
    command = [sys.executable, "-m", "tests.support.random_kills", "--serve", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline())
        os.environ.update(answer["environment"])
        try:
            yield answer["prefix"]
        finally:
            process.stdin.close()


def _serve(folder: Path) -> None:
    from tests.support.seaweed import seaweed

    with seaweed(folder) as server:
        print(json.dumps({"environment": server.environment(), "prefix": f"s3://{server.bucket}"}), flush=True)
        sys.stdin.read()


def main() -> int:
    """Do rounds until so many kills were done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        _serve(arguments.serve)
        return 0
    for module in ("faiss", "sklearn.utils.extmath", "crisp_stream.inspection.verify", "crisp_stream.writers.append"):
        importlib.import_module(module)
    print(f"seed {arguments.seed}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cs-kills-")))
        prefix = stack.enter_context(_server(folder / "s3")) if "s3" in arguments.places else None
        rounds = Rounds(folder, seed=arguments.seed)
        kills, number = 0, 0
        while kills < arguments.kills:
            kind, place = KINDS[number % 2], arguments.places[number // 2 % len(arguments.places)]
            number += 1
            try:
                kills += rounds.one(kind, place, prefix if place == "s3" else None)
            except WrongOutcomeError as error:
                print(f"round {number} ({kind}, {place}), after {kills} kills: {error}")
                return 1
            rounds.counts[f"rounds: {kind}, {place}"] += 1
            if number % _ROUNDS_PER_LINE == 0:
                print(f"{kills} kills in {number} rounds so far", flush=True)
    print(f"{kills} kills in {number} rounds")
    for name, count in sorted(rounds.counts.items()):
        print(f"{count:6,}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
