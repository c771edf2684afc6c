"""Commands that a new user gets wrong, and what must be said about each. As a table:

python -m tests.support.wrong_commands
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

from crisp_stream import Histogram
from crisp_stream.cli.main import main
from tests.support.synthetic import write_synthetic_dataset

WRONG = {
    # misspelt commands
    "wirte corpus.jsonl --out data": "did you mean `write`?",
    "histogramm task.jsonl --data data": "did you mean `histogram`?",
    "evaluate runs": "did you mean `eval`?",
    "histogram tunes h.parquet": "did you mean `tune`?",
    "recipes lst": "did you mean `list`?",
    "select classifer task.jsonl": "did you mean `classifier`?",
    "tree fitt corpus.jsonl --out t": "did you mean `fit`?",
    "study smal": "one of h100, miniature, small",
    # misspelt options
    "write corpus.jsonl --out d --smaple 0.1": "did you mean `--sample`?",
    "write corpus.jsonl --output d": "--out",
    "histogram task.jsonl --dataset data --out t.parquet": "did you mean `--data`?",
    "train demo base --nprocs 2": "did you mean `--nproc`?",
    "eval runs --texts a.jsonl": "did you mean `--text`?",
    "inspect data --lvl 2": "did you mean `--level`?",
    # missing or further arguments
    "write --out d": "inputs is missing",
    "write corpus.jsonl": "--out is missing",
    "histogram task.jsonl": "--data is missing",
    "histogram task.jsonl --data data": "--out is missing",
    "train": "is missing: YAML files or packaged recipes",
    "export": "CKPT is missing",
    "forecast --data data": "--mixture is missing",
    "try corpus.jsonl": "TASK is missing",
    "verify data data": "takes no further argument, got 'data'",
    "demo now": "takes no further argument, got 'now'",
    # values out of range or of the wrong kind
    "write corpus.jsonl --out d --sample 3%": "Write 0.03.",
    "write corpus.jsonl --out d --sample 3": "sample: must be above 0 and at most 1",
    "write corpus.jsonl --out d --window-tokens many": "--window-tokens: must be a whole number, got 'many'",
    "write corpus.jsonl --out d --arity 100": "arity: must be 2 to 64, got 100",
    "write corpus.jsonl --out d --packing joind": "did you mean `joined`?",
    "forecast --data data --mixture base --samples 0": "samples: must be at least 1, got 0",
    "histogram cut h.parquet --level 9 --out x.parquet": "level",
    "try corpus.jsonl task.jsonl --minutes 1": "--minutes: must be 3 to 240, got 1",
    # one kind of thing where another belongs
    "histogram task.jsonl --data h.parquet --out t.parquet": "h.parquet: must be the root of a dataset",
    "inspect task.jsonl": "--out FILE.parquet",
    "verify h.parquet": "must be the root of a dataset, a folder or prefix, got a file",
    "histogram compare data h.parquet": "data: must be a file, a histogram file of crisp-stream, got a folder",
    "report h.parquet data --out r.html": "h.parquet: must be the root of a dataset",
    "train demo base data.remote=task.jsonl": "task.jsonl: must be the root of a dataset",
    "train demo crisp data.remote=data mixture.phases.0.histogram=data": "data: must be a file, a histogram file",
    "train demo crips": "did you mean `crisp`?",
    "train demo base data.remot=data": "did you mean `data.remote`?",
    "export runs out": "a checkpoint is one .pt file",
    "eval data --text task.jsonl": "Name a .pt file or an export folder",
    "results table data": "holds no results",
    # files that are not there
    "write no.jsonl --out d": "no.jsonl matches no file",
    "split no.jsonl --out exam": "no.jsonl",
    "inspect nowhere": "nowhere",
}
"""A command to a part of its message."""


def prepare(folder: Path) -> None:
    """Make what the commands name: corpus, task, dataset, histogram, a folder without a run."""
    texts = [f"a text about subject {number % 7}, the {number}th of them" for number in range(40)]
    for name in ("corpus", "task"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    dataset = write_synthetic_dataset(folder / "data", {0: 100, 3: 50, 5: 10, 15: 40})
    Histogram.from_leaves([0, 0, 15], dataset.tree, 2).save(folder / "h.parquet")
    (folder / "runs").mkdir()


def said_about(command: str) -> tuple[int, str]:
    """Exit code and standard error of a command, run in this process."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(shlex.split(command))
        except SystemExit as end:
            code = int(end.code or 0)
    return code, said.getvalue()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        prepare(Path(scratch))
        print("| command | message |\n|---|---|")
        for wrong in WRONG:
            message = said_about(wrong)[1].strip().splitlines()
            print(f"| `{wrong}` | {' '.join(message).replace('|', '/')} |", flush=True)
    sys.exit(0)
