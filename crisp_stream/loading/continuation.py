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
from crisp_stream.format.sources import Sources
from crisp_stream.histograms.component import Component
from crisp_stream.histograms.mixture import Mixture, Part
from crisp_stream.histograms.phase import Phase
from crisp_stream.histograms.window_selection import is_of_selection
from crisp_stream.loading.stream import pack_histogram, unpack_histogram

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.mixture import Data
    from crisp_stream.histograms.window_selection import WindowSelection


_KEPT_NODES = 1 << 17
"""Nodes of all histograms that a state holds, those of the last phases; it holds the last one in any case."""
_FINGERPRINT = "sha256:"


class PhaseRecords:
    """The phases of one mixture over its sources, as a state keeps them."""

    def __init__(self, mixture: Mixture, sources: Sources) -> None:
        self._mixture, self._sources = mixture, sources
        self._encoded: dict[tuple[int, bool], list[dict[str, Any]]] = {}

    def before(self, position: int) -> list[dict[str, Any]]:
        """Describe the phases begun before a position of the first pass, in values that JSON can hold.

        Each has `first_sample`, `draw` and `components`. A component has `share`; `source`, the fingerprint of its
        dataset; `histogram`, of all but the last few phases only the fingerprint; and `windows`, the fingerprint of a
        window selection, where there is one.
        """
        ends = np.cumsum([phase.samples or position for phase in self._mixture.phases])
        begun = self._mixture.phases[: int(np.searchsorted(ends, position)) + 1] if position else ()
        nodes = [sum(len(each.histogram.nodes) for each in phase.components) for phase in begun]
        nodes_to_the_last = np.cumsum(nodes[::-1])[::-1]
        records, first_sample = [], 0
        for index, phase in enumerate(begun):
            whole = index == len(begun) - 1 or bool(nodes_to_the_last[index] <= _KEPT_NODES)
            components = self._components(index, whole=whole)
            records.append({"first_sample": first_sample, "draw": self._mixture.draw, "components": components})
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

    def _components(self, index: int, *, whole: bool) -> list[dict[str, Any]]:
        """Components of a phase; with texts of their histograms, or with fingerprints alone."""
        if (index, whole) not in self._encoded:
            self._encoded.pop((index, not whole), None)
            self._encoded[index, whole] = [
                {
                    "share": part.share,
                    "source": self._sources.datasets[part.source].manifest.fingerprint,
                    **self._drawn(part, whole=whole),
                }
                for part in self._mixture.parts_of_phase(index, self._sources)
            ]
        return self._encoded[index, whole]

    @staticmethod
    def _drawn(part: Part, *, whole: bool) -> dict[str, Any]:
        windows = part.component.windows
        if windows is not None and is_of_selection(part.histogram, windows):
            return {"histogram": "", "windows": windows.fingerprint}
        text = pack_histogram(part.histogram) if whole else _FINGERPRINT + part.histogram.fingerprint
        return {"histogram": text} if windows is None else {"histogram": text, "windows": windows.fingerprint}


def phases_of_state(
    state: dict[str, Any], data: Data, *, until: int, selections: Sequence[WindowSelection] = ()
) -> list[Phase]:
    """Make the phases that a state was served by, the last one ended at a sample.

    Args:
        state: from `MixtureDataset.state_dict(num_samples)`.
        data: the sources it belongs to, perhaps with others.
        until: position at which the last of them ends, at most the state's.
        selections: those that phases were drawn from: a state holds just their fingerprints.

    Raises:
        ResumeError: the state does not say, is damaged, or was drawn from other selections or sources.
    """
    sources = Sources.of(data)
    by_fingerprint = {selection.fingerprint: selection for selection in selections}
    records = [record for record in _saved_phases(state) if record["first_sample"] < until]
    phases = []
    for number, record in enumerate(records, 1):
        end = until if number == len(records) else records[number]["first_sample"]
        components = [_component(saved, sources, by_fingerprint, number) for saved in record["components"]]
        phases.append(Phase(components, end - record["first_sample"]))
    used = {saved.get("windows") for record in records for saved in record["components"]}
    for unused in by_fingerprint.keys() - used:
        raise ResumeError(
            f"cannot continue: no phase up to sample {until:,} was drawn from the window selection {unused[:12]}. "
            "Leave it out, or use another checkpoint."
        )
    return phases


def _component(
    saved: dict[str, Any], sources: Sources, selections: Mapping[str, WindowSelection], number: int
) -> Component:
    """A component of the phase with this number. Raises ResumeError as `phases_of_state`."""
    selection = _selection_of(saved, selections, number)
    fingerprints = [dataset.manifest.fingerprint for dataset in sources.datasets]
    if saved["source"] not in fingerprints:
        raise ResumeError(
            f"cannot continue: phase {number} was drawn from dataset {saved['source'][:12]}, which is not among the "
            "sources. Name it."
        )
    at = fingerprints.index(saved["source"])
    dataset, text = sources.datasets[at], str(saved["histogram"])
    if text.startswith(_FINGERPRINT):
        raise ResumeError(
            f"cannot continue: a state holds the histograms of the last phases alone, and phase {number} is before "
            "them. Name each phase with its own file (histogram: FILE, with until)."
        )
    try:
        if not text and selection is not None:
            histogram = selection.histogram(dataset)
        else:
            histogram = unpack_histogram(text, dataset)
        return Component(histogram, share=saved["share"], source=sources.names[at], windows=selection)
    except (TypeError, ValueError) as error:
        raise ResumeError(f"the saved phase {number} is damaged ({error}). Use another checkpoint.") from error


