"""What readers see of a dataset that has grown: each generation whole, and runs that go on with theirs."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.config.load import load_recipe
from crisp_stream.errors import InputError, MissingObjectError, ResumeError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.provenance import document_spans
from crisp_stream.format.sources import Sources
from crisp_stream.inspection.summary import describe_dataset
from crisp_stream.loading.reader import WindowReader, read_windows
from crisp_stream.writers.publishing.generations import delete_older
from tests.support.words import append_words, write_texts, write_words


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three files of documents."""
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def base(texts: list[str], tmp_path: Path) -> Path:
    """A dataset of the first."""
    write_words(texts[:1], tmp_path / "root")
    return tmp_path / "root"


def test_a_grown_dataset_is_described_with_its_generation(base: Path, texts: list[str]) -> None:
    assert "generation  " not in describe_dataset(open_dataset(base), level=1, limit=1)
    assert re.search(r"generation +1\n", describe_dataset(append_words(texts[1:2], base), level=1, limit=1))


def test_windows_of_every_generation_name_their_documents(base: Path, texts: list[str], tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "a.jsonl"
    other.parent.mkdir()
    shutil.copy(texts[1], other)
    append_words([str(other)], base)
    append_words(texts[2:], base)
    dataset = open_dataset(base)
    sources = document_spans(dataset, np.arange(dataset.manifest.num_windows))
    assert {span.source for source in sources for span in source.documents} == {"a.jsonl", "a.jsonl~2", "c.jsonl"}
    old = open_dataset(base, generation=0)
    before = document_spans(old, np.arange(old.manifest.num_windows))
    assert {span.source for source in before for span in source.documents} == {"a.jsonl"}


# mosaicml-streaming leaves the shard files that it reads to the garbage collector.
@pytest.mark.usefixtures("names_in_shared_memory")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_streaming_reads_the_newest_generation(base: Path, texts: list[str], tmp_path: Path) -> None:
    from streaming import StreamingDataset

    append_words(texts[1:2], base)
    grown = open_dataset(base)
    expected = read_windows(grown, np.arange(grown.manifest.num_windows))
    streamed = StreamingDataset(remote=str(base / "shards"), local=str(tmp_path / "cache"), batch_size=1, shuffle=False)
    assert len(streamed) == len(expected)
    for window in range(len(expected)):
        np.testing.assert_array_equal(streamed[window]["tokens"], expected["tokens"][window])


def _mixture(root: Path) -> Mixture:
    """Of windows that the tree places as it always did: histograms outlive generations."""
    dataset = open_dataset(root, generation=0)
    few = Histogram.from_leaves(dataset.leaves[:5].tolist(), dataset.tree, dataset.tree.depth, {})
    return Mixture([Phase(Histogram.base(dataset.manifest), 60), Phase(few)])


def test_a_run_goes_on_with_its_generation_bit_for_bit_and_is_refused_by_another(base: Path, texts: list[str]) -> None:
    mixture = _mixture(base)
    uninterrupted = MixtureDataset(base, mixture, batch_size=10)
    running = iter(MixtureDataset(base, mixture, batch_size=10))
    expected = [batch["input_ids"] for batch in itertools.islice(uninterrupted, 20)]
    state = uninterrupted.state_dict(num_samples=80)
    first = [next(running)["input_ids"] for _ in range(8)]
    append_words(texts[1:2], base)
    rest = [batch["input_ids"] for batch in itertools.islice(running, 12)]  # opened before the dataset grew
    assert all((one == other).all() for one, other in zip(expected, first + rest, strict=True))
    grown = MixtureDataset(base, mixture, batch_size=10)
    with pytest.raises(ResumeError, match=r"trained on generation 0 of .*, which has grown: .*data\.generation=0"):
        grown.load_state_dict(state)
    again = MixtureDataset(open_dataset(base, generation=0), mixture, batch_size=10)
    again.load_state_dict(state)
    resumed = [batch["input_ids"] for batch in itertools.islice(again, 12)]
    assert all((one == other).all() for one, other in zip(expected[8:], resumed, strict=True))
    ahead = grown.state_dict(num_samples=0)
    with pytest.raises(ResumeError, match="trained on generation 1"):
        again.load_state_dict(ahead)


def test_a_reader_of_a_pruned_generation_says_so(base: Path, texts: list[str]) -> None:
    old = open_dataset(base)
    with WindowReader(old) as reader:
        append_words(texts[1:2], base)
        delete_older(open_dataset(base))
        with pytest.raises(MissingObjectError, match=r"generation 0, which is being read, was deleted: .* --prune"):
            reader.read(np.arange(old.manifest.num_windows))


def test_continuing_from_a_checkpoint_of_an_older_generation_names_it(
    base: Path, texts: list[str], tmp_path: Path
) -> None:
    from crisp_stream.training.start import RunStart, phases_before

    state = MixtureDataset(base, _mixture(base), batch_size=10).state_dict(num_samples=0)
    grown = append_words(texts[1:2], base)
    recipe = {
        "run_name": "small",
        "max_duration": "4ba",
        "global_train_batch_size": 8,
        "data": {"remote": str(base)},
        "mixture": {"phases": [{"histogram": "checkpoint"}, {"histogram": "base"}]},
        "model": {"n_embd": 32, "n_layer": 1, "n_head": 2},
        "optimizer": {"lr": 0.01},
        "load_path": "ep0-ba1-rank0.pt",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    checkpoint = {"state": {"dataset_state": {"train": state}}}
    with pytest.raises(ResumeError, match=r"trained on generation 0 .* data\.generation=0"):
        phases_before(load_recipe(path, []), checkpoint, Sources(grown), RunStart())


def test_after_pruning_a_resume_of_the_old_generation_is_refused_as_of_another_dataset(
    base: Path, texts: list[str]
) -> None:
    mixture = _mixture(base)
    state = MixtureDataset(base, mixture, batch_size=10).state_dict(num_samples=0)
    append_words(texts[1:2], base)
    delete_older(open_dataset(base))
    with pytest.raises(ResumeError, match=r"dataset was .*Resume with what the checkpoint was trained with"):
        MixtureDataset(base, mixture, batch_size=10).load_state_dict(state)


def test_a_recipe_names_the_generation_it_trains_on(base: Path, texts: list[str], tmp_path: Path) -> None:
    from crisp_stream.training.prepare import prepare
    from crisp_stream.training.start import StartingPoint

    from_random_weights = StartingPoint(url=None, path=None, resumes=False)
    append_words(texts[1:2], base)
    recipe = {
        "run_name": "small",
        "max_duration": "4ba",
        "global_train_batch_size": 8,
        "data": {"remote": str(base)},
        "mixture": {"phases": [{"histogram": "base"}]},
        "model": {"n_embd": 32, "n_layer": 1, "n_head": 2},
        "optimizer": {"lr": 0.01},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    for override, generation in (([], 1), (["data.generation=0"], 0)):
        run = prepare(load_recipe(path, override), from_random_weights)
        assert run.dataset.manifest.generation == generation
        assert run.stream.dataset.manifest.generation == generation
    with pytest.raises(InputError, match="generation must be one that is there, got 7; the newest is 1"):
        prepare(load_recipe(path, ["data.generation=7"]), from_random_weights)
