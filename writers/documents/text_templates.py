r"""Texts made of several fields: `'{title}\n\n{body}'`, or the turns of a chat.

A template names fields by dotted path in braces. `chat` takes the turns that a record holds in one of the usual forms
and writes them with the names of their speakers, as transcripts are printed: `User: …`, a blank line, `Assistant: …`.
The marks of one model's chat template (`<|im_start|>`) were rejected: a corpus is written once for many models, and its
tokenizer would spell such marks out. Alpaca's preamble was, too: it would stand in every document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.writers.documents.bad_records import BadRecordError
from crisp_stream.writers.documents.fields import MISSING, find_field, listed_fields

CHAT = "chat"
_TOKENS = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|\\[nt\\]|[{}]")
_ESCAPES = {"{{": "{", "}}": "}", r"\n": "\n", r"\t": "\t", "\\\\": "\\"}
_LISTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"))
_INPUT = "input"
"""Alpaca's text that an instruction is about; often empty."""
_CHAT_FIELDS = (*_LISTS, *dict.fromkeys(name for pair in _PAIRS for name in pair), _INPUT)
_SPEAKERS = {"human": "User", "gpt": "Assistant"}


@dataclass(frozen=True, kw_only=True)
class TextTemplate:
    """How the text of a record is made."""

    parts: tuple[tuple[str, bool], ...]
    """Texts as they stand, and paths of fields (True). Empty: the turns of a chat."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Paths of the fields that may be needed."""
        return tuple(part for part, is_field in self.parts if is_field) or _CHAT_FIELDS

    def text(self, record: dict[str, Any]) -> str | None:
        """The text of a record; None where all its fields are null, empty where none of them has text.

        Raises:
            BadRecordError: a field is not there, or holds neither a text nor a number; no chat in one of the known
            forms.
        """
        if not self.parts:
            return _chat(record)
        values = [_value(record, part) if is_field else part for part, is_field in self.parts]
        given = [value for value, (_, is_field) in zip(values, self.parts, strict=True) if is_field]
        if all(value is None for value in given):
            return None
        if not any(value and not value.isspace() for value in given):
            return ""
        return "".join(value or "" for value in values)


def parse_template(written: str) -> TextTemplate:
    r"""A template out of what the user wrote: `{FIELD}` in a text, with `\n`, `\t` and `{{`, `}}`; or `chat`.

    Raises:
        InputError: a brace that stands alone, or no field.
    """
    if written == CHAT:
        return TextTemplate(parts=())
    parts: list[tuple[str, bool]] = []
    end = 0
    for token in _TOKENS.finditer(written):
        parts.append((written[end : token.start()], False))
        end = token.end()
        if token[1]:
            parts.append((token[1], True))
        elif token[0] in _ESCAPES:
            parts.append((_ESCAPES[token[0]], False))
        else:
            raise InputError(
                f"text_template {written!r}: braces must enclose the name of a field, got a {token[0]} alone. "
                "Write {{ or }} for a brace of the text."
            )
    parts.append((written[end:], False))
    parts = [part for part in parts if part[0]]
    if not any(is_field for _, is_field in parts):
        raise InputError(
            f"text_template {written!r}: must name a field in braces, such as '{{title}}\\n\\n{{body}}', or be "
            f"`{CHAT}`. Write one of these."
        )
    return TextTemplate(parts=tuple(parts))


def _value(record: dict[str, Any], path: str) -> str | None:
    value = find_field(record, path)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is MISSING:
        raise BadRecordError(
            "no text field",
            f"the field {path!r} of the text template must exist, got: {listed_fields(record)}",
            "Name one of these in --text-template.",
        )
    raise BadRecordError(
        "text that is not a string",
        f"the field {path!r} of the text template must hold a text or a number, got {type(value).__name__}",
        "Name another field in --text-template.",
    )


def _chat(record: dict[str, Any]) -> str | None:
    """The turns of a chat with the names of the speakers."""
    for name, keys in _LISTS.items():
        if record.get(name) is not None:
            return _written(_messages(record[name], name, keys))
    for pair in _PAIRS:
        asked, answered = map(record.get, pair)
        if asked is not None and answered is not None:
            return _written(_turns_of_pair(record, pair))
    if any(name in record for name in _LISTS) or any(all(name in record for name in pair) for pair in _PAIRS):
        return None
    raise BadRecordError(
        "no text field",
        "a chat must be a list of `messages` or `conversations`, or "
        f"{', or '.join(' and '.join(f'`{name}`' for name in pair) for pair in _PAIRS)}, got: {listed_fields(record)}",
        "Name the fields in --text-template, such as '{question}\\n\\n{answer}'.",
    )


def _written(turns: Iterator[tuple[str, str]]) -> str:
    return "\n\n".join(f"{speaker}: {text}" for speaker, text in turns if text)


def _turns_of_pair(record: dict[str, Any], pair: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for name, speaker in zip(pair, ("User", "Assistant"), strict=True):
        value = record[name]
        if isinstance(value, list):  # messages on both sides
            yield from _messages(value, name, _LISTS["messages"])
            continue
        text = _text_of(value, f"`{name}`")
        if name == "instruction" and record.get(_INPUT) is not None:
            text = "\n\n".join(filter(None, (text, _text_of(record[_INPUT], f"`{_INPUT}`"))))
        yield speaker, text


def _messages(messages: Any, name: str, keys: tuple[str, str]) -> Iterator[tuple[str, str]]:
    role_key, text_key = keys
    for number, message in enumerate(messages if isinstance(messages, list) else [messages], start=1):
        subject = f"message {number} of `{name}`"
        if not isinstance(message, dict) or not isinstance(message.get(role_key), str) or text_key not in message:
            got = listed_fields(message) if isinstance(message, dict) else type(message).__name__
            raise BadRecordError(
                "text that is not a string",
                f"{subject} must be an object with `{role_key}`, a text, and `{text_key}`, got: {got}",
                "Convert the records, or name other fields in --text-template.",
            )
        role = str(message[role_key])
        yield _SPEAKERS.get(role, role[:1].upper() + role[1:]), _text_of(message[text_key], subject)


def _text_of(value: Any, subject: str) -> str:
    """A text, or the texts of a list of parts, as messages with pictures have them."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "\n".join(texts)
    got = "null" if value is None else "parts without text" if isinstance(value, list) else type(value).__name__
    raise BadRecordError(
        "text that is not a string",
        f"{subject} must hold a text, got {got}",
        "Convert such records, or leave them out with --max-bad.",
    )
