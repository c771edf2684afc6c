"""`--nproc`: the launcher, several nodes, and the SLURM script with an imitation of SLURM's commands."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from crisp_stream.cli.main import main
from crisp_stream.format import sources
from crisp_stream.models import gpt as model
from crisp_stream.processes import StopSignals
from crisp_stream.training import launch as launcher
from crisp_stream.training.launch import rank_places, run_ranks
from tests.support.ports import free_port
from tests.support.small_runs import SmallRun, account_of, launch, losses_of, small_run, windows_of

SLURM = Path(__file__).parent.parent.parent / "examples" / "slurm.sh"


SRUN = """#!{bash}
# Two tasks on this machine; a SIGTERM goes to both; the exit code is the highest of theirs.
while [[ $1 == --* ]]; do shift; done
tasks=()
for node in 0 1; do
    SLURM_NODEID=$node "$@" >"{folder}/node$node.log" 2>&1 &
    tasks+=($!)
done
trap 'kill -TERM "${{tasks[@]}}"' TERM
highest=0
for task in "${{tasks[@]}}"; do
    while true; do
        code=0; wait "$task" || code=$?
        kill -0 "$task" 2>/dev/null || break
    done
    ((code > highest)) && highest=$code
done
exit "$highest"
"""

SCONTROL = """#!{bash}
case $1 in
    show) echo 127.0.0.1; echo 127.0.0.2 ;;
    requeue) echo "$2" >"{folder}/requeued" ;;
esac
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


class Job:
    """The script as a job of two nodes with one process each."""

    def __init__(self, done: SmallRun, folder: Path, *overrides: str) -> None:
        commands = folder / "bin"
        commands.mkdir(exist_ok=True)
        (commands / "crisp-stream").write_text(
            f'#!/bin/sh\necho "$@" >>"{folder}/arguments"\nexec "{sys.executable}" -m crisp_stream "$@"\n'
        )
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (commands / name).write_text(text.format(bash="/usr/bin/env bash", folder=folder))
        for command in commands.iterdir():
            command.chmod(0o755)
        self.folder = folder
        environment = {name: text for name, text in os.environ.items() if name not in ("WORLD_SIZE", "NODE_RANK")}
        environment |= {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "imitation[0-1]",
            "SLURM_JOB_NUM_NODES": "2",
            "MASTER_PORT": str(free_port()),
        }
        arguments = ["bash", str(SLURM), str(done.recipe_file), *overrides]
        self.process = subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def end(self) -> int:
        """Wait for it; the exit code."""
        self.output = self.process.communicate(timeout=1500)[0]
        return self.process.returncode

    def log(self, node: int = 0) -> str:
        """What a node printed so far."""
        path = self.folder / f"node{node}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text: str) -> None:
        """Wait until node 0 has printed something."""
        until = time.monotonic() + 800
        while text not in self.log():
            assert self.process.poll() is None, self.log() + self.log(1)
            assert time.monotonic() < until, self.log()
            time.sleep(0.05)


def test_two_nodes_train_together_are_stopped_put_back_and_continued(done: SmallRun, tmp_path: Path) -> None:
    long = ("max_duration=120ba", "save_interval=50ba", "log_interval=1", f"save_folder={tmp_path}/run")
    job = Job(done, tmp_path, *long)
    job.wait_for("batch 5/120")
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 143, job.output + job.log() + job.log(1)
    assert "imitation[0-1]: 2 processes, rank 0 on 127.0.0.1" in job.output
    assert (tmp_path / "requeued").read_text() == "4711\n"
    stopped = account_of(tmp_path / "run")
    assert stopped["interrupted_by"] == "SIGTERM"
    # SLURM starts the same command again, which goes on. The ranks are forked: four new interpreters fewer.
    first, second = (tmp_path / "arguments").read_text().splitlines()
    assert first == second
    assert first.split()[:3] == ["train", str(done.recipe_file), "autoresume=true"]
    launch(done, 2, [["autoresume=true", *long]], tmp_path)
    assert account_of(tmp_path / "run")["resumed_at"] == stopped["interrupted_at"]
    assert len(losses_of(tmp_path / "run")) == 120
    assert windows_of(tmp_path / "run")[:8] == windows_of(done.save_folder)[:8]
    assert {len(set(windows)) for windows in windows_of(tmp_path / "run")[:8]} == {8}