def _selection_of(
    saved: dict[str, Any], selections: Mapping[str, WindowSelection], number: int
) -> WindowSelection | None:
    """The selection that a saved component was drawn from; None: from all windows.

    Raises:
        ResumeError: it is not among `selections`, which are by fingerprint.
    """
    windows = saved.get("windows")
    if windows is None:
        return None
    if windows not in selections:
        named = f"; named: {', '.join(other[:12] for other in selections)}" if selections else ""
        raise ResumeError(
            f"cannot continue: phase {number} was drawn from the window selection {windows[:12]}, of which a "
            f"checkpoint holds no more than that{named}. Name its file: in a recipe mixture.phases.0.windows=FILE "
            "beside histogram: checkpoint. Where there are several, name each phase with its own (windows: FILE, with "
            "until)."
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


def check_identity(state: dict[str, Any], identity: dict[str, Any], sources: Sources) -> None:
    """Refuse the state of other sources, of another mixture, seed, …

    Args:
        state: the saved state.
        identity: the entries that must be equal in it (None: not there).
        sources: those that are to go on.

    Raises:
        ResumeError: names each part that differs, and what to do.
    """
    saved, current = source_fingerprints(state), source_fingerprints(identity)
    names = saved if list(saved) == list(current) else {**saved, **current}
    changed = [(key, state.get(key), now) for key, now in identity.items() if key not in _SOURCES]
    changed += [(_named(name), saved.get(name), current.get(name)) for name in names]
    _refuse([each for each in changed if each[1] != each[2]], saved, sources)


def check_begun(state: dict[str, Any], identity: dict[str, Any], sources: Sources) -> None:
    """Refuse a state that another mixture cannot go on from: its sources must be the first of these, in their order.

    Arguments and errors as of `check_identity`.
    """
    saved = source_fingerprints(state)
    current = [dataset.manifest.fingerprint for dataset in sources.datasets]
    found = [*current, *[None] * len(saved)]
    changed = [(key, state.get(key), identity.get(key)) for key in ("order_version", "seed")]
    changed += [(_named(name), then, now) for (name, then), now in zip(saved.items(), found, strict=False)]
    _refuse([each for each in changed if each[1] != each[2]], saved, sources)


_SOURCES = ("dataset", "sources")


def source_fingerprints(identity: dict[str, Any]) -> dict[str, Any]:
    """Fingerprints of datasets by the names of the sources, from what a state says of them; of one without a name by
    the name ``."""
    saved = identity.get("sources")
    return dict(saved) if isinstance(saved, dict) else {"": identity.get("dataset")}


def _named(source: str) -> str:
    return f"source {source}" if source else "dataset"


def _refuse(changed: Sequence[tuple[str, Any, Any]], saved: dict[str, Any], sources: Sources) -> None:
    if not changed:
        return
    parts = "; ".join(f"{key} was {str(then)[:12]}, is {str(now)[:12]}" for key, then, now in changed)
    grown = [grown_remedy(then, dataset, name) for then, (name, dataset) in zip(saved.values(), sources, strict=False)]
    remedy = next((each for each in grown if each), "Resume with what the checkpoint was trained with")
    raise ResumeError(f"cannot resume: {parts}. {remedy}, or start a new run from its weights (load_weights_only).")


def grown_remedy(trained_on: Any, dataset: Dataset, source: str = "") -> str | None:
    """Say how to continue on another generation of a dataset, by its fingerprint; None where it is not there."""
    generation = dataset.generation_with(trained_on) if isinstance(trained_on, str) else None
    if generation is None:
        return None
    return (
        f"The checkpoint was trained on generation {generation} of {dataset.root}, which has grown: continue "
        f"it exactly with open_dataset(root, generation={generation}) (in a recipe "
        f"data.{f'sources.{source}.' if source else ''}generation={generation})"
    )


_REMEDY = "Up to the checkpoint the phases must be those it was trained with (in a recipe: histogram: checkpoint)."


def _saved_phases(state: dict[str, Any]) -> Sequence[dict[str, Any]]:
    saved = state.get("phases")
    if not isinstance(saved, list) or any("components" not in record for record in saved):
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
    before, after = then["components"], now["components"]
    if len(before) != len(after):
        return f"had {len(before)} components, now {len(after)}"
    for number, (old, new) in enumerate(zip(before, after, strict=True), 1):
        of = f" in component {number}" if len(before) > 1 else ""
        if old["source"] != new["source"]:
            return f"was drawn from dataset {old['source'][:12]}{of}, now from {new['source'][:12]}"
        if old.get("windows") != new.get("windows"):
            return f"was drawn from {_selection(old)}{of}, now from {_selection(new)}"
        if old["histogram"] != new["histogram"]:
            return f"was drawn by another histogram{of}"
        if old["share"] != new["share"]:
            return f"had a share of {old['share']:g}{of}, now {new['share']:g}"
    return f"had {then['draw']} draws, now {now['draw']}"


def _selection(saved: dict[str, Any]) -> str:
    windows = saved.get("windows")
    return "all windows" if windows is None else f"the window selection {windows[:12]}"
