"""Records of studies as if models had been trained: effects are chosen, losses are drawn around them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from crisp_stream.study.record.record import StudyResults
from crisp_stream.study.record.values import (
    Judgement,
    StudyCurve,
    StudyDataset,
    StudyMethod,
    StudyModel,
    StudySelection,
    StudySpecialist,
    StudyWeights,
)

TOKENS = 1_000_000
SPECIALISTS = ("medicine", "religion", "encyclopedia", "computing")
GAINS = {"base": 0.0, "crisp": 0.20, "doge": 0.10, "classifier": 0.17}
"""By method: nats per token that its models are better than base on their own set."""
FINETUNING, FRACTION = 0.3, 0.1
GENERALIST_LOSS = 0.1
"""What specialising costs on the generalist set."""


def made_study(
    gains: dict[str, float] | None = None,
    *,
    kinds: dict[str, str] | None = None,
    methods: dict[str, dict[str, Any]] | None = None,
    specialists: tuple[str, ...] = SPECIALISTS[:2],
    questions: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (1, 2, 3),
    num_examples: int = 60,
    finetuned: tuple[str, ...] | None = None,
    unhelped: tuple[str, ...] = (),
    transfer: tuple[str, ...] = ("multitask",),
    noise: float = 0.01,
    **changes: Any,
) -> StudyResults:
    """A record.

    Args:
        gains: by method; a method of another kind than its name says is in `kinds`.
        kinds: by method.
        methods: more fields of `StudyMethod`, by method.
        specialists: tasks of texts.
        questions: tasks of questions.
        seeds: of all models.
        num_examples: of every set.
        finetuned: methods that are fine-tuned; all when nothing is said.
        unhelped: methods for which the validated fraction is 0.
        transfer: methods that are judged on the sets of the others, too; base always is.
        noise: standard deviation of the effects of seeds.
        changes: other fields of the record.
    """
    gains = GAINS if gains is None else gains
    tuned = tuple(gains) if finetuned is None else finetuned
    tasks = (*specialists, *questions)
    maker = _Maker(tasks, questions, seeds, num_examples, noise)
    for method, gain in gains.items():
        kind = (kinds or {}).get(method, method)
        for_all = kind in ("base", "multitask")
        for specialist in ("",) if for_all else tasks:
            maker.model(method, specialist, 0.0, gain, all_sets=for_all or method in transfer)
        for specialist in tasks if method in tuned else ():
            chosen = method not in unhelped
            maker.model(method, specialist, FRACTION, gain / 2 + FINETUNING, all_sets=method in transfer, chosen=chosen)
    fields: dict[str, Any] = {
        "name": "made",
        "tokens": TOKENS,
        "num_parameters": 1_234_567,
        "batches": 400,
        "window_tokens": 128,
        "seeds": seeds,
        "device": "CPU",
        "versions": {"crisp-stream": "0.1.0"},
        "generalist_set": "generalist.test",
        "datasets": {
            "corpus": StudyDataset(
                windows=50_000, encoder="minilm", nodes_per_level=(16, 240), cpu_seconds=90.0, wall_seconds=60.0
            )
        },
        "specialists": {
            name: StudySpecialist(
                documents=500,
                windows=1_500,
                kind="questions" if name in questions else "text",
                own_set=f"{name}.test.accuracy" if name in questions else f"{name}.test",
                text_set=f"{name}.test" if name in questions else None,
            )
            for name in tasks
        },
        "methods": tuple(
            StudyMethod(
                **{
                    "name": method,
                    "kind": (kinds or {}).get(method, method),
                    "dataset": "corpus",
                    "corpus_windows": 50_000,
                    "clusters": {"doge": 16, "crisp": 240}.get(method),
                    "finetuned": method in tuned,
                    **(methods or {}).get(method, {}),
                }
            )
            for method in gains
        ),
        "models": tuple(maker.models),
        "selections": tuple(
            StudySelection(method=method, specialist=name, wall_seconds=2.0, cpu_seconds=1.5, **_selected(method))
            for method in gains
            if method != "base"
            for name in tasks
        ),
        "judgements": tuple(maker.judgements),
    }
    return StudyResults(**{**fields, **changes})


def _selected(method: str) -> dict[str, Any]:
    if method == "doge":
        return {"tokens": 250_000, "shared": {}}
    return {"shared": {"embedding the corpus": 300.0}}


class _Maker:
    """Collects models and what they made of the sets."""

    def __init__(
        self,
        tasks: tuple[str, ...],
        questions: tuple[str, ...],
        seeds: tuple[int, ...],
        num_examples: int,
        noise: float,
    ) -> None:
        self._tasks, self._questions, self._seeds = tasks, questions, seeds
        self._num_examples, self._noise = num_examples, noise
        self.models: list[StudyModel] = []
        self.judgements: list[Judgement] = []

    def model(
        self, method: str, specialist: str, fraction: float, gain: float, *, all_sets: bool, chosen: bool = True
    ) -> None:
        """A method's models of all seeds for a specialist; one that was not chosen has the first seed alone."""
        for seed in self._seeds if chosen else self._seeds[:1]:
            self.models.append(
                StudyModel(
                    method=method,
                    specialist=specialist,
                    seed=seed,
                    fraction=fraction,
                    chosen=chosen,
                    tokens=TOKENS,
                    repeated_share=0.5 if method == "crisp" else 0.0,
                    validation_of=self._validated(specialist, gain) if seed == self._seeds[0] else {},
                    wall_seconds=50.0,
                    cpu_seconds=90.0,
                )
            )
            if not chosen:
                continue
            sets = {task: gain if specialist in ("", task) else gain / 3 for task in self._tasks}
            for task, better in sets.items() if all_sets else [(specialist, gain)]:
                self._judge(self.models[-1], f"{task}.test", better, kind="text")
                if task in self._questions:
                    self._judge(self.models[-1], f"{task}.test.accuracy", better, kind="questions")
            lost = 0.0 if method == "base" and not fraction else -GENERALIST_LOSS
            self._judge(self.models[-1], "generalist.test", lost, kind="text")

    def _validated(self, specialist: str, gain: float) -> dict[str, float]:
        return {task: float(np.exp(4.0 - gain)) for task in self._tasks if specialist in ("", task)}

    def _judge(self, model: StudyModel, set_name: str, better: float, *, kind: Any) -> None:
        of_set = np.random.default_rng(_number(set_name))
        of_seed = np.random.default_rng(_number(set_name, model.method, model.specialist, model.seed, model.fraction))
        hardness = of_set.random(self._num_examples)
        if kind == "questions":
            values = (hardness < 0.3 + better + self._noise * of_seed.standard_normal()).astype(np.float32)
        else:
            losses = 3.5 + hardness - better + self._noise * of_seed.standard_normal()
            values = (losses + 0.05 * of_seed.standard_normal(self._num_examples)).astype(np.float32)
        self.judgements.append(
            Judgement(
                method=model.method,
                specialist=model.specialist,
                seed=model.seed,
                fraction=model.fraction,
                set_name=set_name,
                kind=kind,
                values=values,
                fingerprint=hashlib.sha256(set_name.encode()).hexdigest(),
            )
        )


