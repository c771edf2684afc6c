"""Phases of several components: task text mixed in, several sources, selections within a histogram."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_stream import Component, Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import InputError, ResumeError
from crisp_stream.forecast.forecast import forecast
from crisp_stream.format.dataset import Dataset
from crisp_stream.format.sources import Sources
from crisp_stream.histograms.phase import Shape
from crisp_stream.loading import stream as mixture_over_time
from crisp_stream.loading.reader import ReadOptions
from crisp_stream.loading.stream import Stream
from crisp_stream.order.blocks import Blocks
from tests.support.book import order_by_the_book
from tests.support.mixtures import histogram_of
from tests.support.seaweed import S3Server
from tests.support.selections import random_selection, select
from tests.support.synthetic import upload, write_synthetic_dataset

CORPUS = {0: 300, 1: 64, 2: 65, 3: 7, 5: 1, 6: 200, 9: 130, 12: 63, 13: 40, 15: 90}
TASK = {0: 9, 1: 4, 3: 30}
SEED = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("components") / "corpus", CORPUS, windows_per_shard=90)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Another tree, and windows of which some stand in leaves of the same id."""
    root = tmp_path_factory.mktemp("components") / "task"
    return write_synthetic_dataset(root, TASK, arity=2, depth=2, seed=1, windows_per_shard=11)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("components") / "more", {2: 50, 7: 8}, seed=2)


def base(dataset: Dataset, **options: object) -> Component:
    return Component(Histogram.base(dataset.manifest), **options)  # pyright: ignore[reportArgumentType]


def mixed(corpus: Dataset, task: Dataset, samples: int | None = None, share: float = 0.05) -> Mixture:
    histogram = histogram_of(corpus, {0: 0.5, 3: 0.2, 6: 0.3})
    parts = [Component(histogram, share=1 - share, source="corpus"), base(task, share=share, source="task")]
    return Mixture([Phase(parts, samples)])


def drawn(data: object, mixture: Mixture, start: int, stop: int) -> np.ndarray:
    """Window numbers of some positions."""
    stream = Stream(data, mixture, seed=SEED)  # pyright: ignore[reportArgumentType]
    stream.reach(stop - 1)
    return stream.order.window_ids(np.arange(start, stop))


def taken(dataset: MixtureDataset, batches: int) -> list[tuple[int, int]]:
    """(source, window) of the samples of some batches."""
    found: list[tuple[int, int]] = []
    for batch in islice(dataset.loader(), batches):
        found += zip(batch["source"].tolist(), batch["window"].tolist(), strict=True)
    return found


def test_a_task_gets_its_share_and_its_windows_repeat_equally_often(corpus: Dataset, task: Dataset) -> None:
    numbers = drawn({"corpus": corpus, "task": task}, mixed(corpus, task), 0, 100_000)
    of_task = numbers[numbers >= corpus.manifest.num_windows] - corpus.manifest.num_windows
    assert abs(len(of_task) / len(numbers) - 0.05) < 1e-4
    times = np.bincount(of_task, minlength=task.manifest.num_windows)
    per_leaf = np.split(times, task.first_window_per_leaf[1:])
    assert all(leaf.max() - leaf.min() <= 1 for leaf in per_leaf)
    assert times.max() - times.min() <= 2  # leaves differ by what their shares are rounded to
    batches = (numbers >= corpus.manifest.num_windows).reshape(-1, 100).sum(axis=1)
    assert batches.min() >= 1
    assert batches.max() <= 9  # spread over the stream, not in lumps


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_the_order_is_that_of_format_md(corpus: Dataset, task: Dataset, data: st.DataObject) -> None:
    sources = {"corpus": corpus, "task": task}
    phases = []
    for samples in data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=3)):
        weights = {leaf: float(data.draw(st.integers(0, 4))) for leaf in (0, 3, 6, 13)}
        weights[0] += 1
        share = data.draw(st.sampled_from([0.05, 0.3, 0.9]))
        parts = [
            Component(histogram_of(corpus, weights), share=0.6 * (1 - share), source="corpus"),
            base(corpus, share=0.4 * (1 - share), source="corpus"),
            base(task, share=share, source="task"),
        ]
        phases.append(Phase(parts, samples))
    mixture = Mixture(phases)
    rows = [corpus.leaves.tolist(), (task.leaves.astype(np.int64) + (1 << 32)).tolist()]
    windows = [*corpus.windows_per_leaf.tolist(), *task.windows_per_leaf.tolist()]
    book = []
    for phase in phases:
        proportions = [np.zeros(len(corpus.leaves)), np.zeros(len(task.leaves))]
        for component in phase.components:
            at = 1 if component.source == "task" else 0
            spread, _ = component.histogram.expand([corpus, task][at].leaves, [corpus, task][at].windows_per_leaf)
            proportions[at] += component.share * spread / spread.sum()
        book.append((np.concatenate(proportions), phase.samples))
    expected = order_by_the_book([*rows[0], *rows[1]], windows, book, Blocks(seed=SEED))
    assert drawn(sources, mixture, 0, mixture.num_samples or 0).tolist() == expected


