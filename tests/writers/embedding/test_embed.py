from __future__ import annotations

import dataclasses
import importlib
import json
import pydoc_data.topics
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from benchmarks.writing import embed_section
from crisp_stream.errors import InputError
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.hashing import file_sha256
from crisp_stream.writers.embedding import embed
from crisp_stream.writers.embedding.embed import Encoder, EncoderChoice, matching_encoder
from crisp_stream.writers.embedding.encoder_files import DEFAULT_ENCODER, DEFAULT_WEIGHTS_SHA256, resolve_encoder
from crisp_stream.writers.embedding.pieces import Pieces, pad_batches, says_everything, splits_at_blanks
from crisp_stream.writers.windows import train_tokenizer
from tests.support.encoders import keep_encoder

TOPICS = [text for _, text in sorted(pydoc_data.topics.topics.items())]
ODD_TEXTS = [
    "",
    " \n\t",
    "ÅNGSTRÖM café 中文字 🙂\u200d↔️",
    "[SEP] [MASK]tail",
    "x" * 3000,
    "no-blank," * 600,
    "a " * 700,
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(max_length=32, device="cpu")


@pytest.fixture(scope="module")
def whole(encoder: Encoder) -> Encoder:
    """Reads all, with the model of the other."""
    whole = Encoder(max_length=32, reads="all", device="cpu")
    whole.__dict__["_loaded"] = encoder._loaded
    return whole


def as_loaded(encoder: Encoder) -> Any:
    """The sentence-transformers model that an encoder holds."""
    return encoder.model


def flat(sequences: list[list[int]]) -> list[int]:
    return [number for sequence in sequences for number in sequence]


def cosines(one: Any, other: Any) -> Any:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def test_the_default_is_the_published_minilm(encoder: Encoder) -> None:
    assert encoder.record() == EncoderRecord(
        name=DEFAULT_ENCODER, weights_sha256=encoder.weights_sha256, max_length=32, pooling="mean", dim=384
    )
    assert file_sha256(Path(resolve_encoder(None)[0]) / "model.safetensors") == DEFAULT_WEIGHTS_SHA256
    assert Encoder().max_length == 256


def test_vectors_are_unit_float16_and_near_for_near_meanings(encoder: Encoder) -> None:
    vectors = encoder.embed(["A cat sat on the mat.", "The cat is sitting on a rug.", "Interest rates rose again.", ""])
    assert vectors.dtype == np.float16
    assert vectors.shape == (4, 384)
    as_float = vectors.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(as_float, axis=1), 1, atol=2e-3)
    assert as_float[0] @ as_float[1] > 0.6 > 0.3 > as_float[0] @ as_float[2]
    assert encoder.embed([]).shape == (0, 384)


def test_ids_and_vectors_equal_those_of_sentence_transformers(encoder: Encoder) -> None:
    texts = [*TOPICS[:40], *ODD_TEXTS]
    pieces = encoder.pieces(texts)
    model = as_loaded(encoder)
    assert pieces.ids.tolist() == flat(
        model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"]
    )
    expected = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    found = encoder.embed_pieces(pieces)
    assert cosines(found, expected).min() > 0.99999
    assert (found == expected.astype(np.float16)).mean() > 0.99


def test_a_text_cut_before_tokenising_has_the_ids_of_the_whole_text() -> None:
    for max_length in (8, 64, 256):
        encoder = Encoder(max_length=max_length)
        texts = [*TOPICS, *ODD_TEXTS]
        stretches = Encoder(max_length=max_length, reads="all").pieces(texts)
        first = np.cumsum(stretches.sequences_per_text) - stretches.sequences_per_text
        starts = np.cumsum(stretches.lengths) - stretches.lengths
        pieces = encoder.pieces(texts)
        assert pieces.lengths.max() == max_length
        np.testing.assert_array_equal(pieces.lengths, stretches.lengths[first])
        expected = [stretches.ids[starts[row] : starts[row] + stretches.lengths[row]] for row in first]
        np.testing.assert_array_equal(pieces.ids, np.concatenate(expected))


