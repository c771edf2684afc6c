"""The demo's text: fetched by name and hash, split by hash, on a tiny package made here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from crisp_stream.corpora import packages
from crisp_stream.corpora.demo import GENERALIST, SPECIALIST, TextSource, prepare_corpora
from crisp_stream.corpora.files import Corpora
from crisp_stream.corpora.packages import Package, fetch_package
from crisp_stream.errors import InputError, StorageError


def sentence(topic: str, number: int) -> str:
    return f"{topic} number {number}: " + " ".join(f"{topic}{number * step % 97}" for step in range(1, 40))


def lines(content: bytes) -> list[str]:
    return content.decode().splitlines()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that already holds the wheel of `tiny-text`."""
    folder = tmp_path / "cache"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_text-1.0-py3-none-any.whl", "w") as wheel:
        for topic in ("river", "music"):
            wheel.writestr(f"tiny/{topic}.txt", "\n".join([*(sentence(topic, n) for n in range(200)), "too short"]))
        wheel.writestr("tiny/task.txt", "\n".join(sentence("task", n) for n in range(60)) + "\n" + sentence("river", 3))
    return folder


@pytest.fixture
def package(cache: Path) -> Package:
    content = (cache / "tiny_text-1.0-py3-none-any.whl").read_bytes()
    return Package(name="tiny-text", version="1.0", sha256=hashlib.sha256(content).hexdigest())


def source(package: Package, name: str, share: float = 1.0) -> TextSource:
    return TextSource(
        name=name, package=package, members=(f"tiny/{name}.txt",), texts=lines, license="CC0", share=share
    )


def prepare(package: Package, cache: Path, folder: Path, *, reverse: bool = False) -> Corpora:
    def backwards(content: bytes) -> list[str]:
        return lines(content)[::-1]

    sources = (source(package, "river", 0.75), source(package, "music", 0.25))
    task = source(package, "task")
    if reverse:
        sources = tuple(dataclasses.replace(each, texts=backwards) for each in sources)
        task = dataclasses.replace(task, texts=backwards)
    return prepare_corpora(
        folder,
        cache=cache,
        generalist_characters=40_000,
        specialist_documents=20,
        test_documents=15,
        generalist=sources,
        specialist=task,
    )


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_no_text_stands_in_two_files_or_twice_in_one(package: Package, cache: Path, tmp_path: Path) -> None:
    corpora = prepare(package, cache, tmp_path)
    everything = [text for path in corpora.paths for text in texts(path)]
    assert len(everything) == len(set(everything))
    # The task's file also holds a text of the corpus: it belongs to the task alone, on whichever side of its split.
    assert sentence("river", 3) not in texts(corpora.generalist) + texts(corpora.generalist_test)


def test_the_files_hold_what_was_asked_for(package: Package, cache: Path, tmp_path: Path) -> None:
    corpora = prepare(package, cache, tmp_path)
    assert len(texts(corpora.specialist)) == 20
    assert len(texts(corpora.specialist_test)) == 15
    assert 0 < len(texts(corpora.generalist_test)) <= 15
    longest = max(map(len, texts(corpora.generalist)))
    characters = {"river": 0, "music": 0}
    for text in texts(corpora.generalist):
        characters[text.partition(" ")[0]] += len(text)
    assert 30_000 <= characters["river"] < 30_000 + longest
    assert 10_000 <= characters["music"] < 10_000 + longest
    assert "too short" not in texts(corpora.generalist)


def test_the_choice_does_not_depend_on_the_order_of_the_documents(
    package: Package, cache: Path, tmp_path: Path
) -> None:
    first = prepare(package, cache, tmp_path / "first")
    second = prepare(package, cache, tmp_path / "second", reverse=True)
    for one, other in zip(first.paths, second.paths, strict=True):
        assert sorted(texts(one)) == sorted(texts(other))


def test_preparing_twice_gives_the_same_bytes_and_leaves_the_files_alone(
    package: Package, cache: Path, tmp_path: Path
) -> None:
    first = prepare(package, cache, tmp_path)
    written = [path.stat().st_mtime_ns for path in first.paths]
    assert prepare(package, cache, tmp_path) == first
    assert len(list(tmp_path.glob("*.jsonl"))) == 4
    assert [path.stat().st_mtime_ns for path in first.paths] == written


def test_too_few_documents_are_an_error(package: Package, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task must hold 1000 documents, for examples and for the test, got 61\."):
        prepare_corpora(
            tmp_path,
            cache=cache,
            generalist_characters=1000,
            specialist_documents=500,
            test_documents=500,
            generalist=(source(package, "river"),),
            specialist=source(package, "task"),
        )


def test_a_wheel_with_another_hash_is_refused_and_not_kept(
    package: Package, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve_something_else(wanted: Package, folder: Path) -> None:
        (folder / "tiny_text-1.0-py3-none-any.whl").write_bytes(b"something else")

    monkeypatch.setattr(packages, "_download", serve_something_else)
    with pytest.raises(InputError, match=r"tiny_text-1\.0-py3-none-any\.whl must have sha256 0+, got [0-9a-f]{64}"):
        fetch_package(dataclasses.replace(package, sha256="0" * 64), tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_a_damaged_wheel_in_the_cache_is_fetched_again(
    package: Package, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = cache / "tiny_text-1.0-py3-none-any.whl"
    intact = wheel.read_bytes()
    wheel.write_bytes(intact[:-1])

    def serve(wanted: Package, folder: Path) -> None:
        (folder / wheel.name).write_bytes(intact)

    monkeypatch.setattr(packages, "_download", serve)
    assert fetch_package(package, cache).read_bytes() == intact


def test_a_registry_that_refuses_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="ERROR: no matching\n distribution")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(StorageError, match=r"cannot fetch tiny-text==1\.0 .*: ERROR: no matching distribution\. Try: "):
        fetch_package(Package(name="tiny-text", version="1.0", sha256="0" * 64), tmp_path)


def test_without_pip_and_uv_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError, match="needs pip or uv, got neither"):
        fetch_package(Package(name="tiny-text", version="1.0", sha256="0" * 64), tmp_path)


def test_the_demos_sources_are_openly_licensed_and_their_shares_sum_to_one() -> None:
    sources = (*GENERALIST, SPECIALIST)
    assert {each.license for each in sources} <= {"CC BY-SA 3.0", "CC BY-SA 4.0", "ODC-By 1.0", "MIT"}
    assert sum(each.share for each in GENERALIST) == pytest.approx(1.0)
    assert SPECIALIST.name not in {each.name for each in GENERALIST}
