"""Conditions on scores, such as `quality >= q0.8 and not (length < 200 or symbols > 0.3)`.

    condition  = and_part ("or" and_part)*
    and_part   = not_part ("and" not_part)*
    not_part   = "not" not_part | comparison
    comparison = sum (("<" | "<=" | ">" | ">=" | "==" | "!=") sum)*        0.1 < symbols <= 0.3 is both
    sum        = product (("+" | "-") product)*
    product    = signed (("*" | "/") signed)*
    signed     = "-" signed | number | score | quantile | "(" condition ")"
    quantile   = "q" and a number of 0 to 1: this quantile of what stands on the other side of the comparison

A parser of its own, because a condition is text of a user: nothing of it is ever run as Python. Numbers are float32, as
scores are, so that `symbols <= 0.3` holds for a window whose score is written 0.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.histograms.window_scores import quantile_of
from crisp_stream.typed import did_you_mean

MAX_CHARACTERS = 10_000
_MAX_DEPTH = 50
_TOKEN = re.compile(
    r"\s*(?:(?P<quantile>q(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?![A-Za-z0-9_.]))|(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]))|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign><=|>=|==|!=|[-<>+*/()]))"
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
_COMPUTE: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
}

Numbers = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class _Token:
    kind: str
    """quantile, number, word, sign, or end."""
    text: str
    at: int
    """Its first character, from 0."""


@dataclass(frozen=True)
class _Value:
    """What a part of a condition is: numbers, true or false for each window, or a quantile that is still to be taken.

    `numbers` and `flags` are [num_windows], or without an axis where no score is in them."""

    at: int
    stop: int
    """Its first character, and the one behind it."""
    numbers: Numbers | None = None
    flags: Flags | None = None
    quantile: float | None = None


@dataclass
class Selected:
    """The windows that a condition holds for, and the values of its quantiles."""

    chosen: Flags
    """[num_windows]"""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Each quantile with what it is of, such as `q0.8 of quality`, and its value."""


def windows_where(condition: str, scores: Mapping[str, Numbers]) -> Selected:
    """Find the windows that a condition holds for.

    Args:
        condition: see above.
        scores: [num_windows] each, by name; at least one.

    Raises:
        InputError: the condition cannot be read, or divides by zero; the message has the place in it.
    """
    if len(condition) > MAX_CHARACTERS:
        raise InputError(f"condition: must have at most {MAX_CHARACTERS:,} characters, got {len(condition):,}.")
    parser = _Parser(condition, scores)
    value = parser.condition()
    parser.expect_end()
    chosen = parser.flags(value, "a condition must be true or false, such as quality >= 0.5")
    num_windows = len(next(iter(scores.values())))
    return Selected(np.array(np.broadcast_to(chosen, num_windows)), parser.thresholds)


