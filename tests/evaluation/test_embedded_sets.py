"""First windows of texts by the real encoder, and distances of a whole set from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.counting.embedded_examples import ExampleSources
from crisp_stream.errors import InputError
from crisp_stream.evaluation.embedded_sets import FirstWindows, embed_first_windows
from crisp_stream.examples.hashes import example_hash
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.results.distances import Distances
from crisp_stream.writers.embedding.embed import Encoder, matching_encoder
from crisp_stream.writers.write import WriteReport
from tests.support.made_results import text_results
from tests.support.written_dataset import TOPICS

TEXTS = [text[:900] for text in TOPICS[:6]]


def quiet(line: str) -> None:
    """Takes a line of progress."""


def write_texts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def first_windows(file: str, root: Path) -> FirstWindows:
    dataset = open_dataset(root)
    sources = ExampleSources((file,), "text", None, None, (), "files")
    encoder = matching_encoder(dataset.manifest.encoder, None, str(root))
    return embed_first_windows(sources, dataset, encoder, processes=1, log=quiet)


def test_a_text_lies_where_its_first_window_does(written: tuple[Path, WriteReport], tmp_path: Path) -> None:
    file = write_texts(tmp_path / "texts.jsonl", [TEXTS[0], "", *TEXTS[1:], "short"])
    found = first_windows(file, written[0])
    kept = [*TEXTS, "short"]
    assert found.examples.tolist() == [example_hash(text) for text in kept]
    tokenizer = DocumentTokenizer(open_dataset(written[0]).tokenizer_path())
    first = [tokens[:64] for tokens in tokenizer.encode(kept)]
    assert max(len(tokens) for tokens in tokenizer.encode(kept)) > 3 * 64
    beginnings = [text.strip("\ufffd").strip() for text in tokenizer.decode(first)]
    expected = Encoder(max_length=32).embed(beginnings).astype(np.float32)
    assert np.allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-6)
    assert (np.einsum("nd,nd->n", found.embeddings, expected) > 0.999).all()


def test_texts_of_nothing_are_refused(written: tuple[Path, WriteReport], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one document with text is needed"):
        first_windows(write_texts(tmp_path / "t.jsonl", [""]), written[0])


def test_the_command_measures_distances_of_documents_and_of_questions(
    written: tuple[Path, WriteReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", TEXTS)
    specialist = write_texts(tmp_path / "specialist.jsonl", [TEXTS[0], TEXTS[3]])
    test = write_texts(tmp_path / "test.jsonl", TEXTS[3:5])
    ids = [example_hash(text) for text in TEXTS]
    for name, losses in (("base", [1.0] * 6), ("crisp", [0.5] * 3 + [1.5] * 3)):
        text_results(name, losses, ids=ids).save(tmp_path / "results")
    saved = tmp_path / "d.parquet"
    command = ["results", "distance", str(tmp_path / "results"), "--than", "base", "--data", str(written[0])]
    command += ["--texts", texts, "--distances", str(saved), "--processes", "1"]
    assert main([*command, "--specialist", specialist, "--specialist-test", test]) == 0
    assert f"written to {saved}" in capsys.readouterr().out
    found = Distances.load(saved)
    vectors = first_windows(texts, written[0]).embeddings
    expected = 1 - np.maximum(vectors @ vectors[0], vectors @ vectors[3])
    assert np.allclose(found.of(np.array(ids, np.uint64)), expected, atol=1e-5)
    assert np.allclose(found.test_distances, np.sort(expected[3:5]), atol=1e-5)
    assert found.facts["specialist_examples"] == 2
    questions = tmp_path / "questions.jsonl"
    row = {"question": TEXTS[0][:80], "choices": ["wrong", "right"], "answer": 1}
    questions.write_text(json.dumps(row) + "\n")
    kept = tmp_path / "kept.test.jsonl"  # a test half is for judging, and for seeing where it lies
    kept.write_text(json.dumps({**row, "half": "test"}) + "\n")
    assert main([*command, "--specialist", str(questions), "--specialist-test", str(kept), "--mcq"]) == 0
    assert Distances.load(saved).test_distances == pytest.approx([0.0], abs=1e-5)
    assert main([*command, "--specialist", str(questions), "--mcq"]) == 0
    asked = write_texts(tmp_path / "asked.jsonl", [f"Question: {TEXTS[0][:80]}\nAnswer: right"])
    at = first_windows(asked, written[0]).embeddings[0]
    assert np.allclose(Distances.load(saved).of(np.array(ids, np.uint64)), 1 - vectors @ at, atol=1e-5)
    assert Distances.load(saved).band is None
