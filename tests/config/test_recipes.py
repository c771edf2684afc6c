"""The packaged recipes: they load in every combination, say what they are, and hold the paper's numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.config.durations import batches_of, parse_duration
from crisp_stream.config.files import list_recipes, read_recipe
from crisp_stream.config.load import load_recipe
from crisp_stream.errors import InputError
from crisp_stream.forecast.forecast import forecast
from crisp_stream.training.mixture import build_mixture
from crisp_stream.training.train import train
from tests.support.seaweed import S3Server
from tests.support.selections import random_selection
from tests.support.small_runs import SmallRun, leaf_histogram, small_run, write_dataset
from tests.support.synthetic import upload

SIZES = ["demo", "gpt-350m", "gpt-1.3b", "gpt-6.7b"]
METHODS = [
    "base",
    "crisp",
    "crisp-task",
    "selected",
    "multitask",
    "annealed",
    "continued",
    "from-checkpoint",
    "finetune",
    "replay",
    "only-specialist",
]
WITH_TASK_TEXT = ("crisp-task", "replay")
TOY = [
    "model.n_embd=32",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_positions=null",
    "global_train_batch_size=8",
    "device_train_microbatch_size=4",
    "max_duration=10ba",
    "save_interval=2ba",
    "scheduler.t_warmup=2ba",
    "precision=fp32",
    "compile_config=null",
]
"""What makes a run of a few seconds on a CPU of any size; precision and compilation are for GPUs."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def test_every_recipe_of_the_project_is_packaged() -> None:
    assert {*SIZES, *METHODS, "gpt", "gpt-110m"} == set(list_recipes())


@pytest.mark.parametrize(("size", "method"), list(itertools.product(SIZES, METHODS)))
def test_every_size_loads_with_every_method(size: str, method: str) -> None:
    assert load_recipe([size, method]).run_name == f"{size}-{method}"


@pytest.mark.parametrize("name", [*SIZES, *METHODS, "gpt", "gpt-110m"])
def test_a_header_says_what_it_is_what_it_needs_what_it_costs_and_how_to_launch_it(name: str) -> None:
    header = read_recipe(name).split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert header.splitlines()[0].endswith(".")
    for part in ("What must exist first", "Launch", "Cost", "One override", name):
        assert part in header


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["crisp", "selected", "multitask", "continued", "annealed"])
def test_methods_differ_from_base_in_the_mixture_alone(size: str, method: str) -> None:
    base, other = load_recipe([size, "base"]), load_recipe([size, method])
    for key in ("seed", "model", "optimizer", "scheduler", "max_duration", "global_train_batch_size", "data"):
        assert getattr(base, key) == getattr(other, key)
    assert base.mixture.phases[0].histogram == "base"
    assert base.mixture != other.mixture


@pytest.mark.parametrize("method", ["crisp", "multitask", "continued", "from-checkpoint"])
def test_the_limit_in_the_header_caps_the_phase_of_the_task(method: str) -> None:
    assert "max_repeats: null" in read_recipe(method)
    (line,) = [line for line in read_recipe(method).splitlines() if line.startswith("# Limit:")]
    *phases, task = load_recipe(["demo", method], line.split()[4:]).mixture.phases
    assert line.split()[3] == method
    assert (task.max_repeats, task.on_excess) == (6, "cap")
    assert all(phase.max_repeats is None for phase in phases)


def test_a_limit_of_repeats_holds_and_the_others_get_the_rest(done: SmallRun, tmp_path: Path) -> None:
    """70 % of 400 samples stand on a leaf of 24 windows: 11.7 passes, or 6."""
    wanted = np.full(16, 0.02)
    wanted[0] = 0.7
    replace(leaf_histogram(done.dataset, list(range(16))), proportions=wanted).save(tmp_path / "task.parquet")
    overrides = [*TOY, "max_duration=50ba", f"data.remote={done.dataset.root}"]
    overrides.append(f"mixture.phases.0.histogram={tmp_path}/task.parquet")

    def most_passes(*limit: str) -> tuple[float, float]:
        mixture = build_mixture(load_recipe(["demo", "crisp"], [*overrides, *limit]), done.dataset)
        passes = [entry.epochs for entry in forecast(done.dataset, mixture, samples=400, top=16).most_repeated]
        return passes[0], passes[1]

    free, capped = most_passes(), most_passes("mixture.phases.0.max_repeats=6", "mixture.phases.0.on_excess=cap")
    assert free[0] == pytest.approx(280 / 24, abs=0.1)
    assert capped[0] == pytest.approx(6, abs=0.1)
    assert capped[1] > free[1]
    with pytest.raises(InputError, match="would be drawn more than max_repeats 6 times"):
        most_passes("mixture.phases.0.max_repeats=6")


def test_continued_pretraining_switches_where_the_paper_does() -> None:
    recipe = load_recipe(["gpt-1.3b", "continued"], ["max_duration=1024000ba"])
    until = recipe.mixture.phases[0].until
    assert until is not None
    assert batches_of(until, tokens_per_batch=112 * 1024, run_batches=1_024_000) == 928_000


