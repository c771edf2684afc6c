"""Training runs on the page: curves, served mixture and cost, of runs that have finished or still go on.

A finished run is read from run.json and losses.csv. Which clusters a run was served stands in its newest checkpoint
alone, and so does all of a run that is still going: that is read where it is on a local disk, and fetched from an
object store only when there is no run.json.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream import digits
from crisp_stream.errors import FormatError, InputError, MissingExtraError, MissingObjectError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.models.checkpoint import latest_checkpoint, local_copy, read_checkpoint
from crisp_stream.models.component_account import components_gave
from crisp_stream.models.training_record import last_loss, last_loss_in_words
from crisp_stream.report.charts import Curve
from crisp_stream.report.colours import Colours, RunKey
from crisp_stream.report.elements import Cells, batch_figure, named, safe, section, table
from crisp_stream.report.heaviest import card
from crisp_stream.report.map import MapLevel, TaskShares, Tree, coarser, gathered
from crisp_stream.storage.store import is_remote, open_store
from crisp_stream.table import NONE, format_bytes

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

_TOTALS = ("bytes_read", "requests", "wall_seconds", "cpu_seconds")


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run as its files describe it."""

    name: str
    losses: Sequence[tuple[float, float]]
    """(batch, training loss in nats per token)."""
    held_out: Sequence[tuple[float, float]]
    """(batch, perplexity of held-out text)."""
    record: dict[str, Any]
    """run.json; empty for a run that is still going."""
    served_leaves: NDArray[np.int64]
    """[num_served], leaf ids; empty where no checkpoint says what was served."""
    served_windows: NDArray[np.int64]
    """[num_served], windows served of each."""
    totals: dict[str, float]
    """`bytes_read`, `requests`, `wall_seconds`, `cpu_seconds`."""
    other: Dataset | None = None
    """Generation of the dataset that the run was trained on, where it is not that of the page."""
    source: str | None = None
    """Name of the source that is the dataset of the page, where the run has several; what it was served is of this one
    alone."""

    @property
    def batches(self) -> int:
        """Batches trained so far."""
        return len(self.losses)

    @property
    def last_loss(self) -> float:
        """Mean loss of the last tenth of the batches so far, as `crisp-stream train` prints it; NaN without batches."""
        return last_loss([loss for _, loss in self.losses])

    @property
    def key(self) -> RunKey:
        """Identity of the run, as results of its checkpoints have it; only the name for a run that is still going."""
        return self.name, self.record.get("num_parameters"), self.record.get("mixture_fingerprint"), self.seed

    @property
    def seed(self) -> int | None:
        """Seed of the run; None where there is no run.json."""
        return (self.record.get("recipe") or {}).get("seed")

    @property
    def histograms(self) -> list[str]:
        """Histogram of each phase; empty where there is no run.json."""
        return [str(phase.get("histogram")) for phase in self.record.get("phases") or []]


def read_run(folder: str, dataset: Dataset) -> TrainingRun:
    """Read the `save_folder` of a run.

    Raises:
        InputError: no run there, or one on another dataset.
        FormatError: its files are damaged.
        StorageError: the storage refused or failed.
    """
    record, losses = _account(folder)
    checkpoint = latest_checkpoint(folder)
    state: dict[str, Any] = {}
    if checkpoint is not None and (not record or not is_remote(folder)):
        try:
            with local_copy(checkpoint) as path:
                state = _saved_account(read_checkpoint(path)["state"], checkpoint)
        except MissingExtraError:
            if not record:
                raise
    if not record and not state:
        raise InputError(
            f"{folder}: holds neither run.json nor a checkpoint of crisp-stream train. Name a histogram file, or the "
            "save_folder of a run."
        )
    trained_on = _trained_on(record) or state.get("datasets") or {}
    source, other = _source_of_page(folder, trained_on, dataset)
    own = np.asarray(state.get("served_sources", []), np.int64) == list(trained_on).index(source) if source else ...
    return TrainingRun(
        name=str(record.get("run_name") or state["run_name"]),
        losses=losses or list(enumerate(state["losses"], start=state["first_batch"])),
        held_out=[(float(batch), float(value)) for batch, value in record.get("held_out") or state.get("measured", [])],
        record=record,
        served_leaves=np.asarray(state.get("served_leaves", []), np.int64)[own],
        served_windows=np.asarray(state.get("served_windows", []), np.int64)[own],
        totals={name: float(record.get(name) or state.get("totals", {}).get(name, 0)) for name in _TOTALS},
        other=other,
        source=source or None,
    )


