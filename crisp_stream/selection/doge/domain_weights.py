"""The weights that DoGE moves over domains: scores, the update of the weights, and the averages that are transferred.

A score says how much a small step along a domain's gradient lowers the loss of the target text: learning rate x inner
product of the two gradients. The weights follow by mirror descent on the simplex with the entropy as its distance,
w_i <- w_i exp(score_i / mu), normalised (Fan et al. 2024, "DoGE", the closed form of the update in Algorithm 1; the
equation is cited from memory, mu is the "Bregman coefficient" of Table 5 of the CRISP paper). Logarithms are kept, so a
weight that has become small can come back.

Two forms of the score, see `scores`. The default is the paper's: its step has the meaning of the derivation, and a
domain that hurts the target (a negative product) loses weight by as much as another gains. The public code divides by
the mean gradient norm and cuts at 0, so such domains are no longer told apart.

A batch need not hold every domain: with 64 domains and 32 windows at least half are absent. (The public code computes
such a domain's score from its last gradient, many steps old.) Here the present ones move relative to their own mean and
an absent one stays there, and the movement is multiplied by (k - 1) / (m - 1), k domains of which m are present: then
its expectation over which are present is exactly the update of Algorithm 1 with all domains.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Update = Literal["paper", "public-code"]
"""Form of the score."""

LAST_STEPS = 20
"""Steps of the second average (CRISP, Table 5: "last 20 step average")."""

_LARGEST_SCORE = 5.0
"""Bound of the public code, times the learning rate."""
_NORM_FLOOR = 1e-6


def scores(
    inner_products: NDArray[np.float64],
    gradient_norms: NDArray[np.float64],
    *,
    learning_rate: float,
    update: Update,
) -> NDArray[np.float64]:
    """Score each domain by the decrease of the target's loss that a step along its gradient gives.

    paper: lr <g_i, g_target>. public-code: that over the mean norm of the domains' gradients, cut to [0, 5 lr].

    Args:
        inner_products: [num_present], each present domain's gradient times the target's.
        gradient_norms: [num_present], norms of the domains' gradients; the paper's form ignores them.

    Returns:
        [num_present], nats of loss, to first order, in the paper's form.
    """
    gained = learning_rate * inner_products
    if update == "paper":
        return gained
    return np.clip(gained / (gradient_norms.mean() + _NORM_FLOOR), 0.0, _LARGEST_SCORE * learning_rate)


def gain_factor(num_domains: int, num_present: int) -> float:
    """Factor of a present domain's distance from the mean score; 0 where one alone is present."""
    return 0.0 if num_present < 2 else (num_domains - 1) / (num_present - 1)


class DomainWeights:
    """Weights of all domains after a number of updates, and their averages."""

    def __init__(self, num_domains: int) -> None:
        """Start with equal weights (DoGE, Algorithm 1)."""
        self.log_weights = np.full(num_domains, -np.log(num_domains))
        """[num_domains], natural logarithms; the weights sum to 1."""
        self.num_updates = 0
        self._sum = np.zeros(num_domains)
        self._last = np.zeros((0, num_domains))

    @property
    def weights(self) -> NDArray[np.float64]:
        """[num_domains], weights after the last update."""
        return np.exp(self.log_weights)

    @property
    def run_average(self) -> NDArray[np.float64]:
        """[num_domains], mean over all updates: the weights that DoGE transfers."""
        return self._sum / self._sum.sum() if self.num_updates else self.weights

    @property
    def last_average(self) -> NDArray[np.float64]:
        """[num_domains], mean over the last 20 updates."""
        sums = self._last.sum(axis=0)
        return sums / sums.sum() if self.num_updates else self.weights

    def update(self, present: NDArray[np.intp], scores: NDArray[np.float64], *, mu: float) -> None:
        """Move the weights by the scores of the domains in a batch; see the top of this file for absent domains.

        Args:
            present: [num_present], numbers of the domains in the batch, each once.
            scores: [num_present]
            mu: Bregman coefficient; a larger one moves the weights less.
        """
        factor = gain_factor(len(self.log_weights), len(present))
        moved = self.log_weights.copy()
        if len(present):
            moved[present] += factor * (scores - scores.mean()) / mu
        largest = moved.max()
        self.log_weights = moved - (largest + np.log(np.exp(moved - largest).sum()))
        self.num_updates += 1
        self._sum += self.weights
        self._last = np.concatenate([self._last[-(LAST_STEPS - 1) :], self.weights[None]])

    def state(self) -> dict[str, Any]:
        """Collect everything that must be saved."""
        return {
            "log_weights": self.log_weights.copy(),
            "num_updates": self.num_updates,
            "sum": self._sum.copy(),
            "last": self._last.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a saved `state`."""
        self.log_weights, self._sum, self._last = (np.array(state[key]) for key in ("log_weights", "sum", "last"))
        self.num_updates = int(state["num_updates"])
