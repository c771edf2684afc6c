"""The command `crisp-stream select doge`."""

from __future__ import annotations

import argparse
from typing import Any

from crisp_stream.cli.next_step import say_next, size_for
from crisp_stream.cli.verbs import add_recipe_arguments, add_verb, print_line
from crisp_stream.config.files import recipes_and_overrides
from crisp_stream.writers.flags import add_flags


def add_select_doge(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "doge",
        _doge,
        "Weigh clusters by how their gradients align with the specialist text's, in a small proxy model. (Fan et al. "
        "2024; CRISP, Section 3.3.) Writes a histogram to train by. The same command goes on where it was stopped; "
        "runs in one process.",
    )
    add_recipe_arguments(verb)
    verb.add_argument(
        "--text",
        nargs="+",
        required=True,
        metavar="INPUT",
        help="specialist documents: .jsonl[.gz|.zst], .parquet, .txt; file, folder, prefix or glob",
    )
    add_flags(verb, ("text_column", "limit"))
    verb.add_argument("--level", type=int, default=1, metavar="L", help="level of the tree whose clusters get weights")
    verb.add_argument("--mu", type=float, default=5e-4, metavar="MU", help="Bregman coefficient; larger moves less")
    verb.add_argument(
        "--update",
        choices=["paper", "public-code"],
        default="paper",
        help="score of a cluster: paper: lr x inner product of gradients; public-code: the same over their mean norm, "
        "cut to [0, 5 lr]",
    )
    verb.add_argument(
        "--target-windows", type=int, metavar="N", help="windows of the text per step; as many as the batch when absent"
    )
    verb.add_argument(
        "--average",
        choices=["run", "last"],
        default="run",
        help="weights that are the result: mean over the run, or over its last 20 steps; the other is written beside",
    )
    verb.add_argument(
        "--compare", metavar="H", help="histogram of the task, such as CRISP's, to show beside the weights"
    )
    verb.add_argument("--top", type=int, default=16, metavar="N", help="number of clusters to show")
    verb.add_argument("--out", required=True, metavar="FILE", help="histogram to write")


def _doge(arguments: argparse.Namespace) -> None:
    from crisp_stream.config.load import load_recipe
    from crisp_stream.errors import InputError
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.histograms.histogram import Histogram
    from crisp_stream.selection.doge.doge import other_path, weigh_by_doge
    from crisp_stream.selection.doge.doge_report import comparable, doge_table
    from crisp_stream.selection.doge.settings import DogeSettings

    if arguments.top < 1:
        raise InputError(f"--top: must be at least 1, got {arguments.top}. Leave it out for 16.")
    names, overrides = recipes_and_overrides(arguments.recipe)
    recipe = load_recipe([*names, "base"], overrides)  # a recipe needs a mixture; the proxy model does not follow it
    settings = DogeSettings(
        level=arguments.level,
        mu=arguments.mu,
        update=arguments.update,
        target_windows=arguments.target_windows,
        average=arguments.average,
    )
    root = recipe.data.only_root("DoGE")
    dataset = open_dataset(root, generation=recipe.data.generation, timeout=recipe.data.timeout)
    other = None
    if arguments.compare is not None:
        other = comparable(Histogram.load(arguments.compare), arguments.level, dataset.manifest.tree_fingerprint)
    result = weigh_by_doge(
        recipe,
        arguments.text,
        out=arguments.out,
        settings=settings,
        text_column=arguments.text_column,
        limit=arguments.limit,
        log=print_line,
    )
    print(doge_table(result.chosen, dataset, other, limit=arguments.top).text())
    print(f"written to {arguments.out}; the other average to {other_path(arguments.out, settings.average)}")
    chosen = f"mixture.phases.0.histogram={arguments.out}"
    say_next("train", size_for(dataset.manifest.window_tokens), "crisp", f"data.remote={dataset.root}", chosen)