def _trained_on(record: dict[str, Any]) -> dict[str, str]:
    """Fingerprint of each source by its name, from run.json; of a dataset alone by the name ``; {} without run.json."""
    sources = record.get("sources")
    if sources:
        return {name: str(source["fingerprint"]) for name, source in sources.items()}
    return {"": str(record["dataset_fingerprint"])} if "dataset_fingerprint" in record else {}


def _source_of_page(folder: str, trained_on: dict[str, str], dataset: Dataset) -> tuple[str, Dataset | None]:
    """The source of a run that is the dataset of the page; and its generation that the run was trained on, where that
    is not the one of the page.

    Raises:
        InputError: the run was trained on other datasets.
    """
    for name, fingerprint in trained_on.items():
        if fingerprint == dataset.manifest.fingerprint:
            return name, None
    for name, fingerprint in trained_on.items():
        if (generation := dataset.generation_with(fingerprint)) is not None:
            return name, open_dataset(dataset.root, generation=generation)
    named = ", ".join(f"{name} {mark[:12]}".lstrip() for name, mark in trained_on.items()) or "None"
    raise InputError(
        f"{folder}: the run was trained on dataset {named}, {dataset.root} is "
        f"{dataset.manifest.fingerprint[:12]}. Name the dataset that the run was trained on."
    )


def _account(folder: str) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """run.json and losses.csv; empty for a run that has not finished."""
    store = open_store(folder)
    try:
        record = json.loads(store.get("run.json"))
        rows = csv.DictReader(io.StringIO(store.get("losses.csv").decode("utf-8")))
        losses = [(float(row["batch"]), float(row["loss"])) for row in rows]
    except MissingObjectError:
        return {}, []
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise FormatError(
            f"{folder}: run.json or losses.csv is damaged ({error}). Train the run to its end again."
        ) from error
    if not isinstance(record, dict):
        raise FormatError(f"{folder}/run.json: must be an object, got {type(record).__name__}. Restore the file.")
    return record, losses


