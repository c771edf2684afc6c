"""Public text that comes in packages of the package registry."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from crisp_stream.errors import InputError, StorageError
from crisp_stream.hashing import file_sha256


@dataclass(frozen=True)
class Package:
    """A wheel of a package registry."""

    name: str
    """Name in the registry."""
    version: str
    """Exact version."""
    sha256: str
    """Hex digest of the wheel."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def fetch_package(package: Package, cache: Path) -> Path:
    """Find the wheel in the cache, or download it there without its dependencies.

    Raises:
        StorageError: the registry does not answer or does not have it.
        InputError: neither pip nor uv is there, or the file is not the one that is expected.
    """
    stem = re.sub(r"[-_.]+", "_", package.name)
    name = f"{stem}-{package.version}-py3-none-any.whl"
    target = cache / name
    if target.is_file() and file_sha256(target) == package.sha256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        _download(package, Path(folder))
        downloaded = Path(folder) / name
        got = file_sha256(downloaded) if downloaded.is_file() else "no such file"
        if got != package.sha256:
            raise InputError(
                f"{name} must have sha256 {package.sha256}, got {got}. "
                "The package registry serves another file under this name and version; ask whoever runs it."
            )
        downloaded.replace(target)
    return target


def _download(package: Package, folder: Path) -> None:
    requirement = f"{package.name}=={package.version}"
    arguments = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    # Of packages that also have wheels for this machine, the one for all.
    command = [*_pip(), *arguments, "--platform=any", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[-400:]
        raise StorageError(f"cannot fetch {requirement} from the package registry: {reason}. Try: {' '.join(command)}")


def _pip() -> list[str]:
    """Find a pip: it knows the registry that this machine is set up for."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is not None:
        return [uv, "tool", "run", "--quiet", "pip"]
    for name in ("pip3", "pip"):
        if pip := shutil.which(name):
            return [pip]
    raise InputError("fetching public text needs pip or uv, got neither. Run: python -m ensurepip")
