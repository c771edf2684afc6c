"""The search for duplicates in tasks: its outcome is that of a plain definition, however it is parted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_stream.errors import InputError
from crisp_stream.writers.cleaning.duplicates import packed_places, text_digests, unpacked_places
from crisp_stream.writers.cleaning.near_duplicates import NearSettings, sketch_texts
from crisp_stream.writers.engine.engine import LocalEngine
from crisp_stream.writers.engine.tasks import PlanEnds, Runner
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.stages.batches import PLACE
from crisp_stream.writers.stages.removal import bundles, duplicates, pairs
from crisp_stream.writers.stages.removal.bundles import Bundle, Stretch, bundles_of, stretches_of_group
from crisp_stream.writers.stages.removal.duplicates import search_in_stages
from crisp_stream.writers.stages.removal.search import Search

NEAR = NearSettings(threshold=0.8)
WORK_BYTES = 1 << 20
Outcome = dict[int, tuple[int, bool, float]]
"""Removed document to the kept one, whether they are only similar, and how similar."""


def quiet(line: str) -> None:
    """Takes log lines."""


def definition(texts: Sequence[str], near: NearSettings | None) -> Outcome:
    """The outcome as docs/write/cleaning.md defines it, document by document."""
    first_of_text: dict[str, int] = {}
    exact = {
        number: first_of_text[text]
        for number, text in enumerate(texts)
        if first_of_text.setdefault(text, number) != number
    }
    if near is None:
        return {number: (first, False, 1.0) for number, first in exact.items()}
    sketches = sketch_texts(texts, near)
    kept = list(range(len(texts)))

    def similarity(one: int, other: int) -> float:
        agree = float(np.mean(sketches.minima[one] == sketches.minima[other]))
        return max((agree - 1 / 256) / (1 - 1 / 256), 0)

    edges = []
    for band in sketches.keys.tolist():
        first_of_key: dict[int, int] = {}
        for number, key in enumerate(band):
            first = first_of_key.setdefault(key, number)
            if key and first != number and similarity(number, first) >= near.threshold:
                edges.append((number, first))
    for _ in texts:
        for one, other in edges:
            kept[one] = kept[other] = min(kept[one], kept[other])
    found: Outcome = {}
    for number in range(len(texts)):
        if kept[number] != number and exact.get(number) != kept[number]:
            found[number] = (kept[number], True, similarity(number, kept[number]))
        elif number in exact:
            found[number] = (exact[number], False, 1.0)
    return found


class Corpus:
    """Documents of groups as the stage before leaves them."""

    def __init__(self, folder: Path, texts: Sequence[str], batches_per_group: Sequence[Sequence[int]]) -> None:
        """Group g has batches of so many documents; each has a file of its own, with every other row left out."""
        self.workspace = Workspace(folder)
        self.texts = texts
        self.batches_per_group = batches_per_group
        self.places: list[int] = []
        start = 0
        for group, sizes in enumerate(batches_per_group):
            some = texts[start : start + sum(sizes)]
            start += len(some)
            if not some:
                continue
            places = np.array([(group, 2 * row + 1) for row in range(len(some))], PLACE)
            self.places += packed_places(places["file"], places["row"]).tolist()
            self.workspace.save_array(f"documents/{group}.places.npy", places)
            self.workspace.save_array(f"documents/{group}.digests.npy", text_digests(some))
            sketches = sketch_texts(some, NEAR)
            self.workspace.save_array(f"documents/{group}.bands.npy", sketches.keys)
            self.workspace.save_array(f"documents/{group}.minima.npy", sketches.minima)
        assert start == len(texts)

    def search(
        self, near: NearSettings | None, *, bundle_documents: int = 1 << 20, digest_ranges: int = 1, key_ranges: int = 1
    ) -> tuple[Search, list[Bundle]]:
        found = list(bundles_of(iter(self._stretches(bundle_documents)), bundle_documents))
        search = Search(
            documents="abc",
            num_documents=len(self.texts),
            near=near,
            bundle_documents=bundle_documents,
            num_bundles=len(found),
            digest_ranges=digest_ranges,
            key_ranges=key_ranges,
        )
        return search, found

    def _stretches(self, bundle_documents: int) -> list[Stretch]:
        return [
            Stretch(
                group=group,
                key=f"documents/{group}",
                start=start,
                stop=stop,
                first_place=(group << 40) + (2 * start + 1 if start else 0),
            )
            for group, sizes in enumerate(self.batches_per_group)
            for start, stop in stretches_of_group(sizes, bundle_documents)
        ]

    def outcome(self, search: Search, found: list[Bundle], *, engine: LocalEngine | None = None) -> Outcome:
        """Run the stages, and read what they removed as tasks that cut windows do."""
        runner = Runner(engine or LocalEngine(processes=1), self.workspace, log=quiet)
        result = search_in_stages(runner, search, found, work_bytes=WORK_BYTES)
        outcome: Outcome = {}
        for group, sizes in enumerate(self.batches_per_group):
            for first in itertools.accumulate(sizes[:-1], initial=0) if sizes else ():
                for row in result.of_documents(group, first).load(self.workspace):
                    number, kept = self.places.index(row["place"]), self.places.index(row["kept"])
                    assert unpacked_places(row["place"][None])[0] == group
                    outcome[number] = (kept, bool(row["near"]), float(row["similarity"]))
        counts = {kind: sum(near == (kind == "near") for _, near, _ in outcome.values()) for kind in ("exact", "near")}
        assert result.counts == counts
        return outcome


def made_up(seed: int, number: int) -> list[str]:
    """Texts many of which are equal, similar, similar in chains, or without words."""
    rng = random.Random(seed)
    words = [f"w{word}" for word in range(500)]
    bases = [rng.choices(words, k=120) for _ in range(3)]
    texts = ["", "?!"]
    while len(texts) < number:
        base = rng.choice(bases)
        changed = list(base)
        for _ in range(rng.choice([0, 0, 1, 2, 3])):
            at = rng.randrange(len(changed) - 12)
            changed[at : at + 4] = rng.choices(words, k=4)
        texts.append(rng.choice(["", " ".join(changed), " ".join(changed), " ".join(changed).upper(), "?!"]))
        if rng.random() < 0.5:
            bases[rng.randrange(3)] = changed
    rng.shuffle(texts)
    return texts[:number]


def rounded(outcome: Outcome) -> Outcome:
    return {number: (kept, near, round(similar, 5)) for number, (kept, near, similar) in outcome.items()}


@settings(max_examples=15, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6), is_near=st.booleans())
def test_the_outcome_is_that_of_the_definition(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, seed: int, is_near: bool
) -> None:
    sizes = data.draw(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=6))
    number = sum(map(sum, sizes))
    if not number:
        return
    corpus = Corpus(tmp_path_factory.mktemp("corpus"), made_up(seed, number), sizes)
    ranges = st.integers(1, 7)
    search, found = corpus.search(
        NEAR if is_near else None,
        bundle_documents=data.draw(st.integers(1, 20)),
        digest_ranges=data.draw(ranges),
        key_ranges=data.draw(ranges),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "EDGES_AT_ONCE", data.draw(st.integers(1, 9)))
        patch.setattr(pairs, "_CARRIED_AT_ONCE", data.draw(st.integers(1, 9)))
        patch.setattr(pairs, "_COMPARED_BYTES", data.draw(st.integers(1, 2000)))
        patch.setattr(bundles, "_LOCAL_GAP_BYTES", data.draw(st.sampled_from([0, 300, 4096])))
        outcome = corpus.outcome(search, found)
    assert rounded(outcome) == rounded(definition(corpus.texts, search.near))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path, made_up(3, 120), [[5, 5, 5], [40], [], [3], [7, 30, 25]])


def outcome_files(workspace: Workspace) -> list[bytes]:
    return [workspace.read(name) for name in sorted(workspace.sizes("duplicates")) if not name.endswith(".json")]


def test_processes_do_not_decide(corpus: Corpus) -> None:
    search, found = corpus.search(NEAR, bundle_documents=16, digest_ranges=3, key_ranges=2)
    one = corpus.outcome(search, found)
    files = outcome_files(corpus.workspace)
    for name in corpus.workspace.sizes(""):
        if not name.startswith("documents/"):
            corpus.workspace.store.delete(name)
    engine = LocalEngine(processes=2)
    try:
        assert corpus.outcome(search, found, engine=engine) == one
    finally:
        engine.close()
    assert outcome_files(corpus.workspace) == files
    assert len(one) > 20
    assert {near for _, near, _ in one.values()} == {True, False}
    assert min(similar for _, _, similar in one.values()) < NEAR.threshold  # joined through others


class Killed(Exception):  # noqa: N818 (not an error)
    """Ends a run as a kill would, between two tasks."""


class KilledEngine(LocalEngine):
    """Runs so many tasks."""

    def __init__(self, tasks: int) -> None:
        super().__init__(processes=1)
        self._left = tasks

    def run(self, tasks, **options):  # type: ignore[no-untyped-def]
        for outcome in super().run(tasks, **options):
            if not self._left:
                raise Killed
            self._left -= 1
            yield outcome


@pytest.mark.parametrize("tasks", [0, 3, 8, 20, 45, 52, 60])
def test_a_search_that_is_killed_goes_on_and_finds_the_same(corpus: Corpus, tasks: int) -> None:
    search, found = corpus.search(NEAR, bundle_documents=30, digest_ranges=2, key_ranges=2)
    with pytest.raises(Killed):
        corpus.outcome(search, found, engine=KilledEngine(tasks))
    whole = corpus.workspace.sizes("")
    lines: list[str] = []
    with pytest.raises(PlanEnds):
        search_in_stages(Runner(None, corpus.workspace, log=lines.append), search, found, work_bytes=WORK_BYTES)
    assert rounded(corpus.outcome(search, found)) == rounded(definition(corpus.texts, NEAR))
    again = corpus.workspace.sizes("")
    assert whole.items() <= again.items()
    corpus.outcome(search, found, engine=KilledEngine(0))  # nothing is left to do


def test_an_outcome_that_is_there_needs_nothing_that_it_was_made_from(corpus: Corpus) -> None:
    search, found = corpus.search(NEAR, bundle_documents=30)
    one = corpus.outcome(search, found)
    for name in corpus.workspace.sizes(""):
        if name.startswith("duplicates-"):
            corpus.workspace.store.delete(name)
    assert corpus.outcome(search, found, engine=KilledEngine(0)) == one


def test_how_a_search_is_parted_is_not_in_its_fingerprint(corpus: Corpus) -> None:
    search, _ = corpus.search(NEAR, bundle_documents=30)
    other, _ = corpus.search(NEAR, bundle_documents=7, digest_ranges=3, key_ranges=4)
    assert search.outcome == other.outcome
    assert search.outcome != replace(search, near=None).outcome
    assert search.outcome != replace(search, documents="another").outcome


def test_records_and_tasks_say_nothing_of_single_documents(tmp_path: Path) -> None:
    """The driver's memory does not grow with what is removed: records hold counts, tasks the groups of their bundle."""
    sizes = []
    for number in (200, 2000):
        texts = ["the same words again"] * number
        corpus = Corpus(tmp_path / str(number), texts, [[number]])
        search, found = corpus.search(NEAR)
        assert len(corpus.outcome(search, found)) == number - 1
        records = {
            name.partition("/")[0]: content
            for name in corpus.workspace.sizes("")
            if name.endswith(".json") and (content := corpus.workspace.read(name))
        }
        assert len(records) == 8
        sizes.append(sum(map(len, records.values())))
    assert sizes[1] <= sizes[0] + 3 * 8  # digits of the counts


