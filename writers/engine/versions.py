"""The libraries whose versions decide bytes, by stage: the one list of them.

Their versions are part of the fingerprint of every task, so that a write which goes on after an upgrade makes anew
what could come out differently, and of the request, so that outputs of two versions never stand in one dataset. A
library that only moves bytes (obstore, ray) is not in the list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from importlib import metadata

_ENCODER = ("sentence-transformers", "transformers", "torch", "tokenizers")
_LSI = ("numpy", "scikit-learn", "scipy")
_TREE = ("faiss", "numpy", "scikit-learn")
LIBRARIES_OF_STAGE: dict[str, tuple[str, ...]] = {
    "documents": ("pyarrow",),
    "duplicates": ("datasketch", "numpy", "scipy"),
    "tokenizer": ("tiktoken", "tokenizers"),
    "windows": ("tiktoken", "tokenizers"),
    "lsi": _LSI,
    "student-sample": ("numpy",),
    "teacher": _ENCODER,
    "student": ("numpy", "scipy", "tokenizers"),
    "embeddings": _ENCODER,
    "tree-draws": ("numpy",),
    "tree-merges": ("numpy",),
    "tree-counts": ("numpy",),
    "tree-nodes": _TREE,
    "tree-levels": ("numpy",),
    "tree": ("numpy",),
    "runs": ("numpy",),
    "provenance": ("pyarrow",),
}
"""Stages that are not named need no more than the files that they read."""
FITTING_STAGES = ("tree-draws", "tree-merges", "tree-counts", "tree-nodes", "tree-levels")
"""Stages that a write has only where no tree is given."""
ENCODER_STAGES = {"lsi": ("lsi",), "distilled": ("student-sample", "teacher", "student")}
"""Stages that a write has only with an encoder that it fits, by the kind of that."""
_DISTRIBUTIONS = {"faiss": ("faiss-gpu", "faiss-cpu")}
"""Packages that bring a library of another name."""


def stage_libraries(stage: str, *, light: bool) -> dict[str, str]:
    """Versions of the libraries that decide the outcome of a stage; the light way of embedding is an LSI's, a
    student's or a static encoder's."""
    return _versions(_LSI if stage in ("embeddings", "teacher") and light else LIBRARIES_OF_STAGE.get(stage, ()))


def request_libraries(*, fitted: str | None, without: Collection[str] = ()) -> dict[str, str]:
    """Versions of the libraries that decide the bytes of a whole write, but for stages that it does not have.

    `fitted` is the kind of an encoder that a write fits, also where it is given.
    """
    others = {stage for kind, stages in ENCODER_STAGES.items() if kind != fitted for stage in stages}
    stages = [stage for stage in LIBRARIES_OF_STAGE if stage not in without and stage not in others]
    return _merged(stage_libraries(stage, light=fitted is not None) for stage in stages)


def _merged(parts: Iterable[dict[str, str]]) -> dict[str, str]:
    return dict(sorted({name: version for part in parts for name, version in part.items()}.items()))


@lru_cache
def _versions(names: tuple[str, ...]) -> dict[str, str]:
    return {name: _version(name) for name in names}


@lru_cache
def _version(name: str) -> str:
    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "none"
