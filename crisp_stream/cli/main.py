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

from crisp_stream import __version__
from crisp_stream.cli.encoder import add_encoder
from crisp_stream.cli.eval import add_contamination, add_eval, add_split
from crisp_stream.cli.forecast import add_forecast
from crisp_stream.cli.histogram import add_histogram_commands, with_count
from crisp_stream.cli.inspect import add_inspect, add_verify
from crisp_stream.cli.parser import Formatter, Parser
from crisp_stream.cli.publish import add_publish
from crisp_stream.cli.recipes import add_recipes
from crisp_stream.cli.report import add_report
from crisp_stream.cli.results import add_results
from crisp_stream.cli.select.scores import add_score
from crisp_stream.cli.select.select import add_select
from crisp_stream.cli.study import add_study, with_run
from crisp_stream.cli.train import add_finetune, add_train
from crisp_stream.cli.trial import add_demo, add_try
from crisp_stream.cli.verbs import add_verb
from crisp_stream.cli.write import add_write_commands
from crisp_stream.errors import CrispError, RunInterruptedError
from crisp_stream.storage.inputs import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when the command succeeded; 1 when `verify` reports problems; 2 for an expected error, printed as one line;
        143 or 130 when SIGTERM or Ctrl-C stopped a command.
    """
    typed = sys.argv[1:] if arguments is None else list(arguments)
    if not typed:
        print(_parser().format_help(), end="")
        return 0
    parsed = _parser().parse_args(with_run(with_count(typed)))
    parsed.given = typed
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        code = parsed.run(parsed) or 0
        sys.stdout.flush()
        return code
    except RunInterruptedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 128 + signal.Signals[error.signal_name]
    except CrispError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


GROUPS = {
    "begin": ("try", "demo"),
    "write a corpus": ("write", "append", "tree", "encoder", "embed", "inspect", "verify", "publish"),
    "describe a task": ("histogram", "average", "score", "select", "split", "forecast"),
    "train": ("train", "finetune", "recipes", "export"),
    "judge": ("eval", "results", "report", "contamination", "study"),
}


def _parser() -> Parser:
    parser = Parser(
        prog="crisp-stream",
        formatter_class=Formatter,
        description="Write a corpus once as MDS shards sorted by cluster; train on any task's cluster histogram.",
        epilog="ROOT is a local folder, an s3://, gs://, az:// prefix or hf://datasets/OWNER/NAME; credentials: "
        "variables, profiles, roles, tokens.",
    )
    parser.add_argument("--version", action="version", version=f"crisp-stream {__version__}")
    parser.groups = GROUPS
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_write_commands(verbs)
    add_encoder(verbs)
    add_histogram_commands(verbs)
    add_score(verbs)
    add_select(verbs)
    add_inspect(verbs)
    add_forecast(verbs)
    add_report(verbs)
    add_verify(verbs)
    add_publish(verbs)
    add_train(verbs)
    add_finetune(verbs)
    add_eval(verbs)
    add_results(verbs)
    add_split(verbs)
    add_contamination(verbs)
    add_study(verbs)
    _add_export(verbs)
    add_recipes(verbs)
    add_try(verbs)
    add_demo(verbs)
    return parser


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
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="type of the weights; float32 is exact"
    )


def _export(arguments: argparse.Namespace) -> None:
    from crisp_stream.models.export import export

    print(f"written to {export(arguments.checkpoint, arguments.out, dtype=arguments.dtype)}")


if __name__ == "__main__":
    sys.exit(main())
