"""What methods reach for what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.results.costs import CostAxis, costs, method_of
from crisp_stream.results.results import QuestionResults
from tests.support.made_results import answered, text_results

SMALL, LARGE = 10, 100


def record(tokens: int, hours: float | None, *, width: int = 4, histogram: str = "base", **more: Any) -> dict[str, Any]:
    return {
        "model": {"n_layer": 1, "n_embd": width, "n_positions": 8, "vocab_size": 16},
        "progress": {"tokens": tokens, "batches": 1, "began_at_batch": 0},
        "device_seconds": None if hours is None else {"H100": 3600 * hours},
        "dataset": {"fingerprint": "d", "window_tokens": 8},
        "mixture": {"phases": [{"histogram": histogram}]},
        **more,
    }


def judged(name: str, right: int, size: int, training: dict[str, Any]) -> QuestionResults:
    return answered(name, right, 100, set_name="quiz", num_parameters=size, training=training, batch=None)


def made() -> list[QuestionResults]:
    """A small model that stops getting better, and a large one that overtakes it; another method beside them."""
    return [
        judged("s3", 29, SMALL, record(300, 3.0)),
        judged("s1", 20, SMALL, record(100, 1.0)),
        judged("l2", 40, LARGE, record(200, 8.0, width=8)),
        judged("s2", 30, SMALL, record(200, 2.0)),
        judged("l1", 28, LARGE, record(100, 4.0, width=8)),
        judged("l3", 50, LARGE, record(300, 12.0, width=8)),
        judged("t1", 45, SMALL, record(100, 1.5, histogram="task.parquet")),
    ]


def test_checkpoints_stand_by_cost_and_the_best_so_far_and_its_changes_of_size_are_marked() -> None:
    points = [point for point in costs(made(), axis="device-hours").points if point.method == "base"]
    assert [(point.model, point.cost) for point in points] == [
        ("s1", 1.0),
        ("s2", 2.0),
        ("s3", 3.0),
        ("l1", 4.0),
        ("l2", 8.0),
        ("l3", 12.0),
    ]
    assert [point.model for point in points if point.best_so_far] == ["s1", "s2", "l2", "l3"]
    assert [point.model for point in points if point.size_changes] == ["l2"]


def test_of_perplexities_the_lowest_is_best() -> None:
    losses = [text_results(f"m{n}", [loss], training=record(n, 1.0), batch=n) for n, loss in enumerate([3.0, 2.0, 2.5])]
    points = costs(losses, axis="tokens").points
    assert [(point.cost, point.best_so_far) for point in points] == [(0, True), (1, True), (2, False)]


def test_flops_are_of_tokens_and_architecture() -> None:
    points = {point.model: point.cost for point in costs(made(), axis="flops").points}
    parameters = (16 + 8 + 2) * 4 + 12 * 16 + 13 * 4
    assert points["s2"] == 200 * (6 * parameters + 12 * 1 * 4 * 8)
    assert points["l2"] > 2 * points["s2"]


def test_what_a_model_was_tuned_from_is_part_of_its_cost_and_its_method() -> None:
    parent = record(100, 1.0)
    tuned = record(20, 0.5, parent=parent, restarted=["data", "optimizer", "schedule"])
    tuned["dataset"] = {"fingerprint": "specialist", "window_tokens": 8}
    (point,) = costs([judged("tuned", 1, SMALL, tuned)], axis="device-hours").points
    assert (point.cost, point.method) == (1.5, "base > other data: base")
    (point,) = costs([judged("tuned", 1, SMALL, tuned)], axis="tokens").points
    assert point.cost == 120


def test_a_mixture_that_goes_on_is_named_by_its_phases_alone() -> None:
    phases = {"phases": [{"histogram": "base"}, {"histogram": "mmlu.parquet"}]}
    continued = record(150, 1.0, mixture=phases, parent=record(100, 1.0), restarted=[])
    assert method_of(judged("c", 1, SMALL, continued), {}) == "base, then mmlu"
    assert method_of(judged("c-ba8", 1, SMALL, continued), {"c-*": "CRISP"}) == "CRISP"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"device_seconds": None}, r"device time of x is not known.* --cost flops or --cost tokens"),
        (
            {"device_seconds": {"A100": 1.0}},
            r"device-hours of different devices cannot be compared: H100 .* A100 \(x\)",
        ),
    ],
)
def test_device_hours_that_are_unknown_or_of_other_devices_are_refused(changed: dict[str, Any], message: str) -> None:
    other = judged("x", 1, SMALL, {**record(1, 1.0), **changed})
    with pytest.raises(InputError, match=message):
        costs([*made(), other], axis="device-hours")
    assert len(costs([*made(), other], axis="tokens").points) == 8


def test_a_model_that_does_not_say_how_it_was_trained_is_named() -> None:
    axes: list[CostAxis] = ["device-hours", "flops", "tokens"]
    for axis in axes:
        with pytest.raises(InputError, match=r"^bare: the training record lacks"):
            costs([judged("bare", 1, SMALL, {})], axis=axis)


def test_the_command_prints_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for found in made():
        found.save(tmp_path)
    csv, plot = tmp_path / "c.csv", tmp_path / "c.svg"
    command = ["results", "cost", str(tmp_path), "--csv", str(csv), "--plot", str(plot)]
    assert main([*command, "--method", "CRISP=t*"]) == 0
    printed = capsys.readouterr().out
    assert "device: H100" in printed
    assert "best so far, another size" in printed
    head, *body = (line.split(",") for line in csv.read_text().splitlines())
    assert [line[head.index("method")] for line in body].count("CRISP") == 1
    assert plot.read_bytes().endswith(b"</svg>\n")
    assert main([*command, "--method", "CRISP"]) == 2
    assert "--method: must be NAME=PATTERN, got 'CRISP'" in capsys.readouterr().err