def test_components_of_one_source_share_its_cursors(corpus: Dataset) -> None:
    first, second = histogram_of(corpus, {0: 1, 6: 1}), histogram_of(corpus, {0: 1, 9: 1})
    together = Mixture([Phase([Component(first, share=0.5), Component(second, share=0.5)])])
    averaged = Mixture([Phase(Histogram.average([first, second]))])
    numbers = drawn(corpus, together, 0, 400)
    assert numbers.tolist() == drawn(corpus, averaged, 0, 400).tolist()
    assert len(np.unique(numbers)) == 400  # of 300 + 200 + 130: none comes twice


def test_one_component_is_the_stream_of_its_histogram(corpus: Dataset) -> None:
    histogram = histogram_of(corpus, {0: 0.5, 3: 0.2, 6: 0.3})
    alone = Mixture.from_histogram(histogram)
    same = Mixture([Phase([Component(histogram)])])
    assert same.fingerprint == alone.fingerprint
    named = Mixture([Phase([Component(histogram, source="corpus")])])
    expected = drawn(corpus, alone, 0, 500).tolist()
    assert drawn({"corpus": corpus}, named, 0, 500).tolist() == expected
    assert drawn({"corpus": corpus}, alone, 0, 500).tolist() == expected


def test_a_histogram_over_selected_windows_alone(corpus: Dataset) -> None:
    selection = random_selection(corpus, 0.3)
    histogram = histogram_of(corpus, {0: 0.5, 2: 0.5}, level=1)  # nodes 0 and 2: leaves 0 to 3, and 9
    mixture = Mixture([Phase([Component(histogram, windows=selection)])])
    windows = drawn(corpus, mixture, 0, 3000)
    assert selection.contains(0, corpus.manifest.num_windows)[windows].all()
    nodes = corpus.leaf_of_windows(windows) // 4
    assert np.bincount(nodes, minlength=3)[[0, 2]].tolist() == [1500, 1500]
    times = np.bincount(windows, minlength=corpus.manifest.num_windows)
    for node in (0, 2):
        of_node = (corpus.leaf_of_windows(np.arange(len(times))) // 4 == node) & selection.contains(0, len(times))
        assert times[of_node].max() - times[of_node].min() <= 2
    whole = Mixture([Phase.of_windows(selection, corpus)])
    spread = Mixture([Phase([base(corpus, windows=selection)])])
    one, other = (drawn(corpus, each, 0, 2000) for each in (whole, spread))
    assert (np.bincount(one) - np.bincount(other)).tolist() == [0] * len(np.bincount(one))


def test_mass_on_clusters_without_selected_windows_is_reported(
    corpus: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    selection = random_selection(corpus, 0.3)  # none of leaf 6
    some = Component(histogram_of(corpus, {0: 0.97, 6: 0.03}), windows=selection)
    proportions = Mixture([Phase([some])]).proportions_of_phase(0, corpus)
    assert proportions[corpus.leaves == 0].tolist() == [1.0]
    assert "phase 1: 3.0% of the histogram stands on 1 clusters of level 2 without selected windows" in caplog.text
    much = Component(histogram_of(corpus, {0: 0.5, 6: 0.5}), windows=selection)
    with pytest.raises(InputError, match=r"50\.0% .* the limit is 5\.0%\. Use a coarser level, or select more windows"):
        Stream(corpus, Mixture([Phase([much])]), seed=0)
    with pytest.raises(InputError, match="without selected windows"):
        Mixture([Phase([much])]).check(corpus)


def test_two_selections_and_the_rest_in_one_phase(corpus: Dataset) -> None:
    first, second = random_selection(corpus, 0.3), random_selection(corpus, 0.2, 7)
    parts = [
        base(corpus, share=0.2, windows=first),
        Component(histogram_of(corpus, {0: 1, 13: 1}), share=0.5, windows=second),
        base(corpus, share=0.3),
    ]
    mixture = Mixture([Phase(histogram_of(corpus, {0: 1}), 70), Phase(parts, 1000), Phase(parts[0].histogram, 50)])
    stream = Stream(corpus, mixture, seed=SEED)
    numbers, rows = stream.order.draws(np.arange(1120))
    part_of = stream.table.part_of(rows)
    assert np.abs(np.bincount(part_of[70:1070], minlength=3) - [300, 200, 500]).max() <= 4  # in part of a block
    for part, selection in ((1, first), (2, second)):
        assert selection.contains(0, corpus.manifest.num_windows)[numbers[part_of == part]].all()
    counted = forecast(corpus, mixture, seed=SEED)
    served = np.bincount(numbers, minlength=corpus.manifest.num_windows)
    assert counted.windows_served == int((served > 0).sum())
    times = np.bincount(served)[1:]
    found = {one.least: one.windows for one in counted.distribution if one.least}
    assert [found.get(number, 0) for number in range(1, len(times) + 1)] == times.tolist()
    assert counted.phases[1].components == 3
    assert "3 components" in counted.table()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_say_the_source_and_resume_anywhere(corpus: Dataset, task: Dataset, workers: int) -> None:
    sources = {"corpus": corpus, "task": task}

    def opened(batch_size: int = 10) -> MixtureDataset:
        return MixtureDataset(sources, mixed(corpus, task, 600, 0.25), batch_size=batch_size, seed=SEED)

    dataset = opened()
    expected = drawn(sources, dataset.mixture, 0, 600)
    source, window = Sources(sources).split(expected)
    found = list(dataset.loader(workers))
    assert [value for batch in found for value in batch["source"].tolist()] == source.tolist()
    assert [value for batch in found for value in batch["window"].tolist()] == window.tolist()
    for batch in found[:3]:
        for at in range(10):
            alone = dataset.window(int(batch["window"][at]), ["corpus", "task"][int(batch["source"][at])])
            assert all((alone[key][0] == batch[key][at]).all() for key in batch)
    running = opened()
    for _ in islice(running.loader(workers), 13):
        pass
    state = pickle.loads(pickle.dumps(running.state_dict()))
    assert state["sources"] == {name: each.manifest.fingerprint for name, each in sources.items()}
    continued = opened(5)
    continued.load_state_dict(state)
    rest = [value for batch in continued.loader(2 - workers) for value in batch["window"].tolist()]
    assert rest == window[130:].tolist()
    assert "corpus" in repr(running)


def test_changes_take_components_and_are_part_of_the_state(corpus: Dataset, task: Dataset) -> None:
    sources, selection = {"corpus": corpus, "task": task}, random_selection(corpus, 0.3)
    tail = Phase([base(corpus, source="corpus", share=1.0, windows=selection)], 10)
    first = Phase(mixed(corpus, task).phases[0].components, 2000)
    mixture = Mixture([first, tail])

    def opened() -> MixtureDataset:
        return MixtureDataset(sources, mixture, batch_size=10, seed=SEED, reading=ReadOptions(lookahead=20))

    changes: list[tuple[int, Sequence[Component] | Component]] = [
        (100, [base(task, share=0.5, source="task"), base(corpus, share=0.5, source="corpus", windows=selection)]),
        (300, base(task, source="task")),
    ]
    running = opened()
    for at, components in changes:
        assert running.set_proportions(components, at_sample=at) == at
    stream = Stream(sources, mixture, seed=SEED)
    for at, components in changes:
        stream.change(at, Phase(components).components)
    source, window = Sources(sources).split(stream.order.window_ids(np.arange(500)))
    assert np.bincount(source[100:300]).tolist() == [100, 100]
    assert source[300:].tolist() == [1] * 200
    seen = taken(running, 20)
    assert seen == list(zip(source[:200].tolist(), window[:200].tolist(), strict=True))
    continued = opened()
    continued.load_state_dict(running.state_dict())
    assert taken(continued, 30) == list(zip(source[200:].tolist(), window[200:].tolist(), strict=True))
    other = random_selection(corpus, 0.3, 9)
    for wrong, message in (
        (base(corpus, source="corpus", windows=other), "draws from window selections of the mixture alone"),
        (base(corpus), "source must be one of corpus, task, got none"),
        ([base(corpus, source="corpus", share=0.4), base(task, source="task", share=0.4)], "shares must sum to 1"),
    ):
        with pytest.raises(InputError, match=message):
            running.set_proportions(wrong)


def test_a_stream_goes_on_with_other_components_and_a_further_source(corpus: Dataset, task: Dataset) -> None:
    alone = MixtureDataset(corpus, Mixture([Phase(histogram_of(corpus, {0: 1, 6: 1}))]), batch_size=10, seed=SEED)
    first = [batch["window"].tolist() for batch in islice(alone.loader(), 20)]
    state = alone.state_dict()
    before = Phase([Component(histogram_of(corpus, {0: 1, 6: 1}), source="corpus")], 200)
    after = Phase(
        [Component(histogram_of(corpus, {0: 1}), share=0.5, source="corpus"), base(task, share=0.5, source="task")]
    )
    both = MixtureDataset({"corpus": corpus, "task": task}, Mixture([before, after]), batch_size=10, seed=SEED)
    both.load_state_dict(both.continued_state(state))
    served = [window for batch in first for window in batch]
    served += [window for source, window in taken(both, 38) if source == 0]
    of_leaf = [window for window in served if window < 300]
    assert len(of_leaf) == 100 + 190
    assert len(set(of_leaf)) == len(of_leaf)  # the cursor goes on: no window of the leaf comes twice
    swapped = MixtureDataset({"task": task, "corpus": corpus}, Mixture([before, after]), batch_size=10, seed=SEED)
    with pytest.raises(ResumeError, match=f"dataset was {corpus.manifest.fingerprint[:12]}, is"):
        swapped.continued_state(state)
    other = Phase([Component(histogram_of(corpus, {0: 1}), source="corpus")], 200)
    changed = MixtureDataset({"corpus": corpus, "task": task}, Mixture([other, after]), batch_size=10, seed=SEED)
    with pytest.raises(ResumeError, match="phase 1 was drawn by another histogram"):
        changed.continued_state(state)


def test_a_state_of_other_sources_is_refused(corpus: Dataset, task: Dataset, more: Dataset) -> None:
    state = MixtureDataset({"corpus": corpus, "task": task}, mixed(corpus, task), batch_size=10).state_dict()
    replaced = {"corpus": corpus, "task": more}
    other = MixtureDataset(replaced, mixed(corpus, more), batch_size=10)
    with pytest.raises(ResumeError, match=rf"source task was {task.manifest.fingerprint[:12]}, is"):
        other.load_state_dict(state)


@pytest.mark.parametrize("way", ["error", "cap"])
def test_the_limit_of_a_component(corpus: Dataset, task: Dataset, way: str, caplog: pytest.LogCaptureFixture) -> None:
    """43 windows at most 3 times are 129 samples; a share of 0.25 of 1,000 would be 250."""
    limited = base(task, share=0.25, source="task", max_repeats=3, on_excess=way)
    parts = [
        base(corpus, share=0.5, source="corpus"),
        limited,
        Component(histogram_of(corpus, {0: 1}), share=0.25, source="corpus"),
    ]
    mixture, sources = Mixture([Phase(parts, 1000)]), {"corpus": corpus, "task": task}
    if way == "error":
        message = r"phase 1, component 2 \(source task\): .* 250 samples of 43 windows repeat each 5\.81 times"
        with pytest.raises(InputError, match=message):
            Stream(sources, mixture, seed=0)
        return
    numbers = drawn(sources, mixture, 0, 1000)
    of_task = numbers[numbers >= corpus.manifest.num_windows]
    assert len(of_task) == 129
    assert np.bincount(of_task - corpus.manifest.num_windows).max() == 3
    assert "48.40% of the component's samples that are left go to the other components in proportion" in caplog.text
    shares = [part.share for part in mixture.parts_of_phase(0, sources)]
    assert shares == pytest.approx([0.871 * 2 / 3, 0.129, 0.871 / 3])
    everything = [base(task, share=0.5, source="task", max_repeats=3, on_excess="cap")] * 2
    with pytest.raises(InputError, match=r"all its components are at their max_repeats, and 74\.20%"):
        Stream(sources, Mixture([Phase(everything, 1000)]), seed=0)


Wrong = Callable[[Dataset, Dataset], object]
WRONG: dict[str, tuple[Wrong, str]] = {
    "sum": (lambda a, b: Phase([base(a, share=0.5), base(a, share=0.4)]), r"shares must sum to 1, got 0\.5 \+ 0\.4"),
    "share": (lambda a, b: base(a, share=1.5), r"share of a component must be above 0 and at most 1, got 1\.5"),
    "none": (lambda a, b: Phase([]), "at least one component, got none"),
    "kind": (
        lambda a, b: Phase([Histogram.base(a.manifest)]),  # pyright: ignore[reportArgumentType]
        r"must be Component\(histogram, share=…\), got Histogram",
    ),
    "source": (
        lambda a, b: Stream({"corpus": a, "task": b}, Mixture([Phase([base(a, source="tsak")])]), seed=0),
        "phase 1: source must be one of corpus, task, got 'tsak'",
    ),
    "no name": (
        lambda a, b: Stream(a, Mixture([Phase([base(a, source="corpus")])]), seed=0),
        "there is one source, without a name, got 'corpus'",
    ),
    "tree": (
        lambda a, b: Stream({"corpus": a, "task": b}, Mixture([Phase([base(a, source="task")])]), seed=0),
        "the histogram was counted with tree",
    ),
    "name": (lambda a, b: Sources({"my corpus": a}), "a name must be made of letters"),
    "empty": (lambda a, b: Sources({}), "must be 1 to 256 datasets, got 0"),
    "selection": (
        lambda a, b: Stream(b, Mixture([Phase([base(b, windows=select(a, [1, 2]))])]), seed=0),
        "phase 1: the window selection was made for dataset",
    ),
    "limit": (lambda a, b: Phase([base(a, max_repeats=3)]), "max_repeats 3 needs the number of samples"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(corpus: Dataset, task: Dataset, name: str) -> None:
    act, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        act(corpus, task)


def test_sources_that_are_not_alike_are_refused_by_name(corpus: Dataset, tmp_path: Path) -> None:
    wide = write_synthetic_dataset(tmp_path / "wide", TASK, window_tokens=16)
    with pytest.raises(InputError, match=r"the same window length, but corpus has 32 \(.*\) and wide has 16"):
        MixtureDataset({"corpus": corpus, "wide": wide.root}, mixed(corpus, wide), batch_size=4)
    packed = write_synthetic_dataset(tmp_path / "packed", TASK, packing="document")
    with pytest.raises(InputError, match="the same packing, but corpus has joined"):
        Sources({"corpus": corpus, "packed": packed})


def test_a_large_table_is_one_file_for_all_processes(
    corpus: Dataset, task: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {"corpus": corpus, "task": task}
    expected = drawn(sources, mixed(corpus, task), 0, 700).tolist()
    monkeypatch.setenv("CRISP_STREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(mixture_over_time, "SHARED_ROWS", 4)
    assert drawn(sources, mixed(corpus, task), 0, 700).tolist() == expected
    assert len(list(tmp_path.glob("*/tables/draw-*.arrays"))) == 1
    assert len(list(tmp_path.glob("*/tables/plan-*.arrays"))) == 1


def test_sources_lie_on_different_stores(
    corpus: Dataset, task: Dataset, more: Dataset, s3: S3Server, tmp_path: Path
) -> None:
    remote = {"corpus": upload(corpus, s3.fresh_prefix()), "more": upload(more, s3.fresh_prefix())}
    parts = [
        base(corpus, share=0.5, source="corpus"),
        base(task, share=0.2, source="task"),
        base(more, share=0.3, source="more"),
    ]
    mixture = Mixture([Phase(parts, 400)])
    local = {"corpus": corpus, "task": task, "more": more}
    expected = drawn(local, mixture, 0, 400).tolist()
    roots = {"corpus": remote["corpus"], "task": task.root, "more": remote["more"]}
    reading = {name: ReadOptions(local=tmp_path / name, lookahead=60) for name in roots}
    dataset = MixtureDataset(roots, mixture, batch_size=20, seed=SEED, reading=reading)
    offsets = Sources(local).first_windows
    found = [int(offsets[source]) + window for source, window in taken(dataset, 20)]
    assert found == expected
    assert dataset.requests > 2
    for name, source in local.items():  # each in the cache of its own; a folder is read in place
        cached = [path.name for path in (tmp_path / name).glob("*")]
        assert cached == ([] if name == "task" else [source.manifest.fingerprint[:16]])
    with pytest.raises(
        InputError, match="reading: must have options for each of the sources corpus, task, more, got x"
    ):
        MixtureDataset(roots, mixture, batch_size=20, reading={"x": ReadOptions()})


@pytest.mark.parametrize(("shape", "shares"), [("linear", [1 / 6, 1 / 2, 5 / 6]), ("cosine", [0.067, 1 / 2, 0.933])])
def test_a_schedule_leads_from_one_list_of_components_to_another(
    corpus: Dataset, task: Dataset, shape: Shape, shares: list[float]
) -> None:
    sources = {"corpus": corpus, "task": task}
    start = [base(corpus, source="corpus")]
    end = [base(corpus, share=0.4, source="corpus"), base(task, share=0.6, source="task")]
    mixture = Mixture.schedule(start, end, samples=3001, steps=3, shape=shape)
    assert [phase.samples for phase in mixture.phases] == [1000, 1000, 1001]
    for phase, weight in zip(mixture.phases, shares, strict=True):
        of_corpus, of_task = phase.components
        assert of_task.share == pytest.approx(0.6 * weight, abs=1e-3)
        assert of_corpus.share == pytest.approx(1 - of_task.share)
    numbers = drawn(sources, mixture, 0, 3001)
    for number, weight in enumerate(shares):
        served = (numbers[1000 * number : 1000 * number + 1000] >= corpus.manifest.num_windows).mean()
        assert served == pytest.approx(0.6 * weight, abs=0.01)
    dataset = MixtureDataset(sources, mixture, batch_size=7, seed=SEED)
    dataset.skip_to(994)
    state = dataset.state_dict()
    continued = MixtureDataset(sources, mixture, batch_size=5, seed=SEED)
    continued.load_state_dict(state)
    source, window = Sources(sources).split(numbers[994:1494])
    assert taken(continued, 100) == list(zip(source.tolist(), window.tolist(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 2}, "steps of a schedule must be"),
        ({"shape": "round"}, "shape of a schedule must be linear or cosine"),
        ({"to": "limited"}, "components of a schedule have no max_repeats"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(corpus: Dataset, options: dict, message: str) -> None:
    limited = options.pop("to", None) and base(corpus, max_repeats=2)
    with pytest.raises(InputError, match=message):
        Mixture.schedule(base(corpus), limited or base(corpus), **{"samples": 100, "steps": 3, **options})


def test_the_code_of_the_page_runs(
    corpus: Dataset, task: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/train/components.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name, dataset in (("data", corpus), ("specialist", task)):
        (tmp_path / name).symlink_to(dataset.root)
    histogram_of(corpus, {0: 0.5, 3: 0.2, 6: 0.3}).save("task.parquet")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    made: dict[str, Any] = {}
    exec(code, made)
    assert made["batch"]["source"].shape == (16,)
    assert len(made["annealed"].phases) == 20
