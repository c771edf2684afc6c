"""Requests that are run again, roots that are claimed, and two writers of one root."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import InputError, StorageError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.inspection.verify import verify_dataset
from crisp_stream.storage.store import open_store
from crisp_stream.writers.append import append
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.embedding.encoder_files import DEFAULT_ENCODER
from crisp_stream.writers.engine import engine, tasks, versions
from crisp_stream.writers.engine.tasks import Record, Task, execute
from crisp_stream.writers.options import NEUTRAL, WriteOptions
from crisp_stream.writers.publishing import publish
from crisp_stream.writers.publishing.claim import CLAIM, Claim, Hold, Owner, clear, standing_claim
from crisp_stream.writers.publishing.request import Request
from crisp_stream.writers.write import plan, write
from tests.support.seaweed import S3Server, seaweed
from tests.support.words import write_texts
from tests.support.written_dataset import WordEncoder, small_options
from tests.writers.test_crashes import small_disk


def quiet(line: str) -> None:
    """Takes log lines."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three files of documents."""
    return write_texts(tmp_path_factory.mktemp("texts"), characters=700)


@pytest.fixture(autouse=True)
def words(word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch) -> WordEncoder:
    """The fast encoder, which datasets that were written with it find again."""
    monkeypatch.setattr(
        "crisp_stream.writers.stages.models.matching_encoder",
        lambda record, name, root: EncoderChoice(name=DEFAULT_ENCODER),
    )
    return word_encoder


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A root that is not there yet."""
    if request.param == "folder":
        return str(tmp_path / "root")
    server: S3Server = request.getfixturevalue("s3")
    return server.fresh_prefix("claimed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work folders of remote roots."""
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path / "cache"))
    yield
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def options_for(inputs: list[str], out: str, **changes: Any) -> WriteOptions:
    return small_options(Path(inputs[0]), out, **{"inputs": inputs, "group_bytes": 1, **changes})


def contents(root: str) -> dict[str, bytes]:
    store = open_store(root)
    return {path: store.get(path) for path, _ in store.list()}


def during(stage: str, other: Callable[[], object]) -> Callable[[Task], Record]:
    """Runs tasks; before the second one of a stage, `other` happens once."""
    count = 0

    def run(task: Task) -> Record:
        nonlocal count
        count += task.stage == stage
        if task.stage == stage and count == 2:
            count += 1
            other()
        return execute(task)

    return run


def test_a_write_run_again_is_done_and_another_one_is_told_what_differs(
    root: str, texts: list[str], tmp_path: Path, words: WordEncoder
) -> None:
    own = [str(shutil.copy(text, tmp_path)) for text in texts[:2]]
    options = options_for(own, root, work=str(tmp_path / "work"), keep_work=True)
    write(options, log=quiet)
    before, calls, lines = contents(root), words.num_calls, list[str]()
    report = write(options, log=lines.append)
    assert lines == [f"already done: {root} holds the dataset of this request; nothing was done"]
    assert plan(options).startswith("already done: ")
    assert report.windows == open_dataset(root).manifest.num_windows
    with pytest.raises(InputError, match=r"depth is 2, was 3; seed is 7, was 0\. Choose another --out"):
        write(dataclasses.replace(options, depth=2, seed=7), log=quiet)
    Path(own[1]).write_text(Path(own[1]).read_text() + '{"text": "one more"}\n')
    more = [*own, str(shutil.copy(texts[2], tmp_path))]
    with pytest.raises(InputError, match=r"inputs: 1 added \(c\.jsonl\), 1 changed \(b\.jsonl\)\. Choose"):
        write(dataclasses.replace(options, inputs=more), log=quiet)
    assert contents(root) == before
    assert words.num_calls == calls


