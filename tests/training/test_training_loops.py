"""Training loops of others: the examples, on one and on two ranks, train on the windows of the pure order and on no
others; and what would deal a stream to the ranks once more is refused."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pickle
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase, ReadOptions, open_dataset
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset
from tests.support.ranks import run_ranks
from tests.support.synthetic import write_synthetic_dataset

ROOT = Path(__file__).parent.parent.parent
BATCH = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("loops"), {0: 100, 3: 50, 5: 70, 15: 40})


@pytest.fixture(scope="module")
def task(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("task") / "task.parquet"
    Histogram.from_leaves([0, 0, 3, 15], dataset.tree, 2).save(path)
    return str(path)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded_windows() -> list[list[int]]:
    """Have every batch that a model is trained on recorded from now on: the windows, which their first tokens name."""
    from transformers import GPT2LMHeadModel

    seen: list[list[int]] = []
    forward = GPT2LMHeadModel.forward

    @functools.wraps(forward)
    def recording(self: GPT2LMHeadModel, *args: Any, **inputs: Any) -> Any:
        seen.append((inputs["input_ids"][:, :4].cpu() * 256 ** np.arange(4)).sum(axis=1).tolist())
        return forward(self, *args, **inputs)

    GPT2LMHeadModel.forward = recording
    return seen


def train_as_rank(name: str, options: list[str], folder: Path) -> None:
    """Run an example as one rank; what it was trained on stands in a file of the rank."""
    seen = recorded_windows()
    example(name).main(options)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(seen))


def trained_on(name: str, num_ranks: int, options: list[str], folder: Path) -> list[list[int]]:
    """Windows of each batch that the ranks of an example were trained on together, sorted."""
    folder.mkdir(parents=True)
    run_ranks(num_ranks, functools.partial(train_as_rank, name, options, folder), folder)
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_ranks)]
    return [sorted(window for part in parts for window in part) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("name", ["plain_torch", "composer_loop", "accelerate_loop", "lightning_loop", "hf_trainer"])
def test_an_example_goes_on_with_other_ranks_and_workers_and_uses_every_window(
    dataset: Dataset, task: str, name: str, tmp_path: Path
) -> None:
    place = f"--checkpoint={tmp_path}/run.pt" if name == "plain_torch" else f"--save-folder={tmp_path}/run"
    accumulates = name in ("accelerate_loop", "lightning_loop", "hf_trainer")
    options = [dataset.root, task, place, f"--global-batch={BATCH}", "--width=16", "--save-every=4"]
    in_halves = ["--accumulate=2"] if accumulates else []
    first = trained_on(name, 1, [*options, "--steps=2", "--workers=0"], tmp_path / "first")
    second = trained_on(name, 2, [*options, "--steps=4", "--workers=1", *in_halves], tmp_path / "second")
    third = trained_on(name, 1, [*options, "--steps=6", "--workers=2"], tmp_path / "third")
    if accumulates:
        second = [sorted(one + other) for one, other in zip(second[::2], second[1::2], strict=True)]
    mixture = Mixture.from_histogram(Histogram.load(task))
    order = MixtureDataset(dataset, mixture, batch_size=BATCH, seed=17).order()
    assert [*first, *second, *third] == windows_of(order, 0, 6 * BATCH)


def windows_of(order: Any, first: int, end: int) -> list[list[int]]:
    """Windows of the global batches from one sample to another, each sorted."""
    return [sorted(order.window_ids(np.arange(at, at + BATCH)).tolist()) for at in range(first, end, BATCH)]


def of_four_batches(root: str, **options: Any) -> MixtureDataset:
    """A dataset whose pass is four batches, and two samples that are left out."""
    data = open_dataset(root)
    mixture = Mixture([Phase(Histogram.base(data.manifest), 4 * BATCH + 2)])
    return MixtureDataset(data, mixture, batch_size=BATCH, seed=17, **options)


def train_passes_with_lightning(root: str, folder: Path) -> None:
    """Ten batches of passes of four, in fits of three, five and two batches."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    seen = recorded_windows()
    module = example("lightning_loop")
    for steps, num_workers in ((3, 0), (8, 1), (10, 2)):
        dataset = of_four_batches(root)
        saving = ModelCheckpoint(folder, filename="run", every_n_train_steps=1, enable_version_counter=False)
        trainer = lightning.Trainer(
            max_steps=steps,
            use_distributed_sampler=False,
            callbacks=[saving],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        saved = folder / "run.ckpt"
        loader = dataset.loader(num_workers)
        trainer.fit(module.SmallGPT(260, 32, 16), loader, ckpt_path=saved if saved.exists() else None)
    (folder / "seen.json").write_text(json.dumps([sorted(each) for each in seen]))


def train_passes_with_transformers(root: str, folder: Path) -> None:
    """The same with a Trainer that counts epochs, and evaluates twice; then one that would skip batches by itself."""
    from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

    seen = recorded_windows()
    module = example("hf_trainer")

    def trainer(steps: int, num_workers: int, ignore_data_skip: bool = True) -> Any:
        settings = TrainingArguments(
            str(folder),
            max_steps=steps,
            save_steps=1,
            ignore_data_skip=ignore_data_skip,
            dataloader_num_workers=num_workers,
            lr_scheduler_type="constant",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_positions=32, n_embd=16, n_layer=1, n_head=2))
        callbacks = [module.LoaderState()]
        return module.MixtureTrainer(model, settings, train_dataset=of_four_batches(root), callbacks=callbacks)

    for steps, num_workers in ((3, 0), (8, 1), (10, 2)):
        trainer(steps, num_workers).train(resume_from_checkpoint=module.get_last_checkpoint(str(folder)))
    with pytest.raises(ValueError, match="would skip the same batches once more"):
        trainer(11, 0, ignore_data_skip=False).train(resume_from_checkpoint=module.get_last_checkpoint(str(folder)))
    evaluated = trainer(1, 1)
    losses = [evaluated.evaluate(of_four_batches(root, same_pass=True))["eval_loss"] for _ in range(2)]
    assert losses[0] == losses[1]
    assert seen[10:14] == seen[14:18] == [batch["window"].tolist() for batch in of_four_batches(root)]
    (folder / "seen.json").write_text(json.dumps([sorted(each) for each in seen[:10]]))


