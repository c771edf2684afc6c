"""Roots on the Hugging Face hub: read as any other root, by a token where one is needed, with the hub's refusals told.

`tests/support/hub.py` is the server: redirects lead to another host, whose addresses are signed for one method.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import FormatError, InputError, MissingObjectError, StorageError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.inspection.verify import verify_dataset
from crisp_stream.loading.reader import read_windows
from crisp_stream.storage import hub as asked
from crisp_stream.storage.download import download
from crisp_stream.storage.hub import HubRoot, hub_token
from crisp_stream.storage.object_store import ObjectStore
from crisp_stream.storage.store import Store, open_store
from tests.support.fault_runs import Source, train
from tests.support.hub import PAGE, FakeHub, hub
from tests.support.synthetic import write_synthetic_dataset

__all__ = ["hub"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

LARGE = bytes(range(256)) * 40
FILES = {"top.json": b"{}", "a/small.txt": b"0123456789", "a/b c/large#1.bin": LARGE}


def files_of(root: str) -> dict[str, bytes]:
    folder = Path(root)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    leaves = dict.fromkeys(range(16), 100)
    return Source(write_synthetic_dataset(tmp_path_factory.mktemp("source"), leaves, windows_per_shard=400).root)


def test_objects_are_read_in_ranges_described_and_listed(hub: FakeHub) -> None:
    hub.add("owner/data", FILES)
    store = open_store("hf://datasets/owner/data/a")
    assert store.get("small.txt") == b"0123456789"
    assert store.get_range("small.txt", 3, 4) == b"3456"
    assert store.get("b c/large#1.bin") == LARGE
    assert store.get_range("b c/large#1.bin", 300, 5) == LARGE[300:305]
    assert store.list() == [("b c/large#1.bin", len(LARGE)), ("small.txt", 10)]
    assert store.list("b c") == [("b c/large#1.bin", len(LARGE))]
    assert store.list("none") == []
    assert store.sizes().get("small.txt") == 10
    assert store.object_bytes("b c/large#1.bin") == len(LARGE)
    assert store.exists("small.txt")
    assert not store.exists("none.txt")
    with pytest.raises(MissingObjectError, match=r"hf://datasets/owner/data/a/none\.txt does not exist \(cannot read"):
        store.get("none.txt")


def test_a_listing_goes_through_all_pages_and_has_the_versions_of_single_files(hub: FakeHub) -> None:
    files = {f"{number:03d}": b"x" * (number * 100) for number in range(PAGE * 2 + 3)}
    hub.add("owner/data", files)
    store = ObjectStore("hf://datasets/owner/data", timeout=10)
    listed = store.describe_all()
    assert [(path, size) for path, size, _ in listed] == sorted((path, len(content)) for path, content in files.items())
    assert all(store.describe(path) == (path, size, version) for path, size, version in listed[::7])
    assert hub.num("GET", "/tree/") == 3


def test_a_large_object_is_downloaded_by_ranges(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("owner/data", FILES)
    download(ObjectStore("hf://datasets/owner/data", timeout=10), "a/b c/large#1.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LARGE


def test_an_object_is_opened_as_a_seekable_file(hub: FakeHub) -> None:
    hub.add("owner/data", FILES)
    store = ObjectStore("hf://datasets/owner/data", timeout=10)
    with store.open("a/b c/large#1.bin") as file:
        assert file.read(3) == LARGE[:3]
        assert file.seek(-5, os.SEEK_END) == len(LARGE) - 5
        assert file.read() == LARGE[-5:]
        assert file.seek(700) == file.tell() == 700
        assert file.read(-1) == LARGE[700:]
        assert file.read(1) == b""
    with pytest.raises(MissingObjectError, match="does not exist"):
        store.open("none")


def test_the_token_goes_to_the_hub_alone(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/data", FILES, private=True)
    monkeypatch.setenv("HF_TOKEN", "read-token")
    store = open_store("hf://datasets/owner/data")
    assert store.get("a/b c/large#1.bin") == LARGE
    assert store.get_range("a/b c/large#1.bin", 0, 9) == LARGE[:9]
    assert store.object_bytes("a/b c/large#1.bin") == len(LARGE)
    assert len(hub.storage_requests) == 2  # what is asked about a file is answered by the hub itself
    assert all("authorization" not in headers for _, _, headers in hub.storage_requests)
    assert "read-token" not in json.dumps(hub.storage_requests)


@pytest.mark.parametrize(
    "variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME"]
)
def test_the_token_is_found_where_the_hubs_own_library_has_it(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    hub.add("owner/data", FILES, private=True)
    files = {"HF_TOKEN_PATH": "kept", "HF_HOME": "token", "XDG_CACHE_HOME": "huggingface/token"}
    if variable == "XDG_CACHE_HOME":
        monkeypatch.delenv("HF_HOME")
    if variable in files:
        file = tmp_path / "of the user" / files[variable]
        file.parent.mkdir(parents=True)
        file.write_text("read-token\n")
        monkeypatch.setenv(variable, str(file if variable == "HF_TOKEN_PATH" else tmp_path / "of the user"))
    else:
        monkeypatch.setenv(variable, "read-token")
    assert hub_token() == "read-token"
    assert open_store("hf://datasets/owner/data").get("top.json") == b"{}"


def test_a_revision_is_a_branch_a_reference_or_a_commit(hub: FakeHub) -> None:
    first = hub.add("owner/data", {"x": b"first"})
    hub.add("owner/data", {"x": b"second"})
    hub.add("owner/data", {"x": b"third"}, branch="v2")
    hub.add("owner/data", {"x": b"fourth"}, branch="refs/pr/1")
    for revision, content in {"": b"second", f"@{first}": b"first", "@v2": b"third", "@refs/pr/1": b"fourth"}.items():
        store = open_store(f"hf://datasets/owner/data{revision}")
        assert store.get("x") == content
        assert store.list() == [("x", len(content))]
    assert open_store("hf://datasets/owner/data@refs%2Fpr%2F1").get("x") == b"fourth"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_from_the_hub_equals_the_folder(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, source: Source, tmp_path: Path, num_workers: int
) -> None:
    hub.add("owner/data", {f"v1/{path}": content for path, content in files_of(source.root).items()}, private=True)
    monkeypatch.setenv("HF_TOKEN", "read-token")
    url = "hf://datasets/owner/data/v1"
    outcome = train(source, url, tmp_path / "cache", num_workers=num_workers, timeout=30.0)
    assert outcome.right, str(outcome)
    assert verify_dataset(url).problems == []


def test_a_dataset_on_the_hub_is_that_of_the_folder(hub: FakeHub, source: Source) -> None:
    commit = hub.add("owner/data", files_of(source.root))
    ids = np.arange(0, 1600, 37)
    for url in ("hf://datasets/owner/data", f"hf://datasets/owner/data@{commit}"):
        opened = open_dataset(url)
        assert opened.manifest == source.dataset.manifest
        assert opened.tree.fingerprint == source.dataset.tree.fingerprint
        np.testing.assert_array_equal(read_windows(opened, ids), read_windows(source.dataset, ids))
    with pytest.raises(FormatError, match=r"manifest\.json is missing; it holds no dataset"):
        open_dataset("hf://datasets/owner/data/none")


BUSY: dict[str, tuple[Callable[[Store], object], str]] = {
    "read": (lambda store: store.get("a/small.txt"), "resolve"),
    "range": (lambda store: store.get_range("a/small.txt", 0, 2), "resolve"),
    "look up": (lambda store: store.object_bytes("a/small.txt"), "resolve"),
    "list": (lambda store: store.list(), "tree"),
}


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("name", BUSY)
def test_a_busy_hub_is_asked_again(hub: FakeHub, name: str, status: int) -> None:
    hub.add("owner/data", FILES)
    request, part = BUSY[name]
    expected = request(store := open_store("hf://datasets/owner/data", timeout=20))
    trouble = hub.meet(status, 3, lambda method, path: part in path)
    assert request(store) == expected
    assert trouble.times == 0


@pytest.mark.parametrize("name", BUSY)
def test_a_hub_that_stays_busy_is_told(hub: FakeHub, name: str) -> None:
    hub.add("owner/data", FILES)
    hub.meet(429, 10_000, lambda method, path: True)
    with pytest.raises(StorageError, match=r"cannot .*owner/data.*429"):
        BUSY[name][0](open_store("hf://datasets/owner/data", timeout=1))


def test_the_pause_that_the_hub_asks_for_is_kept(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/data", FILES)
    pauses: list[float] = []
    monkeypatch.setattr(asked.time, "sleep", pauses.append)
    hub.meet(429, 1, lambda method, path: True, Retry_After="3")
    assert open_store("hf://datasets/owner/data", timeout=20).object_bytes("top.json") == 2
    assert pauses == [3.0]


REFUSALS: dict[str, tuple[str, str | None, str]] = {
    "private, no token": ("hf://datasets/owner/private", None, r"no token was found.*set HF_TOKEN or log in with: hf"),
    "no such repository, no token": ("hf://datasets/owner/none", None, r"knows no public dataset owner/none"),
    "no such repository": ("hf://datasets/owner/none", "read-token", r"there is no dataset owner/none at http"),
    "wrong token": ("hf://datasets/owner/data", "stale", r"the token was refused \(Invalid credentials"),
    "no such revision": ("hf://datasets/owner/data@v9", "read-token", r"has no revision 'v9'. Name a branch, a tag or"),
}


@pytest.mark.parametrize("operation", ["get", "range", "describe", "list"])
@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_refuses_is_told(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, case: str, operation: str) -> None:
    hub.add("owner/data", FILES)
    hub.add("owner/private", FILES, private=True)
    url, token, message = REFUSALS[case]
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    store = open_store(url, timeout=5)
    requests: dict[str, Callable[[], object]] = {
        "get": lambda: store.get("top.json"),
        "range": lambda: store.get_range("top.json", 0, 1),
        "describe": lambda: store.object_bytes("top.json"),
        "list": lambda: store.list(),
    }
    with pytest.raises(StorageError, match=message) as refused:
        requests[operation]()
    assert not isinstance(refused.value, MissingObjectError)
    assert url.partition("@")[0] in str(refused.value) or "owner/" in str(refused.value)


def test_a_gated_dataset_says_where_to_ask(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/data", FILES)
    hub.meet(403, 10, lambda method, path: "resolve" in path, X_Error_Code="GatedRepo")
    with pytest.raises(StorageError, match=r"is gated. Ask for access at http.*/datasets/owner/data, and set HF_TOKEN"):
        open_store("hf://datasets/owner/data").get("top.json")


def test_a_hub_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for request in (lambda store: store.get("x"), lambda store: store.object_bytes("x"), lambda store: store.list()):
        with pytest.raises(StorageError, match=r"(?i)connection.*refused.*Check the network"):
            request(open_store("hf://datasets/owner/data", timeout=1))


def test_the_hub_is_not_written_to(hub: FakeHub, tmp_path: Path) -> None:
    store = open_store("hf://datasets/owner/data")
    (tmp_path / "file").write_bytes(b"x")
    for write in (
        lambda: store.put("x", b""),
        lambda: store.put("x", b"", create=True),
        lambda: store.put_file("x", tmp_path / "file"),
        lambda: store.replace("x", b"", None),
        lambda: store.delete("x"),
    ):
        with pytest.raises(StorageError, match=r"is read here, not written to.*crisp-stream publish ROOT hf://"):
            write()
    assert hub.requests == []


@pytest.mark.parametrize(
    "url",
    ["hf://owner/data", "hf://datasets/data", "hf://models/a/b", "hf://datasets/a/b@/x", "hf://datasets/a/b/../c"],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"must be hf://datasets/OWNER/NAME\[@REVISION\]\[/PATH\]"):
        open_store(url).get("x")


def test_addresses_are_read_into_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    root = HubRoot.parse("hf://datasets/you/a.b-c@refs/pr/2/x/y z/")
    assert (root.endpoint, root.repo, root.revision) == ("https://huggingface.co", "you/a.b-c", "refs/pr/2")
    assert root.path == "x/y z"
    assert root.resolve_url == "https://huggingface.co/datasets/you/a.b-c/resolve/refs%2Fpr%2F2/x/y%20z"
    assert HubRoot.parse("hf://datasets/you/data").revision == "main"


def test_reading_needs_no_library_of_the_hub(hub: FakeHub) -> None:
    hub.add("owner/data", FILES)
    code = (
        "import sys\nfor name in ('huggingface_hub', 'requests', 'httpx'): sys.modules[name] = None\n"
        "from crisp_stream.storage.store import open_store\n"
        "store = open_store('hf://datasets/owner/data')\nprint(store.list(), store.get('a/small.txt'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "b'0123456789'" in done.stdout
