"""Train in a plain PyTorch loop. Killed at any step, it goes on from its last checkpoint with the next batch.

    python examples/plain_torch.py data medicine.parquet --steps 400 --save-every 50 --checkpoint run.pt
    torchrun --nproc-per-node 4 examples/plain_torch.py data medicine.parquet --steps 400 --checkpoint run.pt

Rank 0 writes one checkpoint. Any number of ranks and workers goes on from it, if it divides the global batch.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import GPT2Config, GPT2LMHeadModel

from crisp_stream import Histogram, Mixture, MixtureDataset


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, or go on training; returns the loss of every step of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="dataset written by crisp-stream write")
    parser.add_argument("histogram", help="written by crisp-stream histogram")
    parser.add_argument("--checkpoint", type=Path, default=Path("run.pt"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    asked = parser.parse_args(arguments)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if ranks > 1:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"

    mixture = Mixture.from_histogram(Histogram.load(asked.histogram))
    dataset = MixtureDataset(asked.root, mixture, batch_size=asked.global_batch // ranks, seed=17)
    if dataset.global_batch_size != asked.global_batch:
        parser.error(f"the ranks cannot share --global-batch {asked.global_batch} equally")
    loader = dataset.loader(asked.workers)
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
    model = GPT2LMHeadModel(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = 0
    if asked.checkpoint.exists():
        saved = torch.load(asked.checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        first = saved["step"]

    trained = DistributedDataParallel(model) if ranks > 1 else model
    losses: list[float] = []
    # zip asks range first: no batch is taken from the loader beyond the last step.
    for step, batch in zip(range(first + 1, asked.steps + 1), loader, strict=False):
        loss = trained(input_ids=batch["input_ids"].to(device), labels=batch["labels"].to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if rank == 0 and (step % asked.save_every == 0 or step == asked.steps):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"loader": loader.state_dict(), "step": step}
            temporary = asked.checkpoint.with_name(asked.checkpoint.name + ".tmp")
            torch.save(state, temporary)
            temporary.replace(asked.checkpoint)
            print(f"step {step}: loss {loss.item():.4f}")
    if ranks > 1:
        distributed.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()
