"""Encoders of other builds than the default: sharded, with a dense head, static, with a prompt; and what tells them
apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.writers.embedding.embed import Encoder, EncoderChoice, matching_encoder
from crisp_stream.writers.embedding.encoder_files import resolve_encoder
from crisp_stream.writers.embedding.static import StaticEncoder
from crisp_stream.writers.embedding.text_encoder import TextEncoder
from tests.support.encoders import keep_encoder, make_static, normalise_before_the_head, pool_by_the_first, with_json
from tests.support.written_dataset import TOPICS

TEXTS = ["A cat sat on the mat.", TOPICS[0][:700], "", "Ångström 中文"]


def copied(folder: Path) -> Path:
    shutil.copytree(resolve_encoder(None)[0], folder)
    return folder


def cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def opened(folder: Path, **settings: Any) -> TextEncoder:
    return EncoderChoice(name=str(folder), **settings).open(device="cpu")


def shard(folder: Path) -> None:
    """Two files of weights and an index instead of one file."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[:50], "model-00002-of-00002.safetensors": names[50:]}
    for file, members in files.items():
        safetensors.torch.save_file({name: weights[name] for name in members}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, members in files.items() for name in members}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def add_head(folder: Path, *, seed: int = 0) -> None:
    """A dense head of 24 numbers behind the pooling, as sentence-transformers saves it."""
    modules = json.loads((folder / "modules.json").read_text())
    modules[2] = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps(modules))
    head = folder / "2_Dense"
    head.mkdir(exist_ok=True)
    activation = "torch.nn.modules.activation.Tanh"
    settings = {"in_features": 384, "out_features": 24, "bias": True, "activation_function": activation}
    (head / "config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "linear.weight": torch.randn(24, 384, generator=generator),
        "linear.bias": torch.randn(24, generator=generator),
    }
    safetensors.torch.save_file(weights, head / "model.safetensors")


def test_sharded_weights_embed_as_one_file_does(tmp_path: Path) -> None:
    folder = copied(tmp_path / "sharded")
    whole = opened(folder, max_length=32)
    expected, digest = whole.embed(TEXTS), whole.weights_sha256
    shard(folder)
    sharded = opened(folder, max_length=32)
    np.testing.assert_array_equal(sharded.embed(TEXTS), expected)
    assert sharded.weights_sha256 != digest
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"index of weights names 2 files, of which model-00002-of-00002.safetensors"):
        _ = opened(folder, max_length=32).weights_sha256


def test_a_dense_head_embeds_as_sentence_transformers_does(tmp_path: Path) -> None:
    folder = copied(tmp_path / "headed")
    add_head(folder)
    encoder = Encoder(str(folder), max_length=32, device="cpu")
    model: Any = encoder.model
    expected = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    assert cosines(encoder.embed(TEXTS), expected).min() > 0.99999
    assert encoder.record().dim == 24