def test_an_append_run_again_adds_nothing(root: str, texts: list[str], words: WordEncoder) -> None:
    write(options_for(texts[:1], root), log=quiet)
    first = append(options_for(texts[1:2], root), log=quiet)
    append(options_for(texts[2:], root), log=quiet)
    before, calls, lines = contents(root), words.num_calls, list[str]()
    again = append(options_for(texts[1:2], root), log=lines.append)
    assert lines[0] == f"already done: {root} has these documents since generation 1; nothing was added"
    assert (again.generation, again.windows, again.windows_before) == (1, first.windows, first.windows_before)
    write(options_for(texts[:1], root), log=lines.append)
    assert lines[-1].startswith(f"already done: {root} holds the dataset of this request, which has grown since to gen")
    assert contents(root) == before
    assert words.num_calls == calls


def test_other_versions_of_libraries_make_another_request_and_other_tasks(
    texts: list[str], tmp_path: Path, words: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "root")
    write(options_for(texts[:1], root), log=quiet)
    append(options_for(texts[1:2], root), log=quiet)
    before = contents(root)
    original = versions._version
    monkeypatch.setattr(versions, "_version", lambda name: "9.9" if name == "tokenizers" else original(name))
    versions._versions.cache_clear()
    try:
        with pytest.raises(InputError, match=r"of another request\. .*library tokenizers is 9\.9, was \d"):
            write(options_for(texts[:1], root), log=quiet)
        with pytest.raises(InputError, match=r"generation 1 holds these documents already, but library tok"):
            append(options_for(texts[1:2], root), log=quiet)
    finally:
        monkeypatch.undo()
        versions._versions.cache_clear()
    assert contents(root) == before


def test_an_upgrade_in_the_middle_makes_anew_what_depends_on_it_and_only_that(
    texts: list[str], tmp_path: Path, words: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, lines = options_for(texts[:1], str(tmp_path / "root")), list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "execute", during("embeddings", _interrupt))
        with pytest.raises(KeyboardInterrupt):
            write(options, log=quiet)
    original = versions._version
    monkeypatch.setattr(versions, "_version", lambda name: "9.9" if name == "torch" else original(name))
    versions._versions.cache_clear()
    try:
        write(options, log=lines.append)
    finally:
        versions._version = original
        versions._versions.cache_clear()
    assert any(re.match(r"windows: (\d+) of \1 tasks were done by an earlier run", line) for line in lines)
    assert not any(line.startswith("embeddings: ") and "earlier run" in line for line in lines)
    assert all(line["libraries"]["torch"] == "9.9" for line in _requests(str(tmp_path / "root")))


def _requests(root: str) -> list[dict[str, Any]]:
    return open_dataset(root).manifest.provenance["requests"]


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_machine_with_other_versions_is_refused(tmp_path: Path) -> None:
    task = tasks_example(tmp_path)
    object.__setattr__(task, "libraries", {"tokenizers": "0.0", "tiktoken": "0.0"})
    with pytest.raises(InputError, match=r"must have the same versions of libraries for windows, but this one has tok"):
        execute(task)


def tasks_example(tmp_path: Path) -> Task:
    from crisp_stream.writers.engine.workspace import Workspace

    class Example(tasks.Task):
        stage = "windows"

        def settings(self) -> None:
            """None."""

        def make(self) -> Record:
            return {}

    return Example(workspace=Workspace(tmp_path), number=0, inputs=())


def test_every_option_is_part_of_the_request_or_decides_no_byte(texts: list[str]) -> None:
    request = Request.of(options_for(texts[:1], "out"), None)
    fields = {one.name for one in dataclasses.fields(WriteOptions)}
    by_content = {"inputs", "decontaminate", "exclude_ids", "like", "tree"}
    of_a_student = {"teacher", "teacher_windows"}
    assert request.options.keys() | set(NEUTRAL) | by_content | of_a_student == fields
    assert not request.options.keys() & (set(NEUTRAL) | of_a_student)
    distilled = Request.of(dataclasses.replace(options_for(texts[:1], "out"), encoder="distilled"), None)
    assert distilled.options.keys() >= of_a_student
    assert Request.from_json(json.loads(json.dumps(request.to_json(listed=True)))) == request


