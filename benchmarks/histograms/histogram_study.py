"""What histograms of some tasks say, and whether tuning helps.

    python -m benchmarks.histograms.histogram_study ROOT H.parquet…

Prints the Markdown tables of docs/task/histograms.md: of each task the effective number of clusters, the distance from
the corpus and its four heaviest clusters with their terms; then, for example sets of several sizes, the score of the
tuned histogram on examples outside of the set, against that of the raw counts at the level that suits those best
(chosen with the held-out examples in sight, which favours them). Histograms must be counted at the leaves. `--plots
DIR` draws the curves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.histograms.arithmetic import compare, effective_clusters, generalist_histogram
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.tuning import Tuning, tune
from crisp_stream.histograms.tuning_plot import plot_tuning
from crisp_stream.inspection.summary import top_nodes

_CLUSTERS = 4


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("histograms", nargs="+")
    parser.add_argument("--plots", metavar="DIR")
    asked = parser.parse_args()
    dataset = open_dataset(asked.root)
    tasks = {Path(path).stem: Histogram.load(path) for path in asked.histograms}
    print(about(dataset, tasks))
    tunings = {name: tune(histogram, dataset) for name, histogram in tasks.items()}
    print(scores(tunings))
    for name, tuning in tunings.items():
        if asked.plots:
            plot_tuning(tuning, Path(asked.plots) / f"{name}.svg", title=name)


def about(dataset: Dataset, tasks: dict[str, Histogram]) -> str:
    """Where the tasks live."""
    lines = [
        "| task | examples | windows | clusters hit, effective | off the corpus | cosine "
        "| heaviest clusters: share, w(c), terms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, histogram in tasks.items():
        distance = compare(histogram, generalist_histogram(dataset, histogram.level)).total_variation
        known = histogram.provenance
        nodes = top_nodes(dataset, histogram, _CLUSTERS)
        terms = "<br>".join(f"{node.share:.1%}, {node.weight:.0f}: {', '.join(node.terms)}" for node in nodes)
        lines.append(
            f"| {name} | {known['examples']:,} | {known['windows']:,} | {len(histogram.nodes):,}, "
            f"{effective_clusters(histogram):,.0f} | {distance:.0%} | {known['cosine']:.2f} | {terms} |"
        )
    return "\n".join(lines) + "\n"


def scores(tunings: dict[str, Tuning]) -> str:
    """Tuned against raw, by size."""
    sizes = sorted({size.examples for tuning in tunings.values() for size in tuning.sizes[:-1]})
    head = "| task | level: strengths | " + " | ".join(f"{size:,}" for size in sizes) + " | all but a fold |"
    lines = [head, "|---" * (len(sizes) + 3) + "|"]
    for name, tuning in tunings.items():
        found = {size.examples: size for size in tuning.sizes[:-1]}
        cells = [f"{found[size].tuned:.2f} / {max(found[size].raw):.2f}" if size in found else "" for size in sizes]
        last = tuning.sizes[-1]
        cells.append(f"{last.tuned:.2f} / {max(last.raw):.2f} ({last.examples:,})")
        lines.append(
            f"| {name} | {tuning.chosen.level}: {', '.join(f'{one:g}' for one in tuning.chosen.strengths)} | "
            + " | ".join(cells)
            + " |"
        )
    won = sum(size.tuned > max(size.raw) for tuning in tunings.values() for size in tuning.sizes)
    of = sum(len(tuning.sizes) for tuning in tunings.values())
    return "\n".join([*lines, "", f"The tuned one is better in {won} of {of} rows and sizes."])


if __name__ == "__main__":
    main()
