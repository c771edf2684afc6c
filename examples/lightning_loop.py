"""Train with a Lightning Trainer around a MixtureDataset.

    python examples/lightning_loop.py data medicine.parquet --steps 400 --save-folder run
    torchrun --nproc-per-node 4 examples/lightning_loop.py data medicine.parquet --steps 400 --save-folder run

Lightning saves the state of loaders that have one. Where a mixture has no end it takes one batch ahead of training, so
`CountedBySteps` counts what was trained on instead. When it is run again, it goes on, on any number of ranks and
workers that divides the global batch.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import GPT2Config, GPT2LMHeadModel

from crisp_stream import Histogram, Mixture, MixtureDataset, open_dataset


class CountedBySteps:
    """Batches of an open-ended mixture, whose state is what the trainer's steps have used."""

    def __init__(self, dataset: MixtureDataset, num_workers: int, trainer: lightning.Trainer) -> None:
        self._dataset, self._loader, self._trainer = dataset, dataset.loader(num_workers), trainer

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """Say where training stands; Lightning saves that in every checkpoint."""
        batches = self._trainer.global_step * self._trainer.accumulate_grad_batches
        return self._dataset.state_dict(num_samples=batches * self._dataset.global_batch_size)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._dataset.load_state_dict(state_dict)


class Windows(lightning.LightningDataModule):
    """Windows in the proportions of a task."""

    def __init__(self, root: str, histogram: str, global_batch: int, num_workers: int) -> None:
        super().__init__()
        self._root, self._histogram, self._global_batch, self._num_workers = root, histogram, global_batch, num_workers

    def train_dataloader(self) -> CountedBySteps:
        """Make the loader of this rank; the process group is there."""
        trainer = self.trainer
        assert trainer is not None
        per_rank = self._global_batch // trainer.world_size // trainer.accumulate_grad_batches
        mixture = Mixture.from_histogram(Histogram.load(self._histogram))
        dataset = MixtureDataset(self._root, mixture, batch_size=per_rank, seed=17)
        if dataset.global_batch_size * trainer.accumulate_grad_batches != self._global_batch:
            raise ValueError(f"the ranks cannot share a global batch of {self._global_batch} equally")
        return CountedBySteps(dataset, self._num_workers, trainer)


class SmallGPT(lightning.LightningModule):
    """A GPT that keeps the losses of this process."""

    def __init__(self, vocab_size: int, window_tokens: int, width: int) -> None:
        super().__init__()
        config = GPT2Config(vocab_size=vocab_size, n_positions=window_tokens, n_embd=width, n_layer=2, n_head=2)
        self.model = GPT2LMHeadModel(config)
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss."""
        loss = self.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, or go on training; returns the loss of every batch of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="dataset written by crisp-stream write")
    parser.add_argument("histogram", help="written by crisp-stream histogram")
    parser.add_argument("--save-folder", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--accumulate", type=int, default=1, help="batches of a rank in a step")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    asked = parser.parse_args(arguments)
    lightning.seed_everything(17)
    ranks, local_ranks = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    saving = ModelCheckpoint(
        asked.save_folder, filename="run", every_n_train_steps=asked.save_every, enable_version_counter=False
    )
    trainer = lightning.Trainer(
        max_steps=asked.steps,  # an open-ended mixture has no epoch
        accumulate_grad_batches=asked.accumulate,
        devices=local_ranks,
        num_nodes=ranks // local_ranks,
        strategy="ddp" if ranks > 1 else "auto",
        use_distributed_sampler=False,
        callbacks=[saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    manifest = open_dataset(asked.root).manifest
    model = SmallGPT(manifest.tokenizer.vocab_size, manifest.window_tokens, asked.width)
    windows = Windows(asked.root, asked.histogram, asked.global_batch, asked.workers)
    saved = asked.save_folder / "run.ckpt"
    trainer.fit(model, datamodule=windows, ckpt_path=saved if saved.exists() else None)
    if trainer.global_step % asked.save_every:
        trainer.save_checkpoint(saved)
    return model.losses


if __name__ == "__main__":
    main()
