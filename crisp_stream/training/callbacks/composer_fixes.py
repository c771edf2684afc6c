"""The end of a trainer, after which its memory is free.

Two libraries hold what a trainer held, model and optimiser with it, until the process ends: a process that trains one
model after another would keep them all.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from composer import Trainer


def close_trainer(trainer: Trainer) -> None:
    """Close a trainer; its memory is free once nothing else refers to it and garbage is collected.

    Other trainers of the process lose their closing at exit, as they do when Composer itself deletes one.
    """
    from composer.callbacks import CheckpointSaver
    from torch.distributed.checkpoint import state_dict

    trainer.close()
    for callback in trainer.state.callbacks:
        if isinstance(callback, CheckpointSaver):
            callback.tmp_dir_for_symlink.cleanup()  # else it warns when it is deleted
    engine: Any = trainer.engine
    atexit.unregister(engine._close)  # Composer leaves it registered, with the trainer's state: its pull request 3943
    names: Any = getattr(state_dict, "_get_fqns", None)
    if hasattr(names, "cache_clear"):  # PyTorch's issue 149100: names of parameters, by model; newer ones keep none
        names.cache_clear()
