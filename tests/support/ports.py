"""Ports of 127.0.0.1 for servers that tests start a moment later.

The system gives outgoing connections ports from 32,768 on (Linux) or 49,152 on (macOS); one that was free there may be
taken a moment later. So these lie below.
"""

from __future__ import annotations

import secrets
import socket

GRPC_OFFSET = 10_000
"""SeaweedFS listens for gRPC on each HTTP port plus this."""
_FIRST, _LAST = 10_000, 32_767 - GRPC_OFFSET


def free_port() -> int:
    """A port that is free now."""
    return free_ports(1)[0]


def free_ports(count: int, offsets: tuple[int, ...] = (0,)) -> list[int]:
    """Ports p that are free now, as are all p + offset; all held until the last one is found."""
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            port = _FIRST + secrets.randbelow(_LAST - _FIRST + 1)
            group: list[socket.socket] = []
            try:
                for offset in offsets:
                    group.append(socket.socket())
                    group[-1].bind(("127.0.0.1", port + offset))
            except OSError:
                for listener in group:
                    listener.close()
                continue
            held += group
            ports.append(port)
        return ports
    finally:
        for listener in held:
            listener.close()
