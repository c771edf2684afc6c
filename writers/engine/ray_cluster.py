"""A Ray cluster on this machine, started by a process of its own that holds it.

Where one of Ray's processes dies while Ray starts, its library ends the process that starts it, with a line of C++ as
the last word, and leaves its agents behind. So another process starts Ray, in a session of its own; this one waits for
the address, and if none comes it ends that session and says what happened. Ctrl-C in a terminal does not reach Ray's
processes, either, and if this process is killed, the other one ends the cluster. The price is a second import of Ray.

Ray also waits for minutes at an address where something else answers than Ray. Its servers speak HTTP/2: they answer
its first frame at once, which is looked for before Ray is asked to connect.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError, StorageError

IMPORT_SECONDS = 180.0
START_SECONDS = 60.0
"""Ray takes 5 s to start, on a machine with other work 20 s."""
CONNECT_SECONDS = 10.0
_END_SECONDS = 20.0
_STORE_BYTES = 128 << 20
"""Size of Ray's object store; no data goes through it."""
_IMPORTED, _ADDRESS = "imported", "address "
_AUTH_MODE = "RAY_AUTH_MODE"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 begins with, and a frame of settings without any."""
_SETTINGS_FRAME = 4


class RayCluster:
    """A cluster of this machine alone, which ends with `close`, or with this process."""

    def __init__(self, *, num_cpus: int) -> None:
        """Start it. Raises StorageError where it does not start within a minute."""
        command = [sys.executable, "-m", "crisp_stream.writers.engine.ray_cluster", str(num_cpus)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        self._mode_before = os.environ.get(_AUTH_MODE)
        try:
            self.address, _, mode = self._started().partition(" ")
            _use_mode(mode or self._mode_before)
        except BaseException:
            self._end()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip("\n"))

    def _started(self) -> str:
        until, imported, raylet_seen = time.monotonic() + IMPORT_SECONDS, False, False
        while True:
            for line in self._lines:
                if line.startswith(_ADDRESS):
                    return line.removeprefix(_ADDRESS)
            if not imported and _IMPORTED in self._lines:
                imported, until = True, time.monotonic() + START_SECONDS
            raylets = _raylets(self._process.pid)
            if self._process.poll() is not None or (raylet_seen and not raylets):  # Ray's library ends with its raylet
                raise _not_started("one of its processes was killed, or ended")
            raylet_seen = raylet_seen or raylets
            if time.monotonic() > until:
                seconds = START_SECONDS if imported else IMPORT_SECONDS
                raise _not_started(f"it was not ready after {seconds:.0f} s")
            time.sleep(0.05)

    def close(self) -> None:
        """End the cluster."""
        _use_mode(self._mode_before)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._end()

    def _end(self) -> None:
        """Kill what is left of the session, and forget the process."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _use_mode(mode: str | None) -> None:
    """Speak to Ray's processes with or without its token, as they were started; old versions have none."""
    if mode == os.environ.get(_AUTH_MODE):
        return
    if mode is None:
        os.environ.pop(_AUTH_MODE, None)
    else:
        os.environ[_AUTH_MODE] = mode
    with contextlib.suppress(ImportError, AttributeError):
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")  # reads the variable again


def _raylets(group: int) -> bool:
    """Say whether a process group has a living raylet; always False where there is no /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group and b"/raylet\0" in (folder / "cmdline").read_bytes():
                return True
        except (OSError, ProcessLookupError):
            continue
    return False


def _not_started(reason: str) -> StorageError:
    return StorageError(
        f"ray: must start on this machine, but {reason}. Nothing of it is left running, and finished work is kept: run "
        "the same command again, with more memory free, or with --engine local."
    )


def require_ray(address: str) -> None:
    """Raises InputError where nobody listens at host:port or ray://host:port, or something else than Ray does."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # auto, or another name that Ray resolves
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            connection.settimeout(CONNECT_SECONDS)
            connection.sendall(_PREFACE)
            answer = b""
            while len(answer) < 9 and (more := connection.recv(9 - len(answer))):
                answer += more
    except (OSError, OverflowError) as error:
        raise no_cluster(address, str(error)) from error
    if len(answer) < 9 or answer[3] != _SETTINGS_FRAME:
        raise no_cluster(address, "what listens there is not Ray")


def no_cluster(address: str, reason: str) -> InputError:
    """The error about an address that leads to no cluster."""
    return InputError(
        f"address: must be a running Ray cluster, got {address}: {reason.rstrip('.')}. "
        "Start one with: ray start --head, or leave --address out to run on this machine."
    )


def _hold(num_cpus: int) -> None:
    """Start a cluster, tell its address, and end it when standard input ends."""
    import ray

    print(_IMPORTED, flush=True)
    options: dict[str, Any] = {
        "num_cpus": num_cpus,
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "log_to_driver": False,
        "logging_level": "error",
    }
    context: Any = ray.init(address="local", **options)
    print(_ADDRESS + context.address_info["address"], os.environ.get(_AUTH_MODE, ""), flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    _hold(json.loads(sys.argv[1]))
