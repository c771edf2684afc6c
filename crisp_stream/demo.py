"""`crisp-stream demo`: a trial on public text, from fetching it to the page with the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from crisp_stream.corpora.demo import prepare_corpora
from crisp_stream.storage.store import cache_folder
from crisp_stream.table import format_bytes
from crisp_stream.trial.sizes import HELD_OUT, TrialSize
from crisp_stream.trial.trial import NUM_STEPS, Log, Steps, Trial, TrialResult, run_trial

TASK = "medical abstracts"


@dataclass(frozen=True, kw_only=True)
class DemoScale:
    """Sizes of all parts. The defaults take about 7 minutes on 2 cores, half of it embedding."""

    generalist_characters: int = 3_200_000
    """Length of the corpus."""
    specialist_documents: int = 200
    """Examples of the task."""
    test_documents: int = HELD_OUT
    """Held-out documents, of the task and of the corpus each."""
    size: TrialSize = field(default_factory=TrialSize)
    """Dataset, tree and models."""


def run_demo(
    out: str | None = None,
    *,
    run_folder: str | Path = "demo-out",
    data_cache: str | Path | None = None,
    fresh: bool = False,
    scale: DemoScale | None = None,
    log: Log = print,
) -> TrialResult:
    """Fetch text and run a trial on it.

    Args:
        out: root of the dataset, a folder or an object-store prefix. Default: `data` in the run folder.
        run_folder: local folder of everything else: corpus files, histogram, trainings, page.
        data_cache: local folder of the fetched packages. Default: `demo` in the cache folder.
        fresh: train again even where a finished training is found. The dataset is kept.
        scale: sizes; for tests.
        log: receives progress, one line or block at a time.

    Raises:
        InputError: `out` holds a dataset that is not the demo's, or the text cannot be had.
        StorageError: the registry or the storage refused or failed.
        MissingExtraError: a library of the demo extra is not installed.
    """
    scale, folder = scale or DemoScale(), Path(run_folder)
    steps = Steps(log, total=1 + NUM_STEPS)
    steps.begin("real text from two public packages")
    texts = prepare_corpora(
        folder / "text",
        cache=Path(data_cache) if data_cache else cache_folder() / "demo",
        generalist_characters=scale.generalist_characters,
        specialist_documents=scale.specialist_documents,
        test_documents=scale.test_documents,
    )
    for path in texts.paths:
        log(f"{path.name:<40}{format_bytes(path.stat().st_size):>9}")
    root = str(out or folder / "data")
    trial = Trial(texts=texts, task=TASK, size=scale.size, root=root, folder=folder, fresh=fresh)
    return run_trial(trial, steps)
