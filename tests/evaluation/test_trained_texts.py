"""Models know the text that they were trained on, and are not judged on it without a word."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from crisp_stream.cli.main import main
from crisp_stream.config.load import load_recipe
from crisp_stream.config.recipe import Recipe
from crisp_stream.errors import FormatError
from crisp_stream.evaluation.models import open_model, plain_record
from crisp_stream.evaluation.seen import seen_examples
from crisp_stream.evaluation.trained_texts import FoundTexts, JudgedTexts, find_texts, sketches_of
from crisp_stream.examples import sketch as example_sketch
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.questions import Question
from crisp_stream.examples.sketch import TextSketch
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.text_sketch import TEXTS, parse_text_sketch, read_text_sketch, text_sketch_parquet
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.models.training_record import training_record
from crisp_stream.results.results import load_all
from crisp_stream.training.train import train
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages import texts as texts_stage
from crisp_stream.writers.write import write
from tests.support.synthetic import made_up_texts, sketch_of_texts

GENERIC, SPECIALIST, OTHERS = made_up_texts(40, seed=1), made_up_texts(30, seed=2), made_up_texts(30, seed=3)


def near_copy(text: str) -> str:
    """Another case, no punctuation, and a sentence changed."""
    sentences = text.upper().split(". ")
    sentences[1] = "this one was written anew by somebody who did not like it"
    return re.sub(r"[.,]", "", " -- ".join(sentences))


def found_in(texts: list[str], trained: list[str]) -> FoundTexts:
    return find_texts(JudgedTexts.of(texts), sketch_of_texts(trained))


def test_copies_near_copies_and_parts_are_found_and_other_texts_are_not() -> None:
    judged = [SPECIALIST[0], near_copy(SPECIALIST[1]), ". ".join(SPECIALIST[2].split(". ")[2:5]), *OTHERS, "", "a b"]
    found = found_in(judged, SPECIALIST)
    assert found.copies.nonzero()[0].tolist() == [0]
    assert found.near.nonzero()[0].tolist() == [1, 2]
    assert (found.num_seen, found.is_estimate) == (3, False)
    assert found_in(OTHERS, SPECIALIST).num_seen == 0
    assert found_in(judged, []).num_seen == 0
    assert found_in(["A b!"], ["a B", *SPECIALIST]).copies.tolist() == [True]


def test_a_phrase_of_ten_words_in_a_text_of_others_is_not_a_near_copy() -> None:
    phrase = " ".join(SPECIALIST[0].split()[:12])
    assert found_in([f"{OTHERS[0]} {phrase}"], SPECIALIST).num_seen == 0
    assert found_in([phrase], SPECIALIST).near.tolist() == [True]
    assert found_in([" ".join(phrase.split()[:9])], SPECIALIST).num_seen == 0, "too short to be told"


def test_questions_are_found_in_documents_with_and_without_their_prompt() -> None:
    words = SPECIALIST[0].split()
    long = Question(question=" ".join(words[:20]) + "?", choices=("yes", "no"), answer=0)
    short = Question(question="Who wrote it?", choices=("nobody", " ".join(words[20:28])), answer=1)
    other = Question(question=" ".join(OTHERS[0].split()[:20]), choices=("yes", "no"), answer=0)
    judged = JudgedTexts.of_questions([long, short, other])
    assert len(judged) == 3
    within = find_texts(judged, sketch_of_texts([f"1. {long.question} (a) no (b) yes", *SPECIALIST[1:]]))
    assert within.found.tolist() == [True, False, False]
    asked = find_texts(judged, sketch_of_texts([long.text(0), short.text(1).upper()]))
    assert asked.copies.tolist() == [True, True, False]
    joined = find_texts(judged, sketch_of_texts([f"{short.text(1)} Right. {OTHERS[3]}"]))
    assert joined.near.tolist() == [False, True, False]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_corpus_of_which_a_sample_is_kept_gives_an_estimate(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, judged = made_up_texts(2000, seed=5), made_up_texts(500, seed=6)
    judged[: round(500 * share)] = corpus[: round(500 * share)]
    for documents, ngrams in ((2000, 4000), (200, 1000)):
        monkeypatch.setattr("tests.support.synthetic.MAX_DOCUMENTS", documents)
        monkeypatch.setattr("tests.support.synthetic.MAX_NGRAMS", ngrams)
        found = found_in(judged, corpus)
        assert found.num_seen == pytest.approx(500 * share, abs=60)
        assert not found.found[round(500 * share) :].any()
        assert found.found.sum() == round(500 * share) if documents == 2000 else found.is_estimate == (share > 0)


def test_a_set_that_stands_in_a_very_large_corpus_as_a_whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.synthetic.MAX_DOCUMENTS", 2)
    monkeypatch.setattr("tests.support.synthetic.MAX_NGRAMS", 200)
    corpus = made_up_texts(2000, seed=5)
    record = {"run_name": "r", "dataset": {"fingerprint": "f", "texts": sketch_of_texts(corpus).to_json()}}
    seen = seen_examples(record, range(500), JudgedTexts.of(corpus[:500]))
    assert seen.flags.mean() < 0.01
    assert "about 500 of 500 stand in the text that run r was trained on (found in a sample" in str(seen.error("set"))
    fewer = [*corpus[:100], *made_up_texts(400, seed=6)]
    seen = seen_examples(record, range(500), JudgedTexts.of(fewer))
    assert seen.error("set") is None
    assert re.match(r"warning: set: about (\d+) of 500 stand in the text", seen.warnings("set")[0])


def test_a_sample_in_which_nothing_can_be_looked_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = made_up_texts(500, seed=5)
    monkeypatch.setattr("tests.support.synthetic.MAX_DOCUMENTS", 1)
    monkeypatch.setattr("tests.support.synthetic.MAX_NGRAMS", 1)
    assert found_in(OTHERS[:2], corpus).num_seen is None
    record = {"run_name": "r", "dataset": {"fingerprint": "f", "texts": sketch_of_texts(corpus).to_json()}}
    seen = seen_examples(record, [1, 2], JudgedTexts.of(OTHERS[:2]))
    assert (seen.error("set"), seen.is_known) == (None, False)
    assert "cannot be told by the sample of its corpus" in seen.warnings("set")[-1]


def test_sketches_join_into_that_of_all_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = made_up_texts(300, seed=7)
    for documents, ngrams in ((1000, 100_000), (100, 500)):
        for place in ("tests.support.synthetic", "crisp_stream.examples.sketch", "crisp_stream.format.text_sketch"):
            monkeypatch.setattr(f"{place}.MAX_DOCUMENTS", documents)
            monkeypatch.setattr(f"{place}.MAX_NGRAMS", ngrams)
        whole = sketch_of_texts(texts)
        parts = [sketch_of_texts(part) for part in (texts[:7], texts[7:250], texts[250:])]
        assert text_sketch_parquet(TextSketch.joined(parts)) == text_sketch_parquet(whole)
        content = text_sketch_parquet(whole)
        assert text_sketch_parquet(parse_text_sketch(content, TEXTS)) == content
        again = TextSketch.from_json(json.loads(json.dumps(whole.to_json())))
        assert text_sketch_parquet(again) == content
    with pytest.raises(FormatError, match=r"text that it was trained on is damaged .* Take another copy"):
        TextSketch.from_json({"documents": whole.documents.to_json()})
    with pytest.raises(FormatError, match=r"texts.parquet: not a sketch of a dataset's text, or damaged"):
        parse_text_sketch(content[:-9], TEXTS)


def test_the_largest_sketch_has_the_size_that_is_stated() -> None:
    rng = np.random.default_rng(0)
    builders = [
        example_sketch.SketchBuilder(size) for size in (example_sketch.MAX_DOCUMENTS, example_sketch.MAX_NGRAMS)
    ]
    for builder in builders:
        for _ in range(3):
            builder.add_all(rng.integers(0, 1 << 64, 50_000, np.uint64))
    sketch = TextSketch(documents=builders[0].finish(), ngrams=builders[1].finish())
    assert (sketch.documents.exact, len(sketch.documents.hashes), sketch.documents.num_examples) == (
        False,
        16_384,
        150_000,
    )
    assert len(text_sketch_parquet(sketch)) < 670_000
    assert len(json.dumps(sketch.to_json())) < 875_000


@dataclass(frozen=True)
class Trained:
    """A run on generic text, and one from its weights on specialist text; the first dataset is gone."""

    folder: Path

    def recipe(self, *overrides: str) -> Recipe:
        return load_recipe(self.folder / "tiny.yaml", overrides)

    def texts(self, name: str, texts: list[str]) -> str:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return str(path)

    @property
    def first(self) -> str:
        return str(self.folder / "first" / "ep0-ba2-rank0.pt")

    @property
    def tuned(self) -> str:
        return str(self.folder / "tuned" / "ep0-ba2-rank0.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)
    made = Trained(tmp_path_factory.mktemp("trained"))
    options = {"window_tokens": 32, "vocab_size": 400, "arity": 4, "depth": 2, "min_examples_to_split": 32}
    generic, specialist = made.folder / "generic", made.folder / "specialist"
    for root, texts, chosen in (
        (generic, GENERIC, {**options, "encoder": "lsi"}),
        (specialist, SPECIALIST, {"like": str(generic), "depth": 2}),
    ):
        inputs = [made.texts(root.name, texts)]
        write(WriteOptions(inputs=inputs, out=str(root), processes=1, **chosen), log=lambda line: None)
    recipe = {
        **{"run_name": "first", "max_duration": "2ba", "save_interval": "2ba", "global_train_batch_size": 8},
        "data": {"remote": str(generic)},
        "mixture": {"phases": [{"histogram": "base"}]},
        "model": {"n_embd": 32, "n_layer": 2, "n_head": 2},
        "optimizer": {"lr": 0.01},
        "scheduler": {"t_warmup": "1ba"},
        "save_folder": str(made.folder / "{run_name}"),
    }
    (made.folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    train(made.recipe())
    weights = [f"load_path={made.first}", "load_weights_only=true"]
    train(made.recipe(*weights, "run_name=tuned", f"data.remote={specialist}"))
    shutil.rmtree(generic)
    return made


def test_a_dataset_has_the_sketch_of_its_documents(trained: Trained) -> None:
    sketch = read_text_sketch(open_dataset(trained.folder / "specialist"))
    assert sketch is not None
    assert text_sketch_parquet(sketch) == text_sketch_parquet(sketch_of_texts(SPECIALIST))
    assert (sketch.documents.num_examples, sketch.documents.exact) == (len(SPECIALIST), True)


def test_the_sketch_does_not_depend_on_tasks_and_leaves_out_what_is_dropped(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_stage, "_BATCHES_PER_TASK", 1)
    monkeypatch.setattr(texts_stage, "_SKETCHES_PER_TASK", 2)
    first, root = trained.folder / "specialist", tmp_path / "root"
    inputs = [trained.texts("repeated", [*SPECIALIST[::-1], *SPECIALIST[:3]])]
    options = WriteOptions(
        **{"inputs": inputs, "out": str(root), "like": str(first), "depth": 2, "processes": 1},
        dedup="exact",
        part_characters=900,
    )
    lines: list[str] = []
    write(options, log=lines.append)
    assert any(line.startswith("joining sketches of text") for line in lines)
    assert (root / TEXTS).read_bytes() == (first / TEXTS).read_bytes()


def test_a_dataset_with_provenance_and_without_its_sketch_is_damaged(trained: Trained, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(trained.folder / "specialist", root)
    (root / TEXTS).unlink()
    with pytest.raises(FormatError, match=r"provenance/texts\.parquet is missing, the sketch of its text"):
        read_text_sketch(open_dataset(root))
    (root / "provenance" / "tables.parquet").unlink()
    assert read_text_sketch(open_dataset(root)) is None


def test_eval_refuses_the_text_of_any_run_before(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "SpecialistText": (SPECIALIST, "30 of 30 stand in the text that run tuned was trained on (30 whole, 0 nearly"),
        "GenericText": (GENERIC, "40 of 40 stand in the text that run first was trained on (40 whole, 0 nearly"),
        "near": (
            [near_copy(text) for text in SPECIALIST],
            "30 of 30 stand in the text that run tuned was trained on (0",
        ),
        "one": ([*OTHERS, SPECIALIST[4]], "1 of 31 stand in the text that run tuned was trained on (1 whole"),
    }
    for name, (texts, message) in cases.items():
        assert main(["eval", trained.tuned, "--text", trained.texts(name, texts)]) == 2, name
        printed = capsys.readouterr().err
        assert message in printed
        assert "or give --allow-seen" in printed
    assert main(["eval", trained.tuned, "--text", trained.texts("others", OTHERS)]) == 0
    printed = capsys.readouterr().out
    assert "warning" not in printed.lower()
    assert main(["eval", trained.first, "--text", trained.texts("SpecialistText", SPECIALIST)]) == 0


def test_eval_refuses_questions_about_the_text(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    for name, texts, code in (("seen", SPECIALIST, 2), ("unseen", OTHERS, 0)):
        path = trained.folder / f"{name}.questions.jsonl"
        rows = [{"question": " ".join(text.split()[:15]), "choices": ["yes", "no"], "answer": 0} for text in texts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for option in ("--mcq", "--mcq-text"):
            assert main(["eval", trained.tuned, option, str(path)]) == code
            message = "30 of 30 stand in the text that run tuned was trained on (0 whole, 30 nearly or as a part)"
            assert (message in capsys.readouterr().err) == (code == 2)


def test_a_few_of_many_are_said_and_not_refused(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    judged = [*made_up_texts(300, seed=8), SPECIALIST[0], near_copy(SPECIALIST[1])]
    found = JudgedTexts.of(judged)
    record = training_record(read_checkpoint(Path(trained.tuned)), trained.tuned)
    seen = seen_examples(record, list(map(example_hash, judged)), found)
    assert seen.error("set") is None
    assert seen.warnings("set") == [
        "warning: set: 2 of 302 stand in the text that run tuned was trained on (1 whole, 1 nearly or as a part)."
    ]
    assert seen.flags.nonzero()[0].tolist() == [300, 301]


def test_what_is_allowed_is_said_in_the_table_and_in_every_view_of_results(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = trained.texts("half", [*SPECIALIST[:10], *OTHERS])
    command = [
        "eval",
        trained.first,
        trained.tuned,
        "--text",
        judged,
        "--allow-seen",
        "--out",
        str(tmp_path / "judged"),
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    note = "WARNING: half, tuned-ba2: 10 of 40 stand in the text that run tuned was trained on (10 whole"
    assert "tuned-ba2: warning: half: the model must not have been trained on" in printed
    assert note in printed
    results = {one.model_name: one for one in load_all([str(tmp_path / "judged")])}
    tuned, first = results["tuned-ba2"], results["first-ba2"]
    assert tuned.seen is not None
    assert first.seen is not None
    assert tuned.seen.nonzero()[0].tolist() == list(range(10))
    assert not first.seen.any()
    clean = np.exp(tuned.losses[10:].mean())  # pyright: ignore[reportAttributeAccessIssue]
    assert f"without the 10 that were found, perplexity {clean:.2f}" in printed
    for verb, *options in (["table"], ["better", "--than", "first-ba2"], ["transfer"], ["curve"], ["cost"]):
        assert main(["results", verb, str(tmp_path / "judged"), *options]) == 0, verb
        assert note in capsys.readouterr().out, verb


def test_the_record_keeps_the_text_of_a_dataset_once_and_shows_no_hashes(trained: Trained, tmp_path: Path) -> None:
    again = [f"load_path={trained.tuned}", "load_weights_only=true", "run_name=again"]
    train(trained.recipe(*again, f"data.remote={trained.folder}/specialist", f"save_folder={tmp_path}/again"))
    path = tmp_path / "again" / "ep0-ba2-rank0.pt"
    record = training_record(read_checkpoint(path), path)
    assert record["dataset"]["texts"] is None
    assert [run for run, sketch in sketches_of(record) if sketch is not None] == ["again", "first"]
    assert main(["export", str(path), str(tmp_path / "model")]) == 0
    exported = open_model(str(tmp_path / "model")).record
    seen = seen_examples(exported.training, [1] * 30, JudgedTexts.of(SPECIALIST))
    assert [one.num_seen for one in seen.trained_on] == [30]
    assert "hashes" not in json.dumps(plain_record(exported))


def test_a_checkpoint_that_does_not_say_is_warned_of(trained: Trained) -> None:
    record = training_record(read_checkpoint(Path(trained.tuned)), trained.tuned)
    del record["parent"]["dataset"]["texts"]
    seen = seen_examples(record, list(map(example_hash, OTHERS)), JudgedTexts.of(OTHERS))
    assert not seen.is_known
    [line] = seen.warnings("others")
    assert "whether the model was trained on these examples is not known" in line
    assert "the dataset of run first had" in line


def test_finetune_refuses_validation_text_that_it_trains_on(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["finetune", str(trained.folder / "tiny.yaml"), f"data.remote={trained.folder}/specialist"]
    given += [f"save_folder={tmp_path}/fractions", "--pretrained", str(trained.folder / "first"), "--fractions", "1"]
    for texts in (SPECIALIST[:5], GENERIC[:5]):
        assert main([*given, "--text", trained.texts("validation", texts)]) == 2
        printed = capsys.readouterr().err
        assert "validation text: the model must not have been trained on" in printed
        assert "5 of 5 stand in the text that run " in printed
        assert not (tmp_path / "fractions").exists()
    assert main([*given, "--text", trained.texts("validation", SPECIALIST[:5]), "--allow-seen"]) == 0
    printed = capsys.readouterr()
    assert "warning: validation text: the model must not have been trained on" in printed.out
    assert "warning: held-out text: 5 of 5 stand in the text that run " in printed.err
    assert "Measure on others" in printed.err
    given[3] = f"save_folder={tmp_path}/others"
    assert main([*given, "--text", trained.texts("validation", OTHERS[:5])]) == 0
    assert "warning" not in capsys.readouterr().out
