"""A step of DoGE's proxy model against the same step worked out in numpy from the matrix of all gradients."""

from __future__ import annotations

import copy
import csv
import gc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from crisp_stream.config.load import load_recipe
from crisp_stream.config.recipe import Recipe
from crisp_stream.models.gpt import gpt_config
from crisp_stream.selection.doge.domain_gradients import Windows
from crisp_stream.selection.doge.domain_weights import Update
from crisp_stream.selection.doge.proxy import Proxy, schedule_share
from crisp_stream.selection.doge.settings import DogeSettings
from crisp_stream.training.train import train
from tests.support.small_runs import write_dataset

TOY = [
    "model.n_embd=16",
    "model.n_layer=1",
    "model.n_head=2",
    "optimizer.lr=0.02",
    "optimizer.betas=[0.0, 0.0]",
    "optimizer.eps=1.0",
    "optimizer.weight_decay=0",
    "scheduler.t_warmup=0ba",
    "scheduler.alpha_f=1",
    "gradient_clipping=0.5",
    "device_train_microbatch_size=1",
    "global_train_batch_size=8",
]
WINDOW_TOKENS = 10


def toy_recipe(*overrides: str) -> Recipe:
    return load_recipe(["demo", "base"], [*TOY, *overrides])


def toy_proxy(recipe: Recipe, *, num_domains: int, update: Update = "paper", mu: float = 0.01, steps: int = 9) -> Proxy:
    config = gpt_config(recipe.model, vocab_size=30, window_tokens=WINDOW_TOKENS, eot_id=0)
    return Proxy(
        recipe,
        config,
        DogeSettings(mu=mu, update=update),
        num_domains=num_domains,
        num_steps=steps,
        tokens_per_step=8 * WINDOW_TOKENS,
        device=torch.device("cpu"),
    )


def random_windows(number: int, seed: int) -> Windows:
    tokens = torch.randint(0, 30, (number, WINDOW_TOKENS), generator=torch.Generator().manual_seed(seed))
    return Windows(input_ids=tokens, labels=tokens.clone())


def flat_parameters(proxy: Proxy) -> NDArray[np.float64]:
    return torch.cat([parameter.detach().flatten() for parameter in proxy.gpt.parameters()]).double().numpy()


def flat_gradient(proxy: Proxy, windows: Windows, rows: Sequence[int]) -> NDArray[np.float64]:
    """Of the model's own loss, by backward."""
    chosen = torch.tensor(rows)
    proxy.gpt.zero_grad()
    proxy.gpt(input_ids=windows.input_ids[chosen], labels=windows.labels[chosen]).loss.backward()
    parts = [parameter.grad.flatten() for parameter in proxy.gpt.parameters() if parameter.grad is not None]
    found = torch.cat(parts).double().numpy()
    proxy.gpt.zero_grad()
    return found


def clipped(gradient: NDArray[np.float64], largest: float) -> NDArray[np.float64]:
    return gradient * min(1.0, largest / np.linalg.norm(gradient))


@pytest.mark.parametrize(("update", "clipping"), [("paper", 1e3), ("paper", 0.2), ("public-code", 0.5)])
def test_a_step_is_the_one_worked_out_from_the_matrix_of_all_gradients(update: Update, clipping: float) -> None:
    """Four domains, of which the second is absent and the others have 1, 2 and 5 of the batch's 8 windows."""
    rate, mu, counts = 0.02, 0.01, np.array([1, 0, 2, 5])
    proxy = toy_proxy(toy_recipe(f"gradient_clipping={clipping}"), num_domains=4, update=update, mu=mu)
    batch, target = random_windows(8, seed=1), random_windows(3, seed=2)
    domains = np.array([3, 0, 3, 2, 3, 2, 3, 3])
    gradients = {
        domain: flat_gradient(proxy, batch, np.flatnonzero(domains == domain).tolist()) for domain in (0, 2, 3)
    }
    towards, before = flat_gradient(proxy, target, [0, 1, 2]), flat_parameters(proxy)
    if update == "public-code":
        towards = clipped(towards, clipping)
        gradients = {domain: clipped(gradient, clipping) for domain, gradient in gradients.items()}
    known = rate * np.array([gradients[domain] @ towards for domain in (0, 2, 3)])
    if update == "public-code":
        mean_norm = np.mean([np.linalg.norm(gradient) for gradient in gradients.values()])
        known = np.clip(known / (mean_norm + 1e-6), 0, 5 * rate)
    moves = np.zeros(4)
    moves[[0, 2, 3]] = (known - known.mean()) * (4 - 1) / (3 - 1) / mu
    weights = np.exp(moves) / np.exp(moves).sum()
    gradient = sum(weights[domain] * counts[domain] * 4 / 8 * gradients[domain] for domain in (0, 2, 3))
    gradient = clipped(np.asarray(gradient), clipping)

    seen = proxy.step(batch, domains, target)
    np.testing.assert_allclose(proxy.weights.weights, weights, rtol=1e-3)
    assert weights.max() - weights.min() > 0.02
    moved = flat_parameters(proxy) - before
    np.testing.assert_allclose(moved, -rate * gradient / (np.abs(gradient) + 1.0), rtol=2e-3, atol=1e-7)
    assert seen.learning_rate == rate


