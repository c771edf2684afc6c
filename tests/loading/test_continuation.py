"""Continued pretraining: another mixture goes on where a checkpoint's mixture stood."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from crisp_stream import Histogram, Mixture, MixtureDataset, Phase
from crisp_stream.errors import CrispError, ResumeError
from crisp_stream.format.dataset import Dataset
from crisp_stream.loading import continuation
from crisp_stream.loading.continuation import phases_of_state
from crisp_stream.loading.reader import ReadOptions
from tests.support.synthetic import write_synthetic_dataset

BATCH = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_synthetic_dataset(tmp_path_factory.mktemp("mixed"), {0: 300, 3: 50, 5: 70, 15: 200})


@pytest.fixture(scope="module")
def task(dataset: Dataset) -> Histogram:
    return Histogram.from_leaves([0, 0, 3, 15], dataset.tree, 2)


def opened(dataset: Dataset, *phases: Phase, seed: int = 3, draw: Any = "systematic") -> MixtureDataset:
    return MixtureDataset(
        dataset.root,
        Mixture(phases, draw=draw),
        batch_size=BATCH,
        seed=seed,
        reading=ReadOptions(lookahead=16),
    )


def windows(stream: MixtureDataset, batches: int) -> list[list[int]]:
    return [batch["window"].tolist() for batch in islice(stream, batches)]


@pytest.mark.parametrize("draw", ["systematic", "multinomial"])
@pytest.mark.parametrize("batches", [1, 5, 23])
def test_a_checkpoint_of_the_corpus_and_a_switch_within_one_run_give_the_same_batches(
    dataset: Dataset, task: Histogram, batches: int, draw: Any
) -> None:
    base = Histogram.base(dataset.manifest)
    generic = opened(dataset, Phase(base), draw=draw)
    before = windows(generic, batches)
    saved = generic.state_dict(batches * BATCH)

    phases = phases_of_state(saved, dataset, until=saved["samples"])
    specialist = opened(dataset, *phases, Phase(task), draw=draw)
    specialist.load_state_dict(specialist.continued_state(saved))
    after = windows(specialist, 20)

    one_run = opened(dataset, Phase(base, batches * BATCH), Phase(task), draw=draw)
    assert windows(one_run, batches + 20) == before + after
    assert specialist.mixture.fingerprint == one_run.mixture.fingerprint


def test_the_specialist_phase_does_not_read_again_what_the_generic_phase_took(
    dataset: Dataset, task: Histogram
) -> None:
    generic = opened(dataset, Phase(Histogram.base(dataset.manifest)))
    before = {window for batch in windows(generic, 25) for window in batch}
    saved = generic.state_dict(25 * BATCH)
    specialist = opened(dataset, *phases_of_state(saved, dataset, until=25 * BATCH), Phase(task))
    specialist.load_state_dict(specialist.continued_state(saved))
    after = np.array(windows(specialist, 4)).ravel()
    assert len(before) == 200
    assert before.isdisjoint(after.tolist())
    assert set(dataset.leaf_of_windows(after)) == {0, 3, 15}


def test_a_continued_run_can_be_continued_again_from_the_middle_of_its_second_phase(
    dataset: Dataset, task: Histogram
) -> None:
    base = Histogram.base(dataset.manifest)
    first = opened(dataset, Phase(base, 40), Phase(task))
    windows(first, 9)
    saved = first.state_dict(9 * BATCH)
    phases = phases_of_state(saved, dataset, until=9 * BATCH)
    assert [phase.samples for phase in phases] == [40, 32]
    again = opened(dataset, *phases, Phase(base))
    again.load_state_dict(again.continued_state(saved))
    expected = opened(dataset, Phase(base, 40), Phase(task, 32), Phase(base)).order()
    assert np.ravel(windows(again, 10)).tolist() == expected.window_ids(np.arange(72, 152)).tolist()


def test_a_limited_phase_is_continued_by_what_it_was_capped_to(dataset: Dataset, task: Histogram) -> None:
    capped = Phase(task, 300, max_repeats=1.1, on_excess="cap")
    first = opened(dataset, capped, Phase(task))
    before = windows(first, 6)
    saved = first.state_dict(6 * BATCH)
    plain = opened(dataset, Phase(task))
    windows(plain, 1)
    assert saved["phases"][0]["components"] != plain.state_dict(BATCH)["phases"][0]["components"]
    again = opened(dataset, *phases_of_state(saved, dataset, until=6 * BATCH), Phase(task))
    again.load_state_dict(again.continued_state(saved))
    assert before == windows(opened(dataset, *again.mixture.phases), 6)


def test_what_is_not_the_same_up_to_the_checkpoint_is_refused(dataset: Dataset, task: Histogram) -> None:
    base = Histogram.base(dataset.manifest)
    generic = opened(dataset, Phase(base))
    windows(generic, 6)
    saved = generic.state_dict(48)
    refused = {
        "phase 1 was drawn by another histogram": opened(dataset, Phase(task, 48), Phase(base)),
        "begun before sample 48: 1 in the checkpoint, 2 in this mixture": opened(dataset, Phase(base, 40), Phase(task)),
        "seed was 3, is 4": opened(dataset, Phase(base), seed=4),
    }
    for message, other in refused.items():
        with pytest.raises(ResumeError, match=message):
            other.continued_state(saved)
    with pytest.raises(ResumeError, match="the state does not say by which phases it was served"):
        generic.continued_state({key: value for key, value in saved.items() if key != "phases"})
    with pytest.raises(ResumeError, match="cannot resume: order_version was None, is 3"):
        generic.continued_state({})


def test_a_state_within_a_phase_with_an_end_is_continued_by_another_mixture(dataset: Dataset, task: Histogram) -> None:
    base = Histogram.base(dataset.manifest)
    ended = opened(dataset, Phase(base, 400))
    before, saved = windows(ended, 6), ended.state_dict(48)
    again = opened(dataset, *phases_of_state(saved, dataset, until=48), Phase(task))
    again.load_state_dict(again.continued_state(saved))
    assert before + windows(again, 9) == windows(opened(dataset, Phase(base, 48), Phase(task)), 15)
    [component] = saved["phases"][0]["components"]
    for wrong, message in (
        ({"histogram": "AAAA"}, "saved phase 1 is damaged"),
        ({"share": 2.0}, "share of a component must be above 0"),
        ({"source": "0" * 64}, "phase 1 was drawn from dataset 000000000000, which is not among the sources"),
    ):
        damaged = {**saved, "phases": [{"first_sample": 0, "components": [{**component, **wrong}]}]}
        with pytest.raises(CrispError, match=message):
            phases_of_state(damaged, dataset, until=48)
    with pytest.raises(ResumeError, match="the state does not say by which phases it was served"):
        phases_of_state({**saved, "phases": [{"first_sample": 0, "histogram": "AAAA"}]}, dataset, until=48)


def test_a_mixture_that_was_changed_while_running_does_not_say_its_phases(dataset: Dataset, task: Histogram) -> None:
    stream = opened(dataset, Phase(Histogram.base(dataset.manifest)))
    stream.set_proportions(task)
    windows(stream, 1)
    assert "phases" not in stream.state_dict(BATCH)


def test_a_state_of_many_phases_stays_small_and_says_which_histograms_it_lacks(
    dataset: Dataset, task: Histogram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuation, "_KEPT_NODES", 32)
    base = Histogram.base(dataset.manifest)
    phases = [Phase(base if number % 2 else task, 8) for number in range(40)]  # of 1 and 3 nodes
    stream = opened(dataset, *phases, Phase(base))
    windows(stream, 30)
    saved = stream.state_dict(30 * BATCH)
    assert [record["first_sample"] for record in saved["phases"]] == [8 * number for number in range(30)]
    texts = [component["histogram"] for record in saved["phases"] for component in record["components"]]
    assert sum(text.startswith("sha256:") for text in texts) == 30 - 16
    with pytest.raises(ResumeError, match="histograms of the last phases alone, and phase 1 is before"):
        phases_of_state(saved, dataset, until=30 * BATCH)
    again = opened(dataset, *phases[:30], Phase(task))  # named by their own histograms
    again.load_state_dict(again.continued_state(saved))
    expected = opened(dataset, *phases[:30], Phase(task)).order().window_ids(np.arange(240, 280))
    assert np.ravel(windows(again, 5)).tolist() == expected.tolist()
    other = opened(dataset, Phase(base, 8), *phases[1:30], Phase(task))
    with pytest.raises(ResumeError, match="phase 1 was drawn by another histogram"):
        other.continued_state(saved)
