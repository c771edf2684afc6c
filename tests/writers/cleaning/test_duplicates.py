from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xxhash
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crisp_stream.errors import FormatError, InputError
from crisp_stream.writers.cleaning import near_duplicates
from crisp_stream.writers.cleaning.array_files import ArrayFiles
from crisp_stream.writers.cleaning.dropped import dropped_documents
from crisp_stream.writers.cleaning.duplicates import (
    SMALLEST_MEMORY_BYTES,
    find_duplicates,
    num_passes,
    removals_in_pass,
    sort_removals,
    text_digests,
)
from crisp_stream.writers.cleaning.near_duplicates import (
    NearDuplicates,
    NearSettings,
    find_near_duplicates,
    sketch_texts,
    text_minima,
)
from crisp_stream.writers.cleaning.words import hash_words, ngram_hashes

MEMORY_BYTES = SMALLEST_MEMORY_BYTES
SETTINGS = NearSettings(threshold=0.8)
WORDS = [f"{first}{second}" for first in "bcdfghklmnprst" for second in ("a", "eno", "ir", "ulo", "yst")]


def brute_force(texts: Sequence[str]) -> list[tuple[int, int]]:
    first: dict[str, int] = {}
    return [(number, first[text]) for number, text in enumerate(texts) if first.setdefault(text, number) != number]


