"""A run of DoGE: feed batches of the corpus and of the specialist text to the proxy model, save, and resume."""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from crisp_stream.config.durations import batches_of
from crisp_stream.errors import FormatError, InputError, ResumeError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.arithmetic import generalist_histogram
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.loading.batches import IGNORED_LABEL
from crisp_stream.loading.mixture_dataset import MixtureDataset
from crisp_stream.loading.reader import ReadOptions
from crisp_stream.models.gpt import gpt_config
from crisp_stream.models.training_cost import flops_per_token
from crisp_stream.selection.doge.domain_gradients import Windows
from crisp_stream.selection.doge.domain_weights import LAST_STEPS
from crisp_stream.selection.doge.proxy import Proxy, StepResult
from crisp_stream.selection.doge.target_text import TargetText

if TYPE_CHECKING:
    from crisp_stream.config.recipe import Recipe
    from crisp_stream.processes import Log
    from crisp_stream.selection.doge.settings import DogeSettings

_FEWEST_DOMAINS = 2
_SHOWN = 3
"""Clusters named in a line of progress."""


class DogeRun:
    """A run to its end, from its beginning or from its saved state."""

    def __init__(
        self, recipe: Recipe, settings: DogeSettings, dataset: Dataset, target: TargetText, *, out: Path, log: Log
    ) -> None:
        """Prepare a run; its state and trajectory stand beside the histogram `out`.

        Raises:
            InputError: a level the tree does not have, or with fewer than two clusters that hold windows.
            RecipeError: the context limit is shorter than the windows.
        """
        corpus = generalist_histogram(dataset, settings.level)
        if len(corpus.nodes) < _FEWEST_DOMAINS:
            raise InputError(
                f"DoGE needs two clusters with windows, got {len(corpus.nodes)} at level {settings.level} of "
                f"{dataset.root}. Use a deeper level."
            )
        self.recipe, self.settings, self.dataset, self.target, self.log = recipe, settings, dataset, target, log
        self.nodes = corpus.nodes
        self.state_path = out.with_suffix(".state.pt")
        self.trajectory_path = out.with_suffix(".trajectory.csv")
        self.num_rows = settings.target_windows or recipe.global_train_batch_size
        tokens_per_step = recipe.global_train_batch_size * dataset.manifest.window_tokens
        self.num_steps = batches_of(recipe.max_duration, tokens_per_batch=tokens_per_step)
        save_every = batches_of(recipe.save_interval, tokens_per_batch=tokens_per_step, run_batches=self.num_steps)
        self.save_every = max(1, save_every)
        self.seconds = 0.0
        self.trajectory: list[list[float]] = []
        self.uniform = replace(
            corpus,
            proportions=np.full(len(corpus.nodes), 1 / len(corpus.nodes)),
            counts=None,
            provenance={},
        )
        self.proxy = self._new_proxy(tokens_per_step)

    def _new_proxy(self, tokens_per_step: int) -> Proxy:
        manifest = self.dataset.manifest
        config = gpt_config(
            self.recipe.model,
            vocab_size=manifest.tokenizer.vocab_size,
            window_tokens=manifest.window_tokens,
            eot_id=manifest.tokenizer.eot_id,
        )
        return Proxy(
            self.recipe,
            config,
            self.settings,
            num_domains=len(self.nodes),
            num_steps=self.num_steps,
            tokens_per_step=tokens_per_step,
            device=_device(),
        )

    def identity(self) -> dict[str, Any]:
        """Everything that decides the weights. A run resumes only from a state with the same identity."""
        recipe = self.recipe
        return {
            "dataset": self.dataset.manifest.fingerprint,
            "text": self.target.fingerprint,
            "level": self.settings.level,
            "mu": self.settings.mu,
            "update": self.settings.update,
            "target_windows": self.num_rows,
            "steps": self.num_steps,
            "global_train_batch_size": recipe.global_train_batch_size,
            "seed": recipe.seed,
            "gradient_clipping": recipe.gradient_clipping,
            "precision": recipe.precision,
            **{f"model.{key}": value for key, value in asdict(recipe.model).items()},
            **{f"optimizer.{key}": value for key, value in asdict(recipe.optimizer).items()},
            **{f"scheduler.{key}": value for key, value in asdict(recipe.scheduler).items()},
        }

    def finish(self) -> None:
        """Run to the last step, from the state where there is one."""
        self._resume()
        batch, domains = self.recipe.global_train_batch_size, len(self.nodes)
        self.log(
            f"DoGE: {domains} clusters of level {self.settings.level}, {self.num_steps:,} steps of {batch} windows and "
            f"{self.num_rows} of the specialist text's {len(self.target.tokens):,}"
        )
        if batch < domains:
            self.log(
                f"a batch of {batch} windows holds at most {batch} of {domains} clusters; absent clusters get the mean "
                "score of the others. A batch size that is a multiple of the clusters measures all in each step."
            )
        batches, began, before = iter(self._stream()), time.monotonic(), self.seconds
        while self.proxy.step_number < self.num_steps:
            result = self._step(next(batches))
            self.seconds = before + time.monotonic() - began
            self._report(result)

    def _stream(self) -> MixtureDataset:
        batch = self.recipe.global_train_batch_size
        stream = MixtureDataset(
            self.dataset,
            Mixture.from_histogram(self.uniform),
            batch_size=batch,
            seed=self.recipe.seed,
            reading=ReadOptions.of(self.recipe.data),
            num_samples=self.num_steps * batch,
        )
        stream.skip_to(self.proxy.step_number * batch)
        return stream

    def _step(self, batch: dict[str, Any]) -> StepResult:
        number, device = self.proxy.step_number, _device()
        nodes_of_windows = self.dataset.tree.node_of(batch["cluster"].numpy(), self.settings.level)
        with torch.random.fork_rng(devices=[]):  # of dropout
            torch.manual_seed(int(np.random.SeedSequence([self.recipe.seed, number]).generate_state(1)[0]))
            return self.proxy.step(
                Windows(input_ids=batch["input_ids"].to(device), labels=batch["labels"].to(device)),
                np.searchsorted(self.nodes, nodes_of_windows),
                self._target_windows(self.target.rows_of_step(number, self.num_rows, seed=self.recipe.seed), device),
            )

    def _report(self, result: StepResult) -> None:
        """Log progress and save, each at its interval."""
        done = self.proxy.step_number
        last = done == self.num_steps
        if done % self.recipe.log_interval == 0 or last:
            weights = self.proxy.weights.weights
            self.trajectory.append([done, result.learning_rate, result.loss, result.target_loss, *weights.tolist()])
            top = np.argsort(-weights, kind="stable")[:_SHOWN]
            named = ", ".join(f"{self.nodes[at]} {weights[at]:.1%}" for at in top)
            self.log(
                f"step {done:>7,}/{self.num_steps:,}  loss {result.loss:.3f}  specialist {result.target_loss:.3f}  "
                f"lr {result.learning_rate:.2e}  clusters {named}  {self.seconds:,.0f} s"
            )
        if done % self.save_every == 0 or last:
            self._save()

    def _target_windows(self, rows: NDArray[np.int64], device: torch.device) -> Windows:
        """Select target windows, masked after the end of a document as the corpus's windows are."""
        manifest, tokens = self.dataset.manifest, self.target.tokens[rows].astype(np.int64)
        labels = tokens.copy()
        if manifest.packing == "document":
            is_end = tokens == manifest.tokenizer.eot_id
            labels[np.cumsum(is_end, axis=1) - is_end > 0] = IGNORED_LABEL
        return Windows(input_ids=torch.from_numpy(tokens).to(device), labels=torch.from_numpy(labels).to(device))

    def _save(self) -> None:
        self._write_trajectory()
        content = {
            "identity": json.dumps(self.identity(), sort_keys=True),
            "proxy": self.proxy.state(),
            "seconds": self.seconds,
            "trajectory": self.trajectory,
        }
        temporary = self.state_path.with_name(self.state_path.name + ".tmp")
        torch.save(content, temporary)
        temporary.replace(self.state_path)

    def _write_trajectory(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["step", "learning_rate", "loss", "specialist_loss", *(f"cluster_{node}" for node in self.nodes)]
        )
        writer.writerows([int(row[0]), *row[1:]] for row in self.trajectory)
        self.trajectory_path.parent.mkdir(parents=True, exist_ok=True)
        self.trajectory_path.write_text(text.getvalue(), encoding="utf-8")

    def _resume(self) -> None:
        if not self.state_path.exists():
            return
        try:
            content = torch.load(self.state_path, map_location="cpu", weights_only=True)
            saved, proxy_state = json.loads(content["identity"]), content["proxy"]
            trajectory, seconds = [list(row) for row in content["trajectory"]], float(content["seconds"])
        except Exception as error:  # torch and pickle raise of all kinds
            raise FormatError(f"{self.state_path} must be a state of a DoGE run, got {error!r}. Remove it.") from error
        identity = json.loads(json.dumps(self.identity()))
        changed = [key for key in identity if saved.get(key) != identity[key]]
        if changed:
            raise ResumeError(
                f"{self.state_path} must be of a run with {changed[0]} {identity[changed[0]]}, got one with "
                f"{saved.get(changed[0])}. Remove it to start afresh, or name another file to write."
            )
        self.proxy.restore(proxy_state)
        self.trajectory, self.seconds = trajectory, seconds
        self.log(f"goes on after step {self.proxy.step_number:,} of {self.state_path}")

    def averages(self) -> tuple[Histogram, Histogram]:
        """Average the weights over the whole run, and over its last 20 steps, each with its provenance."""
        weights = self.proxy.weights
        return (
            self._histogram(weights.run_average, f"all {weights.num_updates:,} steps"),
            self._histogram(weights.last_average, f"last {min(LAST_STEPS, weights.num_updates)} steps"),
        )

    def _histogram(self, proportions: NDArray[np.float64], averaged: str) -> Histogram:
        provenance = {
            "name": "doge",
            "averaged_over": averaged,
            "settings": self.identity(),
            "cost": self.cost(),
            "trajectory": self.trajectory_path.name,
            **self.target.provenance,
        }
        return replace(self.uniform, proportions=proportions, provenance=provenance)

    def cost(self) -> dict[str, Any]:
        """Cost of the weights: `seconds` and `device`, `corpus_tokens` and `specialist_tokens` trained or scored on,
        `flops` of all passes."""
        manifest, recipe, steps = self.dataset.manifest, self.recipe, self.proxy.step_number
        corpus = steps * recipe.global_train_batch_size * manifest.window_tokens
        specialist = steps * self.num_rows * manifest.window_tokens
        passes = 2 if self.settings.update == "public-code" else 1
        num_parameters = sum(parameter.numel() for parameter in self.proxy.gpt.parameters())
        per_token = flops_per_token(
            num_parameters,
            n_layer=recipe.model.n_layer,
            n_embd=recipe.model.n_embd,
            window_tokens=manifest.window_tokens,
        )
        return {
            "seconds": round(self.seconds, 1),
            "device": _device().type,
            "steps": steps,
            "corpus_tokens": corpus,
            "specialist_tokens": specialist,
            "flops": (passes * corpus + specialist) * per_token,
            "parameters": num_parameters,
        }


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
