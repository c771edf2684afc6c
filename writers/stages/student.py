"""Stages that fit a student to its teacher: student-sample -> teacher -> student.

The sample is windows chosen by a hash from all over the corpus. Of a window that the student is fitted on, the teacher
reads one stretch: it costs a quarter of the window, and four windows say more than one that is read four times as far
(docs/write/distilled.md). It also embeds every token of the vocabulary alone. Some windows are held out, and both read
all of each; they say how good the student is.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crisp_stream.format.keys import window_hashes
from crisp_stream.format.manifest import EncoderRecord
from crisp_stream.processes import report_units
from crisp_stream.writers.embedding.probe import ENCODER_NAME, EncoderFile
from crisp_stream.writers.embedding.student import STUDENT_FILES, StudentQuality, token_pieces
from crisp_stream.writers.embedding.student_fit import fit_student, quality_of, require_windows, with_quality
from crisp_stream.writers.engine.tasks import Kind, Record, Runner, Task, file_sizes, write_files
from crisp_stream.writers.stages.whole_corpus import GivenFilesTask, SampleTask
from crisp_stream.writers.stages.windows import (
    EncoderSettings,
    Parts,
    WindowSettings,
    load_encoder,
    tokenizer_of,
    worker_device,
)
from crisp_stream.writers.windows import window_texts

STRETCH_TOKENS = 256
"""Tokens of a window that the teacher reads; all of a shorter one."""
MIN_HELD_OUT, MAX_HELD_OUT, HELD_OUT_SHARE = 16, 200, 0.02
"""Windows that are held out: this share of the sample, within these limits."""
_ROWS_PER_TASK = {"stretches": 256, "held_out": 64, "vocabulary": 4096}
"""Rows of each file of the sample that a task of the teacher embeds."""
_SALT, _STRETCH_SALT = 3, 4


@dataclass(frozen=True, kw_only=True)
class StudentSampleTask(SampleTask):
    """Choose the windows that the teacher embeds."""

    stage: ClassVar[str] = "student-sample"
    title: ClassVar[str] = "choosing windows for the teacher"

    num_windows: int
    """Windows to fit on, about."""

    def settings(self) -> Any:
        """Values that choose the windows."""
        limits = [STRETCH_TOKENS, MIN_HELD_OUT, MAX_HELD_OUT, HELD_OUT_SHARE]
        return [self.seed, self.num_windows, limits, [part.number for part in self.parts]]

    def make(self) -> Record:
        """Write stretches.npy [num_stretches, tokens], held_out.npy [num_held_out, window_tokens] and vocabulary.npy
        [vocab_size, 1], each token alone."""
        total = int(self.part_rows()["num_windows"].sum(dtype=np.int64))
        wanted = min(self.num_windows, total)
        held_out = min(max(MIN_HELD_OUT, round(wanted * HELD_OUT_SHARE)), MAX_HELD_OUT, total)
        shares = [held_out / max(total, 1), (held_out + wanted) / max(total, 1)]
        stretches: list[NDArray[Any]] = []
        held: list[NDArray[Any]] = []
        for places, tokens in self.chosen_windows(min(shares[1], 1.0), _SALT):
            is_held = window_hashes(places, self.seed + _SALT) < np.uint64(round(shares[0] * (1 << 40)))
            held.append(tokens[is_held])
            stretches.append(_stretches(tokens[~is_held], places[~is_held], self.seed))
        empty = np.zeros((0, self.windows.window_tokens), np.uint16)
        found = {"stretches.npy": stretches or [empty], "held_out.npy": held or [empty]}
        arrays = {name: np.concatenate(rows) for name, rows in found.items()}
        require_windows(len(arrays["stretches.npy"]) if len(arrays["held_out.npy"]) > 1 else 0)
        arrays["vocabulary.npy"] = np.arange(tokenizer_of(self.workspace, self.windows).vocab_size)[:, None]
        for name, array in arrays.items():
            self.workspace.save_array(self.file(name), array)
        return {
            "num_rows": {name.partition(".")[0]: len(array) for name, array in arrays.items()},
            "files": file_sizes(self, *map(self.file, arrays)),
        }


def _stretches(tokens: NDArray[Any], places: NDArray[np.uint32], seed: int) -> NDArray[Any]:
    """A stretch of each window, which begins at a place that a hash says."""
    length = min(STRETCH_TOKENS, tokens.shape[1])
    starts = (window_hashes(places, seed + _STRETCH_SALT) % np.uint64(tokens.shape[1] - length + 1)).astype(np.int64)
    return np.take_along_axis(tokens, starts[:, None] + np.arange(length), axis=1)


@dataclass(frozen=True, kw_only=True)
class TeacherTask(Task):
    """Embed some of the sample by the teacher."""

    stage: ClassVar[str] = "teacher"
    title: ClassVar[str] = "embedding by the teacher"

    sample: str
    """File with the tokens."""
    start: int
    stop: int
    windows: WindowSettings
    encoder: EncoderSettings

    @property
    def kind(self) -> Kind:
        """A static teacher is light."""
        return "light" if self.encoder.is_light else "encoder"

    def settings(self) -> Any:
        """The weights, and which rows."""
        return [self.encoder.weights_sha256, self.sample.rpartition(".")[0].rpartition(".")[2], self.start, self.stop]

    def make(self) -> Record:
        """Write [num_rows, dim] float16."""
        tokenizer = tokenizer_of(self.workspace, self.windows)
        tokens = self.workspace.load_array(self.sample)[self.start : self.stop]
        encoder = load_encoder(self.encoder.choice(self.workspace), None if self.encoder.is_light else worker_device())
        vectors = encoder.embed(window_texts(tokens, tokenizer, tokenizer.eot_id))
        if self.encoder.is_light:
            report_units(len(vectors))
        self.workspace.save_array(self.file("vectors.npy"), vectors)
        return {
            "num_units": len(vectors),
            "encoder": asdict(encoder.record()),
            "files": file_sizes(self, self.file("vectors.npy")),
        }


@dataclass(frozen=True, kw_only=True)
class StudentTask(Task):
    """Fit the student, and measure it on the windows that were held out."""

    stage: ClassVar[str] = "student"
    title: ClassVar[str] = "fitting the student"

    sample: str
    """Key of the `StudentSampleTask`."""
    vectors: dict[str, tuple[str, ...]]
    """Files of the teacher's vectors of each file of the sample."""
    teacher: EncoderRecord
    windows: WindowSettings

    def settings(self) -> Any:
        """All is in the inputs."""
        return []

    def make(self) -> Record:
        """Write the student's files below the task's key."""
        tokenizer = tokenizer_of(self.workspace, self.windows)
        stretches = self.workspace.load_array(f"{self.sample}.stretches.npy")
        held_out = self.workspace.load_array(f"{self.sample}.held_out.npy")
        with tempfile.TemporaryDirectory(prefix="crisp-stream-") as scratch:
            student = fit_student(
                token_pieces(stretches, tokenizer.eot_id),
                self._rows("stretches"),
                self._rows("vocabulary"),
                tokenizer=tokenizer.folder,
                teacher=self.teacher,
                stretch_tokens=stretches.shape[1],
                out=Path(scratch),
            )
            mine = student.embed_pieces(token_pieces(held_out, tokenizer.eot_id))
            student = with_quality(student, quality_of(mine, self._rows("held_out")))
            files = {name: (Path(scratch) / name).read_bytes() for name in STUDENT_FILES}
            files[ENCODER_NAME] = EncoderFile.of(student).to_json()
            sha256, quality = student.weights_sha256, asdict(student.facts.quality)
        return write_files(self, files, weights_sha256=sha256, quality=quality)

    def _rows(self, kind: str) -> NDArray[np.float16]:
        return np.concatenate([self.workspace.load_array(name) for name in self.vectors[kind]])


