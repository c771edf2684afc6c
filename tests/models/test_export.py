"""Exported folders: `transformers` and lm-eval load them and compute the same; a card says where they come from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import AutoModelForCausalLM, AutoTokenizer

from crisp_stream import __version__
from crisp_stream.cli.main import main
from crisp_stream.errors import CrispError, FormatError, InputError, StorageError
from crisp_stream.evaluation.perplexity import perplexity
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.models.checkpoint import load_gpt
from crisp_stream.models.export import export
from crisp_stream.models.gpt import build_gpt, composer_model, gpt_config
from crisp_stream.models.training_record import public_address
from crisp_stream.storage.object_store import ObjectStore
from crisp_stream.storage.store import open_store
from crisp_stream.training.train import train
from tests.support.seaweed import S3Server
from tests.support.small_runs import SmallRun, small_run

TEXTS = ["abcdefgh" * length for length in range(1, 6)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="module")
def exported(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(export(str(done.checkpoint(12)), tmp_path_factory.mktemp("export") / "model"))


@pytest.fixture(scope="module")
def tuned(done: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began from the weights of the small one, was interrupted once, and measured held-out text."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "held.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS))
    overrides = [
        *("run_name=tuned", f"save_folder={folder}/run", "seed=6", "mixture.phases=[{histogram: base}]"),
        *(f"load_path={done.checkpoint(12)}", "load_weights_only=true", "autoresume=true"),
        *(f"eval.inputs={folder}/held.jsonl", "eval_interval=1dur"),
    ]
    train(done.recipe(*overrides, "max_duration=2ba"))
    train(done.recipe(*overrides, "max_duration=4ba"))
    return Path(export(f"{folder}/run/latest-rank0.pt", folder / "model"))


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def training_model(done: SmallRun) -> Any:
    """The model as Composer trained it, filled from the checkpoint without any of the export's code."""
    recipe, manifest = done.recipe(), done.dataset.manifest
    config = gpt_config(recipe.model, vocab_size=manifest.tokenizer.vocab_size, window_tokens=32, eot_id=256)
    model = composer_model(build_gpt(config, seed=99), AutoTokenizer.from_pretrained(done.dataset.tokenizer_path()))
    model.load_state_dict(torch.load(done.checkpoint(12), weights_only=False)["state"]["model"])
    return model.eval()


def test_transformers_loads_the_folder_and_computes_the_same_bit_by_bit(done: SmallRun, exported: Path) -> None:
    model, gpt = training_model(done), AutoModelForCausalLM.from_pretrained(exported, local_files_only=True).eval()
    tokens = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model({"input_ids": tokens, "labels": tokens}).logits
        assert torch.equal(gpt(tokens).logits, expected)
    assert expected.std() > 0.1
    assert gpt.dtype == torch.float32