def test_the_second_of_two_writes_is_refused_before_any_work(
    root: str, texts: list[str], tmp_path: Path, words: WordEncoder
) -> None:
    first, second = options_for(texts[:1], root), options_for(texts[1:2], root, work=str(tmp_path / "other"))

    def other() -> None:
        claim, _ = standing_claim(open_store(root))
        assert claim is not None
        before, calls = contents(root), words.num_calls
        refused = rf"is of another write, of process {claim.owner.pid} on .*1 added \(b.jsonl\), 1 gone.*--take-over"
        with pytest.raises(InputError, match=refused):
            write(second, log=quiet)
        assert contents(root) == before
        assert words.num_calls == calls
        assert not (tmp_path / "other").exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "execute", during("windows", other))
        write(first, log=quiet)
    assert CLAIM not in contents(root)
    assert verify_dataset(root, deep=True).problems == []


def test_a_write_that_lost_its_claim_puts_no_more_and_the_other_one_is_whole(
    root: str, texts: list[str], tmp_path: Path
) -> None:
    first, second = options_for(texts[:1], root), options_for(texts[1:2], root, work=str(tmp_path / "other"))
    theirs: dict[str, bytes] = {}

    def other() -> None:
        with pytest.raises(InputError, match="--take-over"):
            write(second, log=quiet)
        write(dataclasses.replace(second, take_over=True), log=quiet)
        theirs.update(contents(root))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "execute", during("shards", other))
        with pytest.raises(InputError, match=r"must be claimed by this command while it works, but no claim is there"):
            write(first, log=quiet)
    assert contents(root) == theirs
    write(options_for(texts[1:2], str(tmp_path / "alone")), log=quiet)
    assert contents(root) == contents(str(tmp_path / "alone"))


@pytest.mark.parametrize("stage", ["windows", "shards"])
def test_an_append_that_lost_its_claim_leaves_the_root_as_it_was(
    stage: str, root: str, texts: list[str], tmp_path: Path
) -> None:
    write(options_for(texts[:1], root), log=quiet)
    first, second = options_for(texts[1:2], root), options_for(texts[2:], root, work=str(tmp_path / "other"))
    theirs: dict[str, bytes] = {}

    def other() -> None:
        append(dataclasses.replace(second, take_over=True), log=quiet)
        theirs.update(contents(root))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "execute", during(stage, other))
        with pytest.raises(InputError, match=r"nothing was added|no claim is there"):
            append(first, log=quiet)
    mine = theirs.keys() - contents(root).keys()
    assert bool(mine) is (stage == "shards" and root.startswith("s3"))
    assert contents(root) == {name: content for name, content in theirs.items() if name not in mine}
    assert len({name.split(".")[-2] for name in mine}) <= 1, "only its own files, by their mark"
    for generation in (0, 1):
        assert verify_dataset(root, deep=True, generation=generation).problems == []
    append(first, log=quiet)
    assert open_dataset(root).manifest.generation == 2
    assert verify_dataset(root, deep=True).problems == []


def test_whoever_takes_over_trusts_no_file_that_stands_under_the_name_of_its_own(
    s3: S3Server, texts: list[str], tmp_path: Path
) -> None:
    """It was stopped, another took over, and a file of that one arrives after all the others were deleted."""
    root, store = (address := s3.fresh_prefix("late")), open_store(address)
    options = options_for(texts[:1], root, take_over=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "_create_manifest", lambda *arguments: _interrupt())
        with pytest.raises(KeyboardInterrupt):
            write(options, log=quiet)
        late = contents(root)
        with pytest.raises(KeyboardInterrupt):
            write(options_for(texts[:1], root, seed=1, take_over=True), log=quiet)
    original = store.delete

    def delete(path: str) -> None:
        original(path)
        if path in late:  # of the same size, so nothing but the order of events tells it from its own
            store.put(path, late[path][:-1] + bytes([late[path][-1] ^ 1]))

    from crisp_stream.writers.publishing import claimed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claimed, "open_store", lambda url: store)
        patch.setattr(store, "delete", delete)
        write(options, log=quiet)
    assert verify_dataset(root, deep=True).problems == []