@dataclass(frozen=True, kw_only=True)
class GivenStudentTask(GivenFilesTask):
    """A student that exists already."""

    stage: ClassVar[str] = "student"
    title: ClassVar[str] = "bringing the student"


def student_in_stages(
    runner: Runner, parts: Parts, windows: WindowSettings, teacher: EncoderSettings, *, num_windows: int, seed: int
) -> tuple[StudentTask, Record]:
    """Fit a student of a teacher on the windows of all parts; its task, and the record of that.

    Raises:
        InputError: too few windows. PlanEnds: without an engine, at tasks that are not done.
    """
    sample = StudentSampleTask(
        workspace=runner.workspace,
        number=0,
        inputs=tuple(part.fingerprint for part in parts),
        parts=parts,
        windows=windows,
        seed=seed,
        num_windows=num_windows,
    )
    if runner.engine is not None:
        sample.write_parts()
    [chosen] = runner.run([sample], unit="")

    tasks: dict[str, list[TeacherTask]] = {}
    for kind, num_rows in chosen["num_rows"].items():
        starts, first = range(0, num_rows, _ROWS_PER_TASK[kind]), sum(map(len, tasks.values()))
        tasks[kind] = [
            TeacherTask(
                workspace=runner.workspace,
                number=first + at,
                inputs=(sample.fingerprint,),
                sample=sample.file(f"{kind}.npy"),
                start=start,
                stop=min(start + starts.step, num_rows),
                windows=windows,
                encoder=teacher,
            )
            for at, start in enumerate(starts)
        ]
    embedding = list(chain.from_iterable(tasks.values()))
    records = runner.run(embedding, unit="texts", num_units=[task.stop - task.start for task in embedding])
    student = StudentTask(
        workspace=runner.workspace,
        number=0,
        inputs=tuple(task.fingerprint for task in embedding),
        sample=sample.key,
        vectors={kind: tuple(task.file("vectors.npy") for task in some) for kind, some in tasks.items()},
        teacher=EncoderRecord(**records[0]["encoder"]),
        windows=windows,
    )
    [fitted] = runner.run([student], unit="")
    quality = StudentQuality(**fitted["quality"])
    runner.log(quality.text(chosen["num_rows"]["stretches"], student.teacher.name))
    return student, fitted
