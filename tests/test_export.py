"""Exported folders: `transformers` loads them and computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crisp_stream.checkpoint import load_gpt
from crisp_stream.errors import FormatError, InputError
from crisp_stream.export import export
from tests.small_runs import SmallRun, small_run


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def exported(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(str(done.checkpoint(12)), tmp_path_factory.mktemp("export") / "model")


def test_transformers_loads_the_folder_and_computes_the_same(done: SmallRun, exported: Path) -> None:
    checkpoint = torch.load(done.checkpoint(12), weights_only=False)["state"]["model"]
    gpt = AutoModelForCausalLM.from_pretrained(exported, local_files_only=True).eval()
    for key, value in gpt.state_dict().items():
        assert torch.equal(value, checkpoint[f"model.{key}"])
    tokens = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(gpt(tokens).logits, load_gpt(str(done.checkpoint(12))).gpt(tokens).logits)


def test_the_folder_holds_the_tokenizer_of_the_dataset(done: SmallRun, exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    original = AutoTokenizer.from_pretrained(done.dataset.tokenizer_path(), local_files_only=True)
    assert tokenizer.get_vocab() == original.get_vocab()
    assert tokenizer.encode("naïve ✓ text\n") == original.encode("naïve ✓ text\n")
    assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|endoftext|>", 32)


def test_the_folder_says_what_it_was_trained_on(done: SmallRun, exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    manifest = done.dataset.manifest
    assert config["crisp_stream"] == {"dataset": manifest.fingerprint, "packing": "joined", "window_tokens": 32}
    assert (exported / "model.safetensors").is_file()
    assert load_gpt(str(exported)).provenance == config["crisp_stream"]


def test_nothing_is_overwritten_and_nothing_half_done_is_left(done: SmallRun, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already and is not overwritten"):
        export(str(done.checkpoint(12)), exported)
    (tmp_path / "no.pt").write_text("no checkpoint")
    with pytest.raises(FormatError, match=r"no\.pt"):
        export(str(tmp_path / "no.pt"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["no.pt"]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_gpt(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(FormatError, match="does not load as a GPT-2 model"):
        load_gpt(str(tmp_path))