def test_a_loser_leaves_files_that_the_same_documents_of_another_request_share(
    texts: list[str], tmp_path: Path
) -> None:
    root, own = str(tmp_path / "root"), str(shutil.copy(texts[1], tmp_path))
    write(options_for(texts[:1], root), log=quiet)
    first = options_for([own], root)

    def other() -> None:
        Path(own).touch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish, "_exchange_manifest", lambda *arguments: _interrupt())
            with pytest.raises(KeyboardInterrupt):
                append(options_for([own], root, work=str(tmp_path / "other"), take_over=True), log=quiet)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "execute", during("shards", other))
        with pytest.raises(InputError, match="it was taken over by process"):
            append(first, log=quiet)
    assert any(name.startswith("clusters.g1.") for name in contents(root)), "the other one has put it, and needs it"
    append(options_for([own], root, work=str(tmp_path / "other")), log=quiet)
    assert verify_dataset(root, deep=True).problems == []


def test_a_claim_of_a_process_that_has_ended_with_nothing_in_the_root_stands_in_nobodys_way(
    root: str, texts: list[str]
) -> None:
    ended = dataclasses.replace(Owner.here(), pid=2**22 + 1)
    request = Request.of(options_for(texts[1:2], root), None)
    store = open_store(root)
    store.put(CLAIM, Claim(request=request, owner=ended, has_begun=True).to_json())
    with pytest.raises(InputError, match=r"process 4194305 on .*, which has ended, since .* --take-over"):
        write(options_for(texts[:1], root), log=quiet)
    store.put(CLAIM, Claim(request=request, owner=ended).to_json())
    lines: list[str] = []
    write(options_for(texts[:1], root), log=lines.append)
    assert any(line.startswith("claim: taken over from process 4194305") for line in lines)
    elsewhere = dataclasses.replace(ended, process=ended.process.replace("pid:", "pid:1"))
    assert not elsewhere.has_ended()
    assert not Owner.here().has_ended()


def test_a_process_that_joined_and_failed_leaves_the_claim_to_the_other(
    root: str, texts: list[str], tmp_path: Path
) -> None:
    first = options_for(texts[:1], root)

    def other() -> None:
        def fail(task: Task) -> Record:
            raise StorageError("no room")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "execute", fail)
            with pytest.raises(StorageError, match="no room"):
                write(dataclasses.replace(first, work=str(tmp_path / "other")), log=quiet)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "execute", during("windows", other))
        write(first, log=quiet)
    assert CLAIM not in contents(root)


def test_two_processes_with_one_request_make_one_dataset(root: str, texts: list[str], tmp_path: Path) -> None:
    first, lines = options_for(texts[:1], root), list[str]()

    def other() -> None:
        write(dataclasses.replace(first, work=str(tmp_path / "other")), log=quiet)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "execute", during("shards", other))
        write(first, log=lines.append)
    assert f"published: {root}, by another run of the same request" in lines
    write(options_for(texts[:1], str(tmp_path / "alone")), log=quiet)
    assert contents(root) == contents(str(tmp_path / "alone"))


