"""Sizes at which a trial takes seconds: what it does is tested, not whether CRISP wins."""

from __future__ import annotations

from crisp_stream.trial.sizes import TrialSize

SMALL_TRIAL = TrialSize(
    window_tokens=64,
    vocab_size=512,
    encoder_pieces=32,
    arity=4,
    min_examples_to_split=16,
    recipe_overrides=(
        "max_duration=4ba",
        "global_train_batch_size=4",
        "model.n_embd=32",
        "model.n_layer=1",
        "model.n_head=2",
        "scheduler.t_warmup=1ba",
    ),
)
