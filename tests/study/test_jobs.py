"""Jobs and the records of finished ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crisp_stream.errors import FormatError
from crisp_stream.study.jobs.job import DONE, Done, job_folder, load_done, plain_values, save_done
from tests.support.small_jobs import add, job

JOB = job("train/crisp.medicine.seed-1", add, key="0123456789abcdef" * 4)


def done_of(folder: Path, **changes: Any) -> Done:
    own: dict[str, Any] = {
        "name": JOB.name,
        "key": JOB.key,
        "values": {"perplexity": 21.5, "sets": ["a", "b"]},
        "wall_seconds": 2.5,
        "cpu_seconds": 4.0,
    }
    done = Done(**{**own, **changes})
    folder.mkdir(parents=True)
    save_done(folder, done)
    return done


def test_a_folder_is_named_by_name_and_key(tmp_path: Path) -> None:
    assert job_folder(tmp_path, JOB.name, JOB.key) == tmp_path / "train" / "crisp.medicine.seed-1-0123456789"


def test_a_finished_job_is_found_and_nothing_else_is_left_beside_its_record(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, JOB.name, JOB.key)
    done = done_of(folder)
    assert load_done(tmp_path, JOB) == done
    assert [path.name for path in folder.iterdir()] == [DONE]


def test_a_job_without_a_record_is_not_finished(tmp_path: Path) -> None:
    assert load_done(tmp_path, JOB) is None
    folder = job_folder(tmp_path, JOB.name, JOB.key)
    folder.mkdir(parents=True)
    (folder / f".{DONE}.17").write_text("{")
    assert load_done(tmp_path, JOB) is None


@pytest.mark.parametrize("content", ["", '{"name": "train', "[]", '{"name": "train/x"}', "\udcff"])
def test_a_damaged_record_is_an_error_with_its_place(tmp_path: Path, content: str) -> None:
    folder = job_folder(tmp_path, JOB.name, JOB.key)
    done_of(folder)
    (folder / DONE).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(FormatError, match=r"seed-1-0123456789/done\.json is damaged .* Delete its folder"):
        load_done(tmp_path, JOB)


@pytest.mark.parametrize("changes", [{"name": "train/base.seed-1"}, {"key": JOB.key[:10] + "f" * 54}])
def test_a_record_of_another_job_is_an_error(tmp_path: Path, changes: dict[str, str]) -> None:
    done_of(job_folder(tmp_path, JOB.name, JOB.key), **changes)
    with pytest.raises(FormatError, match=r"must be of job train/crisp\.medicine\.seed-1"):
        load_done(tmp_path, JOB)


def test_values_are_at_once_what_will_be_read_again() -> None:
    assert plain_values({"nodes": (1, 2), "by_level": {1: 0.5}}) == {"nodes": [1, 2], "by_level": {"1": 0.5}}


@pytest.mark.parametrize("values", [{"path": Path("a")}, {"set": {1}}, None, [1]])
def test_values_that_a_record_cannot_hold_are_refused(values: Any) -> None:
    with pytest.raises(TypeError):
        plain_values(values)
