"""Records of a WARC file."""

from __future__ import annotations


def warc_record(kind: str, content: bytes, *, uri: str = "http://example.org/", **fields: str) -> bytes:
    """A record; `fields` are further ones of its header, with _ for -."""
    header = {
        "WARC-Type": kind,
        "WARC-Target-URI": uri,
        "WARC-Date": "2024-02-20T17:45:13Z",
        "WARC-Record-ID": f"<urn:uuid:{uri}>",
        "Content-Type": "text/plain",
        "Content-Length": str(len(content)),
        **{name.replace("_", "-"): value for name, value in fields.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in header.items())
    return f"WARC/1.0\r\n{lines}\r\n".encode() + content + b"\r\n\r\n"
