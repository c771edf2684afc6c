"""The command line: every expected error is one line and exit 2; every verb does what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crisp_stream import Histogram
from crisp_stream.cli.main import main
from crisp_stream.config.load import load_recipe
from crisp_stream.format.dataset import Dataset
from tests.support.seaweed import S3Server
from tests.support.synthetic import synthetic_tree, write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("cli"), {0: 100, 3: 50, 5: 10, 15: 40})


@pytest.fixture
def histogram(dataset: Dataset, tmp_path: Path) -> Path:
    path = tmp_path / "task.parquet"
    Histogram.from_leaves([0, 0, 15], dataset.tree, 2).save(path)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one error line of a command that must fail as expected."""
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    return errors[0]


def documents(path: Path, texts: list[object], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return path


def help_of(capsys: pytest.CaptureFixture[str], *verb: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*verb, "--help"])
    assert not end.value.code
    return capsys.readouterr().out


def test_help_lists_every_verb_and_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "crisp_stream", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for verb in (
        "write",
        "histogram",
        "average",
        "forecast",
        "report",
        "inspect",
        "verify",
        "train",
        "eval",
        "export",
        "recipes",
        "try",
        "demo",
    ):
        assert f"\n  {verb} " in shown
        assert help_of(capsys, verb).startswith(f"usage: crisp-stream {verb}")
    assert "(default: 1024)" in help_of(capsys, "write")


