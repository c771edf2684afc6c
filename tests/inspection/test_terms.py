"""What nodes are about: their terms are those of their text, from a bounded sample, read in few requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.inspection.terms import MAX_WINDOWS_PER_NODE, TEXT_TOKENS, node_terms
from tests.support.seaweed import S3Server
from tests.support.synthetic import upload, write_synthetic_dataset
from tests.support.topics import TOPICS, topic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return topic_dataset(tmp_path_factory.mktemp("topics") / "dataset")


def test_a_node_is_characterised_by_the_terms_of_its_own_text(dataset: Dataset) -> None:
    found = node_terms(dataset, 2)
    assert found.nodes.tolist() == list(TOPICS)
    terms = dict(zip(found.nodes.tolist(), found.terms, strict=True))
    assert set(terms[5]) == {"orchestra", "violin", "concert"}
    assert set(terms[15]) == {"compiler", "pointer", "kernel"}
    assert {"doctor", "patient"} <= set(terms[0])
    assert {"tumor", "kidney"} <= set(terms[1])


def test_a_term_that_two_nodes_share_counts_less_than_one_of_its_own(dataset: Dataset) -> None:
    terms = node_terms(dataset, 2, nodes=[0]).terms[0]
    assert terms.index("fever") > max(terms.index("doctor"), terms.index("patient"))


def test_the_terms_of_a_coarser_node_are_those_of_all_its_leaves(dataset: Dataset) -> None:
    found = node_terms(dataset, 1)
    assert found.nodes.tolist() == [0, 1, 3]
    assert {"fever", "doctor", "tumor"} <= set(found.terms[0])


def test_a_node_gets_the_same_terms_alone_as_among_all(dataset: Dataset) -> None:
    every = node_terms(dataset, 2)
    alone = node_terms(dataset, 2, nodes=[15])
    assert set(alone.terms[0]) == set(every.terms[3])


def test_the_sample_text_is_a_window_of_the_node_on_one_line(dataset: Dataset) -> None:
    found = node_terms(dataset, 2)
    for node, text in zip(found.nodes.tolist(), found.texts, strict=True):
        assert set(text.split()) & set(TOPICS[node])
    assert "violin" in found.texts[2]
    assert all("\n" not in text and text for text in found.texts)


def test_no_more_is_read_than_was_allowed(dataset: Dataset) -> None:
    found = node_terms(dataset, 2, max_windows=40)
    assert found.num_windows_read <= 40
    assert (found.windows_read_per_node >= 1).all()
    assert node_terms(dataset, 2).windows_read_per_node[2] == MAX_WINDOWS_PER_NODE


def test_the_same_seed_reads_the_same(dataset: Dataset) -> None:
    first, again = (node_terms(dataset, 1, max_windows=60, seed=3) for _ in range(2))
    assert first.terms == again.terms
    assert first.texts == again.texts


def test_a_node_without_windows_has_neither_terms_nor_text(dataset: Dataset) -> None:
    found = node_terms(dataset, 2, nodes=[7, 5])
    assert found.terms[0] == ()
    assert found.texts[0] == ""
    assert found.windows_read_per_node[0] == 0


def test_text_without_repeated_words_has_no_terms_but_still_a_sample(tmp_path: Path) -> None:
    dataset = write_synthetic_dataset(tmp_path / "dataset", {0: 3, 9: 4}, window_tokens=32)
    found = node_terms(dataset, 2)
    assert found.terms == [(), ()]
    assert all(found.texts)


def test_more_nodes_than_windows_is_an_error_with_a_remedy(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="max_windows must allow a window for each of 4 nodes of level 2, got 4"):
        node_terms(dataset, 2, max_windows=4)


def test_a_level_that_the_tree_lacks_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="level 3 is not in the tree, which has levels 1 to 2"):
        node_terms(dataset, 3)


def test_an_object_store_gives_the_same_terms(
    dataset: Dataset, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path))
    url = upload(dataset, s3.fresh_prefix("terms"))
    remote, local = node_terms(open_dataset(url), 2, max_windows=100), node_terms(dataset, 2, max_windows=100)
    assert remote.terms == local.terms
    assert remote.texts == local.texts


def test_only_the_beginning_of_a_long_window_counts(tmp_path: Path) -> None:
    begin = b"melody harmony rhythm "
    rest = b"penalty goalkeeper stadium " * 40
    row = np.frombuffer((begin * 20)[:TEXT_TOKENS] + rest, np.uint8).astype(np.uint16)[: 2 * TEXT_TOKENS]
    dataset = write_synthetic_dataset(
        tmp_path / "dataset", {0: 8}, window_tokens=2 * TEXT_TOKENS, tokens=np.tile(row, (8, 1))
    )
    found = node_terms(dataset, 1)
    assert "melody" in found.terms[0]
    assert "stadium" not in found.terms[0]
