"""The demo from end to end at a small size, on a local disk and on a real S3 server.

Whether CRISP beats base is what `make demo` shows at its full size; a few batches decide nothing.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from crisp_stream.demo import DemoResult, DemoScale, comparison_text, run_demo
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import open_dataset
from tests.support.seaweed import S3Server

SMALL = DemoScale(
    generalist_characters=60_000,
    specialist_documents=12,
    test_documents=10,
    window_tokens=64,
    vocab_size=512,
    encoder_pieces=32,
    arity=4,
    min_examples_to_split=16,
    recipe_overrides=(
        "max_duration=4ba",
        "global_train_batch_size=4",
        "model.n_embd=32",
        "model.n_layer=1",
        "model.n_head=2",
        "scheduler.t_warmup=1ba",
    ),
)


@dataclasses.dataclass(frozen=True)
class LocalDemo:
    """A finished small demo and where it stands."""

    folder: Path
    result: DemoResult
    log: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> LocalDemo:
    folder = tmp_path_factory.mktemp("demo") / "out"
    lines: list[str] = []
    result = run_demo(run_folder=folder, scale=SMALL, log=lines.append)
    return LocalDemo(folder, result, "\n".join(lines))


def again(demo: LocalDemo, *, scale: DemoScale = SMALL, fresh: bool = False) -> tuple[DemoResult, str]:
    lines: list[str] = []
    result = run_demo(run_folder=demo.folder, scale=scale, fresh=fresh, log=lines.append)
    return result, "\n".join(lines)


def test_every_step_is_announced_and_the_numbers_are_printed(demo: LocalDemo) -> None:
    assert [f"[{number}/6]" in demo.log for number in range(1, 7)] == [True] * 6
    assert comparison_text(demo.result.comparison) in demo.log
    assert demo.result.comparison.verdict in demo.log
    assert demo.result.kept == ()


def test_the_numbers_are_measured(demo: LocalDemo) -> None:
    for run in (demo.result.comparison.base, demo.result.comparison.crisp):
        assert 1 < run.specialist_perplexity < 2 * SMALL.vocab_size
        assert 1 < run.generalist_perplexity < 2 * SMALL.vocab_size
        assert [batch for batch, _ in run.losses] == [1, 2, 3, 4]
        assert all(math.isfinite(loss) for _, loss in run.losses)
        assert run.num_tokens == 4 * 4 * SMALL.window_tokens
        assert run.bytes_read > 0
        assert 0 <= run.mixture_error <= 1


def test_both_runs_start_alike_and_see_different_text(demo: LocalDemo) -> None:
    base, crisp = demo.result.comparison.base, demo.result.comparison.crisp
    assert base.num_tokens == crisp.num_tokens
    assert base.losses[0][1] == pytest.approx(crisp.losses[0][1], rel=0.05)
    assert base.losses != crisp.losses


def test_the_dataset_has_a_tree_of_two_levels_and_the_task_its_clusters(demo: LocalDemo) -> None:
    dataset = open_dataset(str(demo.folder / "data"))
    assert (dataset.manifest.arity, dataset.manifest.depth) == (4, 2)
    assert dataset.manifest.num_leaves > SMALL.arity
    clusters = demo.result.comparison.clusters
    assert all(cluster.text for cluster in clusters if cluster.num_windows)
    assert [cluster.share for cluster in clusters] == sorted((cluster.share for cluster in clusters), reverse=True)


def test_the_pages_are_written(demo: LocalDemo) -> None:
    page = demo.result.report.read_text(encoding="utf-8")
    assert demo.result.report == demo.folder / "report.html"
    assert f"{demo.result.comparison.crisp.specialist_perplexity:,.1f}" in page
    assert demo.result.map_page == demo.folder / "map.html"
    tree = demo.result.map_page.read_text(encoding="utf-8")
    assert "medical abstracts" in tree
    assert 'id="runs"' in tree


def test_a_second_run_keeps_everything_and_says_so(demo: LocalDemo) -> None:
    result, log = again(demo)
    assert result.kept == ("dataset", "histogram", "base", "crisp")
    assert result.comparison == demo.result.comparison
    for name in result.kept:
        assert f"{name}: found, kept" in log


def test_other_training_settings_train_again_on_the_same_dataset(demo: LocalDemo) -> None:
    changed = dataclasses.replace(SMALL, recipe_overrides=(*SMALL.recipe_overrides, "optimizer.lr=0.01"))
    result, log = again(demo, scale=changed)
    assert result.kept == ("dataset", "histogram")
    assert result.comparison.base.losses[1:] != demo.result.comparison.base.losses[1:]
    assert "base: an earlier training with other settings is removed" in log
    result, _ = again(demo, fresh=True)
    assert result.kept == ("dataset", "histogram")
    assert result.comparison.base.losses == demo.result.comparison.base.losses


def test_a_damaged_histogram_is_counted_again(demo: LocalDemo) -> None:
    path = demo.folder / "task.parquet"
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2])
    result, _ = again(demo)
    assert "histogram" not in result.kept
    assert path.read_bytes() == intact


def test_a_place_that_holds_another_dataset_is_refused(demo: LocalDemo, tmp_path: Path) -> None:
    other = dataclasses.replace(SMALL, window_tokens=32)
    with pytest.raises(InputError, match="holds a dataset, but not the one this demo would write there"):
        run_demo(str(demo.folder / "data"), run_folder=tmp_path, scale=other, log=print)


def test_the_demo_in_an_object_store_gives_the_same_numbers(demo: LocalDemo, s3: S3Server, tmp_path: Path) -> None:
    prefix = s3.fresh_prefix("demo")
    result = run_demo(prefix, run_folder=tmp_path, scale=SMALL, log=print)
    written = open_dataset(prefix)
    assert written.manifest == open_dataset(str(demo.folder / "data")).manifest
    for ours, local in (
        (result.comparison.base, demo.result.comparison.base),
        (result.comparison.crisp, demo.result.comparison.crisp),
    ):
        assert ours.losses == local.losses
        assert ours.specialist_perplexity == pytest.approx(local.specialist_perplexity)
        assert ours.mixture_error == local.mixture_error
    again = run_demo(prefix, run_folder=tmp_path, scale=SMALL, log=print)
    assert again.kept == ("dataset", "histogram", "base", "crisp")
