"""The report of a finished run: its recipe, the mixture that was served, cost and losses.

`run.json` holds it beside the checkpoints, `losses.csv` every step, `cluster_losses.csv` the loss of every level-1
cluster by interval. Each appears complete or not at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream import digits
from crisp_stream.config.components import CHECKPOINT, ComponentRecipe
from crisp_stream.format.sources import Sources
from crisp_stream.models.component_account import COMPONENT_HEAD, COMPONENT_NOTE, components_gave
from crisp_stream.models.training_record import last_loss, last_loss_in_words
from crisp_stream.storage.store import open_store
from crisp_stream.table import NONE, Table, aligned, format_bytes
from crisp_stream.training.callbacks.served import samples_per_phase, total_variation

if TYPE_CHECKING:
    from crisp_stream.training.callbacks.account import RunAccount
    from crisp_stream.training.callbacks.components import ComponentAccount
    from crisp_stream.training.callbacks.monitor import RunMonitor
    from crisp_stream.training.prepare import PreparedRun

_TOP_LEAVES = 10


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """The report of a run, over all its ranks and resumed parts."""

    run_name: str
    recipe: dict[str, Any]
    """The recipe, overrides included."""

    dataset: str
    """Root of the dataset; of several the first source."""

    dataset_fingerprint: str
    sources: dict[str, dict[str, Any]] | None = None
    """Root, fingerprint and windows served of each source by its name; None where one dataset has no name."""

    mixture_fingerprint: str
    phases: list[dict[str, Any]]
    """A row for each phase: first batch, samples, mixture error, leaves with mass, effective leaves (exp of the
    entropy), top leaves; where it has several components, or sources are named, what each component gave."""

    num_parameters: int
    batches: int
    samples: int
    """Windows served."""

    tokens: int
    """Window tokens served, padding included."""

    losses: list[float]
    """[batches], mean loss of each global batch in nats per predicted token."""

    final_loss: float
    """Last loss, as `last_loss` defines it: the mean of the last tenth of the batches."""

    mixture_error: float
    """Total variation between the leaf frequencies of the mixture and those served, in [0, 1]."""

    repeated_share: float
    """Share of the samples whose window had been served before in this run."""

    bytes_read: int
    """Bytes read from storage by all ranks."""

    requests: int
    """Requests to storage by all ranks."""

    wall_seconds: float
    """Seconds inside the training loop."""

    cpu_seconds: float
    """CPU seconds of all ranks."""

    data_wait_share: float
    """Share of the training time that the slowest rank of each batch waited for the loader."""

    interrupted_at: int | None
    """Batch after which a signal ended the run before its time."""

    interrupted_by: str | None
    """Name of that signal: SIGTERM or SIGINT."""

    resumed_at: int | None
    """Batch at which this process took over an interrupted run."""

    held_out: list[tuple[int, float]]
    """(batch, perplexity) measured during the run."""

    questions: list[tuple[int, str, float, float]]
    """(batch, question set, acc, acc_norm) measured during the run."""

    checkpoint: str | None
    """Newest checkpoint."""

    def table(self) -> str:
        """The main numbers as lines of text."""
        rows: dict[str, str] = {
            "run": self.run_name,
            "parameters": f"{self.num_parameters:,}",
            "batches": f"{self.batches:,}",
            "tokens": f"{self.tokens:,}",
            "training loss": self._loss_in_words() if self.losses else NONE,
            "mixture error": f"{digits.mixture_error(self.mixture_error)} "
            f"(total variation over {self.samples:,} windows)",
            "repeated": f"{digits.share(self.repeated_share)} of the windows served had been served before",
            "read": f"{format_bytes(self.bytes_read)} in {self.requests:,} requests",
            "time": f"{digits.seconds(self.wall_seconds)} wall, {self.data_wait_share:.1%} of it waiting for data; "
            f"{digits.seconds(self.cpu_seconds)} CPU",
            "checkpoint": self.checkpoint or "none saved",
        }
        if self.interrupted_by is not None:
            rows["interrupted"] = f"by {self.interrupted_by} after batch {self.interrupted_at:,}"
        if self.held_out:
            rows["held-out perplexity"] = ", ".join(
                f"{digits.perplexity(value)} at batch {batch:,}" for batch, value in self.held_out[-3:]
            )
            rows["held-out perplexity"] += f" ({digits.JUDGED})"
        for _, name, acc, acc_norm in [row for row in self.questions if row[0] == self.questions[-1][0]]:
            rows[name] = f"acc {acc:.3f}, acc_norm {acc_norm:.3f} at batch {self.questions[-1][0]:,} ({digits.JUDGED})"
        components = _component_table(self.phases)
        return aligned(list(rows.items())) + (f"\n\n{components.text()}" if components is not None else "")

    def _loss_in_words(self) -> str:
        """First and last loss, with what they are."""
        return (
            f"{digits.loss(self.losses[0])} in the first batch, last loss {digits.loss(self.final_loss)} "
            f"({last_loss_in_words(self.batches)}, in {self.recipe['precision']})"
        )


def make_report(
    run: PreparedRun,
    *,
    account: RunAccount,
    monitor: RunMonitor,
    num_parameters: int,
    held_out: list[tuple[int, float]],
    questions: list[tuple[int, str, float, float]],
    interrupted_by: str | None,
    checkpoint: str | None,
) -> TrainReport:
    """Bring together the mixture of the recipe and the counts of the run."""
    recipe, sources, mixture = run.recipe, run.sources, run.mixture
    batches = len(account.losses)
    samples = int(account.served_per_leaf.sum())
    proportions = mixture.leaf_proportions(sources)
    served = samples_per_phase(mixture, account.start.position, samples)
    wanted = sum(count * shares for count, shares in zip(served, proportions, strict=True)) / max(samples, 1)
    totals = account.totals
    return TrainReport(
        run_name=recipe.run_name,
        recipe=dataclasses.asdict(recipe),
        dataset=run.dataset.root,
        dataset_fingerprint=run.dataset.manifest.fingerprint,
        sources=_sources(sources, account) if sources.is_named else None,
        mixture_fingerprint=mixture.fingerprint,
        phases=_phase_rows(run, proportions, served, monitor, first_batch=account.start.batch + 1),
        num_parameters=num_parameters,
        batches=batches,
        samples=samples,
        tokens=samples * run.dataset.manifest.window_tokens,
        losses=list(account.losses),
        final_loss=last_loss(account.losses),
        mixture_error=total_variation(account.served_per_leaf, np.asarray(wanted)),
        repeated_share=monitor.repeated_share,
        bytes_read=int(totals["bytes_read"]),
        requests=int(totals["requests"]),
        wall_seconds=totals["wall_seconds"],
        cpu_seconds=totals["cpu_seconds"],
        data_wait_share=monitor.data_wait_share,
        interrupted_at=None if interrupted_by is None else account.start.batch + batches,
        interrupted_by=interrupted_by,
        resumed_at=account.resumed_at,
        held_out=list(held_out),
        questions=list(questions),
        checkpoint=checkpoint,
    )


def save_report(report: TrainReport, account: RunAccount, monitor: RunMonitor, folder: str) -> None:
    """Write `run.json`, `losses.csv` and, if kept, `cluster_losses.csv` and `windows.csv` into a run's `save_folder`.

    Raises:
        StorageError: the storage refused or failed.
    """
    store = open_store(folder)
    rows = zip(account.losses, account.learning_rates, strict=True)
    first = account.start.batch + 1
    lines = [f"{batch},{loss!r},{rate!r}" for batch, (loss, rate) in enumerate(rows, start=first)]
    store.put("losses.csv", "\n".join(["batch,loss,learning_rate", *lines, ""]).encode())
    if monitor.cluster_losses is not None:
        store.put("cluster_losses.csv", monitor.cluster_losses.csv(account.start.batch + report.batches).encode())
    if account.windows_per_batch is not None:
        ids = (" ".join(_window_names(windows, account.sources)) for windows in account.windows_per_batch)
        numbered = [f"{batch},{windows}" for batch, windows in enumerate(ids, start=first)]
        store.put("windows.csv", "\n".join(["batch,windows", *numbered, ""]).encode())
    record = dataclasses.asdict(report)
    del record["losses"]
    if report.sources is None:
        del record["sources"]
    store.put("run.json", (json.dumps(record, indent=2) + "\n").encode())


def _window_names(windows: list[int], sources: Sources) -> list[str]:
    """Window ids of a batch as text; `corpus:12` of named sources."""
    if not sources.is_named:
        return [str(window) for window in windows]
    source, own = sources.split(np.array(windows, np.int64))
    return [f"{sources.names[name]}:{window}" for name, window in zip(source.tolist(), own.tolist(), strict=True)]


def _sources(sources: Sources, account: RunAccount) -> dict[str, dict[str, Any]]:
    served = np.split(account.served_per_leaf, sources.first_rows[1:-1])
    return {
        name: {"root": dataset.root, "fingerprint": dataset.manifest.fingerprint, "samples": int(windows.sum())}
        for (name, dataset), windows in zip(sources, served, strict=True)
    }


def _phase_rows(
    run: PreparedRun,
    proportions: list[NDArray[np.float64]],
    served: list[int],
    monitor: RunMonitor,
    *,
    first_batch: int,
) -> list[dict[str, Any]]:
    rows, start = [], 0
    errors = monitor.phase_errors
    sources = run.sources
    for index, (phase, shares, samples) in enumerate(zip(run.phases, proportions, served, strict=True)):
        mass = shares[shares > 0]
        top = np.argsort(-shares, kind="stable")[:_TOP_LEAVES]
        top = top[shares[top] > 0]
        leaves, source = sources.leaves_of(top)
        named = [{"source": sources.names[at]} if sources.is_named else {} for at in source.tolist()]
        row: dict[str, Any] = {
            "histogram": phase.recipe.source if phase.recipe.has_one_file else phase.summary,
            "first_batch": start // run.recipe.global_train_batch_size + first_batch,
            "samples": samples,
            "mixture_error": errors.get(index),
            "leaves": len(mass),
            "effective_leaves": float(np.exp(-(mass * np.log(mass)).sum())),
            "top_leaves": [
                {**of_source, "leaf": int(leaf), "proportion": float(shares[row])}
                for of_source, leaf, row in zip(named, leaves.tolist(), top.tolist(), strict=True)
            ],
        }
        if monitor.components is not None:
            row["recipe_phase"] = phase.index
            parts = [None] * len(phase.phase.components) if phase.parts is None else list(phase.parts)
            row["components"] = _component_rows(run, index, samples, monitor.components, parts)
        rows.append(row)
        start += samples
    return rows


def _component_rows(
    run: PreparedRun, index: int, samples: int, account: ComponentAccount, written: Sequence[ComponentRecipe | None]
) -> list[dict[str, Any]]:
    """What each component of a phase was asked for, and what it gave in the samples of this run."""
    parts, counts = run.mixture.parts_of_phase(index, run.sources), account.of_phase(index)
    if len(parts) == 1:  # also where a checkpoint was served by it that kept no such account
        counts = [dataclasses.replace(counts[0], windows=float(samples))]
    total = sum(each.windows for each in counts)
    rows: list[dict[str, Any]] = []
    for number, (part, gave, keys) in enumerate(zip(parts, counts, written, strict=True)):
        proportions = run.mixture.proportions_of_part(part, index, number, run.sources)
        windows = int(part.counts.windows[proportions > 0].sum())
        rows.append(
            {
                "source": run.sources.names[part.source] or None,
                "drawn_by": CHECKPOINT if keys is None else keys.summary,
                "share": part.share,
                "served": gave.windows,
                "served_share": gave.windows / total if total else None,
                "windows": windows,
                "repeats": gave.windows / windows,
                "max_repeats": part.component.max_repeats,
                "tokens": gave.tokens,
                "loss": gave.loss,
            }
        )
    return rows


def _component_table(phases: list[dict[str, Any]]) -> Table | None:
    """What each component of each phase of the recipe gave; None where no phase tells of components."""
    gave = components_gave(phases)
    rows = [each.cells for each in gave]
    return Table(head=COMPONENT_HEAD, rows=rows, words=(1, 2), notes=[COMPONENT_NOTE]) if gave else None
