"""The command `forecast`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_stream.cli.verbs import add_verb
from crisp_stream.config.files import recipes_and_overrides
from crisp_stream.config.sections import SELECTION_SUFFIX
from crisp_stream.errors import InputError

if TYPE_CHECKING:
    from crisp_stream.forecast.result import Forecast, Loader
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.format.sources import Sources
    from crisp_stream.histograms.mixture import Mixture
    from crisp_stream.histograms.phase import Phase

_TERMS = 5
_OF_A_RECIPE = {
    "seed": "seed=",
    "draw": "mixture.draw=",
    "max_repeats": "mixture.phases.0.max_repeats=",
    "on_excess": "mixture.phases.0.on_excess=",
    "samples": "max_duration=",
    "tokens": "max_duration=",
    "batch": "global_train_batch_size=",
    "workers": "data.num_workers=",
    "lookahead": "data.lookahead=",
    "cache_limit": "data.cache_limit=",
    "generation": "data.generation=",
}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Run that is forecast."""

    data: Sources
    mixture: Mixture
    samples: int | None
    seed: int
    loader: Loader


def add_forecast(verbs: Any) -> None:
    """Declare the command."""
    verb = add_verb(
        verbs,
        "forecast",
        _forecast,
        "Say what a run will serve and read, before it is started. How often windows repeat, clusters hit, share of "
        "the corpus used, bytes, requests and their cost, cache, mixture error; with what to do about it.",
    )
    verb.add_argument("--data", metavar="ROOT", help="dataset root; with a recipe, instead of its data.remote")
    verb.add_argument(
        "--mixture",
        nargs="+",
        required=True,
        metavar="M",
        help="recipes (YAML files, or names of packaged ones, as for train) and key=value; or phases in order, "
        "H[:SAMPLES] each, H a histogram file, a window selection (*.windows.parquet) or `base`; the last may leave "
        "its samples to --samples",
    )
    verb.add_argument("--samples", type=int, metavar="N", help="length of the run in windows over all ranks")
    verb.add_argument("--tokens", type=int, metavar="N", help="the same in tokens, rounded up to windows")
    verb.add_argument("--seed", type=int, metavar="S", help="seed of the sample order; 0 when absent")
    verb.add_argument("--draw", choices=["systematic", "multinomial"], help="systematic when absent")
    verb.add_argument("--max-repeats", type=float, metavar="R", help="limit of each phase, see Phase")
    verb.add_argument("--on-excess", choices=["error", "cap"], help="what becomes of clusters beyond the limit")
    verb.add_argument("--generation", type=int, metavar="G", help="an older generation of a dataset that has grown")
    verb.add_argument("--nodes", type=int, default=1, metavar="N", help="machines with a cache each")
    verb.add_argument("--ranks-per-node", type=int, default=1, metavar="N", help="training processes of a node")
    verb.add_argument("--replication", type=int, default=1, metavar="K", help="consecutive ranks with equal samples")
    verb.add_argument("--batch", type=int, metavar="N", help="windows of a step over all ranks; 1 per rank when absent")
    verb.add_argument("--workers", type=int, metavar="N", help="DataLoader workers of a rank; 0 when absent")
    verb.add_argument("--lookahead", type=int, metavar="N", help="windows planned ahead; 4,096 when absent")
    verb.add_argument("--cache-limit", metavar="SIZE", help="cache of a node, such as 200gb; no limit when absent")
    verb.add_argument(
        "--request-price",
        type=float,
        default=0.0004,
        metavar="USD",
        help="price of 1,000 GET requests; the default is that of Amazon S3 Standard in US East (N. Virginia)",
    )
    verb.add_argument("--blocks", type=int, default=16, metavar="N", help="blocks of 2^18 samples walked for requests")
    verb.add_argument("--top", type=int, default=10, metavar="N", help="most repeated clusters shown")
    verb.add_argument("--terms", action="store_true", help="show what they are about; reads up to 4,000 windows")
    verb.add_argument("--out", metavar="FILE", help="JSON file to write, too")


def _forecast(arguments: argparse.Namespace) -> None:
    from crisp_stream.forecast.forecast import forecast

    run = _run(arguments)
    result = forecast(
        run.data,
        run.mixture,
        samples=run.samples,
        seed=run.seed,
        loader=run.loader,
        price_per_1000_requests=arguments.request_price,
        top=arguments.top,
        max_blocks=arguments.blocks,
    )
    print(result.table(_terms(result, run.data) if arguments.terms else None))
    if arguments.out:
        target = Path(arguments.out)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
        print(f"\nwritten to {target}")


def _run(arguments: argparse.Namespace) -> _Run:
    phases, overrides = recipes_and_overrides(arguments.mixture)
    if phases and not _is_phase(phases[0]):
        return _of_recipe(arguments, phases, overrides)
    recipes = [item for item in phases if not _is_phase(item)]
    if recipes or not phases:
        named = f"{recipes[0]} among {len(phases)} phases" if recipes else "neither"
        raise InputError(
            f"--mixture: must be recipes, or phases H[:SAMPLES] of histogram files or base; got {named}. "
            "A missing histogram is made with: crisp-stream histogram TASK… --data ROOT --out H"
        )
    if overrides:
        raise InputError(f"--mixture: {overrides[0]} is a key of a recipe, but no recipe is named. Name one alone.")
    return _of_phases(arguments, phases)


