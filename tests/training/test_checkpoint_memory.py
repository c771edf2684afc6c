"""Ranks that go on from a checkpoint share one copy of it, whether they shard the model or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crisp_stream.training.train import train
from tests.support.small_runs import SmallRun, copy_until, launch, losses_of, small_run

WIDE = (
    *("model.n_embd=256", "model.n_head=4", "model.n_layer=8", "save_interval=1ba", "optimizer.lr=1e-4"),
    "mixture.phases=[{histogram: base}]",
)
"""6M parameters: a checkpoint of 77 MB, beside which other allocations are small."""

OBSERVE = """
import json, re, threading
from pathlib import Path
from composer.utils import checkpoint, dist

def private_bytes():
    return int(re.search(r'RssAnon:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) << 10

def restore(*arguments, restore=checkpoint._restore_checkpoint, **named):
    done, peak, before = threading.Event(), 0, private_bytes()
    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, private_bytes())
    thread = threading.Thread(target=watch)
    thread.start()
    restored = restore(*arguments, **named)
    done.set()
    thread.join()
    rows = dist.all_gather_object(peak - before)
    if dist.get_global_rank() == 0:
        with open(FILE, 'a') as file:
            print(json.dumps(rows), file=file)
    return restored

checkpoint._restore_checkpoint = restore
"""
"""Writes by how much the private memory of each rank grows at most while Composer loads a checkpoint."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def test_no_rank_holds_a_checkpoint_in_memory_of_its_own(done: SmallRun, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    train(done.recipe(*WIDE, "max_duration=2ba", f"save_folder={whole}"))
    checkpoint_bytes = (whole / "ep0-ba1-rank0.pt").stat().st_size
    runs = []
    for name, own in (("ddp", []), ("sharded", ["fsdp={}"])):
        copy_until(whole, 1, tmp_path / name, first=1, every=1)
        runs.append([*WIDE, *own, "max_duration=2ba", f"save_folder={tmp_path}/{name}", "autoresume=true"])
    launch(done, 2, runs, tmp_path, before=OBSERVE.replace("FILE", repr(str(tmp_path / "grown"))))
    ddp, sharded = [json.loads(line) for line in (tmp_path / "grown").read_text().splitlines()]
    # torch makes moments and gradients before it loads moments: as much as a checkpoint, or half where sharded by two
    assert max(ddp) < 1.3 * checkpoint_bytes
    assert max(sharded) < 0.8 * checkpoint_bytes
    for name in ("ddp", "sharded"):
        assert [float(loss) for loss in losses_of(tmp_path / name)] == pytest.approx(
            [float(loss) for loss in losses_of(whole)], rel=1e-5
        )
