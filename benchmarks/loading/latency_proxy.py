"""A TCP proxy that holds back every request for some milliseconds, as a distant object store does.

    python -m benchmarks.loading.latency_proxy --upstream 127.0.0.1:8333 --delay-ms 30
    python -m benchmarks.loading.latency_proxy --folder data --delay-ms 30      # a web server of ranges, same delay

The web server takes 0.2 ms of CPU for a request where a real S3 server takes 2: it shows what the client can do where
the two share a small machine.

Prints the port it listens on. For every line on its standard input it prints one line of JSON: requests, bytes, CPU
seconds. Ends with its input. It does not parse HTTP, so signatures stay valid: what a client sends is passed on after
the delay, what the server sends at once. Reads have no bodies, so each of their packets is one request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_REQUESTS = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")


class _Totals:
    requests = 0
    sent = 0
    received = 0


class _Upstream(asyncio.Protocol):
    """The connection to the server, on behalf of one client."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._client.connected(transport)

    def data_received(self, data: bytes) -> None:
        _Totals.received += len(data)
        self._client.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.transport.close()

    def pause_writing(self) -> None:
        self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        self._client.transport.resume_reading()


class _Client(asyncio.Protocol):
    """The connection from a client."""

    transport: asyncio.Transport

    def __init__(self, host: str, port: int, delay: float) -> None:
        self._host, self._port, self._delay = host, port, delay
        self._upstream: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.create_connection(lambda: _Upstream(self), self._host, self._port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def connected(self, upstream: asyncio.Transport) -> None:
        """The server is there: pass on what had to wait."""
        self._upstream = upstream
        for data in self._waiting:
            upstream.write(data)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        _Totals.sent += len(data)
        _Totals.requests += data.startswith(_REQUESTS)
        asyncio.get_running_loop().call_later(self._delay, self._pass_on, data)

    def _pass_on(self, data: bytes) -> None:
        if self._upstream is None:
            self._waiting.append(data)
        else:
            self._upstream.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._upstream is not None:
            self._upstream.close()

    def pause_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()


class _Web(asyncio.Protocol):
    """A connection to the web server: GET and HEAD of files below a folder, whole or one range."""

    def __init__(self, folder: Path, delay: float) -> None:
        self._folder, self._delay, self._text = folder, delay, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        _Totals.sent += len(data)
        self._text += data
        while b"\r\n\r\n" in self._text:
            request, _, self._text = self._text.partition(b"\r\n\r\n")
            _Totals.requests += 1
            asyncio.get_running_loop().call_later(self._delay, self._answer, request.decode("latin-1"))

    def _answer(self, request: str) -> None:
        method, path, _ = request.partition("\r\n")[0].split(" ")
        file = self._folder / path.lstrip("/")
        if not file.is_file():
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        size = file.stat().st_size
        wanted = re.search(r"\r\nrange: bytes=(\d+)-(\d+)", request, re.IGNORECASE)
        first, last = (int(wanted[1]), min(int(wanted[2]), size - 1)) if wanted else (0, size - 1)
        head = f"HTTP/1.1 {'206 Partial Content' if wanted else '200 OK'}\r\nContent-Length: {last - first + 1}\r\n"
        head += f"Content-Range: bytes {first}-{last}/{size}\r\n" if wanted else ""
        head += "Accept-Ranges: bytes\r\nLast-Modified: Sun, 01 Nov 2026 00:00:00 GMT\r\n\r\n"
        with file.open("rb") as content:
            body = os.pread(content.fileno(), last - first + 1, first) if method == "GET" else b""
        _Totals.received += len(body)
        self._transport.write(head.encode() + body)


class LatencyProxy:
    """The proxy, or the web server, as a process of its own; a context manager."""

    def __init__(self, upstream: str | Path, delay_ms: float) -> None:
        """Args:
        upstream: http://host:port, or the folder to serve.
        delay_ms: added to every request.
        """
        source = (
            ["--folder", str(upstream)] if isinstance(upstream, Path) else ["--upstream", upstream[len("http://") :]]
        )
        command = ["-m", "benchmarks.loading.latency_proxy", *source, "--delay-ms", str(delay_ms)]
        self._process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.endpoint = f"http://127.0.0.1:{int(self._answer())}"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def totals(self) -> dict[str, float]:
        """Requests, bytes sent to and received from the server, and CPU seconds, so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._answer())

    def __enter__(self) -> LatencyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


async def _serve(connection: Callable[[], asyncio.Protocol]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        totals = {"requests": _Totals.requests, "sent": _Totals.sent, "received": _Totals.received}
        print(json.dumps({**totals, "cpu_seconds": time.process_time()}), flush=True)
    server.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--upstream", help="host:port")
    source.add_argument("--folder", type=Path, help="served instead")
    parser.add_argument("--delay-ms", type=float, default=30.0)
    options = parser.parse_args()
    delay = options.delay_ms / 1000
    if options.folder is not None:
        asyncio.run(_serve(lambda: _Web(options.folder, delay)))
    else:
        host, _, port = options.upstream.partition(":")
        asyncio.run(_serve(lambda: _Client(host, int(port), delay)))


if __name__ == "__main__":
    main()
