"""How many tokens of text the windows of a dataset hold, and those of a selection.

With packing `joined` all windows are full. With packing `document` the last window of each document is a tail, of one
token to a whole window, and of short documents there is nothing else. What scores windows by sums over their text, or
by embeddings of a few words, may prefer tails; so every selection can have a floor, and its report says what lengths it
selected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.inspection.window_reading import ShardPart, first_window, opened, parts_of, read_tokens
from crisp_stream.loading.reader import read_windows
from crisp_stream.processes import Log, Progress, map_unordered

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.window_selection import WindowSelection

SAMPLE = 2000
"""Windows that the lengths of a selection, and of the dataset, are reported from at most."""
_SHORT_SHARE, _SHORT_OF_SELECTED = 0.25, 0.5


def text_tokens(tokens: NDArray[Any], eot_id: int) -> NDArray[np.int64]:
    """Count the tokens before the padding, [num_windows]; an end-of-text token at the end is padding, too.

    Args:
        tokens: [num_windows, window_tokens].
    """
    is_text = tokens != eot_id
    last = tokens.shape[1] - is_text[:, ::-1].argmax(axis=1)
    return np.where(is_text.any(axis=1), last, 0).astype(np.int64)


def window_lengths(dataset: Dataset, *, processes: int, log: Log) -> NDArray[np.int64]:
    """Count the tokens of text in every window, [num_windows]; reads the whole dataset where its packing is document.

    Raises:
        CorruptDataError, StorageError: it cannot be read.
    """
    manifest = dataset.manifest
    lengths = np.full(manifest.num_windows, manifest.window_tokens, np.int64)
    if manifest.packing == "joined":
        return lengths
    progress = Progress("lengths", "windows", log=log, total=len(lengths))
    for first, of_part in map_unordered(_part_lengths, parts_of(dataset), processes=processes):
        lengths[first : first + len(of_part)] = of_part
        progress.add(len(of_part))
    progress.finish()
    return lengths


def _part_lengths(part: ShardPart) -> tuple[int, NDArray[np.int64]]:
    dataset, _ = opened(part.dataset)
    return first_window(dataset, part), text_tokens(read_tokens(dataset, part), dataset.manifest.tokenizer.eot_id)


def at_least(lengths: NDArray[np.int64], min_tokens: int, dataset: Dataset) -> NDArray[np.bool_]:
    """Which windows have so many tokens, [num_windows]. Raises InputError: none, or a number out of range."""
    most = dataset.manifest.window_tokens
    if not 0 <= min_tokens <= most:
        raise InputError(f"min tokens: must be 0 to {most}, the length of a window, got {min_tokens}. Choose fewer.")
    long_enough = lengths >= min_tokens
    if not long_enough.any():
        raise InputError(f"{dataset.root}: no window has {min_tokens} tokens, got at most {lengths.max()}. Use fewer.")
    return long_enough


def length_lines(selection: WindowSelection, dataset: Dataset) -> list[str]:
    """Say how long the selected windows are, beside those of the dataset; nothing where all windows are full."""
    if dataset.manifest.packing == "joined":
        return []
    rng, window_tokens = np.random.default_rng(0), dataset.manifest.window_tokens
    found: dict[str, NDArray[np.int64]] = {}
    for name, windows in (("selected", selection.windows), ("dataset", np.arange(selection.num_windows))):
        drawn = np.sort(rng.choice(windows, min(SAMPLE, len(windows)), replace=False))
        tokens = read_windows(dataset, drawn)["tokens"]
        found[name] = text_tokens(tokens, dataset.manifest.tokenizer.eot_id)
    lines = [f"tokens of text in the windows of {window_tokens:,}, at most {SAMPLE:,} windows drawn of each:"]
    for name, lengths in found.items():
        shares = ", ".join(f"{share:.0%} {np.quantile(lengths, share):,.0f}" for share in (0.05, 0.25, 0.5, 0.75))
        lines.append(f"  {name:<9} quantiles {shares}; full {(lengths >= window_tokens - 1).mean():.0%}")
    short = {name: float((lengths < _SHORT_SHARE * window_tokens).mean()) for name, lengths in found.items()}
    if short["selected"] > max(_SHORT_OF_SELECTED, short["dataset"]):
        lines.append(
            f"warning: {short['selected']:.0%} of the selected windows hold less than {_SHORT_SHARE:.0%} of a window, "
            f"of the dataset {short['dataset']:.0%}. Set a floor with --min-tokens."
        )
    return lines
