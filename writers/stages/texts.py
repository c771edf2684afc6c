"""Stages `texts` and `sketch`: a bounded sketch of all documents of a dataset, whatever tasks read them.

A task sketches the documents of some batches, and sketches are joined, 64 at a time, until one is left. Work files are
at most 655 kB per 128 MB of text. The documents are read a second time for it, at some 35 MB/s per core, a sixth of
the time of their tokens; in the stage that cuts windows each batch would leave as many bytes as a third of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from crisp_stream.examples.sketch import MAX_DOCUMENTS, MAX_NGRAMS, SketchBuilder, TextSketch
from crisp_stream.format.text_sketch import parse_text_sketch, text_sketch_parquet
from crisp_stream.writers.cleaning.text_hashes import hash_in_pieces
from crisp_stream.writers.engine.task_list import TaskList
from crisp_stream.writers.engine.tasks import Record, Runner, Task, file_sizes
from crisp_stream.writers.stages.whole_corpus import BatchName, BatchNames, selected_texts

_BATCHES_PER_TASK = 64
_SKETCHES_PER_TASK = 64
_SKETCH = "texts.parquet"


@dataclass(frozen=True, kw_only=True)
class TextsTask(Task):
    """Sketch the kept documents of some batches."""

    stage: ClassVar[str] = "texts"
    title: ClassVar[str] = "sketching text"

    batches: tuple[BatchName, ...]

    def settings(self) -> Any:
        """The batches; what is removed of them is in the inputs."""
        return [[batch.name, batch.first_document] for batch in self.batches]

    def make(self) -> Record:
        """Write the sketch."""
        documents, ngrams = SketchBuilder(MAX_DOCUMENTS), SketchBuilder(MAX_NGRAMS)
        num_documents = 0
        for batch in self.batches:
            texts = selected_texts(self, batch)
            for hashes in hash_in_pieces(texts):
                documents.add_all(hashes.documents[hashes.documents != 0])
                ngrams.add_all(hashes.ngrams)
            num_documents += len(texts)
        return _written(self, TextSketch(documents=documents.finish(), ngrams=ngrams.finish()), num_documents)


@dataclass(frozen=True, kw_only=True)
class SketchTask(Task):
    """Join sketches."""

    stage: ClassVar[str] = "sketch"
    title: ClassVar[str] = "joining sketches of text"

    sketches: tuple[str, ...]
    """Names of their files."""

    def settings(self) -> Any:
        """The sketches."""
        return self.sketches

    def make(self) -> Record:
        """Write the sketch of all."""
        parts = [parse_text_sketch(self.workspace.read(name), name) for name in self.sketches]
        return _written(self, TextSketch.joined(parts), len(parts))


def _written(task: Task, sketch: TextSketch, num_units: int) -> Record:
    name = task.file(_SKETCH)
    task.workspace.write(name, text_sketch_parquet(sketch))
    return {"num_units": num_units, "files": file_sizes(task, name)}


def sketch_in_stages(runner: Runner, batches: BatchNames, duplicates: str | None) -> TextSketch:
    """Sketch all documents that are kept of the batches; `duplicates` is the fingerprint of what the search for them
    found, if there was one. Raises PlanEnds without an engine, at tasks not done."""
    tasks: Sequence[Task] = TaskList(
        -(-len(batches) // _BATCHES_PER_TASK),
        lambda at: TextsTask(
            workspace=runner.workspace,
            number=at,
            inputs=() if duplicates is None else (duplicates,),
            batches=tuple(batches[at * _BATCHES_PER_TASK : (at + 1) * _BATCHES_PER_TASK]),
        ),
    )
    runner.run(tasks, unit="documents")
    joined = 0
    while len(tasks) > 1:
        fewer: list[Task] = [
            SketchTask(
                workspace=runner.workspace,
                number=joined + number,
                inputs=(),
                sketches=tuple(task.file(_SKETCH) for task in tasks[start : start + _SKETCHES_PER_TASK]),
            )
            for number, start in enumerate(range(0, len(tasks), _SKETCHES_PER_TASK))
        ]
        runner.run(fewer, unit="sketches")
        joined, tasks = joined + len(fewer), fewer
    name = tasks[0].file(_SKETCH)
    return parse_text_sketch(runner.workspace.read(name), name)
