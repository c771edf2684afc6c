"""Where the stream stands: one number, the samples over all ranks and passes that were delivered before it.

The process that trains keeps it. Nothing about it is inferred from what workers did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crisp_stream.errors import InputError
from crisp_stream.typed import whole_number

if TYPE_CHECKING:
    from crisp_stream.loading.serving import BatchSizes
    from crisp_stream.loading.stream import Stream


class Place:
    """The place of one dataset."""

    def __init__(self, stream: Stream, sizes: BatchSizes) -> None:
        self._stream, self._sizes = stream, sizes
        self.position = 0
        """Samples over all ranks and passes that were delivered."""
        self.began = 0
        """Position at which the last iteration began."""
        self._pass_start = 0
        """Position at which the pass began that was iterated last."""

    def stand_at(self, position: int) -> None:
        """Stand at a position, as if all before it had been delivered."""
        self.position = self.began = position
        whole = self._stream.pass_samples
        self._pass_start = 0 if whole is None else position // whole * whole

    def begin_iteration(self) -> int:
        """Begin an iteration here, or at the next pass where too little is left of this one; returns the position."""
        self.stand_at(self.without_rest(self.position))
        return self.position

    def delivered(self, position: int) -> int:
        """Take note that the batch at a position was delivered; returns that of the next."""
        self.position = self._sizes.after(position, self._stream.end_of_pass(position))
        self._stream.forget_before(self.position)
        return self.position

    def without_rest(self, position: int) -> int:
        """The end of the pass, where what is left of it is less than a batch of this topology; else the position."""
        end = self._stream.end_of_pass(position)
        return position if end is None or self._sizes.at(position, end) else end

    def of_samples(self, num_samples: int, *, from_beginning: bool, foreign: bool) -> int:
        """Position of a number of samples of the current pass; arguments and errors as of `MixtureDataset.state_dict`.

        With `foreign`, a DataLoader that does not say what it delivered has iterated.
        """
        count, end = whole_number(num_samples, "num_samples", least=0), self._stream.end_of_pass(self._pass_start)
        if count == 0 and self.position == end:
            return self.position
        if count == 0 and foreign and end is not None:
            raise InputError(
                "num_samples 0 is the beginning of this pass or of the next: a DataLoader does not say what it "
                "delivered. Iterate dataset.loader(num_workers=…)."
            )
        position = count + (self._pass_start if from_beginning else self.began)
        if end is not None and position > end:
            raise InputError(
                f"num_samples counts those of one pass, which has {self._stream.pass_samples:,}; got {count:,}."
            )
        if not foreign and position > self.position:
            raise InputError(
                f"num_samples must be at most what was delivered in this pass, {count - position + self.position:,}; "
                f"got {count:,}. To stand at another sample: skip_to."
            )
        return position if position == end else self.without_rest(position)
