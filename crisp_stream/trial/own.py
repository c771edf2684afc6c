"""`crisp-stream try`: a trial on a user's own corpus and task, sized to some minutes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from crisp_stream import __version__
from crisp_stream.corpora.files import Corpora
from crisp_stream.errors import InputError
from crisp_stream.storage.store import file_name, open_store
from crisp_stream.trial.commands import same_commands, whole_commands
from crisp_stream.trial.sizes import TrialSize
from crisp_stream.trial.sizing import plan_trial
from crisp_stream.trial.split import TrialInputs, split_texts
from crisp_stream.trial.trial import NUM_STEPS, Log, Steps, Trial, TrialResult, run_trial

_RECORD = "trial.json"
"""File in the folder of a trial: what was asked, and the sizes and texts that were chosen."""
_READING_SHARE = 0.1
"""Share of the minutes in which the corpus is read for a sample."""


def run_own_trial(
    inputs: TrialInputs, *, minutes: float, folder: str | Path, fresh: bool = False, log: Log = print
) -> TrialResult:
    """Choose sizes and texts, run the trial, and say what it stands for. Run again, it goes on, or keeps what is there.

    Args:
        inputs: corpus and task.
        minutes: that it may take, about.
        folder: local folder of everything.
        fresh: train again even where finished trainings are found.
        log: receives progress, one line or block at a time.

    Raises:
        InputError: too little text, minutes out of range, or the folder holds another trial. Others as `run_trial`.
    """
    place, steps = Path(folder), Steps(log, total=1 + NUM_STEPS)
    steps.begin(f"a sample of {inputs.corpus}, sized to {minutes:g} minutes, and text that is held out")
    texts, size = _chosen(inputs, minutes, place, steps)
    trial = Trial(
        texts=texts,
        task=file_name(inputs.task).partition(".")[0],
        size=size,
        root=str(place / "data"),
        folder=place,
        questions=inputs.questions,
        fresh=fresh,
    )
    result = run_trial(trial, steps)
    log("\nThese commands do the same, step by step:")
    log("\n".join(f"  {line}" for line in same_commands(trial)))
    whole = whole_commands(
        inputs.corpus,
        inputs.task,
        texts.specialist_test,
        text_column=inputs.text_column,
        questions=inputs.questions,
    )
    log("\nnext: the whole corpus, and a model of 350M parameters on GPUs (the first line says what it will take):")
    log("\n".join(f"  {line}" for line in whole))
    return result


def _chosen(inputs: TrialInputs, minutes: float, folder: Path, steps: Steps) -> tuple[Corpora, TrialSize]:
    """Texts and sizes: those of an earlier run of the same trial, or new ones."""
    asked = {**dataclasses.asdict(inputs), "minutes": minutes, "version": __version__}
    store, record = open_store(str(folder)), folder / _RECORD
    if record.is_file():
        try:
            earlier: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            texts = Corpora(**{name: folder / path for name, path in earlier["texts"].items()})
            size = TrialSize(**{**earlier["size"], "recipe_overrides": tuple(earlier["size"]["recipe_overrides"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{record}: damaged ({error!r}). Choose another --out, or delete the folder.") from error
        before = earlier["asked"]
        differing = [f"{key} was {before.get(key)}, is {asked[key]}" for key in asked if before.get(key) != asked[key]]
        if differing:
            raise InputError(
                f"{folder} holds another trial: {'; '.join(differing)}. Choose another --out, or delete the folder."
            )
        if all(path.is_file() for path in texts.paths):
            steps.keep("texts", ", ".join(path.name for path in texts.paths))
            return texts, size
    plan = plan_trial(inputs, minutes)
    steps.log(plan.text())
    texts = split_texts(
        inputs,
        folder / "text",
        characters=plan.characters,
        seconds=60 * minutes * _READING_SHARE,
        log=steps.log,
    )
    names = {field.name: str(getattr(texts, field.name).relative_to(folder)) for field in dataclasses.fields(texts)}
    content = {"asked": asked, "size": dataclasses.asdict(plan.size), "texts": names}
    store.put(_RECORD, (json.dumps(content, indent=2) + "\n").encode())
    return texts, plan.size
