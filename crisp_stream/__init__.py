"""Cluster-partitioned streaming datasets for task-adaptive pretraining (CRISP, ICLR 2025).

Names are imported on first use, so that `import crisp_stream` loads no heavy library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crisp_stream.errors import import_extra

if TYPE_CHECKING:
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.format.manifest import Manifest
    from crisp_stream.histograms.component import Component
    from crisp_stream.histograms.histogram import Histogram
    from crisp_stream.histograms.mixture import Mixture
    from crisp_stream.histograms.phase import Phase
    from crisp_stream.loading.mds_streams import to_streams
    from crisp_stream.loading.mixture_dataset import MixtureDataset
    from crisp_stream.loading.reader import ReadOptions
    from crisp_stream.tree.tree import ClusterTree

__version__ = "0.1.0"

__all__ = [
    "ClusterTree",
    "Component",
    "Histogram",
    "Manifest",
    "Mixture",
    "MixtureDataset",
    "Phase",
    "ReadOptions",
    "open_dataset",
    "to_streams",
]

_MODULE_OF = {
    "ClusterTree": "tree.tree",
    "Component": "histograms.component",
    "Histogram": "histograms.histogram",
    "Manifest": "format.dataset",
    "Mixture": "histograms.mixture",
    "MixtureDataset": "loading.mixture_dataset",
    "Phase": "histograms.phase",
    "ReadOptions": "loading.reader",
    "open_dataset": "format.dataset",
    "to_streams": "loading.mds_streams",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'crisp_stream' has no attribute {name!r}")
    module = import_extra(f"crisp_stream.{_MODULE_OF[name]}", extra="loader", purpose=name)
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
