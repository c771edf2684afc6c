"""`--encoder distilled` from documents to a dataset, and every command that then embeds by the student.

The teacher is a small static encoder, so that nothing waits for a network.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.counting.count_examples import count_examples
from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.inspection.verify import verify_dataset
from crisp_stream.selection.embed_windows import embed_windows
from crisp_stream.writers.append import append
from crisp_stream.writers.embedding.embed import matching_encoder
from crisp_stream.writers.embedding.student import STUDENT_FILES, StudentEncoder, read_facts, token_pieces
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages import student as stages
from crisp_stream.writers.windows import cut_by_document
from crisp_stream.writers.write import plan, write
from tests.support.encoders import make_static
from tests.support.written_dataset import files_below, small_options


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "static"
    make_static(folder)
    return folder


def distilled(source: Path, out: Path, static: Path | None, **changes: Any) -> WriteOptions:
    chosen: dict[str, Any] = {
        "encoder": "distilled",
        "teacher": None if static is None else str(static),
        "teacher_windows": 150,
        "max_length": None,
    }
    return small_options(source, out, **{**chosen, **changes})


@pytest.fixture(scope="module")
def written(text_file: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and its embeddings beside it."""
    root = tmp_path_factory.mktemp("written") / "root"
    lines: list[str] = []
    write(distilled(text_file, root, teacher, embeddings=str(root.parent / "kept")), log=lines.append)
    (root.parent / "log").write_text("\n".join(lines))
    return root


def test_a_dataset_keeps_its_student_and_the_log_says_how_good_it_is(written: Path) -> None:
    dataset = open_dataset(str(written))
    record, facts = dataset.manifest.encoder, read_facts(written / "encoder")
    assert (record.name, record.pooling, record.dim) == ("distilled", "token-pairs", 12)
    assert record.weights_sha256 == StudentEncoder.load(written / "encoder").weights_sha256
    assert {path.name for path in (written / "encoder").iterdir()} == {"encoder.json", *STUDENT_FILES}
    assert facts.tokenizer == dataset.manifest.tokenizer.fingerprint
    assert facts.teacher["name"] == "static"
    assert 100 < facts.teacher_windows < 200
    assert facts.quality.windows > 5
    assert facts.quality.cosine > 0.5
    log = (written.parent / "log").read_text()
    expected = f"student: fitted on {facts.teacher_windows} windows of static; on {facts.quality.windows} others its"
    assert f"{expected} cosine to the teacher is {facts.quality.cosine:.3f}" in log
    assert verify_dataset(str(written), deep=True).problems == []


def test_two_processes_write_the_same_bytes(written: Path, text_file: Path, teacher: Path, tmp_path: Path) -> None:
    write(distilled(text_file, tmp_path / "two", teacher, processes=2), log=quiet)
    assert files_below(tmp_path / "two") == files_below(written)


