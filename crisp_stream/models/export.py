"""Export a Composer checkpoint as a Hugging Face folder: weights, tokenizer, generation config, card, training record.

The exporter of Composer wants the tokenizer's hub name and writes `.bin` pickles; this one needs the checkpoint alone.
The folder is made whole beside its place, or in a temporary folder for object storage, and then moved there;
config.json, without which nothing reads it, arrives last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from crisp_stream.errors import CrispError, InputError, StorageError, import_extra
from crisp_stream.models.checkpoint import LoadedGPT, gpt_of, local_copy, read_checkpoint
from crisp_stream.models.model_card import model_card
from crisp_stream.models.progress_bars import without_progress_bars
from crisp_stream.models.training_record import training_record
from crisp_stream.storage.store import Store, is_remote, local_path, open_store

ExportDtype = Literal["float32", "bfloat16"]
"""float32: the trained weights, bit by bit. bfloat16: rounded, half the size."""

RECORD_FILE = "training.json"
_CONFIG = "config.json"


def export(checkpoint: str, out: str | Path, *, dtype: ExportDtype = "float32") -> str:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Args:
        checkpoint: a Composer `.pt` file of `crisp-stream train`, local or an object URL.
        out: folder to create, or an empty prefix of an object store. It appears complete or not at all.
        dtype: of the weights.

    Returns:
        `out`.

    Raises:
        InputError: `out` exists already, there is no such checkpoint, or it is a folder.
        FormatError: damaged, not a checkpoint of `crisp-stream train`, or of another architecture than GPT-2.
        StorageError: the storage refused or failed.
    """
    checkpoint, out = str(checkpoint), str(out).rstrip("/") or "/"
    if dtype not in get_args(ExportDtype):
        raise InputError(f"dtype must be {' or '.join(get_args(ExportDtype))}, got {dtype!r}.")
    if not is_remote(checkpoint) and local_path(checkpoint).is_dir():
        raise InputError(
            f"{checkpoint} is a folder; a checkpoint is one .pt file, such as latest-rank0.pt in a run's save_folder. "
            "A folder that was exported already is complete and can be copied as it is."
        )
    _check_free(out)
    with _published(out) as folder, local_copy(checkpoint) as path:
        contents = read_checkpoint(path)
        _write(gpt_of(contents, checkpoint), training_record(contents, checkpoint), folder, dtype)
    return out


def _write(loaded: LoadedGPT, record: dict[str, object], folder: Path, dtype: ExportDtype) -> None:
    torch = import_extra("torch", extra="train", purpose="exporting a model")
    transformers = import_extra("transformers", extra="train", purpose="exporting a model")
    gpt, tokenizer = loaded.gpt, loaded.tokenizer
    gpt.config.use_cache = True  # off during training, wanted for generation
    gpt.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    gpt.to(getattr(torch, dtype))
    with without_progress_bars():
        gpt.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    record = {**record, "weights": {"dtype": dtype, "parameters": sum(weight.numel() for weight in gpt.parameters())}}
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(record), encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone


def _check_free(out: str) -> None:
    if not is_remote(out):
        if local_path(out).exists():
            raise InputError(f"{out} exists already and is not overwritten. Name another folder, or remove it.")
        return
    names = [name for name, _ in open_store(out).list()]
    if names:
        incomplete = "" if _CONFIG in names else f" (without {_CONFIG}: of an interrupted export, or of something else)"
        raise InputError(
            f"{out} holds {len(names)} objects already{incomplete} and is not overwritten. "
            "Name another prefix, or delete them."
        )


@contextlib.contextmanager
def _published(out: str) -> Iterator[Path]:
    """Make a folder to fill, which becomes `out` unless an error leaves the context."""
    remote = is_remote(out)
    target = local_path(out)
    try:
        if not remote:
            target.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.mkdtemp(
            prefix="crisp-export-" if remote else f".{target.name}.", dir=None if remote else target.parent
        )
    except OSError as error:
        raise _refused(out, error) from error
    folder = Path(place)
    try:
        yield folder
        if remote:
            _upload(folder, open_store(out))
        else:
            folder.chmod(0o777 & ~_umask())
            folder.rename(target)
    except CrispError:
        raise
    except OSError as error:
        raise _refused(out, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _upload(folder: Path, store: Store) -> None:
    """Upload all files, config.json last. After a failure, delete what arrived."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name == _CONFIG, name))
    sent: list[str] = []
    try:
        for name in names:
            sent.append(name)
            store.put_file(name, folder / name)
    except BaseException:
        for name in sent:
            with contextlib.suppress(StorageError):
                store.delete(name)
        raise


def _refused(out: str, error: OSError) -> StorageError:
    return StorageError(f"{out} cannot be written: {error.strerror or error}. Name another folder, or make room.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
