"""Loggers that get a run's metrics besides the console: Composer's for files, TensorBoard and Weights & Biases.

All of them write below `logs/` of the `save_folder`; log_files.py brings what they write to a folder in object storage.
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.config.sections import LoggersRecipe
from crisp_stream.errors import require_extra

if TYPE_CHECKING:
    from composer.loggers import LoggerDestination

    from crisp_stream.config.recipe import Recipe

_NEVER = 1 << 60
"""Batches between flushes by Composer, each of which starts another TensorBoard file. LogFiles flushes without that."""


def require_loggers(loggers: LoggersRecipe) -> None:
    """Raise MissingExtraError where the package of a logger is not installed."""
    if loggers.tensorboard:
        require_extra("tensorboard", extra="loggers", purpose="`loggers.tensorboard`")
    if loggers.wandb is not None:
        require_extra("wandb", extra="loggers", purpose="`loggers.wandb`")


def build_loggers(recipe: Recipe, folder: Path) -> list[LoggerDestination]:
    """Make Composer's loggers for a recipe, writing below a local folder. No file of an earlier part is overwritten."""
    from composer.loggers import FileLogger, TensorboardLogger, WandBLogger

    wanted, loggers = recipe.loggers, []
    escaped = str(folder).replace("{", "{{").replace("}", "}}")
    if wanted.file:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        loggers.append(FileLogger(f"{escaped}/{stamp}-rank{{rank}}.txt", flush_interval=recipe.log_interval))
    if wanted.tensorboard:
        loggers.append(TensorboardLogger(str(folder / "tensorboard"), flush_interval=_NEVER))
    if wanted.wandb is not None:
        folder.mkdir(parents=True, exist_ok=True)
        init: dict[str, Any] = {"dir": str(folder), "mode": wanted.wandb.mode, "config": dataclasses.asdict(recipe)}
        loggers.append(
            WandBLogger(
                project=wanted.wandb.project,
                entity=wanted.wandb.entity,
                group=recipe.run_name,
                name=recipe.run_name,
                tags=list(wanted.wandb.tags),
                init_kwargs=init,
            )
        )
    return loggers
