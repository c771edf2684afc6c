"""The origin of a model as plain data: read from a checkpoint, written as training.json of an exported folder.

A file beside the model and not a key of its config.json: that is copied into every model which somebody tunes from it,
of which it would no longer be true. Folders of the machine that trained are not part of it, and what may be secret in
an address (a password, a signature) is taken out before anything is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from crisp_stream.errors import FormatError
from crisp_stream.models.checkpoint import model_config_of
from crisp_stream.storage.store import is_remote

RECORD_VERSION = 1
"""Version of the keys of training.json."""

LINEAGE_STATE = "Lineage"
"""Name of the callback whose saved state says what the run was made of."""

RECIPE_KEY = "recipe"
"""Key of that state: the keys of the recipe that a resumed run keeps."""

_ARCHITECTURE = ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size")


def public_address(url: str) -> str | None:
    """A URL without password, query and fragment; None for a folder of this machine."""
    if not is_remote(url):
        return None
    parts = urlsplit(url)
    account, at, host = parts.netloc.rpartition("@")
    keep = at and ":" not in account and not parts.scheme.startswith("http")  # abfss://container@account
    return urlunsplit((parts.scheme, f"{account}@{host}" if keep else host, parts.path, "", ""))


def training_record(checkpoint: dict[str, Any], origin: Path | str) -> dict[str, Any]:
    """Read what the contents of a checkpoint know of the run that saved it; `origin` names it in errors.

    Returns:
        The keys of training.json (docs/judge/export.md); values that the checkpoint does not know are None.

    Raises:
        FormatError: not of a GPT-2 model, or the record is damaged.
    """
    config = model_config_of(checkpoint, origin)
    try:
        return _record(checkpoint["state"], config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{origin}: what it says of its training is damaged ({error!r}).") from error


def datasets_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What a record says of the datasets that a run was trained on: the dataset, or each source."""
    dataset = record.get("dataset") or {}
    others = [each for each in (record.get("sources") or {}).values() if _fingerprint(each) != _fingerprint(dataset)]
    return [dataset, *others] if dataset else others


def _fingerprint(dataset: dict[str, Any]) -> Any:
    return dataset.get("fingerprint")


def components_of(phase: dict[str, Any]) -> list[dict[str, Any]]:
    """What a record says of the components of a phase; of one component the phase itself."""
    return phase.get("components") or [phase]


