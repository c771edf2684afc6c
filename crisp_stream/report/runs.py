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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError, MissingExtraError, MissingObjectError
from crisp_stream.models.checkpoint import latest_checkpoint, local_copy, read_checkpoint
from crisp_stream.models.training_record import last_loss
from crisp_stream.report.colours import Colours, RunKey
from crisp_stream.report.elements import Line, against_corpus, batch_figure, dot, node_button, safe, section
from crisp_stream.report.map import MapLevel, TaskShares, Tree, shares_at, sums
from crisp_stream.storage.store import is_remote, open_store
from crisp_stream.table import NONE, format_bytes

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

_TOP_NODES = 8


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
    trained_on = record.get("dataset_fingerprint") or state.get("dataset")
    if trained_on != dataset.manifest.fingerprint and dataset.generation_with(str(trained_on)) is None:
        raise InputError(
            f"{folder}: the run was trained on dataset {str(trained_on)[:12]}, {dataset.root} is "
            f"{dataset.manifest.fingerprint[:12]}. Name the dataset that the run was trained on."
        )
    return TrainingRun(
        name=str(record.get("run_name") or state["run_name"]),
        losses=losses or list(enumerate(state["losses"], start=state["first_batch"])),
        held_out=[(float(batch), float(value)) for batch, value in record.get("held_out") or state.get("measured", [])],
        record=record,
        served_leaves=np.asarray(state.get("served_leaves", []), np.int64),
        served_windows=np.asarray(state.get("served_windows", []), np.int64),
        totals={name: float(record.get(name) or state.get("totals", {}).get(name, 0)) for name in _TOTALS},
    )


_TOTALS = ("bytes_read", "requests", "wall_seconds", "cpu_seconds")


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
        "dataset": position.get("dataset"),
    }


def served_shares(run: TrainingRun, levels: Sequence[MapLevel], depth: int, arity: int) -> TaskShares | None:
    """Shares of the map's deepest nodes in what a run was served; None where no checkpoint says it."""
    total = int(run.served_windows.sum())
    if not total:
        return None
    deepest = levels[-1]
    ancestors = run.served_leaves // arity ** (depth - deepest.level)
    at = np.minimum(np.searchsorted(deepest.nodes, ancestors), len(deepest.nodes) - 1)
    present = deepest.nodes[at] == ancestors
    shares = sums(at[present], run.served_windows[present] / total, len(deepest.nodes))
    return TaskShares(name=f"served to {run.name}", level=deepest.level, shares=shares, missing=1 - float(shares.sum()))


def run_section(runs: Sequence[TrainingRun], served: Sequence[TaskShares | None], tree: Tree, colours: Colours) -> str:
    """Curves of all runs, a table of their figures, and the mixture that each was served."""
    rows = "\n".join(_row(run, colours) for run in runs)
    return section(
        "runs",
        "Training runs",
        f"""{_loss_figure(runs, colours)}
{_held_out_figure(runs, colours)}
<div class="scroll" tabindex="0" role="region" aria-label="Figures of the runs"><table class="stack">
<caption>{_LAST_LOSS} Mixture error: total variation between the cluster proportions asked for and those served; 0 is
exact, 1 is disjoint. Read: bytes from the dataset, by all ranks. Time: inside the training loop.</caption>
<thead><tr><th scope="col">Run</th><th scope="col">State</th><th scope="col" class="number">Parameters</th>
<th scope="col" class="number">Seed</th><th scope="col" class="number">Batches</th>
<th scope="col" class="number">Tokens</th><th scope="col" class="number">Last loss</th>
<th scope="col" class="number">Mixture error</th><th scope="col" class="number">Read</th>
<th scope="col" class="number">Time</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
{_served_cards(runs, served, tree, colours)}""",
    )


_LAST_LOSS = (
    "Last loss: mean loss of the last tenth of the batches, in nats per token, as crisp-stream train prints it."
)