def _number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def full_study(**changes: Any) -> StudyResults:
    """Thirteen methods, four specialists, curves and weights: as large as a study of the documentation."""
    gains = {"base": 0.0, "only-specialist": -1.2, "crisp-1": 0.09, "crisp-2": 0.2, "crisp-3": 0.16}
    gains |= {"crisp-2-lsi": 0.13, "multitask-2": 0.1, "classifier": 0.17, "nearest": 0.12, "dsir": 0.08}
    gains |= {"doge": 0.1, "crisp-2-small-set": 0.11, "crisp-2-continued": 0.15}
    kinds = {name: name.partition("-")[0] for name in gains} | {"only-specialist": "only-specialist"}
    clusters = {"crisp-1": 16, "crisp-2": 240, "crisp-3": 3_100, "crisp-2-lsi": 236, "doge": 16, "multitask-2": 240}
    methods: dict[str, dict[str, Any]] = {name: {"clusters": clusters.get(name)} for name in gains}
    methods["crisp-2-lsi"] |= {"dataset": "lsi"}
    methods["crisp-2-small-set"] |= {"clusters": 240, "examples": 100}
    methods["crisp-2-continued"] |= {"clusters": 240, "generic_share": 0.9}
    methods["crisp-2"] |= {"examples": 500}
    corpus: dict[str, Any] = {
        "windows": 50_000,
        "nodes_per_level": (16, 240, 3_100),
        "cpu_seconds": 90.0,
        "wall_seconds": 60.0,
    }
    fields: dict[str, Any] = {
        "finetuned": tuple(name for name in gains if name != "only-specialist"),
        "unhelped": ("nearest",),
        "transfer": ("crisp-2",),
        "datasets": {
            "corpus": StudyDataset(encoder="minilm", **corpus),
            "lsi": StudyDataset(encoder="lsi", **corpus),
        },
        "weights": made_weights(SPECIALISTS, ("doge", "crisp-1")),
        "curves": (
            StudyCurve(name="clusters", along="clusters", methods=("crisp-1", "crisp-2", "crisp-3", "crisp-2-lsi")),
            StudyCurve(name="examples", along="examples", methods=("crisp-2-small-set", "crisp-2")),
            StudyCurve(name="continued", along="generic_share", methods=("crisp-2", "crisp-2-continued", "base")),
        ),
        "reference": "crisp-2",
    }
    return made_study(
        gains, kinds=kinds, methods=methods, specialists=SPECIALISTS, num_examples=200, **{**fields, **changes}
    )


def made_weights(specialists: tuple[str, ...], methods: tuple[str, str]) -> tuple[StudyWeights, ...]:
    """Proportions of 16 clusters that are alike, but not equal, for two methods."""
    rng = np.random.default_rng(3)
    weights = []
    for specialist in specialists:
        shared = rng.random(16) ** 3
        for method in methods:
            own = shared + 0.2 * rng.random(16)
            weights.append(
                StudyWeights(
                    method=method,
                    specialist=specialist,
                    level=1,
                    nodes=tuple(range(16)),
                    proportions=tuple((own / own.sum()).tolist()),
                    corpus=(1 / 16,) * 16,
                    terms=tuple(f"word{node}, other" for node in range(16)),
                )
            )
    return tuple(weights)
