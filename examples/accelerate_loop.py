"""Train with Hugging Face Accelerate around a MixtureDataset.

    accelerate launch examples/accelerate_loop.py data medicine.parquet --steps 400 --save-folder run

`accelerator.prepare` leaves the loader as it is, and `register_for_checkpointing` saves its state, once. So a run goes
on with any number of ranks and workers that divides the global batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel

from crisp_stream import Histogram, Mixture, MixtureDataset


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
    # Before MixtureDataset, which asks torch.distributed which rank it is.
    accelerator = Accelerator(gradient_accumulation_steps=asked.accumulate, cpu=not torch.cuda.is_available())

    mixture = Mixture.from_histogram(Histogram.load(asked.histogram))
    per_rank = asked.global_batch // accelerator.num_processes // asked.accumulate
    dataset = MixtureDataset(asked.root, mixture, batch_size=per_rank, seed=17)
    if dataset.global_batch_size * asked.accumulate != asked.global_batch:
        parser.error(f"the ranks cannot share --global-batch {asked.global_batch} equally")
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, dataset.loader(asked.workers))
    accelerator.register_for_checkpointing(loader)
    if (asked.save_folder / "custom_checkpoint_0.pkl").exists():
        accelerator.load_state(str(asked.save_folder))
    first = loader.state_dict()["samples"] // asked.global_batch * asked.accumulate

    losses: list[float] = []
    for number, batch in zip(range(first + 1, asked.steps * asked.accumulate + 1), loader, strict=False):
        with accelerator.accumulate(model):
            # The loader stays on the CPU: the batch is brought to the device here.
            input_ids, labels = (batch[key].to(accelerator.device) for key in ("input_ids", "labels"))
            loss = model(input_ids=input_ids, labels=labels).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        step, rest = divmod(number, asked.accumulate)
        if rest == 0 and (step % asked.save_every == 0 or step == asked.steps):
            accelerator.save_state(str(asked.save_folder))
            accelerator.print(f"step {step}: loss {loss.item():.4f}")
    accelerator.wait_for_everyone()
    return losses


if __name__ == "__main__":
    main()
