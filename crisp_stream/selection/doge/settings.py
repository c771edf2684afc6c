"""Settings of a DoGE run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.selection.doge.domain_weights import Update

Average = Literal["run", "last"]
"""Average that is the result: over the whole run, or over its last 20 steps (CRISP, Table 5)."""


@dataclass(frozen=True, kw_only=True)
class DogeSettings:
    """Settings that a recipe has no keys for."""

    level: int = 1
    """Level of the tree whose clusters get weights. The paper has 64 clusters."""
    mu: float = 5e-4
    """Bregman coefficient (Table 5); a larger one moves the weights less."""
    update: Update = "paper"
    """Form of the score, see `domain_weights.scores`."""
    target_windows: int | None = None
    """Windows of specialist text per step; as many as the batch has when None. Their gradient is a part of every score,
    so its noise disturbs all domains."""
    average: Average = "run"
    """Average that is the result. DoGE's Algorithm 1 returns the run's."""

    def __post_init__(self) -> None:
        for name, choices in (("update", Update), ("average", Average)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}.")
        if not self.mu > 0 or not np.isfinite(self.mu):
            raise InputError(f"mu must be a number above 0, got {self.mu}. The paper's is 5e-4.")
        if self.target_windows is not None and self.target_windows < 1:
            raise InputError(f"target windows must be at least 1, got {self.target_windows}. Leave it out.")
