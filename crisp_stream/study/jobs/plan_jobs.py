"""The jobs of a study, each made once, with what decides its outcome in its key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from crisp_stream.errors import InputError
from crisp_stream.storage.store import is_remote, local_path
from crisp_stream.study.jobs import datasets, selections, texts
from crisp_stream.study.jobs.job import Job, job_folder
from crisp_stream.study.settings import TEXT_FOLDER, MethodSettings, StudySettings, with_candidate

PLAN_VERSION = 1
"""Version of the jobs: raised when a job of equal settings gives something else."""

SETTINGS = {
    "crisp": ("level", "base_share"),
    "multitask": ("level", "base_share"),
    "doge": ("level", "base_share", "average"),
    "classifier": ("share",),
    "nearest": ("share", "neighbours"),
    "dsir": ("share",),
}
"""Settings that decide the selection of a method, by its kind."""

Candidate = dict[str, float]
"""One value for each key of a method that has several."""


def candidate_name(candidate: Candidate) -> str:
    """Name a candidate, such as `share-0.1`; the only candidate of a method has an empty name."""
    return ",".join(f"{key}-{value:g}" for key, value in candidate.items())


def selection_name(method: str, specialist: str, candidate: Candidate) -> str:
    """Name the job that finds what a candidate of a method trains on."""
    return f"select/{'.'.join(part for part in (method, specialist, candidate_name(candidate)) if part)}"


class StudyJobs:
    """Makes jobs. A method that makes one gives the same job again when it is called again."""

    def __init__(self, study: StudySettings, out: Path, text: Path | None) -> None:
        """`text` stands for `{text}` in paths; None: there is none yet."""
        self._study, self._out, self._text = study, out, text
        self.made: dict[str, Job] = {}
        """All jobs by name, in the order in which they were made."""

    def fetched_text(self) -> Job:
        """Fetch the study's text; its folder stands for `{text}` from now on."""
        job = self.add("text", texts.fetch_text, whole_machine=True, settings={"scale": self._study.fetch})
        self._text = job_folder(self._out, job.name, job.key) / texts.TEXT
        return job

    def dataset(self, name: str) -> None:
        """Plan a dataset of the corpus, and the embeddings of its windows where a method needs them."""
        study, options = self._study, self._study.datasets[name]
        if options.root is not None:
            settings = {"root": options.root, "fingerprint": fingerprint_of(options.root)}
            dataset = self.add(f"dataset/{name}", datasets.open_root, settings=settings)
        else:
            settings = {**dataclasses.asdict(options), "like": options.like is not None}
            del settings["root"], settings["inputs"]
            other = options.like or study.first_dataset
            dataset = self.add(
                f"dataset/{name}",
                datasets.write_dataset,
                whole_machine=True,
                settings=settings,
                inputs=self._resolved(options.inputs),
                needs={} if name == study.first_dataset else {"other": self.made[f"dataset/{other}"]},
            )
        kinds = {method.kind for method in study.methods.values() if study.dataset_of(method) == name}
        if kinds & {"classifier", "nearest"}:
            self.add(f"embeddings/{name}", datasets.embed_dataset, whole_machine=True, needs={"dataset": dataset})

    def specialist(self, name: str) -> None:
        """Plan the examples that a specialist is learnt from, and those that its models are chosen and judged by."""
        study, task = self._study, self._study.specialists[name]
        limits = {"validation": study.validation_limit, "test": study.test_limit}
        if task.questions is not None:
            inputs = self._resolved([task.questions])
            learnt = self.add(f"specialist/{name}", texts.prepare_questions, settings={"name": name}, inputs=inputs)
            settings = {"name": name, "limits": limits}
            self.add(f"held-out/{name}", texts.hold_out_questions, settings=settings, needs={"specialist": learnt})
            return
        source = {"name": name, "text_column": task.text_column}
        inputs = self._resolved(task.train)
        self.add(f"specialist/{name}", texts.prepare_documents, settings=source, inputs=inputs)
        self._hold_out(source, {"validation": task.validation, "test": task.test}, limits)

    def generalist_test(self) -> None:
        """Plan the held-out documents of the corpus."""
        study = self._study
        source = {"name": "generalist", "text_column": "text"}
        self._hold_out(source, {"test": study.generalist_test}, {"test": study.test_limit})

    def _hold_out(
        self, source: Mapping[str, Any], splits: Mapping[str, Sequence[str]], limits: Mapping[str, int | None]
    ) -> None:
        resolved = {split: self._resolved(paths) for split, paths in splits.items()}
        digests = {split: digest_of(paths) for split, paths in resolved.items()}
        settings = {**source, "limits": limits, "digests": digests}
        self.add(f"held-out/{source['name']}", texts.hold_out_documents, settings=settings, places={"splits": resolved})

    def _examples(self, specialist: str, method: MethodSettings) -> Job:
        dataset, limit = self._study.dataset_of(method), self._study.examples_of(method)
        return self.add(
            f"examples/{specialist}.{dataset}.{limit or 'all'}",
            selections.embed_examples,
            settings={"name": specialist, "limit": limit},
            needs=self._dataset_and_specialist(dataset, specialist),
        )

    def specialist_data(self, specialist: str, method: MethodSettings) -> Job:
        """Write a specialist's documents as a separate dataset, as many as the method may see."""
        dataset, limit = self._study.first_dataset, self._study.examples_of(method)
        return self.add(
            f"specialist-data/{specialist}.{dataset}.{limit or 'all'}",
            datasets.write_specialist_data,
            settings={"name": specialist, "limit": limit},
            needs=self._dataset_and_specialist(dataset, specialist),
        )

    def _dataset_and_specialist(self, dataset: str, specialist: str) -> dict[str, Job]:
        return {"dataset": self.made[f"dataset/{dataset}"], "specialist": self.made[f"specialist/{specialist}"]}

    def selection(self, name: str, specialist: str, candidate: Candidate) -> Job:
        """Plan the histogram or selection that a candidate of a method trains on."""
        study = self._study
        method = with_candidate(study.methods[name], candidate)
        dataset = study.dataset_of(method)
        needs: dict[str, Any] = {"dataset": self.made[f"dataset/{dataset}"]}
        if method.kind == "doge":
            needs["proxy"] = self._proxy(method, specialist)
        elif method.kind == "dsir":
            needs["specialist"] = self.made[f"specialist/{specialist}"]
        else:
            tasks = study.specialists if method.kind == "multitask" else [specialist]
            needs["tasks"] = {task: self._examples(task, method) for task in tasks}
        if method.kind in ("classifier", "nearest"):
            needs["embeddings"] = self.made[f"embeddings/{dataset}"]
        values = {key: getattr(method, key) for key in SETTINGS[str(method.kind)]}
        options = {key: value[0] if isinstance(value, tuple) else value for key, value in values.items()}
        settings = {"name": specialist, "kind": method.kind, "options": options, "limit": study.examples_of(method)}
        return self.add(selection_name(name, specialist, candidate), selections.select, settings=settings, needs=needs)

    def _proxy(self, method: MethodSettings, specialist: str) -> Job:
        study, dataset = self._study, self._study.dataset_of(method)
        settings = {
            "name": specialist,
            "recipe": list(method.proxy or study.recipe),
            "level": method.level,
            "update": method.update,
            "mu": method.mu,
            "limit": study.examples_of(method),
        }
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:4]
        return self.add(
            f"proxy/{specialist}.{dataset}.{digest}",
            selections.train_proxy,
            settings=settings,
            needs=self._dataset_and_specialist(dataset, specialist),
        )

    def add(
        self,
        name: str,
        function: Callable[..., dict[str, Any]],
        *,
        whole_machine: bool = False,
        settings: Mapping[str, Any] = {},
        inputs: Sequence[str] | None = None,
        needs: Mapping[str, Job | dict[str, Job]] = {},
        places: Mapping[str, Any] = {},
    ) -> Job:
        """Make a job, once.

        Args:
            name: of the job.
            function: takes the JobPlace, and settings, inputs, folders of `needs` and places by name.
            whole_machine: whether it starts processes itself, and runs alone.
            settings: values that decide the outcome, besides the outcomes of `needs`.
            inputs: files whose content decides it.
            needs: jobs whose outcomes it uses.
            places: other arguments; no part of the key.
        """
        if name in self.made:
            return self.made[name]
        plain: dict[str, Any] = {key: _plain(value) for key, value in settings.items()}
        arguments = {key: value for key, value in settings.items() if key != "digests"} | dict(places)
        if inputs is not None:
            plain["inputs"], arguments["inputs"] = digest_of(inputs), tuple(inputs)
        jobs: list[Job] = []
        for key, needed in needs.items():
            several = needed if isinstance(needed, dict) else {"": needed}
            folders = {name: job_folder(self._out, job.name, job.key) for name, job in several.items()}
            arguments[key] = folders if isinstance(needed, dict) else folders[""]
            jobs += several.values()
        named = [PLAN_VERSION, name, function.__name__, plain, [job.key for job in jobs]]
        self.made[name] = Job(
            name=name,
            key=hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest(),
            needs=tuple(dict.fromkeys(job.name for job in jobs)),
            whole_machine=whole_machine,
            work=partial(function, **arguments),
        )
        return self.made[name]

    def _resolved(self, paths: Sequence[str]) -> list[str]:
        """Fill the folder of the text into paths. Raises InputError: there is none."""
        if self._text is None and any(TEXT_FOLDER in path for path in paths):
            raise InputError(f"{paths[0]}: {TEXT_FOLDER} is the folder of --text, which is missing. Name it.")
        return [path.replace(TEXT_FOLDER, str(self._text)) for path in paths]


