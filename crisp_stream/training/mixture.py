"""The mixture of a run: the phases of a recipe, with the histograms, selections and sources that they name.

Phases and the steps of a schedule have lengths in whole global batches, so that the mixture changes between steps of
the optimiser. They end within whole blocks, so that any other run can go on from any of their checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crisp_stream.config.components import CHECKPOINT, ComponentRecipe
from crisp_stream.config.durations import batches_of
from crisp_stream.config.recipe import Recipe
from crisp_stream.config.sections import PhaseRecipe
from crisp_stream.errors import RecipeError
from crisp_stream.format.sources import Sources
from crisp_stream.histograms.component import Component
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.histograms.phase import Phase, scheduled
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.storage.store import file_name
from crisp_stream.training.start import RunStart

if TYPE_CHECKING:
    from crisp_stream.histograms.mixture import Data


@dataclass(frozen=True, kw_only=True)
class RecipePhase:
    """A phase of a run, with what the recipe says of it."""

    phase: Phase
    index: int
    """Number of the recipe's phase that it is, from 0; the steps of a schedule have one."""
    recipe: PhaseRecipe
    """The phase of the recipe that it is, or a step of, or that stands for it (`histogram: checkpoint`)."""
    parts: tuple[ComponentRecipe, ...] | None
    """For each component its keys in the recipe; None where a checkpoint was served by it."""

    @property
    def summary(self) -> str:
        """Its components in a line: `0.95 corpus: task.parquet + 0.05 task: base`."""
        if self.parts is None:
            return CHECKPOINT
        named = [f"{part.source}: {part.summary}" if part.source else part.summary for part in self.parts]
        if len(named) == 1:
            return named[0]
        shares = [component.share for component in self.phase.components]
        return " + ".join(f"{share:.3g} {name}" for share, name in zip(shares, named, strict=True))


def build_mixture(
    recipe: Recipe, data: Data, *, start: RunStart | None = None, before: Sequence[Phase] = ()
) -> Mixture:
    """Make the mixture of a recipe. Arguments and errors as of `build_phases`."""
    built = build_phases(recipe, data, start=start, before=before)
    return Mixture([each.phase for each in built], draw=recipe.mixture.draw)


def build_phases(
    recipe: Recipe, data: Data, *, start: RunStart | None = None, before: Sequence[Phase] = ()
) -> list[RecipePhase]:
    """Make the recipe's phases.

    Args:
        recipe: all phases but `histogram: checkpoint` are made by it.
        data: the dataset, or the sources, of the recipe.
        start: counts at which the run began; 0 when None.
        before: the phases for which `histogram: checkpoint` stands.

    Raises:
        RecipeError: phases that do not fit into the run.
        InputError, FormatError: a histogram or a window selection that is not there, or is of another tree or dataset;
            clusters beyond `max_repeats`.
    """
    sources, start = Sources.of(data), start or RunStart()
    batch = recipe.global_train_batch_size
    tokens_per_batch = batch * sources.manifest.window_tokens
    num_batches = batches_of(recipe.max_duration, tokens_per_batch=tokens_per_batch)
    _check_order_known(recipe, start)
    # Without them, and where the order of samples goes on, the phases count from the beginning of what is continued.
    counts_from_start = recipe.from_checkpoint or start.samples > start.position
    begun = start.batch if counts_from_start else 0
    built = [RecipePhase(phase=phase, index=0, recipe=recipe.mixture.phases[0], parts=None) for phase in before]
    for index, phase in enumerate(recipe.mixture.phases):
        if phase.is_checkpoint:
            continue
        key = f"mixture.phases.{index}"
        components = _components(phase.parts, sources, f"{key}.components" if phase.components else None, phase_key=key)
        last, until = index == len(recipe.mixture.phases) - 1, num_batches
        if phase.until is not None:
            until = batches_of(phase.until, tokens_per_batch=tokens_per_batch, run_batches=num_batches)
        _check_until(until, key, begun=begun, num_batches=num_batches, last=last)
        until = min(until, num_batches)
        if phase.schedule is not None:
            steps = _scheduled(phase, components, until - begun, sources, key)
            for step, parts in steps:
                made = Phase(step.components, (step.samples or 0) * batch)
                built.append(RecipePhase(phase=made, index=index, recipe=phase, parts=parts))
        else:
            made = Phase(components, (until - begun) * batch)
            made = _open_ended(made, [each.phase for each in built], sources) if last else made
            built.append(RecipePhase(phase=made, index=index, recipe=phase, parts=phase.parts))
        begun = until
    return built


