"""What nodes are about: their terms are those of their text, from a bounded sample, read in few requests."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from crisp_stream.cli.forecast import _TERMS
from crisp_stream.cli.forecast import _terms as forecast_terms
from crisp_stream.errors import FormatError, InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.sources import Sources
from crisp_stream.format.terms import LEAST_PURITY, stored_terms
from crisp_stream.histograms.arithmetic import generalist_histogram
from crisp_stream.inspection import terms
from crisp_stream.inspection.summary import top_nodes
from crisp_stream.inspection.terms import node_terms
from crisp_stream.report.map import gather_terms, levels_of
from crisp_stream.writers.tree.terms import MAX_WINDOWS_PER_NODE, TEXT_TOKENS, Layout, find_level, from_a_word
from tests.support.seaweed import S3Server
from tests.support.synthetic import upload, write_synthetic_dataset
from tests.support.topics import TOPICS, topic_dataset
from tests.support.words import append_words, write_texts, write_words
from tests.support.written_dataset import TOPICS as DOCUMENTS


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
    assert (alone.terms[0], alone.texts[0]) == (every.terms[3], every.texts[3])


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


def test_the_same_is_read_again(dataset: Dataset) -> None:
    first, again = (node_terms(dataset, 1, max_windows=60) for _ in range(2))
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


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset that was written and has grown, and so has stored terms."""
    folder = tmp_path_factory.mktemp("stored")
    files = write_texts(folder, num_files=3)
    write_words(files[:2], folder / "root")
    return append_words(files[2:], folder / "root")


@pytest.mark.parametrize("generation", [0, 1])
def test_what_is_stored_is_what_the_rule_finds(stored: Dataset, generation: int, tmp_path: Path) -> None:
    dataset = open_dataset(stored.root, generation=generation)
    with pytest.MonkeyPatch.context() as patch:  # what is stored is not found again
        patch.setattr(terms, "find_level", None)
        assert node_terms(dataset, 1).terms
    known = stored_terms(dataset)
    assert known is not None
    assert list(known.levels) == [1, 2, 3]
    bare = Path(shutil.copytree(stored.root, tmp_path / "bare"))
    for path in bare.glob("provenance/terms*"):
        path.unlink()
    without = open_dataset(bare, generation=generation)
    for level in known.levels:
        found, again = node_terms(without, level), node_terms(dataset, level)
        assert (again.terms, again.texts) == (found.terms, found.texts)
        assert again.windows_read_per_node.tolist() == found.windows_read_per_node.tolist()
        assert again.nodes.tolist() == found.nodes.tolist()
        assert (again.num_windows_read, found.num_windows_read > 0) == (0, True)
        some = again.nodes[::3]
        assert node_terms(without, level, nodes=some).terms == found.terms[::3]


def test_generations_have_terms_of_their_own(stored: Dataset) -> None:
    old, new = (stored_terms(open_dataset(stored.root, generation=generation)) for generation in (0, 1))
    assert old is not None
    assert new is not None
    assert old.levels[1].terms != new.levels[1].terms


def test_all_that_names_a_cluster_uses_the_same_terms(stored: Dataset) -> None:
    known = stored_terms(stored)
    assert known is not None
    of_level = dict(zip(known.levels[2].nodes.tolist(), known.levels[2].terms, strict=True))
    corpus = generalist_histogram(stored, 2)
    for node in top_nodes(stored, corpus, 5):
        assert node.terms == of_level[node.node][:6]
    levels = levels_of(stored)
    page = gather_terms(stored, levels, [], max_windows=1_000)
    assert dict(zip(page[1].nodes.tolist(), page[1].terms, strict=True)) == of_level
    clusters = [int(node) for node in corpus.nodes[:3]]
    repeated = [SimpleNamespace(source="", level=2, cluster=node) for node in clusters]
    forecast = forecast_terms(SimpleNamespace(most_repeated=repeated), Sources(stored))  # type: ignore[arg-type]
    assert forecast == {("", node): " · ".join(of_level[node][:_TERMS]) for node in clusters}


def test_stored_texts_begin_at_a_word(stored: Dataset) -> None:
    known = stored_terms(stored)
    assert known is not None
    corpus = " ".join(" ".join(text[:1500].split()) for text in DOCUMENTS)
    texts = [text for level in known.levels.values() for text in level.texts]
    for text in texts:
        beginning = text.partition(" ¶ ")[0][:30]
        at = corpus.find(beginning)
        assert at >= 0, beginning
        assert any(not corpus[at - 1].isalnum() for at in _all_places(corpus, beginning)), beginning


def _all_places(text: str, part: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(part), text)]


def test_text_begins_at_a_word_also_where_there_are_no_blanks() -> None:
    assert from_a_word("ing the sea") == "the sea"
    assert from_a_word(" the sea") == "the sea"
    assert from_a_word("\ufffd\ufffdold, the sea") == "the sea"
    assert from_a_word("word") == "word"
    assert from_a_word("中文没有空格 然后") == "中文没有空格 然后"


def test_damaged_terms_are_an_error_that_names_the_file(stored: Dataset, tmp_path: Path) -> None:
    root = Path(shutil.copytree(stored.root, tmp_path / "root"))
    [path] = root.glob("provenance/terms.g1.*.parquet")
    path.write_bytes(b"PAR1")
    with pytest.raises(FormatError, match=r"terms\.g1\..*: must be a table of terms"):
        node_terms(open_dataset(root), 1)


def _sampled(content: list[str], grammar: list[str]) -> float | None:
    """Purity of two clusters, each of which has some words of content and of grammar."""
    rng = np.random.default_rng(0)
    texts = [
        " ".join([*rng.choice(content[half].split(), 20), *rng.choice(grammar[half].split(), 20)])
        for half in (0, 1)
        for _ in range(60)
    ]
    layout = Layout(leaves=np.array([0, 1], np.uint32), windows_per_leaf=np.array([60, 60]), arity=2, depth=1)
    source = SimpleNamespace(lines=lambda windows: [texts[window] for window in windows])
    return find_level(layout, source, 1, layout.leaves)[1]  # type: ignore[arg-type]


def test_purity_tells_clusters_of_topics_from_clusters_of_style() -> None:
    topics, one_topic = ["ship anchor sailor wave", "judge verdict lawyer trial"], ["ship anchor sailor wave"] * 2
    styles, one_style = ["you your will can", "she her was had"], ["the of and was you"] * 2
    assert (_sampled(topics, one_style) or 0) > 0.95
    assert (_sampled(one_topic, styles) or 0) < 0.05
    both = _sampled(topics, styles)
    assert both is not None
    assert 0.4 < both < 0.6
    assert _sampled(["ship"] * 2, ["the"] * 2) is None


def test_clusters_of_style_have_a_note_with_their_purity(stored: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    known = stored_terms(stored)
    assert known is not None
    assert known.purities.keys() == known.levels.keys()
    for purity, is_noted in ((LEAST_PURITY - 0.01, True), (LEAST_PURITY, False)):
        content = replace(known, purities={1: purity}).to_parquet()
        monkeypatch.setattr(stored.store, "get", lambda path, content=content: content)
        terms._stored.cache_clear()
        note = terms.purity_note(stored, 1)
        assert (note is not None) is is_noted
        assert terms.purity_note(stored, 2) is None
        if note is not None:
            assert note.startswith("Topical purity 0.75: these clusters differ in style as well as in topic")
    terms._stored.cache_clear()