def test_a_search_in_little_memory_is_refused_before_documents_are_joined(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "EDGES_AT_ONCE", 1)
    monkeypatch.setattr(duplicates, "_JOINING_BYTES", 1 << 40)
    search, found = corpus.search(NEAR)
    engine = LocalEngine(processes=1, memory_bytes=1 << 30)
    try:
        with pytest.raises(
            InputError,
            match=r"memory: must be at least .* what joining similar documents needs, got 1024 MB\. Give more\.$",
        ):
            corpus.outcome(search, found, engine=engine)
    finally:
        engine.close()


def test_large_groups_are_cut_where_batches_end_and_small_ones_are_joined() -> None:
    assert stretches_of_group([3, 2, 4], 4) == [(0, 3), (3, 5), (5, 9)]
    assert stretches_of_group([3, 2, 4], 9) == [(0, 9)]
    assert stretches_of_group([10, 2], 4) == [(0, 10), (10, 12)]
    assert stretches_of_group([], 4) == []
    units = [Stretch(group=0, key="", start=0, stop=count, first_place=0) for count in (2, 2, 1, 9, 1, 1)]
    bundled = [[one.stop for one in bundle] for bundle in bundles_of(iter(units), 4)]
    assert bundled == [[2, 2], [1], [9], [1, 1]]
