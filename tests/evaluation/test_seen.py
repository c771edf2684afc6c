"""Models know which examples their histograms were counted from."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.counting.count_examples import count_examples
from crisp_stream.errors import FormatError
from crisp_stream.evaluation.models import open_model, plain_record
from crisp_stream.evaluation.seen import seen_examples
from crisp_stream.examples import sketch as example_sketch
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.question_files import read_questions
from crisp_stream.examples.questions import question_hash
from crisp_stream.examples.sketch import PROVENANCE_KEY, ExampleSketch, SketchBuilder, join_sketches, sketch_of
from crisp_stream.histograms.arithmetic import cut, interpolate
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.smoothing import smooth
from crisp_stream.inspection.summary import describe_histogram
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.models.training_record import training_record
from crisp_stream.training.train import train
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.embedding.encoder_files import DEFAULT_ENCODER
from tests.support.small_runs import SmallRun, copy_until, leaf_histogram, small_run
from tests.support.synthetic import DIM
from tests.support.written_dataset import WordEncoder

TEXTS = [f"example {number} of the {'abcdefgh'[number % 8]} kind" for number in range(40)]
HALF, TEST_HALF = TEXTS[:20], TEXTS[20:]


def ids_of(texts: list[str]) -> list[int]:
    return [example_hash(text) for text in texts]


def quiet(_: str) -> None:
    """No progress."""


def count(done: SmallRun, path: Path, rows: list[dict[str, Any]], **options: Any) -> Histogram:
    """Count examples by an encoder of words."""
    encoder = WordEncoder()
    encoder.dim = DIM
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        where = "crisp_stream.counting.embedded_examples"
        patch.setattr(f"{where}.load_encoder", lambda choice, device: encoder)
        patch.setattr(f"{where}.worker_device", lambda: "cpu")
        patch.setattr(f"{where}.matching_encoder", lambda *_: EncoderChoice(name=DEFAULT_ENCODER))
        return count_examples([str(path)], data=done.dataset.root, processes=1, log=quiet, **options)


def count_texts(done: SmallRun, folder: Path, texts: list[str], **options: Any) -> Histogram:
    return count(done, folder / "half.jsonl", [{"text": text} for text in texts], **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@dataclass(frozen=True)
class HalfRun:
    """A run of 4 batches of the corpus and 4 by the histogram of the specialist half, saved every 2."""

    done: SmallRun
    histogram: Path
    folder: Path
    overrides: list[str]

    def train(self, folder: Path, *overrides: str) -> Path:
        """Train it changed, into another folder."""
        train(self.done.recipe(*self.overrides, f"save_folder={folder}", *overrides))
        return folder


@pytest.fixture(scope="module")
def half(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> HalfRun:
    folder = tmp_path_factory.mktemp("half")
    count_texts(done, folder, HALF).save(folder / "half.parquet")
    phase = f"{{histogram: {folder}/half.parquet, max_repeats: 0.35, on_excess: cap}}"
    overrides = [
        *("run_name=half", "max_duration=8ba", "save_interval=2ba", "log_windows=false"),
        f"mixture.phases=[{{histogram: base, until: 4ba}}, {phase}]",
    ]
    run = HalfRun(done, folder / "half.parquet", folder / "run", overrides)
    run.train(run.folder)
    return run


def record_of(checkpoint: Path) -> dict[str, Any]:
    return training_record(read_checkpoint(checkpoint), checkpoint)


def assert_half_was_seen(training: dict[str, Any], run: str = "half") -> None:
    seen = seen_examples(training, ids_of(TEXTS))
    assert [(each.histogram, each.run, each.num_seen, each.exact) for each in seen.counted_from] == [
        ("half.parquet", run, 20, True)
    ]
    assert seen.is_known
    test_half = seen_examples(training, ids_of(TEST_HALF))
    assert (test_half.counted_from, test_half.error("t"), test_half.warnings("t")) == ([], None, [])


def test_a_histogram_knows_the_documents_it_was_counted_from(done: SmallRun, tmp_path: Path) -> None:
    count_texts(done, tmp_path, [*HALF, "", HALF[0]]).save(tmp_path / "h.parquet")
    sketch = sketch_of(Histogram.load(tmp_path / "h.parquet").provenance)
    assert sketch is not None
    assert sketch.hashes.tolist() == sorted(ids_of(HALF))
    assert (sketch.num_examples, sketch.exact, sketch.complete) == (21, True, True)
    limited = sketch_of(count_texts(done, tmp_path, HALF, limit=3).provenance)
    assert limited is not None
    assert limited.hashes.tolist() == sorted(ids_of(HALF[:3]))


@pytest.mark.parametrize("answers", ["right", "all"])
def test_a_histogram_knows_the_questions_it_was_counted_from(done: SmallRun, tmp_path: Path, answers: str) -> None:
    rows = [{"question": text, "choices": ["a", "b"], "answer": 1} for text in HALF]
    sketch = sketch_of(count(done, tmp_path / "q.jsonl", rows, answers=answers, limit=7).provenance)
    assert sketch is not None
    assert sketch.hashes.tolist() == sorted(map(question_hash, read_questions(tmp_path / "q.jsonl", limit=7)))
    assert sketch.num_examples == 7


def test_what_is_computed_from_a_histogram_knows_its_examples(done: SmallRun, tmp_path: Path) -> None:
    counted, other = count_texts(done, tmp_path, HALF), count_texts(done, tmp_path, HALF[10:] + TEST_HALF[:5])
    counted.save(tmp_path / "counted.parquet")
    tuned = tmp_path / "tuned.parquet"
    tune = ["tune", str(tmp_path / "counted.parquet"), "--data", done.dataset.root, "--folds", "2", "--draws", "1"]
    assert main(["histogram", *tune, "--out", str(tuned)]) == 0
    made = {
        "average": (Histogram.average([counted, other], [1, 3]), TEXTS[:25]),
        "cut": (cut(counted, 1), HALF),
        "smooth": (smooth(counted, done.dataset, strength=1.0), HALF),
        "tune": (Histogram.load(tuned), HALF),
        "interpolate": (interpolate(smooth(counted, done.dataset, strength=1.0), done.dataset, 0.5), HALF),
        "nested": (Histogram.average([cut(counted, 1), smooth(other, done.dataset, strength=1, level=1)]), TEXTS[:25]),
    }
    for name, (histogram, texts) in made.items():
        histogram.save(tmp_path / "h.parquet")
        sketch = sketch_of(Histogram.load(tmp_path / "h.parquet").provenance)
        assert sketch is not None, name
        assert sketch.hashes.tolist() == sorted(ids_of(texts)), name
        assert (sketch.exact, sketch.complete) == (True, True), name


def test_a_histogram_that_does_not_say_makes_an_average_incomplete(done: SmallRun, tmp_path: Path) -> None:
    unknown, counted = leaf_histogram(done.dataset, [1]), count_texts(done, tmp_path, HALF)
    assert sketch_of(unknown.provenance) is None
    assert sketch_of(Histogram.average([unknown, unknown]).provenance) is None
    sketch = sketch_of(Histogram.average([counted, unknown]).provenance)
    assert sketch is not None
    assert (len(sketch.hashes), sketch.complete) == (20, False)
    base = sketch_of(Histogram.base(done.dataset.manifest).provenance)
    assert base is not None
    assert (len(base.hashes), base.exact, base.complete) == (0, True, True)
    with pytest.raises(FormatError, match=r"hashes of counted examples are damaged .* Count them again"):
        sketch_of({PROVENANCE_KEY: {"number": 1, "exact": True, "complete": True, "hashes": "AAA"}})


def test_the_hashes_are_not_shown_to_people(done: SmallRun, tmp_path: Path) -> None:
    histogram = Histogram.average([count_texts(done, tmp_path, HALF)])
    text = describe_histogram(histogram, None, limit=1)
    assert re.search(r"example_hashes +number 20; exact yes; complete yes", text)
    assert len(text) < 1000


def sketch(ids: list[int]) -> ExampleSketch:
    builder = SketchBuilder()
    for one in ids:
        builder.add(one)
    return builder.finish()


def test_many_examples_are_kept_as_their_smallest_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one set whatever the order, the repetitions, and how the set was put together."""
    monkeypatch.setattr(example_sketch, "MAX_HASHES", 100)
    monkeypatch.setattr(example_sketch, "_BUFFERED", 64)
    rng = np.random.default_rng(0)
    ids = [int(one) for one in rng.integers(0, 1 << 64, 1000, np.uint64)]
    smallest = sorted(ids)[:100]
    whole = sketch([*ids, *ids[:300]])
    assert (whole.hashes.tolist(), whole.exact, whole.num_examples) == (smallest, False, 1300)
    joined = join_sketches([sketch(ids[:400]), sketch(ids[300:950]), sketch(ids[950:])])
    assert joined is not None
    assert (joined.hashes.tolist(), joined.exact) == (smallest, False)
    uneven = join_sketches([sketch(ids[:400]).thinned(10), sketch(ids[400:450])])
    assert uneven is not None
    border = sorted(ids[:400])[9]
    assert uneven.hashes.tolist() == sorted(one for one in ids[:450] if one <= border)
    assert not uneven.exact
    assert ExampleSketch.from_json(json.loads(json.dumps(whole.to_json()))).hashes.tolist() == smallest
    assert whole.thinned(10).hashes.tolist() == smallest[:10]
    assert not sketch(ids[:50]).thinned(10).exact
    assert sketch(ids[:50]).thinned(50).exact


