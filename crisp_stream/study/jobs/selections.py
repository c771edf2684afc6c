"""Jobs that find what a method trains on: histograms and selections of windows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crisp_stream.config.files import recipes_and_overrides
from crisp_stream.config.load import load_recipe
from crisp_stream.config.sections import PhaseRecipe
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.arithmetic import effective_clusters, interpolate
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.study.jobs.datasets import EMBEDDINGS, dataset_of
from crisp_stream.study.jobs.job import JobPlace

SELECTION = "selection"
"""Stem of the file that a selection is in."""
_TASK = "task.parquet"


def embed_examples(place: JobPlace, *, name: str, limit: int | None, dataset: Path, specialist: Path) -> dict[str, Any]:
    """Embed a specialist's examples by the encoder of a dataset."""
    from crisp_stream.counting.task_embeddings import embed_task

    questions = specialist / f"{name}.train.questions.jsonl"
    answers = "right" if questions.is_file() else None
    inputs = [str(questions if answers else specialist / f"{name}.train.jsonl")]
    task = embed_task(inputs, dataset_of(dataset), limit=limit, answers=answers, processes=1, log=place.log)
    task.save(place.folder / _TASK)
    return {"examples": len(np.unique(task.examples)), "windows": len(task.embeddings)}


def train_proxy(
    place: JobPlace,
    *,
    name: str,
    recipe: Sequence[str],
    level: int,
    update: Any,
    mu: float,
    limit: int | None,
    dataset: Path,
    specialist: Path,
) -> dict[str, Any]:
    """Train the proxy model of DoGE, and save both averages of its weights."""
    from crisp_stream.selection.doge.doge import weigh_by_doge
    from crisp_stream.selection.doge.settings import DogeSettings

    names, overrides = recipes_and_overrides(recipe)
    remote = f"data.remote={json.dumps(dataset_of(dataset).root)}"
    weights = weigh_by_doge(
        load_recipe([*names, "base"], [*overrides, remote]),
        [str(specialist / f"{name}.train.jsonl")],
        out=place.folder / "weights.parquet",
        settings=DogeSettings(level=level, update=update, mu=mu),
        limit=limit,
        log=place.log,
    )
    weights.run_average.save(place.folder / "run.parquet")
    weights.last_average.save(place.folder / "last.parquet")
    return {"cost": weights.chosen.provenance.get("cost")}


def select(
    place: JobPlace,
    *,
    name: str,
    kind: str,
    options: dict[str, Any],
    limit: int | None,
    dataset: Path,
    tasks: Mapping[str, Path] = {},
    embeddings: Path | None = None,
    proxy: Path | None = None,
    specialist: Path | None = None,
) -> dict[str, Any]:
    """Make a method's histogram or selection of windows, in the file that `selection_of` opens."""
    opened = dataset_of(dataset)
    if kind in ("crisp", "multitask", "doge"):
        return _select_clusters(place, opened, options, list(tasks.values()), proxy)
    if kind == "dsir":
        assert specialist is not None, "the plan names the specialist of dsir"
        return _select_by_ngrams(place, opened, options["share"], specialist / f"{name}.train.jsonl", limit)
    assert embeddings is not None, "the plan names embeddings for the others"
    return _select_windows(place, opened, kind, options, tasks[name], embeddings / EMBEDDINGS)


def _select_clusters(
    place: JobPlace, dataset: Dataset, options: dict[str, Any], tasks: Sequence[Path], proxy: Path | None
) -> dict[str, Any]:
    from crisp_stream.counting.task_embeddings import TaskEmbeddings, histogram_of_task

    if proxy is not None:
        histogram = Histogram.load(proxy / f"{options['average']}.parquet")
    else:
        opened = [TaskEmbeddings.load(task / _TASK) for task in tasks]
        counted = [histogram_of_task(task, dataset, options["level"]) for task in opened]
        histogram = counted[0] if len(counted) == 1 else Histogram.average(counted)
    if options["base_share"]:
        histogram = interpolate(histogram, dataset, options["base_share"])
    histogram.save(place.folder / f"{SELECTION}.parquet")
    return {"clusters": len(histogram.nodes), "effective_clusters": effective_clusters(histogram)}


def _select_windows(
    place: JobPlace, dataset: Dataset, kind: str, options: dict[str, Any], task: Path, embeddings: Path
) -> dict[str, Any]:
    from crisp_stream.counting.task_embeddings import TaskEmbeddings
    from crisp_stream.format.embeddings import WindowEmbeddings
    from crisp_stream.selection.classifier import select_by_classifier
    from crisp_stream.selection.nearest import select_nearest

    examples, rows = TaskEmbeddings.load(task / _TASK), WindowEmbeddings.load(embeddings, dataset).rows
    quantile = 1 - options["share"]
    if kind == "nearest":
        outcome = select_nearest(examples, rows, dataset, quantile=quantile, neighbours=options["neighbours"])
        values: dict[str, Any] = {"cosine": outcome.threshold}
    else:
        outcome = select_by_classifier(examples, rows, dataset, quantile=quantile)
        chosen = outcome.classifier.chosen
        values = {"regularisation": chosen.regularisation, "auc": chosen.auc, "accepted": outcome.task_accepted}
    outcome.selection.save(place.folder / f"{SELECTION}.windows.parquet")
    return {**values, "windows": outcome.selection.num_selected}


def _select_by_ngrams(
    place: JobPlace, dataset: Dataset, share: float, documents: Path, limit: int | None
) -> dict[str, Any]:
    from crisp_stream.counting.embedded_examples import ExampleSources
    from crisp_stream.selection.dsir import select_dsir

    sources = ExampleSources((str(documents),), "text", limit, None, (), "files")
    num_windows = max(1, round(share * dataset.manifest.num_windows))
    outcome = select_dsir(sources, data=dataset.root, num_windows=num_windows, processes=1, log=place.log)
    outcome.selection.save(place.folder / f"{SELECTION}.windows.parquet")
    return {"windows": outcome.selection.num_selected}


def selection_of(folder: Path) -> PhaseRecipe:
    """Open what `select` left, as a phase of a mixture."""
    windows = folder / f"{SELECTION}.windows.parquet"
    if windows.is_file():
        return PhaseRecipe(windows=str(windows))
    return PhaseRecipe(histogram=str(folder / f"{SELECTION}.parquet"))
