"""Layouts of multiple-choice questions: which keys of a record hold the question, its choices and the right answer.

One table of layouts serves all commands, so that a set gives the same questions to `split`, `histogram`,
`contamination`, `write --decontaminate` and `eval`. A layout is known by its keys. What an answer means, an index from
0 or from 1, a letter, a label or the text of a choice, is decided in question_answers.py by all records of the file.
Records of no layout are read by `QuestionKeys`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from crisp_stream.errors import InputError
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.questions import Half, Prompt

Counting = Literal["known", "strict", "usual", "unknown"]
"""How whole numbers count choices in a layout. known: we made the index, from 0. strict: from 0 by definition. usual:
from 0 unless the file says otherwise. unknown: from 0 or 1, as the file says."""

Way = Literal["from 0", "from 1", "label", "letter", "text"]
"""What an answer is: an index counted from 0 or 1, a label of a choice, a letter for its place, or its text."""

NO_ANSWER = object()
"""Answer of a record that names none."""

LAYOUTS = (
    "question, choices, answer; question, choices {text, label}, answerKey (ARC); question {stem, choices}, answerKey; "
    "question, options, answer_idx or answer; question, opa … opd, cop; query, choices, gold; ctx, endings, label; "
    "question, correct_answer, distractor1 …; question, A … D, answer; prompt, chosen, rejected (RewardBench); or rows "
    "of question, choices and a letter as .csv without a header (MMLU)"
)
KEYS_OPTION = "--question-keys question=KEY,choices=KEY,answer=KEY"

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MARKED_LETTER = re.compile(r"\(?([A-Za-z])[.):]?")
_DISTRACTOR = re.compile(r"(distractor|incorrect[ _]answer)[ _]?\d*", re.IGNORECASE)
_MEDICAL = re.compile(r"op[a-j]")
_ANSWER_KEYS = ("answer_idx", "answer_index", "answer", "answerKey", "label", "target", "correct")


@dataclass(frozen=True, kw_only=True)
class QuestionKeys:
    """Keys of records in a layout of their own, as `--question-keys` names them; dotted paths lead into objects."""

    question: str | None = None
    """None: the layout is known, and only `base` or `topic` is said."""
    choices: tuple[str, ...] = ()
    """One key of a list or an object; or a key per choice."""
    answer: str | None = None
    topic: str | None = None
    base: Literal[0, 1] | None = None
    """From where whole numbers count choices. None: as the file says."""

    @classmethod
    def parse(cls, text: str | None) -> QuestionKeys:
        """Read `question=q,choices=c,answer=a`; also `choices=a+b+c`, `topic=t`, `base=0` or `base=1`.

        Raises:
            InputError: another form.
        """
        if text is None:
            return cls()
        parts: dict[str, str] = {}
        for part in text.split(","):
            key, _, value = part.partition("=")
            parts[key] = value
        known, base = {"question", "choices", "answer", "topic", "base"}, parts.get("base")
        alone = bool({"question", "choices"} & parts.keys()) != ({"question", "choices"} <= parts.keys())
        if not parts.keys() <= known or not all(parts.values()) or alone or base not in (None, "0", "1"):
            raise InputError(
                f"--question-keys: must be question=KEY,choices=KEY,answer=KEY, optionally with topic=KEY and base=0 "
                f"or base=1 (choices=A+B+C where each choice has a key); got {text!r}."
            )
        return cls(
            question=parts.get("question"),
            choices=tuple(parts["choices"].split("+")) if "choices" in parts else (),
            answer=parts.get("answer"),
            topic=parts.get("topic"),
            base=None if base is None else (0 if base == "0" else 1),
        )


class RawQuestion(NamedTuple):
    """A question as its record has it, before it is known what the answer means."""

    layout: str
    """Its keys, for messages."""
    question: str
    choices: tuple[str, ...]
    labels: tuple[str, ...] | None
    """Labels of the choices; None where they have none."""
    answer_key: str
    answer: Any
    """As it stands there, or NO_ANSWER."""
    counting: Counting = "unknown"
    topic: str | None = None
    prompt: Prompt = "question"
    half: Half | None = None

    def readings(self) -> dict[Way, int]:
        """Indices of the choice that the answer may mean, by the way it is read; empty where it means none."""
        answer, count = self.answer, len(self.choices)
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)
        if isinstance(answer, bool) or not isinstance(answer, int | str):
            return {}
        ways: dict[Way, int] = {}
        word = str(answer).strip()
        if self.labels is not None and self.labels.count(word) == 1:
            ways["label"] = self.labels.index(word)
        if isinstance(answer, str):
            letter = _MARKED_LETTER.fullmatch(word)
            if self.labels is None and letter and (at := _LETTERS.index(letter[1].upper())) < count:
                ways["letter"] = at
            if answer in self.choices:
                ways["text"] = self.choices.index(answer)
        if "label" not in ways and re.fullmatch(r"\d{1,3}", word):
            number = int(word)
            ways |= {"from 0": number} if number < count else {}
            ways |= {"from 1": number - 1} if self.counting in ("usual", "unknown") and 1 <= number <= count else {}
        return ways


def raw_question(record: Mapping[str, Any], place: str, keys: QuestionKeys | None = None) -> RawQuestion | None:
    """Take the parts of a question out of a record of any layout; `place` names it in errors.

    Returns:
        None where the record has the keys of no layout.

    Raises:
        InputError: a part that is no text, no list of texts, or not there.
    """
    keys = keys or QuestionKeys()
    record = {key: value for key, value in record.items() if value is not None}
    if keys.question is not None:
        raw = _named(record, keys, place)
    else:
        raw = next((raw for read in _READERS if (raw := read(record, place)) is not None), None)
    return None if raw is None else raw._replace(topic=_topic(record, keys, place))


def no_layout(record: Mapping[str, Any], place: str) -> InputError:
    """Make the error about a record of no layout, which shows its keys."""
    shown = ", ".join(str(key) for key in record) or "none"
    return InputError(
        f"{place}: a question needs the keys of one of these layouts: {LAYOUTS}. Got the keys {shown}. Name them: "
        f"{KEYS_OPTION}."
    )


def _named(record: dict[str, Any], keys: QuestionKeys, place: str) -> RawQuestion:
    def value(path: str) -> Any:
        found = _at(record, path)
        if found is None:
            shown = ", ".join(map(str, record)) or "none"
            raise InputError(f"{place}: --question-keys names {path!r}, but the record has the keys {shown}.")
        return found

    assert keys.question is not None
    question, labels = value(keys.question), None
    if len(keys.choices) == 1:
        choices, labels = _choices(value(keys.choices[0]), keys.choices[0], place)
    else:
        given = (_at(record, path) for path in keys.choices)
        choices = _texts([choice for choice in given if choice is not None], "+".join(keys.choices), place)
        labels = keys.choices if len(choices) == len(keys.choices) else None
    answer = NO_ANSWER if keys.answer is None else value(keys.answer)
    if labels is not None and str(answer) not in labels:
        labels = None
    _check_text(question, keys.question, place)
    return RawQuestion("--question-keys", question, choices, labels, keys.answer or "answer", answer)


def _at(record: Any, path: str) -> Any:
    """The value at a dotted path; a key that itself contains dots wins."""
    if isinstance(record, Mapping):
        if path in record:
            return record[path]
        for cut in (at for at, sign in enumerate(path) if sign == "."):
            if path[:cut] in record and (found := _at(record[path[:cut]], path[cut + 1 :])) is not None:
                return found
    return None


def _pair(record: dict[str, Any], place: str) -> RawQuestion | None:
    """RewardBench: the chosen answer stands first or second as the content's hash has it, so that ties favour none."""
    if not record.keys() >= {"prompt", "chosen", "rejected"}:
        return None
    for name in ("prompt", "chosen", "rejected"):
        _check_text(record[name], name, place)
    question, chosen, rejected = record["prompt"], record["chosen"], record["rejected"]
    answer = example_hash("\0".join([question, *sorted([chosen, rejected])])) & 1
    choices = (rejected, chosen) if answer else (chosen, rejected)
    raw = RawQuestion("prompt, chosen, rejected", question, choices, None, "chosen", answer, "known")
    return raw._replace(prompt="instructions")