def test_a_part_of_a_large_set_is_estimated_from_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_sketch, "MAX_HASHES", 2000)
    rng = np.random.default_rng(1)
    ids = [int(one) for one in rng.integers(0, 1 << 64, 14_000, np.uint64)]
    counted = sketch(ids[:10_000])
    phase = {"histogram": "large", "level": 2, "samples": 8, "examples": counted.to_json()}
    training = {"run_name": "run", "mixture": {"phases": [phase]}}
    found = seen_examples(training, ids[9_000:14_000]).counted_from[0]
    assert not found.exact
    assert found.num_seen == pytest.approx(1000, rel=0.15)
    error = seen_examples(training, ids[9_000:14_000]).error("mine")
    assert f"but about {found.num_seen:,} of 5,000 were counted in large of run run. Judge" in str(error)
    assert seen_examples(training, ids[10_000:]).is_known
    assert not seen_examples(training, ids[10_000:]).counted_from
    beyond = seen_examples(training, [max(ids[:10_000])])
    assert (beyond.counted_from, beyond.is_known) == ([], False)
    assert len(json.dumps(sketch(ids).thinned(1000).to_json())) < 11_000


def test_a_model_was_trained_by_the_half_it_was_trained_by(half: HalfRun) -> None:
    training = record_of(half.folder / "ep0-ba8-rank0.pt")
    assert_half_was_seen(training)
    message = seen_examples(training, ids_of(TEXTS)).error("half.test")
    assert message == (
        "half.test: the model must not have been trained on the examples that it is judged on, or by a histogram of "
        "them, but 20 of 40 were counted in half.parquet of run half. Judge it on others (of questions, the test half "
        "of `crisp-stream split`), or give --allow-seen."
    )


