"""Stages of the tree, once per level: draw examples, count and plan, split nodes, join their children to a level.

    tree-draws (-> tree-merges) -> tree-counts -> tree-nodes -> tree-levels -> tree-draws of the next level … -> tree

The tasks stand in tree_tasks.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crisp_stream.errors import InputError
from crisp_stream.writers.engine.task_list import TaskList
from crisp_stream.writers.engine.tasks import Record, Runner
from crisp_stream.writers.stages.runs import group_parts
from crisp_stream.writers.stages.tree_tasks import (
    EXAMPLE,
    FitWindows,
    LevelFiles,
    TreeCountsTask,
    TreeDrawTask,
    TreeLevelTask,
    TreeMergeTask,
    TreeNodesTask,
    TreeTask,
)
from crisp_stream.writers.stages.windows import Part, chosen_parts
from crisp_stream.writers.tree.growth import LevelPlan, end_of_growth
from crisp_stream.writers.tree.settings import TreeSettings

GROUP_BYTES = 128 << 20
"""Vectors of a `tree-draws` task at most, with keys and rows of its windows; it holds them once."""
_INDEX_BYTES = 64
"""Of a window beside its vector."""
MERGED_DRAWS = 256
"""With more draws than that, examples of neighbours are joined."""
MERGE_BYTES = 256 << 20
"""Examples that are joined to one file at most."""
_DRAWS_PER_MERGE = 256
_LEAST_MERGED = 2
"""Draws that are joined in the mean at least; else joining them is not worth a copy."""
BUNDLE_BYTES = 96 << 20
"""Examples of a `tree-nodes` task at most, unless it has one node."""


@dataclass(frozen=True, kw_only=True)
class FittedTree:
    """A tree of a write, and how it came about."""

    key: str
    """Folder of the workspace with its files."""
    fingerprint: str
    """Fingerprint of its task."""
    num_windows: int
    """Windows that it was fitted on: its examples were drawn from them."""
    sample: str
    """Name of the array of the embeddings of the root's examples, which are drawn from all of these windows."""
    num_sampled: int
    """Windows of the sample."""
    levels: list[LevelPlan]
    """How each level was made, as far as there are some."""
    fit_seconds: list[float]
    """[depth], spent fitting each level, all processes together."""
    devices: list[str]
    """Devices that searched nearest centroids: cpu or gpu."""


def task_bytes(settings: TreeSettings, num_windows: int, dim: int) -> int:
    """Data that a process must be able to hold while a tree is fitted on so many windows: the examples of a node."""
    examples = settings.quota + math.ceil(8 * settings.quota**0.5)
    return min(num_windows, examples) * (2 * dim + EXAMPLE.itemsize + np.dtype(np.int64).itemsize)


def fit_tree_in_stages(
    runner: Runner,
    parts: Sequence[Part],
    settings: TreeSettings,
    *,
    fit_windows: int | None,
    work_bytes: int | None = None,
) -> FittedTree:
    """Fit the tree with every task that can run at once doing so; `work_bytes`, if any, are what a task may hold.

    Raises:
        InputError: fewer windows than the arity.
    """
    total = sum(part.num_windows for part in parts)
    windows = FitWindows(at_most=fit_windows, total=total, seed=settings.seed)
    parts = chosen_parts(parts, lambda part: part.num_windows > 0 and windows.has_part(part))
    require_windows(sum(part.num_windows for part in parts), settings.arity)
    growth = _Growth(runner, parts, settings, windows, work_bytes)
    while growth.level.number < settings.depth and growth.grow():
        pass
    return growth.finish()


def require_windows(num_windows: int, arity: int) -> None:
    """Raises InputError where there are too few windows to split the root."""
    if num_windows < arity:
        raise InputError(
            f"inputs: must give at least {arity} windows to split the root in {arity}, got {num_windows}. Give more "
            "text, a smaller --window-tokens, or a smaller --arity."
        )