@pytest.fixture(scope="module", params=["local", "s3"])
def roots(request: pytest.FixtureRequest, done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A corpus and a specialist dataset: folders, or prefixes of a real object store."""
    specialist = write_dataset(tmp_path_factory.mktemp("specialist") / "dataset", seed=8)
    if request.param == "local":
        return done.dataset.root, specialist.root
    server: S3Server = request.getfixturevalue("s3")
    return upload(done.dataset, server.fresh_prefix("corpus")), upload(specialist, server.fresh_prefix("specialist"))


@pytest.mark.parametrize(("size", "method"), list(itertools.product(SIZES, METHODS)))
def test_every_recipe_trains_two_batches_at_toy_width_from_a_local_and_from_an_s3_dataset(
    done: SmallRun, tmp_path: Path, roots: tuple[str, str], size: str, method: str
) -> None:
    """Where a recipe starts from a checkpoint, that of eight of ten batches comes first."""
    root, specialist = roots
    other = tmp_path / "other.parquet"
    leaf_histogram(done.dataset, [2, 9]).save(other)
    chosen = tmp_path / "chosen.windows.parquet"
    random_selection(done.dataset, 0.3).save(chosen)
    histogram = {
        "crisp": [f"mixture.phases.0.histogram={done.histogram}"],
        "selected": [f"mixture.phases.0.windows={chosen}"],
        "multitask": [f"mixture.phases.0.histogram=[{done.histogram}, {other}]"],
        "continued": [f"mixture.phases.1.histogram={done.histogram}", "mixture.phases.0.until=0.5dur"],
        "from-checkpoint": [f"mixture.phases.1.histogram={done.histogram}"],
        "crisp-task": [f"mixture.phases.0.components.0.histogram={done.histogram}"],
        "annealed": [
            f"mixture.phases.0.schedule.to.0.histogram={done.histogram}",
            "mixture.phases.0.schedule.steps=2",
        ],
    }.get(method, [])
    data = [f"data.remote={specialist if method in ('finetune', 'only-specialist') else root}"]
    if method in WITH_TASK_TEXT:
        data = [f"data.sources.corpus.remote={root}", f"data.sources.task.remote={specialist}"]
    toy = [*TOY, f"data.local={tmp_path / 'cache'}", "data.num_workers=0"]
    length, batches = ["max_duration=2ba", "scheduler.t_warmup=1ba"], range(1, 3)
    if method in ("from-checkpoint", "finetune", "replay"):
        generic = load_recipe([size, "base"], [*toy, f"data.remote={root}", f"save_folder={tmp_path}/generic"])
        checkpoint = str(train(generic).checkpoint).replace("ba10", "ba8")
        length, batches = [f"load_path={checkpoint}"], range(9, 11)
    report = train(load_recipe([size, method], [*toy, *data, *histogram, *length, f"save_folder={tmp_path}/run"]))
    first_batches = {phase["first_batch"] for phase in report.phases if phase["samples"]}
    assert (tmp_path / "run" / f"ep0-ba{batches[-1]}-rank0.pt").exists()
    if method in WITH_TASK_TEXT:
        assert {name: source["root"] for name, source in (report.sources or {}).items()} == {
            "corpus": root,
            "task": specialist,
        }
    if method in ("continued", "annealed"):
        assert first_batches == {1, 2}
    elif method == "from-checkpoint":
        assert (report.batches, first_batches) == (10, {1, 9})
    else:
        assert (report.batches, first_batches) == (2, {batches[0]})


@pytest.mark.parametrize(
    ("name", "width", "heads", "depth", "batch_tokens", "lr", "clipping", "steps", "total_tokens"),
    [
        ("gpt-350m", 1024, 16, 24, 96e3, 1e-4, 5.0, 400_000, 40e9),
        ("gpt-1.3b", 2048, 16, 24, 115e3, 1e-4, 5.0, 1_000_000, 120e9),
        ("gpt-6.7b", 4096, 32, 32, 1.04e6, 3e-4, 0.1, 340_000, 350e9),
    ],
)
def test_the_large_recipes_hold_table_4(
    name: str,
    width: int,
    heads: int,
    depth: int,
    batch_tokens: float,
    lr: float,
    clipping: float,
    steps: int,
    total_tokens: float,
) -> None:
    recipe = load_recipe([name, "base"])
    assert (recipe.model.n_embd, recipe.model.n_head, recipe.model.n_layer) == (width, heads, depth)
    assert recipe.model.n_positions == 1024
    tokens_per_batch = recipe.global_train_batch_size * 1024
    assert tokens_per_batch == pytest.approx(batch_tokens, rel=0.03)
    assert recipe.optimizer.lr == pytest.approx(lr)
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert recipe.gradient_clipping == clipping
    assert batches_of(recipe.max_duration, tokens_per_batch=tokens_per_batch) == steps
    assert steps * tokens_per_batch == pytest.approx(total_tokens, rel=0.05)
    warmup, unit = parse_duration(recipe.scheduler.t_warmup)
    assert unit == "ba"
    assert warmup * tokens_per_batch == pytest.approx(375e6, rel=0.002)
