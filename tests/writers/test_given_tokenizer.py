"""Tokenizers as people have them: where the end-of-text token is named, and kinds of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crisp_stream.errors import InputError
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.writers.given_tokenizer import read_tokenizer
from crisp_stream.writers.windows import train_tokenizer
from crisp_stream.writers.write import plan, write
from tests.support.written_dataset import TOPICS, WordEncoder, small_options


def quiet(line: str) -> None:
    """Takes log lines."""


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Unigram model as SentencePiece makes them, with the pieces of bytes but no fallback to them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("unigram")
    tokenizer: Any = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    pieces_of_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.UnigramTrainer(
        vocab_size=900,
        special_tokens=["<pad>", "</s>", "<unk>", *pieces_of_bytes],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TOPICS[:20], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return folder


def changed(source: Path, folder: Path, config: dict[str, Any] | None, special: dict[str, Any] | None = None) -> Path:
    """A copy with another tokenizer_config.json, or none, and a special_tokens_map.json."""
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if special is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder


def eot_of(given: Path, copy: Path, **settings: Any) -> str:
    read_tokenizer(str(given), **settings).save(copy)
    return DocumentTokenizer(copy).record().eot_token


def test_the_end_of_text_token_is_the_one_asked_for_else_the_first_that_is_named(unigram: Path, tmp_path: Path) -> None:
    special = {"eos_token": {"content": "</s>", "lstrip": False}}
    named = changed(unigram, tmp_path / "named", {"eos_token": "<pad>", "kept": 1}, special)
    assert eot_of(named, tmp_path / "a") == "<pad>"
    assert (tmp_path / "a" / "tokenizer_config.json").read_bytes() == (named / "tokenizer_config.json").read_bytes()
    assert eot_of(named, tmp_path / "b", eot_token="</s>") == "</s>"
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text()) == {"eos_token": "</s>", "kept": 1}
    for number, config in enumerate([{"kept": 1}, None]):
        mapped = changed(unigram, tmp_path / f"mapped-{number}", config, special)
        assert eot_of(mapped, tmp_path / f"c{number}") == "</s>"
    with pytest.raises(
        InputError, match=r"got no entry '<\|endoftext\|>'; its special tokens are <pad> </s> <unk>\. .*--eot"
    ):
        read_tokenizer(str(changed(unigram, tmp_path / "bare", None)))


def test_letters_of_special_tokens_are_ordinary_text_for_a_unigram_model(unigram: Path) -> None:
    tokenizer = DocumentTokenizer(unigram)
    texts = ["a</s>b", "</s>", "<pad> and <unk>", TOPICS[3][:900]]
    special = {tokenizer._tokenizer.token_to_id(token) for token in ("<pad>", "</s>", "<unk>")}
    ids = tokenizer.encode(texts)
    assert tokenizer.decode(ids)[3] == texts[3]
    assert not special & set(np.concatenate(ids).tolist())
    assert tokenizer.decode(ids) == texts
    plain = tokenizer._tokenizer.encode(texts[3], add_special_tokens=False).ids
    assert ids[3].tolist() == plain  # text without such letters has the ids of the model


def test_a_unigram_model_without_byte_fallback_says_what_it_loses(unigram: Path, tmp_path: Path) -> None:
    assert "rare characters are lost" in (DocumentTokenizer(unigram).unknown_characters() or "")
    content = json.loads((unigram / "tokenizer.json").read_text())
    content["model"]["byte_fallback"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    tokenizer = DocumentTokenizer(tmp_path)
    tokenizer.check()
    assert tokenizer.unknown_characters() is None
    assert tokenizer.decode(tokenizer.encode(["龘 and \U0001fae8"])) == ["龘 and \U0001fae8"]


def test_a_token_for_unknown_characters_cannot_end_documents(unigram: Path) -> None:
    with pytest.raises(InputError, match=r"must not stand for unknown characters, got '<unk>'.*--eot-token"):
        read_tokenizer(str(unigram), eot_token="<unk>")


def test_faults_name_the_path_that_was_given_and_come_before_the_documents(
    unigram: Path, text_file: Path, tmp_path: Path, word_encoder: WordEncoder
) -> None:
    broken = changed(unigram, tmp_path / "broken", None)
    (broken / "tokenizer.json").write_text('{"model": ')
    endless = changed(unigram, tmp_path / "endless", {"eos_token": "<end>"})
    no_json = changed(unigram, tmp_path / "config", {})
    (no_json / "tokenizer_config.json").write_text("[")
    bad = tmp_path / "bad.jsonl"
    bad.write_text("no JSON\n")  # read first, it would be the fault
    for folder, fault in (
        (broken, "tokenizer.json must be readable"),
        (endless, "must have an end-of-text token, got no entry '<end>'"),
        (no_json, "tokenizer_config.json must be JSON"),
    ):
        options = small_options(bad, tmp_path / "out", tokenizer=str(folder))
        for run in (lambda options=options: write(options, log=quiet), lambda options=options: plan(options)):
            with pytest.raises(InputError, match=f"^{folder}: .*{fault}"):
                run()


def test_an_encoder_that_cannot_be_used_is_found_before_the_documents(unigram: Path, tmp_path: Path) -> None:
    import shutil

    from crisp_stream.writers.embedding.encoder_files import resolve_encoder

    folder = tmp_path / "cut"
    shutil.copytree(resolve_encoder(None)[0], folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    bad = tmp_path / "bad.jsonl"
    bad.write_text("no JSON\n")  # read first, it would be the fault
    for processes in (1, 2):
        options = small_options(bad, tmp_path / "out", encoder=str(folder), processes=processes)
        with pytest.raises(InputError, match=f"encoder {folder}: must be a sentence-transformers model that can"):
            write(options, log=quiet)
    with pytest.raises(InputError, match=f"encoder {folder}: must be"):
        plan(options)


def test_a_dataset_is_written_and_grown_with_a_token_named_by_option(
    unigram: Path, text_file: Path, tmp_path: Path
) -> None:
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.writers.append import append

    given = changed(unigram, tmp_path / "given", None)
    root = tmp_path / "root"
    lines: list[str] = []
    write(
        small_options(text_file, root, tokenizer=str(given), eot_token="</s>", encoder="lsi", max_length=None),
        log=lines.append,
    )
    record = open_dataset(root).manifest.tokenizer
    assert (record.eot_token, record.eot_id) == ("</s>", 1)
    assert any("rare characters are lost" in line for line in lines)
    append(small_options(text_file, root, window_tokens=1024), log=quiet)
    assert open_dataset(root).manifest.tokenizer == record


def test_an_end_token_needs_a_given_tokenizer(text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="eot_token: must be a token of the tokenizer that --tokenizer names"):
        small_options(text_file, tmp_path, eot_token="</s>")
    train_tokenizer(TOPICS[:3], tmp_path / "trained", vocab_size=300)
    with pytest.raises(InputError, match="plain text must never become the end-of-text token, but 'e' did"):
        read_tokenizer(str(tmp_path / "trained"), eot_token="e")
