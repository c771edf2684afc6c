"""Improvement of a model by the distance of examples to the specialist set (CRISP, Figure 7).

The distance of an example is 1 - cos between its embedding and that of the nearest specialist example, by the encoder
of the dataset, of the first window of each text: what a histogram of documents counts first. Nearest neighbours are
exact, by blocks of matrix products: 20,000 texts against 20,000 specialist examples of 384 dimensions take 3.4 s on
one core of a busy machine. Embedding takes far longer, so distances are saved, by the hashes of the examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.figure import blank_figure, save_figure
from crisp_stream.format.parquet import RecordKind, load_record, numbers, save_record
from crisp_stream.results.better import Measure, example_gains
from crisp_stream.results.contaminated import (
    contaminated_columns,
    contaminated_examples,
    contaminated_record,
    names_in_figures,
)
from crisp_stream.results.estimates import Estimate
from crisp_stream.results.pairing import AnyResults, JudgedSet, paired_sets, pairs
from crisp_stream.results.tables import INTERVALS, mean_of, set_notes
from crisp_stream.table import NONE, Table, TableGroup

BAND = (0.25, 0.75)
"""Quantiles of the distances of specialist test examples that the band lies between, as in the paper."""

_RECORD = RecordKind(
    name="distances",
    key=b"crisp_stream.distances",
    version_key="distances_version",
    version=1,
    remedy="`crisp-stream results distance --specialist` writes them.",
)
_BLOCK_ROWS = 4096
_WRITTEN: dict[Measure, str] = {
    "perplexity": "nats/token",
    "bits_per_byte": "bits/byte",
    "probability_of_answer": "nats of the answer",
}


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Distances of examples to a specialist set, in [0, 2]."""

    examples: NDArray[np.uint64]
    """[num_examples], `example_hash` of each example, sorted, each once."""
    distances: NDArray[np.float64]
    """[num_examples]."""
    test_distances: NDArray[np.float64]
    """[num_test_examples], distances of specialist examples kept for testing, sorted; may be empty."""
    facts: dict[str, Any]
    """`encoder`, `dataset` (fingerprint), `specialist_examples`, and file names as `texts`, `specialist`, `test`."""

    def save(self, path: str | Path) -> str:
        """Write one Parquet file. Raises StorageError."""
        of_test = [False] * len(self.examples) + [True] * len(self.test_distances)
        columns = {
            "example": pa.array(np.append(self.examples, np.zeros(len(self.test_distances), np.uint64))),
            "distance": pa.array(np.append(self.distances, self.test_distances)),
            "test": pa.array(of_test, pa.bool_()),
        }
        save_record(path, _RECORD, columns, self.facts)
        return str(path)

    @classmethod
    def load(cls, path: str | Path) -> Distances:
        """Read what `save` wrote. Raises FormatError: it is something else. StorageError: the storage failed."""
        with load_record(path, _RECORD) as record:
            table = record.table()
            of_test = np.array(table["test"].to_pylist(), np.bool_)
            values = numbers(table["distance"], pa.float64())
            return cls(
                examples=numbers(table["example"], pa.uint64())[~of_test],
                distances=values[~of_test],
                test_distances=values[of_test],
                facts=record.facts,
            )

    def of(self, examples: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Look up examples, [num_looked_up]; NaN where one is not known."""
        distances = np.full(len(examples), np.nan)
        if len(self.examples):
            at = np.minimum(np.searchsorted(self.examples, examples), len(self.examples) - 1)
            known = self.examples[at] == examples
            distances[known] = self.distances[at[known]]
        return distances

    @property
    def band(self) -> tuple[float, float] | None:
        """Range of distances of the middle half of the specialist test examples; None without any."""
        if not len(self.test_distances):
            return None
        low, high = np.quantile(self.test_distances, BAND)
        return float(low), float(high)


def nearest_distances(queries: NDArray[np.float32], specialist: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute 1 - cos to the nearest specialist example, exactly.

    Args:
        queries: [num_queries, dim], norm 1.
        specialist: [num_specialist, dim], norm 1, at least one.

    Returns:
        [num_queries], in [0, 2].
    """
    best = np.full(len(queries), -1.0, np.float32)
    for start in range(0, len(queries), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        for first in range(0, len(specialist), _BLOCK_ROWS):
            cosines = queries[block] @ specialist[first : first + _BLOCK_ROWS].T
            np.maximum(best[block], cosines.max(axis=1), out=best[block])
    return np.clip(1.0 - best.astype(np.float64), 0.0, 2.0)


def sorted_once(
    examples: NDArray[np.uint64], distances: NDArray[np.float64]
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Sort examples and keep each once, as `Distances` holds them. Copies have equal distances."""
    once, rows = np.unique(examples, return_index=True)
    return once, distances[rows]


@dataclass(frozen=True, kw_only=True)
class DistanceBin:
    """Group of examples of about one distance: one of `bins` of equal size."""

    judged: JudgedSet
    model: str
    measure: Measure
    low: float
    high: float
    """Range of distances."""
    distance: float
    """Mean distance."""
    num_examples: int
    improvement: Estimate
    """Mean over examples, above 0 where the model is better than the baseline: nats per token, or bits per byte."""
    num_contaminated: int | None = None
    """Examples that stand in the training data, in part; None: nobody looked."""
    clean: Estimate | None = None
    """`improvement` without these."""


def distance_bins(
    results: Sequence[AnyResults], distances: Distances, *, baseline: str, bins: int = 10
) -> list[DistanceBin]:
    """Average the improvement over a baseline by distance, on each set whose examples' distances are known.

    Args:
        results: results of the baseline and other models, on generalist text.
        distances: distances of the same text.
        baseline: name of the model to improve on.
        bins: groups of about equal size; fewer where many distances are equal.

    Raises:
        InputError: no set of both has distances, or one has them of a part of its examples only.
    """
    if bins < 1:
        raise InputError(f"--bins: must be at least 1, got {bins}.")
    groups: list[DistanceBin] = []
    for judged in paired_sets(results, baseline):
        of_examples = distances.of(judged.results[0].example_ids)
        known = ~np.isnan(of_examples)
        if not known.any():
            continue
        if not known.all():
            raise InputError(
                f"{judged.name}: {int((~known).sum()):,} of {len(known):,} examples have no distance. Compute "
                "distances of the files that were judged, with --texts, and without another --limit."
            )
        for results_of_model, base in pairs(judged, baseline):
            groups += _bins_of(judged, results_of_model, base, of_examples, bins)
    if not groups:
        raise InputError(
            "no set that was judged has distances. Give --texts the files that were judged; a set of questions cannot "
            "be one."
        )
    return groups


def _bins_of(
    judged: JudgedSet, results: AnyResults, base: AnyResults, distances: NDArray[np.float64], bins: int
) -> list[DistanceBin]:
    measure, gains = example_gains(results, base)
    seen = contaminated_examples(results, base)
    edges = np.unique(np.quantile(distances, np.linspace(0, 1, bins + 1)))
    places = np.clip(np.searchsorted(edges, distances, side="right") - 1, 0, max(len(edges) - 2, 0))
    return [
        DistanceBin(
            judged=judged,
            model=results.model_name,
            measure=measure,
            low=float(distances[chosen].min()),
            high=float(distances[chosen].max()),
            distance=float(distances[chosen].mean()),
            num_examples=int(chosen.sum()),
            improvement=mean_of(gains[chosen]),
            num_contaminated=None if seen is None else int(seen[chosen].sum()),
            clean=None if seen is None else mean_of(gains[chosen & ~seen]),
        )
        for chosen in (places == place for place in np.unique(places))
    ]


def distances_table(bins: Sequence[DistanceBin], distances: Distances, *, baseline: str) -> TableGroup:
    """Tabulate bins, one line per set, model and bin; bins that the band touches are marked."""
    low, high = distances.band or (None, None)
    columns = {
        "set": [group.judged.name for group in bins],
        "model": [group.model for group in bins],
        "distance": [f"{group.low:.3f} to {group.high:.3f}" for group in bins],
        "examples": [f"{group.num_examples:,}" for group in bins],
        f"better than {baseline}": [group.improvement.cell(4, signed=True) for group in bins],
        **contaminated_columns(
            [group.num_contaminated for group in bins],
            [NONE if group.clean is None else group.clean.cell(4, signed=True) for group in bins],
        ),
        "": [_WRITTEN[group.measure] for group in bins],
        " ": ["band" if _touches(group, distances.band) else "" for group in bins],
    }
    table = Table(head=list(columns), rows=list(zip(*columns.values(), strict=True)), words=(0, 1))
    return TableGroup(
        tables=[table],
        notes=[*_band_notes(distances), INTERVALS, *set_notes([group.judged for group in bins])],
        records=[
            {
                "set": group.judged.name,
                "model": group.model,
                "than": baseline,
                "measure": group.measure,
                "distance": group.distance,
                "distance_low": group.low,
                "distance_high": group.high,
                "examples": group.num_examples,
                **group.improvement.columns("improvement"),
                **contaminated_record(group.num_contaminated, group.clean),
                "band_low": low,
                "band_high": high,
            }
            for group in bins
        ],
    )


def _touches(group: DistanceBin, band: tuple[float, float] | None) -> bool:
    return band is not None and group.low <= band[1] and group.high >= band[0]


def _band_notes(distances: Distances) -> list[str]:
    count = distances.facts.get("specialist_examples", 0)
    notes = [f"distance: 1 - cos to the nearest of {count:,} specialist examples, by the first window of each text"]
    if distances.band is not None:
        low, high = distances.band
        examples = f"{len(distances.test_distances):,} specialist test examples"
        notes.append(f"band: the middle half of {examples}, at distances {low:.3f} to {high:.3f}")
    return notes


def plot_distances(bins: Sequence[DistanceBin], distances: Distances, path: str | Path, *, baseline: str) -> Path:
    """Draw a panel per set, a line per model with its interval, and the band of the specialist test examples in grey.

    Raises:
        InputError: not .svg, .png or .pdf. MissingExtraError: matplotlib is not installed.
    """
    sets = list(dict.fromkeys(group.judged.name for group in bins))
    models = list(dict.fromkeys(group.model for group in bins))
    names = names_in_figures([group.judged for group in bins])
    figure = blank_figure(4.8 * len(sets), 3.6)
    for axis, set_name in zip(figure.subplots(1, len(sets), squeeze=False).flat, sets, strict=True):
        shown = [group for group in bins if group.judged.name == set_name]
        if distances.band is not None:
            axis.axvspan(*distances.band, color="0.88", label="specialist test, 25-75 %")
        for number, model in enumerate(models):
            line = [group for group in shown if group.model == model]
            across = [group.distance for group in line]
            axis.plot(across, [group.improvement.value for group in line], marker=".", color=f"C{number}", label=model)
            low, high = ([group.improvement.interval[bound] for group in line] for bound in (0, 1))
            axis.fill_between(across, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        axis.axhline(0, color="gray", linewidth=0.8)
        axis.set(xlabel="distance to the specialist set", ylabel=f"{_WRITTEN[shown[0].measure]} gained over {baseline}")
        axis.set_title(names[set_name], fontsize=10)
        axis.legend(fontsize=8)
    return save_figure(figure, path)