def _stem(record: dict[str, Any], place: str) -> RawQuestion | None:
    """`question.stem`, `choices`, `answerKey`; the hub's OpenBookQA has `question_stem` instead."""
    whole = record.get("question")
    inner = whole if isinstance(whole, Mapping) else {"stem": record.get("question_stem"), **record}
    if inner.get("stem") is None or "choices" not in inner:
        return None
    _check_text(inner["stem"], "question.stem" if whole is inner else "question_stem", place)
    choices, labels = _choices(inner["choices"], "choices", place)
    layout = f"{'question.stem' if whole is inner else 'question_stem'}, choices, answerKey"
    return RawQuestion(layout, inner["stem"], choices, labels, *_answer(record, ("answerKey", "answer")))


def _endings(record: dict[str, Any], place: str) -> RawQuestion | None:
    return _listed(record, place, ("ctx", "endings"), ("label", "answer", "gold"), "usual")


def _query(record: dict[str, Any], place: str) -> RawQuestion | None:
    return _listed(record, place, ("query", "choices"), ("gold", "answer", "label"), "usual")


def _options(record: dict[str, Any], place: str) -> RawQuestion | None:
    counting: Counting = "usual" if record.keys() & {"answer_idx", "answer_index"} else "unknown"
    return _listed(record, place, ("question", "options"), _ANSWER_KEYS, counting)