def test_a_dataset_that_was_finished_meanwhile_is_not_cleared(texts: list[str], tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    write(options_for(texts[:1], root), log=quiet)
    before = contents(root)
    request = Request.of(options_for(texts[1:2], root), None)
    store = open_store(root)
    store.put(CLAIM, Claim(request=request, owner=Owner.here(), has_begun=True, clears=True).to_json())
    clear(store, Hold(root, request.fingerprint), publish.dataset_files)
    assert contents(root).items() >= before.items()


def test_a_claim_that_cannot_be_read_is_told(root: str, texts: list[str]) -> None:
    open_store(root).put(CLAIM, b"{}")
    with pytest.raises(InputError, match=r"claim\.json: must be what a write or append .* left.*delete it"):
        write(options_for(texts[:1], root), log=quiet)


def test_a_failure_that_put_nothing_there_ends_its_claim(texts: list[str], tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    with pytest.raises(InputError, match="the text column 'body' must exist"):
        write(options_for(texts[:1], str(root), text_column="body"), log=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    assert not root.exists()
    write(options_for(texts[:1], str(root)), log=quiet)


def test_a_store_that_ignores_conditions_is_named(
    s3: S3Server, texts: list[str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server speaks enough of Google's protocol to serve it, but knows none of its conditions."""
    lines: list[str] = []
    with seaweed(tmp_path_factory.mktemp("gcs"), anonymous=True) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        root = f"gs://{server.bucket}/root"
        write(options_for(texts[:1], root), log=lines.append)
        assert [line for line in lines if "ignores conditional puts (If-None-Match, If-Match)" in line]
        assert verify_dataset(root, deep=True).problems == []
    lines.clear()
    write(options_for(texts[:1], s3.fresh_prefix("conditions")), log=lines.append)
    assert not [line for line in lines if "ignores conditional" in line]


def test_inputs_that_change_between_the_request_and_reading_are_refused(texts: list[str], tmp_path: Path) -> None:
    own = str(shutil.copy(texts[0], tmp_path))

    def listed_again(*arguments: Any) -> Any:
        Path(own).write_text(Path(own).read_text() + '{"text": "one more"}\n')
        return listing(*arguments)

    from crisp_stream.writers.stages import documents

    listing = documents.list_input_files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "list_input_files", listed_again)
        with pytest.raises(InputError, match="inputs: must stay as they are while they are read"):
            write(options_for([own], str(tmp_path / "root")), log=quiet)
    assert not (tmp_path / "root").exists()


def test_interrupted_publishing_then_another_request_is_refused_with_the_remedy(
    texts: list[str], tmp_path: Path
) -> None:
    root = str(tmp_path / "root")

    def half(staged: Path, target: Path, names: list[str], hold: object) -> None:
        for name in names[: len(names) // 2]:
            publish.move(staged / name, target / name)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "_move_files", half)
        with pytest.raises(KeyboardInterrupt):
            write(options_for(texts[:1], root), log=quiet)
    before = contents(root)
    other = options_for(texts[:1], root, depth=2)
    with pytest.raises(
        InputError, match=r"claim\.json there is of another write, .* depth is 2, was 3\. .* --take-over"
    ):
        write(other, log=quiet)
    assert contents(root) == before
    write(dataclasses.replace(other, take_over=True), log=quiet)
    write(options_for(texts[:1], str(tmp_path / "alone"), depth=2), log=quiet)
    assert contents(root) == contents(str(tmp_path / "alone"))


_READ_ONLY, _REMOUNT = 1, 32


@pytest.mark.parametrize("where", ["root", "parent"])
def test_a_root_that_is_read_only_is_told_before_any_work(
    where: str, texts: list[str], tmp_path: Path, words: WordEncoder
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 1 << 20) as grow:
        root = disk / "root"
        if where == "root":
            root.mkdir()
        read_only = _REMOUNT | _READ_ONLY
        if grow is None or ctypes.CDLL(None).mount(b"tmpfs", bytes(disk), b"tmpfs", read_only, None):
            pytest.skip("this user may not mount a file system")
        work = {} if where == "parent" else {"work": str(tmp_path / "work")}
        with pytest.raises(StorageError, match=r"Read-only file system\. Name a place that can be written to"):
            write(options_for(texts[:1], str(root), **work), log=quiet)
    assert words.num_calls == 0
    assert not (tmp_path / "work").exists()


def test_a_root_on_another_file_system_that_fills_up_goes_on_when_there_is_room(
    texts: list[str], tmp_path: Path
) -> None:
    write(options_for(texts[:1], str(tmp_path / "whole")), log=quiet)
    disk = tmp_path / "disk"
    with small_disk(disk, 60 << 10) as grow:
        if grow is None:
            pytest.skip("this user may not mount a file system")
        options = options_for(texts[:1], str(disk / "data"), work=str(tmp_path / "work"))
        with pytest.raises(StorageError, match=r"disk/data/.*: No space left on device\. Free some space there"):
            write(options, log=quiet)
        assert "manifest.json" not in contents(str(disk / "data"))
        grow(16 << 20)
        write(options, log=quiet)
        assert contents(str(disk / "data")) == contents(str(tmp_path / "whole"))
    assert not (tmp_path / "work").exists()
