"""Train in a plain PyTorch loop. Killed at any step, it goes on from its last checkpoint with the next batch.

    python examples/plain_torch.py data medicine.parquet --steps 400 --save-every 50 --checkpoint run.pt

Several ranks: `torchrun --nproc-per-node 4 examples/plain_torch.py …` (every rank keeps the state of its loader, in
run.pt.rank0, run.pt.rank1, …, so resume on as many ranks and workers; docs/train/training-loops.md has a way without).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from crisp_stream import Histogram, Mixture, MixtureDataset


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train; returns the loss of every step of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="dataset written by crisp-stream write")
    parser.add_argument("histogram", help="written by crisp-stream histogram")
    parser.add_argument("--checkpoint", type=Path, default=Path("run.pt"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16, help="windows per rank")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    asked = parser.parse_args(arguments)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if ranks > 1:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"

    mixture = Mixture.from_histogram(Histogram.load(asked.histogram))
    dataset = MixtureDataset(asked.root, mixture, batch_size=asked.batch_size, seed=17)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=asked.workers)
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
    own_checkpoint = asked.checkpoint.with_name(f"{asked.checkpoint.name}.rank{rank}")
    if own_checkpoint.exists():
        saved = torch.load(own_checkpoint, map_location=device, weights_only=True)
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
        if step % asked.save_every == 0 or step == asked.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"loader": loader.state_dict(), "step": step}
            temporary = own_checkpoint.with_name(own_checkpoint.name + ".tmp")
            torch.save(state, temporary)
            temporary.replace(own_checkpoint)
            if rank == 0:
                print(f"step {step}: loss {loss.item():.4f}")
    if ranks > 1:
        distributed.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()
