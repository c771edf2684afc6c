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
from crisp_stream.storage.store import open_store
from crisp_stream.writers.cleaning import duplicates
from crisp_stream.writers.cleaning.array_files import ArrayFile
from crisp_stream.writers.cleaning.duplicates import (
    BYTES_PER_HASH,
    PAIR,
    Firsts,
    hash_ranges,
    packed_places,
    text_digests,
    unpacked_places,
)
from crisp_stream.writers.cleaning.near_duplicates import (
    Groups,
    NearSettings,
    find_near_duplicates,
    similarities,
    sketch_texts,
    text_minima,
)
from crisp_stream.writers.cleaning.words import hash_words, ngram_hashes

SETTINGS = NearSettings(threshold=0.8)
WORDS = [f"{first}{second}" for first in "bcdfghklmnprst" for second in ("a", "eno", "ir", "ulo", "yst")]


def brute_force(texts: Sequence[str]) -> list[tuple[int, int]]:
    first: dict[str, int] = {}
    return [(number, first[text]) for number, text in enumerate(texts) if first.setdefault(text, number) != number]


def sentence(words: int, seed: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def near(texts: Sequence[str], **settings: float) -> list[tuple[int, int]]:
    chosen = NearSettings(**{"threshold": 0.8, **settings})  # type: ignore[arg-type]
    return pairs_of(find_near_duplicates(sketch_texts(texts, chosen), chosen))


def pairs_of(found: NDArray[np.void]) -> list[tuple[int, int]]:
    return list(zip(found["place"].tolist(), found["first"].tolist(), strict=True))


def repeats(digests: NDArray[np.uint64], *, expected: int, cuts: Sequence[int] = ()) -> NDArray[np.void]:
    firsts, places = Firsts(expected), np.arange(len(digests), dtype=np.uint64)
    pieces = zip(np.split(digests, sorted(cuts)), np.split(places, sorted(cuts)), strict=True)
    given = [firsts.add([words[:, 0], words[:, 1]], numbers) for words, numbers in pieces]
    return np.concatenate([*given, firsts.finish()])


def similarity(texts: Sequence[str], one: int, other: int) -> float:
    minima = sketch_texts(texts, SETTINGS).minima
    return float(similarities(minima[[one]], minima[[other]])[0])


def test_the_first_of_equal_texts_is_kept_and_the_others_name_it() -> None:
    texts = ["a", "b", "a", "", "c", "b", "a", "", "A"]
    assert pairs_of(repeats(text_digests(texts), expected=9)) == [(2, 0), (5, 1), (6, 0), (7, 3)]


def test_a_digest_is_xxh3_128_of_the_utf8_bytes() -> None:
    assert text_digests(["", "\u00e9"]).tolist() == [
        [0x99AA06D3014798D8, 0x6001C324468D497F],
        [int(xxhash.xxh3_128_hexdigest(b"\xc3\xa9")[:16], 16), int(xxhash.xxh3_128_hexdigest(b"\xc3\xa9")[16:], 16)],
    ]
    assert text_digests(["e\u0301"]).tolist() != text_digests(["\u00e9"]).tolist()
    assert text_digests([]).shape == (0, 2)


@given(texts=st.lists(st.text(max_size=2), max_size=60), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_exact_duplicates_are_those_of_a_dictionary(texts: list[str], cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_SMALLEST_CAPACITY", 5)
        found = repeats(text_digests(texts), expected=1, cuts=[min(cut, len(texts)) for cut in cuts])
    assert pairs_of(found) == brute_force(texts)


@given(hashes=st.lists(st.integers(0, 2**64 - 1), max_size=40), num_ranges=st.integers(1, 1 << 31))
def test_equal_hashes_are_in_one_range(hashes: list[int], num_ranges: int) -> None:
    ranges = hash_ranges(np.array(hashes, np.uint64), num_ranges).tolist()
    assert ranges == [(number >> 32) * num_ranges >> 32 for number in hashes]
    assert all(0 <= number < num_ranges for number in ranges)


def test_digests_that_share_only_their_first_word_are_different() -> None:
    digests = np.array([[5, 1], [5, 2], [5, 1], [6, 1], [5, 2]], np.uint64)
    assert pairs_of(repeats(digests, expected=5)) == [(2, 0), (4, 1)]


@pytest.mark.parametrize("num_words", [1, 2])
@pytest.mark.parametrize("share_of_one_text", [0.0, 0.9])
def test_repeats_are_found_in_bounded_memory(share_of_one_text: float, num_words: int) -> None:
    rng = np.random.default_rng(3)
    num_documents, expected = 400_000, 57_000
    different = expected if share_of_one_text else num_documents
    identities = rng.integers(0, different, num_documents)
    identities[rng.random(num_documents) < share_of_one_text] = 7
    digests = rng.integers(0, 2**64, (num_documents, 2), dtype=np.uint64)[identities]
    if not share_of_one_text:
        digests = digests[hash_ranges(digests[:, 0], 7) == 3]
    firsts, peak, num_found = Firsts(expected), 0, 0
    for start in range(0, len(digests), 5_000):
        words = digests[start : start + 5_000]
        places = np.arange(start, start + len(words), dtype=np.uint64)
        tracemalloc.start()
        tracemalloc.reset_peak()
        num_found += len(firsts.add([words[:, word] for word in range(num_words)], places))
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    num_found += len(firsts.finish())
    assert num_found == len(digests) - len(np.unique(digests[:, 0]))
    assert peak <= BYTES_PER_HASH[num_words] * expected


def test_places_are_numbers_in_document_order_and_have_an_end() -> None:
    files, rows = np.array([0, 0, 1, 2**24 - 1], np.uint32), np.array([0, 7, 0, 2**40 - 1])
    places = packed_places(files, rows)
    assert places.tolist() == [0, 7, 2**40, 2**64 - 1]
    for packed, unpacked in zip((files, rows), unpacked_places(places), strict=True):
        np.testing.assert_array_equal(packed, unpacked)
    for file, row in ((2**24, 0), (0, 2**40)):
        with pytest.raises(InputError, match=r"dedup: at most 16,777,216 input files of .*leave --dedup out"):
            packed_places(np.array([file], np.uint32), np.array([row]))


def test_files_that_are_no_such_arrays_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", text_digests(["a", "b"]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-3])
    np.save(tmp_path / "floats.npy", np.zeros((3, 2)))
    np.save(tmp_path / "wide.npy", np.zeros((3, 4), np.uint64))
    (tmp_path / "text.npy").write_text("not an array")
    store = open_store(str(tmp_path))
    whole = ArrayFile(store, "whole.npy", np.uint64, shape=(None, 2))
    np.testing.assert_array_equal(whole.read(2, 2), text_digests(["b"])[0])
    for name in ("cut", "floats", "wide", "text"):
        with pytest.raises(FormatError, match=rf"{name}\.npy: must be .*Remove it"):
            ArrayFile(store, f"{name}.npy", np.uint64, shape=(None, 2))
    with pytest.raises(FormatError, match="cut short while it was read"):
        whole.read(2, 3)


def test_minima_are_those_of_datasketch() -> None:
    texts = [" ".join(sentence(length, length)) for length in (1, 4, 5, 6, 30, 700, 1400)]
    minima, has_words = text_minima(texts, SETTINGS)
    assert has_words.all()
    for text, found in zip(texts, minima, strict=True):
        hashes = hash_words([text]).hashes
        grams = ngram_hashes(hashes, min(5, len(hashes))) >> np.uint64(32)
        (expected,) = MinHash.bulk([grams.tolist()], num_perm=128, seed=1, hashfunc=int)
        np.testing.assert_array_equal(found, expected.hashvalues)


def test_a_document_with_few_changes_is_a_near_duplicate_and_names_the_first() -> None:
    words = sentence(400, 1)
    changed = [*words[:200], "another", *words[201:]]
    other = sentence(400, 2)
    half = words[:200] + other[200:]
    texts = [" ".join(part) for part in (other, words, changed, half, [*changed[:-1], "end"])]
    texts.append("¡" + texts[1].upper().replace(" ", ", ") + "!")
    assert near(texts) == [(2, 1), (4, 1), (5, 1)]
    assert similarity(texts, 5, 1) == 1.0
    assert min(similarity(texts, 2, 1), similarity(texts, 4, 1)) > 0.9


def test_short_documents_are_near_only_to_the_same_words_and_those_without_words_to_none() -> None:
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
    assert near(texts) == [(4, 2), (8, 5)]


def test_a_candidate_below_the_threshold_is_kept() -> None:
    words = sentence(1000, 5)
    # A block of 230 words replaced: Jaccard index 762 / 1230 = 0.62; candidates of many of the bands made for 0.5.
    other = words[:385] + sentence(230, 6) + words[615:]
    texts = [" ".join(words), " ".join(other)]
    assert near(texts, threshold=0.8) == []
    sketches = sketch_texts(texts, NearSettings(threshold=0.5))
    assert (sketches.keys[:, 0] == sketches.keys[:, 1]).any()
    assert near(texts, threshold=0.5) == [(1, 0)]
    assert similarity(texts, 0, 1) == pytest.approx(0.62, abs=0.13)
    with pytest.raises(InputError, match=r"threshold: must be 0\.5 to 0\.99, got 1\.0"):
        NearSettings(threshold=1.0)


def test_documents_are_joined_through_others() -> None:
    words, new = sentence(600, 8), sentence(600, 9)
    chain = [" ".join(new[: 45 * step] + words[45 * step :]) for step in range(3)]
    texts = [chain[0], chain[2], chain[1]]
    assert near(texts) == [(1, 0), (2, 0)]
    assert similarity(texts, 0, 1) < 0.8 <= similarity(texts, 0, 2)


@given(
    edges=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted).map(tuple), max_size=50),
    cuts=st.lists(st.integers(0, 50), max_size=3),
)
def test_groups_are_connected_whatever_the_order_of_edges(edges: list[tuple[int, int]], cuts: list[int]) -> None:
    first = list(range(31))
    for _ in edges:  # as many rounds as a chain may have
        for one, other in edges:
            first[one] = first[other] = min(first[one], first[other])
    groups = Groups()
    borders = [0, *sorted(min(cut, len(edges)) for cut in cuts), len(edges)]
    for some in (edges[begin:end] for begin, end in itertools.pairwise(borders)):
        groups.join(np.array([(other, one) for one, other in some], PAIR))
    assert pairs_of(groups.pairs) == [(place, root) for place, root in enumerate(first) if place != root]


def test_characters_that_are_not_seen_make_no_text_different() -> None:
    text = "The liver makes bile, which the gall bladder stores until a meal needs it in the small intestine."
    hidden = [text.replace("l", "l\u00ad"), "\u200b".join(text), "\ufeff" + text, text.replace("a", "a\ufe0f")]
    minima, _ = text_minima([text, *hidden], SETTINGS)
    for other in minima[1:]:
        np.testing.assert_array_equal(other, minima[0])
