"""What decides an encoder's vectors, and a digest over it.

The digest tells encoders apart whose vectors differ, and should not tell those apart whose vectors are the same: so
files are not hashed as they are, where another version of a library would save the same model in another way. Hashed
are all files of weights, the kinds and the settings of all modules, the tokenizer, the prompt, lower-casing and
lengths. A last Normalize is left out, because vectors are scaled to norm 1 in any case.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.format.manifest import Reads
from crisp_stream.hashing import file_sha256
from crisp_stream.writers.embedding.encoder_files import find_file, read_settings, weights_files

MODULES = "modules.json"
STATIC = "StaticEmbedding"
_PLAIN = [{"path": "", "type": "Transformer"}, {"path": "1_Pooling", "type": "Pooling"}]
"""Modules of an encoder that names none: its pooling is the mean."""
_SETTINGS_FILES = {"Transformer": ("config.json",), STATIC: (), "Normalize": ()}
_WITH_WEIGHTS = ("Transformer", STATIC, "Dense", "LayerNorm")
_SUPPORTED = (*_WITH_WEIGHTS, "Pooling", "Normalize", "Dropout")
_NEUTRAL = {
    *("_name_or_path", "name_or_path", "architectures", "transformers_version", "use_cache", "__version__"),
    *("gradient_checkpointing", "torch_dtype", "dtype", "word_embedding_dimension", "embedding_dimension"),
}
"""Settings that no vector depends on, or that are said once more; the type of numbers is added by itself."""
_TOKENIZER_SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
"""Files that make a tokenizer where there is no tokenizer.json."""
_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class ModuleFiles:
    """A module of an encoder, as modules.json lists it."""

    kind: str
    """Name of its class, such as Pooling."""
    folder: str
    """Folder below the encoder's; empty for the encoder's own."""


def modules_of(source: str) -> list[ModuleFiles]:
    """The modules of an encoder, in order, without a last Normalize. Raises InputError where one is not known."""
    listed: Any = read_settings(source, MODULES) or _PLAIN
    modules = [ModuleFiles(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in listed]
    for module in modules:
        if module.kind not in _SUPPORTED:
            raise InputError(
                f"encoder {source}: its modules must be of {', '.join(_SUPPORTED)}, got {module.kind}. "
                "Choose another encoder."
            )
    while modules[-1].kind == "Normalize":
        modules.pop()
    return modules


def first_module_file(source: str, name: str) -> str:
    """Path below an encoder of a file of its first module, or of the module's folder for an empty name."""
    folder = modules_of(source)[0].folder
    return f"{folder}/{name}" if folder and name else folder or name


def shipped_max_length(source: str) -> int | None:
    """Word pieces that an encoder's files say it reads, as sentence-transformers understands them."""
    stated = read_settings(source, first_module_file(source, "sentence_bert_config.json")).get("max_seq_length")
    if stated:
        return int(stated)
    positions = read_settings(source, first_module_file(source, "config.json")).get("max_position_embeddings")
    longest = read_settings(source, first_module_file(source, "tokenizer_config.json")).get("model_max_length")
    return int(min(positions, longest)) if positions and longest else None


def is_static(source: str) -> bool:
    """Say whether an encoder is a table of vectors, one for each token, whose mean is taken."""
    return modules_of(source)[0].kind == STATIC


def encoder_digest(source: str, *, max_length: int, reads: Reads, prompt: str) -> str:
    """Hex digest of everything that decides the vectors. Reads all weights; loads none. Raises InputError."""
    modules = modules_of(source)
    facts = {
        "modules": [_module_facts(source, module) for module in modules],
        "tokenizer": _tokenizer_facts(source, modules[0]),
        "lower_case": bool(
            read_settings(source, first_module_file(source, "sentence_bert_config.json")).get("do_lower_case")
        ),
        "max_length": max_length,
        "reads": reads,
        "prompt": prompt,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _module_facts(source: str, module: ModuleFiles) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": module.kind}
    settings: dict[str, Any] = {}
    for name in _SETTINGS_FILES.get(module.kind, ("config.json",)):
        settings |= read_settings(source, f"{module.folder}/{name}" if module.folder else name)
    if module.kind == "Pooling":
        facts |= _pooling_facts(settings)
    else:
        facts["settings"] = {name: value for name, value in settings.items() if name not in _NEUTRAL}
    if module.kind == "Transformer":
        facts["dtype"] = settings.get("dtype") or settings.get("torch_dtype")
    if module.kind in _WITH_WEIGHTS:
        facts["weights"] = [file_sha256(file) for file in weights_files(source, module.folder)]
    return facts


def _pooling_facts(settings: dict[str, Any]) -> dict[str, Any]:
    """Its modes and whether the prompt takes part: library versions save them under several names."""
    named = settings.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    modes = modes or [mode for key, mode in _POOLING_MODES.items() if settings.get(key)] or ["mean"]
    return {"modes": modes, "include_prompt": settings.get("include_prompt", True)}


def _tokenizer_facts(source: str, first: ModuleFiles) -> dict[str, Any]:
    folder = f"{first.folder}/" if first.folder else ""
    content = read_settings(source, f"{folder}tokenizer.json")
    if first.kind == STATIC:
        return {"content": content}
    config = read_settings(source, f"{folder}tokenizer_config.json")
    facts: dict[str, Any] = {name: config.get(name) for name in _TOKENIZER_SETTINGS}
    if content:
        facts["content"] = {name: value for name, value in content.items() if name not in ("truncation", "padding")}
    else:
        files = {name: find_file(source, f"{folder}{name}") for name in _VOCABULARIES}
        facts["files"] = {name: file_sha256(file) for name, file in files.items() if file is not None}
    return facts
