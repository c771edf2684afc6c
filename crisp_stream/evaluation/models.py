"""Models to be judged: loaded, checked, and described, so that results name their model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from crisp_stream.errors import FormatError, InputError
from crisp_stream.examples.sketch import without_hashes
from crisp_stream.models.checkpoint import LoadedGPT, gpt_of, latest_checkpoint, load_gpt, local_copy, read_checkpoint
from crisp_stream.models.export import RECORD_FILE
from crisp_stream.models.tokenizer_parts import differing_parts, tokenizer_parts
from crisp_stream.models.training_record import phase_name, phases_as_written, public_address, training_record
from crisp_stream.storage.store import file_name, is_remote, local_path


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """Description of a model in its results; plain data. None: the checkpoint does not say."""

    name: str
    """Name of the model in tables: run and batch, `demo-crisp-ba400`, unless the user chose another."""
    checkpoint: str
    """Address in object storage, or the file's name without its folder."""
    run_name: str | None
    batch: int | None
    """Batches the model was trained for."""
    tokens: int | None
    """Tokens the model was trained on."""
    num_parameters: int
    n_positions: int
    """Context limit in tokens."""
    packing: str | None
    """`joined` or `document`; decides whether a text's first token is predicted."""
    tokenizer_fingerprint: str
    """sha256 of everything that decides how the tokenizer cuts texts."""
    dataset_fingerprint: str | None
    histograms: list[str] = field(default_factory=list)
    """Histograms of the phases of its mixture, in order."""
    mixture_fingerprint: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    """The whole training record (docs/judge/export.md)."""

    @property
    def trained_on(self) -> list[str]:
        """Fingerprint of the dataset that it was trained on, or of each source; none where it does not say."""
        sources = [each.get("fingerprint") for each in (self.training.get("sources") or {}).values()]
        return [each for each in sources or [self.dataset_fingerprint] if each is not None]


@dataclass(frozen=True, kw_only=True)
class JudgedModel:
    """A model with its description."""

    loaded: LoadedGPT
    record: ModelRecord


def open_model(checkpoint: str, *, name: str | None = None) -> JudgedModel:
    """Load a model to be judged, in float32 on the CPU.

    Args:
        checkpoint: a Composer `.pt` file or an exported folder; a run's `save_folder` means its newest checkpoint.
        name: name in tables; made of run and batch when None.

    Raises:
        InputError, FormatError, StorageError: the checkpoint is missing, not of a GPT-2 model, or has the tokenizer of
            another model.
    """
    if not is_remote(checkpoint) and (newest := latest_checkpoint(checkpoint)):
        checkpoint = newest
    if not is_remote(checkpoint) and local_path(checkpoint).is_dir():
        loaded, training = load_gpt(checkpoint), _record_of_folder(checkpoint)
    else:
        with local_copy(checkpoint) as path:
            contents = read_checkpoint(path)
            loaded, training = gpt_of(contents, checkpoint), training_record(contents, checkpoint)
    _check_tokenizer(loaded, checkpoint, training)
    return JudgedModel(loaded=loaded, record=_describe(loaded, training, checkpoint, name))


def check_names(names: Sequence[str]) -> None:
    """Raises InputError where two models have one name."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"models must have different names, got {names.count(name)} models called {name}. Give each a --name."
            )


def _record_of_folder(folder: str) -> dict[str, Any]:
    path = local_path(folder) / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is damaged ({error}). Export the model again.") from error
    return record if isinstance(record, dict) else {}


def _check_tokenizer(loaded: LoadedGPT, checkpoint: str, training: dict[str, Any]) -> None:
    largest, rows = max(loaded.tokenizer.get_vocab().values()), int(loaded.gpt.config.vocab_size)
    if largest >= rows:
        raise FormatError(
            f"{checkpoint}: its tokenizer must have ids below {rows:,}, the rows of the model's embedding, got "
            f"{largest:,}. They are not of one model; export it again."
        )
    eot_id = loaded.gpt.config.eos_token_id
    if loaded.tokenizer.eos_token_id != eot_id:
        raise FormatError(
            f"{checkpoint}: end-of-text must be {eot_id} in its tokenizer, as in the model, got "
            f"{loaded.tokenizer.eos_token_id}. They are not of one model; export it again."
        )
    trained_with = (training.get("dataset") or {}).get("tokenizer") or {}
    differing = differing_parts(trained_with.get("parts") or {}, tokenizer_parts(loaded.tokenizer))
    if differing:
        raise FormatError(
            f"{checkpoint}: its tokenizer must be the one that the model was trained with "
            f"({str(trained_with.get('fingerprint'))[:12]} in the manifest of its dataset), got one with other "
            f"{', '.join(differing)}. Export the model again."
        )


def _describe(loaded: LoadedGPT, training: dict[str, Any], checkpoint: str, name: str | None) -> ModelRecord:
    progress, mixture = training.get("progress") or {}, training.get("mixture") or {}
    run_name, batch = training.get("run_name"), progress.get("batches")
    return ModelRecord(
        name=name or (f"{run_name}-ba{batch}" if run_name and batch is not None else file_name(checkpoint)),
        checkpoint=public_address(checkpoint) or file_name(str(local_path(checkpoint).resolve())),
        run_name=run_name,
        batch=batch,
        tokens=progress.get("tokens"),
        num_parameters=sum(weight.numel() for weight in loaded.gpt.parameters()),
        n_positions=int(loaded.gpt.config.n_positions),
        packing=loaded.provenance.get("packing"),
        tokenizer_fingerprint=hashlib.sha256(loaded.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        dataset_fingerprint=loaded.provenance.get("dataset"),
        histograms=[phase_name(steps) for steps in phases_as_written(mixture.get("phases") or [])],
        mixture_fingerprint=mixture.get("fingerprint"),
        training=training,
    )


def plain_record(record: ModelRecord) -> dict[str, Any]:
    """Convert to plain data, as a file of results holds it: without the hashes of counted examples."""
    return without_hashes(asdict(record))
