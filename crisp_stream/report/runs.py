"""Training runs on the page: their curves, what they were served, what they cost; finished or still going.

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
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError, MissingExtraError, MissingObjectError
from crisp_stream.models.checkpoint import latest_checkpoint, local_copy, read_checkpoint
from crisp_stream.report.charts import Curve, line_chart, linear_axis, smoothed, thinned
from crisp_stream.report.map import MapLevel, TaskShares, sums, visible
from crisp_stream.report.tasks import NUM_COLOURS, Tree, legend, meter, node_button
from crisp_stream.storage.store import is_remote, open_store
from crisp_stream.table import format_bytes

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset

_TOP_NODES = 8


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a run."""

    name: str
    losses: Sequence[tuple[float, float]]
    """(batch, training loss in nats per token)."""
    held_out: Sequence[tuple[float, float]]
    """(batch, perplexity)."""
    record: dict[str, Any]
    """run.json; empty for a run that is still going."""
    served_leaves: NDArray[np.int64]
    """[num_served], leaf ids; empty where no checkpoint says what was served."""
    served_windows: NDArray[np.int64]
    """[num_served]."""
    totals: dict[str, float]
    """`bytes_read`, `requests`, `wall_seconds`, `cpu_seconds`."""

    @property
    def batches(self) -> int:
        """Trained so far."""
        return len(self.losses)


def read_run(folder: str, dataset: Dataset) -> Run:
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
            f"{dataset.manifest.fingerprint[:12]}. Make the page of the run's own dataset."
        )
    return Run(
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


def served_shares(run: Run, levels: Sequence[MapLevel], depth: int, arity: int) -> TaskShares | None:
    """What a run was served, as shares of the nodes of the map's deepest level; None where nothing is known."""
    total = int(run.served_windows.sum())
    if not total:
        return None
    deepest = levels[-1]
    own = run.served_leaves // arity ** (depth - deepest.level)
    at = np.minimum(np.searchsorted(deepest.nodes, own), len(deepest.nodes) - 1)
    present = deepest.nodes[at] == own
    shares = sums(at[present], run.served_windows[present] / total, len(deepest.nodes))
    return TaskShares(name=f"served to {run.name}", level=deepest.level, shares=shares, missing=1 - float(shares.sum()))


def run_section(runs: Sequence[Run], served: Sequence[TaskShares | None], tree: Tree) -> str:
    """Curves of all runs, a table of what they came to, and what each was served."""
    curves = _curves("Training loss", "Loss on each run's own mixture in nats per token; faint: every batch.", runs, 0)
    curves += _curves("Held-out perplexity", "Measured during training, as the recipe asked.", runs, 1)
    rows = "\n".join(_row(run) for run in runs)
    mixtures = "\n".join(_served_card(n, task, tree) for n, task in enumerate(served) if task is not None)
    cards = f'<h3>Mixture served so far</h3>\n<div class="cards">{mixtures}</div>' if mixtures else ""
    return f"""<section aria-labelledby="runs">
<h2 id="runs">Training runs</h2>
{curves}
<div class="scroll"><table class="stack">
<caption>Mixture error: total variation between the cluster proportions asked for and those served; 0 is exact.
</caption>
<thead><tr><th scope="col">Run</th><th scope="col">State</th><th scope="col" class="number">Batches</th>
<th scope="col" class="number">Tokens</th><th scope="col" class="number">Last loss</th>
<th scope="col" class="number">Mixture error</th><th scope="col" class="number">Read</th>
<th scope="col" class="number">Time</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
{cards}
</section>"""


def _curves(title: str, caption: str, runs: Sequence[Run], which: int) -> str:
    """A chart of losses (0) or held-out perplexities (1) of the runs that have at least two."""
    drawn = [(n, np.asarray(run.held_out if which else run.losses, np.float64)) for n, run in enumerate(runs)]
    drawn = [(n, points[np.isfinite(points).all(axis=1)]) for n, points in drawn if len(points) > 1]
    drawn = [(n, points) for n, points in drawn if len(points) > 1]
    if not drawn:
        return ""
    curves = [] if which else [Curve(points=thinned(p), kind=f"raw colour{n % NUM_COLOURS}") for n, p in drawn]
    curves += [
        Curve(points=thinned(p if which else smoothed(p)), kind=f"curve colour{n % NUM_COLOURS}") for n, p in drawn
    ]
    every = np.concatenate([points for _, points in drawn])
    ends = "; ".join(f"{visible(runs[n].name)} {points[-1, 1]:.3g}" for n, points in drawn)
    y = linear_axis(every[:, 1], count=5, margin=0.04)
    charts = [
        line_chart(
            curves,
            linear_axis([0.0, every[:, 0].max()], count=4 if width < 500 else 8, label="batch"),
            y,
            width=width,
            height=height,
            described=described,
        )
        for width, height, described in ((760, 300, f"{title} by batch; at the end: {ends}."), (360, 260, ""))
    ]
    return f"""<figure>
<h3>{title}</h3>
<figcaption>{caption}</figcaption>
{legend([(n, visible(runs[n].name)) for n, _ in drawn])}
{"".join(charts)}
</figure>
"""


def _row(run: Run) -> str:
    record = run.record
    state = "finished" if record else f"running: as of its checkpoint at batch {run.batches:,}"
    tokens = f"{int(record['tokens']):,}" if isinstance(record.get("tokens"), int) else "-"
    error = record.get("mixture_error")
    cells = [
        ("batches", f"{run.batches:,}"),
        ("tokens", tokens),
        ("last loss", f"{smoothed(run.losses)[-1, 1]:.3f}" if run.losses else "-"),
        ("mixture error", f"{error:.4f}" if isinstance(error, float) else "-"),
        ("read", format_bytes(run.totals["bytes_read"])),
        ("time", f"{run.totals['wall_seconds']:,.0f} s"),
    ]
    rest = "".join(f'<td class="number" data-label="{label}">{value}</td>' for label, value in cells)
    return (
        f'<tr><th scope="row"><bdi>{escape(visible(run.name))}</bdi></th><td data-label="state">{state}</td>{rest}</tr>'
    )


def _served_card(number: int, task: TaskShares, tree: Tree) -> str:
    """The level-1 clusters that a run was served most, against the corpus."""
    first = tree.levels[0]
    above = tree.levels[task.level - 1].nodes // np.uint32(tree.arity ** (task.level - 1))
    shares = sums(np.searchsorted(first.nodes, above), task.shares, len(first.nodes))
    top = np.argsort(-shares, kind="stable")[:_TOP_NODES]
    top = top[shares[top] > 0]
    most = max(float(shares[top].max(initial=0)), float(first.shares[top].max(initial=0)), 1e-9)
    rows = "\n".join(
        f"<li>{node_button(tree, 1, int(first.nodes[row]))}"
        f"{meter(float(shares[row]) / most, float(first.shares[row]) / most)}"
        f'<span class="figures">{shares[row]:.1%}, corpus {first.shares[row]:.1%}</span></li>'
        for row in top
    )
    return f"""<article class="card colour{number % NUM_COLOURS}">
<h4><span class="dot" aria-hidden="true"></span><bdi>{escape(visible(task.name))}</bdi></h4>
<ol class="top">
{rows}
</ol>
</article>"""