def _own(record: dict[str, Any], place: str) -> RawQuestion | None:
    """`question`, `choices` and `answer`, whose index counts from 0; ARC with `answerKey`."""
    raw = _listed(record, place, ("question", "choices"), ("answer", "answerKey", *_ANSWER_KEYS), "strict")
    if raw is None:
        return None
    prompt, half = record.get("prompt"), record.get("half")
    for name, value, allowed in (
        ("prompt", prompt, ("question", "instructions")),
        ("half", half, ("specialist", "test")),
    ):
        if value is not None and value not in allowed:
            raise InputError(f"{place}: {name} must be {' or '.join(allowed)} where there is one; got {value!r}.")
    return raw._replace(prompt=prompt or "question", half=half)


def _listed(
    record: dict[str, Any], place: str, keys: tuple[str, str], answer_keys: Sequence[str], counting: Counting
) -> RawQuestion | None:
    question_key, choices_key = keys
    if not record.keys() >= set(keys):
        return None
    _check_text(record[question_key], question_key, place)
    choices, labels = _choices(record[choices_key], choices_key, place)
    answer_key, answer = _answer(record, answer_keys)
    layout = ", ".join((*keys, answer_key))
    return RawQuestion(layout, record[question_key], choices, labels, answer_key, answer, counting)


def _medical(record: dict[str, Any], place: str) -> RawQuestion | None:
    """MedMCQA: `opa` to `opd`, and `cop`, which copies of it count from 0 and others from 1."""
    names = sorted(key for key in record if _MEDICAL.fullmatch(key))
    if "question" not in record or names[:2] != ["opa", "opb"]:
        return None
    _check_text(record["question"], "question", place)
    choices = _texts([record[name] for name in names if record[name] != ""], f"opa … {names[-1]}", place)
    return RawQuestion("question, opa …, cop", record["question"], choices, None, *_answer(record, ("cop",)))