def test_the_folder_generates_what_the_trained_model_would(done: SmallRun, exported: Path) -> None:
    model, tokenizer = training_model(done), AutoTokenizer.from_pretrained(exported, local_files_only=True)
    gpt: Any = AutoModelForCausalLM.from_pretrained(exported, local_files_only=True).eval()
    prompt = tokenizer("some text", return_tensors="pt")
    generated = gpt.generate(**prompt, max_new_tokens=8, do_sample=False)
    tokens = prompt["input_ids"]
    for _ in range(8):
        with torch.no_grad():
            tokens = torch.cat([tokens, model.model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, tokens)
    assert tokenizer.decode(generated[0]).startswith("some text")
    generation = json.loads((exported / "generation_config.json").read_text())
    assert [generation[f"{token}_token_id"] for token in ("bos", "eos", "pad")] == [256, 256, 256]
    assert gpt.config.use_cache


def test_the_folder_holds_the_tokenizer_of_the_dataset(done: SmallRun, exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    original = AutoTokenizer.from_pretrained(done.dataset.tokenizer_path(), local_files_only=True)
    assert tokenizer.get_vocab() == original.get_vocab()
    assert tokenizer.encode("naïve ✓ text\n") == original.encode("naïve ✓ text\n")
    assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|endoftext|>", 32)


def test_bfloat16_is_the_rounded_model_in_half_the_space(done: SmallRun, exported: Path, tmp_path: Path) -> None:
    assert main(["export", str(done.checkpoint(12)), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", local_files_only=True, torch_dtype="auto")
    whole = AutoModelForCausalLM.from_pretrained(exported, local_files_only=True)
    assert half.dtype == torch.bfloat16
    for key, value in whole.state_dict().items():
        assert torch.equal(half.state_dict()[key], value.to(torch.bfloat16))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", exported)]
    assert sizes[0] < 0.55 * sizes[1]
    assert record_of(tmp_path / "half")["weights"] == {"dtype": "bfloat16", "parameters": 34_816}
    assert load_gpt(str(tmp_path / "half")).gpt.dtype == torch.float32


def test_the_record_says_what_the_model_was_trained_on(done: SmallRun, exported: Path) -> None:
    manifest, record = done.dataset.manifest, record_of(exported)
    dataset, mixture = record["dataset"], record["mixture"]
    assert dataset["fingerprint"] == manifest.fingerprint
    assert (dataset["generation"], dataset["packing"], dataset["window_tokens"]) == (0, "joined", 32)
    assert (dataset["num_windows"], dataset["tree"]["fingerprint"]) == (manifest.num_windows, manifest.tree_fingerprint)
    assert (dataset["encoder"]["name"], dataset["tokenizer"]["vocab_size"]) == ("synthetic", 260)
    fingerprints = [Histogram.base(manifest).fingerprint, Histogram.load(done.histogram).fingerprint]
    assert [phase["fingerprint"] for phase in mixture["phases"]] == fingerprints
    assert [phase["histogram"] for phase in mixture["phases"]] == ["base", "task.histogram"]
    assert [phase["samples"] for phase in mixture["phases"]] == [64, 32]
    assert (mixture["draw"], record["seed"], record["progress"]["position"]) == ("systematic", 5, 96)
    assert (record["progress"]["batches"], record["progress"]["tokens"]) == (12, 12 * 8 * 32)
    assert record["loss"]["final"] == pytest.approx(float((done.save_folder / "losses.csv").read_text().split(",")[-2]))
    assert record["training"]["optimizer"]["lr"] == 0.01
    assert (
        record["versions"] | {"crisp_stream": __version__, "torch": torch.__version__.partition("+")[0]}
        == record["versions"]
    )
    assert (record["parent"], record["held_out"]) == (None, None)
    config = json.loads((exported / "config.json").read_text())
    assert config["crisp_stream"] == {"dataset": manifest.fingerprint, "packing": "joined", "window_tokens": 32}
    assert load_gpt(str(exported)).provenance == config["crisp_stream"]


def test_a_checkpoint_before_a_switch_served_nothing_of_the_next_phase(done: SmallRun, tmp_path: Path) -> None:
    phases = record_of(Path(export(str(done.checkpoint(4)), tmp_path / "model")))["mixture"]["phases"]
    assert [phase["samples"] for phase in phases] == [32, 0]


def test_the_card_is_one_the_hub_reads(tuned: Path) -> None:
    card = ModelCard.load(tuned / "README.md")
    metadata = card.data.to_dict()
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "text-generation")
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert (name, results[0].metric_type) == ("tuned", "perplexity")
    assert results[0].metric_value == pytest.approx(perplexity(tuned, TEXTS).perplexity, rel=1e-5)
    record = record_of(tuned)
    phase = record["mixture"]["phases"][0]
    for told in (record["dataset"]["fingerprint"], record["mixture"]["fingerprint"], phase["fingerprint"], "34,816"):
        assert told in card.text
    assert f"{record['loss']['final']:.4f} nats per token" in card.text
    assert "of 5 documents, at batch 4" in card.text
    assert "tokenizer.bos_token + text" in card.text
    assert not [line for line in card.text.splitlines() if line.startswith("|") and line.count("|") not in (3, 8)]


def test_a_model_names_what_it_was_trained_from_also_after_it_was_resumed(
    done: SmallRun, exported: Path, tuned: Path
) -> None:
    record, before = record_of(tuned), record_of(exported)
    assert record["progress"]["batches"] == 4
    parent = record["parent"]
    assert parent["checkpoint"] == "ep0-ba12-rank0.pt"
    assert {key: parent[key] for key in parent if key != "checkpoint"} == {
        key: before[key] for key in before if key != "weights"
    }
    assert "`ep0-ba12-rank0.pt` of run small: 12 batches, 3,072 tokens" in (tuned / "README.md").read_text()
    assert "(base, then task.histogram)" in (tuned / "README.md").read_text()


def test_no_file_names_a_folder_of_the_machine(done: SmallRun, exported: Path, tuned: Path) -> None:
    for folder in (exported, tuned):
        files = list(folder.iterdir())
        assert len(files) >= 7
        for file in files:
            content = file.read_bytes()
            for path in (done.folder.parent, Path.cwd(), Path.home()):
                assert os.fsencode(path) not in content, file.name
    assert os.fsencode(done.folder.parent) in (done.save_folder / "run.json").read_bytes()


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("/data/corpus", None),
        ("file:///data/corpus", None),
        ("s3://bucket/data", "s3://bucket/data"),
        ("https://user:secret@host/data?signature=secret#x", "https://host/data"),
        ("https://token@host/data", "https://host/data"),
        ("s3://key:secret@bucket/data", "s3://bucket/data"),
        (
            "abfss://container@account.dfs.core.windows.net/data?sig=x",
            "abfss://container@account.dfs.core.windows.net/data",
        ),
    ],
)
def test_addresses_lose_what_may_be_secret(url: str, kept: str | None) -> None:
    assert public_address(url) == kept


def own_log_likelihoods(done: SmallRun, pairs: list[tuple[str, str]]) -> list[float]:
    """Of each second text after the first one, by the trained model, one token after the other."""
    model, tokenizer = training_model(done), AutoTokenizer.from_pretrained(done.dataset.tokenizer_path())
    sums = []
    for context, text in pairs:
        start, tokens = len(tokenizer.encode(context)), tokenizer.encode(context + text)
        with torch.no_grad():
            scores = torch.log_softmax(model.model(torch.tensor([tokens])).logits[0].double(), dim=-1)
        sums.append(sum(scores[place - 1, tokens[place]].item() for place in range(start, len(tokens))))
    return sums


def test_lm_eval_finds_the_log_likelihoods_of_the_trained_model(done: SmallRun, exported: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    pairs = [("Is it so?", " yes"), ("Is it so?", " never"), ("abc", "defghijklmnopqrstuvw")]
    lm = cast(Any, HFLM)(pretrained=str(exported), device="cpu", dtype="float32", batch_size=2)
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    scores = [score for score, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    np.testing.assert_allclose(scores, own_log_likelihoods(done, pairs), rtol=1e-5)
    # A whole text, after an end-of-text token, as perplexity counts it (texts of one context at most).
    texts = [text for text in TEXTS if len(text) <= 32]
    rolling = [Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(texts)]
    whole = np.array(lm.loglikelihood_rolling(rolling, disable_tqdm=True)) / [len(text) for text in texts]
    np.testing.assert_allclose(-whole, perplexity(str(done.checkpoint(12)), texts).losses, rtol=1e-5)


_TASK = """\
task: local_questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_the_command_of_lm_eval_runs_a_local_task_offline(done: SmallRun, exported: Path, tmp_path: Path) -> None:
    questions = [{"question": f"Is {word} so?", "choices": ["yes", "never"], "answer": 1} for word in ("it", "all")]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "tasks" / "local.yaml").write_text(_TASK.format(data=json.dumps(str(tmp_path / "questions.jsonl"))))
    command = [
        *(str(Path(sys.executable).with_name("lm_eval")), "--model", "hf", "--device", "cpu", "--log_samples"),
        *("--model_args", f"pretrained={exported},dtype=float32", "--tasks", "local_questions"),
        *("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out")),
    ]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    answers = [json.loads(line) for line in samples.read_text().splitlines()]
    scores = [float(reply[0][0]) for answer in answers for reply in answer["resps"]]
    pairs = [(str(question["question"]), f" {choice}") for question in questions for choice in ("yes", "never")]
    np.testing.assert_allclose(scores, own_log_likelihoods(done, pairs), rtol=1e-5)


def test_a_folder_in_object_storage_is_complete_or_not_there(
    done: SmallRun, exported: Path, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, names, put_file = s3.fresh_prefix("model"), list[str](), ObjectStore.put_file

    def put(store: ObjectStore, path: str, source: Path) -> None:
        names.append(path)
        if fails and path == "config.json":
            raise StorageError("no more room")
        put_file(store, path, source)

    monkeypatch.setattr(ObjectStore, "put_file", put)
    store, fails = open_store(prefix), True
    with pytest.raises(StorageError, match="no more room"):
        export(str(done.checkpoint(12)), prefix)
    num_files = len(list(exported.iterdir()))
    assert len(names) == num_files
    assert store.list() == []
    fails = False
    assert export(str(done.checkpoint(12)), f"{prefix}/") == prefix
    assert names[-1] == "config.json"
    for name, _ in store.list():
        (tmp_path / name).write_bytes(store.get(name))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in exported.iterdir())
    assert perplexity(tmp_path, TEXTS).perplexity == perplexity(exported, TEXTS).perplexity
    with pytest.raises(InputError, match=f"holds {num_files} objects already and is not overwritten"):
        export(str(done.checkpoint(12)), prefix)
    store.delete("config.json")
    with pytest.raises(
        InputError, match=rf"holds {num_files - 1} objects already \(without config\.json: of an interrupted"
    ):
        export(str(done.checkpoint(12)), prefix)


def test_a_checkpoint_in_object_storage_names_its_address_as_a_parent(
    done: SmallRun, tmp_path: Path, s3: S3Server
) -> None:
    prefix = s3.fresh_prefix("run")
    open_store(prefix).put_file("ep0-ba12-rank0.pt", done.checkpoint(12))
    overrides = [f"save_folder={tmp_path}/run", f"load_path={prefix}/ep0-ba12-rank0.pt", "load_weights_only=true"]
    train(done.recipe(*overrides, "seed=6", "max_duration=2ba", "mixture.phases=[{histogram: base}]"))
    record = record_of(Path(export(f"{tmp_path}/run/latest-rank0.pt", tmp_path / "model")))
    assert record["parent"]["checkpoint"] == f"{prefix}/ep0-ba12-rank0.pt"
    assert record["parent"]["parent"] is None


def changed(done: SmallRun, target: Path, change: Any) -> str:
    contents = torch.load(done.checkpoint(12), weights_only=False)
    change(contents["state"])
    torch.save(contents, target)
    return str(target)


def test_an_old_checkpoint_without_a_record_says_what_it_can(done: SmallRun, tmp_path: Path) -> None:
    old = changed(done, tmp_path / "old.pt", lambda state: state["callbacks"].pop("Lineage"))
    record = record_of(Path(export(old, tmp_path / "model")))
    fingerprint = done.dataset.manifest.fingerprint
    assert record["dataset"] == {"fingerprint": fingerprint, "packing": "joined", "window_tokens": 32}
    assert [phase["samples"] for phase in record["mixture"]["phases"]] == [64, 32]
    assert (record["seed"], record["run_name"], record["training"]) == (5, "small", None)
    assert fingerprint in ModelCard.load(tmp_path / "model" / "README.md").text


def test_text_of_a_checkpoint_cannot_break_the_card(done: SmallRun, tmp_path: Path) -> None:
    def rename(state: dict[str, Any]) -> None:
        state["callbacks"]["Lineage"]["run_name"] = "a: 'b'\n---\n# c | <b> `d`"

    export(changed(done, tmp_path / "odd.pt", rename), tmp_path / "model")
    content = (tmp_path / "model" / "README.md").read_text()
    front = cast(dict[str, Any], yaml.safe_load(content.split("\n---\n")[0].removeprefix("---\n")))
    assert front["model_name"] == "a: 'b' --- # c | <b> `d`"
    assert "\n# a: 'b' --- # c \\| \\<b\\> \\`d\\`\n" in content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state["integrations"]["huggingface"]["model"]["config"]["content"].update(model_type="llama"),
            "'llama' model; only gpt2",
        ),
        (lambda state: state["model"].pop("model.transformer.wpe.weight"), "the weights do not fit the model"),
        (lambda state: state.pop("integrations"), "does not say which model"),
        (lambda state: state.pop("timestamp"), "what it says of its training is damaged"),
        (
            lambda state: state["callbacks"]["Lineage"]["mixture"].update(phases=[{}]),
            "what it says of its training is damaged",
        ),
    ],
)
def test_what_is_no_checkpoint_of_ours_is_refused_and_leaves_nothing(
    done: SmallRun, tmp_path: Path, change: Any, message: str
) -> None:
    checkpoint = changed(done, tmp_path / "odd.pt", change)
    with pytest.raises(FormatError, match=message):
        export(checkpoint, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.pt"]


def test_a_damaged_file_is_refused_and_leaves_nothing(done: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "half.pt").write_bytes(done.checkpoint(12).read_bytes()[:100_000])
    for name in ("text.pt", "half.pt"):
        with pytest.raises(FormatError, match=name):
            export(str(tmp_path / name), tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.pt", "text.pt"]


def test_what_cannot_be_exported_is_said_in_one_line(
    done: SmallRun, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(done.checkpoint(12))
    (tmp_path / "file").write_text("")
    refused: dict[str, tuple[str, str | Path, type[CrispError]]] = {
        "exists already and is not overwritten": (checkpoint, exported, InputError),
        "is a folder; a checkpoint is one .pt file.* can be copied as it is": (
            str(exported),
            tmp_path / "a",
            InputError,
        ),
        "is not a checkpoint file": (str(tmp_path / "none.pt"), tmp_path / "b", InputError),
        "cannot be written: (File exists|Not a directory)": (checkpoint, tmp_path / "file" / "c", StorageError),
        "unknown scheme ftp://": (checkpoint, "ftp://host/model", InputError),
    }
    for message, (source, target, error) in refused.items():
        with pytest.raises(error, match=message):
            export(source, target)
        assert main(["export", source, str(target)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(InputError, match="dtype must be float32 or bfloat16, got 'float8'"):
        export(checkpoint, tmp_path / "d", dtype="float8")  # pyright: ignore[reportArgumentType]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_gpt(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(FormatError, match="does not load as a GPT-2 model"):
        load_gpt(str(tmp_path))
