"""Continued pretraining: another mixture goes on where a checkpoint's mixture stood, with its cursors.

A state says which phases were begun before its position: where, in which blocks, by which histogram. A mixture may go
on from there if its phases up to there are the same, because then every position before has the same window, and
no window comes again before its leaf is exhausted. The alternative, cursors saved for each leaf, is as long as the
table of leaves and would tie a checkpoint to one way of counting them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crisp_stream.errors import ResumeError
from crisp_stream.histograms.mixture import Mixture, Phase
from crisp_stream.loading.stream import pack_histogram, unpack_histogram

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.window_selection import WindowSelection


_KEPT_NODES = 1 << 17
"""Nodes of all histograms that a state holds, those of the last phases; it holds the last one in any case."""
_FINGERPRINT = "sha256:"


class PhaseRecords:
    """The phases of one mixture over one dataset, as a state keeps them."""

    def __init__(self, mixture: Mixture, dataset: Dataset) -> None:
        self._mixture, self._dataset = mixture, dataset
        self._encoded: dict[int, str] = {}

    def before(self, position: int) -> list[dict[str, Any]]:
        """Describe the phases begun before a position of the first pass, in values that JSON can hold.

        Each has `first_sample`; `histogram`, of all but the last few only the fingerprint; `draw`; and `windows`, the
        fingerprint of a window selection, where there is one.
        """
        ends = np.cumsum([phase.samples or position for phase in self._mixture.phases])
        begun = self._mixture.phases[: int(np.searchsorted(ends, position)) + 1] if position else ()
        nodes_to_the_last = np.cumsum([len(phase.histogram.nodes) for phase in begun][::-1])[::-1]
        records, first_sample = [], 0
        for index, phase in enumerate(begun):
            record = {"first_sample": first_sample, "histogram": "", "draw": self._mixture.draw}
            if phase.windows is not None:
                record["windows"] = phase.windows.fingerprint
            else:
                whole = index == len(begun) - 1 or nodes_to_the_last[index] <= _KEPT_NODES
                record["histogram"] = self._histogram(index, whole=whole)
            records.append(record)
            first_sample += phase.samples or position
        return records

    def check_continue(self, state: dict[str, Any]) -> None:
        """Raises ResumeError: up to the state's position these phases are not those that it was served by."""
        saved, current = _saved_phases(state), self.before(state["samples"])
        for number, (then, now) in enumerate(zip(saved, current, strict=False), 1):
            if then != now:
                raise ResumeError(f"cannot continue: phase {number} {_difference(then, now)}. {_REMEDY}")
        if len(saved) != len(current):
            raise ResumeError(
                f"cannot continue: phases begun before sample {state['samples']:,}: {len(saved)} in the checkpoint, "
                f"{len(current)} in this mixture. {_REMEDY}"
            )

    def _histogram(self, index: int, *, whole: bool) -> str:
        """Text of a phase's histogram, or its fingerprint alone."""
        text = self._encoded.get(index)
        if text is None or text.startswith(_FINGERPRINT) is whole:
            histogram = self._mixture.histogram_of_phase(index, self._dataset)
            text = self._encoded[index] = pack_histogram(histogram) if whole else _FINGERPRINT + histogram.fingerprint
        return text


def phases_of_state(
    state: dict[str, Any], dataset: Dataset, *, until: int, selections: Sequence[WindowSelection] = ()
) -> list[Phase]:
    """Make the phases that a state was served by, the last one ended at a sample.

    Args:
        state: from `MixtureDataset.state_dict(num_samples)`.
        dataset: the one it belongs to.
        until: position at which the last of them ends, at most the state's.
        selections: those that phases were drawn from: a state holds just their fingerprints.

    Raises:
        ResumeError: the state does not say, is damaged, or was drawn from other selections.
    """
    by_fingerprint = {selection.fingerprint: selection for selection in selections}
    records = [record for record in _saved_phases(state) if record["first_sample"] < until]
    phases = []
    for number, record in enumerate(records, 1):
        selection = _selection_of(record, by_fingerprint, number)
        end = until if number == len(records) else records[number]["first_sample"]
        samples = end - record["first_sample"]
        if selection is not None:
            phases.append(Phase.of_windows(selection, dataset, samples))
            continue
        if str(record["histogram"]).startswith(_FINGERPRINT):
            raise ResumeError(
                f"cannot continue: a state holds the histograms of the last phases alone, and phase {number} is before "
                "them. Name each phase with its own file (histogram: FILE, with until)."
            )
        try:
            histogram = unpack_histogram(record["histogram"], dataset)
        except (TypeError, ValueError) as error:
            raise ResumeError(f"the saved phase {number} is damaged ({error}). Use another checkpoint.") from error
        phases.append(Phase(histogram, samples))
    for unused in by_fingerprint.keys() - {record.get("windows") for record in records}:
        raise ResumeError(
            f"cannot continue: no phase up to sample {until:,} was drawn from the window selection {unused[:12]}. "
            "Leave it out, or use another checkpoint."
        )
    return phases


