"""What the answers of a file mean: indices that count from 0 or from 1, letters, labels, or texts of choices.

A single answer often fits several ways: 2 of 4 choices is the third or the second one. So the records of a file that
have one layout are read together, and only a way that fits all of them is taken. Where several fit and they disagree,
the layout decides if it is defined to count from 0; else nothing is guessed, and the user is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from crisp_stream.errors import InputError
from crisp_stream.examples.question_layouts import KEYS_OPTION, NO_ANSWER, QuestionKeys, RawQuestion, Way

Placed = tuple[str, RawQuestion]
"""`file:line`, and the question that stands there."""


def answer_indices(placed: Sequence[Placed], keys: QuestionKeys | None = None) -> tuple[list[int], list[str]]:
    """Find the index of the right choice of every question.

    Returns:
        The indices; and for each layout whose way of answering was inferred, a sentence that says which way was taken
        and what told it.

    Raises:
        InputError: an answer that means no choice, answers that fit no single way, or several ways that disagree.
    """
    base = None if keys is None else keys.base
    if base is not None:
        placed = [(place, _counted_by_hand(raw)) for place, raw in placed]
    indices, notes = [-1] * len(placed), []
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for number, (_, raw) in enumerate(placed):
        groups.setdefault((raw.layout, raw.answer_key, isinstance(raw.answer, str)), []).append(number)
    for members in groups.values():
        way, told = _way_of([placed[number] for number in members], base)
        for number in members:
            indices[number] = placed[number][1].readings()[way]
        if told is not None:
            first = placed[members[0]][1]
            notes.append(f"{first.layout}: {first.answer_key} {_SAID[way]}: {told}")
    return indices, notes


def _counted_by_hand(raw: RawQuestion) -> RawQuestion:
    return raw if raw.counting == "known" else raw._replace(counting="unknown")


_SAID: dict[Way, str] = {
    "from 0": "counts choices from 0",
    "from 1": "counts choices from 1",
    "label": "is the label of a choice",
    "letter": "is the letter of a choice",
    "text": "is the text of a choice",
}


def _way_of(group: Sequence[Placed], base: int | None) -> tuple[Way, str | None]:
    """The way that fits all records, and what told it; None where nothing had to be told."""
    fitting: list[Way] = ["label", "letter", "text", "from 0", "from 1"]
    excluded: dict[Way, str] = {}
    if base is not None and group[0][1].counting != "known":
        fitting.remove("from 1" if base == 0 else "from 0")
    for place, raw in group:
        ways = raw.readings()
        if not ways.keys() & {*fitting}:
            raise _no_choice(place, raw, excluded if ways else {})
        unfit: list[Way] = [way for way in fitting if way not in ways]
        for way in unfit:
            fitting.remove(way)
            excluded[way] = f"{raw.answer!r} of {len(raw.choices)} choices at {place}"
    return _decide(group, fitting, excluded, base)


def _decide(
    group: Sequence[Placed], fitting: list[Way], excluded: dict[Way, str], base: int | None
) -> tuple[Way, str | None]:
    raw, way = group[0][1], fitting[0]
    numbered = way in ("from 0", "from 1")
    if numbered and raw.counting in ("known", "strict"):
        return way, None
    if numbered and base is not None:
        return way, f"--question-keys says base={base}"
    if way == "label" or len(fitting) == 1:
        other: Way = "from 1" if way == "from 0" else "from 0"
        return way, f"told by {excluded[other]}" if numbered else None
    if all(len({raw.readings()[way] for way in fitting}) == 1 for _, raw in group):
        return way, None
    if fitting == ["from 0", "from 1"] and raw.counting == "usual":
        return "from 0", "as the layout does; no answer is the number of choices, which would tell that it is from 1"
    remedy = "Say --question-keys base=0 or base=1" if numbered else "Write the index of the choice"
    raise InputError(
        f"{group[0][0]}: {raw.answer_key} must tell which choice is right, but {' and '.join(fitting)} both fit all "
        f"{len(group):,} answers. {remedy}."
    )


def _no_choice(place: str, raw: RawQuestion, excluded: dict[Way, str]) -> InputError:
    if raw.answer is NO_ANSWER:
        return InputError(
            f"{place}: a question needs its right answer, but {raw.layout} has none at {raw.answer_key!r}. Name its "
            f"key: {KEYS_OPTION}."
        )
    if excluded:
        others = "; ".join(f"not {way} by {why}" for way, why in excluded.items())
        return InputError(
            f"{place}: {raw.answer_key} must name choices in one way in all records, got {raw.answer!r} of "
            f"{len(raw.choices)} choices, but {others}. Mend the record that is wrong."
        )
    if raw.labels is not None:
        return InputError(
            f"{place}: {raw.answer_key} must be the label of one choice, of {list(raw.labels)}; got {raw.answer!r}."
        )
    return InputError(
        f"{place}: {raw.answer_key} must be the index of a choice, 0 to {len(raw.choices) - 1}; got {raw.answer!r}. A "
        "letter or the text of a choice is read, too; --question-keys base=1 where indices count from 1."
    )
