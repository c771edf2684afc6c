"""Recipes of several sources, components and schedules: what they train on, what they record, what they refuse."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream import Component, Histogram, Mixture, Phase
from crisp_stream.cli.main import main
from crisp_stream.errors import CrispError, FormatError, InputError, RecipeError, ResumeError
from crisp_stream.evaluation.models import open_model, plain_record
from crisp_stream.evaluation.seen import seen_examples
from crisp_stream.evaluation.trained_texts import JudgedTexts
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.manifest import MANIFEST
from crisp_stream.format.sources import Sources
from crisp_stream.loading.stream import Stream
from crisp_stream.models import gpt as model
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.models.export import export
from crisp_stream.models.training_record import training_record
from crisp_stream.report.colours import assign_colours
from crisp_stream.report.map import Tree
from crisp_stream.report.runs import read_run, run_section
from crisp_stream.results.costs import method_of
from crisp_stream.training.announce import announce
from crisp_stream.training.callbacks.components import ComponentWeights
from crisp_stream.training.mixture import build_mixture
from crisp_stream.training.prepare import prepare
from crisp_stream.training.start import StartingPoint
from crisp_stream.training.train import train
from tests.support.selections import random_selection
from tests.support.small_runs import (
    SmallRun,
    account_of,
    copy_until,
    launch,
    leaf_histogram,
    losses_of,
    small_run,
    write_dataset,
)
from tests.support.synthetic import made_up_texts, write_synthetic_dataset

TASK = {0: 5, 3: 6}
UNSAVED = ["save_folder=null", "log_windows=false"]
TEXTS = made_up_texts(30, seed=5)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """11 windows, in a tree of its own."""
    folder = tmp_path_factory.mktemp("task") / "dataset"
    return write_synthetic_dataset(folder, TASK, arity=2, depth=2, seed=7, texts=TEXTS)


def with_task(done: SmallRun, task: Dataset, *components: str, more: str = "") -> list[str]:
    """Overrides: the corpus and the task as sources, and one phase of components."""
    sources = f"{{corpus: {{remote: {done.dataset.root}}}, task: {{remote: {task.root}}}}}"
    return [
        "data.remote=null",
        f"data.sources={sources}",
        f"mixture.phases=[{{components: [{', '.join(components)}]{more}}}]",
    ]


def mixed(done: SmallRun, task: Dataset, share: float = 0.25, **limit: object) -> list[str]:
    """CRISP with task text."""
    options = "".join(f", {key}: {value}" for key, value in limit.items())
    corpus = f"{{source: corpus, histogram: {done.histogram}, share: {1 - share}}}"
    return with_task(done, task, corpus, f"{{source: task, histogram: base, share: {share}{options}}}")


def served_of(folder: Path) -> list[list[tuple[str, int]]]:
    """(source, window) of every batch."""
    with (folder / "windows.csv").open() as file:
        rows = [row["windows"].split() for row in csv.DictReader(file)]
    return [[(source, int(window)) for source, _, window in (item.partition(":") for item in row)] for row in rows]


def sources_of(folder: Path, first: int = 0) -> Counter[str]:
    """Windows served of each source, from a batch on."""
    return Counter(source for batch in served_of(folder)[first:] for source, _ in batch)


def order_of(data: Any, mixture: Mixture, samples: int) -> list[tuple[int, int]]:
    """(source, window) of the first samples of the stream, seed of the small run."""
    stream = Stream(data, mixture, seed=5)
    source, window = Sources.of(data).split(stream.order.window_ids(np.arange(samples)))
    return list(zip(source.tolist(), window.tolist(), strict=True))


@pytest.fixture(scope="module")
def mixed_run(done: SmallRun, task: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 batches, a quarter of them of the task, saved every 4."""
    folder = tmp_path_factory.mktemp("mixed") / "run"
    train(done.recipe(*mixed(done, task), f"save_folder={folder}", "run_name=mixed", "log_interval=4"))
    return folder


