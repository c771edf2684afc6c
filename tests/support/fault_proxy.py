"""An HTTP proxy that injects faults, in front of a real object store, in a thread of the test process.

It speaks raw sockets, because the faults are what HTTP libraries prevent: a body cut short, a reset, silence.
Requests are forwarded byte for byte: a signature covers the Host header, which therefore stays the client's.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["500", "503", "reset", "truncated", "flipped", "stalled", "403", "404", "delay"]
_HEAD_END = b"\r\n\r\n"
_MAX_HEAD_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18
_UPSTREAM_SECONDS = 60.0

_REFUSALS: dict[str, tuple[str, str, str]] = {
    "500": ("500 Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "503": ("503 Service Unavailable", "SlowDown", "Please reduce your request rate."),
    "403": ("403 Forbidden", "AccessDenied", "Access Denied"),
    "404": ("404 Not Found", "NoSuchKey", "The specified key does not exist."),
}


@dataclass(frozen=True)
class Request:
    """One request as the client sent it."""

    method: str
    path: str
    """With the query string."""
    headers: dict[str, str]
    """Names in lower case."""
    raw: bytes
    """Head and body."""

    @property
    def is_range(self) -> bool:
        """Whether it asks for a range of an object."""
        return "range" in self.headers


def shard_ranges(request: Request) -> bool:
    """Requests for ranges of shards: what reading windows sends."""
    return request.method == "GET" and request.is_range and ".mds" in request.path


def every_request(request: Request) -> bool:
    """All of them."""
    return True


@dataclass
class Rule:
    """Which requests meet a fault, and how many of them."""

    fault: Fault
    where: Callable[[Request], bool] = shard_ranges
    times: int | None = None
    """How many matching requests; every one when None."""
    after: int = 0
    """Matching requests that pass unharmed before."""
    seconds: float = 0.0
    """Length of a delay."""
    seen: int = 0
    """Matching requests so far."""
    injected: int = 0
    """Faults so far."""

    def meets(self, request: Request) -> bool:
        """Count a request and say whether it meets the fault."""
        if not self.where(request):
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.injected >= self.times):
            return False
        self.injected += 1
        return True


@dataclass
class FaultProxy:
    """A running proxy. `rules` may be changed at any time; the first that meets a request counts."""

    upstream_port: int
    port: int = 0
    rules: list[Rule] = field(default_factory=list)
    requests: int = 0
    """Requests received."""
    bytes_sent: int = 0
    """Bytes of bodies sent to clients."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def injected(self) -> int:
        """Faults injected by the present rules."""
        return sum(rule.injected for rule in self.rules)

    def start(self, fault: Fault, **how: object) -> Rule:
        """Replace all rules by one; see Rule."""
        rule = Rule(fault, **how)  # pyright: ignore[reportArgumentType]
        with self._lock:
            self.rules[:] = [rule]
        return rule

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self.rules.clear()

    def serve(self, listener: socket.socket) -> None:
        """Accept connections until stopped."""
        while not self._stop.is_set():
            if not select.select([listener], [], [], 0.1)[0]:
                continue
            client, _ = listener.accept()
            thread = threading.Thread(target=self._converse, args=(client,), daemon=True)
            thread.start()
            self._threads.append(thread)  # `stop` joins what is here

    def stop(self) -> None:
        """End all conversations."""
        self._stop.set()
        for thread in list(self._threads):
            thread.join(10)

    def _converse(self, client: socket.socket) -> None:
        upstream: socket.socket | None = None
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError), client:
            while (request := self._receive_request(client)) is not None:
                with self._lock:
                    self.requests += 1
                    rule = next((rule for rule in self.rules if rule.meets(request)), None)
                fault = rule.fault if rule is not None else None
                if fault == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                if rule is not None and fault == "delay" and self._stop.wait(rule.seconds):
                    break
                if fault in _REFUSALS:
                    self._send(client, *_refusal(str(fault)))
                    continue
                upstream = upstream or socket.create_connection(("127.0.0.1", self.upstream_port), _UPSTREAM_SECONDS)
                upstream.sendall(request.raw)
                head, body = _receive_answer(upstream, request.method)
                if not self._answer(client, fault, head, body):
                    break
        if upstream is not None:
            upstream.close()

    def _answer(self, client: socket.socket, fault: Fault | None, head: bytes, body: bytes) -> bool:
        """Send an answer; False when the connection ends with it."""
        if fault == "truncated":
            self._send(client, head, body[: len(body) // 2])
            return False
        if fault == "stalled":
            self._send(client, head, b"")
            while not self._stop.wait(0.05):
                if select.select([client], [], [], 0)[0] and not client.recv(1):
                    break
            return False
        if fault == "flipped" and body:
            at = len(body) // 2
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        self._send(client, head, body)
        return b"connection: close" not in head.lower()

    def _send(self, client: socket.socket, head: bytes, body: bytes) -> None:
        client.sendall(head + body)
        with self._lock:
            self.bytes_sent += len(body)

    def _receive_request(self, client: socket.socket) -> Request | None:
        while not select.select([client], [], [], 0.1)[0]:
            if self._stop.is_set():
                return None
        head, rest = _receive_head(client)
        if not head:
            return None
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = _headers(lines[1:])
        if headers.get("expect", "").lower() == "100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _receive_body(client, headers, rest)
        return Request(method, path, headers, head + body)


def _refusal(fault: str) -> tuple[bytes, bytes]:
    status, code, message = _REFUSALS[fault]
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
    )
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head, body


def _headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _receive_head(peer: socket.socket) -> tuple[bytes, bytes]:
    received = b""
    while _HEAD_END not in received and len(received) < _MAX_HEAD_BYTES:
        piece = peer.recv(_PIECE_BYTES)
        if not piece:
            return b"", b""
        received += piece
    head, _, rest = received.partition(_HEAD_END)
    return head + _HEAD_END, rest


def _receive_body(peer: socket.socket, headers: dict[str, str], received: bytes) -> bytes:
    """The body as it was sent, chunk headers included."""
    content = bytearray(received)

    def complete() -> bool:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return content.endswith(b"0" + _HEAD_END)
        return len(content) >= int(headers.get("content-length", "0"))

    while not complete():
        piece = peer.recv(_PIECE_BYTES)
        if not piece:
            raise ConnectionError("the peer closed in the middle of a body")
        content += piece
    return bytes(content)


def _receive_answer(upstream: socket.socket, method: str) -> tuple[bytes, bytes]:
    head, rest = _receive_head(upstream)
    if not head:
        raise ConnectionError("the server closed without an answer")
    lines = head.decode("latin-1").split("\r\n")
    status = lines[0].split(" ")[1]
    bodiless = method == "HEAD" or status in ("204", "304")
    return head, b"" if bodiless else _receive_body(upstream, _headers(lines[1:]), rest)


@contextmanager
def fault_proxy(endpoint: str) -> Iterator[FaultProxy]:
    """A proxy in front of `endpoint` (http://127.0.0.1:port) until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = FaultProxy(upstream_port=int(endpoint.rpartition(":")[2]), port=listener.getsockname()[1])
        acceptor = threading.Thread(target=proxy.serve, args=(listener,), daemon=True)
        acceptor.start()
        try:
            yield proxy
        finally:
            proxy.stop()
            acceptor.join(10)