def live_elements() -> int:
    """Numbers in all tensors that Python holds."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes() // 4
    return sum(storages.values())


def most_live_elements(num_domains: int, update: Update) -> tuple[int, int]:
    """The most at the start of any forward pass of a step, and the number of parameters."""
    proxy = toy_proxy(toy_recipe("model.n_embd=32"), num_domains=num_domains, update=update)
    batch, target = random_windows(num_domains, seed=1), random_windows(2, seed=2)
    proxy.step(batch, np.arange(num_domains), target)  # the optimiser's moments exist from now on
    others = live_elements() - 3 * sum(parameter.numel() for parameter in proxy.gpt.parameters())
    counts: list[int] = []
    handle = proxy.gpt.register_forward_pre_hook(lambda *_: counts.append(live_elements()))
    proxy.step(batch, np.arange(num_domains), target)
    handle.remove()
    assert len(counts) >= num_domains
    return max(counts) - others, sum(parameter.numel() for parameter in proxy.gpt.parameters())


@pytest.mark.parametrize("update", ["paper", "public-code"])
def test_memory_does_not_grow_with_the_number_of_domains(update: Update) -> None:
    """Held between two passes: weights, two moments, the target's gradient, the weighted sum. All gradients of 8
    domains would be twice as much."""
    most, num_parameters = most_live_elements(8, update)
    assert 4 * num_parameters < most < 5.5 * num_parameters


def test_the_scale_of_tensors_held_is_seen() -> None:
    """The meter of the test above counts what a matrix of gradients would add."""
    before = live_elements()
    kept = [torch.ones(1000) for _ in range(24)]
    assert live_elements() - before >= 24_000
    assert len(kept) == 24


def test_a_restored_model_takes_the_same_steps() -> None:
    steps = [(random_windows(8, seed=number), random_windows(2, seed=50 + number)) for number in range(4)]
    domains = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    proxy = toy_proxy(toy_recipe("optimizer.betas=[0.9, 0.95]"), num_domains=3)
    for batch, target in steps[:2]:
        proxy.step(batch, domains, target)
    other = toy_proxy(toy_recipe("optimizer.betas=[0.9, 0.95]", "seed=99"), num_domains=3)
    other.restore(copy.deepcopy(proxy.state()))
    for batch, target in steps[2:]:
        assert proxy.step(batch, domains, target) == other.step(batch, domains, target)
    np.testing.assert_array_equal(flat_parameters(proxy), flat_parameters(other))
    np.testing.assert_array_equal(proxy.weights.run_average, other.weights.run_average)


def test_the_learning_rate_is_that_of_a_training_by_the_same_recipe(tmp_path: Path) -> None:
    """Composer's schedule, as the losses.csv of a run records it; it has the rate of the batch before."""
    dataset = write_dataset(tmp_path / "dataset")
    given = ["global_train_batch_size=4", "device_train_microbatch_size=4", "max_duration=10ba", "autoresume=false"]
    given += ["scheduler.t_warmup=3ba", "scheduler.alpha_f=0.1", f"data.remote={dataset.root}"]
    recipe = toy_recipe(*given, f"save_folder={tmp_path / 'run'}")
    train(recipe)
    with (tmp_path / "run" / "losses.csv").open() as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    wanted = [0.02 * schedule_share(step, num_steps=10, warmup_steps=3, final_share=0.1) for step in range(10)]
    np.testing.assert_allclose(rates[1:], wanted[:-1], rtol=1e-6, atol=1e-9)


def test_a_warmup_may_be_in_batches_tokens_or_a_share() -> None:
    for text, length in (("40ba", "400ba"), ("3200tok", "32000tok"), ("0.1dur", "400ba")):
        recipe = toy_recipe(f"scheduler.t_warmup={text}", f"max_duration={length}")
        assert toy_proxy(recipe, num_domains=3, steps=400)._warmup_steps == 40