def test_a_phase_that_has_not_begun_is_not_seen(half: HalfRun) -> None:
    seen = seen_examples(record_of(half.folder / "ep0-ba4-rank0.pt"), ids_of(TEXTS))
    assert ([each.histogram for each in seen.histograms], seen.counted_from, seen.is_known) == (["base"], [], True)


def test_an_average_of_a_recipe_is_seen_in_each_of_its_histograms(half: HalfRun, tmp_path: Path) -> None:
    count_texts(half.done, tmp_path, ["one more"]).save(tmp_path / "more.parquet")
    phases = f"mixture.phases=[{{histogram: [{half.histogram}, {tmp_path}/more.parquet]}}]"
    run = half.train(tmp_path / "run", phases, "max_duration=2ba")
    found = seen_examples(record_of(run / "ep0-ba2-rank0.pt"), ids_of([*TEXTS, "one more"])).counted_from
    assert [(each.histogram, each.num_seen) for each in found] == [("average of half.parquet, more.parquet", 21)]


def test_a_resumed_run_and_one_that_goes_on_from_it_keep_it(half: HalfRun, tmp_path: Path) -> None:
    copy_until(half.folder, 6, tmp_path / "resumed", first=2, every=2)
    resumed = half.train(tmp_path / "resumed", "autoresume=true")
    assert_half_was_seen(record_of(resumed / "ep0-ba8-rank0.pt"))
    then = "mixture.phases=[{histogram: checkpoint}, {histogram: base}]"
    going_on = [f"load_path={resumed}/ep0-ba8-rank0.pt", "run_name=next", "max_duration=12ba", then]
    whole = half.train(tmp_path / "next", *going_on)
    training = record_of(whole / "ep0-ba12-rank0.pt")
    assert_half_was_seen(training, "next")
    assert [phase["histogram"] for phase in training["mixture"]["phases"]] == ["base", "half.parquet", "base"]
    copy_until(whole, 10, tmp_path / "again", first=10, every=2)
    again = half.train(tmp_path / "again", *going_on, "autoresume=true")
    assert record_of(again / "ep0-ba12-rank0.pt")["mixture"] == training["mixture"]


