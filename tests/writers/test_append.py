"""`crisp-stream append`: a dataset grows to what one write of all documents would have given."""

from __future__ import annotations

import functools
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.errors import CorruptDataError, InputError, StorageError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.provenance import read_places
from crisp_stream.format.text_sketch import read_text_sketch, text_sketch_parquet
from crisp_stream.inspection.verify import verify_dataset
from crisp_stream.loading.reader import WindowReader, read_windows
from crisp_stream.storage.store import open_store
from crisp_stream.writers.append import append
from crisp_stream.writers.cleaning.dropped import read_dropped
from crisp_stream.writers.embedding.embed import EncoderChoice
from crisp_stream.writers.embedding.encoder_files import DEFAULT_ENCODER
from crisp_stream.writers.engine import engine
from crisp_stream.writers.engine.tasks import Record, Task, execute
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing import generations, publish
from crisp_stream.writers.publishing.claim import Hold
from crisp_stream.writers.write import write
from tests.support.seaweed import S3Server
from tests.support.written_dataset import TOPICS, WordEncoder, files_below, small_options


def quiet(line: str) -> None:
    """Takes log lines."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three files of documents."""
    folder = tmp_path_factory.mktemp("texts")
    paths = []
    for number, name in enumerate(("a.jsonl", "b.jsonl", "c.jsonl")):
        path = folder / name
        path.write_text("".join(json.dumps({"text": text[:1500]}) + "\n" for text in TOPICS[number::3]))
        paths.append(str(path))
    return paths


@pytest.fixture(autouse=True)
def words(word_encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch) -> WordEncoder:
    """The fast encoder, which datasets that were written with it find again."""
    monkeypatch.setattr(
        "crisp_stream.writers.stages.models.matching_encoder",
        lambda record, name, root: EncoderChoice(name=DEFAULT_ENCODER),
    )
    return word_encoder


def options_for(inputs: list[str], out: Path | str, **changes: Any) -> WriteOptions:
    """Every file is a group of its own, so that parts end at the ends of files."""
    return small_options(Path(inputs[0]), out, **{"inputs": inputs, "group_bytes": 1, **changes})


def places_of(dataset: Dataset) -> np.ndarray:
    return np.concatenate([read_places(dataset, n, 0, row.num_windows) for n, row in enumerate(dataset.shards)])


def all_windows(dataset: Dataset) -> np.ndarray:
    return read_windows(dataset, np.arange(dataset.manifest.num_windows))


def assert_same_windows(grown: Dataset, whole: Dataset) -> None:
    """Windows, their order, cluster table, places and sketch; checksums are of the write that made a shard."""
    sketches = [read_text_sketch(dataset) for dataset in (grown, whole)]
    assert len({text_sketch_parquet(sketch) for sketch in sketches if sketch is not None}) == 1
    for column in ("tokens", "cluster"):
        assert all_windows(grown)[column].tobytes() == all_windows(whole)[column].tobytes()
    assert grown.manifest.clusters_fingerprint == whole.manifest.clusters_fingerprint
    assert places_of(grown).tobytes() == places_of(whole).tobytes()


def assert_whole(root: Path | str, generation: int | None = None) -> None:
    assert verify_dataset(str(root), deep=True, generation=generation).problems == []


@pytest.fixture
def base(texts: list[str], tmp_path: Path) -> Path:
    root = tmp_path / "root"
    write(options_for(texts[:1], root), log=quiet)
    return root


@pytest.fixture
def whole(base: Path, texts: list[str], tmp_path: Path) -> Dataset:
    """One write of the first two files with the tree of the first."""
    write(options_for(texts[:2], tmp_path / "whole", like=str(base)), log=quiet)
    return open_dataset(tmp_path / "whole")


SMALL_RANGES = {"run_bytes": 5000, "range_bytes": 6000}


