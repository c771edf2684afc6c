"""Sizes of very many files by name, in 16 bytes each.

A listing as a dict takes about 250 bytes per file: 2 GB for the files of a stage of two million tasks. Of a name its
64-bit hash is held here: a name that is not there is taken for one of 10^7 files with a chance of 5e-13.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class FileSizes:
    """Sizes of files by name."""

    def __init__(self, files: Iterable[tuple[str, int]]) -> None:
        """`files`: names and bytes, in any order."""
        import numpy as np  # not with the module: who opens a store need not have set what numpy reads at import

        hashes, sizes = array("Q"), array("q")
        for name, num_bytes in files:
            hashes.append(xxhash.xxh3_64_intdigest(name))
            sizes.append(num_bytes)
        order = np.argsort(_numbers(hashes, np.uint64))
        self._hashes: NDArray[np.uint64] = _numbers(hashes, np.uint64)[order]
        self._sizes: NDArray[np.int64] = _numbers(sizes, np.int64)[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, name: str) -> int | None:
        """Bytes of a file; None where there is none of that name."""
        import numpy as np

        wanted = np.uint64(xxhash.xxh3_64_intdigest(name))
        at = int(np.searchsorted(self._hashes, wanted))
        return int(self._sizes[at]) if at < len(self._hashes) and self._hashes[at] == wanted else None


def _numbers(values: Any, dtype: Any) -> NDArray[Any]:
    import numpy as np

    return np.frombuffer(values, dtype) if values else np.zeros(0, dtype)
