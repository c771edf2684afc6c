"""Jobs that train, fine-tune and judge models, all on the same number of tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crisp_stream.config.durations import parse_duration
from crisp_stream.config.recipe import Recipe
from crisp_stream.config.sections import PhaseRecipe
from crisp_stream.errors import RunInterruptedError
from crisp_stream.study.jobs.datasets import dataset_of
from crisp_stream.study.jobs.job import JobPlace
from crisp_stream.study.jobs.selections import selection_of

RUN, RESULTS = "run", "results"
"""Folders of the run and of the results, in those of training and of judging."""


def starting_batch(fraction: float, num_batches: int) -> int:
    """Batch at which fine-tuning of a fraction of the steps begins."""
    return num_batches - max(1, round(fraction * num_batches))


def train_model(
    place: JobPlace,
    *,
    recipe: Recipe,
    generic_share: float,
    data: Path,
    selection: Path | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train a model of a method from random weights, or from the base model's checkpoint at the share of the run."""
    phase = PhaseRecipe(histogram="base") if selection is None else selection_of(selection)
    if start is None:
        return _trained(place, recipe, data, (phase,))
    batch = round(generic_share * parse_duration(recipe.max_duration)[0])
    phases = (PhaseRecipe(histogram="checkpoint"), phase)
    return _trained(place, recipe, data, phases, load_path=_checkpoint(start, batch))


def finetune_model(place: JobPlace, *, recipe: Recipe, fraction: float, start: Path, data: Path) -> dict[str, Any]:
    """Train the last steps of a run on the specialist text; optimiser and learning-rate schedule go on."""
    batch = starting_batch(fraction, parse_duration(recipe.max_duration)[0])
    phases = (PhaseRecipe(histogram="base"),)
    return _trained(place, recipe, data, phases, load_path=_checkpoint(start, batch), load_restart=("data",))


def _checkpoint(folder: Path, batch: int) -> str:
    return str(folder / RUN / f"ep0-ba{batch}-rank0.pt")


def _trained(
    place: JobPlace, recipe: Recipe, data: Path, phases: tuple[PhaseRecipe, ...], **changes: Any
) -> dict[str, Any]:
    from crisp_stream.training.train import train

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
    """Judge a model on its sets, example by example."""
    from crisp_stream.evaluation.judge import JudgedSets, TextSet, judge
    from crisp_stream.evaluation.question_sets import open_question_set
    from crisp_stream.models.training_cost import training_cost
    from crisp_stream.results.results import QuestionResults

    texts, questions, names = [], [], {}
    for specialist, split in sets:
        name = f"{specialist}.{split}"
        question_file = folders[specialist] / f"{name}.questions.jsonl"
        as_questions = split == "test" and question_file.is_file()
        file = question_file if as_questions else folders[specialist] / f"{name}.jsonl"
        texts.append(TextSet(inputs=(str(file),), questions=as_questions))
        names[texts[-1].name] = f"{name}.text" if as_questions else name
        if as_questions:
            questions.append(open_question_set(str(question_file)))
            names[questions[-1].name] = name
    judged = judge(
        [str(trained / RUN)],
        # Near copies among the documents of one source are said in the log; they are no reason to end a study.
        JudgedSets(texts=texts, questions=questions, allow_seen=True),
        names=[model],
        batch_size=batch_size,
        out=str(place.folder / RESULTS),
        log=place.log,
    )
    values = {
        names[results.set_name]: {"accuracy": float(results.reported.mean())}
        if isinstance(results, QuestionResults)
        else {"perplexity": math.exp(results.losses.mean())}
        for results in judged
    }
    training = judged[0].model["training"]
    device = next(iter(training.get("device_seconds") or {}), "?")
    return {"sets": values, "set_names": names, "tokens": training_cost(training).tokens, "device": device}
