"""`crisp-stream encoder fit` and `encoder inspect`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.writers.embedding.student import STUDENT_FILES, read_facts
from crisp_stream.writers.encoder_command import fit, inspect
from crisp_stream.writers.estimate import estimate_write
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.write import write
from tests.support.encoders import make_static
from tests.support.written_dataset import files_below, small_options


def quiet(line: str) -> None:
    pass


def options(source: Path, out: Path, teacher: Path) -> WriteOptions:
    return small_options(source, out, encoder="distilled", teacher=str(teacher), teacher_windows=150, max_length=None)


def test_a_student_that_is_fitted_alone_is_the_one_of_a_write(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_static(tmp_path / "static")
    asked = options(text_file, tmp_path / "root", tmp_path / "static")
    write(asked, log=quiet)
    command = ["encoder", "fit", str(text_file), "--out", str(tmp_path / "student"), "--processes", "1"]
    command += ["--teacher", str(tmp_path / "static"), "--teacher-windows", "150", "--window-tokens", "64"]
    assert main([*command, "--vocab-size", "600", "--part-characters", "12000"]) == 0
    assert "student: fitted on" in capsys.readouterr().out
    kept, fitted = files_below(tmp_path / "root" / "encoder"), files_below(tmp_path / "student")
    assert fitted == kept
    assert fitted.keys() == {"encoder.json", *STUDENT_FILES}
    assert not list(tmp_path.glob(".student*"))

    facts = read_facts(tmp_path / "student")
    assert main(["encoder", "inspect", str(tmp_path / "root")]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == inspect(str(tmp_path / "student"))
    assert re.search(rf"fitted on +{facts.teacher_windows} windows, of each 64 tokens", printed)
    assert re.search(rf"cosine to the teacher +{facts.quality.cosine:.3f}; 95 % reach", printed)

    given = dataclasses.replace(
        asked, out=str(tmp_path / "given"), encoder=str(tmp_path / "student"), teacher=None, processes=2
    )
    write(given, log=quiet)
    shards = [
        {name: content for name, content in files_below(tmp_path / root).items() if name.startswith("shards/")}
        for root in ("root", "given")
    ]
    assert shards[0] == shards[1]
    assert open_dataset(str(tmp_path / "given")).manifest.encoder.name == "distilled"

    estimate = estimate_write(asked)
    assert "the teacher measured" in estimate.text()
    others = re.search(r"embedding by each encoder.*: (.*)", estimate.text())
    assert others is not None
    assert [part.split()[0] for part in others[1].split(", ")] == ["all-MiniLM-L6-v2", "--reads", "distilled", "lsi"]
    assert "measured" in estimate_write(given).text()


def test_what_cannot_be_fitted_or_inspected_is_refused(text_file: Path, tmp_path: Path) -> None:
    taken = small_options(text_file, tmp_path, encoder="distilled", max_length=None)
    with pytest.raises(InputError, match=r"out: must be a new local folder, got "):
        fit(taken, log=quiet)
    with pytest.raises(InputError, match=r"encoder: must be distilled to be fitted, got 'lsi'"):
        fit(dataclasses.replace(taken, encoder="lsi", out=str(tmp_path / "new")), log=quiet)
    with pytest.raises(InputError, match=r"must be a folder of `encoder fit`, or the root of a dataset written with"):
        inspect(str(tmp_path))
    assert main(["encoder", "inspect", str(tmp_path / "nothing")]) == 2
