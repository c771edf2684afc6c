"""What decides how a tokenizer cuts texts, part by part, so that two tokenizers are compared and what differs is named.

Equal vocabularies are not enough: a normaliser that makes letters small, or other merges, give other tokens of the same
ids. The sha256 of tokenizer.json, which a manifest has as fingerprint, says too much: transformers writes the file
anew with every checkpoint and export. So the parts of what was loaded are hashed. Padding, truncation, decoder and
post-processor are none of them: texts are encoded without special tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def tokenizer_parts(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Hash the parts that decide the tokens of a text; sha256 by name."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    named: dict[str, Any] = {
        "vocabulary": model.get("vocab"),
        "merges": model.get("merges"),
        "model": {key: value for key, value in model.items() if key not in ("vocab", "merges")},
        "normaliser": content.get("normalizer"),
        "pre-tokeniser": content.get("pre_tokenizer"),
        "added tokens": content.get("added_tokens"),
    }
    return {name: _hash(value) for name, value in named.items()}


def differing_parts(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Name the parts of which both know the hash and that differ."""
    return [name for name, value in first.items() if second.get(name, value) != value]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
