"""Made-up records of studies, whose effects are known."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from crisp_stream.study.results import (
    ALL,
    JudgedModel,
    StudyCurve,
    StudyDataset,
    StudyMethod,
    StudyModel,
    StudyResults,
    StudySelection,
    StudySpecialist,
    StudyWeights,
)

TOKENS = 6_553_600
EXAM = "exam"
GENERALIST = "generalist.test"

EFFECTS = {
    "base": 1.0,
    "crisp-1": 0.90,
    "crisp-2": 0.82,
    "crisp-3": 0.84,
    "crisp-2-lsi": 0.88,
    "multitask": 0.93,
    "classifier": 0.85,
    "nearest": 0.84,
    "dsir": 0.91,
    "doge": 0.95,
    "crisp-2-mixed": 0.83,
    "only-specialist": 1.6,
    "crisp-2-100-examples": 0.89,
    "crisp-2-small-corpus": 0.87,
    "crisp-2-continued": 0.86,
}
"""By method: true ratio of perplexities to base on its own specialist's set."""
CLUSTERS = {"crisp-1": 64, "crisp-2": 4031, "crisp-3": 18_220, "crisp-2-lsi": 4001, "multitask": 4031, "doge": 64}
TUNED = ("base", "crisp-2", "classifier", "doge")
UNTUNED_BEST = {("classifier", "religion")}
"""Where no fine-tuning at all was validated as best."""


def method_of(name: str) -> StudyMethod:
    """A method as a study would describe it."""
    kind = "crisp" if name.startswith("crisp") else name
    return StudyMethod(
        name=name,
        kind=kind,
        dataset="lsi" if name == "crisp-2-lsi" else "corpus",
        clusters=CLUSTERS.get(name, 4031 if kind == "crisp" else None),
        examples=100 if name == "crisp-2-100-examples" else 2000,
        corpus_windows=12_000 if name == "crisp-2-small-corpus" else 96_000,
        generic_share=0.9 if name == "crisp-2-continued" else 0.0,
        finetuned=name in TUNED,
    )


def made_up_study(
    methods: Sequence[str] = tuple(EFFECTS),
    specialists: Sequence[str] = ("medicine", "religion", "encyclopedia", "computing"),
    *,
    seeds: Sequence[int] = (1, 2, 3),
    num_examples: int = 200,
    exam: bool = True,
    seed_noise: float = 0.006,
    effects: Mapping[str, float] = EFFECTS,
) -> StudyResults:
    """A study with the effects of `EFFECTS`: losses are of the set, the example, the method, and noise."""
    names = [*specialists, *([EXAM] if exam else [])]
    models: list[StudyModel] = []
    judged: list[JudgedModel] = []
    for method in methods:
        for specialist in [ALL] if method in ("base", "multitask") else names:
            for seed in seeds:
                models += _candidates(method, specialist, seed, seed == seeds[0], names)
                judged += _judged(method, specialist, seed, 0.0, names, num_examples, seed_noise, effects)
        for specialist in names if method in TUNED else []:
            for seed in seeds:
                fraction = 0.0 if (method, specialist) in UNTUNED_BEST else 0.1
                models += _finetuned(method, specialist, seed, fraction, seed == seeds[0])
                if fraction:
                    judged += _judged(method, specialist, seed, fraction, names, num_examples, seed_noise, effects)
    chosen = [method for method in ("crisp-1", "crisp-2", "crisp-3") if method in methods]
    return StudyResults(
        name="made-up",
        tokens=TOKENS,
        num_parameters=2_900_000,
        batches=400,
        window_tokens=256,
        seeds=tuple(seeds),
        device="2 cores",
        versions={"crisp-stream": "0.1.0"},
        datasets={
            "corpus": StudyDataset(
                windows=96_000,
                encoder="MiniLM",
                nodes_per_level=(64, 4031, 18_220),
                cpu_seconds=3000,
                wall_seconds=1600,
            ),
            "lsi": StudyDataset(
                windows=96_000, encoder="lsi", nodes_per_level=(64, 4001), cpu_seconds=300, wall_seconds=160
            ),
        },
        specialists={
            name: StudySpecialist(
                documents=2000, windows=5000, kind="questions" if name == EXAM else "text", own_set=f"{name}.test"
            )
            for name in names
        },
        generalist_set=GENERALIST,
        methods=tuple(method_of(name) for name in methods),
        reference="crisp-2" if "crisp-2" in methods else None,
        models=tuple(models),
        selections=tuple(selection for method in methods for selection in _selections(method, names)),
        weights=tuple(_weights(method, name) for method in ("doge", "crisp-1") if method in methods for name in names),
        curves=(StudyCurve(name="clusters", along="clusters", methods=tuple(chosen)),) if chosen else (),
        judged=tuple(judged),
    )