def test_inspect_shows_datasets_and_histograms(
    dataset: Dataset, histogram: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", dataset.root, "--level", 2, "--top", 1) == 0
    assert "200 of 32 tokens" in capsys.readouterr().out
    assert run("inspect", histogram) == 0
    assert "66.67%" in capsys.readouterr().out
    assert run("inspect", histogram, "--data", dataset.root) == 0
    assert "w(c)" in capsys.readouterr().out


def test_average_writes_a_histogram(histogram: Path, dataset: Dataset, tmp_path: Path) -> None:
    Histogram.from_leaves([3], dataset.tree, 2).save(tmp_path / "b.parquet")
    assert run("average", histogram, tmp_path / "b.parquet", "--weights", 3, 1, "--out", tmp_path / "avg.parquet") == 0
    assert Histogram.load(tmp_path / "avg.parquet").proportions == pytest.approx([0.5, 0.25, 0.25])


def test_histograms_are_cut_mixed_smoothed_compared_and_tuned(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, counted, out = dataset.root, tmp_path / "task.parquet", tmp_path / "out.parquet"
    Histogram.from_leaves([0, 0, 15] * 10, dataset.tree, 2).save(counted)
    assert run("histogram", "cut", counted, "--level", 1, "--out", out) == 0
    assert Histogram.load(out).level == 1
    assert run("histogram", "interpolate", counted, "--data", root, "--base-share", 0.5, "--out", out) == 0
    assert run("histogram", "smooth", counted, "--data", root, "--strength", 3, "--level", 1, "--out", out) == 0
    assert Histogram.load(out).provenance["strength"] == [3]
    assert run("histogram", "average", counted, counted, "--out", out) == 0
    assert Histogram.load(out).proportions == pytest.approx([2 / 3, 1 / 3])
    capsys.readouterr()
    files = ["--json", tmp_path / "t.json", "--plot", tmp_path / "t.svg", "--out", tmp_path / "tuned.parquet"]
    assert run("histogram", "tune", counted, "--data", root, *files) == 0
    chosen = json.loads((tmp_path / "t.json").read_text())["chosen"]
    assert f"chosen: level {chosen['level']}, strengths" in capsys.readouterr().out
    assert Histogram.load(tmp_path / "tuned.parquet").level == chosen["level"]
    assert run("histogram", "compare", counted, out, "--json", tmp_path / "c.json") == 0
    assert json.loads((tmp_path / "c.json").read_text())["total_variation"] == pytest.approx(0, abs=1e-12)
    assert run("histogram", "compare", counted, "--data", root) == 0
    assert "total variation" in capsys.readouterr().out
    assert run("histogram", "weights", counted, "--data", root) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["node", "share", "corpus_share", "weight"]
    assert [float(value) for value in rows[1]] == pytest.approx([0, 2 / 3, 0.5, 4 / 3])
    assert run("histogram", "weights", counted, "--data", root, "--out", tmp_path / "w" / "w.csv") == 0
    assert len((tmp_path / "w" / "w.csv").read_text().splitlines()) == 3
    assert "one of the two" in error_of(capsys, "histogram", "compare", counted)
    assert "one of the two" in error_of(capsys, "histogram", "compare", counted, out, "--data", root)
    assert "must have counts" in error_of(capsys, "histogram", "tune", out, "--data", root)
    assert "got 2" in error_of(
        capsys, "histogram", "interpolate", counted, "--data", root, "--base-share", 2, "--out", out
    )


def test_verify_tells_whole_from_damaged(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", dataset.root) == 0
    assert "200 windows" in capsys.readouterr().out
    copy = write_synthetic_dataset(tmp_path / "copy", {0: 10, 15: 5})
    (tmp_path / "copy" / copy.shards[0].path).unlink()
    assert run("verify", copy.root) == 1
    shown = capsys.readouterr()
    assert "problem: " in shown.err
    assert "1 problems" in shown.out


def test_recipes_are_listed_shown_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    assert "gpt-1.3b" in capsys.readouterr().out
    assert run("recipes", "show", "demo") == 0
    shown = capsys.readouterr().out
    assert run("recipes", "copy", "demo", "--out", tmp_path / "mine.yaml") == 0
    assert (tmp_path / "mine.yaml").read_text() == shown
    capsys.readouterr()
    assert "did you mean" in error_of(capsys, "recipes", "show", "dmo")
    assert "needs the name of one recipe, got 0" in error_of(capsys, "recipes", "show")
    assert run("recipes", "resolve", "gpt-350m", "continued", "seed=3") == 0
    (tmp_path / "resolved.yaml").write_text(capsys.readouterr().out)
    assert load_recipe(tmp_path / "resolved.yaml") == load_recipe(["gpt-350m", "continued"], ["seed=3"])
    assert "exists already" in error_of(capsys, "recipes", "copy", "demo", "--out", tmp_path / "mine.yaml")


def test_bad_documents_are_one_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    assert "matches no file" in error_of(capsys, "write", tmp_path / "none.jsonl", "--out", out)
    texts = documents(tmp_path / "docs.jsonl", ["some text"], column="body")
    assert "'text'" in (wrong := error_of(capsys, "write", texts, "--out", out))
    assert "body" in wrong
    empty = documents(tmp_path / "empty.jsonl", ["", "  "])
    assert "at least one document with text is needed, got 2" in error_of(capsys, "write", empty, "--out", out)
    assert not (out / "manifest.json").exists()


def test_a_root_that_holds_a_dataset_is_not_written_to(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = documents(tmp_path / "docs.jsonl", ["some text"])
    before = (Path(dataset.root) / "manifest.json").read_bytes()
    assert "must not hold a dataset" in error_of(capsys, "write", texts, "--out", dataset.root)
    assert (Path(dataset.root) / "manifest.json").read_bytes() == before


def test_bad_levels_roots_and_files_are_one_line_errors(
    dataset: Dataset, histogram: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = documents(tmp_path / "task.jsonl", ["some text"])
    to_file = ["--out", tmp_path / "h.parquet"]
    deep = error_of(capsys, "histogram", task, "--data", dataset.root, "--level", 3, *to_file)
    assert "level: must be 1 to 2" in deep
    assert "got 3" in deep
    assert "holds no dataset" in error_of(capsys, "histogram", task, "--data", tmp_path, "--level", 1, *to_file)
    assert "holds no dataset" in error_of(capsys, "inspect", tmp_path / "nowhere")
    assert "levels 1 to 2" in error_of(capsys, "inspect", dataset.root, "--level", 5)
    assert "at least 1, got 0" in error_of(capsys, "inspect", dataset.root, "--top", 0)
    assert "no such file" in error_of(capsys, "average", tmp_path / "none.parquet", *to_file)
    assert "not a histogram file" in error_of(capsys, "average", task, *to_file)
    other = tmp_path / "other.parquet"
    Histogram.from_leaves([0], synthetic_tree(4, 2, seed=2), 2).save(other)
    assert "must come from one tree" in error_of(capsys, "average", histogram, other, *to_file)
    assert "was counted with tree" in error_of(capsys, "inspect", other, "--data", dataset.root)
    assert "got none of them" in error_of(capsys, "eval", "checkpoint.pt")


def test_bad_recipes_are_one_line_errors(
    dataset: Dataset, histogram: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["train", "demo", "crisp", f"data.remote={dataset.root}", f"mixture.phases.0.histogram={histogram}"]
    assert "did you mean `max_duration`" in error_of(capsys, *given, "max_duratoin=3ba")
    assert "is not a packaged recipe" in error_of(capsys, "train", "demo", "crips")
    assert "holds no dataset" in error_of(capsys, *given, f"data.remote={tmp_path}")
    other = tmp_path / "other.parquet"
    Histogram.from_leaves([0], synthetic_tree(4, 2, seed=2), 2).save(other)
    assert "was counted with tree" in error_of(capsys, *given, f"mixture.phases.0.histogram={other}")
    Histogram.from_leaves([0, 7], dataset.tree, 2).save(other)
    missing = error_of(capsys, *given, f"mixture.phases.0.histogram={other}")
    assert "50.0% of the histogram stands on 1 clusters" in missing


def test_storage_errors_are_one_line_errors(
    s3: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "s3://no-such-bucket does not exist" in error_of(capsys, "verify", "s3://no-such-bucket/data")
    assert "unknown scheme" in error_of(capsys, "verify", "ftp://host/data")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "the credentials were refused" in error_of(capsys, "verify", s3.fresh_prefix())


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    monkeypatch.setattr("crisp_stream.inspection.verify.verify_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("verify", dataset.root)


def test_a_reader_of_a_pipe_that_has_seen_enough_is_no_error(dataset: Dataset) -> None:
    command = f"{sys.executable} -m crisp_stream inspect {dataset.root} --top 5 | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=1500)
    assert done.stderr == ""
    assert int(done.stdout) in (0, 141)
