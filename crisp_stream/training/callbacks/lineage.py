"""Record the data and settings of a run in each of its checkpoints, so that a model can say where it comes from.

The state of a dataset names fingerprints alone, and a checkpoint outlives the recipe and the dataset of its run. So
every checkpoint holds what these were: a few kilobytes, whatever their size, up to 87 kB for each phase that name the
examples its histogram was counted from, and up to 875 kB for each dataset that its text is known again by. It holds the
same of the checkpoint that the run began from, and of that one's.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from composer.core import Callback

from crisp_stream import __version__
from crisp_stream.config.kept import kept_keys
from crisp_stream.examples.sketch import RECORD_HASHES, sketch_of
from crisp_stream.format.text_sketch import read_text_sketch
from crisp_stream.histograms.component import Component
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.models.tokenizer_parts import tokenizer_parts
from crisp_stream.models.training_record import (
    RECIPE_KEY,
    components_of,
    datasets_of,
    public_address,
    training_record,
)

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.training.prepare import PreparedRun

_PACKAGES = {"composer": "mosaicml", "torch": "torch", "transformers": "transformers"}


class Lineage(Callback):
    """Puts the record of a run into its checkpoints. Nothing is restored: every process makes the record anew."""

    def __init__(self, record: dict[str, Any]) -> None:
        """Args:
        record: from `describe_run`.
        """
        self.record = record

    def state_dict(self) -> dict[str, Any]:
        return self.record


def describe_run(run: PreparedRun) -> dict[str, Any]:
    """Describe the data and settings of a run in plain values.

    Raises:
        FormatError: the record in the checkpoint that it starts from is damaged.
    """
    recipe, mixture = run.recipe, run.mixture
    begun_from = _record_of_start(run)
    parent, restarted = _parent_of(run, begun_from)
    versions = {"crisp_stream": __version__, **{name: metadata.version(package) for name, package in _PACKAGES.items()}}
    return {
        "run_name": recipe.run_name,
        RECIPE_KEY: kept_keys(recipe),
        "dataset": {**_describe_dataset(run, run.dataset), "texts": _describe_text_of(run.dataset, parent)},
        **_describe_sources(run, parent),
        "mixture": {
            "fingerprint": mixture.fingerprint,
            "draw": mixture.draw,
            "phases": _describe_phases(run, begun_from or {}),
        },
        "seed": recipe.seed,
        "training": {
            "max_duration": recipe.max_duration,
            "global_train_batch_size": recipe.global_train_batch_size,
            "optimizer": {"name": "AdamW", **dataclasses.asdict(recipe.optimizer)},
            "scheduler": dataclasses.asdict(recipe.scheduler),
            "gradient_clipping": recipe.gradient_clipping,
            "precision": recipe.precision,
        },
        "held_out": _describe_texts(run.held_out) if run.held_out else None,
        "versions": versions,
        "earlier_versions": _earlier_versions(run, begun_from, versions),
        "parent": parent,
        "restarted": restarted,
    }


def _record_of_start(run: PreparedRun) -> dict[str, Any] | None:
    """The record of the checkpoint that the run goes on from, which may be of this run."""
    path = run.checkpoint.path
    return None if path is None else training_record(read_checkpoint(path), path)


def _parent_of(run: PreparedRun, record: dict[str, Any] | None) -> tuple[dict[str, Any] | None, list[str] | None]:
    """The record of the checkpoint that the run began from, and what of it started afresh.

    A checkpoint of this run already names both.
    """
    path, url = run.checkpoint.path, run.checkpoint.url
    if path is None or record is None:
        return None, None
    unchanged = not run.recipe.restarts and record["mixture"]["fingerprint"] == run.mixture.fingerprint
    if run.checkpoint.resumes or unchanged:
        return record["parent"], record["restarted"]
    address = None if url is None else public_address(url)
    return {"checkpoint": address or path.resolve().name, **record}, sorted(run.recipe.restarts)


def _earlier_versions(
    run: PreparedRun, record: dict[str, Any] | None, versions: dict[str, str]
) -> list[dict[str, Any]]:
    """The versions of packages that trained this run before it was resumed on others, each with its last batch."""
    if record is None or not run.checkpoint.resumes:
        return []
    before = {"until_batch": record["progress"]["batches"], **(record["versions"] or {})}
    return [*record["earlier_versions"], *([before] if record["versions"] != versions else [])]


def _describe_sources(run: PreparedRun, parent: dict[str, Any] | None) -> dict[str, Any]:
    """The sources by name, where they have names; the text of the first stands with `dataset`, which is the first."""
    if not run.sources.is_named:
        return {}
    texts = {
        name: _describe_text_of(each, parent) if number else None for number, (name, each) in enumerate(run.sources)
    }
    return {"sources": {name: {**_describe_dataset(run, each), "texts": texts[name]} for name, each in run.sources}}


def _describe_dataset(run: PreparedRun, dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "fingerprint": manifest.fingerprint,
        "root": public_address(dataset.root),
        "generation": manifest.generation,
        "num_windows": manifest.num_windows,
        "window_tokens": manifest.window_tokens,
        "packing": manifest.packing,
        "tree": {
            "fingerprint": manifest.tree_fingerprint,
            "arity": manifest.arity,
            "depth": manifest.depth,
            "leaves_with_windows": manifest.num_leaves,
        },
        "tokenizer": {**dataclasses.asdict(manifest.tokenizer), "parts": tokenizer_parts(run.tokenizer)},
        "encoder": dataclasses.asdict(manifest.encoder),
    }


def _describe_text_of(dataset: Dataset, parent: dict[str, Any] | None) -> dict[str, Any] | None:
    """A sketch of the dataset's text; None where a checkpoint before has it already, or the dataset does not say."""
    before = parent
    while before:
        for known in datasets_of(before):
            if known.get("fingerprint") == dataset.manifest.fingerprint and known.get("texts") is not None:
                return None
        before = before.get("parent")
    sketch = read_text_sketch(dataset)
    return None if sketch is None else sketch.to_json()


