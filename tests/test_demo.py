"""The demo from end to end at a small size, on a local disk and on a real S3 server.

Whether CRISP beats base is what `make demo` shows at its full size; a few batches decide nothing.
"""

from __future__ import annotations

import dataclasses
import math
from html import escape
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.demo import DemoScale, run_demo
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.report.verdict import verdict_of
from crisp_stream.results.tables import PERPLEXITY
from crisp_stream.trial.trial import TrialResult
from tests.support.seaweed import S3Server
from tests.support.small_trial import SMALL_TRIAL

SMALL = DemoScale(
    generalist_characters=60_000,
    specialist_documents=12,
    test_documents=10,
    size=SMALL_TRIAL,
)


@dataclasses.dataclass(frozen=True)
class LocalDemo:
    """A finished small demo and where it stands."""

    folder: Path
    result: TrialResult
    log: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> LocalDemo:
    folder = tmp_path_factory.mktemp("demo") / "out"
    lines: list[str] = []
    result = run_demo(run_folder=folder, scale=SMALL, log=lines.append)
    return LocalDemo(folder, result, "\n".join(lines))


def again(demo: LocalDemo, *, scale: DemoScale = SMALL, fresh: bool = False) -> tuple[TrialResult, str]:
    lines: list[str] = []
    result = run_demo(run_folder=demo.folder, scale=scale, fresh=fresh, log=lines.append)
    return result, "\n".join(lines)


def with_size(**changes: Any) -> DemoScale:
    return dataclasses.replace(SMALL, size=dataclasses.replace(SMALL.size, **changes))


def perplexities(result: TrialResult) -> dict[tuple[str, str], float]:
    """By model and set."""
    return {
        (row.results.model_name, row.judged.name): row.estimates[PERPLEXITY].value for row in result.evaluation.rows
    }


def test_every_step_is_announced_and_the_numbers_and_the_page_are_printed(demo: LocalDemo) -> None:
    assert [f"[{number}/6]" in demo.log for number in range(1, 7)] == [True] * 6
    assert demo.result.text() in demo.log
    assert f"page: {demo.folder / 'report.html'}" in demo.log
    assert demo.result.kept == ()


def test_the_printed_table_holds_the_measured_numbers(demo: LocalDemo) -> None:
    lines = demo.result.text().splitlines()
    measured = perplexities(demo.result)
    base, crisp = measured["base", "medical abstracts"], measured["crisp", "medical abstracts"]
    assert lines[1].split() == ["medical", "abstracts", f"{base:,.2f}", f"{crisp:,.2f}", f"{crisp / base:.4f}"]
    assert lines[-1] == verdict_of(demo.result.evaluation).sentence


def test_the_numbers_are_measured(demo: LocalDemo) -> None:
    measured = perplexities(demo.result)
    assert set(measured) == {
        (model, name) for model in ("base", "crisp") for name in ("medical abstracts", "the corpus")
    }
    assert all(1 < value < 2 * SMALL.size.vocab_size for value in measured.values())
    for run in demo.result.runs.values():
        assert [batch for batch, _ in run.losses] == [1, 2, 3, 4]
        assert all(math.isfinite(loss) for _, loss in run.losses)
        assert run.record["tokens"] == 4 * 4 * SMALL.size.window_tokens
        assert run.totals["bytes_read"] > 0
        assert 0 <= run.record["mixture_error"] <= 1


def test_both_runs_start_alike_and_see_different_text(demo: LocalDemo) -> None:
    base, crisp = demo.result.runs["base"], demo.result.runs["crisp"]
    assert base.losses[0][1] == pytest.approx(crisp.losses[0][1], rel=0.05)
    assert base.losses != crisp.losses


def test_the_dataset_has_a_tree_of_two_levels_and_the_task_its_clusters(demo: LocalDemo) -> None:
    dataset = open_dataset(str(demo.folder / "data"))
    assert (dataset.manifest.arity, dataset.manifest.depth) == (4, 2)
    assert dataset.manifest.num_leaves > SMALL.size.arity
    clusters = demo.result.clusters
    assert all(cluster.text for cluster in clusters if cluster.num_windows)
    assert [cluster.share for cluster in clusters] == sorted((cluster.share for cluster in clusters), reverse=True)


def test_one_page_is_written_that_begins_with_the_verdict(demo: LocalDemo) -> None:
    assert demo.result.page == demo.folder / "report.html"
    assert [path.name for path in demo.folder.glob("*.html")] == ["report.html"]
    page = demo.result.page.read_text(encoding="utf-8")
    assert page.count(escape(verdict_of(demo.result.evaluation).sentence)) == 1
    assert f"{perplexities(demo.result)['crisp', 'medical abstracts']:,.2f}" in page
    for run in demo.result.runs.values():
        assert f"{run.name}: last loss {run.record['final_loss']:.4f}" in page
    assert "served to demo-crisp" in page


def test_the_results_keep_their_names_on_disk(demo: LocalDemo) -> None:
    kept = sorted(path.name for path in (demo.folder / "judged").iterdir())
    assert kept == [f"{model}.{name}.results.parquet" for model in ("base", "crisp") for name in ("corpus", "task")]


def test_a_second_run_keeps_everything_and_says_so(demo: LocalDemo) -> None:
    result, log = again(demo)
    assert result.kept == ("dataset", "histogram", "base", "crisp")
    assert result.text() == demo.result.text()
    for name in result.kept:
        assert f"{name}: found, kept" in log


def test_other_training_settings_train_again_on_the_same_dataset(demo: LocalDemo) -> None:
    changed = with_size(recipe_overrides=(*SMALL.size.recipe_overrides, "optimizer.lr=0.01"))
    result, log = again(demo, scale=changed)
    assert result.kept == ("dataset", "histogram")
    assert result.runs["base"].losses[1:] != demo.result.runs["base"].losses[1:]
    assert "base: an earlier training with other settings is removed" in log
    result, _ = again(demo, fresh=True)
    assert result.kept == ("dataset", "histogram")
    assert result.runs["base"].losses == demo.result.runs["base"].losses


def test_a_damaged_histogram_is_counted_again(demo: LocalDemo) -> None:
    path = demo.folder / "counted.parquet"
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2])
    result, _ = again(demo)
    assert "histogram" not in result.kept
    assert path.read_bytes() == intact


def test_a_place_that_holds_another_dataset_is_refused(demo: LocalDemo, tmp_path: Path) -> None:
    other = with_size(window_tokens=32)
    with pytest.raises(InputError, match="holds a dataset, but not the one that would be written there"):
        run_demo(str(demo.folder / "data"), run_folder=tmp_path, scale=other, log=print)


def test_the_demo_in_an_object_store_gives_the_same_numbers(demo: LocalDemo, s3: S3Server, tmp_path: Path) -> None:
    prefix = s3.fresh_prefix("demo")
    result = run_demo(prefix, run_folder=tmp_path, scale=SMALL, log=print)
    written = open_dataset(prefix)
    assert written.manifest.fingerprint == open_dataset(str(demo.folder / "data")).manifest.fingerprint
    for name, run in result.runs.items():
        assert run.losses == demo.result.runs[name].losses
        assert run.record["mixture_error"] == demo.result.runs[name].record["mixture_error"]
    assert perplexities(result) == pytest.approx(perplexities(demo.result))
    again = run_demo(prefix, run_folder=tmp_path, scale=SMALL, log=print)
    assert again.kept == ("dataset", "histogram", "base", "crisp")
