"""Publishing on the hub: what arrives, what an interruption leaves, what is sent again, what is refused.

`tests/support/hub.py` is the server. It speaks the protocol of large files, not that of the hub's chunk store, so
`huggingface_hub` is told to use the former.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from crisp_stream.cli.main import main
from crisp_stream.errors import ConflictError, FormatError, InputError, MissingExtraError, StorageError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.hub import publish as publishing
from crisp_stream.hub.card import CARD, CARD_MARK, size_category
from crisp_stream.hub.publish import publish
from crisp_stream.hub.repository import HubRepository, Upload
from crisp_stream.inspection.verify import verify_dataset
from crisp_stream.loading.reader import read_windows
from crisp_stream.writers.append import append
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.embedding.encoder_files import DEFAULT_ENCODER
from crisp_stream.writers.write import write
from tests.support.hub import FakeHub, File, hub
from tests.support.seaweed import S3Server
from tests.support.synthetic import upload, write_synthetic_dataset
from tests.support.written_dataset import TOPICS, WordEncoder, files_below, small_options

__all__ = ["hub"]  # a fixture

# huggingface_hub 2.4 calls its HTTP library, where it uploads without the chunk store, in a way that this gives up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")

URL = "hf://datasets/owner/corpus"
ADDED = {CARD, ".gitattributes"}
ROOT = Path(__file__).parents[2]


def quiet(line: str) -> None:
    """Takes log lines."""


@pytest.fixture(autouse=True)
def may_write(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that may write, and no chunk store."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)  # older versions read answers by it
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", "write-token")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_synthetic_dataset(tmp_path / "data", dict.fromkeys(range(16), 40), windows_per_shard=40)


def data_files(dataset: Dataset) -> dict[str, bytes]:
    return files_below(Path(dataset.root))


def last_files(dataset: Dataset) -> set[str]:
    return {path for path in data_files(dataset) if path == "manifest.json" or path.endswith("/index.json")}


def commits(hub: FakeHub, repo: str = "owner/corpus") -> list[dict[str, File]]:
    return list(hub.repos[repo].commits.values())


def same_windows(one: Dataset, other: Dataset) -> bool:
    ids = np.arange(other.manifest.num_windows)
    return read_windows(one, ids).tobytes() == read_windows(other, ids).tobytes()


def test_what_is_published_is_the_dataset(hub: FakeHub, dataset: Dataset) -> None:
    done = publish(dataset.root, URL, log=quiet)
    there = hub.content("owner/corpus")
    assert {path: content for path, content in there.items() if path not in ADDED} == data_files(dataset)
    assert (done.url, done.num_files) == (URL, len(data_files(dataset)))
    assert done.num_bytes == sum(map(len, data_files(dataset).values()))
    assert done.sent_files == done.num_files + 1
    opened = open_dataset(URL)
    assert opened.manifest == dataset.manifest
    assert same_windows(opened, dataset)
    assert verify_dataset(URL).problems == []
    assert same_windows(open_dataset(f"{URL}@{done.commit}"), dataset)


def test_a_dataset_with_provenance_is_published_with_all_of_it(
    hub: FakeHub, word_encoder: WordEncoder, text_file: Path, tmp_path: Path
) -> None:
    write(small_options(text_file, tmp_path / "root"), log=quiet)
    publish(str(tmp_path / "root"), URL, log=quiet)
    there = {path: content for path, content in hub.content("owner/corpus").items() if path not in ADDED}
    assert there == files_below(tmp_path / "root")
    assert verify_dataset(URL, deep=True).problems == []
    card = hub.content("owner/corpus")[CARD].decode()
    assert "| inputs | `topics.jsonl` |" in card
    assert str(tmp_path) not in card


def test_nothing_can_be_read_before_the_last_commit(
    hub: FakeHub, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "COMMIT_FILES", 5)
    lines: list[str] = []
    publish(dataset.root, URL, log=lines.append)
    *earlier, last = commits(hub)
    num_data = len(data_files(dataset)) - len(last_files(dataset))
    assert len(earlier) == 1 + -(-num_data // 5)
    assert all(not files.keys() & last_files(dataset) for files in earlier)
    assert last.keys() >= last_files(dataset)
    assert [line.partition(" files")[0] for line in lines] == [
        f"{min(sent, num_data)} of {num_data}" for sent in range(5, num_data + 5, 5)
    ]


def test_commits_are_cut_by_bytes_too(hub: FakeHub, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "COMMIT_BYTES", 1)
    publish(dataset.root, URL, log=quiet)
    assert len(commits(hub)) == 2 + len(data_files(dataset)) - len(last_files(dataset))


def test_publishing_again_sends_nothing(hub: FakeHub, dataset: Dataset) -> None:
    publish(dataset.root, URL, log=quiet)
    num_commits, sent = len(commits(hub)), len(hub.storage_requests)
    done = publish(dataset.root, URL, log=quiet)
    assert (done.sent_files, done.sent_bytes, done.commit) == (0, 0, None)
    assert len(commits(hub)) == num_commits
    assert not any(method == "PUT" for method, _, _ in hub.storage_requests[sent:])


def test_a_killed_command_goes_on_where_it_stopped(hub: FakeHub, dataset: Dataset) -> None:
    code = (
        "import sys\nfrom crisp_stream.hub import publish\nfrom crisp_stream.cli.main import main\n"
        f"publish.COMMIT_FILES = 4\nsys.exit(main(['publish', {dataset.root!r}, {URL!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while "owner/corpus" not in hub.repos or len(commits(hub)) < 4:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    before = hub.content("owner/corpus")
    if not before.keys() & last_files(dataset):  # else the kill came too late to matter
        with pytest.raises(FormatError, match="it holds no dataset"):
            open_dataset(URL)
    done = publish(dataset.root, URL, log=quiet)
    assert done.sent_files <= len(data_files(dataset)) + 1 - len(before.keys() - ADDED)
    assert same_windows(open_dataset(URL), dataset)
    puts = [path for method, path, _ in hub.storage_requests if method == "PUT"]
    assert len(puts) <= len(set(puts)) + 4  # at most the files of one commit were under way


def test_a_failure_between_commits_leaves_no_dataset_and_is_mended(
    hub: FakeHub, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "COMMIT_FILES", 8)
    trouble = hub.meet(500, 10_000, lambda method, path: "/commit/" in path and len(commits(hub)) == 3)
    with pytest.raises(StorageError, match=r"cannot upload 8 files at hf://.*the same command goes on"):
        publish(dataset.root, URL, timeout=1, log=quiet)
    with pytest.raises(FormatError, match="it holds no dataset"):
        open_dataset(URL)
    trouble.times = 0
    done = publish(dataset.root, URL, log=quiet)
    assert done.sent_files == len(data_files(dataset)) + 1 - 16
    assert same_windows(open_dataset(URL), dataset)


@pytest.mark.parametrize("part", ["/repos/create", "/preupload/", "/objects/batch", "/commit/", "/tree/"])
def test_a_busy_hub_is_asked_again(hub: FakeHub, dataset: Dataset, part: str) -> None:
    trouble = hub.meet(429, 2, lambda method, path: part in path, Retry_After="0")
    publish(dataset.root, URL, log=quiet)
    assert trouble.times == 0
    assert same_windows(open_dataset(URL), dataset)


@pytest.mark.parametrize("status", [0, 500])
@pytest.mark.parametrize("part", ["/repos/create", "/commit/"])
def test_an_answer_that_is_lost_does_no_harm(hub: FakeHub, dataset: Dataset, part: str, status: int) -> None:
    """The hub has made the repository, or the commit, though it did not say so."""
    trouble = hub.meet(status, 2, lambda method, path: part in path, late=True)
    publish(dataset.root, URL, log=quiet)
    assert trouble.times == 0
    assert same_windows(open_dataset(URL), dataset)
    assert len(commits(hub)) == 3


def test_a_hub_that_limits_requests_is_told(hub: FakeHub, dataset: Dataset) -> None:
    hub.meet(429, 10_000, lambda method, path: "/repos/create" in path)
    with pytest.raises(StorageError, match=r"the hub limits requests \(429\). Wait some minutes, then run the same"):
        publish(dataset.root, URL, timeout=1, log=quiet)


@pytest.fixture
def grown(word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, list[str]]:
    """A dataset, and a file of documents to append."""
    monkeypatch.setattr(
        "crisp_stream.writers.stages.models.matching_encoder",
        lambda record, name, root: EncoderChoice(name=DEFAULT_ENCODER),
    )
    paths = []
    for number in range(2):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text[:1500]}) + "\n" for text in TOPICS[number::3]))
        paths.append(str(path))
    write(small_options(Path(paths[0]), tmp_path / "root"), log=quiet)
    return tmp_path / "root", paths


def test_a_dataset_that_grew_is_published_beside_its_older_generation(
    hub: FakeHub, grown: tuple[Path, list[str]]
) -> None:
    root, paths = grown
    first = publish(str(root), URL, log=quiet)
    reading = open_dataset(URL)
    append(small_options(Path(paths[1]), root), log=quiet)
    whole, before = open_dataset(root), hub.content("owner/corpus")
    done = publish(str(root), URL, log=quiet)
    assert done.sent_files < first.sent_files
    assert not {path for path in before if hub.content("owner/corpus").get(path) != before[path]} - {
        "manifest.json",
        CARD,
        *(path for path in before if path.endswith("/index.json")),
    }
    opened = open_dataset(URL)
    assert opened.manifest.fingerprint == whole.manifest.fingerprint
    assert opened.manifest.generation == 1
    assert same_windows(opened, whole)
    assert verify_dataset(URL, deep=True).problems == []
    assert same_windows(reading, open_dataset(root, generation=0))  # who has it open goes on
    assert same_windows(open_dataset(URL, generation=0), open_dataset(root, generation=0))
    assert same_windows(open_dataset(f"{URL}@{first.commit}"), open_dataset(root, generation=0))


def test_an_older_generation_and_an_unfinished_append_are_not_published(
    hub: FakeHub, grown: tuple[Path, list[str]]
) -> None:
    root, paths = grown
    append(small_options(Path(paths[1]), root), log=quiet)
    with pytest.raises(FormatError, match=r"must be those of generation 0, got others.*Run the append again, or open"):
        publish(open_dataset(root, generation=0), URL, log=quiet)
    (root / "shards" / "index.json").write_text("{}")
    with pytest.raises(FormatError, match=r"must be those of generation 1, got others"):
        publish(str(root), URL, log=quiet)
    assert hub.repos == {}


def test_another_dataset_is_not_overwritten(hub: FakeHub, dataset: Dataset, tmp_path: Path) -> None:
    publish(dataset.root, URL, log=quiet)
    before, num_commits = hub.content("owner/corpus"), len(commits(hub))
    other = write_synthetic_dataset(tmp_path / "other", {3: 50}, seed=9)
    with pytest.raises(InputError, match=rf"must be free, or hold this.*{dataset.manifest.fingerprint[:16]}. Publish"):
        publish(other.root, URL, log=quiet)
    assert (hub.content("owner/corpus"), len(commits(hub))) == (before, num_commits)
    publish(other.root, f"{URL}/other", log=quiet)
    assert same_windows(open_dataset(f"{URL}/other"), other)
    assert same_windows(open_dataset(URL), dataset)


def test_a_manifest_of_another_program_is_not_overwritten(hub: FakeHub, dataset: Dataset) -> None:
    hub.add("owner/corpus", {"manifest.json": b"{}"})
    with pytest.raises(InputError, match=r"got a manifest.json of another program. Publish"):
        publish(dataset.root, URL, log=quiet)


def test_a_branch_and_a_folder_may_be_named(hub: FakeHub, dataset: Dataset) -> None:
    url = "hf://datasets/owner/corpus@v2/small/one"
    done = publish(dataset.root, url, log=quiet)
    assert done.url == url
    assert same_windows(open_dataset(url), dataset)
    assert set(hub.content("owner/corpus")) == {".gitattributes"}
    assert f"small/one/{CARD}" in hub.content("owner/corpus", "v2")
    assert publish(dataset.root, url, log=quiet).sent_files == 0


def test_a_dataset_in_object_storage_is_published(hub: FakeHub, dataset: Dataset, s3: S3Server) -> None:
    publish(upload(dataset, s3.fresh_prefix("publish")), URL, log=quiet)
    there = hub.content("owner/corpus")
    assert {path: content for path, content in there.items() if path not in ADDED} == data_files(dataset)


def test_another_commit_meanwhile_is_told(hub: FakeHub, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = HubRepository.commit

    def interfered(self: HubRepository, uploads: Sequence[Upload], message: str, **how: Any) -> str:
        done = commit(self, uploads, message, **how)
        hub.add("owner/corpus", {f"other-{len(commits(hub))}": b"x"})
        return done

    monkeypatch.setattr(HubRepository, "commit", interfered)
    with pytest.raises(ConflictError, match=r"changed by another commit meanwhile. Run the command again"):
        publish(dataset.root, URL, log=quiet)
    monkeypatch.undo()


def test_what_arrives_damaged_is_found(hub: FakeHub, dataset: Dataset) -> None:
    hub.damaged.add("clusters.parquet")
    with pytest.raises(StorageError, match=r"clusters\.parquet: must have the .* bytes of .*. Run the command again"):
        publish(dataset.root, URL, log=quiet)


def test_publishing_needs_a_token_that_may_write(
    hub: FakeHub, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match=r"cannot create the dataset at hf://datasets/others/corpus: the token may"):
        publish(dataset.root, "hf://datasets/others/corpus", log=quiet)
    monkeypatch.setenv("HF_TOKEN", "read-token")
    with pytest.raises(StorageError, match=r"the token may not .*Use one that may write to owner"):
        publish(dataset.root, URL, log=quiet)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(StorageError, match=r"needs a token that may write, got none. Set HF_TOKEN, or log in with"):
        publish(dataset.root, URL, log=quiet)
    assert hub.repos == {}


def test_a_private_dataset_is_read_by_its_token_alone(
    hub: FakeHub, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(dataset.root, URL, private=True, log=quiet)
    assert hub.repos["owner/corpus"].private
    monkeypatch.setenv("HF_TOKEN", "read-token")
    assert same_windows(open_dataset(URL), dataset)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(StorageError, match="no token was found"):
        open_dataset(URL)


def test_the_card_says_what_it_is_and_how_to_train_from_it(hub: FakeHub, dataset: Dataset) -> None:
    publish(dataset.root, URL, licence="cc-by-4.0", log=quiet)
    card = hub.content("owner/corpus")[CARD].decode()
    _, front, text = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "cc-by-4.0"
    assert facts["size_categories"] == ["n<1K"]
    assert facts["pretty_name"] == "corpus"
    assert facts["viewer"] is False
    manifest = dataset.manifest
    for fact in (
        "640 windows of 32 tokens",
        "640 of 32 tokens, uint16",
        f"arity 4, depth 2; 16 leaves with windows; `{manifest.tree_fingerprint[:16]}`",
        f"`{manifest.tokenizer.fingerprint[:16]}`",
        f"synthetic, 8 dimensions, 256 word pieces; `{manifest.encoder.weights_sha256[:16]}`",
        f"`{manifest.fingerprint}`",
        f"data.remote={URL} mixture.phases.0.histogram=task.parquet",
        f'open_dataset("{URL}")',
        f'StreamingDataset(remote="{URL}/shards"',
        "| 0 | 25.00% | - |",
    ):
        assert fact in text
    assert card.endswith(CARD_MARK + "\n")


def test_the_python_of_the_card_runs(hub: FakeHub, dataset: Dataset) -> None:
    publish(dataset.root, URL, log=quiet)
    card = hub.content("owner/corpus")[CARD].decode()
    namespace: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], namespace)
    batch = next(iter(namespace["stream"]))
    assert batch["tokens" if "tokens" in batch else "input_ids"].shape == (8, 32)


def test_a_card_that_somebody_wrote_is_kept_and_ours_is_renewed(hub: FakeHub, dataset: Dataset) -> None:
    publish(dataset.root, URL, log=quiet)
    ours = hub.content("owner/corpus")[CARD]
    hub.add("owner/corpus", {CARD: ours.replace(b"# corpus", b"# changed")})
    publish(dataset.root, URL, log=quiet)
    assert hub.content("owner/corpus")[CARD] == ours
    hub.add("owner/corpus", {CARD: b"---\n---\n# My own words"})
    lines: list[str] = []
    done = publish(dataset.root, URL, log=lines.append)
    assert hub.content("owner/corpus")[CARD] == b"---\n---\n# My own words"
    assert done.commit is None
    assert lines == [f"{URL}/{CARD} was not written by crisp-stream publish, and is kept as it is"]


@pytest.mark.parametrize(
    ("number", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**11, "100B<n<1T"), (10**12, "n>1T")],
)
def test_size_categories_are_the_words_of_the_hub(number: int, category: str) -> None:
    assert size_category(number) == category


def test_the_command_publishes_and_says_what_it_did(
    hub: FakeHub, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", dataset.root, URL, "--private", "--license", "mit"]) == 0
    shown = capsys.readouterr().out
    num_files = len(data_files(dataset))
    assert f"dataset                {URL}\n" in shown
    assert f"files there, compared  {num_files}, " in shown
    assert f"commit                 {hub.repos['owner/corpus'].refs['main']}\n" in shown
    assert "license: mit\n" in hub.content("owner/corpus")[CARD].decode()
    assert main(["publish", dataset.root, URL]) == 0  # the licence stays
    assert "files sent             0, 0 B\ncommit                 it was there already\n" in capsys.readouterr().out


def test_bad_arguments_are_told(hub: FakeHub, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in {
        (dataset.root, "s3://bucket/x"): "a dataset is published at hf://datasets/OWNER/NAME",
        (dataset.root, "hf://corpus"): "must be hf://datasets/OWNER/NAME",
        (dataset.root + "/none", URL): "holds no dataset",
        (dataset.root, URL, "--timeout", "0"): "--timeout: must be above 0, got 0.0",
    }.items():
        assert main(["publish", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert hub.repos == {}


def test_without_its_library_it_says_what_to_install(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"publishing on the hub needs huggingface-hub.*crisp-stream\[write\]'"):
        publish(dataset.root, URL, log=quiet)


def test_plain_mosaicml_streaming_reads_what_was_published(hub: FakeHub, dataset: Dataset, tmp_path: Path) -> None:
    """All of it, and by `to_streams`. In a process of its own, whose libraries learn the hub's address at import."""
    publish(dataset.root, f"{URL}/v1", log=quiet)
    code = f"""
from streaming import StreamingDataset
from crisp_stream import Histogram, open_dataset, to_streams

root, cache = {URL + "/v1"!r}, {str(tmp_path / "cache")!r}
whole = StreamingDataset(remote=root + "/shards", local=cache, batch_size=8)
print(sum(int(sample["cluster"]) for sample in whole), len(whole))
streams = to_streams(root, Histogram.base(open_dataset(root).manifest), local=cache + "-streams")
print(sorted({{int(sample["cluster"]) for sample in StreamingDataset(streams=streams, batch_size=8)}}))
"""
    environment = os.environ | {"TMPDIR": str(tmp_path), "CRISP_STREAM_CACHE": str(tmp_path / "own")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = int(read_windows(dataset, np.arange(640))["cluster"].sum())
    assert done.stdout.splitlines() == [f"{expected} 640", str(list(range(16)))]
