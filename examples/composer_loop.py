"""Train with a Composer Trainer around a MixtureDataset; `crisp-stream train` does this and more from a recipe.

    python examples/composer_loop.py data medicine.parquet --steps 400 --save-folder run
    composer -n 8 examples/composer_loop.py data medicine.parquet --steps 400 --save-folder run

Composer keeps the place in its checkpoints: it calls `state_dict(num_samples)` and `load_state_dict` of the loader's
dataset. When it is run again, it goes on, on any number of ranks and workers that divides the global batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from composer.utils import dist
from transformers import GPT2Config, GPT2LMHeadModel

from crisp_stream import Histogram, Mixture, MixtureDataset


def main(arguments: Sequence[str] | None = None) -> Trainer:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="dataset written by crisp-stream write")
    parser.add_argument("histogram", help="written by crisp-stream histogram")
    parser.add_argument("--save-folder", default="run")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    asked = parser.parse_args(arguments)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    dist.initialize_dist(device)  # before MixtureDataset: it asks torch.distributed which rank it is

    per_rank = asked.global_batch // dist.get_world_size()
    mixture = Mixture.from_histogram(Histogram.load(asked.histogram))
    dataset = MixtureDataset(asked.root, mixture, batch_size=per_rank, seed=17)
    if dataset.global_batch_size != asked.global_batch:
        parser.error(f"the ranks cannot share --global-batch {asked.global_batch} equally")
    manifest = dataset.dataset.manifest
    config = GPT2Config(
        vocab_size=manifest.tokenizer.vocab_size,
        n_positions=manifest.window_tokens,
        n_embd=asked.width,
        n_layer=2,
        n_head=2,
    )
    model = HuggingFaceModel(GPT2LMHeadModel(config), use_logits=True)
    trainer = Trainer(
        model=model,
        train_dataloader=dataset.loader(asked.workers),
        device_train_microbatch_size=per_rank,  # Composer asks the loader else, and this one makes whole batches
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-3),
        max_duration=f"{asked.steps}ba",  # an open-ended mixture has no epoch
        save_folder=asked.save_folder,
        save_interval=f"{asked.save_every}ba",
        run_name="composer-loop",
        autoresume=True,
        device=device,
        seed=17,
        progress_bar=False,
    )
    trainer.fit()
    return trainer


if __name__ == "__main__":
    main()
