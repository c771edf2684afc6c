"""gpu_check.py at toy size, in this process; and what becomes of a part that cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Part, check, main, parts, run_part
from benchmarks.support.report import table


def test_every_part_is_measured_at_toy_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["--toy", "--peak-tflops", "1", "--out", str(tmp_path / "check.json")])
    printed = capfd.readouterr().out
    found = json.loads((tmp_path / "check.json").read_text())
    values: dict[tuple[str, str], Any] = {(row["part"], row["figure"]): row["value"] for row in found["rows"]}
    assert {part for part, _ in values} == {part.name for part in parts("", toy=True)}
    assert all(f"| {part} | {figure} | " in printed for part, figure in values)
    assert values["training toy", "tokens/s"] == pytest.approx(8 * 64e3 / values["training toy", "ms per step"])
    assert 0 < values["training toy", "MFU, causal half, %"] < values["training toy", "MFU, %"] < 100
    assert 0 <= values["training toy", "waiting for data, %"] < 100
    assert values["embedding", "pieces to stored vectors against the bare forward pass"] > 0.1
    assert values["resume", "resumed: equal bit for bit"] == "yes"
    assert values["resume", "resumed: largest difference of a loss, nats"] == 0
    assert values["resume", "resumed: largest difference of a weight"] == 0
    assert 0 < values["evaluation", "bfloat16: largest difference of a row's mean loss, nats"] < 1e-2
    assert values["DoGE step", "ms per step"] > 0


def test_the_parts_of_a_gpu_are_the_papers_sizes_and_those_of_the_toy() -> None:
    on_gpu, toy = parts("", toy=False), parts("", toy=True)
    assert [part.name for part in on_gpu] == ["training 350M", "training 1.3B", *(part.name for part in toy[1:])]
    assert {part.task for part in on_gpu} == {part.task for part in toy}
    by_task = {part.task: part.options.keys() for part in toy}
    assert all(part.options.keys() == by_task[part.task] for part in on_gpu)


@pytest.mark.parametrize("alone", [True, False])
def test_a_part_that_cannot_run_is_a_row_that_says_why(alone: bool, capfd: pytest.CaptureFixture[str]) -> None:
    broken = Part(name="broken", task="training.absent:part", options={})
    rows, notes = check([broken], alone=alone)
    why = "cannot run: ModuleNotFoundError: No module named 'benchmarks.training.absent'"
    assert (rows, notes) == ([{"part": "broken", "unavailable": why}], [])
    assert f"| broken | {why} |" in table(gpu_check.COLUMNS, rows)
    assert "Traceback" in capfd.readouterr().err


def test_a_part_for_which_no_time_is_left_says_so() -> None:
    part = parts("", toy=True)[0]
    assert run_part(part, alone=True, seconds=0) == {"unavailable": "left out: 8 minutes are over"}
