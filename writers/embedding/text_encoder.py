"""What all encoders have in common."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.writers.embedding.encoder_digest import Parts
from crisp_stream.writers.embedding.pieces import Pieces


class TextEncoder(Protocol):
    """Texts to unit vectors in two steps, that the second may run elsewhere: `Encoder`, or LSI."""

    @cached_property
    def weights_sha256(self) -> str:
        """Hex digest of what determines the vectors. Raises InputError."""
        ...

    @cached_property
    def parts(self) -> Parts:
        """What decides the vectors, by part. Raises InputError."""
        ...

    def record(self) -> EncoderRecord:
        """The encoder's entry in the manifest."""
        ...

    def pieces(self, texts: Sequence[str]) -> Pieces:
        """Tokenise on one core."""
        ...

    def embed_pieces(self, pieces: Pieces) -> NDArray[np.float16]:
        """[num_texts, dim], L2 norm 1 up to float16 rounding."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """`pieces` and `embed_pieces`."""
        ...