def _describe_phases(run: PreparedRun, begun_from: dict[str, Any]) -> list[dict[str, Any]]:
    """Args:
    run: its first phases may be those of the checkpoint that it goes on from.
    begun_from: the record of that checkpoint; {} without one.
    """
    inherited = {phase.get("first_sample"): phase for phase in _phases_of(begun_from)}
    described, first_sample = [], 0
    for made in run.phases:
        served, components = inherited.get(first_sample) or {}, made.phase.components
        if made.parts is None:  # histograms and their examples are named as in the record of the checkpoint
            written = components_of(served) if len(components_of(served)) == len(components) else [{}] * len(components)
            named = [(each.get("histogram"), each.get("examples")) for each in written]
        else:
            sketches = [_describe_examples(component.histogram) for component in components]
            named = [(part.summary, sketch) for part, sketch in zip(made.parts, sketches, strict=True)]
        parts = [_describe_component(*each) for each in zip(components, named, strict=True)]
        if made.phase.is_plain:
            described.append({**parts[0], "first_sample": first_sample})
        else:
            described.append(
                {
                    "histogram": served.get("histogram") if made.parts is None else made.summary,
                    "first_sample": first_sample,
                    "recipe_phase": served.get("recipe_phase") if made.parts is None else made.index,
                    "components": [
                        {"source": component.source or None, "share": component.share, **part}
                        for component, part in zip(components, parts, strict=True)
                    ],
                }
            )
        first_sample += made.phase.samples or 0
    return described


def _describe_component(component: Component, named: tuple[str | None, dict[str, Any] | None]) -> dict[str, Any]:
    """Args:
    component: as it is drawn.
    named: the name of its histogram, and the examples that this was counted from.
    """
    histogram, limit, selected = component.histogram, {}, {}
    if component.max_repeats is not None:
        limit = {"max_repeats": component.max_repeats, "on_excess": component.on_excess}
    if component.windows is not None:
        selected = {"windows": _describe_windows(component.windows)}
    name, examples = named
    return {
        "histogram": name,
        "fingerprint": histogram.fingerprint,
        "level": histogram.level,
        "clusters": len(histogram.nodes),
        "examples": examples,
        **limit,
        **selected,
    }


def _describe_examples(histogram: Histogram) -> dict[str, Any] | None:
    """A sketch of the examples that the histogram was counted from; None where it does not say."""
    sketch = sketch_of(histogram.provenance)
    return None if sketch is None else sketch.thinned(RECORD_HASHES).to_json()


def _phases_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return (record.get("mixture") or {}).get("phases") or []


def _describe_windows(selection: WindowSelection) -> dict[str, Any]:
    return {"fingerprint": selection.fingerprint, "selected": selection.num_selected, "of": selection.num_windows}


def _describe_texts(texts: Sequence[str]) -> dict[str, Any]:
    """Number of texts, and the sha256 over them in order, each with its length in bytes before it."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return {"documents": len(texts), "fingerprint": digest.hexdigest()}
