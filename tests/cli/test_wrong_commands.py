"""Commands that are typed wrong: each is refused in a line or two, which name the nearest right one or the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from crisp_stream.cli import main as command_line
from crisp_stream.cli.main import GROUPS, main
from tests.support.wrong_commands import WRONG, prepare, said_about


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wrong")
    prepare(path)
    return path


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_refused_with_what_is_wrong(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    code, said = said_about(command)
    assert code == 2
    lines = [line for line in said.splitlines() if not line.startswith("warning:")]
    assert 1 <= len(lines) <= 2
    assert lines[0].startswith("error: ")
    assert WRONG[command] in lines[0]
    assert "Traceback" not in said
    assert sorted(folder.rglob("*")) == before


def test_every_command_stands_in_one_group() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(command_line._parser().commands)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_crisp_stream_alone_lists_the_commands_in_groups(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert [title for title in GROUPS if f"\n{title}:\n" in shown] == list(GROUPS)
    assert max(map(len, shown.splitlines())) <= columns
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert not end.value.code
    assert capsys.readouterr().out == shown
