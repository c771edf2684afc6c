"""Gather the record of a study from its finished jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.histograms.arithmetic import cut, generalist_histogram
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.study.jobs.datasets import dataset_of
from crisp_stream.study.jobs.job import Done, Job, job_folder
from crisp_stream.study.jobs.models import RESULTS
from crisp_stream.study.jobs.plan import Model, StudyPlan
from crisp_stream.study.jobs.plan_jobs import SETTINGS, Candidate, selection_name
from crisp_stream.study.jobs.selections import SELECTION
from crisp_stream.study.record import record as record
from crisp_stream.study.settings import MethodSettings, StudySettings, candidates_of
from crisp_stream.typed import plain

_PACKAGES = ("crisp-stream", "torch", "mosaicml", "transformers", "sentence-transformers", "scikit-learn")
_WEIGHTS_LEVEL = 1


def gather(study: StudySettings, plan: StudyPlan, done: Mapping[str, Done], out: Path) -> record.StudyResults:
    """Gather the record of what is finished of a plan of the same settings; `out`: folder of the study.

    Raises:
        InputError: no base model was judged yet; models were trained on different numbers of tokens.
    """
    return _Gathered(study, plan, done, out).record()


class _Gathered:
    def __init__(self, study: StudySettings, plan: StudyPlan, done: Mapping[str, Done], out: Path) -> None:
        self._study, self._plan, self._done, self._out = study, plan, done, out
        self._jobs: dict[str, Job] = {job.name: job for job in plan(done)}

    def record(self) -> record.StudyResults:
        study = self._study
        base = Model(study.base, "", study.seeds[0], {})
        if base.judged not in self._done:
            raise InputError(f"{self._out}: no model of {study.base} was judged yet. Let the study run on.")
        trained = self._done[f"train/{base.name}"].values
        judged = self._done[base.judged].values
        recipe = study.recipe_of("base")
        windows = self._done[f"dataset/{study.first_dataset}"].values["window_tokens"]
        tokens = study.num_batches * recipe.global_train_batch_size * windows
        if judged["tokens"] != tokens:
            raise InputError(f"{base.name}: must be trained on {tokens:,} tokens, got {judged['tokens']:,}.")
        return record.StudyResults(
            name=study.name,
            tokens=tokens,
            num_parameters=trained["num_parameters"],
            batches=study.num_batches,
            window_tokens=windows,
            seeds=study.seeds,
            device=judged["device"],
            versions={name: version(name) for name in _PACKAGES},
            datasets={name: self._dataset(name) for name in study.datasets if f"dataset/{name}" in self._done},
            specialists={name: self._specialist(name) for name in study.specialists},
            generalist_set="generalist.test" if study.generalist_test else None,
            methods=tuple(self._method(name, method) for name, method in study.methods.items() if self._known(method)),
            reference=study.reference,
            models=tuple(self._models()),
            selections=tuple(self._selections()),
            weights=tuple(self._weights()),
            curves=tuple(self._curves()),
            tags=study.tags,
            judgements=tuple(self._judged()),
        )

    def _known(self, method: MethodSettings) -> bool:
        return f"dataset/{self._study.dataset_of(method)}" in self._done

    def _folder(self, name: str) -> Path:
        return job_folder(self._out, name, self._jobs[name].key)

    def _dataset(self, name: str) -> record.StudyDataset:
        done = self._done[f"dataset/{name}"]
        return record.StudyDataset(
            windows=done.values["windows"],
            encoder=done.values["encoder"],
            nodes_per_level=tuple(done.values["nodes_per_level"]),
            cpu_seconds=round(done.cpu_seconds, 1),
            wall_seconds=round(done.wall_seconds, 1),
        )

    def _specialist(self, name: str) -> record.StudySpecialist:
        done = self._done[f"specialist/{name}"].values
        limit, documents = self._study.examples, done["documents"]
        examples = f"examples/{name}.{self._study.first_dataset}.{limit or 'all'}"
        return record.StudySpecialist(
            documents=min(documents, limit or documents),
            windows=self._done[examples].values["windows"] if examples in self._done else 0,
            kind=done["kind"],
            own_set=f"{name}.test",
            text_set=None if done["kind"] == "text" else f"{name}.test.text",
        )

    def _method(self, name: str, method: MethodSettings) -> record.StudyMethod:
        study = self._study
        dataset = study.dataset_of(method)
        values = self._done[f"dataset/{dataset}"].values
        levelled = method.kind in ("crisp", "multitask", "doge")
        learns = method.kind != "base"
        return record.StudyMethod(
            name=name,
            kind=str(method.kind),
            dataset=dataset,
            clusters=values["nodes_per_level"][method.level - 1] if levelled else 1 if not learns else None,
            examples=study.examples_of(method) if learns else None,
            corpus_windows=values["windows"],
            generic_share=method.generic_share if learns else 1.0,
            finetuned=study.finetune is not None and name in study.finetune.methods,
            settings={key: plain(getattr(method, key)) for key in SETTINGS.get(str(method.kind), ())},
        )

    # Models.

    def _each(self) -> Iterator[tuple[Model, bool]]:
        """List the judged models of the study, fine-tuned ones last, and whether validation chose them."""
        study, plan = self._study, self._plan
        models: list[tuple[Model, bool]] = []
        for method in study.methods:
            for specialist in study.specialists_of(method):
                for number in range(len(study.seeds_of(method))):
                    models += plan.pretrained(method, specialist, number)
        for method in () if study.finetune is None else study.finetune.methods:
            for specialist in study.specialists_of(method, finetuned=True):
                if plan.chosen_fraction(method, specialist) is None:
                    continue  # not all were judged yet, and what is not fine-tuned would seem not to gain by it
                for number in range(len(study.seeds_of(method))):
                    models += plan.finetuned(method, specialist, number)
        return ((model, chosen) for model, chosen in models if model.judged in self._done)

    def _models(self) -> Iterator[record.StudyModel]:
        for model, chosen in self._each():
            done = self._done[f"{'finetune' if model.fraction else 'train'}/{model.name}"].values
            judged = self._done[model.judged].values
            validated = {
                name.removesuffix(".validation"): figures["perplexity"]
                for name, figures in judged["sets"].items()
                if name.endswith(".validation")
            }
            yield record.StudyModel(
                method=model.method,
                specialist=model.specialist,
                seed=model.seed,
                fraction=model.fraction,
                candidate=dict(model.candidate),
                chosen=chosen,
                tokens=judged["tokens"],
                repeated_share=done["repeated_share"],
                validation_of=validated,
                wall_seconds=done["wall_seconds"],
                cpu_seconds=done["cpu_seconds"],
            )

    def _judged(self) -> Iterator[record.Judgement]:
        from crisp_stream.results.results import QuestionResults, load_all

        for model, chosen in self._each():
            if not chosen:
                continue
            names = self._done[model.judged].values["set_names"]
            for results in load_all([self._folder(model.judged) / RESULTS]):
                name = names[results.set_name]
                if name.endswith(".validation"):
                    continue
                questions = isinstance(results, QuestionResults)
                yield record.Judgement(
                    method=model.method,
                    specialist=model.specialist,
                    seed=model.seed,
                    fraction=model.fraction,
                    set_name=name,
                    kind="questions" if questions else "text",
                    fingerprint=results.fingerprint,
                    values=np.asarray(results.reported if questions else results.losses, np.float32),
                )

    # Selections.

    def _selections(self) -> Iterator[record.StudySelection]:
        for method, settings in self._study.methods.items():
            for specialist in self._study.specialists_of(method):
                for candidate in candidates_of(settings):
                    name = selection_name(method, specialist, candidate)
                    if name in self._done:
                        yield self._selection(name, method, specialist, candidate)

    def _selection(self, name: str, method: str, specialist: str, candidate: Candidate) -> record.StudySelection:
        needs = [self._done[need] for need in self._jobs[name].needs]
        jobs = [self._done[name], *(need for need in needs if need.name.startswith(("examples/", "proxy/")))]
        # A dataset is written for all; what there is of embedding and of the tree in it, only some methods need.
        once = ("embeddings/",) if self._study.methods[method].kind == "dsir" else ("embeddings/", "dataset/")
        shared = {need.name: round(need.cpu_seconds, 1) for need in needs if need.name.startswith(once)}
        costs = [need.values["cost"] or {} for need in needs if need.name.startswith("proxy/")]
        return record.StudySelection(
            method=method,
            specialist=specialist,
            candidate=dict(candidate),
            wall_seconds=round(sum(each.wall_seconds for each in jobs), 1),
            cpu_seconds=round(sum(each.cpu_seconds for each in jobs), 1),
            tokens=sum(int(cost["corpus_tokens"]) + int(cost["specialist_tokens"]) for cost in costs),
            shared=shared,
        )

    def _weights(self) -> Iterator[record.StudyWeights]:
        """Histograms of CRISP's reference and DoGE on the same tree, cut to its first level."""
        from crisp_stream.inspection.terms import node_terms

        weighed = [(method, task) for method in self._weighed() for task in self._study.specialists_of(method)]
        jobs = {place: name for place in weighed if (name := selection_name(*place, {})) in self._done}
        if not jobs:
            return
        dataset = dataset_of(self._folder(f"dataset/{self._study.first_dataset}"))
        corpus_of = _shares(generalist_histogram(dataset, _WEIGHTS_LEVEL))
        by_node = node_terms(dataset, _WEIGHTS_LEVEL, terms_per_node=2)
        for (method, specialist), name in jobs.items():
            histogram = Histogram.load(self._folder(name) / f"{SELECTION}.parquet")
            share_of = _shares(cut(histogram, _WEIGHTS_LEVEL))
            yield record.StudyWeights(
                method=method,
                specialist=specialist,
                level=_WEIGHTS_LEVEL,
                nodes=tuple(corpus_of),
                proportions=tuple(round(share_of.get(node, 0.0), 6) for node in corpus_of),
                corpus=tuple(round(share, 6) for share in corpus_of.values()),
                terms=tuple(" ".join(words) for words in by_node.terms),
            )

    def _weighed(self) -> list[str]:
        """Name the methods whose weights are kept: one CRISP, as all of the same examples are equal at one level."""
        study = self._study
        names: dict[str, list[str]] = {"crisp": [], "doge": []}
        for name, method in study.methods.items():
            plain = method.examples is None and method.base_share == (0.0,) and not method.generic_share
            if method.kind in names and study.dataset_of(method) == study.first_dataset and plain:
                names[method.kind].append(name)
        return [name for name in study.methods if name in (*names["crisp"][:1], *names["doge"])]

    def _curves(self) -> Iterator[record.StudyCurve]:
        for number, curve in enumerate(self._study.curves):
            methods = tuple(name for name in curve.methods if self._known(self._study.methods[name]))
            yield record.StudyCurve(name=f"{curve.along}-{number}", along=curve.along, methods=methods)


def _shares(histogram: Any) -> dict[int, float]:
    return dict(zip(histogram.nodes.tolist(), histogram.proportions.tolist(), strict=True))
