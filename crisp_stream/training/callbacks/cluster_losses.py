"""The loss of every window of a batch, kept while the training loss is computed: no second pass over the logits.

The training loss is a mean over tokens, and by the time a callback sees it the windows are gone. Here the same
cross-entropy is computed without its last reduction, so that the sum of each window stands beside the mean. It costs
nothing that can be measured (docs/train/runs.md); a second pass over the logits would read them again, in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from crisp_stream.format.sources import Sources
from crisp_stream.loading.batches import IGNORED_LABEL

if TYPE_CHECKING:
    from crisp_stream.histograms.mixture import Data


class WindowLosses:
    """A `loss_function` of transformers' causal models that keeps each window's part of its last mean."""

    def __init__(self) -> None:
        self.sums = torch.zeros(0)
        """[windows of the last forward pass], nats, float32, on the device of the model."""
        self.tokens = torch.zeros(0, dtype=torch.int64)
        """[windows of the last forward pass], predicted tokens."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
        """Mean over the predicted tokens, as transformers' ForCausalLMLoss.

        Args:
            logits: [windows, window_tokens, vocab_size]; used in float32.
            labels: [windows, window_tokens]; those after the first of each window are predicted, unless -100.
        """
        targets = functional.pad(labels, (0, 1), value=IGNORED_LABEL)[:, 1:].contiguous()
        losses = functional.cross_entropy(
            logits.float().view(-1, vocab_size), targets.view(-1), ignore_index=IGNORED_LABEL, reduction="none"
        )
        sums = losses.view(targets.shape).sum(dim=1)
        tokens = (targets != IGNORED_LABEL).sum(dim=1)
        self.sums, self.tokens = sums.detach(), tokens
        return sums.sum() / tokens.sum()


_CSV_ROWS = 1 << 16
"""Most rows of cluster_losses.csv; longer runs get longer intervals."""
LOGGED_CLUSTERS = 256
"""Trees with more level-1 clusters have their losses in cluster_losses.csv alone, not as metrics."""


class ClusterLosses:
    """Loss by level-1 cluster of each source, summed over intervals of batches."""

    def __init__(self, data: Data, *, first_batch: int, last_batch: int, log_interval: int) -> None:
        """Args:
        data: the dataset, or the sources; clusters are those of one after the other.
        first_batch: number of the run's first batch.
        last_batch: number of the run's last batch.
        log_interval: batches.
        """
        self._sources = Sources.of(data)
        manifests = [dataset.manifest for dataset in self._sources.datasets]
        self._first_cluster = np.cumsum([0, *(manifest.arity for manifest in manifests)]).tolist()
        self.num_clusters: int = self._first_cluster[-1]
        """Of all sources."""
        self._leaves_per_cluster = [manifest.arity ** (manifest.depth - 1) for manifest in manifests]
        shortest = -(-(last_batch + 1 - first_batch) * self.num_clusters // _CSV_ROWS)
        self.interval = -(-max(shortest, 1) // log_interval) * log_interval
        """Batches that are summed up, a multiple of `log_interval`."""
        self.rows: list[tuple[int, int, int, int, int, float]] = []
        """(first batch, last batch, cluster, windows, predicted tokens, mean loss in nats per token)."""
        self._sums = np.zeros((self.num_clusters, 3))
        self._first_batch = first_batch

    def clusters_of(self, leaves: torch.Tensor, source: torch.Tensor | None) -> torch.Tensor:
        """Number of the level-1 cluster of each leaf, [num_leaves], by the index of its source."""
        if source is None or len(self._sources) == 1:
            return leaves // self._leaves_per_cluster[0]
        per_cluster = torch.tensor(self._leaves_per_cluster, device=leaves.device)
        return leaves // per_cluster[source] + torch.tensor(self._first_cluster, device=leaves.device)[source]

    def name_of(self, cluster: int) -> str:
        """`7`, or `corpus/7` of named sources."""
        source, own = self._place(cluster)
        return f"{self._sources.names[source]}/{own}" if self._sources.is_named else str(own)

    def _place(self, cluster: int) -> tuple[int, int]:
        source = int(np.searchsorted(self._first_cluster, cluster, side="right")) - 1
        return source, cluster - self._first_cluster[source]

    def add(self, sums: NDArray[np.float64]) -> None:
        """Add a batch: [num_clusters, 3] windows, predicted tokens, summed loss in nats."""
        self._sums += sums

    def end_interval(self, batch: int) -> list[tuple[int, int, int, int, int, float]]:
        """Close the interval whose last batch this is; returns its rows."""
        rows = self._open_rows(batch)
        self.rows += rows
        self._sums[:] = 0.0
        self._first_batch = batch + 1
        return rows

    def csv(self, batch: int) -> str:
        """cluster_losses.csv after a batch, with the interval that is still open."""
        named = self._sources.is_named
        lines = [f"first_batch,last_batch,{'source,' if named else ''}cluster,windows,tokens,loss"]
        lines += [
            f"{first},{last},{self.name_of(cluster).replace('/', ',')},{windows},{tokens},{loss!r}"
            for first, last, cluster, windows, tokens, loss in [*self.rows, *self._open_rows(batch)]
        ]
        return "\n".join([*lines, ""])

    def _open_rows(self, batch: int) -> list[tuple[int, int, int, int, int, float]]:
        hit = np.flatnonzero(self._sums[:, 1])
        numbers = [(int(cluster), *self._sums[cluster].tolist()) for cluster in hit]
        return [
            (self._first_batch, batch, cluster, int(windows), int(tokens), loss / tokens)
            for cluster, windows, tokens, loss in numbers
        ]

    def state_dict(self) -> dict[str, Any]:
        """All rows as one tensor, and the open interval."""
        rows = torch.tensor(self.rows, dtype=torch.float64).view(-1, 6)
        return {"rows": rows, "sums": torch.from_numpy(self._sums.copy()), "first_batch": self._first_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.rows = [(*map(int, row[:5]), row[5]) for row in state["rows"].tolist()]  # pyright: ignore[reportAttributeAccessIssue]
        sums = state["sums"].numpy()
        self._sums[:] = 0.0
        self._sums[: len(sums)] = sums  # of one dataset, or of fewer sources: the first ones
        self._first_batch = int(state["first_batch"])