def _saved_account(state: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """The state of the callback that keeps the account of a run, with lists for tensors."""
    callbacks = state.get("callbacks") or {}
    saved = dict(callbacks.items() if isinstance(callbacks, dict) else callbacks)
    account = saved.get("RunAccount")
    if not isinstance(account, dict) or "losses" not in account:
        raise FormatError(f"{checkpoint}: has no account of its run. Use a checkpoint of `crisp-stream train`.")
    position = (state.get("dataset_state") or {}).get("train") or {}
    return {
        "run_name": state.get("run_name") or "run",
        "losses": account["losses"].tolist(),
        "first_batch": account.get("start", {}).get("batch", 0) + 1,
        "served_leaves": account["served_leaves"].tolist(),
        "served_windows": account["served_windows"].tolist(),
        "totals": account["totals"],
        "measured": (saved.get("HeldOutPerplexity") or {}).get("measured", []),
        "served_sources": account["served_sources"].tolist() if "served_sources" in account else [],
        "datasets": position.get("sources") or {"": str(position.get("dataset"))},
    }


def served_shares(run: TrainingRun, levels: Sequence[MapLevel], depth: int, arity: int) -> TaskShares | None:
    """Shares of the map's deepest nodes in what a run was served; None where no checkpoint says it."""
    total = int(run.served_windows.sum())
    if not total:
        return None
    step = arity ** (depth - levels[-1].level)
    of_source = f" from source {run.source}" if run.source else ""
    name = f"served to {run.name}{of_source}"
    served = gathered(name, levels[-1], run.served_leaves // step, run.served_windows / total)
    if run.other is None:
        return served
    corpus = run.other.windows_per_leaf / run.other.manifest.num_windows
    return replace(
        served,
        name=f"{served.name} (generation {run.other.manifest.generation})",
        corpus=gathered("corpus", levels[-1], run.other.leaves // step, corpus).shares,
    )


def run_section(
    runs: Sequence[TrainingRun], served: Sequence[TaskShares | None], tree: Tree, colours: Colours, scale: float
) -> str:
    """Curves of all runs, a table of their figures, and the mixture that each was served; `scale` fills a bar."""
    losses = [_curve(run, run.losses, f"last loss {digits.loss(run.last_loss)}", colours) for run in runs]
    held_out = [
        _curve(run, run.held_out, f"{digits.perplexity(run.held_out[-1][1])} at the end", colours)
        for run in runs
        if run.held_out
    ]
    of_losses = (
        "Training loss on each run's mixture, in the precision of its training, averaged over neighbouring batches; "
        "faint: every batch. Mixtures differ, so these curves do not say which run is better: judged text does."
    )
    of_held_out = f"Measured during training, on the text that the recipe names; {digits.JUDGED}, as by eval."
    rows = [_row(run, colours) for run in runs]
    return section(
        "runs",
        "Training runs",
        f"""{batch_figure("<h3>Training loss</h3>", of_losses, "nats per token", losses, noisy=True)}
{batch_figure("<h3>Held-out perplexity</h3>", of_held_out, "perplexity", held_out)}
{table({"": rows}, title="Figures of the runs", caption=_CAPTION, kinds={"State": ""})}
{_components(runs, colours)}
{_served_cards(runs, served, tree, colours, scale)}""",
    )


def _components(runs: Sequence[TrainingRun], colours: Colours) -> str:
    """What each component gave, of the runs that have several; nothing without."""
    groups = {
        named(run.name, colours.of_run(run.key)): [
            {
                "Drawn by": safe(f"{each.source}: {each.drawn_by}" if each.source else each.drawn_by),
                "Phase": str(each.phase),
                "Asked": digits.share(each.asked),
                "Served": digits.share(each.served_share),
                "Windows": f"{each.served:,.0f}",
                "Repeats": digits.times(each.repeats),
                "Loss": NONE if each.loss is None else digits.loss(each.loss),
            }
            for each in components_gave(run.record.get("phases") or [])
        ]
        for run in runs
    }
    groups = {heading: rows for heading, rows in groups.items() if rows}
    if not groups:
        return ""
    return f"<h3>Components of the mixture</h3>\n{table(groups, title='Components of the mixture', caption=_GAVE)}"


_GAVE = """Asked and served: shares of the samples of the phase. Windows: served. Repeats: times that each of the
component's windows was served, on average. Loss: mean training loss on what the component gave, in nats per token. Of
finished runs."""


_CAPTION = """Last loss: mean training loss of the last tenth of the batches, in nats per token, on the run's own
mixture and in the precision of its training, as crisp-stream train prints it; it is not a judgement of the model.
Mixture error: total variation between the cluster proportions asked for and those served; 0 is exact, 1 is disjoint.
Read: bytes from the dataset, by all ranks. Time: inside the training loop."""


def _curve(run: TrainingRun, values: Sequence[tuple[float, float]], last: str, colours: Colours) -> Curve:
    points = np.asarray(values, np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    return Curve(points=points, colour=colours.of_run(run.key), label=f"{run.name}: {last}")


def _row(run: TrainingRun, colours: Colours) -> Cells:
    record = run.record
    error = record.get("mixture_error")
    return {
        "Run": named(run.name, colours.of_run(run.key)),
        "State": _state(run),
        "Parameters": _count(record.get("num_parameters")),
        "Seed": NONE if run.seed is None else f"{run.seed}",
        "Batches": f"{run.batches:,}",
        "Tokens": _count(record.get("tokens")),
        "Last loss": _last_loss(run) if run.losses else NONE,
        "Precision": str((record.get("recipe") or {}).get("precision") or NONE),
        "Mixture error": digits.mixture_error(error) if isinstance(error, float) else NONE,
        "Read": format_bytes(run.totals["bytes_read"]),
        "Time": digits.seconds(run.totals["wall_seconds"]),
    }


def _state(run: TrainingRun) -> str:
    """How far a run is, and on which generation of the dataset where it is not that of the page."""
    state = "finished" if run.record else f"running: as of its checkpoint at batch {run.batches:,}"
    return state if run.other is None else f"{state}; on generation {run.other.manifest.generation} of the dataset"


def _last_loss(run: TrainingRun) -> str:
    averaged = f'<span class="interval">{last_loss_in_words(run.batches)}</span>'
    return f"<span>{digits.loss(run.last_loss)} {averaged}</span>"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NONE


def _served_cards(
    runs: Sequence[TrainingRun], served: Sequence[TaskShares | None], tree: Tree, colours: Colours, scale: float
) -> str:
    """The level-1 clusters that each run was served most, against the corpus."""
    shown = [
        (colours.of_run(run.key), coarser(task, 1, tree))
        for run, task in zip(runs, served, strict=True)
        if task is not None
    ]
    if not shown:
        return ""
    cards = "\n".join(card(task, tree, colour, scale, heading="h4") for colour, task in shown)
    return f"""<h3>Mixture served so far</h3>
<p class="note">Share of the windows that each run was served, by cluster of level 1; grey: share of the corpus that the
run was served from; w is the ratio of the two. Bars have the scale of all bars of shares on this page.</p>
<div class="cards">
{cards}
</div>"""
