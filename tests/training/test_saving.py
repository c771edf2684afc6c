"""Saving to object storage: killed at any moment and continued, few checkpoints kept, refused places found first."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from composer.loggers import FileLogger

from crisp_stream.cli.main import main
from crisp_stream.errors import FormatError, InputError, StorageError
from crisp_stream.evaluation.models import open_model
from crisp_stream.models import gpt as model
from crisp_stream.models.checkpoint import check_readable, latest_checkpoint, local_copy
from crisp_stream.storage.store import open_store
from crisp_stream.training.train import train
from tests.support.ranks import Command, Forked, run_ranks, start_ranks
from tests.support.seaweed import S3Server
from tests.support.small_runs import SmallRun, copy_until, losses_of, small_run, windows_of

LONG = ("max_duration=120ba", "save_interval=10ba", "log_interval=1", "mixture.phases.0.until=80ba")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def fetch(folder: str, target: Path) -> Path:
    """The CSV files of a run in object storage, as a local folder."""
    target.mkdir()
    store = open_store(folder)
    for name in ("losses.csv", "windows.csv", "cluster_losses.csv", "run.json"):
        (target / name).write_bytes(store.get(name))
    return target


def checkpoints(folder: str) -> list[str]:
    """Names of the checkpoints in a folder of any kind, by batch."""
    names = [name for name, _ in open_store(folder).list() if name.startswith("ep") and name.endswith(".pt")]
    return sorted(names, key=lambda name: int(name.split("-")[1].removeprefix("ba")))


def batches_in(folder: str) -> list[int]:
    """Their numbers of batches."""
    return [int(name.split("-")[1].removeprefix("ba")) for name in checkpoints(folder)]


def test_a_run_that_is_killed_goes_on_from_object_storage_bit_for_bit(
    done: SmallRun, s3: S3Server, tmp_path: Path
) -> None:
    train(done.recipe(*LONG, f"save_folder={tmp_path}/whole"))
    folder = s3.fresh_prefix("killed")
    arguments = [*LONG, f"save_folder={folder}", "autoresume=true", "loggers.file=true", "data.num_workers=1"]
    for killed_after in (25, 70):
        running = Forked(Command("train", done.recipe_file, *arguments), tmp_path / f"{killed_after}.log")
        running.wait_for(f"batch {killed_after}/")
        running.send(signal.SIGKILL, to_group=True)
        assert running.end() == -signal.SIGKILL
        latest = latest_checkpoint(folder)
        assert latest is not None
        assert latest.rpartition("/")[2] in checkpoints(folder)
    report = train(done.recipe(*arguments))
    assert report.resumed_at is not None
    assert 40 <= report.resumed_at <= 70
    assert report.checkpoint == latest_checkpoint(folder) == f"{folder}/ep0-ba120-rank0.pt"
    run = fetch(folder, tmp_path / "run")
    assert losses_of(run) == losses_of(tmp_path / "whole")
    assert windows_of(run) == windows_of(tmp_path / "whole")
    assert (run / "cluster_losses.csv").read_text() == (tmp_path / "whole" / "cluster_losses.csv").read_text()
    logs = [name for name, _ in open_store(folder).list("logs")]
    assert len(logs) == 3, "each part has a log, also those that were killed"


def test_what_was_uploaded_in_part_or_beyond_the_latest_checkpoint_is_written_again(
    done: SmallRun, s3: S3Server, tmp_path: Path
) -> None:
    folder = s3.fresh_prefix("beyond")
    store = open_store(folder)
    store.put_file("ep0-ba8-rank0.pt", done.checkpoint(8))
    store.put("latest-rank0.pt.symlink", f"{folder.removeprefix('s3://crisp-tests/')}/ep0-ba8-rank0.pt".encode())
    store.put("ep0-ba12-rank0.pt", b"half a checkpo")
    train(done.recipe(f"save_folder={folder}", "autoresume=true"))
    assert store.object_bytes("ep0-ba12-rank0.pt") > 10_000
    assert losses_of(fetch(folder, tmp_path / "run")) == losses_of(done.save_folder)


def test_a_checkpoint_in_object_storage_is_not_written_over_by_accident(done: SmallRun, s3: S3Server) -> None:
    folder = s3.fresh_prefix("twice")
    store = open_store(folder)
    store.put_file("ep0-ba8-rank0.pt", done.checkpoint(8))
    store.put("ep0-ba12-rank0.pt", b"of another run")
    with pytest.raises(StorageError, match=r"ep0-ba12-rank0.pt exists already. Add autoresume=true"):
        train(done.recipe(f"save_folder={folder}", f"load_path={folder}/ep0-ba8-rank0.pt"))
    assert store.get("ep0-ba12-rank0.pt") == b"of another run"


@pytest.mark.parametrize(
    ("place", "keep", "left"),
    [
        ("s3", -1, [2, 4, 6, 8, 10, 12]),
        ("s3", 2, [10, 12]),
        ("s3", 0, [12]),
        ("local", 2, [10, 12]),
        ("local", 0, [12]),
    ],
)
def test_as_many_checkpoints_are_kept_as_asked_also_of_an_earlier_part_of_the_run(
    done: SmallRun, tmp_path: Path, place: str, keep: int, left: list[int], request: pytest.FixtureRequest
) -> None:
    folder = f"{tmp_path}/run" if place == "local" else request.getfixturevalue("s3").fresh_prefix("kept")
    for batch in (2, 4):
        open_store(folder).put_file(f"ep0-ba{batch}-rank0.pt", done.checkpoint(4))
    options = [f"save_num_checkpoints_to_keep={keep}", "save_interval=2ba", "autoresume=true"]
    train(done.recipe(f"save_folder={folder}", *options))
    assert checkpoints(folder) == [f"ep0-ba{batch}-rank0.pt" for batch in left]
    assert latest_checkpoint(folder) == f"{folder}/ep0-ba12-rank0.pt"


@pytest.mark.parametrize("place", ["local", "s3"])
def test_checkpoints_are_also_saved_where_asked_and_count_among_those_that_are_kept(
    done: SmallRun, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    def fresh(name: str) -> str:
        return str(tmp_path / name) if place == "local" else request.getfixturevalue("s3").fresh_prefix(name)

    asked = ["save_interval=6ba", "save_at=[3ba, 1_200tok, 0.75dur]"]  # 256 tokens a batch
    train(done.recipe(*asked, f"save_folder={(all_of := fresh('all'))}"))
    assert batches_in(all_of) == [3, 5, 6, 9, 12]
    train(done.recipe(*asked, f"save_folder={(few := fresh('few'))}", "save_num_checkpoints_to_keep=3"))
    assert batches_in(few) == [6, 9, 12]
    again = fresh("again")
    store, name = open_store(again), "ep0-ba5-rank0.pt"
    store.put(name, open_store(all_of).get(name))
    if place == "local":
        (Path(again) / "latest-rank0.pt").symlink_to(name)
    else:
        store.put("latest-rank0.pt.symlink", f"{again.partition('://')[2].partition('/')[2]}/{name}".encode())
    report = train(done.recipe(*asked, f"save_folder={again}", "autoresume=true"))
    assert report.resumed_at == 5
    assert batches_in(again) == [5, 6, 9, 12]
    assert fetch(again, tmp_path / "csv").joinpath("losses.csv").read_bytes() == open_store(all_of).get("losses.csv")


@contextlib.contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Have no file of this process grow beyond a size, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fails_on_a_full_disk(command: list[str], num_bytes: int) -> None:
    with largest_file(num_bytes):
        assert main(command) == 2


@pytest.fixture(params=["local", "s3"])
def saved(request: pytest.FixtureRequest, done: SmallRun, tmp_path: Path) -> str:
    """A folder with the checkpoints at 4 and 8 batches, without a link to the newest one."""
    folder = f"{tmp_path}/saved" if request.param == "local" else request.getfixturevalue("s3").fresh_prefix("saved")
    for batch in (4, 8):
        open_store(folder).put_file(f"ep0-ba{batch}-rank0.pt", done.checkpoint(batch))
    return folder


def cut_off(folder: str, batch: int) -> None:
    """Leave the first half of a checkpoint."""
    store, name = open_store(folder), f"ep0-ba{batch}-rank0.pt"
    store.put(name, store.get_range(name, 0, store.object_bytes(name) // 2))


def test_autoresume_finds_checkpoints_without_a_link(
    done: SmallRun, saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(done.recipe(f"save_folder={saved}", "autoresume=true", "max_duration=9ba")).resumed_at == 8
    assert latest_checkpoint(saved) == f"{saved}/ep0-ba9-rank0.pt"
    assert "The run goes on from" not in capsys.readouterr().err


def test_a_folder_without_a_link_is_judged_by_its_newest_checkpoint(done: SmallRun, tmp_path: Path) -> None:
    copy_until(done.save_folder, 8, tmp_path / "run")
    (tmp_path / "run" / "latest-rank0.pt").unlink()
    assert open_model(f"{tmp_path}/run").record.batch == 8


def test_a_newest_checkpoint_that_is_cut_off_gives_way_to_the_one_before(
    done: SmallRun, saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_off(saved, 8)
    assert train(done.recipe(f"save_folder={saved}", "autoresume=true", "max_duration=9ba")).resumed_at == 4
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"warning: {saved}")]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: {saved}/ep0-ba8-rank0.pt is not a checkpoint, or it is ")
    assert warnings[0].endswith(f". The run goes on from {saved}/ep0-ba4-rank0.pt.")
    check_readable(f"{saved}/ep0-ba8-rank0.pt")


def test_where_no_checkpoint_can_be_read_nothing_is_trained(done: SmallRun, saved: str) -> None:
    cut_off(saved, 4)
    cut_off(saved, 8)
    files = dict(open_store(saved).list())
    with pytest.raises(
        FormatError, match=rf"{saved}: none of its 2 checkpoints can be read .*ep0-ba8.*or name another"
    ):
        train(done.recipe(f"save_folder={saved}", "autoresume=true"))
    assert dict(open_store(saved).list()) == files


def test_a_full_disk_ends_a_run_with_one_line_and_leaves_no_half_checkpoint(
    done: SmallRun, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for folder in (f"{tmp_path}/run", s3.fresh_prefix("full")):
        fails_on_a_full_disk(["train", str(done.recipe_file), f"save_folder={folder}", "log_interval=100"], 300_000)
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert error.startswith(f"error: {tmp_path}/")
        assert "/ep0-ba4-rank0.pt cannot be saved: File too large. Check the space and the permissions there" in error
        assert open_store(folder).list() == []


def test_a_checkpoint_that_finds_no_room_where_it_is_fetched_is_one_line(
    done: SmallRun, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url = f"{s3.fresh_prefix('fetched')}/ep0-ba4-rank0.pt"
    open_store(url.rpartition("/")[0]).put_file("ep0-ba4-rank0.pt", done.checkpoint(4))
    no_room = pytest.raises(StorageError, match=rf"{url} needs [\d,]+ bytes in .*: File too large\. Free some, or")
    with no_room, largest_file(300_000), local_copy(url):
        pass


def test_a_full_disk_ends_all_ranks(done: SmallRun, tmp_path: Path) -> None:
    command = ["train", str(done.recipe_file), f"save_folder={tmp_path}/run"]
    run_ranks(2, functools.partial(fails_on_a_full_disk, command, 300_000), tmp_path)
    for rank in range(2):
        log = (tmp_path / f"rank-{rank}-of-2.log").read_text()
        assert f"error: {tmp_path}/run/ep0-ba4-rank0.pt cannot be saved: File too large. Check the space" in log
        assert "Traceback" not in log
    assert list((tmp_path / "run").iterdir()) == []


def test_a_full_disk_ends_a_run_that_logs_there(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FileLogger, "_flush_file", flush)
    with pytest.raises(StorageError, match=f"{tmp_path}/run: No space left on device. Make room there"):
        train(done.recipe(f"save_folder={tmp_path}/run", "loggers.file=true"))


@pytest.mark.parametrize("start", ["another/ep0-ba4-rank0.pt", "ep0-ba4-rank0.pt"])
def test_checkpoints_of_another_run_or_beyond_the_start_are_not_written_over(
    done: SmallRun, saved: str, start: str
) -> None:
    """Another run's folder may begin with the same letters."""
    load_path = f"{saved}-{start}" if "/" in start else f"{saved}/{start}"
    parent, _, name = load_path.rpartition("/")
    open_store(parent).put_file(name, done.checkpoint(4))
    before = {name: open_store(saved).get(name) for name in checkpoints(saved)}
    with pytest.raises((InputError, StorageError), match=r"Add autoresume=true.*save_folder"):
        train(done.recipe(f"save_folder={saved}", f"load_path={load_path}"))
    assert {name: open_store(saved).get(name) for name in checkpoints(saved)} == before


