"""The same encoder: every part of it that differs is named, and vectors that differ in spite of equal files are refused
by every command that embeds for a dataset."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from crisp_stream.cli.main import main
from crisp_stream.counting.count_examples import count_examples
from crisp_stream.counting.embedded_examples import ExampleSources
from crisp_stream.errors import FormatError, InputError
from crisp_stream.evaluation.embedded_sets import embed_first_windows
from crisp_stream.format.dataset import open_dataset
from crisp_stream.inspection.verify import verify_dataset
from crisp_stream.selection.embed_windows import embed_windows
from crisp_stream.writers.append import append
from crisp_stream.writers.embedding.embed import EncoderChoice, matching_encoder
from crisp_stream.writers.embedding.probe import ENCODER_FILE, MIN_COSINE, PROBE_TEXTS, EncoderFile, Probe
from crisp_stream.writers.estimate import estimate_write
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.tree_command import fit
from crisp_stream.writers.write import models_of, write
from tests.support.encoders import (
    keep_encoder,
    make_static,
    make_tiny,
    normalise_before_the_head,
    pool_by_the_first,
    with_json,
)
from tests.support.written_dataset import files_below, small_options

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of one layer with a dense head, random weights."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


def _other_weights(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    changed = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    safetensors.torch.save_file(changed, folder / "model.safetensors", {"format": "pt"})


def _other_head(folder: Path) -> None:
    path = folder / "2_Dense" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: value.flip(0).contiguous() for name, value in weights.items()}, path)


def _without_head(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))


def _in_half_precision(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    halves = {name: value.half() for name, value in weights.items()}
    safetensors.torch.save_file(halves, folder / "model.safetensors", {"format": "pt"})
    with_json(folder / "config.json", dtype="float16", torch_dtype="float16")


def _other_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"river"', '"rivexx"'))


def _prompt(folder: Path) -> None:
    settings = {"prompts": {"q": "query: "}, "default_prompt_name": "q"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))


def _lower_in_the_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase":true', '"lowercase":false'))


CHANGES: dict[str, tuple[Change, str]] = {
    "weights": (_other_weights, r"what differs: weights\."),
    "head": (_other_head, r"what differs: head\."),
    "no head": (
        _without_head,
        r"what differs: modules \(Transformer, Pooling, was Transformer, Pooling, Dense\), head\.",
    ),
    "activation of the head": (
        lambda folder: with_json(
            folder / "2_Dense" / "config.json", activation_function="torch.nn.modules.linear.Identity"
        ),
        r"what differs: head\.",
    ),
    "pooling": (pool_by_the_first, r"what differs: pooling \(cls, was mean\)\."),
    "prompt": (_prompt, r"what differs: stated prompt \(query: , was none\)\."),
    "lower-casing": (
        lambda folder: with_json(folder / "sentence_bert_config.json", do_lower_case=True),
        r"what differs: lower-casing\.",
    ),
    "lower-casing in the tokenizer": (_lower_in_the_tokenizer, r"what differs: lower-casing\."),
    "lower-casing in its settings": (
        lambda folder: with_json(folder / "tokenizer_config.json", do_lower_case=False),
        r"what differs: lower-casing\.",
    ),
    "length": (
        lambda folder: with_json(folder / "sentence_bert_config.json", max_seq_length=64),
        r"what differs: stated length \(64, was 128\)\.",
    ),
    "normalisation": (normalise_before_the_head, r"what differs: normalisation \(behind Pooling, was none\)\."),
    "dtype": (_in_half_precision, r"what differs: weights, dtype \(float16, was float32\)\."),
    "tokenizer": (_other_tokens, r"what differs: tokenizer\."),
    "network": (lambda folder: with_json(folder / "config.json", hidden_act="relu"), r"what differs: network\."),
}


@pytest.fixture(scope="module")
def embedded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The record of the tiny encoder, and a root that keeps its parts and vectors."""
    root = tmp_path_factory.mktemp("root")
    encoder = EncoderChoice(name=str(tiny)).open(device="cpu")
    keep_encoder(root, encoder)
    return encoder.record(), root


@pytest.mark.parametrize("change", CHANGES)
def test_an_encoder_of_which_a_part_was_changed_is_refused_and_the_part_named(
    change: str, tiny: Path, embedded: Any, tmp_path: Path
) -> None:
    record, root = embedded
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    apply, message = CHANGES[change]
    apply(folder)
    with pytest.raises(InputError, match=rf"must be the one that embedded .*{message} Pass the folder or hub name"):
        matching_encoder(record, str(folder), str(root))


