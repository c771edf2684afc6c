"""An input file as a stream of bytes, whatever its compression: .gz, .bz2, .xz, .zst.

All but gzip are read by the decompressors of Python's standard library (`compression.zstd` from 3.14 on, its backport
before), which pyarrow lacks in part: it knows no xz, and no zstd window over 128 MB. Their file objects take what
follows a stream for padding when it is none, so a damaged second stream would be left out in silence; here it is an
error. gzip stays with pyarrow, which is as strict and twice as fast as Python's.
"""

from __future__ import annotations

import bz2
import contextlib
import io
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO, Any

from crisp_stream.errors import CorruptInputError, CrispError, StorageError
from crisp_stream.storage.inputs import open_input

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ZSTD_WINDOW_LOG = 31
"""Largest window of a .zst file, as `zstd --long=31` makes it: 2^31 bytes, which a process holds while it reads the
file, or the size of the text where that is smaller."""
_BUFFER_BYTES = 1 << 20
_PIECE_BYTES = 1 << 17


@contextlib.contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file, for as long as the block.

    Raises:
        CorruptInputError: inside the block too, where the file cannot be read to its end. StorageError: the storage
        refused or failed.
    """
    with Damage(url), open_input(url) as raw, decompressed(url, raw) as stream:
        yield stream


def decompressed(url: str, raw: IO[bytes]) -> IO[bytes]:
    """The bytes of an open file without their compression. Raises what `Damage` explains."""
    suffix = PurePosixPath(url).suffix.lower()
    if suffix not in COMPRESSIONS:
        return raw
    if not raw.read(1):  # what compresses nothing still writes a header
        raise EOFError("an empty file")
    raw.seek(0)
    if suffix == ".gz":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(raw, "gzip"), _BUFFER_BYTES)
    decompressors = {".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor, ".zst": _zstd_decompressor}
    return io.BufferedReader(_Streams(raw, decompressors[suffix]), _BUFFER_BYTES)


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _zstd_decompressor() -> Any:
    zstd = _zstd()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})


class _Streams(io.RawIOBase):
    """One or more compressed streams, one after the other, with nothing else between or behind them."""

    def __init__(self, raw: IO[bytes], make: Callable[[], Any]) -> None:
        self._raw, self._make = raw, make
        self._stream = make()
        self._num_streams = 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            compressed = b""
            if self._stream.eof:
                compressed = self._next_stream()
                if not compressed:
                    return 0
                self._stream = self._make()
                self._num_streams += 1
            elif self._stream.needs_input:
                compressed = self._raw.read(_PIECE_BYTES)
                if not compressed:
                    further = " behind a whole one" if self._num_streams > 1 else ""
                    raise EOFError(f"Truncated compressed stream{further}")
            piece = self._stream.decompress(compressed, len(buffer))
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)

    def _next_stream(self) -> bytes:
        """Bytes that begin the next stream; none at the end of the file. xz files may be padded with zeros."""
        rest = self._stream.unused_data
        while True:
            if isinstance(self._stream, lzma.LZMADecompressor):
                rest = rest.lstrip(b"\0")
            if rest:
                return rest
            rest = self._raw.read(_PIECE_BYTES)
            if not rest:
                return b""


class Damage:
    """Says of an error inside the block that the file is damaged, unless it is the storage that failed."""

    def __init__(self, url: str, must_be: str = "readable to its end") -> None:
        self._url, self._must_be = url, must_be

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, CrispError):
            return
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"{self._url}: {error.strerror}. Check the disk and the permissions.") from error
        if isinstance(error, MemoryError) or (_is_zstd(error) and "not enough memory" in str(error)):
            raise StorageError(
                f"{self._url}: cannot be read: there is no memory left. A .zst file of --long=31 takes 2 GB in each "
                "process that reads one. Use fewer --processes, or compress it again."
            ) from error
        if _is_damage(error):
            got = str(error).rstrip(".")
            raise CorruptInputError(
                f"{self._url}: must be {self._must_be}, got: {got}. Restore the file, or leave it out."
            ) from error


def _is_damage(error: BaseException) -> bool:
    import pyarrow as pa

    if isinstance(error, OSError | EOFError | UnicodeDecodeError | lzma.LZMAError | pa.ArrowException):
        return True
    return _is_zstd(error)


def _is_zstd(error: BaseException) -> bool:
    return type(error).__name__ == "ZstdError"
