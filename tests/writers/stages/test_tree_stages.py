"""The tree by tasks over files: the same for any parts, tasks, processes and kills, and for the fit in memory."""

from __future__ import annotations

import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.writers.engine import engine as engines
from crisp_stream.writers.engine.engine import LocalEngine
from crisp_stream.writers.engine.tasks import Record, Runner, Task, execute
from crisp_stream.writers.engine.workspace import Workspace
from crisp_stream.writers.stages import tree as stages
from crisp_stream.writers.stages.runs import tree_of
from crisp_stream.writers.stages.tree import FittedTree, fit_tree_in_stages, task_bytes
from crisp_stream.writers.stages.tree_tasks import FitWindows
from crisp_stream.writers.stages.windows import Part
from crisp_stream.writers.tree.fit_tree import fit_tree
from crisp_stream.writers.tree.levels import window_ids
from crisp_stream.writers.tree.settings import TreeSettings

DIM = 8
SETTINGS = TreeSettings(arity=4, depth=4, steps=4, examples_per_step=150, min_examples_to_split=60)
SIZES = [300, 1, 0, 700, 450, 20, 900, 629]


def vectors(number: int, seed: int = 0) -> NDArray[np.float16]:
    """Windows around 20 uneven centres, of norm 1."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, DIM))
    points = centres[rng.integers(20, size=number) // rng.integers(1, 4, size=number)]
    points = points + 0.3 * rng.normal(size=(number, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


def parts_of(workspace: Workspace, sizes: list[int], embeddings: NDArray[np.float16]) -> tuple[Part, ...]:
    """Parts of these sizes, with consecutive rows of the embeddings."""
    parts = []
    for number, rows in enumerate(np.split(embeddings, np.cumsum(sizes)[:-1])):
        key = f"embeddings/{number:06d}"
        workspace.save_array(f"{key}.embeddings.npy", rows)
        parts.append(
            Part(number=number, num_windows=len(rows), windows_key="", embeddings_key=key, fingerprint=f"{number}")
        )
    return tuple(parts)


def fitted_in(
    folder: Path,
    embeddings: NDArray[np.float16],
    settings: TreeSettings = SETTINGS,
    *,
    processes: int = 1,
    lines: list[str] | None = None,
    **options: Any,
) -> tuple[FittedTree, Workspace]:
    workspace = Workspace(str(folder))
    parts = parts_of(workspace, SIZES, embeddings)
    log = [].append if lines is None else lines.append
    with closing(LocalEngine(processes=processes)) as engine:
        fitted = fit_tree_in_stages(
            Runner(engine, workspace, log=log), parts, settings, **{"fit_windows": None, **options}
        )
    return fitted, workspace


def ids_of(sizes: list[int]) -> NDArray[np.uint64]:
    return np.concatenate([window_ids(number, size) for number, size in enumerate(sizes)])


@pytest.fixture(scope="module")
def embeddings() -> NDArray[np.float16]:
    return vectors(sum(SIZES))


@pytest.fixture(scope="module")
def expected(embeddings: NDArray[np.float16]) -> str:
    tree = fit_tree(embeddings, SETTINGS, ids=ids_of(SIZES))
    assert [len(nodes) for nodes in tree.nodes_per_level][:3] == [4, 16, 64], "the levels are there to be compared"
    assert len(tree.nodes_per_level[3]) > 0
    return tree.fingerprint


@pytest.fixture(params=[(1, 1), (30_000, 2_000), (1 << 30, 1 << 30)], ids=["part by part", "some", "at once"])
def task_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the groups of a draw, and of the bundles of nodes."""
    group, bundle = request.param
    monkeypatch.setattr(stages, "GROUP_BYTES", group)
    monkeypatch.setattr(stages, "BUNDLE_BYTES", bundle)


@pytest.mark.usefixtures("task_sizes")
def test_tasks_of_any_size_fit_the_tree_that_is_fitted_in_memory(
    tmp_path: Path, embeddings: NDArray[np.float16], expected: str
) -> None:
    fitted, workspace = fitted_in(tmp_path, embeddings)
    tree = tree_of(workspace, fitted.key)
    assert tree.fingerprint == expected
    assert (fitted.num_windows, fitted.num_sampled) == (sum(SIZES), SETTINGS.quota)
    assert workspace.load_array(fitted.sample).shape == (SETTINGS.quota, DIM)
    assert len(fitted.fit_seconds) == SETTINGS.depth
    assert fitted.devices == ["cpu"]


def test_joined_draws_give_the_same_tree_from_fewer_files(
    tmp_path: Path, embeddings: NDArray[np.float16], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "GROUP_BYTES", 1)
    monkeypatch.setattr(stages, "MERGED_DRAWS", 3)
    fitted, workspace = fitted_in(tmp_path, embeddings)
    assert tree_of(workspace, fitted.key).fingerprint == expected
    merges = [name for name in workspace.sizes("tree-merges") if name.endswith("json")]
    assert len(merges) == len([name for name in workspace.sizes("tree-counts") if name.endswith("draws.json")])


def test_draws_are_not_joined_where_that_would_only_copy_them(
    tmp_path: Path, embeddings: NDArray[np.float16], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "GROUP_BYTES", 30_000)
    monkeypatch.setattr(stages, "MERGED_DRAWS", 1)
    monkeypatch.setattr(stages, "MERGE_BYTES", 1)
    fitted, workspace = fitted_in(tmp_path, embeddings)
    assert tree_of(workspace, fitted.key).fingerprint == expected
    assert not workspace.sizes("tree-merges")


