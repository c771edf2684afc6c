"""Arithmetic of training: FLOPs of a token, peaks of devices, MFU, GPU-hours."""

from __future__ import annotations

from dataclasses import dataclass

from crisp_stream.model import count_parameters
from crisp_stream.recipe import ModelRecipe

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
    """FLOPs of a trained token: forward and backward pass, without recomputation.

    6N + 12 x layers x width x window (Chowdhery et al. 2022, PaLM, App. B). N is every trained parameter: the tied
    embedding once, which is the output layer's product; looking it up costs nothing. Causal attention needs only half
    of the second term, and a kernel that skips the other half does half the work; both are given.
    """

    parameters: int
    full: float
    causal: float

    @classmethod
    def of(cls, model: ModelRecipe, *, vocab_size: int, window_tokens: int) -> Flops:
        """Of a model at a vocabulary and window."""
        parameters = count_parameters(model, vocab_size=vocab_size, window_tokens=window_tokens)
        attention = 12.0 * model.n_layer * model.n_embd * window_tokens
        return cls(parameters=parameters, full=6 * parameters + attention, causal=6 * parameters + attention / 2)


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 peak of a device by torch's name for it; None if it is not listed."""
    return next((peak for key, peak in PEAK_FLOPS.items() if key in device), None)


def gpu_hours(tokens: float, flops_per_token: float, *, peak: float, mfu: float) -> float:
    """GPU-hours of a training at an assumed model FLOPs utilisation."""
    return tokens * flops_per_token / (peak * mfu) / 3600
