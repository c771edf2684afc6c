"""Find, fetch and read Composer checkpoints, without running code from them.

A `.pt` file is a pickle, and Composer unpickles it whole. So a checkpoint is looked through first: only tensors, numpy
arrays and plain values may stand in it (`torch.load(weights_only=True)` with the few types of Composer allowed). What
passes is safe to hand to Composer; the same look finds the saved dataset position and the model's shape, so that a run
that cannot resume fails before a model is built.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.errors import FormatError, InputError, MissingObjectError, import_extra
from crisp_stream.models.gpt import PROVENANCE_KEY
from crisp_stream.models.progress_bars import without_progress_bars
from crisp_stream.storage.download import download
from crisp_stream.storage.object_store import ObjectStore
from crisp_stream.storage.store import file_name, is_remote, local_path, open_store

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

LATEST = "latest-rank0.pt"
"""Composer's link to the newest checkpoint of a folder (in object storage a text object ending in `.symlink`)."""

CHECKPOINT_NAME = re.compile(r"ep\d+-ba(\d+)-rank0\.pt")
"""File name of a checkpoint; its group is the batch."""

_END_BYTES = 1 << 16
"""Bytes in which a zip archive, such as PyTorch saves, ends with its directory."""


@dataclass(frozen=True, kw_only=True)
class LoadedGPT:
    """A model ready to be evaluated or exported."""

    gpt: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    provenance: dict[str, Any]
    """Data that the model was trained on: `dataset` (fingerprint), `packing`, `window_tokens`. Empty: not known."""


def latest_checkpoint(folder: str) -> str | None:
    """Find the newest checkpoint of a run's `save_folder`, or None. Raises StorageError."""
    return next(iter(newest_first(folder)), None)


def newest_first(folder: str) -> list[str]:
    """List the checkpoints of a run's `save_folder`: the one that it links to as the newest, then the others by batch.

    A folder without that link, such as a kill may leave, is listed by batch alone. Raises StorageError.
    """
    linked = _linked_checkpoint(folder)
    by_batch = [url for _, url in sorted(checkpoints_by_batch(folder).items(), reverse=True)]
    return by_batch if linked is None else [linked, *(url for url in by_batch if file_name(url) != file_name(linked))]


def _linked_checkpoint(folder: str) -> str | None:
    if not is_remote(folder):
        link = local_path(folder) / LATEST
        return str(link.resolve()) if link.exists() else None
    store = open_store(folder)
    try:
        name = file_name(store.get(f"{LATEST}.symlink").decode().strip())
    except MissingObjectError:
        return None
    return f"{folder.rstrip('/')}/{name}" if store.exists(name) else None


def has_checkpoints(folder: str) -> bool:
    """Whether a `save_folder` holds a checkpoint already."""
    return any(name.endswith(".pt") for name in _names(folder))


def checkpoints_by_batch(folder: str) -> dict[int, str]:
    """List the checkpoints of a run's `save_folder`: batch and URL, in order. Raises StorageError."""
    names_by_batch = {int(match[1]): name for name in _names(folder) if (match := CHECKPOINT_NAME.fullmatch(name))}
    return {batch: f"{folder.rstrip('/')}/{names_by_batch[batch]}" for batch in sorted(names_by_batch)}


def _names(folder: str) -> list[str]:
    if is_remote(folder):
        return [name for name, _ in open_store(folder).list() if "/" not in name]
    return [path.name for path in local_path(folder).glob("*.pt")]


