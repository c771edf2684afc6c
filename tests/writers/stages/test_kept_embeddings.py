"""`write --embeddings`: the rows of `embed`, without embedding twice, however the write ran and was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.embeddings import EMBEDDINGS, FACTS, WindowEmbeddings
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.loading.reader import read_windows
from crisp_stream.selection.embed_windows import embed_windows
from crisp_stream.writers.append import append
from crisp_stream.writers.engine import engine
from crisp_stream.writers.engine.tasks import Record, Task, execute
from crisp_stream.writers.publishing import publish
from crisp_stream.writers.windows import window_texts
from crisp_stream.writers.write import WriteReport, plan, write
from tests.support.seaweed import S3Server
from tests.support.written_dataset import WordEncoder, files_below, small_options


def quiet(line: str) -> None:
    """Takes log lines."""


def rows_of(folder: Path, root: Path | str) -> np.ndarray:
    """What `select` opens, as an array of its own."""
    return np.array(WindowEmbeddings.load(folder, open_dataset(root)).rows)


def expected_rows(root: Path, encoder: WordEncoder) -> np.ndarray:
    """The windows as they stand in the dataset, embedded again."""
    dataset = open_dataset(root)
    tokenizer = DocumentTokenizer(dataset.tokenizer_path())
    tokens = read_windows(dataset, np.arange(dataset.manifest.num_windows))["tokens"]
    return encoder.embed(window_texts(tokens, tokenizer, tokenizer.eot_id))


def test_they_are_those_that_embed_makes_up_to_rounding(written: tuple[Path, WriteReport], tmp_path: Path) -> None:
    root = written[0]
    kept, made = root.parent / "kept", tmp_path / "made"
    embed_windows(str(root), str(made), processes=1, log=quiet)
    assert sorted(path.name for path in kept.iterdir()) == sorted(path.name for path in made.iterdir())
    assert (kept / FACTS).read_bytes() == (made / FACTS).read_bytes()
    ours, theirs = rows_of(kept, root), rows_of(made, root)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), atol=2e-3)


def test_those_of_an_lsi_are_exactly_those_that_embed_makes(text_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    options = small_options(text_file, root, encoder="lsi", max_length=None, embeddings=str(tmp_path / "kept"))
    write(options, log=quiet)
    embed_windows(str(root), str(tmp_path / "made"), processes=1, log=quiet)
    assert files_below(tmp_path / "kept") == files_below(tmp_path / "made")


@pytest.mark.parametrize("changes", [{}, {"packing": "document"}, {"run_bytes": 1, "sort_memory_bytes": 1}], ids=str)
def test_every_row_is_that_of_its_window_and_nothing_is_embedded_twice(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder, changes: dict[str, object]
) -> None:
    write(small_options(text_file, tmp_path / "plain", **changes), log=quiet)
    num_calls = word_encoder.num_calls
    write(small_options(text_file, tmp_path / "out", embeddings=str(tmp_path / "kept"), **changes), log=quiet)
    assert word_encoder.num_calls == 2 * num_calls
    np.testing.assert_array_equal(
        rows_of(tmp_path / "kept", tmp_path / "out"), expected_rows(tmp_path / "out", word_encoder)
    )
    assert files_below(tmp_path / "out") == files_below(tmp_path / "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "out", "plain"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [FACTS, EMBEDDINGS]


def test_from_work_in_an_object_store_they_are_the_same(
    s3: S3Server, text_file: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    root, work = s3.fresh_prefix("out"), s3.fresh_prefix("work")
    write(small_options(text_file, root, work=work, embeddings=str(tmp_path / "from-s3")), log=quiet)
    write(small_options(text_file, tmp_path / "out", embeddings=str(tmp_path / "kept")), log=quiet)
    assert files_below(tmp_path / "from-s3") == files_below(tmp_path / "kept")
    rows_of(tmp_path / "from-s3", root)


def _killed_after(number: int, stage: str) -> Callable[[Task], Record]:
    run = 0

    def execute_or_die(task: Task) -> Record:
        nonlocal run
        run += task.stage == stage
        if run > number:
            raise KeyboardInterrupt
        return execute(task)

    return execute_or_die


def _die(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("killed", ["run-embeddings", "kept-embeddings", "publishing", "tidying", "folder lost"])
def test_a_killed_write_goes_on_with_the_embeddings_that_are_missing(
    killed: str, text_file: Path, tmp_path: Path, word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_options(text_file, tmp_path / "whole", embeddings=str(tmp_path / "kept-whole"), run_bytes=20_000)
    write(whole, log=quiet)
    options = small_options(text_file, tmp_path / "out", embeddings=str(tmp_path / "kept"), run_bytes=20_000)
    with monkeypatch.context() as patch:
        if killed == "publishing":
            patch.setattr(publish, "_move_files", _die)
        elif killed == "tidying":
            patch.setattr("crisp_stream.writers.publishing.work._delete_folder", _die)
        else:
            stage = "kept-embeddings" if killed == "folder lost" else killed
            patch.setattr(engine, "execute", _killed_after(2, stage))
        with pytest.raises(KeyboardInterrupt):
            write(options, log=quiet)
    if killed == "folder lost":
        (tmp_path / "kept" / EMBEDDINGS).unlink()
    finished, lines = word_encoder.num_calls, list[str]()
    write(options, log=lines.append)
    assert word_encoder.num_calls == finished
    if killed.endswith("embeddings"):
        assert any(line.startswith(f"{killed}: 2 of ") for line in lines), lines
    assert files_below(tmp_path / "kept") == files_below(tmp_path / "kept-whole")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "kept-whole", "out", "whole"]


def test_a_finished_dataset_gets_them_from_work_that_was_kept_and_no_work_is_an_error(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    root, kept = tmp_path / "out", str(tmp_path / "kept")
    write(small_options(text_file, root, keep_work=True), log=quiet)
    finished = word_encoder.num_calls
    with_embeddings = small_options(text_file, root, keep_work=True, embeddings=kept)
    planned = plan(with_embeddings).splitlines()
    assert any(line.split() == ["run-embeddings", "1", "0", "1"] for line in planned), planned
    assert any(line.startswith("then kept-embeddings: ") for line in planned), planned
    write(with_embeddings, log=quiet)
    assert word_encoder.num_calls == finished
    np.testing.assert_array_equal(rows_of(Path(kept), root), expected_rows(root, word_encoder))
    before = files_below(root)
    for folder in (tmp_path / ".out.write").glob("embeddings"):
        shutil.rmtree(folder)
    other = str(tmp_path / "other")
    remedy = f"crisp-stream embed {root} --out {other}"
    with pytest.raises(InputError, match=f"deleted in part. Embed its windows with: {remedy}"):
        write(small_options(text_file, root, embeddings=other), log=quiet)
    shutil.rmtree(tmp_path / ".out.write")
    for ask in (plan, write):
        with pytest.raises(InputError, match=f"no work of this write is left .* Embed its windows with: {remedy}"):
            ask(small_options(text_file, root, embeddings=other))
    assert not Path(other).exists()
    assert files_below(root) == before


def test_a_plan_names_them_after_all_else(text_file: Path, tmp_path: Path, word_encoder: WordEncoder) -> None:
    lines = plan(small_options(text_file, tmp_path / "out", embeddings=str(tmp_path / "kept"))).splitlines()
    assert any("provenance, run-embeddings, kept-embeddings: their tasks" in line for line in lines)
    assert "embeddings, tree" in " ".join(plan(small_options(text_file, tmp_path / "out")).splitlines())
    assert "run-embeddings" not in plan(small_options(text_file, tmp_path / "out"))
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_cannot_be_theirs_is_refused_before_any_work(
    text_file: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    kept = str(tmp_path / "kept")
    write(small_options(text_file, tmp_path / "one", embeddings=kept), log=quiet)
    finished, before = word_encoder.num_calls, files_below(tmp_path)
    with pytest.raises(InputError, match="must not hold embeddings of another dataset, but has those of"):
        write(small_options(text_file, tmp_path / "two", depth=2, embeddings=kept), log=quiet)
    (tmp_path / "kept" / FACTS).write_text("{")
    with pytest.raises(InputError, match=r"the embeddings are damaged .* Delete the folder"):
        write(small_options(text_file, tmp_path / "two", depth=2, embeddings=kept), log=quiet)
    (tmp_path / "kept" / FACTS).write_bytes(before[f"kept/{FACTS}"])
    with pytest.raises(InputError, match="embeddings: must be a folder, got s3://bucket/kept"):
        write(small_options(text_file, tmp_path / "two", embeddings="s3://bucket/kept"), log=quiet)
    with pytest.raises(InputError, match=r"embeddings: must be left out, because append .* crisp-stream embed"):
        append(small_options(text_file, tmp_path / "one", embeddings=kept), log=quiet)
    assert word_encoder.num_calls == finished
    assert files_below(tmp_path) == before


def test_the_command_passes_the_folder_on(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["write", str(text_file), "--out", str(tmp_path / "out"), "--embeddings", str(tmp_path / "kept"), "--plan"]
    assert main(asked) == 0
    assert "kept-embeddings" in capsys.readouterr().out
    assert not (tmp_path / "kept").exists()