class _Parser:
    def __init__(self, text: str, scores: Mapping[str, Numbers]) -> None:
        self._text, self._scores = text, scores
        self._tokens = self._cut()
        self._next = 0
        self._depth = 0
        self.thresholds: dict[str, float] = {}

    def _cut(self) -> list[_Token]:
        tokens, at, end = [], 0, len(self._text.rstrip())
        while at < end:
            found = _TOKEN.match(self._text, at)
            if found is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                hint = " One = is no comparison; write ==." if self._text[at] == "=" else ""
                raise self.error(f"{self._text[at]!r} is no part of a condition.{hint}", at)
            assert found.lastgroup is not None
            tokens.append(_Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
            at = found.end()
        return [*tokens, _Token("end", "", end)]

    def error(self, message: str, at: int) -> InputError:
        """An error at a character."""
        return InputError(f"condition, character {at + 1} of {self._text!r}: {message}")

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> _Token | None:
        token = self._token
        if token.kind not in ("word", "sign") or token.text not in texts:
            return None
        self._next += 1
        return token

    def expect_end(self) -> None:
        """Raises InputError where something follows."""
        if self._token.kind != "end":
            raise self.error(
                f"expected a comparison, a sign of arithmetic, and, or or the end, got {self._token.text!r}.",
                self._token.at,
            )

    def condition(self) -> _Value:
        """A condition, or a number in parentheses."""
        value = self._and_part()
        while sign := self._take("or"):
            value = self._joined(value, self._and_part(), sign)
        return value

    def _and_part(self) -> _Value:
        value = self._not_part()
        while sign := self._take("and"):
            value = self._joined(value, self._not_part(), sign)
        return value

    def _joined(self, left: _Value, right: _Value, sign: _Token) -> _Value:
        rule = f"`{sign.text}` stands between conditions, such as quality >= 0.5"
        flags = [self.flags(side, rule) for side in (left, right)]
        joined = np.logical_and(*flags) if sign.text == "and" else np.logical_or(*flags)
        return _Value(left.at, right.stop, flags=joined)

    def _not_part(self) -> _Value:
        sign = self._take("not")
        if sign is None:
            return self._comparison()
        value = self._deeper(self._not_part, sign)
        flags = self.flags(value, "`not` stands before a condition, such as not length < 200")
        return _Value(sign.at, value.stop, flags=np.logical_not(flags))

    def _comparison(self) -> _Value:
        first = left = self._sum()
        flags: Flags | None = None
        while sign := self._take(*_COMPARE):
            right = self._sum()
            holds = _COMPARE[sign.text](*self._compared(left, right, sign))
            flags = holds if flags is None else np.logical_and(flags, holds)
            left = right
        if flags is None:
            return first
        return _Value(first.at, left.stop, flags=flags)

    def _compared(self, left: _Value, right: _Value, sign: _Token) -> tuple[Numbers, Numbers]:
        """Both sides as numbers; a quantile is taken of the other side."""
        sides = (left, right)
        for own, other in (sides, sides[::-1]):
            if own.quantile is None:
                continue
            of = self._of(other)
            if other.numbers is None or not np.ndim(other.numbers):
                raise self.error(
                    f"a quantile is compared with a score, such as quality >= {self._of(own)}, got {of}.", own.at
                )
            taken = quantile_of(other.numbers, own.quantile)
            self.thresholds[f"{self._of(own)} of {of}"] = taken
            numbers = np.float32(taken)
            return (numbers, other.numbers) if own is left else (other.numbers, numbers)  # type: ignore[return-value]
        rule = f"`{sign.text}` compares numbers and scores"
        return self.numbers(left, rule), self.numbers(right, rule)

    def _of(self, value: _Value) -> str:
        return self._text[value.at : value.stop].strip()

    def _sum(self) -> _Value:
        value = self._product()
        while sign := self._take("+", "-"):
            value = self._computed(value, self._product(), sign)
        return value

    def _product(self) -> _Value:
        value = self._signed()
        while sign := self._take("*", "/"):
            value = self._computed(value, self._signed(), sign)
        return value

    def _computed(self, left: _Value, right: _Value, sign: _Token) -> _Value:
        rule = f"`{sign.text}` stands between numbers and scores"
        sides = [self.numbers(side, rule) for side in (left, right)]
        with np.errstate(all="ignore"):
            numbers = np.asarray(_COMPUTE[sign.text](*sides), np.float32)
        bad = int(np.count_nonzero(~np.isfinite(numbers)))
        if bad:
            where = "" if not np.ndim(numbers) else f" for {bad:,} windows"
            hint = " Compare without dividing by zero." if sign.text == "/" else ""
            text = self._text[left.at : right.stop].strip()
            raise self.error(f"{text} must be a finite number, but is none{where}.{hint}", sign.at)
        return _Value(left.at, right.stop, numbers=numbers)

    def _signed(self) -> _Value:
        sign = self._take("-")
        if sign is not None:
            value = self._deeper(self._signed, sign)
            return _Value(sign.at, value.stop, numbers=-self.numbers(value, "`-` stands before numbers and scores"))
        if opening := self._take("("):
            value = self._deeper(self.condition, opening)
            closing = self._take(")")
            if closing is None:
                got = "the end" if self._token.kind == "end" else repr(self._token.text)
                raise self.error(
                    f"the parenthesis of character {opening.at + 1} must be closed, got {got}.", self._token.at
                )
            return _Value(opening.at, closing.at + 1, numbers=value.numbers, flags=value.flags, quantile=value.quantile)
        return self._atom()

    def _deeper(self, part: Callable[[], _Value], token: _Token) -> _Value:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self.error(f"a condition must be nested at most {_MAX_DEPTH} deep. Write it simpler.", token.at)
        value = part()
        self._depth -= 1
        return value

    def _atom(self) -> _Value:
        token = self._token
        stop = token.at + len(token.text)
        if token.kind == "number":
            self._next += 1
            with np.errstate(over="ignore"):
                number = np.float32(float(token.text))
            if not np.isfinite(number):
                raise self.error(f"a number must be one that float32 holds, got {token.text}.", token.at)
            return _Value(token.at, stop, numbers=np.asarray(number))
        if token.kind == "quantile":
            self._next += 1
            quantile = float(token.text[1:])
            if not 0 <= quantile <= 1:
                raise self.error(f"a quantile must be q0 to q1, got {token.text}. q0.8 is above 80 %.", token.at)
            return _Value(token.at, stop, quantile=quantile)
        if token.kind == "word" and token.text not in ("and", "or", "not"):
            self._next += 1
            if token.text not in self._scores:
                known = list(self._scores)
                hint = did_you_mean(token.text, known)
                raise self.error(f"{token.text} is none of the scores, which are {', '.join(known)}{hint}", token.at)
            return _Value(token.at, stop, numbers=self._scores[token.text])
        got = "the end" if token.kind == "end" else repr(token.text)
        raise self.error(f"expected a score, a number, a quantile or a parenthesis, got {got}.", token.at)

    def numbers(self, value: _Value, rule: str) -> Numbers:
        """The numbers of a part. Raises InputError: it is none."""
        if value.numbers is None:
            what = "a quantile, which is compared alone" if value.quantile is not None else "a condition"
            raise self.error(f"{rule}, got {what}: {self._of(value)}.", value.at)
        return value.numbers

    def flags(self, value: _Value, rule: str) -> Flags:
        """Whether a part holds. Raises InputError: it is no condition."""
        if value.flags is None:
            what = "a quantile" if value.quantile is not None else "a number"
            raise self.error(f"{rule}, got {what}: {self._of(value)}.", value.at)
        return value.flags
