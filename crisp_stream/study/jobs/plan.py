"""Plan the jobs of a study from its settings and its finished jobs: a pure function but for input digests.

    text ─▶ dataset ─▶ embeddings ─┐
      └─▶ specialist ─▶ examples ──┴▶ selection ─▶ training ─▶ judging ─▶ fine-tuning ─▶ judging

Where a method has candidates, they are trained with the first seed; the one with the lowest validation perplexity is
planned for the other seeds. Fractions of fine-tuning likewise, where none at all is a candidate, too. So the plan grows
as jobs are finished, and after an interruption the same jobs are planned again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crisp_stream.study.jobs.job import Done, Job
from crisp_stream.study.jobs.models import finetune_model, judge_model, starting_batch, train_model
from crisp_stream.study.jobs.plan_jobs import Candidate, StudyJobs, candidate_name
from crisp_stream.study.settings import StudySettings, candidates_of


class Model(NamedTuple):
    """One model of a study."""

    method: str
    specialist: str
    """Empty: for none, or for all."""
    seed: int
    candidate: Candidate
    fraction: float = 0.0
    """Share of the steps that fine-tune on the specialist text."""

    @property
    def name(self) -> str:
        """Name in jobs and results."""
        parts = [self.method, self.specialist, candidate_name(self.candidate), f"seed-{self.seed}"]
        parts.append(f"finetuned-{self.fraction:g}" if self.fraction else "")
        return ".".join(part for part in parts if part)

    @property
    def judged(self) -> str:
        """The job that judges it."""
        return f"judge/{self.name}"


class StudyPlan:
    """The plan of a study: called with the finished jobs, it gives all that can be planned."""

    def __init__(self, study: StudySettings, out: str | Path, *, text: str | Path | None = None) -> None:
        """`text`: folder that holds the study's text; where None it is fetched if the study says so."""
        self._study, self._out = study, Path(out)
        self._text = None if text is None else Path(text)
        self._jobs = StudyJobs(study, self._out, self._text)
        self._done: Mapping[str, Done] = {}

    def __call__(self, done: Mapping[str, Done]) -> list[Job]:
        """Plan all jobs that are known by now in the order of running: methods of all seeds come first."""
        study, self._done = self._study, done
        self._jobs = StudyJobs(study, self._out, self._text)
        if self._text is None and study.fetch is not None and self._jobs.fetched_text().name not in done:
            return list(self._jobs.made.values())
        for name in study.datasets:
            self._jobs.dataset(name)
        for name in study.specialists:
            self._jobs.specialist(name)
        if study.generalist_test:
            self._jobs.generalist_test()
        whole = [name for name in study.methods if study.seeds_of(name) == study.seeds]
        for names in (whole, [name for name in study.methods if name not in whole]):
            for number in range(len(study.seeds)):
                self._of_seed([name for name in names if number < len(study.seeds_of(name))], number)
        return list(self._jobs.made.values())

    def _of_seed(self, methods: Sequence[str], number: int) -> None:
        """Plan training and judging of methods with the seed of a number, then fine-tuning and judging again."""
        study = self._study
        for method in methods:
            for specialist in study.specialists_of(method):
                for model, _ in self.pretrained(method, specialist, number):
                    self._judge(model, self._train(model))
        for method in () if study.finetune is None else study.finetune.methods:
            if method in methods:
                for specialist in study.specialists_of(method, finetuned=True):
                    for model, _ in self.finetuned(method, specialist, number):
                        self._judge(model, self._finetune(model))

    # Of the finished jobs that the plan was last called with.

    def chosen(self, method: str, specialist: str) -> Candidate | None:
        """Candidate with the lowest validation perplexity with the first seed; None while it is not known."""
        candidates = candidates_of(self._study.methods[method])
        if len(candidates) == 1:
            return candidates[0]
        seed = self._study.seeds[0]
        best = self._best([Model(method, specialist, seed, candidate) for candidate in candidates], specialist)
        return best.candidate if best else None

    def chosen_fraction(self, method: str, specialist: str) -> float | None:
        """Fraction of fine-tuning with the lowest validation perplexity, likewise; 0 is none at all."""
        candidate, finetune = self.chosen(method, specialist), self._study.finetune
        if candidate is None or finetune is None:
            return None
        seed = self._study.seeds[0]
        tuned = [Model(method, specialist, seed, candidate, fraction) for fraction in finetune.fractions]
        best = self._best([self._start_of(tuned[0]), *tuned], specialist)
        return best.fraction if best else None

    def _best(self, models: Sequence[Model], specialist: str) -> Model | None:
        """Model with the lowest perplexity on a specialist's validation set; None while not all are judged."""
        if any(model.judged not in self._done for model in models):
            return None
        name = f"{specialist}.validation"
        return min(models, key=lambda model: float(self._done[model.judged].values["sets"][name]["perplexity"]))

    def pretrained(self, method: str, specialist: str, number: int) -> list[tuple[Model, bool]]:
        """List the models with the seed of a number that can be named, and whether they are of the chosen candidate."""
        chosen = self.chosen(method, specialist)
        seed = self._study.seeds[number]
        known = candidates_of(self._study.methods[method]) if number == 0 else [] if chosen is None else [chosen]
        return [(Model(method, specialist, seed, candidate), candidate == chosen) for candidate in known]

    def finetuned(self, method: str, specialist: str, number: int) -> list[tuple[Model, bool]]:
        """List the fine-tuned models likewise, and whether they are of the chosen fraction."""
        candidate, finetune = self.chosen(method, specialist), self._study.finetune
        if candidate is None or finetune is None:
            return []
        chosen = self.chosen_fraction(method, specialist)
        seed = self._study.seeds[number]
        known = finetune.fractions if number == 0 else [chosen] if chosen else []
        return [(Model(method, specialist, seed, candidate, fraction), fraction == chosen) for fraction in known]

    def _start_of(self, model: Model) -> Model:
        """The pretrained model that a fine-tuned one begins from."""
        everyone = self._study.specialists_of(model.method) == ("",)
        return model._replace(specialist="" if everyone else model.specialist, fraction=0.0)

    # Models.

    def _train(self, model: Model) -> Job:
        study, method = self._study, self._study.methods[model.method]
        recipe = study.recipe_of("base", [f"seed={model.seed}", f"save_at={json.dumps(self._saved_at(model.method))}"])
        needs: dict[str, Any] = {}
        if method.kind == "only-specialist":
            needs["data"] = self._jobs.specialist_data(model.specialist, method)
        else:
            needs["data"] = self._jobs.made[f"dataset/{study.dataset_of(method)}"]
            if method.kind != "base":
                needs["selection"] = self._jobs.selection(model.method, model.specialist, model.candidate)
        if method.generic_share:
            needs["start"] = self._jobs.made[f"train/{Model(study.base, '', model.seed, {}).name}"]
        settings = {"recipe": recipe, "generic_share": method.generic_share}
        return self._jobs.add(f"train/{model.name}", train_model, settings=settings, needs=needs)

    def _saved_at(self, method: str) -> list[str]:
        """Batches at which a training saves a checkpoint that others begin from."""
        study = self._study
        batches: set[int] = set()
        if study.finetune is not None and method in study.finetune.methods:
            batches |= {starting_batch(fraction, study.num_batches) for fraction in study.finetune.fractions}
        if method == study.base:
            shares = {settings.generic_share for settings in study.methods.values()} - {0.0}
            batches |= {round(share * study.num_batches) for share in shares}
        return [f"{batch}ba" for batch in sorted(batches)]

    def _finetune(self, model: Model) -> Job:
        study = self._study
        start = self._jobs.made[f"train/{self._start_of(model).name}"]
        data = self._jobs.specialist_data(model.specialist, study.methods[model.method])
        settings = {"recipe": study.recipe_of("base", [f"seed={model.seed}"]), "fraction": model.fraction}
        needs = {"start": start, "data": data}
        return self._jobs.add(f"finetune/{model.name}", finetune_model, settings=settings, needs=needs)

    def _judge(self, model: Model, trained: Job) -> None:
        study = self._study
        first = model.seed == study.seeds[0]
        everyone = model.specialist == "" or study.methods[model.method].transfer
        specialists = [model.specialist] if model.specialist else list(study.specialists)
        tested = list(study.specialists) if everyone else specialists
        sets = [(name, "validation") for name in specialists if first] + [(name, "test") for name in tested]
        if study.generalist_test:
            sets.append(("generalist", "test"))
        settings = {"model": model.name, "sets": sets, "batch_size": study.eval_batch_size}
        folders = {name: self._jobs.made[f"held-out/{name}"] for name, _ in sets}
        self._jobs.add(model.judged, judge_model, settings=settings, needs={"trained": trained, "folders": folders})
