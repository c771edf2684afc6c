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
    candidate: str = ""
    """Name by `candidate_name`; empty where the method has one candidate."""
    fraction: float = 0.0
    """Share of the steps that fine-tune on the specialist text."""

    @property
    def name(self) -> str:
        """Name in jobs and results."""
        parts = [self.method, self.specialist, self.candidate, f"seed-{self.seed}"]
        parts.append(f"finetuned-{self.fraction:g}" if self.fraction else "")
        return ".".join(part for part in parts if part)

    @property
    def judged(self) -> str:
        """The job that judges it."""
        return f"judge/{self.name}"


class StudyPlan:
    """The plan of a study: called with the finished jobs, it gives all that can be planned."""

    def __init__(self, study: StudySettings, out: str | Path, *, text: str | Path | None = None) -> None:
        """Args:
        study: what is compared.
        out: folder of the study.
        text: folder that holds the study's text; where None it is fetched if the study says so.
        """
        self._study, self._out = study, Path(out)
        self._text = None if text is None else Path(text)
        self._jobs = StudyJobs(study, self._out, self._text)
        self._done: Mapping[str, Done] = {}

    def __call__(self, done: Mapping[str, Done]) -> list[Job]:
        """Plan all jobs that are known by now in the order of running: methods of all seeds come first."""
        study, self._done = self._study, done
        self._jobs = StudyJobs(study, self._out, self._text)
        if self._text is None and study.fetch is not None and self._jobs.fetched_text().name not in done:
            return self._jobs.all
        for name in study.datasets:
            self._jobs.dataset(name)
        for name in study.specialists:
            self._jobs.specialist(name)
        if study.generalist_test:
            self._jobs.generalist_test()
        whole = [name for name in study.methods if study.seeds_of(name) == study.seeds]
        for names in (whole, [name for name in study.methods if name not in whole]):
            for number in range(len(study.seeds)):
                self._of_seed(names, number)
        return self._jobs.all

    def _of_seed(self, methods: Sequence[str], number: int) -> None:
        for method in methods:
            self._models(method, number)
        finetune = self._study.finetune
        for method in () if finetune is None else finetune.methods:
            if method in methods:
                self._finetuned(method, number)

    def chosen(self, method: str, specialist: str, done: Mapping[str, Done]) -> Candidate | None:
        """Candidate with the lowest validation perplexity with the first seed; None while it is not known."""
        candidates = candidates_of(self._study.methods[method])
        if len(candidates) == 1:
            return candidates[0]
        seed = self._study.seeds[0]
        models = [Model(method, specialist, seed, candidate_name(candidate)) for candidate in candidates]
        if any(model.judged not in done for model in models):
            return None
        perplexities = [validation_perplexity(done[model.judged], specialist) for model in models]
        return candidates[perplexities.index(min(perplexities))]

    def chosen_fraction(self, method: str, specialist: str, done: Mapping[str, Done]) -> float | None:
        """Fraction of fine-tuning with the lowest validation perplexity, likewise; 0 is none at all."""
        candidate, finetune = self.chosen(method, specialist, done), self._study.finetune
        if candidate is None or finetune is None:
            return None
        seed = self._study.seeds[0]
        tried = [0.0, *finetune.fractions]
        models = [self.model(method, specialist, seed, candidate, fraction) for fraction in tried]
        if any(model.judged not in done for model in models):
            return None
        perplexities = [validation_perplexity(done[model.judged], specialist) for model in models]
        return tried[perplexities.index(min(perplexities))]

    def model(self, method: str, specialist: str, seed: int, candidate: Candidate, fraction: float = 0.0) -> Model:
        """Name a model by its parts; a pretrained base or multitask model is for all specialists."""
        if fraction == 0 and self._study.specialists_of(method) == ("",):
            specialist = ""
        return Model(method, specialist, seed, candidate_name(candidate), fraction)

    # Models.

    def _models(self, method: str, number: int) -> None:
        """Plan training and judging of a method with the seed of a number."""
        study = self._study
        if number >= len(study.seeds_of(method)):
            return
        for specialist in study.specialists_of(method):
            chosen = self.chosen(method, specialist, self._done)
            for candidate in (
                candidates_of(study.methods[method]) if number == 0 else [] if chosen is None else [chosen]
            ):
                model = self.model(method, specialist, study.seeds[number], candidate)
                self._judge(model, self._train(model, candidate))

    def _train(self, model: Model, candidate: Candidate) -> Job:
        study, method = self._study, self._study.methods[model.method]
        plain = study.recipe_of("base", [f"seed={model.seed}", f"save_at={json.dumps(self._saved_at(model.method))}"])
        needs: list[Job] = []
        places: dict[str, Any] = {}
        if method.kind == "only-specialist":
            needs.append(self._jobs.specialist_data(model.specialist, method))
            places["data"] = self._jobs.folder(needs[0])
        else:
            needs.append(self._jobs[f"dataset/{method.dataset or study.first_dataset}"])
            places["data"] = self._jobs.folder(needs[0])
            if method.kind != "base":
                needs.append(self._jobs.selection(model.method, model.specialist, candidate))
                places["selection"] = self._jobs.folder(needs[1])
        if method.generic_share:
            start = self._jobs[f"train/{Model(study.base, '', model.seed).name}"]
            needs.append(start)
            places["start"] = self._jobs.folder(start)
        return self._jobs.add(
            f"train/{model.name}",
            train_model,
            needs=needs,
            settings={"recipe": plain, "generic_share": method.generic_share},
            places=places,
        )

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

    def _finetuned(self, method: str, number: int) -> None:
        """Plan fine-tuning of the models of a method with the seed of a number, and judging them."""
        study = self._study
        assert study.finetune is not None, "called for methods that are fine-tuned"
        if number >= len(study.seeds_of(method)):
            return
        for specialist in study.methods[method].specialists or tuple(study.specialists):
            for_whom = "" if study.specialists_of(method) == ("",) else specialist
            candidate = self.chosen(method, for_whom, self._done)
            if candidate is None:
                continue
            fraction = self.chosen_fraction(method, specialist, self._done)
            for each in study.finetune.fractions if number == 0 else [fraction] if fraction else []:
                start = self.model(method, specialist, study.seeds[number], candidate)
                model = self.model(method, specialist, study.seeds[number], candidate, each)
                self._judge(model, self._finetune(model, self._jobs[f"train/{start.name}"]))

    def _finetune(self, model: Model, start: Job) -> Job:
        study = self._study
        data = self._jobs.specialist_data(model.specialist, study.methods[model.method])
        return self._jobs.add(
            f"finetune/{model.name}",
            finetune_model,
            needs=[start, data],
            settings={"recipe": study.recipe_of("base", [f"seed={model.seed}"]), "fraction": model.fraction},
            places={"start": self._jobs.folder(start), "data": self._jobs.folder(data)},
        )

    def _judge(self, model: Model, trained: Job) -> None:
        study = self._study
        first = model.seed == study.seeds[0]
        everyone = model.specialist == "" or study.methods[model.method].transfer
        specialists = [model.specialist] if model.specialist else list(study.specialists)
        tested = list(study.specialists) if everyone else specialists
        sets = [(name, "validation") for name in specialists if first] + [(name, "test") for name in tested]
        if study.generalist_test:
            sets.append(("generalist", "test"))
        held_out = {name: self._jobs[f"held-out/{name}"] for name in dict.fromkeys(name for name, _ in sets)}
        self._jobs.add(
            model.judged,
            judge_model,
            needs=[trained, *held_out.values()],
            settings={"model": model.name, "sets": sets, "batch_size": study.eval_batch_size},
            places={
                "trained": self._jobs.folder(trained),
                "folders": {name: self._jobs.folder(job) for name, job in held_out.items()},
            },
        )


def validation_perplexity(judged: Done, specialist: str) -> float:
    """Perplexity of a judged model on the validation set of a specialist."""
    return float(judged.values["sets"][f"{specialist}.validation"]["perplexity"])