@pytest.mark.parametrize(
    "changes", [{}, {"packing": "document", "shard_level": 2}, SMALL_RANGES, {**SMALL_RANGES, "shard_level": 2}]
)
def test_appending_gives_the_windows_of_one_write_of_all_documents(
    changes: dict[str, Any], texts: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    write(options_for(texts[:1], root, **changes), log=quiet)
    before = files_below(root)
    of_bytes = {name: value for name, value in changes.items() if name not in SMALL_RANGES}
    write(options_for(texts, tmp_path / "whole", like=str(root), **of_bytes), log=quiet)
    lines: list[str] = []
    work = {name: value for name, value in changes.items() if name in SMALL_RANGES}
    report = append(options_for(texts[1:2], root, **work), log=lines.append)
    assert report.generation == 1
    assert_whole(root)
    append(options_for(texts[2:], root, **work), log=quiet)
    grown = open_dataset(root)
    assert_same_windows(grown, open_dataset(tmp_path / "whole"))
    assert grown.manifest.generation == 2
    for key in ("documents", "characters", "tokens", "parts", "dropped_tokens", "dropped_documents"):
        assert grown.manifest.provenance[key] == open_dataset(tmp_path / "whole").manifest.provenance[key]
    assert [entry["inputs"] for entry in grown.manifest.provenance["appended"]] == [["b.jsonl"], ["c.jsonl"]]
    for generation in range(3):
        assert_whole(root, generation)
    assert all_windows(open_dataset(root, generation=0)).tobytes() == all_windows(_from(before, tmp_path)).tobytes()
    after = files_below(root)
    replaced = {name for name, content in before.items() if after[name] != content}
    assert {name.rpartition("/")[2] for name in replaced} <= {"manifest.json", "index.json"}
    assert after["manifest.g0.json"] == before["manifest.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "root", "whole"]
    assert lines[-1] == report.table()
    assert re.search(rf"windows added +{report.windows} to {report.windows_before}\n", lines[-1])
    assert re.search(rf"shards +{report.shards}, {report.new_shards} of them new\n", lines[-1])


def _from(files: dict[str, bytes], folder: Path) -> Dataset:
    for name, content in files.items():
        target = folder / "old" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return open_dataset(folder / "old")


def test_level_1_clusters_without_new_windows_keep_their_shards(base: Path, texts: list[str], tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps({"text": TOPICS[1][:400]}) + "\n")
    old = open_dataset(base)
    report = append(options_for([str(few)], base), log=quiet)
    grown = open_dataset(base)
    assert 0 < report.windows < 4
    kept = [row for row in grown.shards if row in old.shards]
    touched = {int(leaf) // 16 for leaf in grown.leaf_of_windows(_new_windows(grown, old))}
    assert {row.path for row in kept} == {row.path for row in old.shards if int(row.path.split("/")[1]) not in touched}
    assert kept
    assert report.new_shards == len(grown.shards) - len(kept)
    assert_whole(base)


def test_shards_keep_their_seeds_and_new_ones_have_others_than_any_sibling_s(base: Path, texts: list[str]) -> None:
    few, sibling = base.with_name("few.jsonl"), base.with_name("sibling")
    few.write_text(json.dumps({"text": TOPICS[1][:400]}) + "\n")
    shutil.copytree(base, sibling)
    old = open_dataset(base).shards
    append(options_for([str(few)], base), log=quiet)
    append(options_for(texts[1:2], sibling), log=quiet)
    of_base, of_sibling = (set(open_dataset(root).shards) - set(old) for root in (base, sibling))
    assert set(open_dataset(base).shards) & set(old)
    assert of_base
    assert not {row.path for row in of_base} & {row.path for row in of_sibling}, "names say what is in a file"
    assert len({row.checksum_seed for row in (*old, *of_base, *of_sibling)}) == len([*old, *of_base, *of_sibling])


def test_a_reader_of_an_older_generation_reads_on_and_names_damage_as_such(base: Path, texts: list[str]) -> None:
    old = open_dataset(base)
    expected = all_windows(old)
    with WindowReader(old) as reader:
        append(options_for(texts[1:2], base), log=quiet)
        assert (reader.read(np.arange(old.manifest.num_windows)) == expected).all()
        assert not old.is_replaced()
        _flip(base / old.shards[0].path, old.shards[0].first_sample_offset + 20)
        with pytest.raises(CorruptDataError, match=r"window 0 .* does not match its checksum"):
            reader.read(np.arange(3))


def _new_windows(grown: Dataset, old: Dataset) -> np.ndarray:
    return np.flatnonzero(~np.isin(places_of(grown), places_of(old)))


def test_a_dataset_of_lsi_grows_with_its_own_encoder(texts: list[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        from crisp_stream.writers.embedding import embed
        from crisp_stream.writers.stages import models as stages
        from crisp_stream.writers.stages import windows as parts

        patch.setattr(stages, "matching_encoder", embed.matching_encoder)
        patch.setattr(parts, "load_encoder", lambda choice, device: choice.open())
        write(options_for(texts[:1], tmp_path / "root", encoder="lsi"), log=quiet)
        write(options_for(texts[:2], tmp_path / "whole", like=str(tmp_path / "root"), max_length=None), log=quiet)
        shutil.copytree(tmp_path / "root", tmp_path / "two")
        append(options_for(texts[1:2], tmp_path / "root"), log=quiet)
        append(options_for(texts[1:2], tmp_path / "two", processes=2), log=quiet)
    assert files_below(tmp_path / "two") == files_below(tmp_path / "root"), "two processes give the bytes of one"
    assert_same_windows(open_dataset(tmp_path / "root"), open_dataset(tmp_path / "whole"))
    assert_whole(tmp_path / "root")


def test_duplicates_are_dropped_among_the_new_documents_only_and_listed(texts: list[str], tmp_path: Path) -> None:
    root, twice = tmp_path / "root", tmp_path / "twice.jsonl"
    write(options_for(texts[:1], root, dedup="exact"), log=quiet)
    lines = Path(texts[1]).read_text().splitlines()
    twice.write_text("\n".join([lines[0], lines[1], lines[0], Path(texts[0]).read_text().splitlines()[0]]) + "\n")
    append(options_for([str(twice)], root, dedup="exact"), log=quiet)
    (tmp_path / "copies").mkdir()
    copy = str(shutil.copy(twice, tmp_path / "copies"))
    append(options_for([copy], root, dedup="exact"), log=quiet)
    [table] = root.glob("provenance/dropped.g2.*.parquet")
    dropped = list(read_dropped(table))
    assert [(row.file, row.row, row.detail) for row in dropped] == [
        ("twice.jsonl", 2, "row 0 of twice.jsonl"),
        ("twice.jsonl~2", 2, "row 0 of twice.jsonl~2"),
    ]
    assert_whole(root)


def _killed_in(stage: str) -> Callable[[Task], Record]:
    """Runs tasks, but is killed in the second of a stage, or in its only one."""
    run = 0

    def execute_or_die(task: Task) -> Record:
        nonlocal run
        if task.stage == stage:
            run += 1
            if run > 1 or stage in ("documents", "tokenizer", "runs", "provenance"):
                raise KeyboardInterrupt
        return execute(task)

    return execute_or_die


def _fail(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def _move_half(staged: Path, root: Path, names: list[str], hold: Hold) -> None:
    for name in names[: len(names) // 2]:
        publish.move(staged / name, root / name)
    raise KeyboardInterrupt


BEFORE_THE_MANIFEST = ["documents", "windows", "embeddings", "runs", "shards", "provenance", "move", "exchange"]


@pytest.mark.parametrize("point", BEFORE_THE_MANIFEST)
def test_an_append_killed_before_the_manifest_leaves_the_old_dataset_and_goes_on(
    point: str, base: Path, whole: Dataset, texts: list[str], tmp_path: Path, words: WordEncoder
) -> None:
    before = files_below(base)
    options = options_for(texts[1:2], base)
    words.num_calls = 0
    with pytest.MonkeyPatch.context() as patch:
        if point == "move":
            patch.setattr(publish, "_move_files", _move_half)
        elif point == "exchange":
            patch.setattr(publish, "_exchange_manifest", _fail)
        else:
            patch.setattr(engine, "execute", _killed_in(point))
        with pytest.raises(KeyboardInterrupt):
            append(options, log=quiet)
    after = files_below(base)
    assert {name: after[name] for name in before} == before
    assert open_dataset(base).manifest.generation == 0
    assert_whole(base)
    calls = words.num_calls
    append(options, log=quiet)
    if point in BEFORE_THE_MANIFEST[3:]:
        assert words.num_calls == calls, "no window is embedded again"
    assert_same_windows(open_dataset(base), whole)
    assert_whole(base)
    assert_whole(base, 0)
    assert not (base / "claim.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "whole"]


@pytest.mark.parametrize("name", ["write_indexes", "delete_older", "release"])
def test_an_append_killed_after_the_manifest_only_finishes(
    name: str, base: Path, whole: Dataset, texts: list[str], tmp_path: Path, words: WordEncoder
) -> None:
    options = options_for(texts[1:2], base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hold if name == "release" else generations, name, _fail)
        with pytest.raises(KeyboardInterrupt):
            append(options, prune=True, log=quiet)
    assert open_dataset(base).manifest.generation == 1
    calls = words.num_calls
    report = append(options, prune=True, log=quiet)
    assert report.generation == 1
    assert report.windows == whole.manifest.num_windows - report.windows_before
    assert words.num_calls == calls
    assert_same_windows(open_dataset(base), whole)
    assert_whole(base)
    assert not (base / "claim.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "whole"]


def test_another_append_after_one_killed_at_its_end_finishes_that_and_adds_its_own(
    base: Path, texts: list[str], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generations, "write_indexes", _fail)
        with pytest.raises(KeyboardInterrupt):
            append(options_for(texts[1:2], base), log=quiet)
    assert append(options_for(texts[2:], base), log=quiet).generation == 2
    write(options_for(texts, tmp_path / "whole", like=str(base)), log=quiet)
    assert_same_windows(open_dataset(base), open_dataset(tmp_path / "whole"))
    assert_whole(base)


def test_two_appends_at_once_do_not_mix(base: Path, texts: list[str], tmp_path: Path) -> None:
    first, second = options_for(texts[1:2], base), options_for(texts[2:], base, work=str(tmp_path / "work"))

    def in_between(task: Task) -> Record:
        if task.stage == "shards":
            with pytest.raises(InputError, match="must be written by one request at a time"):
                append(second, log=quiet)
            with pytest.raises(InputError, match="must be written by one process at a time"):
                append(first, log=quiet)
        return execute(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "execute", in_between)
        append(first, log=quiet)
    append(second, log=quiet)
    write(options_for(texts, tmp_path / "whole", like=str(base)), log=quiet)
    assert_same_windows(open_dataset(base), open_dataset(tmp_path / "whole"))


def test_a_manifest_that_changed_meanwhile_is_never_replaced(base: Path, texts: list[str]) -> None:
    original = publish._move_files

    def other_writer(staged: Path, root: Path, *arguments: Any) -> None:
        original(staged, root, *arguments)
        (root / "manifest.json").write_text("theirs")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "_move_files", other_writer)
        with pytest.raises(InputError, match="the dataset changed meanwhile, so nothing was added to it"):
            append(options_for(texts[1:2], base), log=quiet)
    assert (base / "manifest.json").read_text() == "theirs"
    assert not (base / "claim.json").exists()


def test_an_append_that_was_given_up_leaves_nothing_that_another_could_take(
    base: Path, whole: Dataset, texts: list[str], tmp_path: Path
) -> None:
    given_up = options_for(texts[2:], base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "_exchange_manifest", _fail)
        with pytest.raises(KeyboardInterrupt):
            append(given_up, log=quiet)
        with pytest.raises(InputError, match=r"inputs: 1 added \(b.jsonl\), 1 gone \(c.jsonl\).* with --take-over"):
            append(options_for(texts[1:2], base), log=quiet)
        with pytest.raises(KeyboardInterrupt):
            append(options_for(texts[1:2], base, take_over=True), log=quiet)
    append(options_for(texts[1:2], base), prune=True, log=quiet)
    assert_same_windows(open_dataset(base), whole)
    assert_whole(base)
    assert {name for name in files_below(base) if name.endswith(".mds")} == {r.path for r in open_dataset(base).shards}


def test_pruning_leaves_just_what_the_newest_generation_uses(base: Path, whole: Dataset, texts: list[str]) -> None:
    append(options_for(texts[1:2], base), prune=True, log=quiet)
    grown = open_dataset(base)
    assert_same_windows(grown, whole)
    assert_whole(base)
    names = set(files_below(base))
    assert {name for name in names if name.endswith(".mds")} == {row.path for row in grown.shards}
    mark = grown.manifest.mark
    tables = {f"clusters.g1.{mark}.parquet", f"shards.g1.{mark}.parquet"}
    assert {name for name in names if "/" not in name} == {"manifest.json", *tables}
    assert not {"provenance/tables.parquet", "provenance/sources.parquet"} & names
    with pytest.raises(InputError, match=r"generation must be one that is there, got 0; the newest is 1, .* --prune"):
        open_dataset(base, generation=0)


def test_appending_is_refused_where_it_cannot_be_right(base: Path, texts: list[str], tmp_path: Path) -> None:
    for name in ("tables", "sources"):
        (base / f"provenance/{name}.parquet").rename(tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"was written without provenance\. Write all documents again, with its tree"):
        append(options_for(texts[1:2], base), log=quiet)
    for name in ("tables", "sources"):
        (tmp_path / f"{name}.parquet").rename(base / f"provenance/{name}.parquet")
    with pytest.raises(InputError, match="tokenizer: must be left out, because"):
        append(options_for(texts[1:2], base, tokenizer="x"), log=quiet)
    with pytest.raises(InputError, match="the text column 'body' must exist"):
        append(options_for(texts[1:2], base, text_column="body"), log=quiet)
    assert not (base / "claim.json").exists()
    assert open_dataset(base).manifest.generation == 0


def test_a_root_on_a_web_server_is_refused_before_any_work(base: Path, texts: list[str], words: WordEncoder) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(base))
    words.num_calls = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StorageError, match="a web server can be read, not listed"):
            append(options_for(texts[1:2], f"http://127.0.0.1:{server.server_address[1]}"), log=quiet)
        server.shutdown()
    assert words.num_calls == 0


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_damaged_dataset_does_not_grow(base: Path, texts: list[str]) -> None:
    row = open_dataset(base).shards[0]
    shutil.copytree(base, base.with_name("other"))
    _flip(base / row.path, row.first_sample_offset + 20)
    with pytest.raises(CorruptDataError, match=r"does not match its checksum\. Run crisp-stream verify"):
        append(options_for(texts[1:2], base), log=quiet)
    places = base.with_name("other") / "provenance" / row.path.split("/")[1] / "shard.00000.npy"
    _flip(places, 128 + 8 * 3 + 4)
    with pytest.raises(CorruptDataError, match=r"must stand in the order that provenance/.* gives"):
        append(options_for(texts[1:2], base.with_name("other")), log=quiet)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


@pytest.mark.parametrize("kept_on_s3", [False, True])
def test_a_dataset_on_s3_grows_as_a_local_one(
    kept_on_s3: bool, s3: S3Server, cache: Path, base: Path, texts: list[str]
) -> None:
    root = s3.fresh_prefix("grown")
    store = open_store(root)
    for name, content in files_below(base).items():
        store.put(name, content)
    append(options_for(texts[1:2], base), log=quiet)
    changes = {"work": s3.fresh_prefix("work")} if kept_on_s3 else {}
    options = options_for(texts[1:2], root, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "execute", _killed_in("shards"))
        with pytest.raises(KeyboardInterrupt):
            append(options, log=quiet)
    assert_whole(root)
    with pytest.raises(InputError, match="must be written by one request at a time"):
        append(options_for(texts[2:], root, **changes), log=quiet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "_exchange_manifest", _fail)
        with pytest.raises(KeyboardInterrupt):
            append(options, log=quiet)
    append(options, log=quiet)
    assert {path: store.get(path) for path, _ in store.list()} == files_below(base)
    assert_whole(root)
    assert_whole(root, 0)
