"""The command `forecast`: of a recipe's run, of histogram files, and of what it refuses."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.cli.forecast import add_forecast
from crisp_stream.errors import CrispError
from crisp_stream.forecast.forecast import forecast
from crisp_stream.forecast.result import Loader
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.histograms.phase import Phase
from tests.support.small_runs import BATCHES, SmallRun, leaf_histogram, small_run, windows_of, write_dataset
from tests.support.topics import topic_dataset


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def call(*arguments: object) -> None:
    """Run the command with these arguments."""
    parser = argparse.ArgumentParser()
    add_forecast(parser.add_subparsers())
    asked = parser.parse_args(["forecast", *map(str, arguments)])
    asked.run(asked)


def result(out: Path, *arguments: object) -> dict[str, Any]:
    """The JSON that the command writes."""
    call(*arguments, "--out", out)
    return json.loads(out.read_text())


def test_the_forecast_of_a_recipe_is_what_its_run_was_served(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = result(tmp_path / "new" / "forecast.json", "--mixture", run.recipe_file)
    served = [window for batch in windows_of(run.save_folder) for window in batch]
    assert found["samples"] == len(served) == 8 * BATCHES
    assert found["windows_served"] == len(set(served))
    times = Counter(Counter(served).values())
    times[0] = run.dataset.manifest.num_windows - len(set(served))
    assert {entry["least"]: entry["windows"] for entry in found["distribution"]} == times
    account = json.loads((run.save_folder / "run.json").read_text())
    assert found["mixture_error"] == pytest.approx(account["mixture_error"], abs=1e-9)
    assert (found["seed"], found["mixture_fingerprint"]) == (5, account["mixture_fingerprint"])
    assert [phase["samples"] for phase in found["phases"]] == [64, 32]
    printed = capsys.readouterr().out
    assert "96 samples, 3,072 tokens (systematic draws, seed 5)" in printed
    assert "phase 1        64 samples of base" in printed
    assert "written to" in printed


def test_a_recipe_takes_overrides_and_another_root(run: SmallRun, tmp_path: Path) -> None:
    keys = ["seed=6", "max_duration=10ba", "data.num_workers=2"]
    found = result(tmp_path / "f.json", "--mixture", run.recipe_file, *keys, "--data", run.dataset.root, "--nodes", 2)
    assert (found["seed"], found["samples"], len(found["reads"]["bytes_per_node"])) == (6, 80, 2)
    assert not found["reads"]["requests_exact"]  # two workers


def test_histogram_files_make_phases_in_order(run: SmallRun, tmp_path: Path) -> None:
    options = ["--samples", 400, "--seed", 3, "--batch", 16, "--nodes", 2, "--lookahead", 256, "--draw", "multinomial"]
    phases = ["base:200", run.histogram]
    found = result(tmp_path / "f.json", "--data", run.dataset.root, "--mixture", *phases, *options)
    base, task = Histogram.base(run.dataset.manifest), Histogram.load(run.histogram)
    mixture = Mixture([Phase(base, 200), Phase(task)], draw="multinomial")
    loader = Loader(nodes=2, batch_size=8, lookahead=256)
    expected = forecast(run.dataset, mixture, samples=400, seed=3, loader=loader)
    assert found == json.loads(json.dumps(expected.to_json()))


def test_tokens_are_rounded_up_to_windows(run: SmallRun, tmp_path: Path) -> None:
    arguments = ["--data", run.dataset.root, "--mixture", "base", "--tokens", 32 * 99 + 1]
    found = result(tmp_path / "f.json", *arguments)
    assert (found["samples"], found["tokens"]) == (100, 3200)


def test_a_limit_caps_the_last_phase_for_the_length_of_the_run(run: SmallRun, tmp_path: Path) -> None:
    arguments = ["--data", run.dataset.root, "--mixture", "base:100", run.histogram, "--samples", 160]
    found = result(tmp_path / "f.json", *arguments, "--max-repeats", 1, "--on-excess", "cap")
    assert [phase["samples"] for phase in found["phases"]] == [100, 60]


def test_the_cost_is_that_of_the_requests(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", run.dataset.root, "--mixture", "base", "--samples", 96, "--request-price", 2.5]
    reads = result(tmp_path / "f.json", *arguments)["reads"]
    assert reads["cost"] == pytest.approx(reads["requests"] * 0.0025)
    assert f"{reads['requests']} (exact), {reads['cost']:.2f} USD at 2.5 per 1,000" in capsys.readouterr().out


def test_most_repeated_clusters_are_named_by_their_terms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = topic_dataset(tmp_path / "topics")
    leaf_histogram(dataset, [5, 15]).save(tmp_path / "h.parquet")
    call("--data", dataset.root, "--mixture", f"{tmp_path / 'h.parquet'}:96", "--terms")
    lines = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(lines) if "most repeated of level 2" in line)
    named = [set(line.replace("·", " ").split()) for line in lines[head + 1 : head + 3]]
    assert {"15", "20", "46", "2.30", "compiler", "pointer", "kernel"} <= named[0]
    assert {"5", "300", "0.17", "orchestra", "violin"} <= named[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixture", "base"], "--data: histograms need the dataset root"),
        (["--data", "ROOT", "--mixture", "base"], "has no end: say how long"),
        (["--data", "ROOT", "--mixture", "base:10", "--samples", "11"], "have 10, got 11"),
        (["--data", "ROOT", "--mixture", "base", "base"], "phase 1 of 2 has no number of samples"),
        (["--data", "ROOT", "--mixture", "base", "seed=1"], "seed=1 is a key of a recipe, but no recipe is named"),
        (["--data", "ROOT", "--mixture", "base:5", "demo"], "demo among 2 phases"),
        (["--data", "ROOT", "--mixture", "seed=1"], "got neither"),
        (["--data", "ROOT", "--mixture", "none.parquet:5"], "none.parquet: no such file"),
        (["--data", "ROOT", "--mixture", "demo", "crips"], "did you mean `crisp`"),
        (["--mixture", "RECIPE", "from-checkpoint"], "how much of this run is left stands in its checkpoint"),
        (["--mixture", "RECIPE", "finetune"], "Forecast the whole run"),
        (["--mixture", "RECIPE", "--seed", "1"], "--seed: a recipe says this itself. Write seed=…"),
        (["--mixture", "RECIPE", "--cache-limit", "1gb"], "--cache-limit: a recipe says this itself"),
        (["--mixture", "RECIPE", "--nodes", "3"], "must be a multiple of the 3 groups of ranks"),
        (["--data", "ROOT", "--mixture", "base", "--samples", "9", "--tokens", "9"], "both say how long"),
        (["--data", "ROOT", "--mixture", "base:9", "--cache-limit", "many"], "cache_limit` must be bytes or a size"),
        (["--data", "ROOT", "--mixture", "base:9", "--batch", "-4"], "must be a multiple of the 1 groups"),
        (["--data", "ROOT", "--mixture", "base:9", "--nodes", "0"], "nodes: must be at least 1, got 0"),
        (["--data", "ROOT", "--mixture", "base:9", "--blocks", "0"], "max_blocks: must be at least 1"),
        (["--data", "ROOT", "--mixture", "base:9", "--on-excess", "cap"], "on_excess='cap' needs max_repeats"),
        (["--data", "ROOT", "--mixture", "base", "--max-repeats", "2"], "needs the number of samples of its phase"),
    ],
)
def test_what_cannot_be_forecast_is_refused_in_one_line(run: SmallRun, arguments: list[str], message: str) -> None:
    places = {"ROOT": run.dataset.root, "RECIPE": str(run.recipe_file)}
    with pytest.raises(CrispError) as refused:
        call(*(places.get(argument, argument) for argument in arguments))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_histogram_of_another_tree_is_refused(run: SmallRun, tmp_path: Path) -> None:
    histogram = leaf_histogram(run.dataset, [0])
    other = Histogram(
        level=histogram.level,
        nodes=histogram.nodes,
        proportions=histogram.proportions,
        arity=histogram.arity,
        depth=histogram.depth,
        tree_fingerprint="f" * 64,
    )
    other.save(tmp_path / "other.parquet")
    with pytest.raises(CrispError, match=r"Count it again with --data"):
        call("--data", run.dataset.root, "--mixture", tmp_path / "other.parquet", "--samples", 10)


def test_forecasts_need_no_torch(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    code = f"""
import sys
for name in ("torch", "transformers", "composer", "streaming"):
    sys.modules[name] = None
from crisp_stream.forecast.forecast import forecast
from crisp_stream.format.dataset import open_dataset
from crisp_stream.histograms.mixture import Mixture
dataset = open_dataset({dataset.root!r})
print(forecast(dataset, Mixture.base(dataset.manifest), samples=100).table())
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert "100 samples, 3,200 tokens" in done.stdout