def test_a_job_without_a_recipe_says_how_it_is_used() -> None:
    finished = subprocess.run(["bash", str(SLURM)], capture_output=True, text=True, check=False, timeout=1500)
    assert finished.returncode == 2
    assert "usage: sbatch slurm.sh RECIPE…" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--nproc", "2"], {"RANK": "0"}, "this process is one already"),
        (["--nproc", "2"], {"WORLD_SIZE": "4"}, "missing in the environment: NODE_RANK, MASTER_ADDR, MASTER_PORT"),
        (["--nproc", "2"], {"WORLD_SIZE": "1"}, "WORLD_SIZE is 1, but this node alone has 2 processes"),
        (["--nproc", "2"], {"NODE_RANK": "1"}, "NODE_RANK is 1, but .* WORLD_SIZE = 2 has room for nodes 0 to 0"),
        (["--rank-logs", "logs"], {}, "--rank-logs is for the processes that --nproc starts"),
        (["seed=half", "--nproc", "2"], {}, "`seed` must be a whole number"),
    ],
)
def test_a_launch_that_cannot_work_is_refused_before_any_process_starts(
    done: SmallRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["train", str(done.recipe_file), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_a_number_of_processes_is_a_number_or_auto(
    done: SmallRun, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    with pytest.raises(SystemExit):
        main(["train", str(done.recipe_file), f"--nproc={text}"])
    assert "--nproc" in capsys.readouterr().err


def cluster_losses(folder: Path) -> tuple[list[list[str]], list[float]]:
    """Intervals, clusters, windows and tokens as text; the losses as numbers."""
    with (folder / "cluster_losses.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    return [row[:-1] for row in rows], [float(row[-1]) for row in rows]


def test_two_sharded_processes_measure_as_one_does_and_keep_what_each_prints(done: SmallRun, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "crisp_stream", "train", str(done.recipe_file), f"save_folder={tmp_path}/run"]
    command += ["fsdp={}", "device_train_microbatch_size=2", "loggers.file=true", "data.num_workers=1"]
    command += ["--nproc", "2", "--rank-logs", f"{tmp_path}/ranks"]
    finished = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=1500
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (counts, losses), (whole_counts, whole_losses) = (
        cluster_losses(run) for run in (tmp_path / "run", done.save_folder)
    )
    assert counts == whole_counts
    assert losses == pytest.approx(whole_losses, rel=1e-3)
    for key in ("mixture_error", "repeated_share", "phases"):
        assert account_of(tmp_path / "run")[key] == account_of(done.save_folder)[key]
    assert sorted(path.name for path in (tmp_path / "ranks").iterdir()) == ["rank1.stderr.txt", "rank1.stdout.txt"]
    assert "batch 12/12" in finished.stderr
    logs = (tmp_path / "run" / "logs").glob("*.txt")
    assert sorted(path.name.rpartition("-")[2] for path in logs) == ["rank0.txt", "rank1.txt"]


WAITS = "import signal, time; print('started', flush=True); time.sleep(60)"
STOPS = f"import signal, sys; signal.signal(15, lambda *_: sys.exit(143)); {WAITS}"
DIES = "import os; os.kill(os.getpid(), 15)"


def code_of_ranks(*programs: str, send: signal.Signals | None = None, folder: Path | None = None) -> int:
    """Exit code of a launcher whose ranks run these programs.

    The signal is sent to it when all ranks but the first, which prints into no file, have said that they started.
    """
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "PROGRAM": text} for rank, text in enumerate(programs)]
    command = [sys.executable, "-c", "import os; exec(os.environ['PROGRAM'])"]

    def send_when_started() -> None:
        assert folder is not None
        while len([path for path in folder.glob("*.stdout.txt") if path.read_text()]) < len(programs) - 1:
            time.sleep(0.02)
        os.kill(os.getpid(), send or 0)

    with StopSignals() as signals:
        if send is not None:
            threading.Thread(target=send_when_started, daemon=True).start()
        return run_ranks(command, places, signals, logs=folder)


@pytest.mark.parametrize("program", [WAITS, STOPS])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_launcher_is_its_exit_code_whether_ranks_stop_or_die_of_it(
    tmp_path: Path, program: str, sent: signal.Signals, code: int
) -> None:
    assert code_of_ranks(program, program, send=sent, folder=tmp_path) == code


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_rank_starts_none(
    done: SmallRun, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, code: int
) -> None:
    def places(nproc: int) -> list[dict[str, str]]:
        os.kill(os.getpid(), sent)
        return rank_places(nproc)

    monkeypatch.setattr(launcher, "rank_places", places)
    monkeypatch.setattr(launcher, "_Rank", None)
    assert main(["train", str(done.recipe_file), "--nproc", "2"]) == code


@pytest.mark.parametrize(
    ("programs", "code"),
    [
        (("", DIES), 143),
        (("raise SystemExit(1)", DIES), 143),  # as a rank whose peer is gone
        ((WAITS, DIES), 143),
        ((STOPS, "raise SystemExit(1)"), 1),  # the launcher itself ended the first one
        ((WAITS, "raise SystemExit(2)"), 2),
        (("", "import os; os.kill(os.getpid(), 11)"), 139),
    ],
)
def test_the_launcher_exits_with_what_ended_the_first_rank_of_itself(programs: tuple[str, str], code: int) -> None:
    assert code_of_ranks(*programs) == code


def test_a_rank_that_does_not_end_after_another_failed_is_killed_and_the_failure_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher, "FAILED_SECONDS", 0.2)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    assert code_of_ranks(deaf, "raise SystemExit('what went wrong')") == 1
    assert "rank 1 printed:\nwhat went wrong" in capsys.readouterr().err


def test_a_second_ctrl_c_kills_the_ranks(tmp_path: Path) -> None:
    deaf = f"import os, signal; signal.signal(15, lambda *_: os.kill(os.getppid(), 2)); {WAITS}"
    with pytest.raises(KeyboardInterrupt):
        code_of_ranks(WAITS, deaf, send=signal.SIGINT, folder=tmp_path)


def test_the_launcher_loads_neither_torch_nor_composer(done: SmallRun) -> None:
    code = (
        "import sys\n"
        "from crisp_stream.cli.main import main\n"
        "from crisp_stream.training import launch\n"
        "launch.run_ranks = lambda command, places, signals, logs: len(places)\n"
        "assert main(sys.argv[1:]) == 2\n"
        "print(sorted({'torch', 'composer', 'transformers'} & sys.modules.keys()))\n"
    )
    command = [sys.executable, "-c", code, "train", str(done.recipe_file), "--nproc", "2"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    assert (finished.returncode, finished.stdout) == (0, "[]\n"), finished.stderr


@pytest.mark.parametrize("moment", ["opening data", "building the model"])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_batch_of_one_process_is_its_exit_code(
    done: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, sent: signal.Signals, code: int
) -> None:
    def receive(*_: object, **__: object) -> None:
        signal.raise_signal(sent)
        raise AssertionError("it went on")

    if moment == "opening data":
        monkeypatch.setattr(sources, "open_dataset", receive)
    else:
        monkeypatch.setattr(model, "build_gpt", receive)
    try:
        ended = main(["train", str(done.recipe_file), f"save_folder={tmp_path}/run"])
    except SystemExit as leaving:
        ended = leaving.code
    assert ended == code
