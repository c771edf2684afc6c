"""Documents of one file never depend on how it was compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from crisp_stream.errors import CorruptInputError
from crisp_stream.writers.documents.drops import DropCounts
from tests.support.read_files import jsonl, read_files, texts_of
from tests.support.warc import warc_record

TEXTS = ["first é", "second\nline", "", "  ", 'a,b "quoted"', *(f"document {number} " * 40 for number in range(3000))]


def zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def halves(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Two compressed streams in a row, cut inside a document."""
    return lambda content: compress(content[: len(content) // 2]) + compress(content[len(content) // 2 :])


def zstd_by_pyarrow(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


def long_window(content: bytes, log: int = 31) -> bytes:
    """As `zstd --long=31` compresses what it does not know the size of."""
    parameter = zstd().CompressionParameter
    compressor = zstd().ZstdCompressor(
        options={parameter.window_log: log, parameter.enable_long_distance_matching: 1, parameter.checksum_flag: 1}
    )
    return compressor.compress(content) + compressor.flush()


WAYS: list[tuple[str, Callable[[bytes], bytes]]] = [
    (".gz", gzip.compress),
    (".gz", halves(gzip.compress)),
    (".bz2", bz2.compress),
    (".bz2", halves(bz2.compress)),
    (".xz", lzma.compress),
    (".xz", halves(lambda content: lzma.compress(content, check=lzma.CHECK_CRC64) + bytes(8))),
    (".zst", zstd_by_pyarrow),
    (".zst", halves(zstd_by_pyarrow)),
    (".zst", lambda content: b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd_by_pyarrow(content)),
    (".zst", halves(long_window)),
]
KINDS: dict[str, bytes] = {
    "jsonl": jsonl(*({"text": text, "id": number} for number, text in enumerate(TEXTS))),
    "json": b"[" + b",\n".join(jsonl(*({"text": text} for text in TEXTS)).splitlines()) + b"]",
    "csv": ("text\r\n" + "".join('"' + text.replace('"', '""') + '"\r\n' for text in TEXTS)).encode(),
    "txt": b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode(),
    "wet": b"".join(warc_record("conversion", text.encode(), uri=str(n)) for n, text in enumerate(TEXTS)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_documents_do_not_depend_on_the_compression(tmp_path: Path, kind: str) -> None:
    plain = tmp_path / f"a.{kind}"
    plain.write_bytes(KINDS[kind])
    for documents in ("file", "line", "block") if kind == "txt" else ("file",):
        plain_counts = DropCounts()
        expected = read_files(plain, plain_counts, txt_documents=documents)
        assert len(expected) == {"file": 1, "line": 3004, "block": 2}[documents] if kind == "txt" else 3003
        for number, (suffix, compress) in enumerate(WAYS):
            compressed = tmp_path / f"{number}.{kind}{suffix}"
            compressed.write_bytes(compress(KINDS[kind]))
            counts = DropCounts()
            assert read_files(compressed, counts, txt_documents=documents) == expected, compressed.name
            assert counts == plain_counts


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_window_over_128_mb_is_read_and_takes_the_memory_of_the_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl.zst"
    path.write_bytes(long_window(jsonl(*({"text": f"{number} " * 50} for number in range(10_000)))))
    with pytest.raises(OSError, match="too much memory"), pa.CompressedInputStream(str(path), "zstd") as other:
        other.read()  # the fault that this is for
    code = """
import re, sys
from pathlib import Path
from tests.support.read_files import texts_of
print(len(texts_of(sys.argv[1])), re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    num_texts, peak_kb = map(int, ran.stdout.split())
    assert num_texts == 10_000
    assert peak_kb < 400 << 10


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_window_for_which_there_is_no_memory_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl.zst"
    path.write_bytes(long_window(jsonl({"text": "a"})))
    code = """
import resource, sys
import pyarrow
from crisp_stream.errors import StorageError
from tests.support.read_files import texts_of
resource.setrlimit(resource.RLIMIT_AS, (1500 << 20, 1500 << 20))
try:
    texts_of(sys.argv[1])
except StorageError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "dump.jsonl.zst: cannot be read: there is no memory left. A .zst file of --long=31 takes 2 GB" in ran.stdout


def test_what_follows_a_stream_is_never_left_out_in_silence(tmp_path: Path) -> None:
    content = jsonl({"text": "a"})
    for suffix, compress in WAYS:
        (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(content) + b"no stream")
        with pytest.raises(CorruptInputError, match=f"a.jsonl{suffix}: must be readable to its end"):
            texts_of(tmp_path / f"a.jsonl{suffix}")