class _Growth:
    """A tree that grows by levels; holds the tasks of the level before."""

    def __init__(
        self,
        runner: Runner,
        parts: Sequence[Part],
        settings: TreeSettings,
        windows: FitWindows,
        work_bytes: int | None,
    ) -> None:
        self._runner, self._workspace = runner, runner.workspace
        self._settings, self._windows = settings, windows
        self._dim = self._workspace.array(f"{parts[0].embeddings_key}.embeddings.npy").shape[1]
        group_bytes, self._bundle_bytes, self._merge_bytes = GROUP_BYTES, BUNDLE_BYTES, MERGE_BYTES
        if work_bytes is not None:
            group_bytes = min(group_bytes, work_bytes // 2)
            self._bundle_bytes = min(self._bundle_bytes, work_bytes // 2)
            self._merge_bytes = min(self._merge_bytes, work_bytes // 2)
        self._groups = group_parts(parts, 2 * self._dim + _INDEX_BYTES, run_bytes=group_bytes)
        self.level = LevelFiles(number=0, key=None)
        self._made: list[TreeLevelTask] = []
        self._draws: Sequence[TreeDrawTask] = []
        self._plans: list[LevelPlan] = []
        self._seconds: list[float] = []
        self._devices: set[str] = set()
        self._sample, self._num_sampled, self._num_leaves = "", 0, 1
        self._end: LevelPlan | None = None
        """Plan of the next level, where it is known that no node of it is split."""

    def grow(self) -> bool:
        """Make the next level; False where no node could be split."""
        if self._end is not None:
            self._note(self._end)
            return False
        counts, counted = self._count()
        plan = LevelPlan.from_json(counted["plan"])
        if self.level.number == 0:
            require_windows(plan.windows, self._settings.arity)
        self._note(plan)
        if not plan.num_split:
            return False
        bundles = [
            TreeNodesTask(**self._common(number, (counts.fingerprint,)), counts=counts.key, dim=self._dim)
            for number in range(counted["num_bundles"])
        ]
        records = self._runner.run(bundles, unit="nodes", num_units=counted["nodes_per_bundle"])
        self._seconds.append(sum(record["seconds"] for record in records))
        self._devices |= {record["device"] for record in records}
        if self.level.number == 0:
            self._sample, self._num_sampled = bundles[0].file("examples.npy"), plan.examples.most
        made = TreeLevelTask(
            **self._common(self.level.number + 1, tuple(task.fingerprint for task in (*bundles, counts))),
            bundles=tuple(task.file("npz") for task in bundles),
            dim=self._dim,
        )
        [record] = self._runner.run([made], unit="")
        self._plans[-1] = plan.done(unsplit=sum(record["unsplit"] for record in records))
        self._num_leaves += record["num_nodes"] // self._settings.arity * (self._settings.arity - 1)
        if not record["num_nodes"]:
            return False
        self._end = LevelPlan.from_json(record["end"]) if "end" in record else None
        self._made.append(made)
        self.level = LevelFiles(number=self.level.number + 1, key=made.key)
        return True

    def _note(self, plan: LevelPlan) -> None:
        self._plans.append(plan)
        self._runner.log(f"tree, {plan.text(self._settings, self._num_leaves)}")

    def _count(self) -> tuple[TreeCountsTask, Record]:
        """Place all windows on the level and draw its examples, in one pass."""
        self._draws = self._draw_tasks()
        num_units = [sum(part.num_windows for part in group) for group in self._groups]
        records = self._runner.run(self._draws, unit="windows", num_units=num_units)
        drawn = self._merged(self._draws, [int(record["num_examples"]) for record in records])
        counts = TreeCountsTask(
            **self._common(self.level.number, tuple(task.fingerprint for task in drawn)),
            draws=tuple(task.key for task in drawn),
            bundle_bytes=self._bundle_bytes,
            dim=self._dim,
        )
        [counted] = self._runner.run([counts], unit="")
        return counts, counted

    def _draw_tasks(self) -> TaskList[TreeDrawTask]:
        level, above = self.level, self._made[-1:]
        before = self._draws if level.number > 1 else None

        def make(at: int) -> TreeDrawTask:
            group, draw = self._groups[at], None if before is None else before[at]
            placed = [task.fingerprint for task in (*above, draw) if task is not None]
            return TreeDrawTask(
                **self._common(at, (*(part.fingerprint for part in group), *placed), level),
                parts=group,
                above=None if draw is None else draw.file("rows.npy"),
            )

        return TaskList(len(self._groups), make)

    def _merged(
        self, draws: Sequence[TreeDrawTask], num_examples: Sequence[int]
    ) -> Sequence[TreeDrawTask | TreeMergeTask]:
        """Join the examples of many draws to fewer files; the draws themselves where there are few."""
        if len(draws) <= MERGED_DRAWS:
            return draws
        example_bytes = 2 * self._dim + EXAMPLE.itemsize
        groups: list[list[TreeDrawTask]] = []
        held = self._merge_bytes
        for draw, count in zip(draws, num_examples, strict=True):
            held += count * example_bytes
            if held > self._merge_bytes or len(groups[-1]) == _DRAWS_PER_MERGE:
                groups.append([])
                held = count * example_bytes
            groups[-1].append(draw)
        if len(draws) < _LEAST_MERGED * len(groups):
            return draws
        merges = [
            TreeMergeTask(
                **self._common(number, tuple(draw.fingerprint for draw in group)),
                draws=tuple(draw.key for draw in group),
                dim=self._dim,
            )
            for number, group in enumerate(groups)
        ]
        self._runner.run(merges, unit="examples")
        return merges

    def _common(self, number: int, inputs: tuple[str, ...], level: LevelFiles | None = None) -> dict[str, Any]:
        return {
            "workspace": self._workspace,
            "number": number,
            "inputs": inputs,
            "tree": self._settings,
            "windows": self._windows,
            "level": level or self.level,
        }

    def finish(self) -> FittedTree:
        """Make the tree of the levels, and say what became of it."""
        tree = TreeTask(
            workspace=self._workspace,
            number=0,
            inputs=tuple(task.fingerprint for task in self._made),
            tree=self._settings,
            levels=tuple(task.key for task in self._made),
            dim=self._dim,
        )
        [record] = self._runner.run([tree], unit="")
        num_windows = self._plans[0].windows
        self._runner.log(f"tree: {record['num_leaves']:,} leaves, fitted on {num_windows:,} windows")
        for line in end_of_growth(self._plans, self._settings, are_all=self._windows.are_all):
            self._runner.log(line)
        missing = self._settings.depth - len(self._seconds)
        return FittedTree(
            key=tree.key,
            fingerprint=tree.fingerprint,
            num_windows=num_windows,
            sample=self._sample,
            num_sampled=self._num_sampled,
            levels=self._plans,
            fit_seconds=[*self._seconds, *[0.0] * missing],
            devices=sorted(self._devices),
        )