def test_a_run_is_served_from_its_sources_as_the_stream_says(done: SmallRun, task: Dataset, mixed_run: Path) -> None:
    parts = [Component(Histogram.load(done.histogram), share=0.75, source="corpus")]
    parts.append(Component(Histogram.base(task.manifest), share=0.25, source="task"))
    expected = order_of({"corpus": done.dataset, "task": task}, Mixture([Phase(parts)]), 96)
    served = served_of(mixed_run)
    for batch, windows in enumerate(served):
        assert Counter(windows) == Counter(
            (("corpus", "task")[source], window) for source, window in expected[8 * batch : 8 * batch + 8]
        )
    assert sources_of(mixed_run)["task"] == pytest.approx(24, abs=1)
    of_task = Counter(window for batch in served for source, window in batch if source == "task")
    assert max(of_task.values()) - min(of_task.values()) <= 1


def test_the_account_says_what_each_component_gave(done: SmallRun, task: Dataset, mixed_run: Path) -> None:
    account, served = account_of(mixed_run), sources_of(mixed_run)
    assert account["sources"] == {
        name: {"root": dataset.root, "fingerprint": dataset.manifest.fingerprint, "samples": served[name]}
        for name, dataset in (("corpus", done.dataset), ("task", task))
    }
    [phase] = account["phases"]
    corpus, of_task = phase["components"]
    assert phase["histogram"] == "0.75 corpus: task.histogram + 0.25 task: base"
    assert (corpus["source"], corpus["drawn_by"], corpus["share"]) == ("corpus", "task.histogram", 0.75)
    assert (corpus["served"], corpus["windows"]) == (served["corpus"], 24 + 25 + 26)
    assert (of_task["source"], of_task["drawn_by"], of_task["share"]) == ("task", "base", 0.25)
    assert (of_task["served"], of_task["served_share"]) == (served["task"], served["task"] / 96)
    assert (of_task["windows"], of_task["repeats"]) == (11, served["task"] / 11)
    leaves = Sources({"corpus": done.dataset, "task": task})
    rows = [window + 504 * (source == "task") for batch in served_of(mixed_run) for source, window in batch]
    ends = np.cumsum([*done.dataset.windows_per_leaf, *task.windows_per_leaf])
    counts = np.bincount(np.searchsorted(ends, rows, side="right"), minlength=18)
    wanted = [*[0.25] * 3, *[0] * 13, 0.25 * 5 / 11, 0.25 * 6 / 11]
    assert account["mixture_error"] == pytest.approx(np.abs(counts / 96 - wanted).sum() / 2)
    assert phase["mixture_error"] == pytest.approx(account["mixture_error"])
    repeated = np.maximum(counts - leaves.windows_per_row, 0).sum()
    assert account["repeated_share"] == pytest.approx(repeated / 96)
    assert repeated > 10
    assert {top.get("source") for top in phase["top_leaves"]} == {"corpus", "task"}


