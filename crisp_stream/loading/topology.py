"""The place of a process among all ranks, and the positions of the stream that it serves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import distributed

from crisp_stream.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crisp_stream.histograms.component import Component


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Place of a process among all ranks."""

    rank: int
    world_size: int
    ranks_per_node: int
    replication: int = 1
    """Consecutive ranks that get the same samples: the ranks of one tensor-parallel group."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size or self.ranks_per_node < 1 or self.world_size % self.ranks_per_node:
            raise InputError(
                f"rank {self.rank} of {self.world_size} with {self.ranks_per_node} per node is not a topology. "
                "Check RANK, WORLD_SIZE and LOCAL_WORLD_SIZE."
            )
        if self.replication < 1 or self.world_size % self.replication:
            raise InputError(f"replication must divide the {self.world_size} ranks, got {self.replication}.")
        if self.ranks_per_node % self.replication and self.replication % self.ranks_per_node:
            raise InputError(
                f"replication must divide the {self.ranks_per_node} ranks of a node or be a multiple of them, "
                f"got {self.replication}."
            )

    @classmethod
    def current(cls, *, replication: int = 1) -> Topology:
        """Take it from torch.distributed when initialised, else from RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, else a single
        process.

        Raises:
            InputError: values that contradict each other.
        """
        if distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        ranks_per_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size)))
        return cls(rank=rank, world_size=world_size, ranks_per_node=ranks_per_node, replication=replication)

    @property
    def num_replicas(self) -> int:
        """Groups of ranks that get different samples."""
        return self.world_size // self.replication

    def positions(self, start: int, batch_size: int) -> NDArray[np.int64]:
        """[batch_size]: this rank's positions in the global batch that starts at `start`.

        Position i goes to node i mod num_nodes, then to group (i // num_nodes) mod groups_per_node of that node. (Where
        a group spans nodes, the nodes of a group count as one.)
        """
        groups_per_node = max(1, self.ranks_per_node // self.replication)
        num_nodes = self.num_replicas // groups_per_node
        node, local_group = divmod(self.rank // self.replication, groups_per_node)
        positions = np.arange(start, start + batch_size * self.num_replicas, dtype=np.int64)
        of_node, of_group = positions % num_nodes == node, positions // num_nodes % groups_per_node == local_group
        return positions[of_node & of_group]


def agreed(earliest: int, components: Sequence[Component], at_sample: int | None) -> int:
    """Agree on the latest `earliest` of all ranks, which must make the same change."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return earliest
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(
        gathered, (earliest, [[each.share, each.source, *each.identity] for each in components], at_sample)
    )
    if any(other[1:] != gathered[0][1:] for other in gathered):
        raise InputError("set_proportions must be called with the same proportions and at_sample on every rank.")
    return max(other[0] for other in gathered)
