"""Phases that draw from a window selection: what is drawn, in which order, after what, and from where it resumes."""

from __future__ import annotations

import pickle
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import InputError, ResumeError
from crisp_stream.format.dataset import Dataset
from crisp_stream.histograms.mixture import Draw
from crisp_stream.histograms.window_selection import WindowSelection
from crisp_stream.loading import stream as mixture_over_time
from crisp_stream.loading.continuation import phases_of_state
from crisp_stream.loading.reader import ReadOptions
from crisp_stream.loading.runs import MAX_GAP, RunPlan
from crisp_stream.loading.stream import Stream
from crisp_stream.order.blocks import BLOCK_SAMPLES
from crisp_stream.order.draws import leaf_starts
from tests.support.mixtures import histogram_of
from tests.support.seaweed import S3Server
from tests.support.selections import LEAVES, random_selection, select
from tests.support.synthetic import upload, write_synthetic_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("drawing") / "data", LEAVES, windows_per_shard=90)


@pytest.fixture(scope="module")
def chosen(dataset: Dataset) -> WindowSelection:
    return random_selection(dataset, 0.3)


def drawn(dataset: Dataset, mixture: Mixture, start: int, stop: int, seed: int = 3) -> np.ndarray:
    """Window ids of some positions of the first pass."""
    return Stream(dataset, mixture, seed=seed).order.window_ids(np.arange(start, stop))


def windows_of(loader: object, batches: int | None = None) -> list[list[int]]:
    return [batch["window"].tolist() for batch in islice(loader, batches)]  # pyright: ignore[reportArgumentType]


def reference(dataset: Dataset, mixture: Mixture, leaves: np.ndarray, seed: int) -> list[int]:
    """The windows of a mixture by FORMAT.md's words, sample by sample, given the leaf of each sample."""
    starts = leaf_starts(seed, dataset.leaves, dataset.windows_per_leaf)
    by_histogram: dict[int, int] = defaultdict(int)
    by_selection: dict[tuple[str, int], int] = defaultdict(int)
    begins: dict[str, dict[int, int]] = {}
    windows, at = [], 0
    for phase in mixture.phases:
        name = None if phase.windows is None else phase.windows.fingerprint
        if name is not None and name not in begins:
            begins[name] = dict(by_histogram)
        members = set() if phase.windows is None else set(phase.windows.windows.tolist())
        for leaf in leaves[at : at + (phase.samples or 0)].tolist():
            row = int(np.searchsorted(dataset.leaves, leaf))
            first, count = int(dataset.first_window_per_leaf[row]), int(dataset.windows_per_leaf[row])
            if name is None:
                windows.append(first + (int(starts[row]) + by_histogram[leaf]) % count)
                by_histogram[leaf] += 1
            else:
                stood = first + (int(starts[row]) + begins[name].get(leaf, 0)) % count
                ring = [stood + step - count * (stood + step >= first + count) for step in range(count)]
                ring = [window for window in ring if window in members]
                windows.append(ring[by_selection[name, leaf] % len(ring)])
                by_selection[name, leaf] += 1
        at += phase.samples or 0
    return windows


@settings(max_examples=40)
@given(
    kinds=st.lists(st.tuples(st.sampled_from(["base", "task", "a", "b"]), st.integers(1, 400)), min_size=1, max_size=5),
    draw=st.sampled_from(["systematic", "multinomial"]),
    share=st.floats(0.02, 1),
    seed=st.integers(0, 1 << 40),
)
def test_any_phases_draw_what_the_format_says(
    dataset: Dataset, kinds: list[tuple[str, int]], draw: Draw, share: float, seed: int
) -> None:
    selections = {"a": random_selection(dataset, share, 1), "b": random_selection(dataset, 0.2, 2)}
    histograms = {"base": Histogram.base(dataset.manifest), "task": histogram_of(dataset, {0: 0.5, 3: 0.3, 12: 0.2})}
    phases = [
        Phase.of_windows(selections[kind], dataset, samples) if kind in selections else Phase(histograms[kind], samples)
        for kind, samples in kinds
    ]
    mixture = Mixture(phases, draw=draw)
    found = drawn(dataset, mixture, 0, mixture.num_samples or 0, seed)
    assert found.tolist() == reference(dataset, mixture, dataset.leaf_of_windows(found), seed)
    at = 0
    for phase in phases:
        own = found[at : at + (phase.samples or 0)]
        assert phase.windows is None or np.isin(own, phase.windows.windows).all()
        at += len(own)