def test_losses_of_components_are_those_of_their_windows(mixed_run: Path) -> None:
    """They add up to those of the batches, and are those of the clusters of their source."""
    [phase] = account_of(mixed_run)["phases"]
    losses = np.array(losses_of(mixed_run), float)
    assert sum(each["tokens"] * each["loss"] for each in phase["components"]) / (96 * 31) == pytest.approx(
        losses.mean(), rel=1e-6
    )
    with (mixed_run / "cluster_losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    for component in phase["components"]:
        own = [row for row in rows if row["source"] == component["source"]]
        weights = [float(row["tokens"]) for row in own]
        assert sum(weights) == component["tokens"]
        assert np.average([float(row["loss"]) for row in own], weights=weights) == pytest.approx(component["loss"])


def test_the_report_tabulates_the_components(done: SmallRun, task: Dataset, tmp_path: Path) -> None:
    printed = train(done.recipe(*mixed(done, task), f"save_folder={tmp_path}/run")).table()
    [corpus] = [line.split() for line in printed.splitlines() if line.split()[:2] == ["1", "corpus"]]
    served = sources_of(tmp_path / "run")["corpus"]
    expected = ["task.histogram", "75.00%", f"{served / 96:.2%}", str(served), f"{served / 75:.2f}"]
    assert corpus[2:7] == expected
    assert train(done.recipe(f"save_folder={tmp_path}/one")).table().count("repeats") == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_of_several_sources_is_resumed_bit_for_bit(
    done: SmallRun, task: Dataset, mixed_run: Path, tmp_path: Path, workers: int
) -> None:
    copy_until(mixed_run, 8, tmp_path / "run")
    resumed = [f"save_folder={tmp_path}/run", "run_name=mixed", "log_interval=4", "autoresume=true"]
    report = train(done.recipe(*mixed(done, task), *resumed, f"data.num_workers={workers}"))
    assert report.resumed_at == 8
    assert losses_of(tmp_path / "run") == losses_of(mixed_run)
    for name in ("windows.csv", "cluster_losses.csv"):
        assert (tmp_path / "run" / name).read_text() == (mixed_run / name).read_text()
    for key in ("phases", "sources", "mixture_error", "repeated_share"):
        assert account_of(tmp_path / "run")[key] == account_of(mixed_run)[key]


def test_two_ranks_have_the_account_of_one(done: SmallRun, task: Dataset, mixed_run: Path, tmp_path: Path) -> None:
    launch(done, 2, [[*mixed(done, task), f"save_folder={tmp_path}/run", "run_name=mixed"]], tmp_path)
    assert served_of(tmp_path / "run") == served_of(mixed_run)
    both = (account_of(each)["phases"][0]["components"] for each in (tmp_path / "run", mixed_run))
    for ours, one in zip(*both, strict=True):
        assert {**ours, "loss": None} == {**one, "loss": None}
        assert ours["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_a_histogram_and_a_selection_draw_selected_windows_in_its_proportions(
    done: SmallRun, task: Dataset, tmp_path: Path
) -> None:
    """Of one dataset, as a phase of its own and as a component beside all windows."""
    chosen, file = random_selection(done.dataset, 0.3), tmp_path / "good.windows.parquet"
    chosen.save(file)
    both = f"histogram: {done.histogram}, windows: {file}"
    report = train(done.recipe(f"mixture.phases=[{{{both}}}]", f"save_folder={tmp_path}/alone"))
    with (tmp_path / "alone" / "windows.csv").open() as file_of_windows:
        windows = [int(window) for row in csv.DictReader(file_of_windows) for window in row["windows"].split()]
    assert np.isin(windows, chosen.windows).all()
    leaves = np.bincount(done.dataset.leaf_of_windows(np.array(windows)), minlength=16)
    assert np.abs(leaves - ([32, 32, 32] + 13 * [0])).max() <= 1
    assert report.mixture_error < 0.02
    assert report.phases[0]["histogram"] == "task.histogram in good.windows.parquet"
    assert report.repeated_share == (96 - len(set(windows))) / 96 > 0.6

    components = f"{{{both}, share: 0.75}}, {{histogram: {done.histogram}, share: 0.25}}"
    report = train(done.recipe(f"mixture.phases=[{{components: [{components}]}}]", f"save_folder={tmp_path}/beside"))
    first, second = report.phases[0]["components"]
    assert (first["drawn_by"], first["source"]) == ("task.histogram in good.windows.parquet", None)
    assert first["served"] + second["served"] == pytest.approx(96)
    assert first["served"] == pytest.approx(72, abs=6)
    assert first["windows"] < second["windows"] == 75
    assert report.sources is None


def test_samples_are_split_between_the_components_that_can_draw_them(done: SmallRun, task: Dataset) -> None:
    """By hand: a selected window of leaf 0 is drawn by both, one that is not selected by the second alone."""
    chosen = random_selection(done.dataset, 0.3)
    wanted = leaf_histogram(done.dataset, [0, 1])
    first = Component(wanted, share=0.75, source="corpus", windows=chosen)
    second = Component(wanted, share=0.15, source="corpus")
    third = Component(Histogram.base(task.manifest), share=0.1, source="task")
    sources = Sources({"corpus": done.dataset, "task": task})
    weights = ComponentWeights(Mixture([Phase([first, second, third])]), sources)
    inside = int(chosen.windows[0])
    outside = next(window for window in range(24) if window not in chosen.windows)
    selected = int((chosen.windows < 24).sum())
    rates = np.array([0.75 / selected, 0.15 / 24])
    found = weights.of(0, np.array([0, 0, 1]), np.array([0, 0, 3]), np.array([inside, outside, inside]))
    np.testing.assert_allclose(found, [[*(rates / rates.sum()), 0], [0, 1, 0], [0, 0, 1]])


def test_a_schedule_is_that_of_the_mixture_in_whole_batches(done: SmallRun, tmp_path: Path) -> None:
    begin, end = "[{histogram: base}]", f"[{{histogram: {done.histogram}}}]"
    schedule = f"{{to: {end}, steps: 5, shape: cosine}}"
    phases = f"mixture.phases=[{{components: {begin}, schedule: {schedule}}}]"
    report = train(done.recipe(phases, f"save_folder={tmp_path}/run"))
    assert [phase["samples"] for phase in report.phases] == [16, 16, 24, 16, 24]
    assert [phase["first_batch"] for phase in report.phases] == [1, 3, 5, 8, 10]
    base, task = Histogram.base(done.dataset.manifest), Histogram.load(done.histogram)
    shares = [(1 - np.cos(np.pi * (step + 0.5) / 5)) / 2 for step in range(5)]
    assert [phase["components"][1]["share"] for phase in report.phases] == pytest.approx(shares)
    steps = [
        Phase([Component(base, share=1 - share), Component(task, share=share)], samples)
        for share, samples in zip(shares, [16, 16, 24, 16, 24], strict=True)
    ]
    expected = [window for _, window in order_of(done.dataset, Mixture(steps), 96)]
    with (tmp_path / "run" / "windows.csv").open() as file:
        served = [int(window) for row in csv.DictReader(file) for window in row["windows"].split()]
    assert Counter(served) == Counter(expected)
    rows = [line.split() for line in report.table().splitlines() if line.startswith(" ")]
    asked = sum(share * samples for share, samples in zip(shares, [16, 16, 24, 16, 24], strict=True)) / 96
    named = [("base", f"{1 - asked:.2%}"), ("task.histogram", f"{asked:.2%}")]
    assert [(row[2], row[3]) for row in rows[-2:]] == named
    copy_until(tmp_path / "run", 8, tmp_path / "again")
    train(done.recipe(phases, f"save_folder={tmp_path}/again", "autoresume=true"))
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "run")
    assert account_of(tmp_path / "again")["phases"] == account_of(tmp_path / "run")["phases"]
    with pytest.raises(ResumeError, match="holds another run"):
        train(done.recipe(phases, f"save_folder={tmp_path}/again", "autoresume=true", "max_duration=16ba"))


