"""A question set in two halves: one to learn from, by its histogram, and one to judge by (`crisp-stream split`).

Halves are drawn at random by seed. Questions that are alike fall into the same half, so that no question of the test
half was nearly learnt from. Alike are questions of the same words, and near-duplicates, which share 60 % of the word
pairs of question and choices (`counting/alike.py`).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from crisp_stream.counting.alike import LIKENESS, AlikeBuilder
from crisp_stream.errors import CrispError, InputError
from crisp_stream.evaluation.question_sets import QuestionSet
from crisp_stream.examples.questions import Question, question_hash
from crisp_stream.results.results import set_fingerprint
from crisp_stream.storage.store import open_store

SPLIT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Both halves of a set, each in the order of the set."""

    specialist: list[Question]
    test: list[Question]
    group_sizes: list[int]
    """Questions of each group of two or more, largest first."""


def cut_in_halves(questions: Sequence[Question], *, seed: int = 0) -> Halves:
    """Draw the halves. Their sizes differ by one at most, or by as little as the groups allow.

    Raises:
        InputError: fewer than two groups, or questions that are a half already.
        MissingExtraError: datasketch or scipy is not installed.
    """
    if any(question.half is not None for question in questions):
        raise InputError("split: the questions must be a whole set, got a half of one. Cut the whole set.")
    groups = like_groups(questions)
    if len(groups) < 2:
        raise InputError(
            f"split: at least two questions must not be alike, got {len(groups)} of {len(questions)}. Use a larger set."
        )
    drawn = _draw([len(group) for group in groups], np.random.default_rng(seed))
    chosen = {member for group, is_drawn in zip(groups, drawn, strict=True) if is_drawn for member in group}
    return Halves(
        specialist=[replace(row, half="specialist") for number, row in enumerate(questions) if number in chosen],
        test=[replace(row, half="test") for number, row in enumerate(questions) if number not in chosen],
        group_sizes=sorted((len(group) for group in groups if len(group) > 1), reverse=True),
    )


def like_groups(questions: Sequence[Question]) -> list[list[int]]:
    """Group the questions, by number, with those that are alike; most are alone.

    Returns:
        Every question once; members and groups in the order of the set, a group where its first member is.
    """
    builder = AlikeBuilder()
    for question in questions:
        builder.add_question(question)
    return builder.finish().groups()


def draw_part(questions: Sequence[Question], share: float, *, seed: int = 0) -> tuple[list[Question], list[Question]]:
    """Draw about a share of the questions, alike ones together: the drawn ones and the others, both in random order.

    Raises:
        InputError: all questions are alike.
        MissingExtraError: datasketch or scipy is not installed.
    """
    groups = like_groups(questions)
    if len(groups) < 2:
        raise InputError(
            f"at least two questions must not be alike, got {len(groups)} of {len(questions)}. Use a larger set."
        )
    group_of = {member: number for number, group in enumerate(groups) for member in group}
    order = random.Random(seed).sample(range(len(questions)), len(questions))
    wanted, drawn, size = max(1, round(share * len(questions))), set[int](), 0
    for number in order:
        group = groups[group_of[number]]
        if group_of[number] in drawn or (size + len(group) > wanted and size):
            continue
        if len(group) == len(questions) - size:  # something must be left
            continue
        drawn.add(group_of[number])
        size += len(group)
        if size >= wanted:
            break
    is_drawn = [group_of[number] in drawn for number in order]
    part = [questions[number] for number, own in zip(order, is_drawn, strict=True) if own]
    others = [questions[number] for number, own in zip(order, is_drawn, strict=True) if not own]
    return part, others


def _draw(sizes: Sequence[int], rng: np.random.Generator) -> list[bool]:
    """Draw groups whose sizes add up to half of all questions, or as near to it as they can.

    Groups of two or more fall by the coin as long as what is left can still make up the half; then those of one fill
    it. `reach[i]` has bit s where groups i, i + 1, … of two or more can add up to s.
    """
    large = [index for index in rng.permutation(len(sizes)).tolist() if sizes[index] > 1]
    alone = [index for index in rng.permutation(len(sizes)).tolist() if sizes[index] == 1]
    reach = [1]
    for index in reversed(large):
        reach.append(reach[-1] | reach[-1] << sizes[index])
    reach.reverse()

    def possible(wanted: int, first: int) -> bool:
        """Whether large groups from `first` on, and single ones, can add up to `wanted`."""
        if wanted < 0:
            return False
        fewest = max(0, wanted - len(alone))
        return bool(reach[first] >> fewest & ((1 << (wanted - fewest + 1)) - 1))

    total = sum(sizes)
    wanted = next(size for size in range(total // 2, -1, -1) if possible(size, 0))
    drawn = [False] * len(sizes)
    for place, index in enumerate(large):
        ways = [take for take in (False, True) if possible(wanted - take * sizes[index], place + 1)]
        drawn[index] = ways[int(rng.integers(len(ways)))]
        wanted -= drawn[index] * sizes[index]
    for index in alone[:wanted]:
        drawn[index] = True
    return drawn


def write_halves(questions: QuestionSet, halves: Halves, out: str, *, seed: int, source: str) -> list[str]:
    """Write OUT.specialist.jsonl, OUT.test.jsonl and OUT.split.json: all of them, or none.

    Args:
        seed: seed of the draw, for the record.
        source: name of the set, for the record; only its last part is kept.

    Returns:
        Paths of the files.

    Raises:
        InputError: another split is there. StorageError: the storage refused or failed.
    """
    folder, _, prefix = out.rpartition("/")
    if not prefix:
        raise InputError(f"--out: must be the beginning of file names, such as splits/arc, got {out!r}. Add a name.")
    contents, about = {}, {}
    for half, rows in (("specialist", halves.specialist), ("test", halves.test)):
        name = f"{prefix}.{half}.jsonl"
        contents[name] = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows).encode()
        ids = np.array([question_hash(row) for row in rows], np.uint64)
        about[half] = {"file": name, "questions": len(rows), "fingerprint": set_fingerprint(ids)}
    record = {
        "split_version": SPLIT_VERSION,
        "seed": seed,
        "source": source.rpartition("/")[2],
        "task": questions.task,
        "fingerprint": questions.fingerprint,
        "questions": len(questions.questions),
        "halves": about,
        "alike": {
            "from": LIKENESS,
            "groups_by_size": {str(size): count for size, count in sorted(Counter(halves.group_sizes).items())},
        },
    }
    contents[f"{prefix}.split.json"] = (json.dumps(record, indent=2) + "\n").encode()
    _put_all(folder or ("/" if out.startswith("/") else "."), contents)
    return [f"{folder}/{name}" if folder else name for name in contents]


def _put_all(folder: str, contents: dict[str, bytes]) -> None:
    store = open_store(folder)
    there = [name for name in contents if store.exists(name)]
    if len(there) == len(contents) and all(store.get(name) == content for name, content in contents.items()):
        return
    if there:
        raise InputError(
            f"{folder}/{there[0]}: halves that were learnt from must stay as they are, but another split is there. "
            "Choose another --out, or remove it."
        )
    done: list[str] = []
    try:
        for name, content in contents.items():
            store.put(name, content)
            done.append(name)
    except (CrispError, KeyboardInterrupt):
        for name in done:
            store.delete(name)
        raise
