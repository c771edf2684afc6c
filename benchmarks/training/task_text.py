"""Scarce text of a task: into the pretraining mixture, after it, or not at all. All models see as many tokens.

    python -m benchmarks.training.task_text GENERALIST TASK.train=FILE TASK.test=FILE … --work DIR [--examples 25]

GENERALIST is a file of documents; of them one in eight is the corpus, and some others are held out. Of each task there
are as many documents as --examples: its histogram is counted from them, and they are the text that is mixed in or
fine-tuned on. Every step is a command of `crisp-stream`, with the packaged recipes. Prints the Markdown table of
docs/train/components.md; what --work holds is not made again.

base           the corpus as it is
crisp          the corpus by the task's tuned histogram
crisp-task     the same, 5 % of the samples are the task's own windows, at most 20 times each
finetuned      crisp up to 90 % of the steps, then the task's windows
replay         the same, with 20 % of the corpus in the last steps
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.support.report import machine_line
from crisp_stream.cli.main import main as crisp_stream
from crisp_stream.results.results import TextResults, load_results
from crisp_stream.study.tables.intervals import exponential, mean_over_sets
from crisp_stream.table import Table
from crisp_stream.writers.documents.documents import read_documents
from crisp_stream.writers.documents.drops import DropCounts

METHODS = ("base", "crisp", "crisp-task", "finetuned", "replay")
_CORPUS_EVERY, _HELD_OUT_EVERY = 8, 800
_MOST_JUDGED = 200
_BATCHES = 320
_SWITCH = 9 * _BATCHES // 10
_SIZE = (
    "demo",
    f"max_duration={_BATCHES}ba",
    "global_train_batch_size=8",
    f"scheduler.t_warmup={_BATCHES // 10}ba",
    "optimizer.lr=3e-3",
    "save_interval=1dur",
)
_WRITTEN = ("--window-tokens", "128", "--vocab-size", "4096", "--encoder", "lsi", "--arity", "64", "--depth", "2")


class Measurement:
    """Everything below one folder; what is there is kept."""

    def __init__(self, work: Path, examples: int, seeds: Sequence[int]) -> None:
        self._work, self._examples, self._seeds = work, examples, seeds
        work.mkdir(parents=True, exist_ok=True)

    def corpus(self, generalist: str) -> None:
        """Write the corpus, and documents that it does not hold."""
        if not (self._work / "corpus.test.jsonl").exists():
            texts = list(read_documents([generalist], counts=DropCounts()))
            self._documents("corpus", texts[::_CORPUS_EVERY])
            self._documents("corpus.test", texts[1::_HELD_OUT_EVERY][:_MOST_JUDGED])
        self._run("write", f"{self._work}/corpus.jsonl", "--out", self._data("corpus"), *_WRITTEN, "--min-split", "128")

    def task(self, name: str, train: str, test: str) -> None:
        """Choose the examples of a task, count its histogram, and write their text as windows."""
        for split, file, limit in (("train", train, self._examples), ("test", test, _MOST_JUDGED)):
            if not (self._work / f"{name}.{split}.jsonl").exists():
                texts = list(read_documents([file], counts=DropCounts()))
                chosen = np.random.default_rng(0).permutation(len(texts))[:limit]
                self._documents(f"{name}.{split}", [texts[at] for at in sorted(chosen.tolist())])
        documents, counted, tuned = (
            f"{self._work}/{name}{end}" for end in (".train.jsonl", ".parquet", ".tuned.parquet")
        )
        data = ("--data", self._data("corpus"))
        if not Path(tuned).exists():
            self._run("histogram", "count", documents, *data, "--level", "2", "--out", counted)
            self._run("histogram", "tune", counted, *data, "--out", tuned)
        self._run("write", documents, "--out", self._data(name), "--like", self._data("corpus"))

    def train(self, method: str, task: str, seed: int) -> None:
        """Train a model, or the last steps of one."""
        name, mixed = self._model(method, task, seed), f"data.sources.task.remote={self._data(task)}"
        sources = (f"data.sources.corpus.remote={self._data('corpus')}", mixed)
        histogram, start = f"{self._work}/{task}.tuned.parquet", self._model("crisp", task, seed)
        checkpoint = f"load_path={self._work}/runs/{start}/ep0-ba{_SWITCH}-rank0.pt"
        how = {
            "base": ("base", f"data.remote={self._data('corpus')}"),
            "crisp": (
                "crisp",
                f"data.remote={self._data('corpus')}",
                f"mixture.phases.0.histogram={histogram}",
                f"save_at=[{_SWITCH}ba]",
            ),
            "crisp-task": ("crisp-task", *sources, f"mixture.phases.0.components.0.histogram={histogram}"),
            "finetuned": ("finetune", f"data.remote={self._data(task)}", checkpoint),
            "replay": ("replay", *sources, checkpoint),
        }[method]
        if not list((self._work / "runs" / name).glob(f"*ba{_BATCHES}-*")):
            folder = f"save_folder={self._work}/runs/{{run_name}}"
            self._run("train", _SIZE[0], how[0], *_SIZE[1:], *how[1:], f"seed={seed}", f"run_name={name}", folder)

    def judge(self, method: str, task: str, seed: int) -> None:
        """Judge a model on held-out documents of its task and of the corpus."""
        name, sets = self._model(method, task, seed), {task, "corpus"}
        sets |= (
            {task_of.name.partition(".")[0] for task_of in self._work.glob("*.test.jsonl")}
            if method == "base"
            else set()
        )
        missing = [each for each in sorted(sets) if not self._results(method, task, seed, each).exists()]
        if missing:
            texts = [word for each in missing for word in ("--text", f"{self._work}/{each}.test.jsonl")]
            out = str(self._work / "results")
            self._run("eval", f"{self._work}/runs/{name}", "--name", name, *texts, "--out", out, "--allow-seen")

    def table(self, tasks: Sequence[str]) -> str:
        """Perplexities, and their ratios to those of crisp of the same seed on the same documents."""
        rows = []
        for task in tasks:
            for judged in (task, "corpus"):
                crisp = self._losses("crisp", task, judged)
                for method in METHODS:
                    losses = self._losses(method, task, judged)
                    perplexity = exponential(mean_over_sets([(judged, losses)]))
                    ratio = exponential(mean_over_sets([(judged, losses - crisp)]))
                    compared = "" if method == "crisp" else ratio.cell(3)
                    rows.append((task, f"{judged}.test", method, perplexity.cell(1), compared))
        head = ("task", "judged on", "model", "perplexity", "of crisp's")
        return Table(head=head, rows=rows, words=(0, 1, 2)).markdown()

    def repeats(self, tasks: Sequence[str]) -> dict[str, float]:
        """Passes over the task's windows that its mixtures made."""
        found = {}
        for task in tasks:
            record = json.loads(
                (self._work / "runs" / self._model("crisp-task", task, self._seeds[0]) / "run.json").read_text()
            )
            found[task] = record["phases"][0]["components"]
        return found

    def _losses(self, method: str, task: str, judged: str) -> np.ndarray:
        """[num_seeds, num_documents], mean loss of the tokens of each document."""
        found = []
        for seed in self._seeds:
            results = load_results(str(self._results(method, task, seed, judged)))
            assert isinstance(results, TextResults)
            found.append(results.losses)
        return np.stack(found)

    def _results(self, method: str, task: str, seed: int, judged: str) -> Path:
        return self._work / "results" / f"{self._model(method, task, seed)}.{judged}.test.results.parquet"

    def _model(self, method: str, task: str, seed: int) -> str:
        return f"base-{seed}" if method == "base" else f"{task}-{method}-{seed}"

    def _data(self, name: str) -> str:
        return f"{self._work}/{name}.data"

    def _documents(self, name: str, texts: Sequence[str]) -> None:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (self._work / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    def _run(self, *words: str) -> None:
        print(f"crisp-stream {' '.join(words)}", file=sys.stderr, flush=True)
        if words[0] == "write" and Path(words[words.index("--out") + 1], "manifest.json").exists():
            return
        with contextlib.redirect_stdout(io.StringIO()) as said:
            if crisp_stream(list(words)):
                raise SystemExit(said.getvalue())


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generalist")
    parser.add_argument("splits", nargs="+", metavar="TASK.SPLIT=FILE")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    files = dict(split.split("=", 1) for split in asked.splits)
    tasks = sorted({name.partition(".")[0] for name in files})
    measurement = Measurement(asked.work.absolute(), asked.examples, asked.seeds)
    measurement.corpus(asked.generalist)
    for task in tasks:
        measurement.task(task, files[f"{task}.train"], files[f"{task}.test"])
    for seed in asked.seeds:
        for method in METHODS:
            for task in tasks:
                measurement.train(method, task, seed)
                measurement.judge(method, task, seed)
    print(measurement.table(tasks))
    print(json.dumps(measurement.repeats(tasks), indent=2))
    print(f"\n{machine_line()}")


if __name__ == "__main__":
    main()