def test_the_link_to_the_newest_checkpoint_is_there_at_every_moment(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(link: Path, target: str, make: Any = Path.symlink_to) -> None:
        make(link, target)
        if target == "ep0-ba8-rank0.pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "symlink_to", killed)
    with pytest.raises(KeyboardInterrupt):
        train(done.recipe(f"save_folder={tmp_path}/run"))
    assert latest_checkpoint(f"{tmp_path}/run") == f"{tmp_path}/run/ep0-ba4-rank0.pt"
    monkeypatch.undo()
    assert train(done.recipe(f"save_folder={tmp_path}/run", "autoresume=true")).resumed_at == 4


def test_nothing_of_a_run_in_object_storage_stays_on_the_disk(
    done: SmallRun, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    train(done.recipe(f"save_folder={s3.fresh_prefix('clean')}", "loggers.file=true"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_place_that_cannot_be_written_is_found_before_a_model_is_built(
    done: SmallRun, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "build_gpt", None)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="file"):
        train(done.recipe(f"save_folder={tmp_path}/file/run"))
    with pytest.raises(StorageError, match="s3://no-such-place does not exist"):
        train(done.recipe("save_folder=s3://no-such-place/run"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="the credentials were refused"):
        train(done.recipe(f"save_folder={s3.fresh_prefix('refused')}"))


def test_trying_a_place_leaves_nothing_there(done: SmallRun, s3: S3Server) -> None:
    from crisp_stream.storage.store import try_folder

    folder = s3.fresh_prefix("tried")
    try_folder(folder)
    assert open_store(folder).list() == []


@pytest.mark.parametrize("wrong", ["key", "histogram"])
def test_what_cannot_work_ends_two_processes_with_one_message_and_no_waiting(
    done: SmallRun, s3: S3Server, tmp_path: Path, wrong: str
) -> None:
    environment = {}
    arguments = [f"save_folder={s3.fresh_prefix('refused')}"]
    if wrong == "key":
        environment["AWS_SECRET_ACCESS_KEY"] = "wrong"
        message = "the credentials were refused"
    else:
        arguments.append("mixture.phases.1.histogram=nowhere.histogram")
        message = "nowhere.histogram"
    ranks = start_ranks(2, Command("train", done.recipe_file, *arguments), tmp_path, **environment)
    assert [rank.end() for rank in ranks] == [2, 2]
    for rank in ranks:
        assert rank.text.count("error: ") == 1
        assert message in rank.text
        assert "Traceback" not in rank.text


def test_reading_back_what_was_uploaded_needs_nothing_of_this_project(done: SmallRun, s3: S3Server) -> None:
    folder = s3.fresh_prefix("plain")
    train(done.recipe(f"save_folder={folder}", f"load_path={done.checkpoint(8)}"))
    store = s3.store()
    prefix = folder.removeprefix(f"s3://{s3.bucket}/")
    link = bytes(obstore.get(store, f"{prefix}/latest-rank0.pt.symlink").bytes()).decode()
    assert link == f"{prefix}/ep0-ba12-rank0.pt"
    assert obstore.head(store, link)["size"] > 10_000