def _lettered(record: dict[str, Any], place: str) -> RawQuestion | None:
    """A key per choice, `A`, `B`, …: MMLU's rows, with or without a header."""
    question = next((key for key in ("question", "input") if key in record), None)
    names = [letter for letter in _LETTERS if letter in record]
    if question is None or names[:2] != ["A", "B"]:
        return None
    _check_text(record[question], question, place)
    choices = _texts([record[name] for name in names], f"A … {names[-1]}", place)
    answer_key, answer = _answer(record, _ANSWER_KEYS)
    layout = f"{question}, A …, {answer_key}"
    return RawQuestion(layout, record[question], choices, None, answer_key, answer)


def _distractors(record: dict[str, Any], place: str) -> RawQuestion | None:
    """The right answer beside wrong ones: it stands among them where the content's hash has it."""
    lower = {key.lower().replace(" ", "_"): key for key in record}
    right_key = next((lower[key] for key in ("correct_answer", "answer", "correct") if key in lower), None)
    names = [key for key in record if _DISTRACTOR.fullmatch(key)]
    question_key = lower.get("question")
    if question_key is None or right_key is None or not (names or "distractors" in record):
        return None
    for key in (question_key, right_key):
        _check_text(record[key], key, place)
    # Rows of tables have empty cells where a question has fewer choices.
    wrong = [record[name] for name in names if record[name] != ""] if names else record["distractors"]
    others, right = _texts(wrong, names[0] if names else "distractors", place), record[right_key]
    answer = example_hash("\0".join([record[question_key], *sorted([right, *others])])) % (len(others) + 1)
    choices = (*others[:answer], right, *others[answer:])
    layout = f"{question_key}, {right_key}, {names[0] if names else 'distractors'} …"
    return RawQuestion(layout, record[question_key], choices, None, right_key, answer, "known")


_READERS: tuple[Callable[[dict[str, Any], str], RawQuestion | None], ...] = (
    *(_pair, _stem, _endings, _query, _options, _own, _distractors, _medical, _lettered),
)


def _answer(record: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, Any]:
    key = next((key for key in keys if key in record), None)
    return (keys[0], NO_ANSWER) if key is None else (key, record[key])


def _choices(value: Any, key: str, place: str) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Texts of choices and their labels: a list of texts, an object of them by label, lists of both, or a list of
    objects; in a cell of a table as JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"{place}: {key} must be JSON where it begins as JSON does, got: {error}.") from error
    labels: list[Any] | None = None
    if isinstance(value, list | tuple) and value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
        value = dict(value)  # a map of Parquet
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        labels, value, given = value.get("label"), value["text"], value
        if labels is not None and (not isinstance(labels, list) or len(labels) != len(value)):
            raise InputError(f"{place}: {key} must hold as many labels as texts, {{text, label}}; got {dict(given)!r}.")
    elif isinstance(value, Mapping):
        present = {label: text for label, text in value.items() if text is not None}
        labels, value = list(present), list(present.values())
    elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        items = value
        value = [item.get("text", item.get("value")) for item in items]
        labels = [item.get("label", item.get("key")) for item in items]
    texts = _texts(value, key, place)
    return texts, None if labels is None else tuple(str(label).strip() for label in labels)


def _texts(value: Any, key: str, place: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(_is_text(choice) for choice in value):
        raise InputError(f"{place}: {key} must be a list of texts, got {value!r}.")
    return tuple(value)


def _topic(record: Mapping[str, Any], keys: QuestionKeys, place: str) -> str | None:
    name = keys.topic or "topic"
    topic = _at(record, name)
    if topic is None and keys.topic is None and isinstance(record.get("subject"), str):
        topic = record["subject"].replace("_", " ")
    if topic is not None:
        _check_text(topic, name, place)
    return topic


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_text(value: object, name: str, place: str) -> None:
    if not _is_text(value):
        raise InputError(f"{place}: {name} must be text, got {value!r}.")
