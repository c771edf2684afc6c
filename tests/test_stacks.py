"""Files of the other stack: its datasets and checkpoints are read bit for bit, and its runs go on here.

`make stacks` names the other stack's Python in OTHER_PYTHON, both ways; without it these tests are not collected.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.loading.reader import read_windows
from crisp_stream.models.checkpoint import read_checkpoint
from crisp_stream.models.training_record import training_record
from crisp_stream.training.train import train
from tests.support.small_runs import SmallRun, copy_until, losses_of, small_run, windows_of

ROOT = Path(__file__).parent.parent
PACKAGES = {"composer": "mosaicml", "torch": "torch", "transformers": "transformers"}
WORK = """
import json, sys
from pathlib import Path
from tests.test_stacks import Folder, versions, digests
from tests.support.small_runs import small_run
done = small_run(Folder(Path(sys.argv[1])))
print(json.dumps([versions(), *digests(done)]))
"""


@dataclass(frozen=True)
class Folder:
    """What small_run asks of pytest's factory of folders."""

    path: Path

    def getbasetemp(self) -> Path:
        """The folder itself."""
        return self.path


def versions() -> dict[str, str]:
    """Of the packages that train."""
    return {name: metadata.version(package) for name, package in PACKAGES.items()}


def digests(done: SmallRun) -> tuple[str, dict[str, str]]:
    """sha256 of all tokens of the run's dataset, and of every weight of its checkpoint after batch 8."""
    weights = read_checkpoint(done.checkpoint(8))["state"]["model"]
    return tokens_digest(done.dataset), {
        name: hashlib.sha256(weight.numpy().tobytes()).hexdigest() for name, weight in weights.items()
    }


def tokens_digest(dataset: Dataset) -> str:
    tokens = read_windows(dataset, np.arange(dataset.manifest.num_windows))["tokens"]
    return hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest()


@dataclass(frozen=True)
class Other:
    """A run of the other stack, and what that stack says of it."""

    run: SmallRun
    versions: dict[str, str]
    tokens: str
    weights: dict[str, str]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Other:
    folder = tmp_path_factory.mktemp("other")
    done = subprocess.run(
        [os.environ["OTHER_PYTHON"], "-c", WORK, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made, tokens, weights = json.loads(done.stdout.splitlines()[-1])
    assert made["torch"] != versions()["torch"], "the same stack twice"
    return Other(small_run(Folder(folder)), made, tokens, weights)  # pyright: ignore[reportArgumentType]


def test_a_dataset_and_a_checkpoint_are_read_bit_for_bit(other: Other) -> None:
    assert digests(other.run) == (other.tokens, other.weights)
    assert open_dataset(other.run.dataset.root).manifest.num_windows > 400


def test_a_run_goes_on_and_says_what_trained_it_before(other: Other, tmp_path: Path) -> None:
    copy_until(other.run.save_folder, 8, tmp_path / "run")
    report = train(other.run.recipe(f"save_folder={tmp_path}/run", "autoresume=true"))
    assert report.resumed_at == 8
    assert windows_of(tmp_path / "run") == windows_of(other.run.save_folder)
    ours, theirs = (np.array(losses_of(folder), float) for folder in (tmp_path / "run", other.run.save_folder))
    np.testing.assert_array_equal(ours[:8], theirs[:8])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    checkpoint = tmp_path / "run" / "ep0-ba12-rank0.pt"
    record = training_record(read_checkpoint(checkpoint), checkpoint)
    assert record["versions"] | versions() == record["versions"]
    (before,) = record["earlier_versions"]
    assert before | other.versions == before
    assert before["until_batch"] == 8