def test_a_static_encoder_embeds_as_sentence_transformers_does(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "static"
    make_static(folder)
    encoder = opened(folder)
    assert isinstance(encoder, StaticEncoder)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    found = encoder.embed(TEXTS)
    assert cosines(found[[0, 1, 3]], expected[[0, 1, 3]]).min() > 0.99999
    assert found[2].tolist() == [1, *[0] * 11]  # no token: every vector has a norm
    digest = encoder.weights_sha256
    assert encoder.record() == EncoderRecord(
        name="static", weights_sha256=digest, max_length=0, pooling="static", dim=12
    )
    keep_encoder(tmp_path, encoder)
    assert matching_encoder(encoder.record(), str(folder), str(tmp_path)).open().weights_sha256 == digest
    assert EncoderChoice(name=str(folder)).is_light
    for settings, option in (({"max_length": 8}, "max_length"), ({"reads": "all"}, "reads")):
        with pytest.raises(InputError, match=f"{option}: must be left out with the static encoder static"):
            opened(folder, **settings)


def test_a_quantised_table_of_model2vec_is_read_by_its_mapping_and_weights(tmp_path: Path) -> None:
    folder = tmp_path / "static"
    make_static(folder, dim=4)
    expected = opened(folder).embed(TEXTS)
    table = safetensors.torch.load_file(folder / "model.safetensors")["embedding.weight"]
    mapping = torch.arange(len(table)).flip(0)
    arrays = {"embeddings": table.flip(0).contiguous(), "mapping": mapping.contiguous()}
    (folder / "model.safetensors").unlink()
    safetensors.torch.save_file({**arrays, "weights": torch.full((len(table),), 2.0)}, folder / "model.safetensors")
    np.testing.assert_allclose(opened(folder).embed(TEXTS), expected, atol=1e-3)


def test_a_prompt_that_is_asked_for_is_recorded_and_used_for_examples_too(tmp_path: Path) -> None:
    encoder = Encoder(max_length=32, prompt="query: ", device="cpu")
    model: Any = encoder.model
    expected = model.encode([f"query: {text}" for text in TEXTS], normalize_embeddings=True, show_progress_bar=False)
    assert cosines(encoder.embed(TEXTS), expected).min() > 0.99999
    record = encoder.record()
    assert record.prompt == "query: "
    keep_encoder(tmp_path, encoder)
    choice = matching_encoder(record, None, str(tmp_path))
    np.testing.assert_array_equal(choice.open(device="cpu").pieces(TEXTS).ids, encoder.pieces(TEXTS).ids)
    plain = Encoder(max_length=32)
    assert plain.weights_sha256 != encoder.weights_sha256
    assert plain.pieces(["a"]).ids.tolist() != encoder.pieces(["a"]).ids.tolist()


def test_an_empty_prompt_turns_off_the_one_that_the_encoder_ships_with(tmp_path: Path) -> None:
    folder = copied(tmp_path / "prompted")
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    plain = Encoder(max_length=32).pieces(["a cat"]).ids.tolist()
    assert Encoder(str(folder), max_length=32).pieces(["a cat"]).ids.tolist() != plain
    assert Encoder(str(folder), max_length=32, prompt="").pieces(["a cat"]).ids.tolist() == plain


def _other_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase":true', '"lowercase":false'))


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights of the head": lambda folder: add_head(folder, seed=1),
    "activation of the head": lambda folder: with_json(
        folder / "2_Dense" / "config.json", activation_function="torch.nn.modules.linear.Identity"
    ),
    "pooling": pool_by_the_first,
    "normalisation before the head": normalise_before_the_head,
    "shape of the network": lambda folder: with_json(folder / "config.json", hidden_act="relu"),
    "tokenizer": _other_vocabulary,
    "lower-casing": lambda folder: with_json(folder / "sentence_bert_config.json", do_lower_case=True),
    "length": lambda folder: with_json(folder / "sentence_bert_config.json", max_seq_length=64),
    "case of the tokenizer": lambda folder: with_json(folder / "tokenizer_config.json", do_lower_case=False),
    "prompt": lambda folder: (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"q": "q: "}, "default_prompt_name": "q"})
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_a_vector_changes_the_digest(change: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "encoder")
    add_head(folder)
    before = Encoder(str(folder)).weights_sha256
    CHANGES[change](folder)
    assert Encoder(str(folder)).weights_sha256 != before


def _save_pooling_as_newer_versions_do(folder: Path) -> None:
    config = {"embedding_dimension": 384, "pooling_mode": "mean", "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


NEUTRAL: dict[str, Callable[[Path], object]] = {
    "another version of transformers": lambda folder: with_json(folder / "config.json", transformers_version="5.0.0"),
    "pooling saved by another version": _save_pooling_as_newer_versions_do,
    "no last Normalize": lambda folder: (folder / "modules.json").write_text(
        json.dumps(json.loads((folder / "modules.json").read_text())[:2])
    ),
    "a model card": lambda folder: (folder / "README.md").write_text("other"),
    "truncation that does not apply": lambda folder: with_json(folder / "tokenizer.json", truncation=None),
}


@pytest.mark.parametrize("change", NEUTRAL)
def test_what_decides_no_vector_leaves_the_digest_as_it_is(change: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "encoder")
    before = Encoder(str(folder)).weights_sha256
    NEUTRAL[change](folder)
    assert Encoder(str(folder)).weights_sha256 == before


def test_modules_that_are_not_known_are_named(tmp_path: Path) -> None:
    folder = copied(tmp_path / "encoder")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match=r"its modules must be of Transformer, .*, got LSTM"):
        _ = Encoder(str(folder)).weights_sha256
    (folder / "modules.json").write_text("{")
    with pytest.raises(InputError, match=r"modules.json must be JSON, got"):
        _ = Encoder(str(folder)).weights_sha256