def _selection_of(
    record: dict[str, Any], selections: Mapping[str, WindowSelection], number: int
) -> WindowSelection | None:
    """The selection that a saved phase was drawn from; None: from all windows.

    Raises:
        ResumeError: it is not among `selections`, which are by fingerprint.
    """
    windows = record.get("windows")
    if windows is None:
        return None
    if windows not in selections:
        named = f"; named: {', '.join(other[:12] for other in selections)}" if selections else ""
        raise ResumeError(
            f"cannot continue: phase {number} was drawn from {_selection(record)}, of which a checkpoint holds no more "
            f"than that{named}. Name its file: in a recipe mixture.phases.0.windows=FILE beside histogram: checkpoint. "
            "Where there are several, name each phase with its own (windows: FILE, with until)."
        )
    return selections[windows]


def check_state(state: dict[str, Any]) -> None:
    """Raises ResumeError: it is no state of a MixtureDataset."""
    numbers = [state.get(key) for key in ("pass", "position", "samples")]
    if any(not isinstance(number, int) or number < 0 for number in numbers):
        raise ResumeError(
            f"not a state of MixtureDataset: pass, position and samples must be integers >= 0, got {numbers}. "
            "States of order version 2 and before cannot be resumed."
        )


def check_identity(state: dict[str, Any], identity: dict[str, Any], dataset: Dataset) -> None:
    """Refuse the state of another dataset, mixture, seed, …

    Args:
        state: the saved state.
        identity: the entries that must be equal in it (None: not there).
        dataset: the one that is to go on.

    Raises:
        ResumeError: names each part that differs, and what to do.
    """
    changed = [(key, state.get(key), now) for key, now in identity.items() if state.get(key) != now]
    if changed:
        parts = "; ".join(f"{key} was {str(then)[:12]}, is {str(now)[:12]}" for key, then, now in changed)
        raise ResumeError(
            f"cannot resume: {parts}. {_remedy(state.get('dataset'), dataset)}, "
            "or start a new run from its weights (load_weights_only)."
        )


def _remedy(trained_on: Any, dataset: Dataset) -> str:
    return grown_remedy(trained_on, dataset) or "Resume with what the checkpoint was trained with"


def grown_remedy(trained_on: Any, dataset: Dataset) -> str | None:
    """Say how to continue on another generation of a dataset, by its fingerprint; None where it is not there."""
    generation = dataset.generation_with(trained_on) if isinstance(trained_on, str) else None
    if generation is None:
        return None
    return (
        f"The checkpoint was trained on generation {generation} of {dataset.root}, which has grown: continue "
        f"it exactly with open_dataset(root, generation={generation}) (in a recipe data.generation={generation})"
    )


_REMEDY = "Up to the checkpoint the phases must be those it was trained with (in a recipe: histogram: checkpoint)."


def _saved_phases(state: dict[str, Any]) -> Sequence[dict[str, Any]]:
    saved = state.get("phases")
    if not isinstance(saved, list):
        raise ResumeError(
            "cannot continue with another mixture: the state does not say by which phases it was served (its mixture "
            "was changed while running, or passed over more than once, or the state is older than this). "
            "Start a new order from its weights."
        )
    return saved


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing in which two phases differ, as the end of a sentence about the phase."""
    if then["first_sample"] != now["first_sample"]:
        return f"began at sample {then['first_sample']:,}, now {now['first_sample']:,}"
    if then.get("windows") != now.get("windows"):
        return f"was drawn from {_selection(then)}, now from {_selection(now)}"
    if then["histogram"] != now["histogram"]:
        return "was drawn by another histogram"
    return f"had {then['draw']} draws, now {now['draw']}"


def _selection(record: dict[str, Any]) -> str:
    windows = record.get("windows")
    return "all windows" if windows is None else f"the window selection {windows[:12]}"