def test_only_the_first_word_pieces_are_read(encoder: Encoder) -> None:
    start = "one two three four five six seven eight nine ten " * 10
    one, other = encoder.embed([start + "medicine", start + "religion"])
    np.testing.assert_array_equal(one, other)


def test_reading_all_is_the_mean_of_the_token_vectors_of_every_stretch(whole: Encoder) -> None:
    texts = ["A short text.", TOPICS[0][:700], TOPICS[1][:300]]
    pieces = whole.pieces(texts)
    assert pieces.sequences_per_text[0] == 1
    assert pieces.sequences_per_text[1] > 3
    model = as_loaded(whole)
    plain = model.tokenizer(texts[1], add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    stretches = [[101, *plain[at : at + 30], 102] for at in range(0, len(plain), 30)]
    start, number = pieces.lengths[0], pieces.sequences_per_text[1]
    length = pieces.lengths[1 : 1 + number].sum()
    assert pieces.ids[start : start + length].tolist() == flat(stretches)
    vectors = np.concatenate([token_vectors(model, stretch) for stretch in stretches])
    found = whole.embed_pieces(pieces)
    assert cosines(found[1:2], vectors.mean(axis=0, keepdims=True))[0] > 0.99999
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float32), axis=1), 1, atol=2e-3)
    assert whole.record().reads == "all"


def token_vectors(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        tensor = torch.tensor([ids])
        return model[0]({"input_ids": tensor, "attention_mask": torch.ones_like(tensor)})["token_embeddings"][0].numpy()


def test_a_text_of_one_stretch_is_embedded_alike_in_both_ways(encoder: Encoder, whole: Encoder) -> None:
    texts = ["A cat sat on the mat.", "", "Interest rates rose."]
    np.testing.assert_allclose(encoder.embed(texts), whole.embed(texts), atol=1e-3)


def test_pieces_need_neither_torch_nor_the_model() -> None:
    script = (
        "import sys; from crisp_stream.writers.embedding.embed import Encoder; "
        "print(Encoder().pieces(['A cat.', 'sat']).ids.tolist(), "
        "{'torch', 'transformers', 'sentence_transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[101, 1037, 4937, 1012, 102, 101, 2938, 102] set()"


def test_saved_pieces_load_as_they_were_with_equal_bytes(tmp_path: Path, whole: Encoder) -> None:
    pieces = whole.pieces(TOPICS[:5])
    assert pieces.ids.dtype == np.uint16
    for name in ("one", "two"):
        pieces.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    loaded = Pieces.load(tmp_path / "one")
    for field in dataclasses.fields(Pieces):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(pieces, field.name))
    assert len(loaded) == 5
    assert Pieces.from_sequences([[[1, 70_000]]], 70_001).ids.dtype == np.uint32


def test_batches_hold_every_sequence_once_within_the_budget_on_either_side() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 100).astype(np.int32)
    ids = rng.integers(1, 1000, lengths.sum()).astype(np.uint16)
    pieces = Pieces(ids, lengths, np.ones(100, np.int32))
    starts = np.cumsum(lengths) - lengths
    for left in (False, True):
        batches = list(pad_batches(pieces, 128, pad_id=0, left=left))
        assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(100))
        assert max(batch.ids.size for batch in batches) <= 128
        for batch in batches:
            assert batch.ids.shape[1] == batch.lengths.max()
            for row, padded, length in zip(batch.rows, batch.ids, batch.lengths, strict=True):
                sequence = ids[starts[row] : starts[row] + length]
                padding = np.zeros(len(padded) - length)
                expected = [padding, sequence] if left else [sequence, padding]
                np.testing.assert_array_equal(padded, np.concatenate(expected))
    one = list(pad_batches(pieces, 8, pad_id=0, left=False))
    assert one[0].ids.shape == (1, lengths.max())


