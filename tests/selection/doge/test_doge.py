"""DoGE by its command: the cluster that the specialist text is like wins, and a stopped run goes on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.config.durations import batches_of
from crisp_stream.config.load import load_recipe
from crisp_stream.config.recipe import Recipe
from crisp_stream.errors import FormatError, InputError, RecipeError, ResumeError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.arithmetic import generalist_histogram
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.selection.doge.doge import weigh_by_doge
from crisp_stream.selection.doge.doge_report import comparable, compared_clusters
from crisp_stream.selection.doge.settings import DogeSettings
from crisp_stream.selection.doge.target_text import read_target_text
from tests.support.parameters import count_parameters
from tests.support.synthetic import write_synthetic_dataset

LETTERS = ["abcdef", "ghijkl", "mnopqr"]
"""The clusters 0, 1 and 2 of level 1 each have an alphabet of their own."""
LIKE = 2
WINDOW_TOKENS = 16
STEPS = 12
TOY = [
    "model.n_embd=16",
    "model.n_layer=1",
    "model.n_head=2",
    f"max_duration={STEPS}ba",
    "global_train_batch_size=6",
    "device_train_microbatch_size=2",
    "optimizer.lr=0.01",
    "scheduler.t_warmup=2ba",
    "save_interval=5ba",
    "log_interval=4",
]


def text_of(letters: str, length: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two leaves below each of three clusters; 12 windows each."""
    leaves = [0, 3, 5, 6, 8, 11]
    texts = [text_of(LETTERS[leaf // 4], 12 * WINDOW_TOKENS, leaf) for leaf in leaves]
    tokens = np.frombuffer("".join(texts).encode(), np.uint8).astype(np.uint16).reshape(-1, WINDOW_TOKENS)
    folder = tmp_path_factory.mktemp("three-alphabets") / "dataset"
    return write_synthetic_dataset(folder, dict.fromkeys(leaves, 12), window_tokens=WINDOW_TOKENS, tokens=tokens)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "task.jsonl"
    path.write_text("".join(json.dumps({"text": text_of(LETTERS[LIKE], 100, 70 + n)}) + "\n" for n in range(6)))
    return path


@pytest.fixture(scope="module")
def recipe(dataset: Dataset) -> Recipe:
    return load_recipe(["demo", "base"], [*TOY, f"data.remote={dataset.root}"])


def counted(dataset: Dataset, leaves: list[int]) -> Histogram:
    return Histogram.from_leaves(leaves, dataset.tree, dataset.manifest.depth)


def arguments(dataset: Dataset, text: Path, out: Path, *more: str, keys: tuple[str, ...] = ()) -> list[str]:
    recipe = ["demo", *TOY, f"data.remote={dataset.root}", *keys]
    return ["select", "doge", *recipe, "--text", str(text), "--out", str(out), *more]


@pytest.mark.parametrize("update", ["paper", "public-code"])
def test_the_cluster_that_equals_the_specialist_text_gets_the_largest_weight(
    dataset: Dataset, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], update: str
) -> None:
    out = tmp_path / "weights.parquet"
    counted(dataset, [8, 8, 11, 0]).save(tmp_path / "crisp.parquet")
    given = ["--update", update, "--compare", str(tmp_path / "crisp.parquet")]
    assert main(arguments(dataset, text, out, *given)) == 0
    printed = capsys.readouterr().out
    found, last = Histogram.load(out), Histogram.load(tmp_path / "weights.last20.parquet")
    for histogram in (found, last):
        assert histogram.nodes.tolist() == [0, 1, 2]
        assert histogram.level == 1
        assert int(histogram.proportions.argmax()) == LIKE
        assert histogram.proportions[LIKE] > 0.4
    assert f"step      {STEPS}/{STEPS}" in printed
    assert "75.00%" in printed  # of the compared histogram at level 1
    assert "total variation" in printed
    assert not (tmp_path / "weights.state.pt").exists()
    cost = found.provenance["cost"]
    assert cost["corpus_tokens"] == cost["specialist_tokens"] == STEPS * 6 * WINDOW_TOKENS
    assert cost["seconds"] > 0
    assert found.provenance["settings"]["mu"] == 5e-4
    with (tmp_path / found.provenance["trajectory"]).open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [4, 8, 12]
    assert sum(float(rows[0][f"cluster_{node}"]) for node in range(3)) == pytest.approx(1)


def test_the_average_of_the_last_steps_can_be_the_result(dataset: Dataset, text: Path, tmp_path: Path) -> None:
    given = arguments(dataset, text, tmp_path / "weights.parquet", "--average", "last", keys=("max_duration=25ba",))
    assert main(given) == 0
    chosen, other = Histogram.load(tmp_path / "weights.parquet"), Histogram.load(tmp_path / "weights.run.parquet")
    assert chosen.provenance["averaged_over"] == "last 20 steps"
    assert other.provenance["averaged_over"] == "all 25 steps"
    assert chosen.fingerprint != other.fingerprint


class StoppedError(Exception):
    """A run that ends in the middle."""


def stop_at(step: int) -> list[str]:
    """A log that ends the run once it reports a step."""

    class Log(list[str]):
        def __call__(self, line: str) -> None:
            self.append(line)
            if line.startswith(f"step {step:>7,}/"):
                raise StoppedError

    return Log()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    dataset: Dataset, text: Path, tmp_path: Path, dropout: float
) -> None:
    recipe = load_recipe(["demo", "base"], [*TOY, f"data.remote={dataset.root}", f"model.dropout={dropout}"])
    whole = weigh_by_doge(recipe, [str(text)], out=tmp_path / "whole.parquet", log=lambda line: None)
    out, lines = tmp_path / "stopped.parquet", []
    with pytest.raises(StoppedError):
        weigh_by_doge(recipe, [str(text)], out=out, log=stop_at(8))  # pyright: ignore[reportArgumentType]
    assert not out.exists()
    resumed = weigh_by_doge(recipe, [str(text)], out=out, log=lines.append)
    assert lines[0].startswith("goes on after step 5 ")
    assert resumed.run_average.fingerprint == whole.run_average.fingerprint
    assert resumed.last_average.fingerprint == whole.last_average.fingerprint
    trajectories = [(tmp_path / f"{name}.trajectory.csv").read_text() for name in ("whole", "stopped")]
    assert trajectories[0] == trajectories[1]


def test_another_seed_gives_other_weights_and_the_same_one_the_same(
    dataset: Dataset, text: Path, recipe: Recipe, tmp_path: Path
) -> None:
    other = load_recipe(["demo", "base"], [*TOY, f"data.remote={dataset.root}", "seed=18"])
    first, again, third = (
        weigh_by_doge(own, [str(text)], out=tmp_path / "weights.parquet", log=lambda line: None).chosen
        for own in (recipe, recipe, other)
    )
    assert first.fingerprint == again.fingerprint != third.fingerprint


def test_a_state_of_another_run_is_refused_and_says_what_differs(
    dataset: Dataset, text: Path, recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "weights.parquet"
    with pytest.raises(StoppedError):
        weigh_by_doge(recipe, [str(text)], out=out, log=stop_at(8))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ResumeError, match=r"must be of a run with mu 0\.001, got one with 0\.0005"):
        weigh_by_doge(recipe, [str(text)], out=out, settings=DogeSettings(mu=1e-3), log=lambda line: None)
    (tmp_path / "weights.state.pt").write_bytes(b"no state")
    with pytest.raises(FormatError, match="must be a state of a DoGE run"):
        weigh_by_doge(recipe, [str(text)], out=out, log=lambda line: None)


def test_fewer_windows_than_clusters_are_said_and_still_find_the_cluster(
    dataset: Dataset, text: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    given = [*TOY, f"data.remote={dataset.root}", "global_train_batch_size=2", "max_duration=40ba"]
    recipe = load_recipe(["demo", "base"], given)
    settings = DogeSettings(target_windows=8)
    found = weigh_by_doge(recipe, [str(text)], out=tmp_path / "w.parquet", settings=settings, log=lines.append).chosen
    assert any("a batch of 2 windows holds at most 2 of 3 clusters" in line for line in lines)
    assert int(found.proportions.argmax()) == LIKE
    assert found.provenance["cost"]["specialist_tokens"] == 40 * 8 * WINDOW_TOKENS


def test_what_cannot_be_weighed_is_said_before_the_run(
    dataset: Dataset, text: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weights.parquet"
    assert main(arguments(dataset, text, out, "--level", "3")) == 2
    assert main(arguments(dataset, text, out, "--level", "0")) == 2
    assert main(arguments(dataset, text, out, "--mu", "0")) == 2
    assert main(arguments(dataset, text, out, "--top", "0")) == 2
    assert main(arguments(dataset, text, out, keys=("load_path=somewhere.pt",))) == 2
    assert main(arguments(dataset, text, out, keys=("precision=amp_fp16",))) == 2
    counted(dataset, [8]).save(tmp_path / "fine.parquet")
    coarse = Histogram.from_leaves([8], dataset.tree, 1)
    coarse.save(tmp_path / "coarse.parquet")
    assert main(arguments(dataset, text, out, "--level", "2", "--compare", str(tmp_path / "coarse.parquet"))) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 7
    for line, part in zip(
        printed,
        ["must be 0 to 2", "DoGE needs two", "mu must be", "--top", "load_path", "precision", "of level 2 or deeper"],
        strict=True,
    ):
        assert part in line
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(InputError, match="must fill a window of 16 tokens, got 3 tokens in 1 documents"):
        weigh_by_doge(recipe, [str(tmp_path / "short.txt")], out=out, log=lambda line: None)
    with pytest.raises(InputError, match="update must be one of paper, public-code, got 'other'"):
        DogeSettings(update="other")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="target windows must be at least 1"):
        DogeSettings(target_windows=0)


def test_a_run_of_several_processes_is_refused(
    recipe: Recipe, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="one process"):
        weigh_by_doge(recipe, [str(text)], out=tmp_path / "weights.parquet", log=lambda line: None)


def test_clusters_are_compared_by_their_mean_weight_beside_their_share_of_the_corpus(dataset: Dataset) -> None:
    weighed, other = Histogram.from_leaves([0, 5, 5, 5], dataset.tree, 1), counted(dataset, [8, 11, 11, 0])
    corpus = generalist_histogram(dataset, 1)
    rows = compared_clusters(weighed, corpus, comparable(other, 1, weighed.tree_fingerprint))
    assert [(row.node, row.weight, row.other) for row in rows] == [(1, 0.75, 0.0), (2, 0.0, 0.75), (0, 0.25, 0.25)]
    assert {round(row.corpus_share, 6) for row in rows} == {round(1 / 3, 6)}
    assert [row.other for row in compared_clusters(weighed, corpus, limit=1)] == [None]


def test_a_histogram_of_another_tree_is_not_compared(dataset: Dataset, tmp_path: Path) -> None:
    stranger = write_synthetic_dataset(tmp_path / "other", {0: 4, 1: 4}, arity=2)
    with pytest.raises(InputError, match="must come from tree"):
        comparable(counted(stranger, [0]), 1, dataset.manifest.tree_fingerprint)


def test_the_specialist_text_is_cut_like_the_corpus_and_every_window_is_used_once_per_round(
    dataset: Dataset, text: Path, tmp_path: Path
) -> None:
    target = read_target_text([str(text)], dataset)
    assert target.tokens.shape == (6 * 101 // WINDOW_TOKENS, WINDOW_TOKENS)
    assert bytes(target.tokens[0].astype(np.uint8)).decode() == text_of(LETTERS[LIKE], 100, 70)[:WINDOW_TOKENS]
    rows = np.concatenate([target.rows_of_step(step, 10, seed=3) for step in range(37)])
    for number in range(10):
        assert sorted(rows[number * 37 : (number + 1) * 37]) == list(range(37))
    assert rows[:37].tolist() != rows[37:74].tolist()
    separate = write_synthetic_dataset(
        tmp_path / "documents", dict.fromkeys([0, 5], 12), window_tokens=WINDOW_TOKENS, packing="document"
    )
    assert len(read_target_text([str(text)], separate).tokens) == 6 * 7


def test_a_corpus_of_separate_documents_is_weighed_without_its_padding(text: Path, tmp_path: Path) -> None:
    separate = write_synthetic_dataset(
        tmp_path / "documents", dict.fromkeys([0, 5], 12), window_tokens=WINDOW_TOKENS, packing="document"
    )
    recipe = load_recipe(["demo", "base"], [*TOY, f"data.remote={separate.root}", "max_duration=2ba"])
    found = weigh_by_doge(recipe, [str(text)], out=tmp_path / "w.parquet", log=lambda line: None).chosen
    assert found.provenance["windows"] == 42


def test_what_a_recipe_does_not_say_is_as_in_table_5() -> None:
    settings = DogeSettings()
    assert (settings.mu, settings.level, settings.average) == (5e-4, 1, "run")


def test_a_state_left_by_a_finished_run_only_writes_the_result(recipe: Recipe, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.parquet"
    with pytest.raises(StoppedError):
        weigh_by_doge(recipe, [str(text)], out=out, log=stop_at(8))  # pyright: ignore[reportArgumentType]
    state = tmp_path / "weights.state.pt"
    shutil.copy(state, tmp_path / "kept.pt")
    first = weigh_by_doge(recipe, [str(text)], out=out, log=lambda line: None).chosen
    shutil.copy(tmp_path / "kept.pt", state)
    again = weigh_by_doge(recipe, [str(text)], out=out, log=lambda line: None).chosen
    assert first.fingerprint == again.fingerprint


def test_the_proxy_of_the_paper_is_packaged_with_the_settings_of_table_5() -> None:
    recipe = load_recipe(["gpt-110m", "base"])
    assert recipe.global_train_batch_size * 1024 == 32_768
    assert recipe.optimizer.lr == pytest.approx(1e-4)
    assert batches_of(recipe.max_duration, tokens_per_batch=32_768) == 100_000
    assert count_parameters(recipe.model, vocab_size=32_768) == pytest.approx(110e6, rel=0.01)
    assert DogeSettings() == DogeSettings(level=1, mu=5e-4, update="paper", average="run")
