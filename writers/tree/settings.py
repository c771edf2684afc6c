"""Settings of a clustering tree: the defaults are the paper's (Appendix A, Table 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crisp_stream.errors import InputError
from crisp_stream.format.manifest import MAX_ARITY, MAX_LEAVES
from crisp_stream.writers.options import WriteOptions

BALANCE_FACTOR = 1.408
"""Balancing limit times arity: 0.022 at 64 (the paper's 1.5 / 64, as printed there)."""


@dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """Settings by which a tree is fitted; with the embeddings, all that the tree depends on."""

    arity: int = WriteOptions.arity
    """Children of a node that is split, 2 to 64."""
    depth: int = WriteOptions.depth
    """Levels below the root."""
    steps: int = 20
    """EM steps per node."""
    examples_per_step: int = 6400
    """Examples of a step, in shuffled passes over the node's examples; at most all of them."""
    balance_limit: float | None = None
    """Share of a step's assignments above which a cluster is split; 1.408 / arity when None, 1 never balances."""
    min_examples_to_split: int | None = None
    """A node with fewer examples stays a leaf; 16 * arity when None. The root is always split."""
    centroid_rule: Literal["step_mean", "running_mean"] = "step_mean"
    """Centroids are means of the last step's assignments, or of those of all steps so far."""
    normalise_centroids: bool = True
    """Centroids are scaled to norm 1 after every step."""
    seed: int = 0
    """Seed of all random choices."""

    def __post_init__(self) -> None:
        if not 2 <= self.arity <= MAX_ARITY:
            raise InputError(f"arity: must be 2 to {MAX_ARITY}, got {self.arity}.")
        if self.depth < 1 or self.arity**self.depth > MAX_LEAVES:
            raise InputError(
                f"depth: must be at least 1 with arity ** depth <= {MAX_LEAVES:,}, got {self.arity} ** {self.depth}."
            )
        if self.steps < 1 or self.examples_per_step < self.arity or self.min_examples < 1:
            raise InputError(
                f"steps, examples_per_step and min_examples_to_split: must be at least 1, {self.arity} (the arity) "
                f"and 1, got {self.steps}, {self.examples_per_step} and {self.min_examples}."
            )
        if self.centroid_rule not in ("step_mean", "running_mean"):
            raise InputError(f"centroid_rule: must be step_mean or running_mean, got {self.centroid_rule}.")

    @property
    def limit(self) -> float:
        """The balancing limit in use."""
        return BALANCE_FACTOR / self.arity if self.balance_limit is None else self.balance_limit

    @property
    def min_examples(self) -> int:
        """The least number of examples of a node that is split."""
        return 16 * self.arity if self.min_examples_to_split is None else self.min_examples_to_split

    @property
    def quota(self) -> int:
        """Examples of a node at most: as many as its steps visit."""
        return self.steps * self.examples_per_step

    @property
    def least(self) -> int:
        """Windows below which a node other than the root stays a leaf."""
        return max(self.min_examples, self.arity)
