"""A TCP proxy that holds back every request for some milliseconds, as a distant object store does.

    python -m benchmarks.latency_proxy --upstream 127.0.0.1:8333 --delay-ms 30

Prints the port it listens on. For every line on its standard input it prints one line of JSON: requests, bytes, CPU
seconds. Ends with its input. It does not parse HTTP, so signatures stay valid: what a client sends is passed on after
the delay, what the server sends at once. Reads have no bodies, so each of their packets is one request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
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


class LatencyProxy:
    """The proxy as a process of its own; a context manager."""

    def __init__(self, upstream: str, delay_ms: float) -> None:
        """Args:
        upstream: http://host:port.
        delay_ms: added to every request.
        """
        address = upstream.removeprefix("http://")
        command = ["-m", "benchmarks.latency_proxy", "--upstream", address, "--delay-ms", str(delay_ms)]
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


async def _serve(host: str, port: int, delay: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Client(host, port, delay), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        totals = {"requests": _Totals.requests, "sent": _Totals.sent, "received": _Totals.received}
        print(json.dumps({**totals, "cpu_seconds": time.process_time()}), flush=True)
    server.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", required=True, help="host:port")
    parser.add_argument("--delay-ms", type=float, default=30.0)
    options = parser.parse_args()
    host, _, port = options.upstream.partition(":")
    asyncio.run(_serve(host, int(port), options.delay_ms / 1000))


if __name__ == "__main__":
    main()