@pytest.mark.parametrize("draw", ["systematic", "multinomial"])
def test_an_open_selection_is_drawn_uniformly(dataset: Dataset, chosen: WindowSelection, draw: Draw) -> None:
    mixture = Mixture([Phase.of_windows(chosen, dataset)], draw=draw)
    samples = 2 * BLOCK_SAMPLES + 1000
    times = np.bincount(drawn(dataset, mixture, 0, samples), minlength=chosen.num_windows)
    assert times[~chosen.contains(0, chosen.num_windows)].sum() == 0
    expected = samples / chosen.num_selected
    spread = np.abs(times[chosen.windows] - expected).max()
    assert spread <= (2 if draw == "systematic" else 6 * expected**0.5)
    assert spread > 0.01


def test_the_phases_before_a_selection_are_served_as_without_it(dataset: Dataset, chosen: WindowSelection) -> None:
    base = Phase(Histogram.base(dataset.manifest), 400)
    with_selection = Mixture([base, Phase.of_windows(chosen, dataset)])
    assert drawn(dataset, with_selection, 0, 400).tolist() == drawn(dataset, Mixture([base]), 0, 400).tolist()


def test_a_selection_does_not_read_again_what_the_corpus_phase_took(dataset: Dataset, chosen: WindowSelection) -> None:
    mixture = Mixture([Phase(Histogram.base(dataset.manifest), 240), Phase.of_windows(chosen, dataset)])
    before, after = drawn(dataset, mixture, 0, 240), drawn(dataset, mixture, 240, 400)
    assert np.isin(before, chosen.windows).sum() > 40
    assert len({*before.tolist(), *after.tolist()}) == 400


