from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crisp_stream.errors import InputError
from crisp_stream.format import EncoderRecord
from crisp_stream.writers import embed
from crisp_stream.writers.embed import DEFAULT_ENCODER, DEFAULT_WEIGHTS_SHA256, Encoder, matching_encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(max_length=32, device="cpu")


def test_the_default_is_the_published_minilm(encoder: Encoder) -> None:
    assert encoder.record() == EncoderRecord(
        name=DEFAULT_ENCODER, weights_sha256=DEFAULT_WEIGHTS_SHA256, max_length=32, pooling="mean", dim=384
    )


def test_vectors_are_unit_float16_and_near_for_near_meanings(encoder: Encoder) -> None:
    vectors = encoder.embed(["A cat sat on the mat.", "The cat is sitting on a rug.", "Interest rates rose again.", ""])
    assert vectors.dtype == np.float16
    assert vectors.shape == (4, 384)
    as_float = vectors.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(as_float, axis=1), 1, atol=2e-3)
    assert as_float[0] @ as_float[1] > 0.6 > 0.3 > as_float[0] @ as_float[2]
    assert encoder.embed([]).shape == (0, 384)


def test_only_the_first_word_pieces_are_read(encoder: Encoder) -> None:
    start = "one two three four five six seven eight nine ten " * 10
    one, other = encoder.embed([start + "medicine", start + "religion"])
    np.testing.assert_array_equal(one, other)


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
    other = Encoder(str(folder))
    assert other.name == "my-encoder"
    assert other.weights_sha256 != DEFAULT_WEIGHTS_SHA256
    with pytest.raises(InputError, match="must have the weights that embedded somewhere"):
        matching_encoder(encoder.record(), str(folder), "somewhere")
    assert matching_encoder(encoder.record(), None, "somewhere") == DEFAULT_ENCODER


def test_damaged_weights_of_the_default_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(embed, "_resolve", lambda name: (str(tmp_path), DEFAULT_ENCODER))
    with pytest.raises(InputError, match=r"the weights must have sha256 53aa51172d14"):
        Encoder().embed(["a"])


def test_encoders_that_cannot_be_loaded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"an encoder folder must hold model.safetensors or pytorch_model.bin, got neither"
    ):
        _ = Encoder(str(tmp_path)).weights_sha256
    with pytest.raises(InputError, match="encoder max_length: must be at least 1 word piece, got 0"):
        Encoder(max_length=0)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="encoder nobody/nothing: must be a folder, or a hub name that can be reached"):
        _ = Encoder("nobody/nothing").weights_sha256
