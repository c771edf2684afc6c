"""The stages that read and select documents: evaluation, excluded -> documents -> duplicates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crisp_stream.errors import InputError
from crisp_stream.format.ledger import Ledger, LedgerRow
from crisp_stream.writers.cleaning.excluded_ids import list_id_files
from crisp_stream.writers.documents.drops import merged_counts
from crisp_stream.writers.documents.inputs import DocumentSettings, InputFile
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.engine.engine import limit_of
from crisp_stream.writers.engine.tasks import Record, Runner
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.stages.batches import BAD_RECORDS, CORRUPT_FILE, DocumentsTask, Selection, group_files
from crisp_stream.writers.stages.excluded import ExcludedTask
from crisp_stream.writers.stages.removal.duplicates import Duplicates, duplicates_in_stages
from crisp_stream.writers.stages.whole_corpus import BatchNames, EvaluationTask

SHOWN_BAD_RECORDS = 5
"""Bad records that the error about too many of them shows."""
_OF_BATCHES = ("documents_per_batch", "characters_per_batch", "longest_per_batch", "files")


@dataclass(frozen=True, kw_only=True)
class ReadDocuments:
    """Documents in batches, and what was dropped of them."""

    files: list[InputFile]
    tasks: list[DocumentsTask]
    records: list[Record]
    """Of the tasks, without what they say of each batch."""
    batches: BatchNames
    duplicates: Duplicates | None
    unchecked_examples: int
    """Evaluation examples that are too short to be looked for."""

    @property
    def dropped(self) -> dict[str, int]:
        """Documents dropped, by reason."""
        repeats = self.duplicates.counts if self.duplicates else {}
        found = {f"{kind} duplicate": count for kind, count in repeats.items() if count}
        return merged_counts([*(record["dropped"] for record in self.records), found])

    ledger: Ledger
    """What was not read."""


def read_documents_in_stages(runner: Runner, options: WriteOptions) -> ReadDocuments:
    """Read, filter and select all documents.

    Raises:
        InputError: nothing to read, or input that cannot be read with these options. StorageError.
    """
    limit = limit_of(runner.engine)
    if limit is not None:
        limit.count_shards(options.shard_bytes)
        limit.require_parts(options.part_characters)
    ledger = Ledger()
    files = list_input_files(options.inputs, options.documents, ledger)
    evaluation, unchecked = _evaluation(runner, options)
    tasks = _documents_tasks(runner, options, files, evaluation, _excluded(runner, options))
    if options.limit is None:
        records = runner.run(tasks, unit="documents")
    else:
        tasks, records = _read_until(runner, tasks, options.limit)
    _check_budget(options, records)
    _require_documents(options, records)
    duplicates = None if options.dedup is None else duplicates_in_stages(runner, options, tasks, records)
    read = ReadDocuments(
        files=files,
        tasks=tasks,
        records=[_without_batches(record) for record in records],
        batches=BatchNames(tasks, records, duplicates),
        duplicates=duplicates,
        unchecked_examples=unchecked,
        ledger=_with_files(ledger, runner, tasks, records, files),
    )
    for row in ledger.rows:
        if row.reason == CORRUPT_FILE:
            runner.log(f"documents: left out {row.file}: {row.text}")
    return read


def _without_batches(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in _OF_BATCHES}


def _with_files(
    ledger: Ledger, runner: Runner, tasks: Sequence[DocumentsTask], records: Sequence[Record], files: list[InputFile]
) -> Ledger:
    """Add files that were left out, and bad records, in the order of the files."""
    for record in records:
        for name, reason in record["corrupt"]:
            ledger.skip(CORRUPT_FILE, name, reason)
    for task, record in zip(tasks, records, strict=True):
        rows: list[LedgerRow] = []
        if any(not ledger.is_full(reason) for reason in record["bad"]):
            places = json.loads(runner.workspace.read(task.file(BAD_RECORDS)))
            rows = [LedgerRow(reason, files[file].name, line, text) for file, line, reason, text in places]
        ledger.add_records(record["bad"], rows)
    return ledger


def _documents_tasks(
    runner: Runner,
    options: WriteOptions,
    files: Sequence[InputFile],
    evaluation: EvaluationTask | None,
    excluded: ExcludedTask | None,
) -> list[DocumentsTask]:
    selection = Selection(
        sample=options.sample,
        evaluation=evaluation.key if evaluation else None,
        excluded=excluded.key if excluded else None,
        exact=options.dedup is not None,
        near=options.sketches,
    )
    room_bytes = None if runner.engine is None else runner.engine.work_bytes()
    return [
        DocumentsTask(
            workspace=runner.workspace,
            number=number,
            inputs=tuple(task.fingerprint for task in (evaluation, excluded) if task is not None),
            files=tuple(files[start:stop]),
            first_file=start,
            documents=options.documents,
            selection=selection,
            batch_characters=options.part_characters,
            max_bad=options.bad_budget,
            room_bytes=room_bytes,
        )
        for number, (start, stop) in enumerate(group_files(files, group_bytes=options.group_bytes))
    ]


def _check_budget(options: WriteOptions, records: Sequence[Record]) -> None:
    num_bad = sum(sum(record["bad"].values()) for record in records)
    if num_bad:
        shown = "\n".join(record["bad_shown"] for record in records if record["bad"])
        num_records = sum(record["num_read"] for record in records)
        options.bad_budget.check(num_bad, num_records, "\n".join(shown.splitlines()[:SHOWN_BAD_RECORDS]))


def _require_documents(options: WriteOptions, records: Sequence[Record]) -> None:
    if not any(record["documents_per_batch"] for record in records):
        num_read = sum(record["num_read"] for record in records)
        raise InputError(
            f"{', '.join(options.inputs)}: at least one document with text is needed, got {num_read} documents without "
            "any that is kept. Check the files, the text column and the filters."
        )


def _evaluation(runner: Runner, options: WriteOptions) -> tuple[EvaluationTask | None, int]:
    if not options.decontaminate:
        return None, 0
    files = list_input_files(options.decontaminate, DocumentSettings())
    workspace, ngram = runner.workspace, options.ngram
    task = EvaluationTask(
        workspace=workspace, number=0, inputs=(), files=tuple(files), words_per_gram=ngram, keys=options.question_keys
    )
    [record] = runner.run([task], unit="n-grams")
    unchecked: dict[str, int] = {name: count for name, count in record["unchecked"].items() if count}
    for name, count in unchecked.items():
        runner.log(f"evaluation: {count:,} examples of {name} are too short to be looked for")
    return task, sum(unchecked.values())


def _excluded(runner: Runner, options: WriteOptions) -> ExcludedTask | None:
    if not options.exclude_ids:
        return None
    files = tuple(list_id_files(options.exclude_ids))
    task = ExcludedTask(workspace=runner.workspace, number=0, inputs=(), files=files)
    runner.run([task], unit="ids")
    return task


def _read_until(runner: Runner, tasks: Sequence[DocumentsTask], limit: int) -> tuple[list[DocumentsTask], list[Record]]:
    """Read one group after the other, until the limit is reached."""
    read: list[DocumentsTask] = []
    records: list[Record] = []
    for task in tasks:
        if limit == 0:
            break
        read.append(replace(task, limit=limit))
        records += runner.run(read[-1:], unit="documents")
        limit -= min(limit, int(records[-1]["num_read"]))
    return read, records