def test_resuming_at_any_batch_equals_the_uninterrupted_run_over_passes(
    dataset: Dataset, chosen: WindowSelection
) -> None:
    phases = [Phase(Histogram.base(dataset.manifest), 64), Phase.of_windows(chosen, dataset, 120)]
    mixture = Mixture([*phases, Phase(histogram_of(dataset, {0: 1.0}), 16)])

    def opened() -> MixtureDataset:
        return MixtureDataset(dataset.root, mixture, batch_size=8, seed=9, reading=ReadOptions(lookahead=16))

    whole = opened()
    batches = [windows_of(whole) for _ in range(12)]  # more than COUNTED_PHASES phases
    for number, batch in [(0, 0), (0, 8), (0, 13), (1, 3), (2, 24), (11, 9)]:
        running, resumed = opened(), opened()
        running.skip_to((25 * number + batch) * 8)
        resumed.load_state_dict(pickle.loads(pickle.dumps(running.state_dict())))
        assert windows_of(resumed) == batches[number][batch:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_any_kind_make_the_batches_of_one_process(
    dataset: Dataset, chosen: WindowSelection, context: str
) -> None:
    mixture = Mixture([Phase(Histogram.base(dataset.manifest), 40), Phase.of_windows(chosen, dataset, 400)])
    plain = windows_of(MixtureDataset(dataset.root, mixture, batch_size=8))
    made = MixtureDataset(dataset.root, mixture, batch_size=8)
    loader: Any = DataLoader(made, batch_size=None, num_workers=2, multiprocessing_context=context)
    assert windows_of(loader) == plain


def test_ranks_together_make_the_global_batches_of_one_process(
    dataset: Dataset, chosen: WindowSelection, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = Mixture([Phase.of_windows(chosen, dataset, 480)])
    one = windows_of(MixtureDataset(dataset.root, mixture, batch_size=12))
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    parts = []
    for rank in range(6):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(windows_of(MixtureDataset(dataset.root, mixture, batch_size=2)))
    together = [sorted(window for part in parts for window in part[number]) for number in range(40)]
    assert together == [sorted(batch) for batch in one]


def test_a_mixture_that_was_changed_while_running_resumes(dataset: Dataset, chosen: WindowSelection) -> None:
    mixture = Mixture([Phase(Histogram.base(dataset.manifest), 80), Phase.of_windows(chosen, dataset, 160)])

    def opened() -> MixtureDataset:
        return MixtureDataset(dataset.root, mixture, batch_size=8, reading=ReadOptions(lookahead=8))

    stream = opened()
    iterator = iter(stream)
    served = windows_of(iterator, 14)
    at = stream.set_proportions(histogram_of(dataset, {15: 1.0}))
    served += windows_of(iterator)
    assert set(dataset.leaf_of_windows(np.concatenate(served[at // 8 :]))) == {15}
    for batch in (9, 12, 25):
        resumed = opened()
        resumed.load_state_dict(pickle.loads(pickle.dumps(stream.state_dict(batch * 8))))
        assert windows_of(resumed) == served[batch:]
    second_pass = windows_of(stream)  # its phases are as they were
    resumed = opened()
    resumed.load_state_dict(stream.state_dict(11 * 8))
    assert windows_of(resumed) == second_pass[11:]


def test_a_checkpoint_of_the_corpus_is_continued_by_a_selection(dataset: Dataset, chosen: WindowSelection) -> None:
    def opened(*phases: Phase) -> MixtureDataset:
        return MixtureDataset(dataset.root, Mixture(phases), batch_size=8, seed=3, reading=ReadOptions(lookahead=16))

    base = Histogram.base(dataset.manifest)
    generic = opened(Phase(base))
    before = windows_of(generic, 20)
    saved = generic.state_dict(160)
    specialist = opened(*phases_of_state(saved, dataset, until=160), Phase.of_windows(chosen, dataset))
    specialist.load_state_dict(specialist.continued_state(saved))
    after = windows_of(specialist, 30)
    one_run = opened(Phase(base, 160), Phase.of_windows(chosen, dataset))
    assert windows_of(one_run, 50) == before + after

    saved = specialist.state_dict(400)
    with pytest.raises(ResumeError, match=r"phase 2 was drawn from the window selection .* mixture.phases.0.windows=F"):
        phases_of_state(saved, dataset, until=400)
    wrong = random_selection(dataset, 0.3, 7)
    with pytest.raises(
        ResumeError, match=rf"phase 2 was drawn from .*; named: {wrong.fingerprint[:12]}. Name its file"
    ):
        phases_of_state(saved, dataset, until=400, selections=[wrong])
    with pytest.raises(ResumeError, match=rf"no phase up to sample 160 was .* {chosen.fingerprint[:12]}. Leave it out"):
        phases_of_state(saved, dataset, until=160, selections=[chosen])
    again = opened(*phases_of_state(saved, dataset, until=400, selections=[chosen]), Phase(base))
    again.load_state_dict(again.continued_state(saved))
    next_windows = windows_of(again, 5)
    further = opened(*one_run.mixture.phases[:1], Phase.of_windows(chosen, dataset, 240), Phase(base))
    further.load_state_dict(further.continued_state(saved))
    assert windows_of(further, 5) == next_windows
    assert len(np.unique(np.concatenate([*before, *next_windows]))) == 200
    other = Phase.of_windows(random_selection(dataset, 0.3, 7), dataset, 240)
    with pytest.raises(ResumeError, match=r"phase 2 was drawn from the window selection .*, now from the window"):
        opened(*one_run.mixture.phases[:1], other, Phase(base)).continued_state(saved)
    unselected = Phase(base, 240)
    with pytest.raises(ResumeError, match=r"phase 2 was drawn from the window selection .*, now from all windows"):
        opened(*one_run.mixture.phases[:1], unselected, Phase(base)).continued_state(saved)


def test_resuming_with_another_selection_is_refused(dataset: Dataset, chosen: WindowSelection) -> None:
    def opened(selection: WindowSelection) -> MixtureDataset:
        return MixtureDataset(dataset.root, Mixture([Phase.of_windows(selection, dataset)]), batch_size=4)

    running = opened(chosen)
    running.skip_to(8)
    state = running.state_dict()
    [component] = state["phases"][0]["components"]
    assert component["windows"] == chosen.fingerprint
    with pytest.raises(ResumeError, match="cannot resume: mixture was"):
        opened(random_selection(dataset, 0.3, 5)).load_state_dict(state)
    opened(random_selection(dataset, 0.3)).load_state_dict(state)


def test_what_does_not_fit_is_refused(dataset: Dataset, chosen: WindowSelection, tmp_path: Path) -> None:
    other = write_synthetic_dataset(tmp_path, {0: 5, 3: 9})
    with pytest.raises(InputError, match="was made for dataset"):
        Phase.of_windows(chosen, other)
    phase = Phase.of_windows(chosen, dataset)
    with pytest.raises(InputError, match="phase 1: the window selection was made for dataset"):
        Stream(other, Mixture([phase]), seed=0)
    limited = Phase.of_windows(chosen, dataset, 3 * chosen.num_selected, max_repeats=3)
    Stream(dataset, Mixture([limited]), seed=0)
    limited = Phase.of_windows(chosen, dataset, 3 * chosen.num_selected, max_repeats=2.9, on_excess="cap")
    with pytest.raises(
        InputError,
        match=r"phase 1: .* than max_repeats 2.9 times .* selected windows repeat each 3 times. Use .* select more",
    ):
        Stream(dataset, Mixture([limited]), seed=0)


def test_a_large_table_is_one_file_for_all_processes(
    dataset: Dataset, chosen: WindowSelection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = Mixture([Phase(Histogram.base(dataset.manifest), 100), Phase.of_windows(chosen, dataset)])
    expected = drawn(dataset, mixture, 0, 700).tolist()
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(mixture_over_time, "SHARED_ROWS", 4)
    assert drawn(dataset, mixture, 0, 700).tolist() == expected
    assert len(list(tmp_path.glob("*/tables/draw-*.arrays"))) == 1


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_runs_of_a_selection_have_short_gaps_and_begin_and_end_with_what_is_selected(
    dataset: Dataset, share: float
) -> None:
    selection = random_selection(dataset, share, 4)
    order = Stream(dataset, Mixture([Phase.of_windows(selection, dataset)]), seed=1).order
    ids, rows = order.draws(np.arange(selection.num_selected))
    plan = RunPlan(dataset, order)
    _, first, count = plan.runs(ids, rows)
    assert ((first <= ids) & (ids < first + count)).all()
    assert (plan.leaves[rows] == dataset.leaf_of_windows(ids)).all()
    borders = {*dataset.first_window_per_shard.tolist(), dataset.manifest.num_windows}
    read, members = [], set(selection.windows.tolist())
    for begin, size in sorted(set(zip(first.tolist(), count.tolist(), strict=True))):
        run = range(begin, begin + size)
        assert begin // 64 == (begin + size - 1) // 64
        assert begin in members or begin in borders
        assert run[-1] in members or begin + size in borders
        gaps = np.diff([window for window in run if window in members])
        assert gaps.max(initial=0) <= MAX_GAP + 1
        read += run
    assert len(read) == len(set(read))


def test_a_remote_selection_reads_little_more_than_it_serves(dataset: Dataset, s3: S3Server, tmp_path: Path) -> None:
    url = upload(dataset, s3.fresh_prefix())
    selection = select(dataset, np.arange(dataset.manifest.num_windows) % 40 == 0)
    mixture = Mixture([Phase(Histogram.base(dataset.manifest), 48), Phase.of_windows(selection, dataset, 96)])
    stream = MixtureDataset(url, mixture, batch_size=8, reading=ReadOptions(local=tmp_path))
    found = np.concatenate([batch["window"].numpy() for batch in stream])
    assert found.tolist() == drawn(dataset, mixture, 0, 144, seed=0).tolist()
    assert selection.num_selected == 24
    assert stream.bytes_read <= (48 + 24) * dataset.manifest.sample_bytes
