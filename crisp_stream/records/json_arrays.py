"""Records of a JSON array, one at a time: a file that is `[{…}, {…}]`, on one line or over many.

`raw_decode` of Python's json takes a value out of a longer text, so a piece of the file and the record at hand are all
that is held. Not json.load: a file of 10 GB would take 30 GB. Not a parser of events (ijson): one more package, and
slower, because it makes a record in Python out of every name and value.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from crisp_stream.errors import CorruptInputError, InputError
from crisp_stream.records.bad_record import LEAST_BYTES_PER_BYTE, LargeRecordError

MAX_RECORD_CHARACTERS = 256 << 20
PIECE_BYTES = 1 << 20
_LONGEST_TOKEN = 16
"""A name such as `true` or an escape that is cut at the end of a piece is an error this near to its end."""
_BLANK = " \t\n\r"


def read_array(
    url: str, first: bytes, stream: IO[bytes], *, room_bytes: int | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number from 1 and fields of each record.

    Args:
        url: name of the file, for errors.
        first: its bytes so far, from the `[` on.
        stream: the rest of it.
        room_bytes: memory that a record may take; None where there is no limit.

    Raises:
        LargeRecordError: a record takes more.
        CorruptInputError: no JSON, or cut off. InputError: an array of something else than objects.
    """
    text = _Text(url, first, stream, room_bytes)
    text.position = 1
    number = 0
    while (sign := text.next_sign()) != "]":
        if number:
            if sign != ",":
                raise text.damage(number, f"a comma or the ] of the end must follow, got {sign or 'the end'!r}")
            text.position += 1
            sign = text.next_sign()
        number += 1
        if sign != "{":
            got = text.shown() or "the end of the file"
            kind = InputError if sign and sign not in "]," else CorruptInputError
            raise kind(
                f"{url}: record {number} of the JSON array must be an object, got {got}. Write one object per document."
            )
        yield number, text.next_object(number)
    text.position += 1
    if text.next_sign():
        raise text.damage(number, f"nothing may follow the ] of the end, got {text.shown()}")


class _Text:
    """A piece of the file, and a position in it."""

    def __init__(self, url: str, first: bytes, stream: IO[bytes], room_bytes: int | None) -> None:
        self.position = 0
        self._room_bytes = room_bytes
        self._url, self._stream = url, stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")  # as json.loads decodes bytes
        self._decode_json = json.JSONDecoder().raw_decode
        self._piece = self._decoder.decode(first)
        self._ended = False

    def next_sign(self) -> str:
        """Go to the next character that is not blank; empty at the end."""
        while True:
            while self.position < len(self._piece):
                if (sign := self._piece[self.position]) not in _BLANK:
                    return sign
                self.position += 1
            if not self._read_on(PIECE_BYTES):
                return ""

    def next_object(self, number: int) -> dict[str, Any]:
        """Take the object at the position."""
        while True:
            try:
                record, self.position = self._decode_json(self._piece, self.position)
                return record
            except RecursionError as error:
                raise self.damage(number, "its nesting is too deep") from error
            except json.JSONDecodeError as error:
                num_held = len(self._piece) - self.position
                near_end = error.pos >= len(self._piece) - _LONGEST_TOKEN
                is_cut = near_end or error.msg.startswith("Unterminated string")
                needed = num_held * LEAST_BYTES_PER_BYTE
                if self._room_bytes is not None and needed > self._room_bytes:
                    raise LargeRecordError(number, num_held, needed) from error
                if num_held > MAX_RECORD_CHARACTERS:
                    raise InputError(
                        f"{self._url}: record {number} of the JSON array must be shorter than "
                        f"{MAX_RECORD_CHARACTERS:,} characters, got a longer one. Cut it."
                    ) from error
                if not is_cut or not self._read_on(max(PIECE_BYTES, num_held)):
                    raise self.damage(number, error.msg) from error

    def _read_on(self, num_bytes: int) -> bool:
        """Put the next bytes behind what is left; False at the end of the file."""
        if self._ended:
            return False
        read = self._stream.read(num_bytes)
        self._ended = not read
        try:
            more = self._decoder.decode(read, final=self._ended)
        except UnicodeDecodeError as error:
            raise CorruptInputError(
                f"{self._url}: a JSON array must be UTF-8, got: {error}. Convert the file to UTF-8."
            ) from error
        self._piece, self.position = self._piece[self.position :] + more, 0
        return bool(more) or not self._ended

    def shown(self) -> str:
        """What stands at the position, for errors."""
        return repr(self._piece[self.position : self.position + 20]) if self.position < len(self._piece) else ""

    def damage(self, number: int, got: str) -> CorruptInputError:
        """The error of a file that is no JSON array."""
        return CorruptInputError(
            f"{self._url}: record {number} of the JSON array must be readable, got: {got}. Mend the file, or leave it "
            "out."
        )
