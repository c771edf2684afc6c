"""bench_train.py at toy size, the arithmetic of its tables, and the computed memory held against a real run."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.callbacks.speed_monitor import GPU_AVAILABLE_FLOPS

from benchmarks.support.measure import UnavailableError, out_of_memory_is_unavailable
from benchmarks.support.report import table
from benchmarks.training import bench_train, memory_section, train_section
from benchmarks.training.train_flops import Flops, gpu_hours, peak_flops
from benchmarks.training.training_memory import Step, computed_peak, measured_peak
from crisp_stream.models.gpt import GPT_SIZES
from tests.support.ranks import run_ranks

SIDES = ["crisp-stream, real loader", "crisp-stream, tensors on the device", "transformers, eager float32"]


class Task:
    """A task of a benchmark in a forked process; the first rank saves its result."""

    def __init__(self, task: str, options: Mapping[str, Any], saved: Path) -> None:
        self._task, self._options, self._saved = task, options, saved

    def __call__(self) -> None:
        module, _, function = self._task.partition(":")
        result = getattr(importlib.import_module(f"benchmarks.{module}"), function)(**self._options)
        if os.environ["RANK"] == "0":
            self._saved.write_text(json.dumps(result))


@pytest.mark.parametrize("how", [[], ["--ranks", "2", "--fsdp"]])
def test_every_side_is_measured_at_toy_size(
    how: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forked(task: str, options: Mapping[str, Any], *, timeout: float, ranks: int) -> dict[str, Any]:
        run_ranks(ranks, Task(task, options, tmp_path / "result.json"), tmp_path)
        return json.loads((tmp_path / "result.json").read_text())

    monkeypatch.setattr(train_section, "run_task", forked)
    arguments = ["--sizes", "toy", "--steps", "2", "--turns", "2", "--work", str(tmp_path), "--peak-tflops", "1", *how]
    bench_train.main(arguments)
    found = json.loads((tmp_path / "train-speed.json").read_text())
    assert [row["side"] for row in found["rows"]] == SIDES
    for row in found["rows"]:
        assert row["tokens"] == pytest.approx(8 * 64 / (2 if how else 1) / row["ms"] * 1e3)
        assert 0 < row["mfu_causal"] < row["mfu"] < 100
        assert row["memory"] > 0.1
    assert 0 <= found["rows"][0]["waiting"] < 100
    assert re.search(r"with the loader a step takes [+-]\d+\.\d\d%", capsys.readouterr().out)


def test_a_size_that_does_not_fit_is_a_row() -> None:
    with pytest.raises(UnavailableError, match="out of memory"), out_of_memory_is_unavailable():
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_is_unavailable():
        torch.mm(torch.ones(2, 2), torch.ones(3, 3))
    row = {"size": "6.7B", "side": SIDES[0], "batch": "128 / 8", "unavailable": "out of memory"}
    assert "| 6.7B | crisp-stream, real loader | 128 / 8 | out of memory |" in table(train_section.COLUMNS, [row])


def test_flops_and_hours_are_the_formula() -> None:
    flops = Flops.of(GPT_SIZES["1.3B"], vocab_size=32_768, window_tokens=1024)
    assert flops.full == 6 * 1_277_808_640 + 12 * 24 * 2048 * 1024
    assert flops.causal == 6 * 1_277_808_640 + 6 * 24 * 2048 * 1024
    assert gpu_hours(1e6 * 112 * 1024, flops.full, peak=989.5e12, mfu=0.4) == pytest.approx(665.7, abs=0.1)


@pytest.mark.parametrize(
    ("device", "composers"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10", "a10"),
    ],
)
def test_peaks_are_those_that_composer_knows(device: str, composers: str) -> None:
    assert peak_flops(device) == GPU_AVAILABLE_FLOPS[composers]["bf16"]
    assert peak_flops("NVIDIA H100 NVL") is peak_flops("CPU") is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_computed_memory_is_what_a_real_step_needs(checkpointing: bool) -> None:
    model = {"n_embd": 256, "n_layer": 4, "n_head": 4, "activation_checkpointing": checkpointing}
    step = Step(model=model, microbatch=8, vocab_size=4096, window_tokens=256, bf16=False)
    computed = computed_peak(step)["Total"]
    assert measured_peak(step) == pytest.approx(computed, rel=0.05)


def test_a_row_of_the_memory_table_names_the_largest_microbatch() -> None:
    row = memory_section.table_row({8: 20e9, 32: 44e9}, {"size": "350M"})
    assert (row["fixed"], row["per_window"]) == (12.0, 1.0)
    assert (row["windows, 80 GB"], row["power, 80 GB"], row["used, 80 GB"]) == (60, 32, 44.0)
    assert row["windows, 141 GB"] == 114
    assert memory_section.table_row({2: 130e9, 16: 150e9}, {})["windows, 141 GB"] == 0