def test_two_processes_fit_the_same_tree(
    tmp_path: Path, embeddings: NDArray[np.float16], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "GROUP_BYTES", 30_000)
    monkeypatch.setattr(stages, "BUNDLE_BYTES", 2_000)
    fitted, workspace = fitted_in(tmp_path, embeddings, processes=2)
    assert tree_of(workspace, fitted.key).fingerprint == expected


@pytest.mark.parametrize("stage", ["tree-draws", "tree-merges", "tree-counts", "tree-nodes", "tree-levels", "tree"])
def test_a_fit_that_is_killed_at_any_task_goes_on(
    stage: str, tmp_path: Path, embeddings: NDArray[np.float16], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "GROUP_BYTES", 80_000)
    monkeypatch.setattr(stages, "BUNDLE_BYTES", 8_000)
    monkeypatch.setattr(stages, "MERGED_DRAWS", 1)
    monkeypatch.setattr(stages, "MERGE_BYTES", 60_000)
    ran: list[str] = []

    def execute_one_more(task: Task) -> Record:
        """Die at the next task of the stage that no earlier run has got to; of those that split nodes, at some."""
        if task.stage == stage and task.key not in ran and (stage != "tree-nodes" or task.number % 4 == 1):
            ran.append(task.key)
            raise KeyboardInterrupt
        return execute(task)

    monkeypatch.setattr(engines, "execute", execute_one_more)
    kills = 0
    while True:
        try:
            fitted, workspace = fitted_in(tmp_path, embeddings)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills == len(ran) >= {"tree-draws": 12, "tree": 1}.get(stage, 4)
    assert tree_of(workspace, fitted.key).fingerprint == expected


def test_descriptions_of_tasks_do_not_grow_with_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "GROUP_BYTES", 20_000)
    largest: dict[int, dict[str, int]] = {}
    for num_parts in (40, 160):
        sizes: dict[str, int] = {}

        def measured(task: Task, sizes: dict[str, int] = sizes) -> Record:
            sizes[task.stage] = max(sizes.get(task.stage, 0), len(pickle.dumps(task)))
            return execute(task)

        monkeypatch.setattr(engines, "execute", measured)
        workspace = Workspace(str(tmp_path / str(num_parts)))
        parts = parts_of(workspace, [50] * num_parts, vectors(50 * num_parts))
        with closing(LocalEngine(processes=1)) as engine:
            runner = Runner(engine, workspace, log=[].append)
            fit_tree_in_stages(runner, parts, SETTINGS, fit_windows=None)
        largest[num_parts] = sizes
    for stage in ("tree-draws", "tree-nodes", "tree"):
        assert largest[160][stage] < largest[40][stage] + 100, stage


def test_a_limit_fits_on_about_so_many_windows_and_says_that_it_ends_early_for_it(
    tmp_path: Path, embeddings: NDArray[np.float16]
) -> None:
    lines: list[str] = []
    fitted, workspace = fitted_in(tmp_path, embeddings, fit_windows=400, lines=lines)
    assert 300 < fitted.num_windows < 500
    assert len(workspace.load_array(fitted.sample)) == fitted.num_windows
    assert any("times the --fit-windows" in line for line in lines)
    windows = FitWindows(at_most=400, total=10**7, seed=0)
    parts = [
        Part(number=number, num_windows=500, windows_key="", embeddings_key="", fingerprint="")
        for number in range(2000)
    ]
    used = [part for part in parts if windows.has_part(part)]
    assert len(used) < 20, "most parts need not be read"


def test_every_level_and_why_it_is_the_last_is_in_the_log(tmp_path: Path, embeddings: NDArray[np.float16]) -> None:
    lines: list[str] = []
    settings = TreeSettings(arity=4, depth=4, steps=4, examples_per_step=150, min_examples_to_split=300)
    fitted_in(tmp_path, embeddings, settings, lines=lines)
    tree_lines = [line for line in lines if line.startswith("tree")]
    assert tree_lines[0] == "tree, level 1: 1 of 1 node to split, on 600 fresh examples each; 4 leaves expected"
    assert tree_lines[1].startswith("tree, level 2: 4 of 4 nodes to split, on ")
    assert "tree: warning: it has" in tree_lines[-1]
    assert "and a split needs 300 (--min-split). For one more level take a --min-split of at most" in tree_lines[-1]


def test_very_many_equal_windows_stay_together_and_the_log_says_so(tmp_path: Path) -> None:
    same = np.tile(vectors(1), (sum(SIZES), 1))
    same[::50] = vectors(len(same[::50]), seed=3)
    lines: list[str] = []
    fitted, workspace = fitted_in(tmp_path / "many", same, lines=lines)
    leaves = tree_of(workspace, fitted.key).assign(same)
    assert len(set(leaves[1:50].tolist())) == 1
    assert len(set(leaves[::50].tolist())) > 1
    assert any("fewer than 4 of them are different" in line and "--dedup" in line for line in lines)
    same[:] = same[1]
    fitted, workspace = fitted_in(tmp_path / "all", same, lines=lines)
    assert set(tree_of(workspace, fitted.key).assign(same).tolist()) == {0}


def test_fewer_windows_than_the_arity_are_refused(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    for sizes in ([2, 1], [0]):
        parts = parts_of(workspace, sizes, vectors(sum(sizes)))
        with (
            closing(LocalEngine(processes=1)) as engine,
            pytest.raises(InputError, match=rf"at least 4 windows to split the root in 4, got {sum(sizes)}"),
        ):
            fit_tree_in_stages(Runner(engine, workspace, log=[].append), parts, SETTINGS, fit_windows=None)


def test_a_process_must_hold_the_examples_of_one_node_whatever_the_corpus() -> None:
    settings = TreeSettings()
    assert task_bytes(settings, 10**12, 384) == task_bytes(settings, 10**6, 384) < 110 << 20
    assert task_bytes(settings, 1000, 384) < 1 << 20