def test_a_checkpoint_of_one_dataset_is_continued_with_task_text(done: SmallRun, task: Dataset, tmp_path: Path) -> None:
    """Cursors of the corpus go on, and the run that goes on is resumed."""
    corpus = f"{{source: corpus, histogram: {done.histogram}, share: 0.75}}"
    overrides = with_task(done, task, corpus, "{source: task, histogram: base, share: 0.25}")
    overrides[-1] = overrides[-1].replace("[{components", "[{histogram: checkpoint}, {components")
    start = [f"load_path={done.checkpoint(4)}", "save_interval=2ba"]
    report = train(done.recipe(*overrides, *start, f"save_folder={tmp_path}/run"))
    assert [phase["samples"] for phase in report.phases] == [32, 64]
    assert report.phases[0]["histogram"] == "checkpoint"
    parts = [Component(Histogram.load(done.histogram), share=0.75, source="corpus")]
    parts.append(Component(Histogram.base(task.manifest), share=0.25, source="task"))
    generic = [Component(Histogram.base(done.dataset.manifest), source="corpus")]
    mixture = Mixture([Phase(generic, 32), Phase(parts)])
    expected = order_of({"corpus": done.dataset, "task": task}, mixture, 96)
    served = [each for batch in served_of(tmp_path / "run") for each in batch]
    assert Counter(served) == Counter((("corpus", "task")[source], window) for source, window in expected)
    assert report.phases[0]["components"][0]["drawn_by"] == "checkpoint"
    assert (report.sources or {})["task"]["samples"] == sources_of(tmp_path / "run", 4)["task"]
    copy_until(tmp_path / "run", 8, tmp_path / "again", first=6, every=2)
    train(done.recipe(*overrides, *start, f"save_folder={tmp_path}/again", "autoresume=true"))
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "run")
    record = training_record(read_checkpoint(tmp_path / "again" / "ep0-ba12-rank0.pt"), "again")
    assert [phase["samples"] for phase in record["mixture"]["phases"]] == [32, 64]
    first, second = record["mixture"]["phases"]
    assert first["components"][0]["histogram"] == first["histogram"] == "base"
    assert [part["histogram"] for part in second["components"]] == ["task.histogram", "base"]