def phases_as_written(phases: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Phases of a record as a recipe writes them: the steps of a schedule stand together."""
    written: list[list[dict[str, Any]]] = []
    for phase in phases:
        number = phase.get("recipe_phase")
        if written and number is not None and number == written[-1][-1].get("recipe_phase"):
            written[-1].append(phase)
        else:
            written.append([phase])
    return written


def phase_name(steps: Sequence[dict[str, Any]]) -> str:
    """Name what a phase drew by: `base`, `0.95 corpus: task.parquet + 0.05 task: base`, or of a schedule the first step
    and the last."""
    names = [str(phase.get("histogram") or "?") for phase in (steps[0], steps[-1])]
    return names[0] if len(steps) == 1 else f"{names[0]} to {names[1]}"


def _record(state: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    callbacks = state.get("callbacks") or {}
    lineage, account = callbacks.get(LINEAGE_STATE) or {}, callbacks.get("RunAccount") or {}
    served = (state.get("dataset_state") or {}).get("train") or {}
    position = served.get("samples")
    counts = state["timestamp"]["Timestamp"]
    return {
        "format_version": RECORD_VERSION,
        "run_name": lineage.get("run_name") or state.get("run_name"),
        "model": {"architecture": config["model_type"], **{key: config[key] for key in _ARCHITECTURE}},
        "progress": {
            "batches": int(counts["batch"]),
            "samples": int(counts["sample"]),
            "tokens": int(counts["token"]),
            "position": position,
            "began_at_batch": int((served.get("start") or {}).get("batch", 0)),
        },
        "loss": _loss(account),
        "device_seconds": account.get("device_seconds"),
        "held_out": _held_out(callbacks.get("HeldOutPerplexity") or {}, lineage.get("held_out")),
        "dataset": lineage.get("dataset") or _dataset_of(config, served),
        **({"sources": lineage["sources"]} if lineage.get("sources") else {}),
        "mixture": _mixture(lineage.get("mixture") or {}, served, position),
        "seed": served.get("seed", lineage.get("seed")),
        "order_version": served.get("order_version"),
        "training": lineage.get("training"),
        "versions": lineage.get("versions") or _versions(state),
        "earlier_versions": lineage.get("earlier_versions") or [],
        "parent": lineage.get("parent"),
        "restarted": lineage.get("restarted"),
    }


def _loss(account: dict[str, Any]) -> dict[str, Any] | None:
    losses = [float(loss) for loss in account.get("losses", [])]
    if not losses:
        return None
    mean = last_loss(losses)
    return {"final": mean if math.isfinite(mean) else None, "batches": batches_of_last_loss(len(losses))}


def last_loss(losses: Sequence[float]) -> float:
    """Mean loss of the last tenth of the batches: the last loss of a run, wherever one is named.

    It is the training loss, on the run's own mixture and in the precision of the training, so it is no judgement of the
    model: that is computed in float32, on held-out text.

    Args:
        losses: [num_batches], nats per predicted token; NaN comes back for none.
    """
    return float(np.mean(losses[-batches_of_last_loss(len(losses)) :])) if len(losses) else math.nan


def last_loss_in_words(num_batches: int) -> str:
    """What `last_loss` averages of a run of so many batches: `mean of the last 40 batches`."""
    count = batches_of_last_loss(num_batches)
    return f"mean of the last {count:,} batches" if count > 1 else "of the last batch"


def batches_of_last_loss(num_batches: int) -> int:
    """Count the batches that `last_loss` averages: a tenth, and at least one."""
    return max(1, num_batches // 10)


def _held_out(measured: dict[str, Any], texts: dict[str, Any] | None) -> dict[str, Any] | None:
    rows = [(int(batch), float(perplexity)) for batch, perplexity in measured.get("measured", [])]
    if not rows:
        return None
    batch, perplexity = rows[-1]
    return {"perplexity": perplexity if math.isfinite(perplexity) else None, "batch": batch, **(texts or {})}


def _dataset_of(config: dict[str, Any], served: dict[str, Any]) -> dict[str, Any]:
    """Describe the dataset by a checkpoint without a lineage."""
    known = config.get("crisp_stream") or {}
    fingerprint = known.get("dataset") or served.get("dataset")
    return {"fingerprint": fingerprint, **{key: known.get(key) for key in ("packing", "window_tokens")}}


def _mixture(mixture: dict[str, Any], served: dict[str, Any], position: int | None) -> dict[str, Any]:
    """The mixture with the samples served in each phase, which is None where the position is not known."""
    phases = [dict(phase) for phase in mixture.get("phases") or served.get("phases") or []]
    ends = [phase["first_sample"] for phase in phases[1:]] + [position]
    for phase, end in zip(phases, ends, strict=True):
        if not mixture:  # of a checkpoint without a lineage; the state holds the histograms themselves
            phase.pop("histogram", None)
            phase.pop("components", None)
        phase["samples"] = None if position is None else max(0, min(end, position) - phase["first_sample"])
    return {"fingerprint": mixture.get("fingerprint") or served.get("mixture"), **mixture, "phases": phases}


def _versions(state: dict[str, Any]) -> dict[str, str]:
    metadata = state.get("metadata") or {}
    composer = (metadata.get("composer_env_info") or {}).get("composer_version")
    known = {"composer": composer, "torch": metadata.get("torch_version")}
    return {name: str(version) for name, version in known.items() if version is not None}


def plain(text: object) -> str:
    """Text on one line, as a card can hold it: no control characters, no markup."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(str(text).split()))