@pytest.mark.parametrize("option", ["prompt", "max_length", "reads"])
def test_prompt_length_and_reading_that_the_dataset_used_are_parts_too(option: str, tiny: Path, embedded: Any) -> None:
    chosen: Any = {"prompt": "q: ", "max_length": 16, "reads": "all"}[option]
    other = EncoderChoice(name=str(tiny), **{option: chosen}).open(device="cpu")
    assert other.weights_sha256 != embedded[0].weights_sha256


def test_the_same_folder_copied_elsewhere_is_accepted(tiny: Path, embedded: Any, tmp_path: Path) -> None:
    record, root = embedded
    folder = Path(shutil.copytree(tiny, tmp_path / "of another name"))
    encoder = matching_encoder(record, str(folder), str(root)).open(device="cpu")
    expected = EncoderChoice(name=str(tiny)).open(device="cpu").embed(PROBE_TEXTS)
    np.testing.assert_array_equal(encoder.embed(PROBE_TEXTS), expected)
    assert encoder.record() == dataclasses.replace(record, name="of another name")


@pytest.mark.parametrize("change", ["weights", "head", "no head", "activation of the head", "pooling", "network"])
def test_the_probe_alone_tells_what_the_files_would(change: str, tiny: Path, embedded: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    CHANGES[change][0](folder)
    kept = EncoderFile.from_json((embedded[1] / ENCODER_FILE).read_bytes(), "here")
    probe = Probe(kept=kept, encoder="tiny", root="here")
    encoder = EncoderChoice(name=str(folder), probe=probe).open(device="cpu")
    with pytest.raises(InputError, match="Its files and settings are equal, but its vectors differ"):
        encoder.embed(["a text"])


def test_an_encoder_that_rounds_otherwise_is_accepted(tiny: Path, embedded: Any) -> None:
    kept = EncoderFile.from_json((embedded[1] / ENCODER_FILE).read_bytes(), "here")
    encoder: Any = EncoderChoice(name=str(tiny)).open(device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        cosines = kept.cosines(encoder.embed(PROBE_TEXTS))
    assert MIN_COSINE < cosines.min() < 1 - 1e-6


@pytest.fixture(scope="module")
def static_root(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A dataset embedded by a table of random vectors, which needs no torch; the encoder's folder beside it."""
    folder = tmp_path_factory.mktemp("static")
    make_static(folder / "static")
    options = small_options(text_file, folder / "root", encoder=str(folder / "static"), max_length=None)
    write(options, log=lambda line: None)
    return folder / "root"


def computing_otherwise(root: Path, folder: Path) -> Path:
    """A copy of a dataset whose encoder gave other vectors, of which its files say nothing."""
    copy = Path(shutil.copytree(root, folder / "root"))
    kept = EncoderFile.from_json((copy / ENCODER_FILE).read_bytes(), "here")
    turned = np.roll(kept.rows, 1, axis=1).astype("<f2").tobytes()
    (copy / ENCODER_FILE).write_bytes(dataclasses.replace(kept, vectors=turned).to_json())
    return copy


def quiet(line: str) -> None:
    """Takes log lines."""


def _options(root: Path, text_file: Path, out: Path, **changes: Any) -> WriteOptions:
    encoder = str(root.parent / "static")
    return small_options(text_file, out, encoder=encoder, max_length=None, window_tokens=64, **changes)


def _append(root: Path, text_file: Path, encoder: str) -> None:
    append(WriteOptions(inputs=[str(text_file)], out=str(root), encoder=encoder, processes=1), log=quiet)


def _first_windows(root: Path, text_file: Path, encoder: str) -> None:
    dataset = open_dataset(root)
    choice = matching_encoder(dataset.manifest.encoder, encoder, str(root))
    embed_first_windows(
        ExampleSources((str(text_file),), "text", None, None, (), "files"), dataset, choice, processes=1
    )


def _plan(root: Path, text_file: Path, encoder: str) -> None:
    options = small_options(text_file, root.parent / "like", like=str(root), encoder=encoder, max_length=None)
    estimate_write(options, models_of(options))


COMMANDS: dict[str, Callable[[Path, Path, str], object]] = {
    "histogram": lambda root, text, encoder: count_examples(
        [str(text)], data=str(root), encoder=encoder, processes=1, log=quiet
    ),
    "append": _append,
    "write --like": lambda root, text, encoder: write(
        small_options(text, root.parent / "like", like=str(root), encoder=encoder, max_length=None), log=quiet
    ),
    "write --plan": _plan,
    "embed": lambda root, text, encoder: embed_windows(
        str(root), str(root.parent / "vectors"), encoder=encoder, processes=1, log=quiet
    ),
    "distances": _first_windows,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_embeds_compares_the_vectors(
    command: str, static_root: Path, text_file: Path, tmp_path: Path
) -> None:
    encoder = str(static_root.parent / "static")
    root = computing_otherwise(static_root, tmp_path)
    with pytest.raises(InputError, match=r"Its files and settings are equal, but its vectors differ: got a cosine of"):
        COMMANDS[command](root, text_file, encoder)


@pytest.mark.parametrize("command", ["histogram", "write --like", "append"])
def test_with_the_vectors_of_the_dataset_they_work(
    command: str, static_root: Path, text_file: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(static_root, tmp_path / "root"))
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"text": "The import statement finds a module. " * 30}) + "\n")
    copied = shutil.copytree(static_root.parent / "static", tmp_path / "elsewhere" / "static")
    COMMANDS[command](root, more, str(copied))


def test_a_dataset_keeps_the_probe_through_every_way_of_making_others_from_it(
    static_root: Path, text_file: Path, tmp_path: Path
) -> None:
    encoder = str(static_root.parent / "static")
    kept = (static_root / ENCODER_FILE).read_bytes()
    assert verify_dataset(str(static_root), deep=True).problems == []
    root = Path(shutil.copytree(static_root, tmp_path / "root"))
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"text": "The import statement finds a module. " * 30}) + "\n")
    _append(root, more, encoder)
    assert (root / ENCODER_FILE).read_bytes() == kept
    assert verify_dataset(str(root), deep=True).problems == []
    fit(_options(static_root, text_file, tmp_path / "fitted"), log=quiet)
    assert (tmp_path / "fitted" / ENCODER_FILE).read_bytes() == kept
    write(_options(static_root, text_file, tmp_path / "of tree", tree=str(tmp_path / "fitted")), log=quiet)
    assert (tmp_path / "of tree" / ENCODER_FILE).read_bytes() == kept
    (root / ENCODER_FILE).write_bytes(kept.replace(b'"version"', b'"Version"'))
    assert any(ENCODER_FILE in problem for problem in verify_dataset(str(root), deep=True).problems)