def _loss_figure(runs: Sequence[TrainingRun], colours: Colours) -> str:
    lines = [_line(run, run.losses, f"last loss {run.last_loss:.4f}", colours) for run in runs]
    caption = (
        "Training loss on each run's mixture, averaged over neighbouring batches; faint: every batch. Mixtures differ, "
        "so these curves do not say which run is better: judged text does."
    )
    drawn = [line for line in lines if len(line.points) > 1]
    return batch_figure("<h3>Training loss</h3>", caption, "nats per token", drawn, noisy=True)


def _held_out_figure(runs: Sequence[TrainingRun], colours: Colours) -> str:
    lines = [_line(run, run.held_out, f"{run.held_out[-1][1]:.4g} at the end", colours) for run in runs if run.held_out]
    caption = "Measured during training, on the text that the recipe names."
    drawn = [line for line in lines if len(line.points) > 1]
    return batch_figure("<h3>Held-out perplexity</h3>", caption, "perplexity", drawn)


def _line(run: TrainingRun, values: Sequence[tuple[float, float]], last: str, colours: Colours) -> Line:
    points = np.asarray(values, np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    return Line(label=f"{run.name}: {last}", colour=colours.of_run(run.key), points=points)


def _row(run: TrainingRun, colours: Colours) -> str:
    record = run.record
    state = "finished" if record else f"running: as of its checkpoint at batch {run.batches:,}"
    error = record.get("mixture_error")
    cells = {
        "parameters": _count(record.get("num_parameters")),
        "seed": NONE if run.seed is None else f"{run.seed}",
        "batches": f"{run.batches:,}",
        "tokens": _count(record.get("tokens")),
        "last loss": f"{run.last_loss:.4f}" if run.losses else NONE,
        "mixture error": f"{error:.4f}" if isinstance(error, float) else NONE,
        "read": format_bytes(run.totals["bytes_read"]),
        "time": f"{run.totals['wall_seconds']:,.0f} s",
    }
    rest = "".join(f'<td class="number" data-label="{label}">{value}</td>' for label, value in cells.items())
    name = f"{dot(colours.of_run(run.key))}{safe(run.name)}"
    return f'<tr><th scope="row">{name}</th><td data-label="state">{state}</td>{rest}</tr>'


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NONE


def _served_cards(
    runs: Sequence[TrainingRun], served: Sequence[TaskShares | None], tree: Tree, colours: Colours
) -> str:
    """The level-1 clusters that each run was served most, against the corpus, on one scale."""
    first = tree.levels[0]
    cards = [
        (task.name, colours.of_run(run.key), shares_at(task, 1, tree.levels, tree.arity))
        for run, task in zip(runs, served, strict=True)
        if task is not None
    ]
    if not cards:
        return ""
    scale = max(float(first.shares.max()), *(float(shares.max()) for _, _, shares in cards))
    articles = "\n".join(_served_card(name, colour, shares, tree, scale) for name, colour, shares in cards)
    return f"""<h3>Mixture served so far</h3>
<p class="note">Share of the windows that each run was served, by cluster of level 1; grey: share of the corpus.</p>
<div class="cards">
{articles}
</div>"""


def _served_card(name: str, colour: str, shares: NDArray[np.float64], tree: Tree, scale: float) -> str:
    first = tree.levels[0]
    top = np.argsort(-shares, kind="stable")[:_TOP_NODES]
    rows = "\n".join(
        f"<li>{node_button(tree, 1, int(first.nodes[row]))}"
        f"{against_corpus(float(shares[row]), float(first.shares[row]), scale, colour)}"
        f'<span class="figures">{shares[row]:.1%}, corpus {first.shares[row]:.1%}</span></li>'
        for row in top[shares[top] > 0]
    )
    return f"""<article class="card">
<h4>{dot(colour)}{safe(name)}</h4>
<ol class="top">
{rows}
</ol>
</article>"""