def without(study: StudyResults, *, method: str, specialist: str) -> StudyResults:
    """The study as if a method had not been run for a specialist."""
    keep = lambda own: (own.method, own.specialist) != (method, specialist)  # noqa: E731
    return replace(study, models=tuple(filter(keep, study.models)), judged=tuple(filter(keep, study.judged)))


def _judged(
    method: str,
    specialist: str,
    seed: int,
    fraction: float,
    names: Sequence[str],
    num_examples: int,
    seed_noise: float,
    effects: Mapping[str, float],
) -> list[JudgedModel]:
    if fraction:
        sets = [specialist]
    else:
        sets = [*(names if specialist == ALL or method == "crisp-2" else [specialist]), "generalist"]
    found = []
    for set_name in sets:
        own = specialist in (ALL, set_name)
        level = 4.5 + 0.3 * (_number(set_name) % 4)
        effect = math.log(effects[method]) if own else 0.1
        if set_name == "generalist":
            effect = 0.0 if method == "base" else 0.12
        if fraction:
            effect = -0.35 + 0.5 * effect
        noise = np.random.default_rng(_number(method, specialist, str(seed), str(fraction), set_name))
        examples = np.random.default_rng(_number(set_name)).normal(0, 0.5, num_examples)
        own_examples = np.random.default_rng(_number(method, specialist, set_name)).normal(0, 0.06, num_examples)
        values = level + effect + examples + own_examples
        values = values + noise.normal(0, seed_noise) + noise.normal(0, 0.02, num_examples)
        row = JudgedModel(
            method=method,
            specialist=specialist,
            seed=seed,
            fraction=fraction,
            set_name=f"{set_name}.test",
            kind="text",
            fingerprint=hashlib.sha256(set_name.encode()).hexdigest(),
            values=values.astype(np.float32),
        )
        found.append(row)
        if set_name == EXAM:
            right = values < np.quantile(level + examples, 0.3)
            found.append(replace(row, kind="questions", values=right.astype(np.float32)))
    return found


def _candidates(method: str, specialist: str, seed: int, first: bool, names: Sequence[str]) -> list[StudyModel]:
    shares = (0.025, 0.1) if method == "classifier" and first else (0.025,) if method == "classifier" else (None,)
    return [
        StudyModel(
            method=method,
            specialist=specialist,
            seed=seed,
            candidate={} if share is None else {"share": share},
            chosen=share in (None, 0.025),
            tokens=TOKENS,
            repeated_share=0.0 if method == "base" else 0.31,
            validation_perplexities={name: 101.5 + 100 * (share or 0) for name in names if specialist in (ALL, name)}
            if first
            else {},
            wall_seconds=410.0,
            cpu_seconds=400.0,
        )
        for share in shares
    ]


def _finetuned(method: str, specialist: str, seed: int, chosen: float, first: bool) -> list[StudyModel]:
    tried = (0.03, 0.1) if first else (chosen,) if chosen else ()
    return [
        StudyModel(
            method=method,
            specialist=specialist,
            seed=seed,
            fraction=fraction,
            chosen=fraction == chosen,
            tokens=TOKENS,
            repeated_share=0.2,
            validation_perplexities={specialist: 90.0 - 100 * fraction if chosen else 110.0} if first else {},
            wall_seconds=40.0,
            cpu_seconds=40.0,
        )
        for fraction in tried
    ]


def _selections(method: str, names: Sequence[str]) -> list[StudySelection]:
    if method in ("base", "only-specialist"):
        return []
    shared = {"embedding the corpus": 800.0} if method in ("classifier", "nearest") else {}
    return [
        StudySelection(
            method=method,
            specialist=name,
            wall_seconds=5.0,
            cpu_seconds=260.0 if method == "doge" else 9.0,
            tokens=2_000_000 if method == "doge" else 0,
            shared=shared,
        )
        for name in ([ALL] if method == "multitask" else names)
    ]


def _weights(method: str, specialist: str) -> StudyWeights:
    drawn = np.random.default_rng(_number(specialist)).dirichlet(np.full(64, 0.2 if method == "crisp-1" else 0.4))
    corpus = np.random.default_rng(0).dirichlet(np.full(64, 2.0))
    return StudyWeights(
        method=method,
        specialist=specialist,
        level=1,
        nodes=tuple(range(64)),
        proportions=tuple(drawn.tolist()),
        corpus=tuple(corpus.tolist()),
        terms=tuple(f"word{node} other{node}" for node in range(64)),
    )


def _number(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:4], "big")