def test_a_checkpoint_of_several_sources_is_continued_by_another_list(
    done: SmallRun, task: Dataset, mixed_run: Path, tmp_path: Path
) -> None:
    halves = [f"{{source: {name}, histogram: base, share: 0.5}}" for name in ("task", "corpus")]
    overrides = with_task(done, task, *halves)
    overrides[-1] = overrides[-1].replace("[{components", "[{histogram: checkpoint}, {components")
    report = train(done.recipe(*overrides, f"load_path={mixed_run}/ep0-ba8-rank0.pt", f"save_folder={tmp_path}/run"))
    assert served_of(tmp_path / "run")[:8] == served_of(mixed_run)[:8]
    first, second = report.phases
    assert sources_of(tmp_path / "run", 8)["task"] == pytest.approx(16, abs=1)
    for phase, start, stop in ((first, 0, 8), (second, 8, 12)):
        counts = Counter(source for batch in served_of(tmp_path / "run")[start:stop] for source, _ in batch)
        assert {part["source"]: part["served"] for part in phase["components"]} == counts
    swapped = [f"data.sources={{task: {{remote: {task.root}}}, corpus: {{remote: {done.dataset.root}}}}}"]
    with pytest.raises(ResumeError, match=r"source corpus was .*Name the dataset of the checkpoint, first, as"):
        train(done.recipe(*overrides, *swapped, f"load_path={mixed_run}/ep0-ba8-rank0.pt", *UNSAVED))


def test_a_model_says_its_sources_and_components(
    done: SmallRun, task: Dataset, mixed_run: Path, tmp_path: Path
) -> None:
    export(str(mixed_run / "latest-rank0.pt"), str(tmp_path / "model"))
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    fingerprints = [done.dataset.manifest.fingerprint, task.manifest.fingerprint]
    assert record["dataset"]["fingerprint"] == fingerprints[0]
    assert {name: source["fingerprint"] for name, source in record["sources"].items()} == dict(
        zip(("corpus", "task"), fingerprints, strict=True)
    )
    [phase] = record["mixture"]["phases"]
    assert [(part["source"], part["share"], part["histogram"]) for part in phase["components"]] == [
        ("corpus", 0.75, "task.histogram"),
        ("task", 0.25, "base"),
    ]
    card = (tmp_path / "model" / "README.md").read_text()
    for told in ("### Source corpus", "### Source task", *fingerprints, "| 1 | task | 0.25 | base |"):
        assert told in card
    judged = open_model(str(tmp_path / "model")).record
    assert judged.trained_on == fingerprints
    assert judged.histograms == ["0.75 corpus: task.histogram + 0.25 task: base"]
    assert "hashes" not in json.dumps(plain_record(judged))
    named: Any = type("Judged", (), {"model_name": "m", "model": {"training": record}})
    assert method_of(named, {}) == "0.75 corpus: task + 0.25 task: base"


def test_the_page_of_each_source_shows_what_the_run_was_served_of_it(
    done: SmallRun, task: Dataset, mixed_run: Path, tmp_path: Path
) -> None:
    served = served_of(mixed_run)
    for name, dataset in (("corpus", done.dataset), ("task", task)):
        run = read_run(str(mixed_run), dataset)
        windows = [window for batch in served for source, window in batch if source == name]
        leaves = Counter(dataset.leaf_of_windows(np.array(windows)).tolist())
        assert dict(zip(run.served_leaves.tolist(), run.served_windows.tolist(), strict=True)) == leaves
        assert run.source == name
    page = run_section([run], [None], Tree(arity=2, levels=[], terms=[]), assign_colours([], [(run.key, [])]), 1.0)
    assert "Components of the mixture" in page
    assert "corpus: task.histogram" in page
    copy_until(mixed_run, 8, tmp_path / "going")
    going = read_run(str(tmp_path / "going"), task)
    assert (going.source, going.served_windows.sum()) == (
        "task",
        sum(source == "task" for batch in served[:8] for source, _ in batch),
    )
    with pytest.raises(InputError, match=r"trained on dataset corpus \w{12}, task \w{12}, .*other is"):
        read_run(str(mixed_run), write_dataset(tmp_path / "other", seed=4))