def _is_phase(item: str) -> bool:
    name = _split(item)[0]
    return name == "base" or name.endswith(".parquet") or (Path(name).is_file() and Path(name).suffix not in _YAML)


_YAML = (".yaml", ".yml")


def _split(item: str) -> tuple[str, str | None]:
    """Split a phase into name and samples; a colon before anything but a number belongs to the name."""
    name, colon, samples = item.rpartition(":")
    if colon and samples.replace("_", "").isdigit() and not Path(item).is_file():
        return name, samples
    return item, None


def _of_recipe(arguments: argparse.Namespace, names: list[str], overrides: list[str]) -> _Run:
    from crisp_stream.config.durations import batches_of
    from crisp_stream.config.load import load_recipe
    from crisp_stream.format.sources import Sources
    from crisp_stream.training.mixture import build_mixture

    for option, key in _OF_A_RECIPE.items():
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option.replace('_', '-')}: a recipe says this itself. Write {key}… behind its name.")
    if arguments.data is not None:
        overrides = [*overrides, f"data.remote={json.dumps(arguments.data)}"]
    recipe = load_recipe(names, overrides)
    if recipe.from_checkpoint or ("data" in recipe.restarts and "schedule" not in recipe.restarts):
        raise InputError(
            "--mixture: how much of this run is left stands in its checkpoint. Forecast the whole run (continued), or "
            "its phases: --data ROOT --mixture H --samples N"
        )
    data, sources = recipe.data, Sources.open(recipe.data)
    tokens = recipe.global_train_batch_size * sources.manifest.window_tokens
    batches = batches_of(recipe.max_duration, tokens_per_batch=tokens)
    loader = _loader(
        arguments,
        batch=recipe.global_train_batch_size,
        num_workers=data.num_workers,
        lookahead=data.lookahead,
        cache_limit=data.all_caches_bytes,
    )
    mixture, samples = build_mixture(recipe, sources), batches * recipe.global_train_batch_size
    return _Run(data=sources, mixture=mixture, samples=samples, seed=recipe.seed, loader=loader)


def _of_phases(arguments: argparse.Namespace, items: list[str]) -> _Run:
    from crisp_stream.config.sections import DataRecipe
    from crisp_stream.format.dataset import open_dataset
    from crisp_stream.format.sources import Sources
    from crisp_stream.histograms.mixture import Mixture

    if arguments.data is None:
        raise InputError("--data: histograms need the dataset root, got none.")
    if arguments.samples is not None and arguments.tokens is not None:
        raise InputError("--samples and --tokens both say how long the run is. Give one of them.")
    dataset = open_dataset(arguments.data, generation=arguments.generation)
    samples = arguments.samples
    if arguments.tokens is not None:
        samples = -(-arguments.tokens // dataset.manifest.window_tokens)
    phases = []
    for item in items:
        name, samples_of_phase = _split(item)
        length = None if samples_of_phase is None else int(samples_of_phase)
        if length is None and arguments.max_repeats is not None and samples is not None:
            length = samples - sum(phase.samples or 0 for phase in phases)  # a limit needs a length
        limits = {"max_repeats": arguments.max_repeats, "on_excess": arguments.on_excess or "error"}
        phases.append(dataclasses.replace(_drawn(name, dataset), samples=length, **limits))
    recipe = DataRecipe(remote=arguments.data, cache_limit=arguments.cache_limit)
    loader = _loader(
        arguments,
        batch=arguments.batch,
        num_workers=arguments.workers or 0,
        lookahead=recipe.lookahead if arguments.lookahead is None else arguments.lookahead,
        cache_limit=recipe.cache_limit_bytes,
    )
    mixture = Mixture(phases, draw=arguments.draw or "systematic")
    return _Run(data=Sources(dataset), mixture=mixture, samples=samples, seed=arguments.seed or 0, loader=loader)


def _drawn(name: str, dataset: Dataset) -> Phase:
    from crisp_stream.histograms.histogram import Histogram
    from crisp_stream.histograms.phase import Phase
    from crisp_stream.histograms.window_selection import WindowSelection

    if name.endswith(SELECTION_SUFFIX):
        return Phase.of_windows(WindowSelection.load(name), dataset)
    return Phase(Histogram.base(dataset.manifest) if name == "base" else Histogram.load(name))


def _loader(arguments: argparse.Namespace, *, batch: int | None, **settings: Any) -> Loader:
    from crisp_stream.forecast.result import Loader

    one = Loader(
        nodes=arguments.nodes,
        ranks_per_node=arguments.ranks_per_node,
        replication=arguments.replication,
        **settings,
    )
    if batch is None:
        return one
    if batch < 1 or batch % one.global_batch_size:
        raise InputError(
            f"the batch of a step must be a multiple of the {one.global_batch_size:,} groups of ranks that get "
            f"different samples, got {batch}."
        )
    return dataclasses.replace(one, batch_size=batch // one.global_batch_size)


def _terms(result: Forecast, data: Sources) -> dict[tuple[str, int], str]:
    from crisp_stream.inspection.terms import node_terms

    terms: dict[tuple[str, int], str] = {}
    for source, dataset in data:
        entries = [entry for entry in result.most_repeated if entry.source == source]
        if entries:
            nodes = [entry.cluster for entry in entries]
            named = node_terms(dataset, entries[0].level, nodes=nodes, terms_per_node=_TERMS)
            terms |= {(source, node): " · ".join(of_node) for node, of_node in zip(nodes, named.terms, strict=True)}
    return terms
