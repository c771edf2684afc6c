"""The formula for a step's memory agrees with what torch's memory tracker finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crisp_stream.models.gpt import GPT_SIZES
from crisp_stream.models.training_cost import gpt_parameters
from crisp_stream.models.training_memory import StepShape, step_memory

TRACKED = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "train-memory.json"


@pytest.mark.parametrize("row", json.loads(TRACKED.read_text())["rows"], ids=lambda row: row["size"] + row["layout"])
def test_the_memory_of_a_step_is_that_which_was_tracked(row: dict[str, Any]) -> None:
    size, layout = GPT_SIZES[row["size"]], row["layout"]
    named = {"n_layer": size.n_layer, "n_embd": size.n_embd, "vocab_size": 32_768}
    for windows in (8, 16):
        shape = StepShape(
            num_parameters=gpt_parameters(**named, n_positions=1024),
            **named,
            window_tokens=1024,
            microbatch_size=windows,
            half_precision=True,
            activation_checkpointing=row["checkpointing"] == "yes",
            ranks=1 if layout == "1 GPU" else int(layout.split()[1]) if "ranks" in layout else 8,
            sharded="FSDP2" in layout,
            reshard_after_forward=True,
        )
        assert step_memory(shape) == pytest.approx(1e9 * (row["fixed"] + windows * row["per_window"]), rel=0.06)


def test_float32_and_weights_that_stay_gathered() -> None:
    """128 MB of states of 8M parameters; 68 bytes of a block and 12 of the vocabulary; 2 bytes more where gathered."""
    named = {"num_parameters": 8_000_000, "n_layer": 4, "n_embd": 256, "vocab_size": 4096, "window_tokens": 512}
    plain = {"microbatch_size": 2, "activation_checkpointing": False, "reshard_after_forward": False}
    one = StepShape(**named, **plain, half_precision=False, ranks=1, sharded=False)
    assert step_memory(one) == 128e6 + 1024 * (68 * 4 * 256 + 12 * 4096)
    sharded = StepShape(**named, **plain, half_precision=True, ranks=4, sharded=True)
    assert step_memory(sharded) == 32e6 + 16e6 + 1024 * (38 * 4 * 256 + 12 * 4096)