def test_a_write_that_ends_in_any_of_its_stages_goes_on_to_the_same_bytes(
    written: Path, text_file: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = distilled(text_file, tmp_path / "root", teacher, work=str(tmp_path / "work"))
    for task in (stages.StudentSampleTask, stages.TeacherTask, stages.StudentTask):
        with monkeypatch.context() as patch:
            calls: list[int] = []
            make = task.make

            def killed(self: Any, make: Any = make, calls: list[int] = calls) -> Any:
                calls.append(self.number)
                if len(calls) == (2 if isinstance(self, stages.TeacherTask) else 1):
                    raise KeyboardInterrupt
                return make(self)

            patch.setattr(task, "make", killed)
            with pytest.raises(KeyboardInterrupt):
                write(options, log=quiet)
    lines: list[str] = []
    write(options, log=lines.append)
    assert any(line.startswith("teacher: ") and "were done by an earlier run" in line for line in lines)
    assert files_below(tmp_path / "root") == files_below(written)


def test_teacher_and_its_windows_decide_the_bytes(written: Path, text_file: Path, tmp_path: Path) -> None:
    make_static(tmp_path / "static", dim=8)
    write(distilled(text_file, tmp_path / "other", tmp_path / "static"), log=quiet)
    assert open_dataset(str(tmp_path / "other")).manifest.encoder.dim == 8
    few = distilled(text_file, tmp_path / "few", tmp_path / "static", teacher_windows=100)
    write(few, log=quiet)
    digests = {
        open_dataset(str(root)).manifest.encoder.weights_sha256
        for root in (written, tmp_path / "other", tmp_path / "few")
    }
    assert len(digests) == 3
    with pytest.raises(InputError, match=r"teacher_windows is 150, was 100"):
        write(dataclasses.replace(few, teacher_windows=150), log=quiet)


def test_embed_gives_exactly_the_vectors_that_placed_the_windows(written: Path, tmp_path: Path) -> None:
    embed_windows(str(written), str(tmp_path / "made"), processes=1, log=quiet)
    assert files_below(tmp_path / "made") == files_below(written.parent / "kept")


def test_a_histogram_counts_the_leaves_of_the_tokens_of_the_examples_windows(written: Path, text_file: Path) -> None:
    dataset = open_dataset(str(written))
    counted = count_examples([str(text_file)], data=str(written), processes=1, log=quiet)
    tokenizer = DocumentTokenizer(dataset.tokenizer_path())
    read = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
    texts = [text for text in read if text.strip()]
    cut = cut_by_document(
        tokenizer.encode(texts), window_tokens=64, eot_id=tokenizer.eot_id, token_dtype=tokenizer.token_dtype
    )
    student = StudentEncoder.load(written / "encoder")
    leaves = dataset.tree.assign(student.embed_pieces(token_pieces(cut.tokens, tokenizer.eot_id)))
    nodes, counts = np.unique(leaves, return_counts=True)
    assert counted.counts is not None
    np.testing.assert_array_equal(counted.nodes, nodes)
    np.testing.assert_array_equal(counted.counts, counts)


def test_like_and_a_folder_of_a_student_embed_by_it_without_a_teacher(
    written: Path, text_file: Path, tmp_path: Path
) -> None:
    weights = open_dataset(str(written)).manifest.encoder.weights_sha256
    like = distilled(text_file, tmp_path / "like", None, encoder=None, like=str(written))
    write(like, log=quiet)
    assert open_dataset(str(tmp_path / "like")).manifest.encoder.weights_sha256 == weights
    kept, brought = files_below(written), files_below(tmp_path / "like")
    assert {name for name in kept if name.startswith("encoder/")} <= brought.keys()
    assert all(brought[name] == kept[name] for name in kept if name.startswith(("encoder/", "shards/")))
    lines: list[str] = []
    given = distilled(text_file, tmp_path / "given", None, encoder=str(written / "encoder"))
    write(given, log=lines.append)
    assert not any("teacher" in line for line in lines)
    manifest = open_dataset(str(tmp_path / "given")).manifest
    assert (manifest.encoder.weights_sha256, manifest.encoder.name) == (weights, "distilled")
    assert manifest.tokenizer == open_dataset(str(written)).manifest.tokenizer
    append(WriteOptions(inputs=[str(text_file)], out=str(tmp_path / "given"), processes=1), log=quiet)
    assert verify_dataset(str(tmp_path / "given"), deep=True).problems == []


def test_a_student_of_another_tokenizer_is_refused(written: Path, text_file: Path, tmp_path: Path) -> None:
    write(small_options(text_file, tmp_path / "lsi", encoder="lsi", max_length=None, vocab_size=500), log=quiet)
    given = {"encoder": str(written / "encoder"), "tokenizer": str(tmp_path / "lsi" / "tokenizer")}
    with pytest.raises(InputError, match=r"tokenizer .*: must be the one that the distilled encoder .* reads"):
        write(distilled(text_file, tmp_path / "out", None, **given), log=quiet)
    record = open_dataset(str(tmp_path / "lsi")).manifest.encoder
    with pytest.raises(InputError, match=r"encoder distilled: must be the one that embedded .*lsi \(lsi\), got one"):
        matching_encoder(record, "distilled", str(tmp_path / "lsi"))


def test_a_student_of_another_dataset_is_refused(written: Path, text_file: Path, teacher: Path, tmp_path: Path) -> None:
    write(distilled(text_file, tmp_path / "other", teacher, teacher_windows=100), log=quiet)
    with pytest.raises(InputError, match=r"must be the one that embedded .*; what differs: .*vectors\.npy"):
        count_examples([str(text_file)], data=str(written), encoder=str(tmp_path / "other" / "encoder"), log=quiet)
    (tmp_path / "other" / "encoder" / "pairs.npy").unlink()
    with pytest.raises(FormatError, match=r"must hold .*pairs\.npy.* of a distilled encoder"):
        count_examples([str(text_file)], data=str(tmp_path / "other"), log=quiet)


def test_too_little_text_for_a_student_is_refused_with_a_remedy(teacher: Path, tmp_path: Path) -> None:
    source = tmp_path / "few.jsonl"
    source.write_text("".join(json.dumps({"text": f"text {at} of few words " * 9}) + "\n" for at in range(12)))
    with pytest.raises(InputError, match=r"a student must be fitted on at least 32 windows, got \d+\. Give more text"):
        write(distilled(source, tmp_path / "out", teacher), log=quiet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_windows": 63}, r"teacher_windows: must be at least 64, got 63"),
        ({"reads": "all"}, r"reads: must be left out with --encoder distilled, whose teacher reads all, got 'all'"),
        ({"encoder": "lsi"}, r"teacher: must be left out without --encoder distilled"),
        ({"teacher": "lsi"}, r"teacher: must be an encoder that exists already, as a folder or hub name, got 'lsi'"),
        ({"teacher": "distilled"}, r"teacher: must be an encoder that exists already"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    text_file: Path, teacher: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        distilled(text_file, tmp_path / "out", None, **{"teacher": str(teacher), **changes})


@pytest.mark.parametrize("changes", [{"max_length": 32}, {"reads": "all"}, {"encoder_prompt": "query: "}])
def test_a_given_student_takes_no_options_of_reading(
    written: Path, text_file: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    options = distilled(text_file, tmp_path / "out", None, encoder=str(written / "encoder"), **changes)
    with pytest.raises(InputError, match=rf"{next(iter(changes))}: must be left out with a distilled encoder that is"):
        write(options, log=quiet)


def test_a_plan_names_the_stages(written: Path, text_file: Path, teacher: Path, tmp_path: Path) -> None:
    planned = plan(distilled(text_file, tmp_path / "out", teacher))
    assert "windows, student-sample, teacher, student, embeddings" in planned
    given = plan(distilled(text_file, tmp_path / "given", None, encoder=str(written / "encoder")))
    assert "windows, student, embeddings" in given