def _plain(value: Any) -> Any:
    """Turn a setting into plain data; of recipes all keys but names and places, which do not change the outcome."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tree = dataclasses.asdict(value)
        for key in ("run_name", "save_folder", "autoresume", "log_interval", "loggers"):
            tree.pop(key, None)
        tree.get("data", {}).pop("remote", None)
        tree.get("data", {}).pop("local", None)
        return tree
    return value


def digest_of(inputs: Sequence[str]) -> str:
    """Digest the files behind inputs: the content of local ones, address and version of others.

    Raises:
        InputError: an input that matches nothing. StorageError: the storage cannot be listed.
    """
    from crisp_stream.writers.documents.inputs import DocumentSettings
    from crisp_stream.writers.documents.listing import list_input_files

    digest = hashlib.sha256()
    for file in list_input_files(inputs, DocumentSettings()):
        local = not is_remote(file.url) and local_path(file.url).is_file()
        content = _content_digest(file.url, file.num_bytes, file.version) if local else f"{file.url} {file.version}"
        digest.update(f"{content} {file.shard}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def fingerprint_of(root: str) -> str:
    """Fingerprint of the dataset at a root, as it was when this process first read it.

    Raises:
        FormatError: there is none. StorageError: the storage refused or failed.
    """
    from crisp_stream.format.dataset import open_dataset

    return open_dataset(root).manifest.fingerprint


@lru_cache(maxsize=1024)
def _content_digest(path: str, num_bytes: int, version: str) -> str:
    """Digest a file. Size and version are keys of the cache: a file that changed is read again."""
    with local_path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
