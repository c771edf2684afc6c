"""Arithmetic of training: FLOPs of a token, peaks of devices, MFU, GPU-hours."""

from __future__ import annotations

from dataclasses import dataclass

from crisp_stream.config.sections import ModelRecipe
from crisp_stream.models.training_cost import flops_per_token, gpt_parameters

PEAK_FLOPS = {
    "H200 NVL": None,
    "H100 NVL": None,
    "H100 PCIe": 1513e12 / 2,
    "H200": 1979e12 / 2,
    "H100": 1979e12 / 2,
    "A100": 312e12,
    "A10": 125e12,
}
"""Dense bfloat16 FLOP/s of a device whose torch name holds the key, first match; None: two data sheets disagree.

NVIDIA's data sheets of H100 and H200 (which give twice that, with sparsity), A100 and A10.
"""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of a trained token, of `flops_per_token`.

    Causal attention needs only half of what it counts for attention, and a kernel that skips the other half does half
    the work; both are given.
    """

    parameters: int
    full: float
    causal: float

    @classmethod
    def of(cls, model: ModelRecipe, *, vocab_size: int, window_tokens: int) -> Flops:
        """Of a model at a vocabulary and window."""
        shape = {"n_layer": model.n_layer, "n_embd": model.n_embd}
        parameters = gpt_parameters(**shape, n_positions=model.n_positions or window_tokens, vocab_size=vocab_size)
        full, parameters_alone = flops_per_token(parameters, **shape, window_tokens=window_tokens), 6.0 * parameters
        return cls(parameters=parameters, full=full, causal=(full + parameters_alone) / 2)


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 peak of a device by torch's name for it; None if it is not listed."""
    return next((peak for key, peak in PEAK_FLOPS.items() if key in device), None)


def gpu_hours(tokens: float, flops_per_token: float, *, peak: float, mfu: float) -> float:
    """GPU-hours of a training at an assumed model FLOPs utilisation."""
    return tokens * flops_per_token / (peak * mfu) / 3600
