"""Folders and object stores behind one interface, and the errors users meet."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from crisp_stream.errors import InputError, MissingObjectError, StorageError
from crisp_stream.storage import inputs, object_helper
from crisp_stream.storage.store import Store, open_store
from tests.support.fault_proxy import every_request, fault_proxy
from tests.support.seaweed import S3Server


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "root"))
    server: S3Server = request.getfixturevalue("s3")
    return open_store(server.fresh_prefix())


def test_objects_are_put_read_in_ranges_listed_and_deleted(store: Store, tmp_path: Path) -> None:
    assert store.list() == []
    store.put("a/b.bin", b"0123456789")
    (tmp_path / "large").write_bytes(bytes(20 << 20))
    store.put_file("a/large", tmp_path / "large")
    assert store.get("a/b.bin") == b"0123456789"
    assert store.get_range("a/b.bin", 3, 4) == b"3456"
    assert store.list() == store.list("a") == [("a/b.bin", 10), ("a/large", 20 << 20)]
    assert store.object_bytes("a/large") == 20 << 20
    assert store.exists("a/b.bin")
    assert not store.exists("a/none")
    store.delete("a/b.bin")
    with pytest.raises(MissingObjectError, match=r"a/b\.bin does not exist"):
        store.get("a/b.bin")


def test_a_create_only_put_keeps_what_is_there(store: Store) -> None:
    store.put("manifest.json", b"first", create=True)
    with pytest.raises(StorageError, match=r"manifest\.json already exists and is not overwritten"):
        store.put("manifest.json", b"second", create=True)
    assert store.get("manifest.json") == b"first"
    assert [path for path, _ in store.list()] == ["manifest.json"]


def test_a_path_that_leaves_a_folder_is_refused(tmp_path: Path) -> None:
    for path in ("../x", "a/../../x", "/etc/passwd"):
        with pytest.raises(StorageError, match="leaves the root"):
            open_store(str(tmp_path)).get(path)


def test_wrong_credentials_and_a_missing_bucket_are_told_apart(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"s3://no-such-bucket does not exist .* Create it, or check the name"):
        open_store("s3://no-such-bucket/x").list()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"the credentials were refused. Check AWS_ACCESS_KEY_ID"):
        open_store(s3.fresh_prefix()).get("manifest.json")


def test_an_unreachable_endpoint_is_given_up_within_the_timeout(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageError, match="Check the network, the endpoint and the path"):
        open_store("s3://bucket/x", timeout=2).get("manifest.json")


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(InputError, match="unknown scheme ftp://"):
        open_store("ftp://host/x")


def read_in_child(store: Store, answer: Connection) -> None:
    try:
        answer.send((store.get("a"), store.get_range("a", 1, 2), store.list()))
        store.get("none")
    except Exception as error:
        answer.send((type(error).__name__, str(error)))


def _stream(url: str, answer: Connection) -> None:
    try:
        answer.send(inputs.open_input(url).read())
    except StorageError as error:
        answer.send(str(error))


def _error_of_streaming_in_a_fork(url: str) -> str:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_stream, args=(url, theirs))
    child.start()
    assert ours.poll(300), "the child process hangs"
    child.join(300)
    return str(ours.recv())


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_child_process_reads_after_its_parent_did(s3: S3Server, start_method: str) -> None:
    store = open_store(s3.fresh_prefix())
    store.put("a", b"xyz")
    if start_method == "fork":
        assert "cannot be streamed in a forked process" in _error_of_streaming_in_a_fork(f"{store.url}/a")
    context = multiprocessing.get_context(start_method)
    ours, theirs = context.Pipe()
    child = context.Process(  # pyright: ignore[reportAttributeAccessIssue]
        target=read_in_child, args=(store, theirs)
    )
    child.start()
    assert ours.poll(300), "the child process hangs"
    assert ours.recv() == (b"xyz", b"yz", [("a", 3)])
    name, message = ours.recv()
    assert (name, "does not exist" in message) == ("MissingObjectError", True)
    child.join(300)
    assert child.exitcode == 0
    assert pickle.loads(pickle.dumps(store)).get("a") == b"xyz"


def listed(url: str) -> list[str]:
    return [file.url for file in inputs.describe_inputs(url)]


def test_hidden_files_are_left_out_but_a_hidden_folder_may_be_named(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "x"
    (folder / ".git").mkdir(parents=True)
    for name in ("a.txt", ".b.txt", ".git/c.txt"):
        (folder / name).write_text("x")
    assert listed(str(folder)) == [str(folder / "a.txt")]


def test_inputs_are_listed_as_files_folders_and_globs(tmp_path: Path, s3: S3Server) -> None:
    prefix = s3.fresh_prefix()
    remote = open_store(prefix)
    for name in ("b.jsonl", "a.jsonl", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
        remote.put(name, b"{}")
    for root in (str(tmp_path), prefix):
        assert listed(root) == [f"{root}/a.jsonl", f"{root}/b.jsonl", f"{root}/sub/c.txt"]
        assert listed(f"{root}/*.jsonl") == [f"{root}/a.jsonl", f"{root}/b.jsonl"]
        assert listed(f"{root}/a.jsonl") == [f"{root}/a.jsonl"]
        with inputs.open_input(f"{root}/a.jsonl") as file:
            assert file.read() == b"{}"
        assert [file.num_bytes for file in inputs.describe_inputs(f"{root}/a.jsonl")] == [2]
        with pytest.raises(InputError, match=r"none\.jsonl matches no file"):
            inputs.describe_inputs(f"{root}/none.jsonl")


def test_ctrl_c_is_heeded_while_a_request_waits(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(s3.fresh_prefix())
    open_store(store.url).put("a", b"x")
    with fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.start("stalled", where=every_request)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a trainer may have left one of its own
        try:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                store.get("a")
            assert time.monotonic() - start < 60  # half of the store's own timeout
        finally:
            signal.signal(signal.SIGINT, before)
        proxy.heal()


def test_an_error_names_object_range_cause_and_remedy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(s3.fresh_prefix(), timeout=1)
    store.put("a", bytes(100))
    with fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.start("503", where=every_request)
        reader = open_store(store.url, timeout=1)
        with pytest.raises(StorageError) as failed:
            reader.get_range("a", 10, 20)
    text = str(failed.value)
    assert text.startswith(f"cannot read bytes 10-29 of {store.url}/a: GET from {proxy.endpoint} for ")
    assert text.endswith(
        "503 Service Unavailable, SlowDown: Please reduce your request rate. "
        "Check the network, the endpoint and the path."
    )


def test_a_lost_helper_is_replaced_for_reads_and_raised_for_writes(s3: S3Server) -> None:
    store = open_store(s3.fresh_prefix())
    store.put("a", b"xyz")
    helper = object_helper.Helper(store.url, 10.0)
    assert helper.call("get", "a") == b"xyz"
    first = helper._process()._process
    first.kill()
    assert helper.call("get", "a") == b"xyz"
    second = helper._process()._process
    assert second.pid != first.pid
    os.kill(second.pid, signal.SIGSTOP)
    threading.Timer(0.5, second.kill).start()
    with pytest.raises(StorageError, match=r"/b: the helper process that carries out requests was lost: it ended with"):
        helper.call("put", "b", b"x", False)
    third = helper._process()._process
    third.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
    assert third.wait(120) == 0


def test_a_helper_that_falls_silent_is_an_error_in_time(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_helper, "_MARGIN_SECONDS", 0.2)
    helper = object_helper.Helper(s3.fresh_prefix(), 0.5)
    process = helper._process()._process
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(StorageError, match=r"was lost: it did not answer within 0\.5 s"):
        helper.call("get", "a")
    assert process.wait(120) == -signal.SIGKILL
