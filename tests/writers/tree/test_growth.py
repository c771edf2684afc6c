"""What is said of each level of a tree, before and after it is made."""

from __future__ import annotations

import numpy as np
import pytest

from crisp_stream.writers.tree.growth import LevelPlan, end_of_growth, foretold
from crisp_stream.writers.tree.settings import TreeSettings


def lines_of(windows: float, settings: TreeSettings) -> list[str]:
    leaves, lines = 1, []
    plans = foretold(windows, settings)
    for plan in plans:
        lines.append(plan.text(settings, leaves))
        leaves += plan.num_split * (settings.arity - 1)
    return [*lines, *end_of_growth(plans, settings)]


def test_ten_million_windows_bear_three_levels_of_64() -> None:
    lines = lines_of(10**7, TreeSettings())
    assert lines[0] == "level 1: 1 of 1 node to split, on 128,000 fresh examples each; 64 leaves expected"
    assert lines[1].startswith("level 2: 64 of 64 nodes to split")
    split = int(lines[2].partition(": ")[2].partition(" of")[0].replace(",", ""))
    assert 3500 < split <= 4096
    assert "used 20 times" in lines[2]
    assert lines[3].startswith("level 4: none of")
    assert lines[4].startswith("tree: warning: it has 3 levels, not 4: the largest of")
    assert "times the text; --depth 3 asks for what it has" in lines[4]


def test_a_depth_that_is_reached_gives_no_warning() -> None:
    assert end_of_growth(foretold(10**9, TreeSettings(depth=3)), TreeSettings(depth=3)) == []
    assert len(foretold(10**9, TreeSettings(depth=3))) == 3


def test_a_small_corpus_is_told_that_its_second_level_is_missing_and_what_helps() -> None:
    settings = TreeSettings(arity=16, depth=2)
    [warning] = end_of_growth(foretold(2000, settings), settings)
    assert "it has 1 level, not 2: the largest of 16 nodes of level 1 has" in warning
    assert "a split needs 256 (--min-split)" in warning
    assert "take a --min-split of at most" in warning
    [limited] = end_of_growth(foretold(2000, settings), settings, are_all=False)
    assert "times the --fit-windows" in limited


@pytest.mark.parametrize("windows", [0, 1, 100, 1e4, 1e6, 3.4e10])
def test_any_number_of_windows_has_a_plan(windows: float) -> None:
    for settings in (TreeSettings(), TreeSettings(arity=2, depth=20, min_examples_to_split=1)):
        plans = foretold(windows, settings)
        assert plans[0].num_split == 1
        assert all(0 <= plan.num_split <= plan.num_nodes for plan in plans)
        assert all(plan.examples.fewest <= plan.examples.median <= plan.examples.most for plan in plans)


def test_the_plan_of_counted_nodes_says_who_is_split_and_on_what() -> None:
    settings = TreeSettings(arity=4, depth=2, steps=2, examples_per_step=50, min_examples_to_split=20)
    windows = np.array([10, 20, 90, 500])
    plan = LevelPlan.of(2, windows, np.minimum(windows, settings.quota), settings)
    assert LevelPlan.from_json(plan.to_json()) == plan
    assert plan.text(settings, 4) == (
        "level 2: 3 of 4 nodes to split (the others have fewer than 20 windows), on 20 to 100 examples each, "
        "90 in the median, used 1.11 times; 13 leaves expected"
    )
    equal = plan.done(unsplit=3)
    [first, second] = end_of_growth([LevelPlan.of(1, windows, windows, settings), equal], settings)
    assert first.startswith("tree: warning: 3 nodes with enough windows cannot be split, because fewer than 4 of them")
    assert second == (
        "tree: warning: it has 1 level, not 2: no node of level 1 has 4 different windows. --depth 1 asks for what it "
        "has."
    )
