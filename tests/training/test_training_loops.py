"""Training loops other than ours: what torchdata's StatefulDataLoader saves is continued in another process, and the
examples do what they say."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.format.dataset import Dataset
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.training.callbacks.composer_fixes import close_trainer
from tests.support.synthetic import write_synthetic_dataset

ROOT = Path(__file__).parent.parent.parent
SAMPLES = 96
BATCH = 8
CASES = [(num_workers, yield_batches) for num_workers in (0, 2) for yield_batches in (False, True)]
CONTINUE = """
import pickle, sys
from pathlib import Path
from tests.training.test_training_loops import CASES, make_loader

if __name__ == "__main__":
    root, mixture, states = pickle.loads(Path(sys.argv[1]).read_bytes())
    rest = []
    for case, state in zip(CASES, states, strict=True):
        loader = make_loader(root, mixture, *case)
        loader.load_state_dict(state)
        rest.append([batch["window"].tolist() for batch in loader])
    Path(sys.argv[1]).write_bytes(pickle.dumps(rest))
"""


def make_loader(root: str, mixture: Mixture, num_workers: int, yield_batches: bool) -> StatefulDataLoader:
    dataset = MixtureDataset(root, mixture, batch_size=BATCH, seed=3, yield_batches=yield_batches)
    return StatefulDataLoader(dataset, batch_size=None if yield_batches else BATCH, num_workers=num_workers)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("loops"), {0: 100, 3: 50, 5: 70, 15: 40})


@pytest.fixture(scope="module")
def mixture(dataset: Dataset) -> Mixture:
    task = Histogram.from_leaves([0, 0, 3, 15], dataset.tree, 2)
    return Mixture([Phase(Histogram.base(dataset.manifest), 50), Phase(task, SAMPLES - 50)])


def test_a_stateful_dataloader_goes_on_in_another_process(dataset: Dataset, mixture: Mixture, tmp_path: Path) -> None:
    whole = [batch["window"].tolist() for batch in make_loader(dataset.root, mixture, 0, True)]
    assert len(whole) == SAMPLES // BATCH
    states = []
    for stop, case in enumerate(CASES, start=4):  # before and after the switch at sample 50
        loader = make_loader(dataset.root, mixture, *case)
        batches = iter(loader)
        seen = [next(batches)["window"].tolist() for _ in range(stop)]
        states.append(loader.state_dict())
        assert [*seen, *(batch["window"].tolist() for batch in batches)] == whole
    handed_over = tmp_path / "states.pickle"
    handed_over.write_bytes(pickle.dumps((dataset.root, mixture, states)))
    (tmp_path / "continue.py").write_text(CONTINUE)
    finished = subprocess.run(
        [sys.executable, str(tmp_path / "continue.py"), str(handed_over)],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    rest = pickle.loads(handed_over.read_bytes())
    assert rest == [whole[stop:] for stop in range(4, 4 + len(CASES))]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def task(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("task") / "task.parquet"
    Histogram.from_leaves([0, 0, 3, 15], dataset.tree, 2).save(path)
    return str(path)


def test_the_plain_loop_goes_on_where_it_stopped(dataset: Dataset, task: str, tmp_path: Path) -> None:
    main = example("plain_torch").main
    options = [dataset.root, task, "--batch-size=4", "--width=16", "--save-every=3"]
    whole = main([*options, f"--checkpoint={tmp_path}/whole.pt", "--steps=6", "--workers=0"])
    first = main([*options, f"--checkpoint={tmp_path}/parts.pt", "--steps=3", "--workers=2"])
    rest = main([*options, f"--checkpoint={tmp_path}/parts.pt", "--steps=6", "--workers=2"])
    assert [*first, *rest] == whole


def test_the_accelerate_loop_goes_on_where_it_stopped(dataset: Dataset, task: str, tmp_path: Path) -> None:
    main = example("accelerate_loop").main
    options = [dataset.root, task, "--global-batch=4", "--width=16", "--save-every=3"]
    whole = main([*options, f"--save-folder={tmp_path}/whole", "--steps=5", "--workers=0"])
    first = main([*options, f"--save-folder={tmp_path}/parts", "--steps=3", "--workers=0"])
    rest = main([*options, f"--save-folder={tmp_path}/parts", "--steps=5", "--workers=1"])
    assert [*first, *rest] == whole


def test_the_composer_loop_goes_on_where_it_stopped(dataset: Dataset, task: str, tmp_path: Path) -> None:
    main = example("composer_loop").main
    options = [dataset.root, task, "--global-batch=4", "--width=16", f"--save-folder={tmp_path}/run"]
    close_trainer(main([*options, "--batches=3", "--workers=0"]))
    trainer = main([*options, "--batches=5", "--workers=1"])
    assert trainer.state.timestamp.batch == 5
    close_trainer(trainer)
    state = read_checkpoint(tmp_path / "run" / "latest-rank0.pt")["state"]
    assert state["dataset_state"]["train"]["position"] == 5 * 4
