"""What decides an encoder's vectors, part by part, and a digest over it.

The digest tells encoders apart whose vectors differ, and should not tell those apart whose vectors are the same: so
files are not hashed as they are, where another version of a library would save the same model in another way. Hashed
are all files of weights, the kinds and the settings of all modules, the tokenizer, the prompt, lower-casing and
lengths. A last Normalize is left out, because vectors are scaled to norm 1 in any case. The parts are kept beside the
digest, so that of two encoders can be said what differs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.format.manifest import Reads
from crisp_stream.hashing import file_sha256
from crisp_stream.writers.embedding.encoder_files import find_file, prompt_of, read_settings, weights_files

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
_DIGEST = "sha256:"
_SHORT = 60
"""Characters of a value that is kept as it is."""
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


Parts = dict[str, str | int | bool]
"""What decides the vectors, by the name of the part: the value itself where it is short, else its sha256."""


def digest_of(parts: Parts) -> str:
    """Hex digest over all parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def parts_that_differ(now: Parts, then: Parts) -> list[str]:
    """What is otherwise than it was, a phrase for each part: `pooling (cls, was mean)`."""
    names = [name for name in {**then, **now} if now.get(name) != then.get(name)]
    return [f"{name}{_change(now.get(name), then.get(name))}" for name in names]


def _change(now: object, then: object) -> str:
    shown = [_shown(value) for value in (now, then)]
    return "" if None in shown else f" ({shown[0]}, was {shown[1]})"


def _shown(value: object) -> str | None:
    """A value as a message says it; None where it is a digest, or long."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str) and len(value) > _SHORT:
        return None
    return "none" if value in (None, "") else str(value)


def encoder_parts(source: str, *, max_length: int, reads: Reads, prompt: str) -> Parts:
    """Everything that decides the vectors, by part. Reads all weights; loads none. Raises InputError.

    What the files state of prompt and length is a part of its own: a folder in which it was changed is not the encoder
    any more that embedded a dataset, even where the dataset's own prompt and length overrule it.
    """
    [first, *others] = modules_of(source)
    settings = _settings_of(source, first)
    behind = [module.kind for module in (first, *others) if module.kind != "Normalize"]
    of_sentences = read_settings(source, first_module_file(source, "sentence_bert_config.json"))
    return {
        "modules": ", ".join(behind),
        "normalisation": _normalisation(first, *others),
        "weights": _short([file_sha256(file) for file in weights_files(source, first.folder)]),
        "network": _short(_deciding(settings)),
        "dtype": str(settings.get("dtype") or settings.get("torch_dtype") or ""),
        "pooling": "; ".join(_pooling(_settings_of(source, one)) for one in others if one.kind == "Pooling"),
        "head": _short([_head_facts(source, one) for one in others if one.kind in _WITH_WEIGHTS]),
        "tokenizer": _short(_tokenizer_facts(source, first)),
        "lower-casing": _short(_casing_facts(source, first, of_sentences)),
        "length": max_length,
        "stated length": shipped_max_length(source) or "",
        "reads": reads,
        "prompt": prompt,
        "stated prompt": prompt_of(source),
    }


def _short(value: Any) -> str:
    """A value as text, or its digest where it is long; empty for nothing."""
    if not value:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= _SHORT else _DIGEST + hashlib.sha256(text.encode()).hexdigest()


def _settings_of(source: str, module: ModuleFiles) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in _SETTINGS_FILES.get(module.kind, ("config.json",)):
        settings |= read_settings(source, f"{module.folder}/{name}" if module.folder else name)
    return settings


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _NEUTRAL}


def _normalisation(*modules: ModuleFiles) -> str:
    """Behind which modules vectors are scaled to norm 1, the last one not counted."""
    before = itertools.pairwise(modules)
    return ", ".join(f"behind {one.kind}" for one, other in before if other.kind == "Normalize")


def _head_facts(source: str, module: ModuleFiles) -> list[Any]:
    weights = [file_sha256(file) for file in weights_files(source, module.folder)]
    return [module.kind, _deciding(_settings_of(source, module)), weights]


def _pooling(settings: dict[str, Any]) -> str:
    """Its modes and whether the prompt takes part: library versions save them under several names."""
    named = settings.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    modes = modes or [mode for key, mode in _POOLING_MODES.items() if settings.get(key)] or ["mean"]
    return " + ".join(modes) + ("" if settings.get("include_prompt", True) else " without the prompt")


def _tokenizer_content(source: str, first: ModuleFiles) -> dict[str, Any]:
    return read_settings(source, f"{first.folder}/tokenizer.json" if first.folder else "tokenizer.json")


def _tokenizer_facts(source: str, first: ModuleFiles) -> dict[str, Any]:
    content = _tokenizer_content(source, first)
    if content:
        left_out = ("normalizer",) if first.kind == STATIC else ("normalizer", "truncation", "padding")
        return {"content": {name: value for name, value in content.items() if name not in left_out}}
    folder = f"{first.folder}/" if first.folder else ""
    files = {name: find_file(source, f"{folder}{name}") for name in _VOCABULARIES}
    return {name: file_sha256(file) for name, file in files.items() if file is not None}


def _casing_facts(source: str, first: ModuleFiles, of_sentences: dict[str, Any]) -> dict[str, Any]:
    """All that changes the characters of a text before it is cut into pieces."""
    facts: dict[str, Any] = {"normalizer": _tokenizer_content(source, first).get("normalizer")}
    if first.kind != STATIC:
        folder = f"{first.folder}/" if first.folder else ""
        config = read_settings(source, f"{folder}tokenizer_config.json")
        facts |= {name: config.get(name) for name in _TOKENIZER_SETTINGS}
        facts["of texts"] = bool(of_sentences.get("do_lower_case"))
    return {name: value for name, value in facts.items() if value is not None}
