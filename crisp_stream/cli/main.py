"""The command `crisp-stream`: a thin front. Every command imports what it needs when it runs, so that --help is
instant."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from crisp_stream.cli.contamination import add_contamination
from crisp_stream.cli.eval import add_eval
from crisp_stream.cli.forecast import add_forecast
from crisp_stream.cli.histogram import add_histogram_commands, with_count
from crisp_stream.cli.report import add_report
from crisp_stream.cli.results import add_results
from crisp_stream.cli.select import add_select
from crisp_stream.cli.split import add_split
from crisp_stream.cli.study import add_study, with_run
from crisp_stream.cli.train import add_finetune, add_train
from crisp_stream.cli.verbs import Formatter, add_verb, print_line, recipes_and_overrides
from crisp_stream.cli.write import add_write_commands
from crisp_stream.errors import CrispError, InputError, RunInterruptedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when it did what was asked; 1 when `verify` found problems; 2 for an expected error, printed as one line;
        143 or 130 when SIGTERM or Ctrl-C stopped a training.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _parser().parse_args(with_run(with_count(given)))
    parsed.given = given
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        code = parsed.run(parsed) or 0
        sys.stdout.flush()
        return code
    except RunInterruptedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 128 + signal.Signals[error.signal_name]
    except CrispError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crisp-stream",
        formatter_class=Formatter,
        description="Write a corpus once as MDS shards sorted by cluster; train on any task's cluster histogram.",
        epilog="ROOT is a local folder or s3://, gs://, az:// prefix; credentials come from the environment.",
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_write_commands(verbs)
    add_histogram_commands(verbs)
    add_select(verbs)
    _add_inspect(verbs)
    add_forecast(verbs)
    add_report(verbs)
    _add_verify(verbs)
    add_train(verbs)
    add_finetune(verbs)
    add_eval(verbs)
    add_results(verbs)
    add_split(verbs)
    add_contamination(verbs)
    add_study(verbs)
    _add_export(verbs)
    _add_recipes(verbs)
    _add_demo(verbs)
    return parser


def _version() -> str:
    from crisp_stream import __version__

    return f"crisp-stream {__version__}"


def _add_inspect(verbs: Any) -> None:
    verb = add_verb(
        verbs, "inspect", _inspect, "Show what is in a dataset or a histogram, with sample text of its top clusters."
    )
    verb.add_argument("target", metavar="ROOT|H", help="dataset root or histogram file")
    verb.add_argument("--data", metavar="ROOT", help="for a histogram: the dataset to take sample text from")
    verb.add_argument("--level", type=int, default=1, metavar="L", help="for a dataset: level of the clusters shown")
    verb.add_argument("--top", type=int, default=10, metavar="N", help="clusters shown")
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")
    verb.add_argument(
        "--window", type=int, metavar="N", help="for a dataset: show this window, its place in the tree, its documents"
    )


def _inspect(asked: argparse.Namespace) -> None:
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.histograms.histogram import Histogram
    from crisp_stream.inspection.summary import describe_dataset, describe_histogram
    from crisp_stream.storage.store import is_remote, local_path

    if asked.top < 1:
        raise InputError(f"--top: must be at least 1, got {asked.top}.")
    if not is_remote(asked.target) and local_path(asked.target).is_file():
        dataset = open_dataset(asked.data) if asked.data else None
        print(describe_histogram(Histogram.load(asked.target), dataset, limit=asked.top), end="")
        return
    dataset = open_dataset(asked.target, generation=asked.generation)
    if asked.window is not None:
        from crisp_stream.format.provenance import describe_window

        print(describe_window(dataset, asked.window).rstrip())
        return
    dataset.tree.check_level(asked.level)
    print(describe_dataset(dataset, level=asked.level, limit=asked.top), end="")


def _add_verify(verbs: Any) -> None:
    verb = add_verb(
        verbs, "verify", _verify, "Read every byte of a dataset and compare it with its tables. Exit 1 on problems."
    )
    verb.add_argument("root", metavar="ROOT", help="dataset root")
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")
    verb.add_argument(
        "--deep",
        action="store_true",
        help="compare the order of windows and their provenance, too; needs no more reading",
    )


def _verify(asked: argparse.Namespace) -> int:
    from tqdm import tqdm

    from crisp_stream.inspection.verify import verify_dataset

    with tqdm(unit="shard", disable=not sys.stderr.isatty()) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = verify_dataset(asked.root, deep=asked.deep, generation=asked.generation, progress=advance)
    for problem in report.problems:
        print(f"problem: {problem}", file=sys.stderr)
    state = f"{len(report.problems)} problems" if report.problems else "whole"
    print(f"{asked.root}: {report.num_windows:,} windows, {report.num_bytes / 1e6:,.1f} MB read: {state}")
    return 1 if report.problems else 0


def _add_export(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "export",
        _export,
        "Write a checkpoint as a Hugging Face folder. It holds safetensors, tokenizer, generation config, a model card "
        "and training.json, which says what the model was trained on.",
    )
    verb.add_argument("checkpoint", metavar="CKPT", help="Composer checkpoint (.pt), local or in object storage")
    verb.add_argument("out", metavar="OUT", help="folder or object-store prefix to create")
    verb.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights; float32 is exact"
    )


def _export(asked: argparse.Namespace) -> None:
    from crisp_stream.models.export import export

    print(f"written to {export(asked.checkpoint, asked.out, dtype=asked.dtype)}")


def _add_recipes(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "recipes",
        _recipes,
        "List the packaged recipes, show one, resolve some laid over one another into all their keys, or copy one to "
        "edit it.",
    )
    verb.add_argument(
        "action", nargs="?", choices=["list", "show", "resolve", "copy"], default="list", help="what to do"
    )
    verb.add_argument(
        "names", nargs="*", metavar="RECIPE", help="for show and copy one; for resolve as for train, with key=value"
    )
    verb.add_argument("--out", metavar="FILE", help="for copy; RECIPE.yaml here when absent")


def _recipes(asked: argparse.Namespace) -> None:
    from crisp_stream.config.files import copy_recipe, list_recipes, read_recipe
    from crisp_stream.config.load import dump_recipe, load_recipe

    if asked.action == "list":
        recipes = list_recipes()
        width = max(map(len, recipes))
        for name, title in recipes.items():
            print(f"{name:<{width}}  {title}")
        return
    if asked.action == "resolve":
        print(dump_recipe(load_recipe(*recipes_and_overrides(asked.names))), end="")
        return
    if len(asked.names) != 1:
        raise InputError(
            f"recipes {asked.action} needs the name of one recipe, got {len(asked.names)}. "
            "`crisp-stream recipes` lists them."
        )
    if asked.action == "show":
        print(read_recipe(asked.names[0]), end="")
    else:
        print(f"written to {copy_recipe(asked.names[0], asked.out)}")


def _add_demo(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "demo",
        _demo,
        "The whole method on real text, in minutes on two cores. Fetches two public packages; run again, it resumes.",
    )
    verb.add_argument("--out", default="demo-out/data", metavar="ROOT", help="dataset root to create")
    verb.add_argument(
        "--run-folder", default="demo-out", metavar="DIR", help="folder for checkpoints, histogram and report"
    )
    verb.add_argument("--fresh", action="store_true", help="train again even where finished runs are found")


def _demo(asked: argparse.Namespace) -> None:
    from crisp_stream.demo import run_demo

    run_demo(asked.out, run_folder=asked.run_folder, fresh=asked.fresh, log=print_line)


if __name__ == "__main__":
    sys.exit(main())