def check_readable(url: str) -> None:
    """Check that a checkpoint can be read; in object storage, without fetching it, that its end is there.

    Raises:
        FormatError: it is damaged or cut off. StorageError, InputError: as `local_copy`.
    """
    if not is_remote(url):
        with local_copy(url) as path:
            read_checkpoint(path)
        return
    parent, _, name = url.rpartition("/")
    store = open_store(parent)
    num_bytes = store.object_bytes(name)
    start = max(num_bytes - _END_BYTES, 0)
    if not zipfile.is_zipfile(io.BytesIO(store.get_range(name, start, num_bytes - start))):
        raise FormatError(f"{url} is not a checkpoint, or it is cut off")


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Give the checkpoint as a local file: in place if it is one, else downloaded for as long as the context lasts.

    Raises:
        InputError: no such local file.
        StorageError: the storage refused or failed.
    """
    if not is_remote(url):
        path = local_path(url)
        if not path.is_file():
            raise InputError(f"{path} is not a checkpoint file. Name a .pt file that a run saved.")
        yield path
        return
    parent, _, name = url.rpartition("/")
    if name == LATEST:
        url = latest_checkpoint(parent) or url
    with tempfile.TemporaryDirectory(prefix="crisp-checkpoint-") as folder:
        path = Path(folder) / "checkpoint.pt"
        parent, _, name = url.rpartition("/")
        download(ObjectStore(parent, timeout=120.0), name, path)
        yield path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a Composer checkpoint; tensors stay on disk until they are used.

    Raises:
        FormatError: not a Composer checkpoint, a damaged one, or one that holds anything but data.
    """
    torch = import_extra("torch", extra="train", purpose="reading a checkpoint")
    try:
        with torch.serialization.safe_globals(_allowed_types()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"(Unsupported|Trying to load)[^.]*\.[^.]*", str(error))
        reason = match[0].strip() if match else "an object of an unknown type"
        raise FormatError(f"{path} holds something other than plain data and was not loaded: {reason}") from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise FormatError(f"{path} is not a checkpoint, or it is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or "model" not in checkpoint.get("state", {}):
        raise FormatError(f"{path} is not a Composer checkpoint: it has no model state.")
    return checkpoint


def model_config_of(checkpoint: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """Read the config.json of the model in a checkpoint.

    Raises:
        FormatError: the checkpoint is not of a GPT-2 model trained through Composer's HuggingFaceModel.
    """
    try:
        config = checkpoint["state"]["integrations"]["huggingface"]["model"]["config"]["content"]
    except KeyError as error:
        raise FormatError(
            f"{path} does not say which model it holds. Use a checkpoint of `crisp-stream train`."
        ) from error
    if config.get("model_type") != "gpt2":
        raise FormatError(f"{path} holds a {config.get('model_type')!r} model; only gpt2 is supported.")
    return config


def tokenizer_of(contents: dict[str, Any], origin: Path | str) -> PreTrainedTokenizerFast:
    """Load the tokenizer that a checkpoint holds. Raises FormatError: there is none."""
    transformers = import_extra("transformers", extra="train", purpose="loading the tokenizer")
    files = contents["state"].get("integrations", {}).get("huggingface", {}).get("tokenizer") or {}
    if "tokenizer.json" not in files:
        raise FormatError(f"{origin} holds no tokenizer. Use a checkpoint of `crisp-stream train`.")
    with tempfile.TemporaryDirectory(prefix="crisp-tokenizer-") as folder:
        for name, entry in files.items():
            if Path(name).name != name or not name.endswith(".json"):
                raise FormatError(f"{origin} holds a tokenizer file {name!r}; only .json files are accepted.")
            Path(folder, name).write_text(json.dumps(entry["content"], ensure_ascii=False), encoding="utf-8")
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def load_gpt(checkpoint: str) -> LoadedGPT:
    """Load a model for evaluation or export, in float32 on the CPU.

    Args:
        checkpoint: a Composer `.pt` file, local or an object URL, or an exported Hugging Face folder.

    Raises:
        InputError, FormatError, StorageError: it is not there, or not a GPT-2 checkpoint.
    """
    if not is_remote(checkpoint) and local_path(checkpoint).is_dir():
        return _load_folder(local_path(checkpoint))
    with local_copy(checkpoint) as path:
        return gpt_of(read_checkpoint(path), checkpoint)


def gpt_of(contents: dict[str, Any], origin: Path | str) -> LoadedGPT:
    """Make the GPT-2 that `read_checkpoint` gave, in float32 on the CPU. Raises FormatError that names `origin`."""
    transformers = import_extra("transformers", extra="train", purpose="loading a checkpoint")
    config = transformers.GPT2Config(**model_config_of(contents, origin))
    gpt = transformers.GPT2LMHeadModel(config)
    weights = {key.removeprefix("model."): value for key, value in contents["state"]["model"].items()}
    try:
        gpt.load_state_dict(weights)
    except RuntimeError as error:
        raise FormatError(f"{origin}: the weights do not fit the model: {error}") from error
    return _loaded(gpt, tokenizer_of(contents, origin))


def _loaded(gpt: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> LoadedGPT:
    gpt.loss_type = "ForCausalLM"
    gpt.eval()
    return LoadedGPT(gpt=gpt, tokenizer=tokenizer, provenance=getattr(gpt.config, PROVENANCE_KEY, None) or {})


def _load_folder(folder: Path) -> LoadedGPT:
    transformers = import_extra("transformers", extra="train", purpose="loading a checkpoint")
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} is not an exported model: it has no config.json. Name a .pt file or an export folder."
        )
    try:
        with without_progress_bars():
            gpt = transformers.GPT2LMHeadModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FormatError(f"{folder} does not load as a GPT-2 model: {str(error).splitlines()[0]}") from error
    return _loaded(gpt.float(), tokenizer)


def _allowed_types() -> list[Any]:
    """Types that Composer's checkpoints hold besides tensors. Building one runs no code of the file's choice."""
    import numpy as np
    from torch.torch_version import TorchVersion

    dtypes = {
        type(np.dtype(name)) for name in ("bool", "uint8", "uint32", "int32", "uint64", "int64", "float32", "float64")
    }
    reconstruct = np._core.multiarray._reconstruct  # pyright: ignore[reportAttributeAccessIssue]
    return [reconstruct, np.ndarray, np.dtype, *dtypes, TorchVersion, datetime.timedelta]
