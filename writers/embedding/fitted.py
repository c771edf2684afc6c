"""Encoders that a write fits on its own corpus: an LSI, and a student of another encoder.

They are no models that could be fetched elsewhere, so a dataset keeps their files in its folder `encoder/`.
"""

from __future__ import annotations

from pathlib import Path

from crisp_stream.errors import FormatError, MissingObjectError
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.storage.store import cache_folder, local_path, open_store
from crisp_stream.writers.embedding.lsi import LSI_FILES, LSI_NAME, LSI_POOLING, LsiEncoder
from crisp_stream.writers.embedding.student import DISTILLED_NAME, DISTILLED_POOLING, STUDENT_FILES, StudentEncoder
from crisp_stream.writers.embedding.text_encoder import TextEncoder

FITTED_FOLDER = "encoder"
"""Below the root of a dataset."""
FITTED_FILES = {LSI_NAME: LSI_FILES, DISTILLED_NAME: STUDENT_FILES}
"""Names of the files of each kind."""
_POOLINGS = {LSI_POOLING: LSI_NAME, DISTILLED_POOLING: DISTILLED_NAME}


def fitted_kind(record: EncoderRecord) -> str | None:
    """Kind of the encoder of a manifest: lsi, distilled, or None where it exists elsewhere."""
    return _POOLINGS.get(record.pooling)


def load_fitted(kind: str, folder: Path) -> TextEncoder:
    """Open the files of a kind. Raises FormatError."""
    return LsiEncoder.load(folder) if kind == LSI_NAME else StudentEncoder.load(folder)


def fitted_folder(root: str, kind: str, weights_sha256: str) -> Path:
    """A local folder with the files of a dataset's encoder, copied once from a remote one.

    Raises:
        FormatError: the dataset lacks them. StorageError: the storage refused or failed.
    """
    store = open_store(root)
    if store.is_local:
        return local_path(root) / FITTED_FOLDER
    folder = cache_folder() / kind / weights_sha256[:16]
    cached = open_store(str(folder))
    for name in FITTED_FILES[kind]:
        if not cached.exists(name):
            try:
                cached.put(name, store.get(f"{FITTED_FOLDER}/{name}"))
            except MissingObjectError as error:
                raise FormatError(
                    f"{root}: {FITTED_FOLDER}/{name} is missing, without which nothing can be embedded as the dataset "
                    "was. Restore the file."
                ) from error
    return folder