def store(folder: Path, arrays: Sequence[NDArray[np.generic]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.npy" for number in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths


def in_batches(texts: Sequence[str], cuts: Sequence[int]) -> list[list[str]]:
    edges = [0, *sorted(min(cut, len(texts)) for cut in cuts), len(texts)]
    return [list(texts[begin:end]) for begin, end in itertools.pairwise(edges)]


def sentence(words: int, seed: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def near(folder: Path, texts: Sequence[str], cuts: Sequence[int] = (), **settings: float) -> NearDuplicates:
    chosen = NearSettings(**{"threshold": 0.8, **settings})  # type: ignore[arg-type]
    sketches = [sketch_texts(batch, chosen) for batch in in_batches(texts, cuts)]
    keys = store(folder / "keys", [sketch.keys for sketch in sketches])
    minima = store(folder / "minima", [sketch.minima for sketch in sketches])
    return find_near_duplicates(keys, minima, chosen, memory_bytes=MEMORY_BYTES)


def test_the_first_of_equal_texts_is_kept_and_the_others_name_it(tmp_path: Path) -> None:
    texts = ["a", "b", "a", "", "c", "b", "a", "", "A"]
    paths = store(tmp_path, [text_digests(texts)])
    assert find_duplicates(paths, memory_bytes=MEMORY_BYTES).tolist() == [[2, 0], [5, 1], [6, 0], [7, 3]]


def test_a_digest_is_xxh3_128_of_the_utf8_bytes() -> None:
    assert text_digests(["", "\u00e9"]).tolist() == [
        [0x99AA06D3014798D8, 0x6001C324468D497F],
        [int(xxhash.xxh3_128_hexdigest(b"\xc3\xa9")[:16], 16), int(xxhash.xxh3_128_hexdigest(b"\xc3\xa9")[16:], 16)],
    ]
    assert text_digests(["e\u0301"]).tolist() != text_digests(["\u00e9"]).tolist()
    assert text_digests([]).shape == (0, 2)


@given(
    texts=st.lists(st.text(max_size=2), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    passes=st.integers(1, 9),
)
def test_exact_duplicates_are_those_of_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cuts: list[int], passes: int
) -> None:
    folder = tmp_path_factory.mktemp("digests")
    paths = store(folder, [text_digests(batch) for batch in in_batches(texts, cuts)])
    files = ArrayFiles(paths, np.uint64, columns=2)
    found = sort_removals([removals_in_pass(files, number, passes) for number in range(passes)])
    assert [tuple(pair) for pair in found.tolist()] == brute_force(texts)


def test_digests_that_share_only_their_first_word_are_different(tmp_path: Path) -> None:
    digests = np.array([[5, 1], [5, 2], [5, 1], [6, 1], [5, 2]], np.uint64)
    assert find_duplicates(store(tmp_path, [digests]), memory_bytes=MEMORY_BYTES).tolist() == [[2, 0], [4, 1]]


@pytest.mark.parametrize("share_of_one_text", [0.0, 0.9])
def test_many_passes_in_bounded_memory_give_what_one_pass_gives(tmp_path: Path, share_of_one_text: float) -> None:
    rng = np.random.default_rng(3)
    num_documents = 400_000
    identities = rng.integers(0, num_documents, num_documents)
    identities[rng.random(num_documents) < share_of_one_text] = 7
    digests = rng.integers(0, 2**64, (num_documents, 2), dtype=np.uint64)[identities]
    paths = store(tmp_path, np.array_split(digests, 7))
    assert num_passes(num_documents, MEMORY_BYTES) == 7
    find_duplicates(paths, memory_bytes=MEMORY_BYTES)
    files = ArrayFiles(paths, np.uint64, columns=2)
    peaks: list[int] = []
    results = []
    for passes in (1, 7):
        found = []
        for number in range(passes):
            tracemalloc.start()
            found.append(removals_in_pass(files, number, passes))
            peaks.append(tracemalloc.get_traced_memory()[1] - 2 * found[-1].nbytes)
            tracemalloc.stop()
        results.append(sort_removals(found))
    np.testing.assert_array_equal(results[0], results[1])
    first = {identity: number for number, identity in reversed(list(enumerate(identities.tolist())))}
    expected = [[number, first[i]] for number, i in enumerate(identities.tolist()) if first[i] != number]
    assert results[0].tolist() == expected
    assert max(peaks[1:]) <= MEMORY_BYTES
    assert peaks[0] > 2 * MEMORY_BYTES or share_of_one_text


def test_files_that_are_no_digests_are_named(tmp_path: Path) -> None:
    whole = store(tmp_path, [text_digests(["a", "b"])])[0]
    cut = tmp_path / "cut.npy"
    cut.write_bytes(whole.read_bytes()[:-3])
    floats, other = store(tmp_path / "other", [np.zeros((3, 2)), np.zeros((3, 4), np.uint64)])
    text = tmp_path / "text.npy"
    text.write_text("not an array")
    for path in (cut, floats, other, text, tmp_path / "missing.npy"):
        with pytest.raises(FormatError, match=rf"{path.name}: must be .*Remove it"):
            find_duplicates([whole, path], memory_bytes=MEMORY_BYTES)
    with pytest.raises(InputError, match="memory_bytes: must be at least"):
        find_duplicates([whole], memory_bytes=1000)


def test_rows_are_taken_in_the_order_asked_for_across_files(tmp_path: Path) -> None:
    rows = np.arange(60_000, dtype=np.uint64).reshape(-1, 2)
    files = ArrayFiles(store(tmp_path, np.array_split(rows, [3, 3, 20_000])), np.uint64, columns=2)
    wanted = np.array([29_999, 0, 3, 2, 2, 19_999, 20_000, 700, 5])
    np.testing.assert_array_equal(files.take(wanted), rows[wanted])
    assert files.take(np.zeros(0, np.int64)).shape == (0, 2)


def test_minima_are_those_of_datasketch() -> None:
    texts = [" ".join(sentence(length, length)) for length in (1, 4, 5, 6, 30, 700, 1400)]
    minima, has_words = text_minima(texts, SETTINGS)
    assert has_words.all()
    for text, found in zip(texts, minima, strict=True):
        hashes = hash_words([text]).hashes
        grams = ngram_hashes(hashes, min(5, len(hashes))) >> np.uint64(32)
        (expected,) = MinHash.bulk([grams.tolist()], num_perm=128, seed=1, hashfunc=int)
        np.testing.assert_array_equal(found, expected.hashvalues)


def test_a_document_with_few_changes_is_a_near_duplicate_and_names_the_first(tmp_path: Path) -> None:
    words = sentence(400, 1)
    changed = [*words[:200], "another", *words[201:]]
    other = sentence(400, 2)
    half = words[:200] + other[200:]
    texts = [" ".join(part) for part in (other, words, changed, half, [*changed[:-1], "end"])]
    texts.append("¡" + texts[1].upper().replace(" ", ", ") + "!")
    found = near(tmp_path, texts)
    assert found.removals.tolist() == [[2, 1], [4, 1], [5, 1]]
    assert found.similarity[2] == 1.0
    assert (found.similarity[:2] > 0.9).all()


def test_short_documents_are_near_only_to_the_same_words_and_those_without_words_to_none(tmp_path: Path) -> None:
    texts = [
        "",
        "?!",
        "one",
        "two",
        "One.",
        "one two three",
        "one two",
        "\u2014",
        "one, two: three",
        "",
        "one two four",
    ]
    assert near(tmp_path, texts).removals.tolist() == [[4, 2], [8, 5]]


def test_a_candidate_below_the_threshold_is_kept(tmp_path: Path) -> None:
    words = sentence(1000, 5)
    # A block of 230 words replaced: Jaccard index 762 / 1230 = 0.62; candidates of many of the bands made for 0.5.
    other = words[:385] + sentence(230, 6) + words[615:]
    texts = [" ".join(words), " ".join(other)]
    assert near(tmp_path / "high", texts, threshold=0.8).removals.tolist() == []
    sketches = sketch_texts(texts, NearSettings(threshold=0.5))
    assert (sketches.keys[:, 0] == sketches.keys[:, 1]).any()
    found = near(tmp_path / "low", texts, threshold=0.5)
    assert found.removals.tolist() == [[1, 0]]
    assert found.similarity[0] == pytest.approx(0.62, abs=0.13)
    keys = store(tmp_path / "keys", [sketches.keys])
    minima = store(tmp_path / "minima", [sketches.minima])
    strict = find_near_duplicates(keys, minima, NearSettings(threshold=0.5), memory_bytes=MEMORY_BYTES)
    assert strict.removals.tolist() == [[1, 0]]


def test_documents_are_joined_through_others_and_the_similarity_to_the_kept_one_is_reported(tmp_path: Path) -> None:
    words = sentence(600, 8)
    new = sentence(600, 9)
    chain = [" ".join(new[: 45 * step] + words[45 * step :]) for step in range(3)]
    found = near(tmp_path, [chain[0], chain[2], chain[1]])
    assert found.removals.tolist() == [[1, 0], [2, 0]]
    assert found.similarity[0] < 0.8 <= found.similarity[1]


@given(data=st.data())
def test_near_duplicates_do_not_depend_on_batches_or_passes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("near")
    seeds = data.draw(st.lists(st.integers(0, 3), min_size=2, max_size=12))
    texts = []
    for number, seed in enumerate(seeds):
        words = sentence(60, seed)
        words[number % 60] = data.draw(st.sampled_from([words[number % 60], "Żółć", "數學"]))
        texts.append(" ".join(words))
    cuts = data.draw(st.lists(st.integers(0, 12), max_size=3))
    whole = near(folder / "a", texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "num_passes", lambda _documents, _memory: 5)
        parted = near(folder / "b", texts, cuts)
    np.testing.assert_array_equal(whole.removals, parted.removals)
    np.testing.assert_array_equal(whole.similarity, parted.similarity)


def test_sketches_of_other_settings_or_documents_are_refused(tmp_path: Path) -> None:
    sketches = sketch_texts(["one two three", "four five six"], SETTINGS)
    keys, minima = store(tmp_path / "k", [sketches.keys]), store(tmp_path / "m", [sketches.minima])
    with pytest.raises(FormatError, match="columns"):
        find_near_duplicates(keys, minima, NearSettings(threshold=0.9), memory_bytes=MEMORY_BYTES)
    with pytest.raises(InputError, match="of the same documents, got 4 and 2"):
        find_near_duplicates(keys * 2, minima, SETTINGS, memory_bytes=MEMORY_BYTES)
    with pytest.raises(InputError, match=r"threshold: must be 0\.5 to 0\.99, got 1\.0"):
        NearSettings(threshold=1.0)


def test_the_list_names_kept_documents_only_and_exact_duplicates_as_such(tmp_path: Path) -> None:
    words = sentence(300, 3)
    first, changed, other = " ".join(words), " ".join([*words[:-1], "end"]), " ".join(sentence(50, 4))
    texts = [first, "!", changed, other, changed, "!", other, first]
    exact = find_duplicates(store(tmp_path / "d", [text_digests(texts)]), memory_bytes=MEMORY_BYTES)
    assert exact.tolist() == [[4, 2], [5, 1], [6, 3], [7, 0]]
    found = near(tmp_path, texts, [3])
    assert found.removals.tolist() == [[2, 0], [4, 0], [6, 3], [7, 0]]
    place = np.dtype([("file", "<u4"), ("row", "<i8")])
    places = np.array([(number // 4, 100 + number) for number in range(8)], place)
    files = ArrayFiles(store(tmp_path / "p", [places[:5], places[5:]]), place)
    columns = ["document", "kept_file", "kept_row", "near"]
    assert dropped_documents(exact, found, files)[columns].tolist() == [
        (2, 0, 100, True),
        (4, 0, 100, True),
        (5, 0, 101, False),
        (6, 0, 103, False),
        (7, 0, 100, False),
    ]
    assert (dropped_documents(exact, found, files)["similarity"] > 0.9).all()
    only_exact = dropped_documents(exact, None, files)
    assert only_exact[columns].tolist() == [
        (4, 0, 102, False),
        (5, 0, 101, False),
        (6, 0, 103, False),
        (7, 0, 100, False),
    ]
    assert len(dropped_documents(exact[:0], None, files)) == 0


def test_characters_that_are_not_seen_make_no_text_different() -> None:
    text = "The liver makes bile, which the gall bladder stores until a meal needs it in the small intestine."
    hidden = [text.replace("l", "l\u00ad"), "\u200b".join(text), "\ufeff" + text, text.replace("a", "a\ufe0f")]
    minima, _ = text_minima([text, *hidden], SETTINGS)
    for other in minima[1:]:
        np.testing.assert_array_equal(other, minima[0])