@pytest.mark.parametrize("train", [train_passes_with_lightning, train_passes_with_transformers])
def test_a_mixture_with_an_end_is_trained_on_pass_after_pass(dataset: Dataset, train: Any, tmp_path: Path) -> None:
    run_ranks(1, functools.partial(train, dataset.root, tmp_path), tmp_path)
    stream = of_four_batches(dataset.root)
    passes = [sorted(batch["window"].tolist()) for _ in range(3) for batch in stream]
    assert len(passes) == 12
    assert json.loads((tmp_path / "seen.json").read_text()) == passes[:10]


def deal_once_more(root: str, folder: Path) -> None:
    """Give the dataset itself to all that would deal its batches to the ranks; what is refused stands in a file."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    def trainer(num_workers: int) -> Any:
        settings = TrainingArguments(
            str(folder / "run"), max_steps=1, dataloader_num_workers=num_workers, report_to="none", use_cpu=True
        )
        model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_positions=32, n_embd=16, n_layer=1, n_head=2))
        return Trainer(model, settings, train_dataset=of_four_batches(root), eval_dataset=of_four_batches(root))

    def prepared(num_workers: int, batch_size: int | None, **options: Any) -> Any:
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
        return accelerator.prepare(DataLoader(of_four_batches(root), batch_size=batch_size, num_workers=num_workers))

    cases = {
        "Trainer": lambda num_workers: trainer(num_workers).train(),
        "Trainer, evaluation": lambda num_workers: trainer(num_workers).evaluate(),
        "dispatched": lambda num_workers: next(iter(prepared(num_workers, None))),
        "sharded": lambda num_workers: next(iter(prepared(num_workers, 2, dispatch_batches=False))),
        "stateful": lambda num_workers: next(iter(prepared(num_workers, None, use_stateful_dataloader=True))),
    }
    refused = {}
    for name, iterate in cases.items():
        for num_workers in (0, 1):
            try:
                iterate(num_workers)
            except InputError as error:
                refused[f"{name}, {num_workers} workers"] = str(error)
            else:
                refused[f"{name}, {num_workers} workers"] = "not refused"
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(refused))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_would_deal_a_stream_to_the_ranks_once_more_is_refused(
    dataset: Dataset, num_ranks: int, tmp_path: Path
) -> None:
    run_ranks(num_ranks, functools.partial(deal_once_more, dataset.root, tmp_path), tmp_path)
    for rank in range(num_ranks):
        refused = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(refused) == 10
        right = r"Give them dataset\.loader\(num_workers=…\)"
        assert {name: text for name, text in refused.items() if not re.search(right, text)} == {}


def continue_with_torchdata(root: str, states: Path, found: Path) -> None:
    """Go on from states of StatefulDataLoaders, in this process."""
    rest = []
    for num_workers, state in pickle.loads(states.read_bytes()):
        loader = StatefulDataLoader(of_four_batches(root), batch_size=None, num_workers=num_workers)
        loader.load_state_dict(state)
        rest.append([batch["window"].tolist() for batch in loader])
    found.write_text(json.dumps(rest))


def test_a_stateful_dataloader_goes_on_in_another_process(dataset: Dataset, tmp_path: Path) -> None:
    whole = [batch["window"].tolist() for batch in of_four_batches(dataset.root)]
    states = []
    for num_workers in (0, 2):
        loader = StatefulDataLoader(of_four_batches(dataset.root), batch_size=None, num_workers=num_workers)
        batches = iter(loader)
        assert [next(batches)["window"].tolist() for _ in range(3)] == whole[:3]
        states.append((num_workers, loader.state_dict()))
    (tmp_path / "states").write_bytes(pickle.dumps(states))
    work = functools.partial(continue_with_torchdata, dataset.root, tmp_path / "states", tmp_path / "found.json")
    run_ranks(1, work, tmp_path)
    assert json.loads((tmp_path / "found.json").read_text()) == [whole[3:]] * 2


def code_of_changing_mixtures() -> tuple[str, str]:
    """The blocks of code of docs/train/changing-mixtures.md, which end after batch `last` and keep what they saw."""
    page = (ROOT / "docs" / "train" / "changing-mixtures.md").read_text()
    loops = "    if step > last:\n        break\n    seen.append(batch['window'].tolist())\n"
    one, every = (block.replace("    ...\n", loops) for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    return one, every


def test_the_code_of_the_page_on_changing_mixtures_works(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(dataset.root)
    one, every = code_of_changing_mixtures()
    only = {leaf: Histogram.from_leaves([leaf], dataset.tree, 2) for leaf in (0, 3, 5, 15)}
    given = {"MixtureDataset": MixtureDataset, "ReadOptions": ReadOptions, "mixture": Mixture.base(dataset.manifest)}

    def leaves(batches: list[list[int]]) -> list[set[int]]:
        return [set(dataset.leaf_of_windows(np.array(batch)).tolist()) for batch in batches]

    names = {**given, "law": only[3], "medicine": only[15], "last": 560, "seen": []}
    exec(one, names)
    first = names["at"] // 16
    assert 20 <= first < 540
    assert leaves(names["seen"])[first : first + 20] == [{3}] * 10 + [{15}] * 10

    chosen = [list(only)[number] for number in np.random.default_rng(0).integers(0, 4, 100)]
    names = {**given, "histogram_of": lambda step: only[chosen[step]], "checkpoint": None, "last": 29, "seen": []}
    exec(every, names)
    seen = names["seen"]
    assert leaves(seen) == [{leaf} for leaf in chosen[:30]]
    names |= {"last": 49, "seen": []}
    exec(every, names)  # resumed
    assert leaves(names["seen"]) == [{leaf} for leaf in chosen[30:50]]
    whole = {**names, "checkpoint": None, "last": 49, "seen": []}
    exec(every, whole)  # not interrupted
    assert whole["seen"] == [*seen, *names["seen"]]
