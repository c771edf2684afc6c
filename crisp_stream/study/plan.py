"""From a study's settings and what is finished to the jobs that can be named: a pure function but for input digests.

    text ─▶ dataset ─▶ embeddings ─┐
      └─▶ specialist ─▶ examples ──┴▶ selection ─▶ training ─▶ judging ─▶ fine-tuning ─▶ judging

Where a method has candidates, they are trained with the first seed; the one with the lowest validation perplexity is
planned for the other seeds. Fractions of fine-tuning likewise, where none at all is a candidate, too. So the plan grows
as jobs are finished, and asking again after an interruption gives the same jobs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from crisp_stream.errors import InputError
from crisp_stream.study import work
from crisp_stream.study.digests import digest_of
from crisp_stream.study.jobs import Done, Job, job_folder
from crisp_stream.study.settings import TEXT_FOLDER, MethodSettings, StudySettings, candidates_of, with_candidate

PLAN_VERSION = 1
"""Of the meaning of jobs: raised when a job of equal settings gives something else."""

SETTINGS = {
    "crisp": ("level", "base_share"),
    "multitask": ("level", "base_share"),
    "doge": ("level", "base_share", "average"),
    "classifier": ("share",),
    "nearest": ("share", "neighbours"),
    "dsir": ("share",),
}
"""What of a method's settings decides its selection, by its kind."""

Candidate = dict[str, float]


class Model(NamedTuple):
    """One model of a study."""

    method: str
    specialist: str
    """Empty: for none, or for all."""
    seed: int
    candidate: str = ""
    """As `candidate_name` writes it; empty where the method has none."""
    fraction: float = 0.0
    """Of the steps spent on the specialist text itself."""

    @property
    def name(self) -> str:
        """As jobs and results call it."""
        parts = [self.method, self.specialist, self.candidate, f"seed-{self.seed}"]
        parts.append(f"finetuned-{self.fraction:g}" if self.fraction else "")
        return ".".join(part for part in parts if part)

    @property
    def judged(self) -> str:
        """The job that judges it."""
        return f"judge/{self.name}"


def candidate_name(candidate: Candidate) -> str:
    """`share-0.1`; empty for the only candidate."""
    return ",".join(f"{key}-{value:g}" for key, value in candidate.items())