def test_a_dataset_without_a_probe_is_not_embedded_for(
    static_root: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = str(static_root.parent / "static")
    root = Path(shutil.copytree(static_root, tmp_path / "root"))
    (root / ENCODER_FILE).unlink()
    with pytest.raises(FormatError, match=r"encoder/encoder\.json is missing, without which nothing can be embedded"):
        COMMANDS["histogram"](root, text_file, encoder)
    arguments = ["histogram", str(text_file), "--data", str(root), "--encoder", encoder, "--out", str(tmp_path / "h")]
    assert main(arguments) == 2
    assert "encoder/encoder.json is missing" in capsys.readouterr().err
    (root / ENCODER_FILE).write_text("{}")
    with pytest.raises(FormatError, match=r"encoder\.json: must be what a write made of its encoder"):
        COMMANDS["histogram"](root, text_file, encoder)
    kept = (static_root / ENCODER_FILE).read_text()
    (root / ENCODER_FILE).write_text(kept.replace('"version": 1', '"version": 9'))
    with pytest.raises(FormatError, match="the probe must be of version 1, got 9"):
        COMMANDS["histogram"](root, text_file, encoder)


def test_the_probe_of_an_lsi_is_compared_too(text_file: Path, tmp_path: Path) -> None:
    write(small_options(text_file, tmp_path / "lsi", encoder="lsi", max_length=None), log=quiet)
    assert set(files_below(tmp_path / "lsi" / "encoder")) >= {"encoder.json", "vocabulary.json"}
    root = computing_otherwise(tmp_path / "lsi", tmp_path / "other")
    with pytest.raises(InputError, match="Its files and settings are equal, but its vectors differ"):
        count_examples([str(text_file)], data=str(root), processes=1, log=quiet)
    names = json.loads((tmp_path / "lsi" / "encoder" / "vocabulary.json").read_text())
    names[0], names[1] = names[1], names[0]
    (root / "encoder" / "vocabulary.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match=r"what differs: vocabulary\.json"):
        count_examples([str(text_file)], data=str(root), processes=1, log=quiet)


def test_the_texts_are_those_of_the_version() -> None:
    """They decide what a dataset keeps: other texts need another version."""
    assert len(PROBE_TEXTS) == 8
    assert hashlib.sha256("\0".join(PROBE_TEXTS).encode()).hexdigest()[:16] == "56a98a8541d735c7"
