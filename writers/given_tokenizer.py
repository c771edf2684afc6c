"""A tokenizer that is given: read and checked before the first document, and brought into the form of a dataset.

tokenizer.json stays as it is, byte for byte. tokenizer_config.json names the end-of-text token; where the given files
say it elsewhere (special_tokens_map.json, --eot-token), the dataset's copy is completed.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format.manifest import TOKENIZER_FILES
from crisp_stream.format.tokenizer import EOT_TOKEN, DocumentTokenizer
from crisp_stream.writers.options import WriteOptions

_TOKENIZER, _CONFIG = TOKENIZER_FILES
_SPECIAL_TOKENS = "special_tokens_map.json"


@dataclass(frozen=True, kw_only=True)
class GivenTokenizer:
    """A tokenizer that was read and can be used."""

    source: str
    """What was asked for: folder, file or hub name."""
    files: dict[str, bytes]
    """Content of tokenizer.json and tokenizer_config.json."""

    def save(self, folder: Path) -> None:
        """Write the two files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def read_tokenizer(
    source: str, *, eot_token: str | None = None, window_tokens: int = WriteOptions.window_tokens
) -> GivenTokenizer:
    """Read a tokenizer and check that documents can be encoded by it.

    Args:
        source: a folder, a path of a tokenizer.json, or a hub name.
        eot_token: the end-of-text token; None takes eos_token of tokenizer_config.json, else of
            special_tokens_map.json, else `<|endoftext|>`.
        window_tokens: model_max_length, where the source has no tokenizer_config.json.

    Raises:
        InputError: no tokenizer.json there, files that cannot be read, no end-of-text token, or one that plain text
            becomes.
    """
    with tempfile.TemporaryDirectory(prefix="crisp-stream-") as scratch:
        path = Path(source)
        if not path.exists():
            path = Path(scratch) / "hub"
            _save_from_hub(source, path)
        file = path / _TOKENIZER if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"{source}: a tokenizer folder must hold {_TOKENIZER}, got none. {_SAVE_FAST}")
        config = _read_json(source, file.with_name(_CONFIG))
        fallback = {"model_max_length": window_tokens, "tokenizer_class": "PreTrainedTokenizerFast"}
        completed = {**(fallback if config is None else config)}
        special = _read_json(source, file.with_name(_SPECIAL_TOKENS)) or {}
        named = eot_token or completed.get("eos_token") or special.get("eos_token") or EOT_TOKEN
        if eot_token is not None or not completed.get("eos_token"):
            completed["eos_token"] = named
        content = file.with_name(_CONFIG).read_bytes() if completed == config else _json_bytes(completed)
        given = GivenTokenizer(source=source, files={_TOKENIZER: file.read_bytes(), _CONFIG: content})
        given.save(Path(scratch) / "checked")
        DocumentTokenizer(Path(scratch) / "checked", name=source).check()
    return given


_SAVE_FAST = "Save a fast tokenizer there: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)."


def _read_json(source: str, path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{source}: {path.name} must be JSON, got: {error}. Restore the file.") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{source}: {path.name} must be a JSON object, got {type(content).__name__}. Restore the file."
        )
    return content


def _json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _save_from_hub(name: str, folder: Path) -> None:
    library: Any = import_extra("transformers", extra="write", purpose="loading a tokenizer by its hub name")
    try:
        library.AutoTokenizer.from_pretrained(name, use_fast=True).save_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"tokenizer {name}: must be a folder, a tokenizer.json or a hub name that can be reached, got: {reason}. "
            "Check the path."
        ) from error
    if not (folder / _TOKENIZER).is_file():
        raise InputError(
            f"tokenizer {name}: must have a fast version (tokenizer.json), got only a slow one. Choose another."
        )