def test_the_benchmark_of_this_stage_times_every_side_in_turn(tmp_path: Path) -> None:
    train_tokenizer(TOPICS, tmp_path, vocab_size=600)
    texts = TOPICS[:12]
    rows, notes = embed_section.tokenising(texts, 1, tmp_path)
    assert len(rows) == 5
    assert all(row["rate"] > 1000 for row in rows)
    assert "all ids equal" in notes[0]
    windows = embed_section.windows_of(texts, 3, DocumentTokenizer(tmp_path))
    rows, notes = embed_section.embedding(windows, 1, "cpu")
    assert [row["side"] for row in rows if "ratio" not in row] == ["pieces to stored vectors"]
    assert len(rows) == 4
    assert "lowest cosine to SentenceTransformer.encode 1.00000" in notes[0] or "0.9999" in notes[0]


def test_the_number_of_torch_threads_changes_nothing_and_is_restored(encoder: Encoder) -> None:
    import torch

    texts = [f"Sentence number {number} about compilers and cats." for number in range(40)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = encoder.embed(texts)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        np.testing.assert_array_equal(two, encoder.embed(texts))
    finally:
        torch.set_num_threads(threads)


def test_a_folder_is_recorded_by_its_base_name_and_its_own_weights(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "my-encoder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"other weights")
    other = Encoder(str(folder), max_length=32)
    assert other.name == "my-encoder"
    keep_encoder(tmp_path, encoder)
    with pytest.raises(InputError, match=r"must be the one that embedded .*, got another one; what differs: .*weights"):
        matching_encoder(encoder.record(), str(folder), str(tmp_path))


def test_a_matching_encoder_reads_as_the_dataset_was_read(encoder: Encoder, whole: Encoder, tmp_path: Path) -> None:
    keep_encoder(tmp_path, whole)
    choice = replace(matching_encoder(whole.record(), None, str(tmp_path)), probe=None)
    assert choice == EncoderChoice(name=DEFAULT_ENCODER, max_length=32, reads="all", prompt="")
    opened = choice.open(device="cpu")
    assert isinstance(opened, Encoder)
    assert (opened.name, opened.max_length, opened.reads) == (DEFAULT_ENCODER, 32, "all")
    keep_encoder(tmp_path, encoder)
    assert matching_encoder(encoder.record(), None, str(tmp_path)).reads == "first"


def copied_encoder(folder: Path, **tokenizer_config: object) -> Path:
    """The default encoder in another folder, with changes to tokenizer_config.json."""
    source = Path(resolve_encoder(None)[0])
    shutil.copytree(source, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **tokenizer_config}))
    return folder


def test_a_tokenizer_that_its_config_overrules_is_used_as_the_model_loads_it(tmp_path: Path) -> None:
    folder = copied_encoder(tmp_path / "cased", do_lower_case=False)
    encoder = Encoder(str(folder), max_length=32, device="cpu")
    texts = ["A Cat SAT.", *TOPICS[:5]]
    pieces = encoder.pieces(texts)
    model = as_loaded(encoder)
    ids = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"]
    assert pieces.ids.tolist() == flat(ids)
    assert pieces.ids[:4].tolist() != Encoder(max_length=32).pieces(texts).ids[:4].tolist()


def test_a_tokenizer_without_tokenizer_json_gives_the_same_pieces(tmp_path: Path, encoder: Encoder) -> None:
    folder = copied_encoder(tmp_path / "vocabulary")
    (folder / "tokenizer.json").unlink()
    other = Encoder(str(folder), max_length=32, device="cpu")
    np.testing.assert_array_equal(other.pieces(TOPICS[:5]).ids, encoder.pieces(TOPICS[:5]).ids)


def slow_bert() -> Any:
    """The class of BERT's tokenizer in Python: transformers 5 has it under another name."""
    try:
        return importlib.import_module("transformers.models.bert.tokenization_bert_legacy").BertTokenizerLegacy
    except ModuleNotFoundError:
        return importlib.import_module("transformers").BertTokenizer


