"""Sizes that fit into some minutes on this machine, by what it does in a few seconds: embed windows, train steps."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Any

from crisp_stream.config.sections import ModelRecipe
from crisp_stream.errors import InputError, import_extra
from crisp_stream.processes import duration
from crisp_stream.table import aligned
from crisp_stream.trial.sizes import HELD_OUT, TrialSize
from crisp_stream.trial.split import TrialInputs

_LEAST_MINUTES = 3.0
_MOST_MINUTES = 240.0
_FIXED_SECONDS = 75.0
"""Imports, tokenizer, tree and page, on two cores."""
_KEPT_SHARE = 0.85
"""Share of the time that is planned; the rest is for what was measured too well."""
_LEAST_WINDOWS, _LEAST_BATCHES = 1_500, 60
_MOST_EPOCHS = 4
"""Times up to which repeating text is nearly as good as new (Muennighoff et al., 2023)."""
_BATCH = 16
_MEASURED_STEPS = 4
_LARGER_MINUTES = 45.0
_DOCUMENT_TOKENS = 300
"""Tokens of a held-out document, about."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """How large a trial is, and how long it takes, about."""

    size: TrialSize
    characters: int
    """Characters of the corpus's sample."""
    windows: int
    """Windows of the sample."""
    batches: int
    """Steps of each of the two trainings."""
    seconds: dict[str, float]
    """Time of each part."""
    whole: str
    """Size of the whole corpus, in words."""

    def text(self) -> str:
        """For people."""
        size = self.size
        tokens = self.batches * _BATCH * size.window_tokens
        rows = [
            ("corpus", self.whole),
            ("sample", f"{self.windows:,} windows of {size.window_tokens} tokens, {self.characters:,} characters"),
            (
                "tree",
                f"{size.arity} x {size.arity} clusters, a node of fewer than {size.min_examples_to_split} is kept",
            ),
            ("training", f"two models, {self.batches:,} batches and {tokens:,} tokens each"),
            ("time", f"about {duration(sum(self.seconds.values()))}, of which"),
            *((f"  {part}", duration(seconds)) for part, seconds in self.seconds.items()),
        ]
        return aligned(rows)


def plan_trial(inputs: TrialInputs, minutes: float) -> TrialPlan:
    """Choose sizes for some minutes. Takes about half a minute, which counts.

    Raises:
        InputError: minutes out of range, or nothing to read.
        MissingExtraError: a library of the demo extra is not installed.
    """
    from crisp_stream.writers.estimate import estimate_write
    from crisp_stream.writers.options import WriteOptions

    if not _LEAST_MINUTES <= minutes <= _MOST_MINUTES:
        raise InputError(f"--minutes: must be {_LEAST_MINUTES:g} to {_MOST_MINUTES:g}, got {minutes:g}.")
    begun = time.monotonic()
    size = TrialSize()
    model = ModelRecipe(n_embd=128, n_layer=3, n_head=4)
    if minutes >= _LARGER_MINUTES:
        size = replace(size, window_tokens=256, vocab_size=8192, encoder_pieces=128)
        model = ModelRecipe(n_embd=256, n_layer=4, n_head=4)
    options = WriteOptions(
        inputs=(inputs.corpus,),
        out="trial",
        text_column=inputs.text_column,
        window_tokens=size.window_tokens,
        vocab_size=size.vocab_size,
        max_length=size.encoder_pieces,
    )
    estimate = estimate_write(options)
    windows_per_second = estimate.windows / max(estimate.seconds["embedding windows"], 1e-9)
    tokens_per_second = _training_rate(size, model)
    measured = time.monotonic() - begun
    judged = 4 * HELD_OUT * _DOCUMENT_TOKENS / 3 / tokens_per_second  # a forward pass is a third of a step
    left = max(60 * minutes * _KEPT_SHARE - measured - _FIXED_SECONDS - judged, 0.0)
    windows = int(min(max(left / 2 * windows_per_second, _LEAST_WINDOWS), estimate.windows))
    embedding = windows / windows_per_second
    tokens = max(left - embedding, 0.0) / 2 * tokens_per_second
    tokens = min(tokens, _MOST_EPOCHS * windows * size.window_tokens)
    batches = max(int(tokens / (_BATCH * size.window_tokens)), _LEAST_BATCHES)
    arity = 8 if windows < 20_000 else 16 if windows < 100_000 else 32
    overrides = (
        *(f"model.{key}={getattr(model, key)}" for key in ("n_embd", "n_layer", "n_head")),
        f"max_duration={batches}ba",
        f"global_train_batch_size={_BATCH}",
        f"scheduler.t_warmup={max(1, batches // 10)}ba",
        f"save_interval={max(1, batches // 5)}ba",
        "save_num_checkpoints_to_keep=1",
    )
    trained = 2 * batches * _BATCH * size.window_tokens / tokens_per_second
    return TrialPlan(
        size=replace(size, arity=arity, recipe_overrides=overrides),
        characters=round(windows * estimate.characters / max(estimate.windows, 1e-9)),
        windows=windows,
        batches=batches,
        seconds={
            "measuring, reading": measured,
            "embedding": embedding,
            "training": trained,
            "judging": judged,
            "tokenizer, tree, page": _FIXED_SECONDS,
        },
        whole=f"about {estimate.documents:,.0f} documents, {estimate.windows:,.0f} such windows",
    )


def _training_rate(size: TrialSize, model: ModelRecipe) -> float:
    """Tokens a second of a training step, on the device that trains."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads its OpenMP, see trial.py
    torch = import_extra("torch", extra="train", purpose="training")
    from crisp_stream.models.gpt import build_gpt, gpt_config
    from crisp_stream.ranks import device_name

    config = gpt_config(model, vocab_size=size.vocab_size, window_tokens=size.window_tokens, eot_id=0)
    device = "cuda" if device_name() != "cpu" else "cpu"
    gpt: Any = build_gpt(config, seed=0)
    gpt.to(device)
    optimizer = torch.optim.AdamW(gpt.parameters())
    ids = torch.randint(0, size.vocab_size, (_BATCH, size.window_tokens), device=device)
    begun = 0.0
    for step in range(1 + _MEASURED_STEPS):
        if step == 1:
            begun = time.monotonic()  # the first step warms up
        gpt(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
    return _MEASURED_STEPS * ids.numel() / max(time.monotonic() - begun, 1e-9)
