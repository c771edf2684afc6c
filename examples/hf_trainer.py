"""Train with transformers.Trainer around a MixtureDataset.

    python examples/hf_trainer.py data medicine.parquet --steps 400 --save-folder run
    torchrun --nproc-per-node 4 examples/hf_trainer.py data medicine.parquet --steps 400 --save-folder run

`MixtureTrainer` and `LoaderState` are what a Trainer needs: every rank takes the batches of its own loader, and the
place of the loader stands in the checkpoint's trainer_state.json. When it is run again, it goes on, on any number of
ranks and workers that divides the global batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

from crisp_stream import Histogram, Mixture, MixtureDataset


class MixtureTrainer(Trainer):
    """A Trainer whose datasets are MixtureDatasets."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Give the loader of this rank, which nobody deals to the ranks once more."""
        return self._loader(self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The same for evaluation, on a MixtureDataset with `same_pass=True`."""
        return self._loader(self.eval_dataset if eval_dataset is None else eval_dataset)

    def _loader(self, dataset: Any) -> DataLoader[Any]:
        assert isinstance(dataset, MixtureDataset)
        return dataset.loader(self.args.dataloader_num_workers, pin_memory=self.args.dataloader_pin_memory)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Leave out `cluster` and `window`, which the model does not take."""
        return super().compute_loss(model, {key: inputs[key] for key in ("input_ids", "labels")}, *args, **options)


class LoaderState(TrainerCallback, ExportableState):
    """Saves the place of the loader in trainer_state.json, and goes on from it."""

    loader: Any = None

    def state(self) -> dict[str, Any]:
        """Say where the loader stands; the Trainer saves that in every checkpoint."""
        return {"args": {}, "attributes": {"place": None if self.loader is None else self.loader.state_dict()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Go on from the checkpoint, if there is one."""
        self.loader = objects["train_dataloader"]
        if state.global_step:
            if not args.ignore_data_skip:
                raise ValueError("the Trainer would skip the same batches once more: set ignore_data_skip=True.")
            self.loader.load_state_dict(state.stateful_callbacks["LoaderState"]["attributes"]["place"])


def main(arguments: Sequence[str] | None = None) -> Trainer:
    """Train, or go on training."""
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
    settings = TrainingArguments(  # before MixtureDataset: it makes the process group
        output_dir=str(asked.save_folder),
        max_steps=asked.steps,  # an open-ended mixture has no epoch
        gradient_accumulation_steps=asked.accumulate,
        save_strategy="steps",
        save_steps=asked.save_every,
        logging_steps=1,
        ignore_data_skip=True,  # LoaderState goes on from the exact place
        dataloader_num_workers=asked.workers,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        seed=17,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    per_rank = asked.global_batch // settings.world_size // asked.accumulate
    settings.per_device_train_batch_size = per_rank  # for what the Trainer reports; the dataset makes the batches

    mixture = Mixture.from_histogram(Histogram.load(asked.histogram))
    dataset = MixtureDataset(asked.root, mixture, batch_size=per_rank, seed=17)
    if dataset.global_batch_size * asked.accumulate != asked.global_batch:
        parser.error(f"the ranks cannot share --global-batch {asked.global_batch} equally")
    manifest = dataset.dataset.manifest
    config = GPT2Config(
        vocab_size=manifest.tokenizer.vocab_size,
        n_positions=manifest.window_tokens,
        n_embd=asked.width,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    trainer = MixtureTrainer(GPT2LMHeadModel(config), settings, train_dataset=dataset, callbacks=[LoaderState()])
    asked.save_folder.mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(asked.save_folder)))
    return trainer


if __name__ == "__main__":
    main()