def _check_until(until: int, key: str, *, begun: int, num_batches: int, last: bool) -> None:
    """Raise RecipeError where a phase cannot end at batch `until`."""
    if last and until < num_batches:
        raise RecipeError(
            f"`{key}.until` is batch {until}, but the run has {num_batches}. Drop `until` from the last phase."
        )
    if not last and not begun < until < num_batches:
        raise RecipeError(
            f"`{key}.until` is batch {until}; it must lie after batch {begun}, where the phase starts, and before "
            f"batch {num_batches}, where the run ends."
        )


def _open_ended(limited: Phase, before: Sequence[Phase], sources: Sources) -> Phase:
    """The last phase, left open so that a finished run can be lengthened; where it caps, it has its length.

    Raises:
        InputError: clusters beyond `max_repeats` in the run as long as it is now.
    """
    if any(component.on_excess == "cap" for component in limited.components):
        return limited
    if any(component.max_repeats is not None for component in limited.components):
        Mixture([*before, limited]).parts_of_phase(len(before), sources)
    return Phase([dataclasses.replace(component, max_repeats=None) for component in limited.components])


def _scheduled(
    phase: PhaseRecipe, begin: list[Component], batches: int, sources: Sources, key: str
) -> list[tuple[Phase, tuple[ComponentRecipe, ...]]]:
    """The steps of a schedule, with lengths in batches, and for each component of a step its keys in the recipe.

    Raises:
        RecipeError: more steps than batches.
    """
    schedule = phase.schedule
    assert schedule is not None
    if schedule.steps > batches:
        raise RecipeError(
            f"`{key}.schedule.steps` is {schedule.steps}, but the phase has {batches:,} batches, and each step takes "
            "at least one. Use fewer steps, or a longer phase."
        )
    end = _components(schedule.to, sources, f"{key}.schedule.to", phase_key=key)
    written: dict[str, ComponentRecipe] = {}
    for component, part in zip([*begin, *end], [*phase.parts, *schedule.to], strict=True):
        written.setdefault(component.drawn_by, part)
    return [
        (step, tuple(written[component.drawn_by] for component in step.components))
        for step in scheduled(begin, end, batches, schedule.steps, shape=schedule.shape)
    ]


def _components(
    parts: Sequence[ComponentRecipe], sources: Sources, key: str | None, *, phase_key: str
) -> list[Component]:
    """Args:
    parts: components of the recipe.
    sources: what they draw from.
    key: of their list in the recipe; None: the phase is the only component.
    phase_key: of the phase.
    """
    keys = [phase_key if key is None else f"{key}.{number}" for number in range(len(parts))]
    return [_component(part, sources, its_key) for part, its_key in zip(parts, keys, strict=True)]


def _component(part: ComponentRecipe, sources: Sources, key: str) -> Component:
    """A component, drawn by the histograms and the window selection that the recipe names."""
    name = part.source or ""
    dataset = sources.datasets[sources.index(name, what=f"`{key}`")]
    windows = None if part.windows is None else WindowSelection.load(part.windows)
    if windows is not None:
        generation = f"data.sources.{name}.generation" if name else "data.generation"
        what = f"`{key}.windows` ({file_name(str(part.windows))}): the window selection"
        windows.check_dataset(dataset, what=what, key=generation)
    options: dict[str, Any] = {
        "share": part.share,
        "source": name,
        "max_repeats": part.max_repeats,
        "on_excess": part.on_excess,
    }
    if windows is not None and part.histogram is None:
        return Component.of_windows(windows, dataset, **options)
    paths = part.histograms
    if paths == ("base",):
        return Component(Histogram.base(dataset.manifest), windows=windows, **options)
    if "base" in paths:
        raise RecipeError(
            "`base` cannot be averaged with histograms of a level. Use phases or components, or `crisp-stream average`."
        )
    histograms = [Histogram.load(path) for path in paths]
    histogram = histograms[0] if len(histograms) == 1 else Histogram.average(histograms)
    return Component(histogram, windows=windows, **options)


def _check_order_known(recipe: Recipe, start: RunStart) -> None:
    """Raises RecipeError: the order of samples goes on from a checkpoint, but the phases do not say what was served."""
    if start.position > start.samples and not recipe.from_checkpoint:
        raise RecipeError(
            "the schedule starts afresh and the order of samples goes on, so the first of `mixture.phases` must be "
            "`histogram: checkpoint` (with `windows: FILE`, if that was drawn from a selection). Or start the data "
            "afresh, too: load_restart=[schedule, data]"
        )
