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


class StudyJobs:
    """Makes jobs. A method that makes one gives the same job again when it is called again."""

    def __init__(self, study: StudySettings, out: Path, text: Path | None) -> None:
        """Args:
        study: what is compared.
        out: folder of the study.
        text: stands for `{text}` in paths; None: there is none yet.
        """
        self._study, self._out, self._text = study, out, text
        self._jobs: dict[str, Job] = {}

    @property
    def all(self) -> list[Job]:
        """All jobs, in the order in which they were made."""
        return list(self._jobs.values())

    def __getitem__(self, name: str) -> Job:
        return self._jobs[name]

    def fetched_text(self) -> Job:
        """Fetch the study's text; its folder stands for `{text}` from now on."""
        job = self.add("text", texts.fetch_text, whole_machine=True, settings={"scale": self._study.fetch})
        self._text = self.folder(job) / texts.TEXT
        return job

    def dataset(self, name: str) -> None:
        """Plan a dataset of the corpus, and the embeddings of its windows where a method needs them."""
        study, options = self._study, self._study.datasets[name]
        if options.root is not None:
            settings = {"root": options.root, "fingerprint": fingerprint_of(options.root)}
            self.add(f"dataset/{name}", datasets.open_root, settings=settings)
        else:
            other = options.like or study.first_dataset
            first = None if name == study.first_dataset else self._jobs[f"dataset/{other}"]
            inputs = self._resolved(options.inputs)
            settings = dataclasses.asdict(options)
            del settings["root"], settings["inputs"]
            settings["like"] = options.like is not None
            self.add(
                f"dataset/{name}",
                datasets.write_dataset,
                needs=[] if first is None else [first],
                whole_machine=True,
                settings=settings,
                inputs=inputs,
                places={"other": None if first is None else self.folder(first)},
            )
        if any(method.kind in ("classifier", "nearest") for method in self._methods_on(name)):
            dataset = self._jobs[f"dataset/{name}"]
            self.add(
                f"embeddings/{name}",
                datasets.embed_dataset,
                needs=[dataset],
                whole_machine=True,
                places={"dataset": self.folder(dataset)},
            )

    def _methods_on(self, dataset: str) -> list[MethodSettings]:
        study = self._study
        return [method for method in study.methods.values() if (method.dataset or study.first_dataset) == dataset]

    def specialist(self, name: str) -> None:
        """Plan the examples that a specialist is learnt from, and those that its models are chosen and judged by."""
        study, task = self._study, self._study.specialists[name]
        limits = {"validation": study.validation_limit, "test": study.test_limit}
        if task.questions is not None:
            inputs = self._resolved([task.questions])
            learnt = self.add(f"specialist/{name}", texts.prepare_questions, settings={"name": name}, inputs=inputs)
            self.add(
                f"held-out/{name}",
                texts.hold_out_questions,
                needs=[learnt],
                settings={"name": name, "limits": limits},
                places={"specialist": self.folder(learnt)},
            )
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
        self.add(
            f"held-out/{source['name']}",
            texts.hold_out_documents,
            settings={**source, "limits": limits, "digests": digests},
            places={"splits": resolved},
        )

    def _examples(self, specialist: str, method: MethodSettings) -> Job:
        study = self._study
        return self._of_examples(
            "examples",
            selections.embed_examples,
            specialist,
            method.dataset or study.first_dataset,
            limit=method.examples or study.examples,
        )

    def specialist_data(self, specialist: str, method: MethodSettings) -> Job:
        """Write a specialist's documents as a separate dataset, as many as the method may see."""
        study = self._study
        return self._of_examples(
            "specialist-data",
            datasets.write_specialist_data,
            specialist,
            study.first_dataset,
            limit=method.examples or study.examples,
        )

    def _of_examples(
        self, what: str, function: Callable[..., dict[str, Any]], specialist: str, dataset: str, *, limit: int | None
    ) -> Job:
        """Make a job of a specialist's examples and a dataset."""
        needs = [self._jobs[f"dataset/{dataset}"], self._jobs[f"specialist/{specialist}"]]
        return self.add(
            f"{what}/{specialist}.{dataset}.{limit or 'all'}",
            function,
            needs=needs,
            settings={"name": specialist, "limit": limit},
            places={"dataset": self.folder(needs[0]), "specialist": self.folder(needs[1])},
        )

    def selection(self, name: str, specialist: str, candidate: Candidate) -> Job:
        """Plan the histogram or selection that a candidate of a method trains on."""
        study = self._study
        method = with_candidate(study.methods[name], candidate)
        dataset = self._jobs[f"dataset/{method.dataset or study.first_dataset}"]
        places: dict[str, Any] = {"dataset": self.folder(dataset)}
        needs = [dataset]
        if method.kind == "doge":
            needs.append(self._proxy(method, specialist))
            places["proxy"] = self.folder(needs[-1])
        elif method.kind == "dsir":
            needs.append(self._jobs[f"specialist/{specialist}"])
            places["specialist"] = self.folder(needs[-1])
        else:
            names = list(study.specialists) if method.kind == "multitask" else [specialist]
            tasks = [self._examples(each, method) for each in names]
            needs += tasks
            places["tasks"] = [self.folder(task) for task in tasks]
        if method.kind in ("classifier", "nearest"):
            needs.append(self._jobs[f"embeddings/{method.dataset or study.first_dataset}"])
            places["embeddings"] = self.folder(needs[-1])
        return self.add(
            f"select/{'.'.join(part for part in (name, specialist, candidate_name(candidate)) if part)}",
            selections.select,
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
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:4]
        return self.add(
            f"proxy/{specialist}.{dataset}.{digest}",
            selections.train_proxy,
            needs=needs,
            settings=settings,
            places={"dataset": self.folder(needs[0]), "specialist": self.folder(needs[1])},
        )

    def add(
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
        """Make a job, once.

        Args:
            name: of the job.
            function: takes the JobPlace, and settings, inputs and places by name.
            needs: jobs whose outcomes it uses.
            whole_machine: whether it starts processes itself, and runs alone.
            settings: values that decide the outcome, besides the outcomes of `needs`.
            inputs: files whose content decides it.
            places: folders; no part of the key.
        """
        if name in self._jobs:
            return self._jobs[name]
        plain: dict[str, Any] = {key: _plain(value) for key, value in (settings or {}).items()}
        if inputs is not None:
            plain["inputs"] = digest_of(inputs)
        named = [PLAN_VERSION, name, function.__name__, plain, [need.key for need in needs]]
        key = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
        arguments = {**(settings or {}), **({} if inputs is None else {"inputs": tuple(inputs)}), **(places or {})}
        arguments.pop("digests", None)
        job = Job(
            name=name,
            key=key,
            needs=tuple(dict.fromkeys(need.name for need in needs)),
            whole_machine=whole_machine,
            work=partial(function, **arguments),
        )
        self._jobs[name] = job
        return job

    def folder(self, job: Job) -> Path:
        """Folder of a job's files."""
        return job_folder(self._out, job.name, job.key)

    def _resolved(self, paths: Sequence[str]) -> list[str]:
        """Fill the folder of the text into paths. Raises InputError: there is none."""
        if self._text is None and any(TEXT_FOLDER in path for path in paths):
            raise InputError(f"{paths[0]}: {TEXT_FOLDER} is the folder of --text, which is missing. Name it.")
        return [path.replace(TEXT_FOLDER, str(self._text)) for path in paths]


def _selection_settings(method: MethodSettings, limit: int | None) -> dict[str, Any]:
    """Settings that decide a method's selection."""
    values = {key: getattr(method, key) for key in SETTINGS[str(method.kind)]}
    one = {key: value[0] if isinstance(value, tuple) else value for key, value in values.items()}
    return {"kind": method.kind, "options": one, "limit": limit}


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
    from crisp_stream.writers.documents.drops import DropCounts
    from crisp_stream.writers.documents.inputs import DocumentSettings
    from crisp_stream.writers.documents.listing import list_input_files

    digest = hashlib.sha256()
    for file in list_input_files(inputs, DocumentSettings(), DropCounts()):
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