class StudyPlan:
    """The plan of a study. Call it with what is finished."""

    def __init__(self, study: StudySettings, out: str | Path, *, text: str | Path | None = None) -> None:
        """Args:
        study: what is compared.
        out: folder of the study.
        text: folder that holds the study's text; where None it is fetched if the study says so.
        """
        self._study, self._out = study, Path(out)
        self._jobs: dict[str, Job] = {}
        self._done: Mapping[str, Done] = {}
        self._text = None if text is None else Path(text)
        self._fetches = text is None and study.fetch is not None

    def __call__(self, done: Mapping[str, Done]) -> list[Job]:
        """All jobs that are known by now, in the order in which they should run."""
        self._jobs, self._done = {}, done
        study = self._study
        if self._fetches:
            job = self._add("text", work.fetch_text, whole_machine=True, settings={"scale": study.fetch})
            self._text = self._folder(job) / work.TEXT
            if job.name not in done:
                return [job]
        for name in study.datasets:
            self._dataset(name)
        for name in study.specialists:
            self._specialist(name)
        if study.generalist_test:
            self._generalist_test()
        for number in range(len(study.seeds)):
            for method in study.methods:
                self._models(method, number)
            for method in () if study.finetune is None else study.finetune.methods:
                self._finetuned(method, number)
        return list(self._jobs.values())

    def chosen(self, method: str, specialist: str, done: Mapping[str, Done]) -> Candidate | None:
        """The candidate with the lowest validation perplexity with the first seed; None while it is not known."""
        candidates = candidates_of(self._study.methods[method])
        if len(candidates) == 1:
            return candidates[0]
        seed = self._study.seeds[0]
        models = [Model(method, specialist, seed, candidate_name(candidate)) for candidate in candidates]
        if any(model.judged not in done for model in models):
            return None
        found = [validation_perplexity(done[model.judged], specialist) for model in models]
        return candidates[found.index(min(found))]

    def chosen_fraction(self, method: str, specialist: str, done: Mapping[str, Done]) -> float | None:
        """The fraction of fine-tuning with the lowest validation perplexity, likewise; 0 is none at all."""
        candidate, finetune = self.chosen(method, specialist, done), self._study.finetune
        if candidate is None or finetune is None:
            return None
        seed = self._study.seeds[0]
        tried = [0.0, *finetune.fractions]
        models = [self.model(method, specialist, seed, candidate, fraction) for fraction in tried]
        if any(model.judged not in done for model in models):
            return None
        found = [validation_perplexity(done[model.judged], specialist) for model in models]
        return tried[found.index(min(found))]

    def model(self, method: str, specialist: str, seed: int, candidate: Candidate, fraction: float = 0.0) -> Model:
        """A model by its parts; a pretrained base or multitask model is for all specialists."""
        if fraction == 0 and self._study.specialists_of(method) == ("",):
            specialist = ""
        return Model(method, specialist, seed, candidate_name(candidate), fraction)

    # Jobs that all methods share.

    def _dataset(self, name: str) -> None:
        study, own = self._study, self._study.datasets[name]
        if own.root is not None:
            settings = {"root": own.root}
            self._add(f"dataset/{name}", work.open_root, settings=settings)
        else:
            first = None if name == study.first_dataset else self._jobs[f"dataset/{own.like or study.first_dataset}"]
            inputs = self._resolved(own.inputs)
            settings = {key: value for key, value in dataclasses.asdict(own).items() if key not in ("root", "inputs")}
            settings["like"] = own.like is not None
            self._add(
                f"dataset/{name}",
                work.write_dataset,
                needs=[] if first is None else [first],
                whole_machine=True,
                settings=settings,
                inputs=inputs,
                places={"other": None if first is None else self._folder(first)},
            )
        if any(method.kind in ("classifier", "nearest") for method in self._methods_on(name)):
            dataset = self._jobs[f"dataset/{name}"]
            self._add(
                f"embeddings/{name}",
                work.embed_dataset,
                needs=[dataset],
                whole_machine=True,
                places={"dataset": self._folder(dataset)},
            )

    def _methods_on(self, dataset: str) -> list[MethodSettings]:
        study = self._study
        return [own for own in study.methods.values() if (own.dataset or study.first_dataset) == dataset]

    def _specialist(self, name: str) -> None:
        study, own = self._study, self._study.specialists[name]
        limits = {"validation_limit": study.validation_limit, "test_limit": study.test_limit}
        if own.questions is not None:
            inputs = self._resolved([own.questions])
            self._add(f"specialist/{name}", work.prepare_questions, settings={"name": name, **limits}, inputs=inputs)
            return
        splits = {split: self._resolved(getattr(own, split)) for split in ("train", "validation", "test")}
        self._add(
            f"specialist/{name}",
            work.prepare_specialist,
            settings={
                "name": name,
                "text_column": own.text_column,
                "digests": {split: digest_of(paths) for split, paths in splits.items()},
                **limits,
            },
            places={"splits": splits},
        )

    def _generalist_test(self) -> None:
        inputs = self._resolved(self._study.generalist_test)
        self._add("generalist", work.prepare_generalist, settings={"test_limit": self._study.test_limit}, inputs=inputs)

    def _examples(self, specialist: str, method: MethodSettings) -> Job:
        study = self._study
        return self._of_examples(
            "examples",
            work.embed_examples,
            specialist,
            method.dataset or study.first_dataset,
            limit=method.examples or study.examples,
        )

    def _specialist_data(self, specialist: str, method: MethodSettings) -> Job:
        study = self._study
        return self._of_examples(
            "specialist-data",
            work.write_specialist_data,
            specialist,
            study.first_dataset,
            limit=method.examples or study.examples,
        )

    def _of_examples(
        self, what: str, function: Callable[..., dict[str, Any]], specialist: str, dataset: str, *, limit: int | None
    ) -> Job:
        """A job of a specialist's examples and a dataset."""
        needs = [self._jobs[f"dataset/{dataset}"], self._jobs[f"specialist/{specialist}"]]
        return self._add(
            f"{what}/{specialist}.{dataset}.{limit or 'all'}",
            function,
            needs=needs,
            settings={"name": specialist, "limit": limit},
            places={"dataset": self._folder(needs[0]), "specialist": self._folder(needs[1])},
        )

    # What a method trains on.

    def _selection(self, name: str, specialist: str, candidate: Candidate) -> Job:
        study = self._study
        method = with_candidate(study.methods[name], candidate)
        dataset = self._jobs[f"dataset/{method.dataset or study.first_dataset}"]
        places: dict[str, Any] = {"dataset": self._folder(dataset)}
        needs = [dataset]
        if method.kind == "doge":
            needs.append(self._proxy(method, specialist))
            places["proxy"] = self._folder(needs[-1])
        elif method.kind == "dsir":
            needs.append(self._jobs[f"specialist/{specialist}"])
            places["specialist"] = self._folder(needs[-1])
        else:
            names = list(study.specialists) if method.kind == "multitask" else [specialist]
            tasks = [self._examples(each, method) for each in names]
            needs += tasks
            places["tasks"] = [self._folder(task) for task in tasks]
        if method.kind in ("classifier", "nearest"):
            needs.append(self._jobs[f"embeddings/{method.dataset or study.first_dataset}"])
            places["embeddings"] = self._folder(needs[-1])
        return self._add(
            f"select/{'.'.join(part for part in (name, specialist, candidate_name(candidate)) if part)}",
            work.select,
            needs=needs,
            settings={"name": specialist, **_selection_settings(method, method.examples or study.examples)},
            places=places,
        )

    def _proxy(self, method: MethodSettings, specialist: str) -> Job:
        study = self._study
        names = method.proxy or study.recipe
        dataset = method.dataset or study.first_dataset
        needs = [self._jobs[f"dataset/{dataset}"], self._jobs[f"specialist/{specialist}"]]
        settings = {
            "name": specialist,
            "recipe": list(names),
            "level": method.level,
            "update": method.update,
            "mu": method.mu,
            "limit": method.examples or study.examples,
        }
        told = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:4]
        return self._add(
            f"proxy/{specialist}.{dataset}.{told}",
            work.train_proxy,
            needs=needs,
            settings=settings,
            places={"dataset": self._folder(needs[0]), "specialist": self._folder(needs[1])},
        )

    # Models.

    def _models(self, method: str, number: int) -> None:
        """Training and judging of a method with the seed of a number."""
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
            needs.append(self._specialist_data(model.specialist, method))
            places["data"] = self._folder(needs[0])
        else:
            needs.append(self._jobs[f"dataset/{method.dataset or study.first_dataset}"])
            places["data"] = self._folder(needs[0])
            if method.kind != "base":
                needs.append(self._selection(model.method, model.specialist, candidate))
                places["selection"] = self._folder(needs[1])
        if method.generic_share:
            start = self._jobs[f"train/{Model(study.base, '', model.seed).name}"]
            needs.append(start)
            places["start"] = self._folder(start)
        return self._add(
            f"train/{model.name}",
            work.train_model,
            needs=needs,
            settings={"recipe": plain, "generic_share": method.generic_share},
            places=places,
        )

    def _saved_at(self, method: str) -> list[str]:
        """When a training saves what others begin from."""
        study = self._study
        batches: set[int] = set()
        if study.finetune is not None and method in study.finetune.methods:
            batches |= {work.starting_batch(fraction, study.num_batches) for fraction in study.finetune.fractions}
        if method == study.base:
            shares = {own.generic_share for own in study.methods.values()} - {0.0}
            batches |= {round(share * study.num_batches) for share in shares}
        return [f"{batch}ba" for batch in sorted(batches)]

    def _finetuned(self, method: str, number: int) -> None:
        """Fine-tuning of what a method trained with the seed of a number, and its judging."""
        study = self._study
        assert study.finetune is not None, "called for methods that are fine-tuned"
        if number >= len(study.seeds_of(method)):
            return
        own = study.methods[method].specialists or tuple(study.specialists)
        for specialist in own:
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
        data = self._specialist_data(model.specialist, study.methods[model.method])
        return self._add(
            f"finetune/{model.name}",
            work.finetune_model,
            needs=[start, data],
            settings={"recipe": study.recipe_of("base", [f"seed={model.seed}"]), "fraction": model.fraction},
            places={"start": self._folder(start), "data": self._folder(data)},
        )

    def _judge(self, model: Model, trained: Job) -> None:
        study = self._study
        first = model.seed == study.seeds[0]
        everyone = model.specialist == "" or study.methods[model.method].transfer
        own = [model.specialist] if model.specialist else list(study.specialists)
        tested = list(study.specialists) if everyone else own
        sets = [(name, "validation") for name in own if first] + [(name, "test") for name in tested]
        needs = [trained, *(self._jobs[f"specialist/{name}"] for name in study.specialists if name in tested)]
        places: dict[str, Any] = {name: self._folder(self._jobs[f"specialist/{name}"]) for name in tested}
        if study.generalist_test:
            sets.append(("generalist", "test"))
            needs.append(self._jobs["generalist"])
            places["generalist"] = self._folder(needs[-1])
        self._add(
            model.judged,
            work.judge_model,
            needs=needs,
            settings={"model": model.name, "sets": sets, "batch_size": study.eval_batch_size},
            places={"trained": self._folder(trained), "folders": places},
        )

    # How a job is made.

    def _add(
        self,
        name: str,
        function: Callable[..., dict[str, Any]],
        *,
        needs: Sequence[Job] = (),
        whole_machine: bool = False,
        settings: Mapping[str, Any] | None = None,
        inputs: Sequence[str] | None = None,
        places: Mapping[str, Any] | None = None,
    ) -> Job:
        """A job, once.

        Args:
            name: of the job.
            function: takes the JobPlace, and settings, inputs and places by name.
            needs: jobs whose outcomes it uses.
            whole_machine: it starts processes of its own.
            settings: what decides the outcome, besides the outcomes of `needs`.
            inputs: files that decide it by what is in them.
            places: where things are; no part of the key.
        """
        if name in self._jobs:
            return self._jobs[name]
        told: dict[str, Any] = {key: _plain(value) for key, value in (settings or {}).items()}
        if inputs is not None:
            told["inputs"] = digest_of(inputs)
        named = [PLAN_VERSION, name, function.__name__, told, [need.key for need in needs]]
        key = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
        given = {**(settings or {}), **({} if inputs is None else {"inputs": tuple(inputs)}), **(places or {})}
        given.pop("digests", None)
        job = Job(
            name=name,
            key=key,
            needs=tuple(dict.fromkeys(need.name for need in needs)),
            whole_machine=whole_machine,
            work=partial(function, **given),
        )
        self._jobs[name] = job
        return job

    def _folder(self, job: Job) -> Path:
        return job_folder(self._out, job.name, job.key)

    def _resolved(self, paths: Sequence[str]) -> list[str]:
        """Paths with the folder of the text filled in. Raises InputError: there is none."""
        if self._text is None and any(TEXT_FOLDER in path for path in paths):
            raise InputError(f"{paths[0]}: {TEXT_FOLDER} is the folder of --text, which is not given.")
        return [path.replace(TEXT_FOLDER, str(self._text)) for path in paths]


def validation_perplexity(judged: Done, specialist: str) -> float:
    """Of a judged model on the validation set of a specialist."""
    return float(judged.values["sets"][f"{specialist}.validation"]["perplexity"])


def _selection_settings(method: MethodSettings, limit: int | None) -> dict[str, Any]:
    """What of a method decides its selection."""
    values = {key: getattr(method, key) for key in SETTINGS[str(method.kind)]}
    one = {key: value[0] if isinstance(value, tuple) else value for key, value in values.items()}
    return {"kind": method.kind, "options": one, "limit": limit}


def _plain(value: Any) -> Any:
    """A setting as JSON; of recipes all keys, but for names and places that say nothing of the outcome."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tree = dataclasses.asdict(value)
        for key in ("run_name", "save_folder", "autoresume", "log_interval", "loggers"):
            tree.pop(key, None)
        tree.get("data", {}).pop("remote", None)
        tree.get("data", {}).pop("local", None)
        return tree
    return value
