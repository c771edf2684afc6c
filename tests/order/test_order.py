"""The sample order: pure functions, so properties are checked on random small cases and on large ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_stream.loading.topology import Topology
from crisp_stream.order import draws, order
from crisp_stream.order.block_plan import BlockPlan
from crisp_stream.order.draw_counts import DrawCounts
from crisp_stream.order.draws import LeafShares, PhasePlan
from crisp_stream.order.order import SampleOrder


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
    made = SampleOrder(
        np.arange(num_leaves) * 3,
        windows,
        phases,
        seed=draw(st.integers(0, 2**63)),
        draw=way,  # pyright: ignore[reportArgumentType]
        block_samples=draw(st.sampled_from([32, 64, 100])),
        num_lanes=draw(st.sampled_from([1, 4, 16])),
    )
    return made, windows, phases


def leaf_rows(window_ids: np.ndarray, windows_per_leaf: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(windows_per_leaf), window_ids, side="right")


def clone(made: SampleOrder) -> SampleOrder:
    """The same order, with nothing computed yet."""
    copy = object.__new__(SampleOrder)
    counts = DrawCounts(made._blocks, made.plans, len(made._windows_per_leaf), made.given_history)
    copy.__dict__ = {**made.__dict__, "_block": None, "_counts": counts}
    return copy


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
    first = 0
    for proportions, num_samples in phases:
        for start in range(first, first + num_samples, sample_order._block_samples):
            stop = min(start + sample_order._block_samples, first + num_samples)
            counts = np.bincount(leaf_rows(whole[start:stop], windows), minlength=len(windows))
            assert (np.abs(counts - (stop - start) * proportions) < 1 + 1e-9).all()
        first += num_samples


@given(st.sampled_from(["systematic", "multinomial"]).flatmap(lambda way: orders(way=way)))
def test_no_window_repeats_before_its_leaf_is_exhausted_over_all_phases(made: tuple) -> None:
    sample_order, windows, _ = made
    whole = sample_order.window_ids(np.arange(sample_order.num_samples))
    first_window = np.cumsum(windows) - windows
    starts = draws.leaf_starts(sample_order._seed, np.arange(len(windows)) * 3, windows)
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
    sample_order, windows, _ = made
    whole = sample_order.window_ids(np.arange(sample_order.num_samples))
    position = data.draw(st.integers(0, sample_order.num_samples - 1))
    history = clone(sample_order).history_before(position)
    kept = [plan for plan in sample_order.plans if history is None or plan.number >= history.first_phase]
    continued = SampleOrder(
        sample_order._leaves,
        windows,
        kept,
        seed=sample_order._seed,
        draw=sample_order._draw,
        history=history,
        block_samples=sample_order._block_samples,
        num_lanes=sample_order._num_lanes,
    )
    assert (continued.window_ids(np.arange(position, sample_order.num_samples)) == whole[position:]).all()


@given(st.sampled_from(["systematic", "multinomial"]).flatmap(lambda way: orders(way=way)), st.data())
def test_a_phase_cut_short_keeps_its_order_and_every_leaf_goes_on_where_it_stood(
    made: tuple, data: st.DataObject
) -> None:
    sample_order, windows, phases = made
    whole = sample_order.window_ids(np.arange(sample_order.num_samples))
    served = data.draw(st.integers(0, sample_order.num_samples))
    changed = SampleOrder(
        sample_order._leaves,
        windows,
        phases,
        seed=sample_order._seed,
        draw=sample_order._draw,
        block_samples=sample_order._block_samples,
        num_lanes=sample_order._num_lanes,
    )
    if data.draw(st.booleans()):
        changed.window_ids(np.arange(sample_order.num_samples))  # what was computed before must not stay
    kept = served
    if data.draw(st.booleans()):
        changed.cut(served)
    else:  # nothing of the phase that ends was planned
        kept = changed.phase_start(served)
        changed.cut(served, planned=False)
    shares = LeafShares.of(phases[-1][0])
    changed.append(lambda: shares, 150)
    stream = changed.window_ids(np.arange(served + 150))
    assert (stream[:kept] == whole[:kept]).all()
    first_window = np.cumsum(windows) - windows
    rows = leaf_rows(stream, windows)
    for row in range(len(windows)):  # in the order of the stream, each leaf is read front to back
        own = stream[rows == row] - first_window[row]
        start = draws.leaf_starts(sample_order._seed, np.array([row * 3]), windows[row : row + 1])[0]
        assert (own == (start + np.arange(len(own))) % windows[row]).all()


def test_draws_counted_beyond_a_cut_are_forgotten() -> None:
    def made() -> SampleOrder:
        windows = np.array([3, 5, 4])
        phases = [(np.array([0.5, 0.25, 0.25]), 200)]
        return SampleOrder(np.arange(3), windows, phases, seed=3, draw="multinomial", block_samples=64, num_lanes=4)

    shares = LeafShares.of(np.array([0.2, 0.4, 0.4]))
    for position in (0, 63, 64, 100, 199):
        read, fresh = made(), made()
        read.window_ids(np.arange(200))
        for each in (read, fresh):
            each.cut(position)
            each.append(lambda: shares, 150)
        places = np.arange(position + 150)
        assert read.window_ids(places).tolist() == fresh.window_ids(places).tolist()


@settings(max_examples=8)
@given(st.integers(0, 2**63), st.sampled_from(["systematic", "multinomial"]))
def test_hundreds_of_phases_are_summed_up_without_a_change(seed: int, way: str) -> None:
    rng = np.random.default_rng(seed)
    windows = rng.integers(1, 30, 9)
    phases = [(rng.dirichlet(np.ones(9)), int(rng.integers(1, 40))) for _ in range(120)]
    made = SampleOrder(np.arange(9), windows, phases, seed=seed, draw=way, block_samples=32, num_lanes=4)  # pyright: ignore[reportArgumentType]
    whole = made.window_ids(np.arange(made.num_samples or 0))
    rows, first_window = leaf_rows(whole, windows), np.cumsum(windows) - windows
    for row in range(9):
        own = whole[rows == row] - first_window[row]
        assert (np.diff(own) % windows[row] == 1 % windows[row]).all()
    for position in (700, 3, len(whole) - 1):  # backwards too
        assert made.window_ids(np.array([position]))[0] == whole[position]
    made.forget_before(len(whole) // 2)
    assert len(made.plans) < 100
    assert (made.window_ids(np.arange(len(whole) // 2, len(whole))) == whole[len(whole) // 2 :]).all()


def words(seed: int, purpose: int, count: int, *, lane: int = 0, block: int = 0, phase: int = 0) -> list[int]:
    key, counter = np.array([seed, purpose], np.uint64), np.array([0, lane, block, phase], np.uint64)
    return [int(word) for word in np.random.Philox(key=key, counter=counter).random_raw(count)]


def splitmix64(value: int) -> int:
    mask = (1 << 64) - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def order_by_the_book(
    leaves: list[int], windows: list[int], phases: list, seed: int, size: int, lanes: int
) -> list[int]:
    """FORMAT.md, "Sample order", steps 1 to 5, one draw at a time."""
    drawn, ids = [0] * len(leaves), []
    interval_of_lane = sorted(range(lanes), key=words(seed, 2, lanes).__getitem__)
    for phase, (proportions, num_samples) in enumerate(phases):
        rows = [row for row, p in enumerate(proportions) if p > 0]
        cdf, total = [], 0.0
        for row in rows:
            total += float(proportions[row])
            cdf.append(total)
        cdf = [value / total for value in cdf]
        start = words(seed, 1, 1, phase=phase)[0] >> 20
        for block, first in enumerate(range(0, num_samples, size)):
            m = min(size, num_samples - first)
            u = (start + block * 10872568911861) % 2**44
            edges = [0, *(int(np.floor(value * float(m * 2**44))) for value in cdf)]
            edges[-1] = m * 2**44
            edges = [(edge + u) >> 44 for edge in edges]
            draws = [(row, n) for i, row in enumerate(rows) for n in range(edges[i + 1] - edges[i])]
            lengths = [(m - k + lanes - 1) // lanes for k in range(lanes)]
            of_lane, at = {}, 0
            for interval in range(lanes):
                lane = interval_of_lane.index(interval)
                own, at = draws[at : at + lengths[lane]], at + lengths[lane]
                counts = {row: sum(r == row for r, _ in own) for row, _ in own}
                firsts = {row: min(n for r, n in own if r == row) for row in counts}
                spread = [
                    (word >> 11) * 2.0**-53 for word in words(seed, 3, len(own), lane=lane, block=block, phase=phase)
                ]
                keys = [(n - firsts[row] + v) / counts[row] for (row, n), v in zip(own, spread, strict=True)]
                of_lane[lane] = [own[i] for i in sorted(range(len(own)), key=keys.__getitem__)]
            for i in range(m):
                row, _ = of_lane[i % lanes][i // lanes]
                begin = splitmix64((leaves[row] + words(seed, 5, 1)[0]) % 2**64) % windows[row]
                ids.append(sum(windows[:row]) + (begin + drawn[row]) % windows[row])
                drawn[row] += 1
    return ids


@settings(max_examples=30)
@given(orders())
def test_the_order_is_the_one_that_format_md_describes(made: tuple) -> None:
    sample_order, windows, phases = made
    expected = order_by_the_book(
        (np.arange(len(windows)) * 3).tolist(),
        windows.tolist(),
        phases,
        sample_order._seed,
        sample_order._block_samples,
        sample_order._num_lanes,
    )
    assert sample_order.window_ids(np.arange(sample_order.num_samples)).tolist() == expected


def skewed(num_leaves: int, num_drawn: int) -> np.ndarray:
    """Log-normal proportions (sigma 2) on some of the leaves."""
    rng = np.random.default_rng(0)
    proportions = np.zeros(num_leaves)
    proportions[rng.permutation(num_leaves)[:num_drawn]] = np.exp(2 * rng.normal(size=num_drawn))
    return proportions / proportions.sum()


def plan_of(proportions: np.ndarray) -> PhasePlan:
    shares = LeafShares.of(proportions)
    return PhasePlan(shares=lambda: shares)


def total_variation(proportions: np.ndarray, rows: np.ndarray) -> float:
    return 0.5 * float(np.abs(np.bincount(rows, minlength=len(proportions)) / len(rows) - proportions).sum())


@pytest.mark.parametrize("num_drawn", [3000, 4096])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixture_error_over_the_first_hundred_thousand_samples_is_below_a_hundredth(num_drawn: int, seed: int) -> None:
    proportions, windows = skewed(4096, num_drawn), np.full(4096, 50)
    ids = SampleOrder(np.arange(4096), windows, [(proportions, None)], seed=seed).window_ids(np.arange(100_000))
    assert total_variation(proportions, leaf_rows(ids, windows)) <= 0.01


def test_draws_over_many_blocks_stay_within_a_few_of_their_share() -> None:
    proportions = skewed(2000, 2000)
    plan, entries = plan_of(proportions), np.arange(2000)
    offsets = draws.block_offsets(3, 0, 0, 400)
    totals = plan.draws_in_blocks(entries, 1 << 18, np.sort(offsets))
    assert (totals == sum(plan.draws_in_blocks(entries, 1 << 18, offset) for offset in offsets[:, None])).all()
    assert np.abs(totals - 400 * (1 << 18) * proportions).max() < 4


def test_multinomial_draws_pass_a_chi_square_test_and_are_not_evened_out() -> None:
    from scipy.stats import chi2

    proportions, windows = np.arange(1, 65) / np.arange(1, 65).sum(), np.full(64, 1000)
    statistics = []
    for seed in range(40):
        made = SampleOrder(np.arange(64), windows, [(proportions, None)], seed=seed, draw="multinomial")
        counts = np.bincount(leaf_rows(made.window_ids(np.arange(20_000)), windows), minlength=64)
        statistics.append(float((((counts - 20_000 * proportions) ** 2) / (20_000 * proportions)).sum()))
    # The sum of 40 independent chi-squares with 63 degrees of freedom has 2,520: two-sided at 1e-4.
    assert chi2.ppf(5e-5, 63 * 40) < sum(statistics) < chi2.ppf(1 - 5e-5, 63 * 40)


def test_seeds_give_different_orders_and_equal_seeds_the_same() -> None:
    proportions, windows = skewed(64, 64), np.full(64, 100)

    def first(seed: int) -> np.ndarray:
        return SampleOrder(np.arange(64), windows, [(proportions, None)], seed=seed).window_ids(np.arange(1000))

    assert (first(7) == first(7)).all()
    assert (first(7) != first(8)).mean() > 0.9


def test_order_version_2_is_what_it_was() -> None:
    """Changing these numbers breaks every resume: it needs a new order_version."""
    proportions = np.array([0.5, 0.0, 0.2, 0.3])
    made = SampleOrder(
        np.array([1, 5, 6, 9]), np.array([7, 3, 100, 40]), [(proportions, 100), (np.ones(4) / 4, None)], seed=11
    )
    assert order.ORDER_VERSION == 2
    assert made.window_ids(np.array([0, 1, 2, 3, 50, 99, 100, 101, 10**6, 10**9])).tolist() == GOLDEN_IDS
    multinomial = SampleOrder(np.arange(3), np.array([5, 6, 7]), [(np.ones(3) / 3, None)], seed=1, draw="multinomial")
    assert multinomial.window_ids(np.arange(8)).tolist() == GOLDEN_MULTINOMIAL


def test_a_resume_far_into_a_run_makes_the_draws_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = BlockPlan.rows_of_places
    monkeypatch.setattr(
        BlockPlan, "rows_of_places", lambda self, plan, block: opened.append(block) or original(self, plan, block)
    )
    made = SampleOrder(np.arange(5000), np.full(5000, 10), [(skewed(5000, 5000), None)], seed=0)
    made.window_ids(np.arange(10**8, 10**8 + 10))
    assert opened == [10**8 >> 18]


@pytest.mark.parametrize("num_leaves", [1, 7, 100_000])
def test_every_draw_of_a_block_falls_where_the_fixed_point_edges_say(num_leaves: int) -> None:
    plan = plan_of(skewed(num_leaves, num_leaves))
    for draws_of_block, offset in ((1 << 18, 0), (1 << 18, (1 << 44) - 1), (1000, 123456789), (1, 1 << 43)):
        edges = plan.drawn_before_end(np.arange(-1, num_leaves), draws_of_block, offset)
        expected = np.repeat(np.arange(num_leaves), np.diff(edges))
        assert (plan.entries_of_draws(draws_of_block, offset) == expected).all()


def test_block_samples_beyond_the_fixed_point_range_are_refused() -> None:
    with pytest.raises(ValueError, match="block_samples must be 1 to 262144"):
        SampleOrder(np.arange(1), np.ones(1, int), [(np.ones(1), None)], seed=0, block_samples=1 << 19)


GOLDEN_IDS = [99, 5, 6, 0, 124, 137, 19, 6, 112, 112]
GOLDEN_MULTINOMIAL = [14, 10, 5, 1, 6, 7, 15, 16]


@given(orders(), st.data())
def test_a_phase_of_whole_blocks_is_the_beginning_of_an_open_one(made: tuple, data: st.DataObject) -> None:
    sample_order, windows, phases = made
    (proportions, _), (others, _) = phases[0], phases[-1]
    end = data.draw(st.integers(1, 300))

    def order_of(plans: list[PhasePlan]) -> SampleOrder:
        return SampleOrder(
            np.arange(len(windows)) * 3,
            windows,
            plans,
            seed=sample_order._seed,
            block_samples=sample_order._block_samples,
            num_lanes=sample_order._num_lanes,
        )

    first, second = LeafShares.of(proportions), LeafShares.of(others)
    generic = order_of([PhasePlan(shares=lambda: first)])
    ended = PhasePlan(shares=lambda: first, served=end)
    switched = order_of([ended, PhasePlan(shares=lambda: second, number=1, first_sample=end)])
    before, after = switched.window_ids(np.arange(end)), switched.window_ids(np.arange(end, end + 150))
    assert (before == generic.window_ids(np.arange(end))).all()
    # The cursors stand where the first phase left them: each leaf is read on, front to back.
    served = np.concatenate([before, after])
    first_window = np.cumsum(windows) - windows
    starts = draws.leaf_starts(sample_order._seed, np.arange(len(windows)) * 3, windows)
    for leaf in range(len(windows)):
        own = served[leaf_rows(served, windows) == leaf]
        assert (own == first_window[leaf] + (starts[leaf] + np.arange(len(own))) % windows[leaf]).all()
    assert (clone(switched).window_ids(np.arange(end, end + 150)) == after).all()
