"""Tokenizers are compared part by part, and what differs is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import FormatError, InputError
from crisp_stream.evaluation.models import open_model
from crisp_stream.models.checkpoint import model_config_of, read_checkpoint
from crisp_stream.models.export import export
from crisp_stream.models.gpt import load_tokenizer
from crisp_stream.models.tokenizer_parts import differing_parts, tokenizer_parts
from crisp_stream.training.start import check_model
from tests.support.small_runs import SmallRun, small_run

Change = Callable[[dict[str, Any]], None]


def lower(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def prefix_space(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def merges(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["ab"] = 260
    content["model"]["merges"] = [["a", "b"]]


def dropout(content: dict[str, Any]) -> None:
    content["model"]["dropout"] = 0.5


def padding(content: dict[str, Any]) -> None:
    content["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}


CHANGES: list[tuple[Change, list[str]]] = [
    (lower, ["normaliser"]),
    (prefix_space, ["pre-tokeniser"]),
    (merges, ["vocabulary", "merges", "added tokens"]),
    (dropout, ["model"]),
    (padding, []),
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def changed(done: SmallRun, folder: Path, change: Change) -> Any:
    """The tokenizer of the run's dataset, changed."""
    content = json.loads((done.dataset.tokenizer_path() / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(folder, eot_token="<|endoftext|>", n_positions=32)


@pytest.mark.parametrize(("change", "parts"), CHANGES)
def test_a_part_that_decides_tokens_is_named_when_it_differs(
    done: SmallRun, tmp_path: Path, change: Change, parts: list[str]
) -> None:
    same = changed(done, tmp_path, lambda content: None)
    other = changed(done, tmp_path, change)
    assert differing_parts(tokenizer_parts(same), tokenizer_parts(other)) == parts
    assert differing_parts({}, tokenizer_parts(other)) == []


def test_training_goes_on_with_the_tokenizer_of_the_checkpoint_alone(done: SmallRun, tmp_path: Path) -> None:
    path = done.checkpoint(12)
    checkpoint = read_checkpoint(path)
    from transformers import GPT2Config

    config = GPT2Config(**model_config_of(checkpoint, path))
    check_model(checkpoint, path, config, changed(done, tmp_path, lambda content: None))
    with pytest.raises(InputError, match=r"another tokenizer than that of the dataset: other normaliser\. Write the"):
        check_model(checkpoint, path, config, changed(done, tmp_path, lower))


def test_a_model_is_judged_with_the_tokenizer_that_it_was_trained_with(done: SmallRun, tmp_path: Path) -> None:
    folder = Path(export(str(done.checkpoint(12)), tmp_path / "model"))
    tokenizer = open_model(str(folder)).record.training["dataset"]["tokenizer"]
    assert tokenizer["fingerprint"] == done.dataset.manifest.tokenizer.fingerprint
    assert len(tokenizer["parts"]) == 6
    content = json.loads((folder / "tokenizer.json").read_text())
    lower(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(FormatError, match=rf"model: .* \({tokenizer['fingerprint'][:12]} in .* with other normaliser"):
        open_model(str(folder))
