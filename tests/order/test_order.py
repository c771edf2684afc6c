"""The sample order: pure functions, so properties are checked on random small cases and on large ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_stream.loading.topology import Topology
from crisp_stream.order import draws, order
from crisp_stream.order.blocks import Blocks
from crisp_stream.order.draw_table import DrawTable
from crisp_stream.order.draws import LeafShares
from crisp_stream.order.order import SampleOrder, phases_in_turn
from tests.support.book import order_by_the_book


@st.composite
def orders(draw: st.DrawFn, *, way: str = "systematic") -> tuple[SampleOrder, np.ndarray, list[tuple[np.ndarray, int]]]:
    """A small order of one to three phases, its windows per leaf, and the phases."""
    num_leaves = draw(st.integers(1, 12))
    windows = np.array(draw(st.lists(st.integers(1, 30), min_size=num_leaves, max_size=num_leaves)), np.int64)
    phases = []
    for _ in range(draw(st.integers(1, 3))):
        weights = np.array(draw(st.lists(st.integers(0, 9), min_size=num_leaves, max_size=num_leaves)), float)
        weights[draw(st.integers(0, num_leaves - 1))] += 1
        phases.append((weights / weights.sum(), draw(st.integers(1, 300))))
    blocks = Blocks(
        seed=draw(st.integers(0, 2**63)),
        draw=way,  # pyright: ignore[reportArgumentType]
        first_block_samples=draw(st.sampled_from([16, 32])),
        block_samples=draw(st.sampled_from([32, 64, 128])),
        num_lanes=draw(st.sampled_from([1, 4, 16])),
    )
    return (
        SampleOrder(DrawTable.of_leaves(np.arange(num_leaves) * 3, windows), phases_in_turn(phases), blocks),
        windows,
        phases,
    )


def leaf_rows(window_ids: np.ndarray, windows_per_leaf: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(windows_per_leaf), window_ids, side="right")


def clone(made: SampleOrder) -> SampleOrder:
    """The same order, with nothing computed yet."""
    return SampleOrder(made.table, made.phases, made.blocks, history=made.history)


@given(orders(), st.data())
def test_any_positions_asked_alone_equal_the_whole_sequence(made: tuple, data: st.DataObject) -> None:
    sample_order, _, _ = made
    whole = sample_order.window_ids(np.arange(sample_order.num_samples))
    positions = np.array(data.draw(st.lists(st.integers(0, sample_order.num_samples - 1), min_size=1, max_size=20)))
    assert (clone(sample_order).window_ids(positions) == whole[positions]).all()


@given(orders(way="multinomial"), st.data())
def test_resuming_multinomial_draws_at_any_position_equals_the_uninterrupted_suffix(
    made: tuple, data: st.DataObject
) -> None:
    sample_order, _, _ = made
    whole = sample_order.window_ids(np.arange(sample_order.num_samples))
    start = data.draw(st.integers(0, sample_order.num_samples - 1))
    assert (clone(sample_order).window_ids(np.arange(start, sample_order.num_samples)) == whole[start:]).all()


@given(
    orders(),
    st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4), (4, 2)]),
    st.integers(1, 3),
    st.integers(0, 50),
)
def test_ranks_together_serve_each_global_batch_exactly_once(
    made: tuple, shape: tuple[int, int], batch_size: int, start: int
) -> None:
    sample_order, _, _ = made
    num_nodes, ranks_per_node = shape
    world_size = num_nodes * ranks_per_node
    shares = [
        Topology(rank=rank, world_size=world_size, ranks_per_node=ranks_per_node).positions(start, batch_size)
        for rank in range(world_size)
    ]
    assert [len(share) for share in shares] == [batch_size] * world_size
    together = np.sort(np.concatenate(shares))
    assert (together == np.arange(start, start + batch_size * world_size)).all()
    kept = together[together < sample_order.num_samples]
    whole = sample_order.window_ids(np.arange(sample_order.num_samples))
    parts = [clone(sample_order).window_ids(share[share < sample_order.num_samples]) for share in shares]
    assert sorted(np.concatenate(parts)) == sorted(whole[kept])


@given(orders())
def test_every_block_gives_each_leaf_its_share_within_one_draw(made: tuple) -> None:
    sample_order, windows, phases = made
    whole = sample_order.window_ids(np.arange(sample_order.num_samples))
    blocks, first = sample_order.blocks, 0
    for proportions, num_samples in phases:
        number = 0
        while (stop := blocks.first_sample(number + 1)) <= num_samples:
            start = blocks.first_sample(number)
            counts = np.bincount(leaf_rows(whole[first + start : first + stop], windows), minlength=len(windows))
            assert (np.abs(counts - (stop - start) * proportions) < 1 + 1e-9).all()
            number += 1
        first += num_samples


@given(st.sampled_from(["systematic", "multinomial"]).flatmap(lambda way: orders(way=way)))
def test_no_window_repeats_before_its_leaf_is_exhausted_over_all_phases(made: tuple) -> None:
    sample_order, windows, _ = made
    whole = sample_order.window_ids(np.arange(sample_order.num_samples))
    first_window = np.cumsum(windows) - windows
    starts = draws.leaf_starts(sample_order.blocks.seed, np.arange(len(windows)) * 3, windows)
    rows = leaf_rows(whole, windows)
    for row in range(len(windows)):
        served = whole[rows == row] - first_window[row]
        assert (served == (starts[row] + np.arange(len(served))) % windows[row]).all()


@given(orders())
def test_a_switch_happens_at_the_exact_sample(made: tuple) -> None:
    sample_order, windows, phases = made
    whole = leaf_rows(sample_order.window_ids(np.arange(sample_order.num_samples)), windows)
    first = 0
    for proportions, num_samples in phases:
        assert (proportions[whole[first : first + num_samples]] > 0).all()
        first += num_samples
    assert len(whole) == first


@given(st.sampled_from(["systematic", "multinomial"]).flatmap(lambda way: orders(way=way)), st.data())
def test_draws_counted_at_once_equal_walking_there(made: tuple, data: st.DataObject) -> None:
    sample_order, windows, _ = made
    whole = leaf_rows(sample_order.window_ids(np.arange(sample_order.num_samples)), windows)
    rows = np.arange(len(windows))
    for position in (0, sample_order.num_samples, data.draw(st.integers(0, sample_order.num_samples))):
        expected = np.bincount(whole[:position], minlength=len(windows))
        assert (clone(sample_order).drawn_before(rows, position) == expected).all()


@given(st.sampled_from(["systematic", "multinomial"]).flatmap(lambda way: orders(way=way)), st.data())
def test_an_order_continued_from_the_history_of_its_phases_is_the_same(made: tuple, data: st.DataObject) -> None:
    sample_order, _, _ = made
    whole = sample_order.window_ids(np.arange(sample_order.num_samples))
    position = data.draw(st.integers(0, sample_order.num_samples - 1))
    history = clone(sample_order).history_at(position)
    kept = [phase for phase in sample_order.phases if history is None or phase.first_sample >= history.first_sample]
    continued = SampleOrder(sample_order.table, kept, sample_order.blocks, history=history)
    assert (continued.window_ids(np.arange(position, sample_order.num_samples)) == whole[position:]).all()


@given(st.sampled_from(["systematic", "multinomial"]).flatmap(lambda way: orders(way=way)), st.data())
def test_a_change_keeps_what_was_before_it_and_depends_on_nothing_but_its_position(
    made: tuple, data: st.DataObject
) -> None:
    sample_order, windows, phases = made
    whole = sample_order.window_ids(np.arange(sample_order.num_samples))
    at = data.draw(st.integers(0, sample_order.num_samples))
    shares = LeafShares.of(phases[-1][0])
    fresh = clone(sample_order)
    fresh.change(at, lambda: shares, 150)
    changed = clone(sample_order)
    for position in sorted(data.draw(st.lists(st.integers(0, at), max_size=3))):
        changed.window_ids(np.arange(changed.num_samples or 0))  # what was computed before must not stay
        if position == at:
            changed.change(at, lambda: LeafShares.of(phases[0][0]), 30)  # another one at the same place
    changed.window_ids(np.arange(changed.num_samples or 0))
    changed.change(at, lambda: shares, 150)
    stream = changed.window_ids(np.arange(at + 150))
    assert (stream == fresh.window_ids(np.arange(at + 150))).all()
    assert (stream[:at] == whole[:at]).all()
    first_window = np.cumsum(windows) - windows
    rows = leaf_rows(stream, windows)
    for row in range(len(windows)):  # in the order of the stream, each leaf is read front to back
        own = stream[rows == row] - first_window[row]
        start = draws.leaf_starts(sample_order.blocks.seed, np.array([row * 3]), windows[row : row + 1])[0]
        assert (own == (start + np.arange(len(own))) % windows[row]).all()


@settings(max_examples=8)
@given(st.integers(0, 2**63), st.sampled_from(["systematic", "multinomial"]))
def test_hundreds_of_phases_are_summed_up_without_a_change(seed: int, way: str) -> None:
    rng = np.random.default_rng(seed)
    windows = rng.integers(1, 30, 9)
    phases = [(rng.dirichlet(np.ones(9)), int(rng.integers(1, 40))) for _ in range(120)]
    blocks = Blocks(seed=seed, draw=way, first_block_samples=16, block_samples=32, num_lanes=4)  # pyright: ignore[reportArgumentType]
    made = SampleOrder(DrawTable.of_leaves(np.arange(9), windows), phases_in_turn(phases), blocks)
    whole = made.window_ids(np.arange(made.num_samples or 0))
    rows, first_window = leaf_rows(whole, windows), np.cumsum(windows) - windows
    for row in range(9):
        own = whole[rows == row] - first_window[row]
        assert (np.diff(own) % windows[row] == 1 % windows[row]).all()
    for position in (700, 3, len(whole) - 1):  # backwards too
        assert made.window_ids(np.array([position]))[0] == whole[position]
    made.forget_before(len(whole) // 2)
    assert len(made.phases) < 100
    with pytest.raises(IndexError, match="an order that knows"):
        made.window_ids(np.array([3]))
    assert (made.window_ids(np.arange(len(whole) // 2, len(whole))) == whole[len(whole) // 2 :]).all()


@settings(max_examples=30)
@given(orders())
def test_the_order_is_the_one_that_format_md_describes(made: tuple) -> None:
    sample_order, windows, phases = made
    leaves = (np.arange(len(windows)) * 3).tolist()
    expected = order_by_the_book(leaves, windows.tolist(), phases, sample_order.blocks)
    assert sample_order.window_ids(np.arange(sample_order.num_samples)).tolist() == expected


def skewed(num_leaves: int, num_drawn: int) -> np.ndarray:
    """Log-normal proportions (sigma 2) on some of the leaves."""
    rng = np.random.default_rng(0)
    proportions = np.zeros(num_leaves)
    proportions[rng.permutation(num_leaves)[:num_drawn]] = np.exp(2 * rng.normal(size=num_drawn))
    return proportions / proportions.sum()


def open_order(proportions: np.ndarray, windows: np.ndarray, *, seed: int = 0, draw: str = "systematic") -> SampleOrder:
    """One open-ended phase."""
    phases = phases_in_turn([(proportions, None)])
    return SampleOrder(DrawTable.of_leaves(np.arange(len(windows)), windows), phases, Blocks(seed=seed, draw=draw))  # pyright: ignore[reportArgumentType]


def total_variation(proportions: np.ndarray, rows: np.ndarray) -> float:
    return 0.5 * float(np.abs(np.bincount(rows, minlength=len(proportions)) / len(rows) - proportions).sum())


@pytest.mark.parametrize("num_drawn", [3000, 4096])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixture_error_over_the_first_hundred_thousand_samples_is_below_a_hundredth(num_drawn: int, seed: int) -> None:
    proportions, windows = skewed(4096, num_drawn), np.full(4096, 50)
    ids = open_order(proportions, windows, seed=seed).window_ids(np.arange(100_000))
    assert total_variation(proportions, leaf_rows(ids, windows)) <= 0.01


def test_draws_over_many_blocks_stay_within_a_few_of_their_share() -> None:
    proportions = skewed(2000, 2000)
    shares, entries = LeafShares.of(proportions), np.arange(2000)
    offsets = draws.block_offsets(3, 0, 63, 463, num_first=64)[1:]
    totals = shares.draws_in_blocks(entries, 1 << 18, np.sort(offsets))
    assert (totals == sum(shares.draws_in_blocks(entries, 1 << 18, offset) for offset in offsets[:, None])).all()
    assert np.abs(totals - len(offsets) * (1 << 18) * proportions).max() < 4


@pytest.mark.parametrize("blocks", [1, 2, 8, 32, 64])
def test_the_first_blocks_together_are_as_even_as_one_of_their_size(blocks: int) -> None:
    proportions = skewed(2000, 2000)
    sizes, phase = Blocks(seed=5), phases_in_turn([(proportions, None)])[0]
    counts = sizes.drawn(phase, blocks, np.arange(2000))
    assert counts.sum() == blocks * 4096
    assert np.abs(counts - blocks * 4096 * proportions).max() < 1 + 1e-6


def test_multinomial_draws_pass_a_chi_square_test_and_are_not_evened_out() -> None:
    from scipy.stats import chi2

    proportions, windows = np.arange(1, 65) / np.arange(1, 65).sum(), np.full(64, 1000)
    statistics = []
    for seed in range(40):
        made = open_order(proportions, windows, seed=seed, draw="multinomial")
        counts = np.bincount(leaf_rows(made.window_ids(np.arange(20_000)), windows), minlength=64)
        statistics.append(float((((counts - 20_000 * proportions) ** 2) / (20_000 * proportions)).sum()))
    # The sum of 40 independent chi-squares with 63 degrees of freedom has 2,520: two-sided at 1e-4.
    assert chi2.ppf(5e-5, 63 * 40) < sum(statistics) < chi2.ppf(1 - 5e-5, 63 * 40)


def test_seeds_give_different_orders_and_equal_seeds_the_same() -> None:
    proportions, windows = skewed(64, 64), np.full(64, 100)

    def first(seed: int) -> np.ndarray:
        return open_order(proportions, windows, seed=seed).window_ids(np.arange(1000))

    assert (first(7) == first(7)).all()
    assert (first(7) != first(8)).mean() > 0.9


def test_order_version_3_is_what_it_was() -> None:
    """Changing these numbers breaks every resume: it needs a new order_version."""
    phases = phases_in_turn([(np.array([0.5, 0.0, 0.2, 0.3]), 100), (np.ones(4) / 4, None)])
    made = SampleOrder(DrawTable.of_leaves(np.array([1, 5, 6, 9]), np.array([7, 3, 100, 40])), phases, Blocks(seed=11))
    assert order.ORDER_VERSION == 3
    assert made.window_ids(np.array([0, 1, 2, 3, 50, 99, 100, 101, 10**6, 10**9])).tolist() == GOLDEN_IDS
    multinomial = open_order(np.ones(3) / 3, np.array([5, 6, 7]), seed=1, draw="multinomial")
    assert multinomial.window_ids(np.arange(8)).tolist() == GOLDEN_MULTINOMIAL


def test_a_resume_far_into_a_run_makes_the_draws_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = Blocks.rows_of_places
    monkeypatch.setattr(
        Blocks, "rows_of_places", lambda self, plan, block: opened.append(block) or original(self, plan, block)
    )
    made = open_order(skewed(5000, 5000), np.full(5000, 10))
    made.window_ids(np.arange(10**8, 10**8 + 10))
    assert opened == [(10**8 >> 18) + 63]


@pytest.mark.parametrize("num_leaves", [1, 7, 100_000])
def test_every_draw_of_a_block_falls_where_the_fixed_point_edges_say(num_leaves: int) -> None:
    shares = LeafShares.of(skewed(num_leaves, num_leaves))
    for draws_of_block, offset in ((1 << 18, 0), (1 << 18, (1 << 44) - 1), (1000, 123456789), (1, 1 << 43)):
        edges = shares.drawn_before_end(np.arange(-1, num_leaves), draws_of_block, offset)
        expected = np.repeat(np.arange(num_leaves), np.diff(edges))
        assert (shares.entries_of_draws(draws_of_block, offset) == expected).all()


def test_block_samples_beyond_the_fixed_point_range_are_refused() -> None:
    with pytest.raises(ValueError, match="block_samples must be 1 to 262144"):
        Blocks(seed=0, block_samples=1 << 19)


GOLDEN_IDS = [99, 5, 6, 0, 124, 136, 20, 6, 111, 111]
GOLDEN_MULTINOMIAL = [14, 10, 5, 1, 6, 7, 15, 16]


@given(orders())
def test_an_ended_phase_is_the_beginning_of_an_open_one(made: tuple) -> None:
    sample_order, windows, phases = made
    proportions, end = phases[0]
    first = phases_in_turn([(proportions, None)])
    generic = SampleOrder(DrawTable.of_leaves(np.arange(len(windows)) * 3, windows), first, sample_order.blocks)
    assert (sample_order.window_ids(np.arange(end)) == generic.window_ids(np.arange(end))).all()
