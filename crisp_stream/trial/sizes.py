"""How large the parts of a trial are."""

from __future__ import annotations

from dataclasses import dataclass

EXAMPLES = 2000
"""Most examples of the task."""
HELD_OUT = 200
"""Most held-out documents, of the task and of the corpus each."""


@dataclass(frozen=True, kw_only=True)
class TrialSize:
    """Sizes of dataset, tree and model. The defaults are those of the demo."""

    window_tokens: int = 128
    """Tokens per window."""
    vocab_size: int = 4096
    """Entries of the tokenizer."""
    encoder_pieces: int = 64
    """Word pieces that the encoder reads of a window."""
    arity: int = 8
    """Children of a tree node."""
    depth: int = 2
    """Levels of the tree."""
    min_examples_to_split: int = 64
    """Windows that a node must have to get children."""
    recipe_overrides: tuple[str, ...] = ()
    """Further `key=value` of the recipe `demo`, for both models."""