def test_a_run_from_its_weights_keeps_it_and_so_does_its_export(half: HalfRun, tmp_path: Path) -> None:
    weights = [f"load_path={half.folder}/ep0-ba8-rank0.pt", "load_weights_only=true", "run_name=tuned"]
    run = half.train(tmp_path / "run", *weights, "max_duration=2ba", "mixture.phases=[{histogram: base}]")
    training = record_of(run / "ep0-ba2-rank0.pt")
    assert_half_was_seen(training)
    assert main(["export", f"{run}/ep0-ba2-rank0.pt", str(tmp_path / "model")]) == 0
    record = open_model(str(tmp_path / "model")).record
    assert_half_was_seen(record.training)
    assert "hashes" in json.dumps(record.training)
    assert "hashes" not in json.dumps(plain_record(record))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "half.parquet" in card
    assert training["parent"]["mixture"]["phases"][1]["examples"]["hashes"] not in card


def test_a_histogram_or_a_checkpoint_that_does_not_say_is_warned_of(half: HalfRun, done: SmallRun) -> None:
    training = record_of(half.folder / "ep0-ba8-rank0.pt")
    older = json.loads(json.dumps(training))
    for phase in older["mixture"]["phases"]:
        del phase["examples"]
    seen = seen_examples(older, ids_of(HALF))
    assert (seen.counted_from, seen.is_known) == ([], False)
    assert [(each.histogram, each.num_seen) for each in seen.histograms] == [("base", 0), ("half.parquet", None)]
    assert "is not known: histogram half.parquet does not say" in str(seen.warnings("half.test"))
    assert "is not known: its checkpoint does not say" in str(seen_examples({}, ids_of(HALF)).warnings("half.test"))
    assert not seen_examples(record_of(done.checkpoint(12)), ids_of(HALF)).is_known


def test_eval_refuses_the_examples_that_the_mixture_was_made_from(
    half: HalfRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(half.folder / "ep0-ba8-rank0.pt")
    for name, texts in (("half", HALF), ("test", TEST_HALF)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert main(["eval", checkpoint, "--text", str(tmp_path / "test.jsonl")]) == 0
    assert "warning" not in capsys.readouterr().out
    assert main(["eval", checkpoint, "--text", str(tmp_path / "half.jsonl")]) == 2
    assert "20 of 20 were counted in half.parquet" in capsys.readouterr().err
    assert main(["eval", checkpoint, "--text", str(tmp_path / "half.jsonl"), "--allow-seen"]) == 0
    assert "warning: half: the model must not have been trained on" in capsys.readouterr().out


def test_a_run_that_measures_itself_on_what_it_was_made_from_says_so(
    half: HalfRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[15:25]))
    half.train(tmp_path / "run", "max_duration=6ba", f"eval.inputs={tmp_path}/held.jsonl")
    assert (
        "warning: held-out text: 5 of 10 were counted in half.parquet of run half. Measure" in capsys.readouterr().err
    )