def test_fine_tuning_with_replay_tries_fractions(
    done: SmallRun, task: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "valid.jsonl").write_text('{"text": "abcdefgh abcdefgh"}\n')
    roots = [f"data.sources.corpus.remote={done.dataset.root}", f"data.sources.task.remote={task.root}"]
    given = ["finetune", str(done.recipe_file), *roots, "run_name=tuned", f"save_folder={tmp_path}/tuned"]
    given += ["--method", "replay", "--pretrained", str(done.save_folder), "--text", str(tmp_path / "valid.jsonl")]
    assert main([*given, "--fractions", "0.33", "1"]) == 0
    assert "<- best" in capsys.readouterr().out
    for fraction, samples in (("33.3333", 32), ("100", 96)):
        account = account_of(tmp_path / "tuned" / fraction)
        assert account["sources"]["task"]["samples"] == pytest.approx(0.8 * samples, abs=3)
        assert account["phases"][-1]["histogram"] == "0.8 task: base + 0.2 corpus: base"
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    assert main([*given[:-1], str(tmp_path / "valid.jsonl"), "--fractions", "0.33"]) == 2
    assert "30 of 30 stand in the text that run tuned was trained on" in capsys.readouterr().err


def test_a_run_says_its_sources_and_components_before_it_begins(
    done: SmallRun, task: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing_saved = StartingPoint(url=None, path=None, resumes=False)
    announce(prepare(done.recipe(*mixed(done, task)), nothing_saved))
    said = capsys.readouterr().err.splitlines()
    assert any("windows of what the mixture can reach" in line for line in said if line.startswith("warning: "))
    assert [line.split(maxsplit=2) for line in said if line.startswith(("source", "phase"))] == [
        ["source", "corpus", f"504 windows in {done.dataset.root}"],
        ["source", "task", f"11 windows in {task.root}"],
        ["phase", "1", "0.75 corpus: task.histogram + 0.25 task: base"],
    ]
    schedule = f"[{{components: [{{histogram: base}}], schedule: {{to: [{{histogram: {done.histogram}}}], steps: 4}}}}]"
    announce(prepare(done.recipe(f"mixture.phases={schedule}"), nothing_saved))
    said = "0.875 base + 0.125 task.histogram to 0.125 base + 0.875 task.histogram, in 4 steps"
    assert f"phase 1     {said}" in capsys.readouterr().err


def test_texts_are_looked_for_in_all_sources(mixed_run: Path) -> None:
    record = training_record(read_checkpoint(mixed_run / "latest-rank0.pt"), mixed_run)
    seen = seen_examples(record, list(range(30)), JudgedTexts.of(TEXTS))
    assert [one.num_seen for one in seen.trained_on] == [30]
    assert len(seen.datasets or []) == 2
    # `base` of both sources was counted from no examples; the other histogram does not say.
    assert [counted.histogram for counted in seen.histograms if not counted.is_known] == ["task.histogram"]


def test_a_run_among_others_warns_of_held_out_text_that_a_source_has(
    done: SmallRun, task: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    train(done.recipe(*mixed(done, task), f"eval.inputs={tmp_path}/held.jsonl", f"save_folder={tmp_path}/run"))
    assert "held-out text: 30 of 30 stand in the text that run small was trained on" in capsys.readouterr().err


def test_a_limit_caps_the_task_and_the_corpus_takes_the_rest(
    done: SmallRun, task: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = train(done.recipe(*mixed(done, task, max_repeats=2, on_excess="cap"), f"save_folder={tmp_path}/run"))
    task_part = report.phases[0]["components"][1]
    assert task_part["share"] == pytest.approx(22 / 96)
    assert task_part["served"] == pytest.approx(22, abs=1)
    assert "component 2 (source task)" in caplog.text


def of_other_length(folder: Path) -> str:
    return write_dataset(folder / "other", window_tokens=16).root


def empty(folder: Path) -> str:
    root = Path(write_dataset(folder / "other").root)
    manifest = json.loads((root / MANIFEST).read_text())
    (root / MANIFEST).write_text(json.dumps({**manifest, "num_windows": 0}))
    return str(root)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"task": of_other_length},
            InputError,
            r"sources: all must have the same window length, but corpus has 32 .* and task has 16 ",
        ),
        ({"task": empty}, FormatError, r"`data.sources.task` \(.*/other\): .*num_windows must be 1 to .*, got 0"),
        ({"task": lambda folder: str(folder / "nowhere")}, CrispError, "nowhere"),
        (
            {"limit": {"max_repeats": 2}},
            InputError,
            r"phase 1, component 2 \(source task\): .*more than max_repeats 2 times.*24 samples of 11 windows",
        ),
        ({"tree": True}, InputError, r"phase 1, component 2 \(source task\): the histogram was counted with tree"),
        (
            {"phase": "{source: corpus, windows: FILE}"},
            InputError,
            r"`mixture.phases.0.components.0.windows` \(other.windows.parquet\): "
            "the window selection was made for dataset .* Select again with --data",
        ),
        (
            {"phase": "{source: corpus, histogram: base, windows: FILE}"},
            InputError,
            r"`mixture.phases.0.components.0.windows` \(other.windows.parquet\): "
            "the window selection was made for dataset .* Select again with --data",
        ),
        (
            {"phase": "{source: corpus, histogram: [base, FILE]}"},
            RecipeError,
            "`base` cannot be averaged with histograms of a level",
        ),
        (
            {
                "phase": "{source: corpus, histogram: base}",
                "more": ", schedule: {to: [{source: task, histogram: base}]}",
            },
            RecipeError,
            r"`mixture.phases.0.schedule.steps` is 20, but the phase has 12 batches",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_a_model_is_built(
    done: SmallRun,
    task: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    error: type[CrispError],
    message: str,
) -> None:
    monkeypatch.setattr(model, "build_gpt", None)
    other = tmp_path / "other.windows.parquet"
    random_selection(task, 0.9).save(other)
    overrides = mixed(done, task, **changes.get("limit", {}))
    if "tree" in changes:
        overrides[-1] = overrides[-1].replace("histogram: base", f"histogram: {done.histogram}")
    if "phase" in changes:
        phase = changes["phase"].replace("FILE", str(other))
        overrides = with_task(done, task, phase, more=changes.get("more", ""))
    if "task" in changes:
        overrides.append(f"data.sources.task.remote={changes['task'](tmp_path)}")
    with pytest.raises(error, match=message):
        train(done.recipe(*overrides, *UNSAVED))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources.task.remote={other}", r"the dataset at `data.sources.task.remote` was \w{12}, is \w{12}"),
        ("data.sources.more={{remote: {other}}}", r"the dataset at `data.sources.more.remote` was not there, is "),
        (
            "mixture.phases.0.components=[{{source: corpus, histogram: base}}]",
            r"`mixture.phases.0.components.1.source` was task, is nothing",
        ),
    ],
)
def test_another_run_of_sources_is_refused_in_a_folder(
    done: SmallRun, task: Dataset, mixed_run: Path, tmp_path: Path, override: str, message: str
) -> None:
    other = write_synthetic_dataset(tmp_path / "other", TASK, arity=2, depth=2, seed=8).root
    copy_until(mixed_run, 8, tmp_path / "run")
    changed = [*mixed(done, task), override.format(other=other), f"save_folder={tmp_path}/run", "run_name=mixed"]
    with pytest.raises(ResumeError, match=rf"holds another run: .*{message}"):
        train(done.recipe(*changed, "autoresume=true"))
    shutil.copy(mixed_run / "run.json", tmp_path / "run")
    if "remote" in override:
        with pytest.raises(InputError, match=r"`data.sources.\w+.remote` was \S+, is \S+"):
            train(done.recipe(*changed))


def test_a_source_that_has_grown_is_read_in_its_generation(done: SmallRun, task: Dataset) -> None:
    with pytest.raises(InputError, match="generation must be one that is there, got 3"):
        train(done.recipe(*mixed(done, task), "data.sources.task.generation=3", *UNSAVED))


def test_phases_of_a_recipe_are_those_of_python(done: SmallRun, task: Dataset) -> None:
    sources = Sources({"corpus": done.dataset, "task": task})
    built = build_mixture(done.recipe(*mixed(done, task)), sources)
    parts = [Component(Histogram.load(done.histogram), share=0.75, source="corpus")]
    parts.append(Component(Histogram.base(task.manifest), share=0.25, source="task"))
    assert built.fingerprint == Mixture([Phase(parts)]).fingerprint
    limited = build_mixture(done.recipe(*mixed(done, task, max_repeats=3)), sources)
    assert limited.fingerprint == built.fingerprint  # held, and the run can be made longer
    assert limited.num_samples is None
