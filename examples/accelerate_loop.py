"""Train with Hugging Face Accelerate around a MixtureDataset.

    accelerate launch examples/accelerate_loop.py data medicine.parquet --steps 400 --save-folder run

The loader is left out of `accelerator.prepare`, which would deal its batches to the ranks once more: a MixtureDataset
knows its rank already. Its position is saved as one number, so a run goes on with any number of ranks and workers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from crisp_stream import Histogram, Mixture, MixtureDataset


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, or go on training; returns the loss of every step of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="dataset written by crisp-stream write")
    parser.add_argument("histogram", help="written by crisp-stream histogram")
    parser.add_argument("--save-folder", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    asked = parser.parse_args(arguments)
    accelerator = Accelerator()  # before MixtureDataset: it asks torch.distributed which rank it is

    mixture = Mixture.from_histogram(Histogram.load(asked.histogram))
    per_rank = asked.global_batch // accelerator.num_processes
    dataset = MixtureDataset(asked.root, mixture, batch_size=per_rank, seed=17)
    manifest = dataset.dataset.manifest
    torch.manual_seed(17)
    config = GPT2Config(
        vocab_size=manifest.tokenizer.vocab_size,
        n_positions=manifest.window_tokens,
        n_embd=asked.width,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    first, position_file = 0, asked.save_folder / "position.json"
    if position_file.exists():
        accelerator.load_state(str(asked.save_folder))
        saved = json.loads(position_file.read_text())
        dataset.load_state_dict(saved["dataset"])
        first = saved["step"]

    losses: list[float] = []
    loader = DataLoader(dataset, batch_size=None, num_workers=asked.workers)
    for step, batch in zip(range(first + 1, asked.steps + 1), loader, strict=False):
        loss = model(
            input_ids=batch["input_ids"].to(accelerator.device), labels=batch["labels"].to(accelerator.device)
        ).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % asked.save_every == 0 or step == asked.steps:
            accelerator.save_state(str(asked.save_folder))
            if accelerator.is_main_process:
                state = dataset.state_dict(num_samples=step * asked.global_batch)
                position_file.write_text(json.dumps({"dataset": state, "step": step}))
                print(f"step {step}: loss {loss.item():.4f}")
            accelerator.wait_for_everyone()
    return losses


if __name__ == "__main__":
    main()
