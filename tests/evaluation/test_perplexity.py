"""Perplexity against computations of other kinds, for any batch size, any number of processes, and in blocks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.evaluation import perplexity as module
from crisp_stream.evaluation.models import JudgedModel, check_names, open_model
from crisp_stream.evaluation.perplexity import encode_texts, example_rows, in_batches, judge_texts, perplexity
from crisp_stream.examples.hashes import example_hash
from crisp_stream.models.checkpoint import LoadedGPT
from crisp_stream.models.export import export
from crisp_stream.results.perplexity import summarise
from tests.support.independent import Independent, perplexities
from tests.support.small_runs import SmallRun, small_run

TEXTS = [
    "a short one",
    "b",
    "longer than the context of thirty-two tokens, and then some",
    "x" * 64,
    "q" * 33,
    "ünïcödé, 漢字",
    "<|endoftext|>",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(done: SmallRun) -> JudgedModel:
    return open_model(str(done.checkpoint(12)))


@pytest.fixture(scope="module")
def folder(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    return export(str(done.checkpoint(12)), tmp_path_factory.mktemp("export") / "model")


def separate(model: JudgedModel) -> LoadedGPT:
    """The model as if it had been trained on separate documents."""
    loaded = model.loaded
    return LoadedGPT(gpt=loaded.gpt, tokenizer=loaded.tokenizer, provenance={"packing": "document"})


def test_all_figures_equal_those_of_transformers_one_text_at_a_time(model: JudgedModel, folder: str) -> None:
    other = [Independent(folder).text(text) for text in TEXTS]
    results = judge_texts(model, TEXTS, set_name="held")
    np.testing.assert_allclose(results.loss_sums, [text["loss"] for text in other], rtol=1e-5)
    assert results.num_tokens.tolist() == [text["tokens"] for text in other]
    assert results.num_bytes.tolist() == [text["bytes"] for text in other]
    summary, expected = summarise(results), perplexities(other)
    assert summary.perplexity == pytest.approx(expected["perplexity"], rel=1e-5)
    assert summary.token_level_perplexity == pytest.approx(expected["token_level"], rel=1e-5)
    assert summary.bits_per_byte == pytest.approx(expected["bits_per_byte"], rel=1e-5)
    assert (summary.num_examples, summary.num_empty) == (len(TEXTS), 0)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_does_not_matter(model: JudgedModel, batch_size: int) -> None:
    losses = judge_texts(model, TEXTS, set_name="held", batch_size=batch_size).losses
    np.testing.assert_allclose(losses, judge_texts(model, TEXTS, set_name="held").losses, rtol=1e-5)


def test_a_set_that_is_judged_in_many_blocks_gives_the_same(
    model: JudgedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    whole = judge_texts(model, TEXTS, set_name="held")
    monkeypatch.setattr(module, "_BLOCK_CHARACTERS", 40)
    blocks = judge_texts(model, iter(TEXTS), set_name="held", progress=done.append)
    np.testing.assert_allclose(blocks.loss_sums, whole.loss_sums, rtol=1e-6)
    assert blocks.fingerprint == whole.fingerprint
    assert len(done) > 3
    assert sum(done) == len(TEXTS)


def test_a_batch_holds_at_most_so_many_full_contexts_padding_included() -> None:
    rows = [(number, [0] * length) for number, length in enumerate([2, 33, 5, 5, 17, 33, 3, 9])]
    batches = list(in_batches(rows, batch_size=2, n_positions=32))
    assert sorted(row for batch in batches for row in batch) == sorted(rows)
    assert all(len(batch) * (max(len(row) for _, row in batch) - 1) <= 64 for batch in batches)
    assert max(map(len, batches)) > 2


def test_an_exported_folder_is_judged_like_its_checkpoint(model: JudgedModel, folder: str) -> None:
    exported = open_model(folder)
    assert perplexity(exported.loaded, TEXTS).perplexity == perplexity(model.loaded, TEXTS).perplexity
    assert exported.record.name == model.record.name == "small-ba12"
    assert exported.record.tokenizer_fingerprint == model.record.tokenizer_fingerprint
    assert exported.record.mixture_fingerprint == model.record.mixture_fingerprint


def test_a_save_folder_means_its_newest_checkpoint(done: SmallRun) -> None:
    record = open_model(str(done.save_folder)).record
    assert (record.batch, record.tokens, record.run_name) == (12, 12 * 8 * 32, "small")
    assert record.histograms == ["base", "task.histogram"]
    assert open_model(str(done.checkpoint(4)), name="early").record.name == "early"


def test_two_models_of_one_name_are_an_error(model: JudgedModel) -> None:
    with pytest.raises(InputError, match="got 2 models called small-ba12"):
        check_names([model.record.name, model.record.name])


def test_training_lowers_the_perplexity_of_text_like_the_corpus(done: SmallRun) -> None:
    texts = ["".join(chr(97 + (7 * i + j * j) % 26) for j in range(40)) for i in range(8)]
    assert perplexity(done.checkpoint(12), texts).perplexity < perplexity(done.checkpoint(4), texts).perplexity / 2


def test_every_token_is_predicted_once() -> None:
    tokens = list(range(100, 170))
    for context, first in ((7, 0), (None, 1)):
        rows = example_rows(tokens, context_token=context, n_positions=32)
        assert [token for row in rows for token in row[1:]] == tokens[first:]
        assert all(2 <= len(row) <= 33 for row in rows)
    assert example_rows([], context_token=7, n_positions=32) == []
    assert example_rows([1], context_token=None, n_positions=32) == []


def test_a_model_of_separate_documents_is_given_the_first_token(model: JudgedModel) -> None:
    result = perplexity(separate(model), [*TEXTS, "", "z"])
    assert result.num_tokens == perplexity(model.loaded, TEXTS).num_tokens - len(TEXTS)
    assert (result.num_examples, result.num_empty) == (len(TEXTS) - 1, 3)
    encoded = encode_texts(separate(model), ["abcd"])[0]
    assert encoded.num_bytes == 3


def test_end_of_text_inside_a_text_is_plain_text(model: JudgedModel) -> None:
    assert perplexity(model.loaded, ["<|endoftext|>"]).num_tokens == len("<|endoftext|>")


def test_empty_texts_are_left_out_and_counted_and_the_others_keep_their_places(model: JudgedModel) -> None:
    results = judge_texts(model, ["", "abc", "", "de"], set_name="held")
    assert results.num_empty == 2
    assert results.example_ids.tolist() == [example_hash("abc"), example_hash("de")]
    np.testing.assert_allclose(results.losses, judge_texts(model, ["abc", "de"], set_name="held").losses, rtol=1e-6)


def test_nothing_to_judge_is_an_error(model: JudgedModel) -> None:
    with pytest.raises(InputError, match="got none in 0 texts"):
        perplexity(model.loaded, [])
    with pytest.raises(InputError, match="got none in 2 texts"):
        perplexity(model.loaded, ["", ""])
    with pytest.raises(InputError, match="batch size: must be 1 or more"):
        perplexity(model.loaded, TEXTS, batch_size=0)


def test_the_tokenizer_of_another_model_is_an_error(folder: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in Path(folder).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    text = (other / "tokenizer.json").read_text()
    assert text.count('"ÿ": 255') == 1
    (other / "tokenizer.json").write_text(text.replace('"ÿ": 255', '"ÿ": 300'))
    with pytest.raises(FormatError, match=r"its tokenizer must have ids below 260, .* got 300"):
        open_model(str(other))


def test_intervals_hold_the_figure_and_narrow_with_more_examples(model: JudgedModel) -> None:
    rng = np.random.default_rng(3)
    texts = ["".join(map(chr, rng.integers(97, 123, 40))) for _ in range(160)]
    few, many = (summarise(judge_texts(model, part, set_name="held")) for part in (texts[:10], texts))
    for summary in (few, many):
        assert summary.interval.low < summary.perplexity < summary.interval.high
        assert summary.token_level_interval.low < summary.token_level_perplexity < summary.token_level_interval.high
        assert summary.bits_per_byte_interval.low < summary.bits_per_byte < summary.bits_per_byte_interval.high
    assert many.interval.high - many.interval.low < (few.interval.high - few.interval.low) / 2
    assert math.isnan(summarise(judge_texts(model, texts[:1], set_name="held")).interval.low)