def test_a_slow_tokenizer_gives_the_same_pieces(encoder: Encoder, whole: Encoder) -> None:
    slow = slow_bert().from_pretrained(resolve_encoder(None)[0])
    assert not slow.is_fast
    texts = [*TOPICS[:3], *ODD_TEXTS[:4]]
    for expected in (encoder, whole):
        splitter = embed.SlowSplitter(slow, max_length=32, reads=expected.reads)
        found = Pieces.from_sequences(splitter.sequences(texts), splitter.vocab_size)
        np.testing.assert_array_equal(found.ids, expected.pieces(texts).ids)
        np.testing.assert_array_equal(found.sequences_per_text, expected.pieces(texts).sequences_per_text)


def test_loading_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    Encoder(max_length=32, device="cpu").embed(["a cat"])
    assert capfd.readouterr().err == ""


def test_weights_in_half_precision_are_computed_with_in_float32(tmp_path: Path) -> None:
    folder = copied_encoder(tmp_path / "half")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    half = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    (folder / "model.safetensors").unlink()
    safetensors.torch.save_file(half, folder / "model.safetensors", {"format": "pt"})
    encoder = Encoder(str(folder), max_length=32, device="cpu")
    assert {parameter.dtype for parameter in as_loaded(encoder).parameters()} == {torch.float32}


def test_a_prompt_stands_before_every_text(tmp_path: Path) -> None:
    folder = copied_encoder(tmp_path / "prompted")
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    encoder = Encoder(str(folder), max_length=32, device="cpu")
    expected = as_loaded(encoder).encode(["a cat"], normalize_embeddings=True, show_progress_bar=False)
    assert cosines(encoder.embed(["a cat"]), expected)[0] > 0.99999


def test_which_tokenizers_may_be_cut_and_taken_as_they_are() -> None:
    content = json.loads((Path(resolve_encoder(None)[0]) / "tokenizer.json").read_text())
    assert splits_at_blanks(content)
    assert not splits_at_blanks({**content, "pre_tokenizer": {"type": "Metaspace"}})
    assert not splits_at_blanks({**content, "normalizer": None})
    assert not splits_at_blanks({**content, "added_tokens": [{"content": "two words"}]})
    assert says_everything(content, {})
    assert not says_everything(content, {"do_lower_case": False})
    assert not says_everything(content, {"tokenize_chinese_chars": False})
    assert says_everything({"normalizer": None}, {"do_lower_case": False})


def test_damaged_weights_of_the_default_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(embed, "resolve_encoder", lambda name: (str(tmp_path), DEFAULT_ENCODER))
    with pytest.raises(InputError, match=r"the weights must have sha256 53aa51172d14"):
        Encoder(max_length=32).embed(["a"])


def test_encoders_that_cannot_be_loaded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError,
        match=r"must have model.safetensors or pytorch_model.bin \(or their index\), got neither",
    ):
        _ = Encoder(str(tmp_path)).weights_sha256
    with pytest.raises(InputError, match="encoder max_length: must be at least 1 word piece, got 0"):
        Encoder(max_length=0)
    with pytest.raises(InputError, match="encoder reads: must be first or all, got 'last'"):
        Encoder(reads="last")  # type: ignore[arg-type]
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="encoder nobody/nothing: must be a folder, or a hub name that can be reached"):
        _ = Encoder("nobody/nothing").weights_sha256


def test_lengths_that_the_encoder_does_not_have_are_refused() -> None:
    with pytest.raises(InputError, match="encoder max_length: must be more than the 2 special tokens"):
        Encoder(max_length=2).pieces(["a"])
    with pytest.raises(InputError, match=r"encoder max_length: .* has 512 positions, got 600"):
        Encoder(max_length=600, device="cpu").embed(["a"])
