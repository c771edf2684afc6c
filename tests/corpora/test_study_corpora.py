"""The study's text: cut, split and decontaminated, on a small package made here."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from crisp_stream.cli.main import main
from crisp_stream.corpora import study as study_corpora
from crisp_stream.corpora.demo import TextSource
from crisp_stream.corpora.packages import Package
from crisp_stream.corpora.study import SPLITS, StudyCorpora, StudyScale, StudySources, fetch_study
from crisp_stream.corpora.study_sources import (
    CORPUS,
    QUESTIONS,
    SPECIALISTS,
    QuestionSource,
    _bible,
    _docstrings,
    _module_documentation,
    _service_documentation,
    parse_questions,
    pieces,
)
from crisp_stream.errors import InputError
from crisp_stream.examples.question_files import read_questions
from crisp_stream.examples.questions import Question

WORDS = [f"{first}{second}{third}" for first in "bdgkmp" for second in "aeiou" for third in "lnrst"]
SCALE = StudyScale(
    name="tiny", generalist_characters=60_000, generalist_test_documents=8, specialist_documents=(1000, 1000, 1000)
)


def sentence(seed: int, num_words: int = 60) -> str:
    """Words at random: no run of several is there twice."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, num_words).tolist())


def lines(content: bytes) -> list[str]:
    return content.decode().splitlines()


def backwards(content: bytes) -> list[str]:
    return lines(content)[::-1]


RIVER = [sentence(1000 + number) for number in range(400)]
MUSIC = [sentence(2000 + number) for number in range(200)]
TASK = [sentence(3000 + number) for number in range(300)]
QUESTION = Question(question=sentence(4000, 10), choices=(sentence(4001, 6), "none"), answer=0)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with the wheel of `tiny-text`; the last documents of `river` have words of what models are judged by."""
    folder = tmp_path / "cache"
    folder.mkdir()
    planted = [
        f"{sentence(5000)} {' '.join(TASK[7].split()[20:33])}",
        TASK[8],
        f"{QUESTION.question} {QUESTION.choices[0]} {sentence(5001)}",
        f"{sentence(5002)} {' '.join(TASK[9].split()[20:32])}",  # 12 words: stays
    ]
    row = {
        "question": QUESTION.question,
        "options": f"A. {QUESTION.choices[0]}\nB. none",
        "answer": f"A. {QUESTION.choices[0]}",
    }
    with zipfile.ZipFile(folder / "tiny_text-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/river/1.txt", "\n".join(RIVER[:200]))
        wheel.writestr("tiny/river/2.txt", "\n".join([*RIVER[200:], *planted]))
        wheel.writestr("tiny/music.txt", "\n".join(MUSIC))
        wheel.writestr("tiny/task.txt", "\n".join([*TASK, f"{TASK[0]} and more", f"{TASK[1]} and more"]))
        wheel.writestr("tiny/questions.jsonl", json.dumps(row) + "\n")
    return folder


@pytest.fixture
def sources(cache: Path) -> StudySources:
    content = (cache / "tiny_text-1.0-py3-none-any.whl").read_bytes()
    package = Package(name="tiny-text", version="1.0", sha256=hashlib.sha256(content).hexdigest())

    def source(name: str, members: str, share: float = 1.0) -> TextSource:
        return TextSource(name=name, package=package, members=(members,), texts=lines, license="CC0", share=share)

    asked = QuestionSource(name="asked", package=package, members=("tiny/q*.jsonl",), license="CC0")
    return StudySources(
        corpus=(source("river", "tiny/river/*.txt", 0.75), source("music", "tiny/music.txt", 0.25)),
        specialists=(("task", (source("task", "tiny/task.txt"),)),),
        questions=(asked,),
    )


def quiet(_: str) -> None:
    """No progress."""


def fetch(folder: Path, cache: Path, sources: StudySources, scale: StudyScale = SCALE) -> StudyCorpora:
    return fetch_study(folder, cache=cache, scale=scale, sources=sources, log=quiet)


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def runs(documents: list[str]) -> set[tuple[str, ...]]:
    """All runs of 13 words."""
    found: set[tuple[str, ...]] = set()
    for document in documents:
        words = document.split()
        found |= {tuple(words[start : start + 13]) for start in range(len(words) - 12)}
    return found


def test_a_specialist_set_is_split_by_hash_and_its_splits_share_no_run_of_words(
    cache: Path, sources: StudySources, tmp_path: Path
) -> None:
    made = fetch(tmp_path / "out", cache, sources)
    split = {name: texts(made.specialist("task", name)) for name in SPLITS}
    held = [text for own in split.values() for text in own]
    assert len(held) == len(set(held))
    # Of two documents that are alike one goes, where they fall on different sides.
    assert len(held) + sum(sum(made.facts["dropped"][f"task.{name}"].values()) for name in ("train", "val")) == 302
    assert [len(split[name]) for name in SPLITS] == pytest.approx([240, 30, 30], abs=18)
    for name in SPLITS:
        low, high = {"train": (0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1)}[name]
        shares = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 for text in split[name]]
        assert all(low <= share < high for share in shares)
    assert runs(split["train"]) & runs(split["val"] + split["test"]) == set()
    assert runs(split["val"]) & runs(split["test"]) == set()


def test_documents_alike_across_splits_go_from_the_earlier_one(
    cache: Path, sources: StudySources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {TASK[0]: 0.1, f"{TASK[0]} and more": 0.95, TASK[1]: 0.85, f"{TASK[1]} and more": 0.95}
    monkeypatch.setattr(study_corpora, "uniform_of_text", lambda text: places.get(text, 0.5))
    made = fetch(tmp_path / "out", cache, sources)
    assert texts(made.specialist("task", "test")) == [f"{TASK[0]} and more", f"{TASK[1]} and more"]
    assert texts(made.specialist("task", "val")) == []
    assert TASK[0] not in texts(made.specialist("task", "train"))
    assert made.facts["dropped"]["task.val"] == made.facts["dropped"]["task.train"] == {"task.test": 1}


def test_documents_with_words_of_a_specialist_set_or_a_question_are_not_in_the_corpus(
    cache: Path, sources: StudySources, tmp_path: Path
) -> None:
    made = fetch(tmp_path / "out", cache, sources, dataclasses.replace(SCALE, generalist_characters=10_000_000))
    corpus = texts(made.generalist) + texts(made.generalist_test)
    assert runs(corpus) & runs(TASK) == set()
    assert not any(QUESTION.question in text for text in corpus)
    assert made.facts["dropped"]["river"] == {"task": 1, "asked": 1}  # the copy of a whole document is no other text
    assert made.facts["dropped"]["music"] == {}
    assert set(texts(made.generalist)) <= {*RIVER, *MUSIC, f"{sentence(5002)} {' '.join(TASK[9].split()[20:32])}"}


def test_the_corpus_has_its_length_by_shares_and_holds_nothing_that_is_held_out(
    cache: Path, sources: StudySources, tmp_path: Path
) -> None:
    made = fetch(tmp_path / "out", cache, sources)
    corpus, test = texts(made.generalist), texts(made.generalist_test)
    assert set(corpus) & set(test) == set()
    assert len(corpus) == len(set(corpus))
    assert 0 < len(test) <= 8
    longest = max(map(len, [*RIVER, *MUSIC])) + 120
    of_river = sum(len(text) for text in corpus if text not in MUSIC)
    assert 45_000 <= of_river < 45_000 + longest
    assert 15_000 <= sum(map(len, corpus)) - of_river < 15_000 + longest


def test_a_smaller_scale_takes_a_part_of_a_larger_one(cache: Path, sources: StudySources, tmp_path: Path) -> None:
    smaller = dataclasses.replace(SCALE, generalist_characters=20_000, specialist_documents=(50, 5, 10))
    small = fetch(tmp_path / "small", cache, sources, smaller)
    large = fetch(tmp_path / "large", cache, sources)
    assert set(texts(small.generalist)) < set(texts(large.generalist))
    assert [len(texts(small.specialist("task", split))) for split in SPLITS] == [50, 5, 10]
    for split in SPLITS:
        assert set(texts(small.specialist("task", split))) < set(texts(large.specialist("task", split)))


def test_the_choice_does_not_depend_on_the_order_of_documents(
    cache: Path, sources: StudySources, tmp_path: Path
) -> None:
    turned = dataclasses.replace(
        sources,
        corpus=tuple(dataclasses.replace(own, texts=backwards) for own in sources.corpus),
        specialists=tuple(
            (name, tuple(dataclasses.replace(own, texts=backwards) for own in held))
            for name, held in sources.specialists
        ),
    )
    first, second = fetch(tmp_path / "first", cache, sources), fetch(tmp_path / "second", cache, turned)
    assert first.facts["files"].keys() == second.facts["files"].keys()
    for name in first.facts["files"]:
        if not name.endswith(".questions.jsonl"):
            assert sorted(texts(first.folder / name)) == sorted(texts(second.folder / name))


def test_again_nothing_is_done_and_what_is_missing_or_changed_is_made_anew(
    cache: Path, sources: StudySources, tmp_path: Path
) -> None:
    out, said = tmp_path / "out", []
    made = fetch(out, cache, sources)
    content = made.generalist.read_bytes()
    written = made.generalist.stat().st_mtime_ns
    again = fetch_study(out, cache=cache, scale=SCALE, sources=sources, log=said.append)
    assert (again, said) == (made, [f"{out}: the text is there"])
    assert made.generalist.stat().st_mtime_ns == written
    made.generalist.write_text("changed")
    (out / "study.json").write_text("{}")
    fetch(out, cache, sources)
    assert made.generalist.read_bytes() == content
    made.specialist("task", "val").unlink()
    assert fetch(out, cache, sources) == made
    assert made.specialist("task", "val").is_file()
    other = fetch(out, cache, sources, dataclasses.replace(SCALE, generalist_characters=10_000))
    assert len(other.generalist.read_bytes()) < len(content)


def test_the_folder_says_where_its_text_is_from(cache: Path, sources: StudySources, tmp_path: Path) -> None:
    made = fetch(tmp_path / "out", cache, sources)
    readme = (made.folder / "README.md").read_text()
    assert "| generalist | river | tiny-text==1.0 | CC0 |" in readme
    assert f"| generalist.jsonl | {len(texts(made.generalist)):,} | " in readme
    assert read_questions(made.questions("asked")) == [QUESTION]
    assert {row["sha256"] for row in made.facts["sources"]} == {sources.corpus[0].package.sha256}


def test_a_package_without_the_files_is_an_error(cache: Path, sources: StudySources, tmp_path: Path) -> None:
    lost = dataclasses.replace(sources.corpus[0], members=("tiny/sea/*.txt",))
    with pytest.raises(InputError, match=r"tiny-text 1\.0 must hold tiny/sea/\*\.txt, got none\."):
        fetch(tmp_path / "out", cache, dataclasses.replace(sources, corpus=(lost,)))
    asked = dataclasses.replace(sources.questions[0], members=("tiny/none.jsonl",))
    with pytest.raises(InputError, match=r"tiny-text 1\.0 must hold tiny/none\.jsonl, got none\."):
        fetch(tmp_path / "out", cache, dataclasses.replace(sources, questions=(asked,)))
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_it_made(
    cache: Path,
    sources: StudySources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(study_corpora, "StudySources", lambda: sources)
    monkeypatch.setitem(study_corpora.SCALES, "small", SCALE)
    out = tmp_path / "out"
    assert main(["study", "fetch", "--out", str(out), "--scale", "small", "--cache", str(cache)]) == 0
    printed = capsys.readouterr().out
    assert "\nasked.questions.jsonl         1\n" in printed
    assert "river: 1" in printed
    assert f"written to {out}; sources and licences: {out / 'README.md'}" in printed
    assert (out / "task.train.jsonl").is_file()


def test_long_texts_are_cut_behind_sentences_and_nothing_is_lost() -> None:
    text = " ".join(f"{sentence(number, 9)}." for number in range(200))
    cut = list(pieces(text, 500))
    assert " ".join(cut) == text
    assert all(piece.endswith(".") and 250 < len(piece) <= 500 for piece in cut[:-1])
    assert list(pieces("a  b\n c")) == ["a b c"]
    assert list(pieces("ab cd", 4)) == ["ab", "cd"]
    assert "".join(pieces("x" * 1001, 100)) == "x" * 1001
    assert max(map(len, pieces("x" * 1001, 100))) == 100


def test_docstrings_are_read_without_running_the_code() -> None:
    code = b'''"""Of the module."""
raise SystemExit
class A:
    "Of a \\d class."
    def f(self):
        """Of f.

        More."""
        "no docstring"
'''
    assert [text for text in _docstrings(code) if text] == ["Of the module.", "Of a \\d class.", "Of f. More."]


def test_scripture_is_read_from_the_one_long_string() -> None:
    verses = "God`s Spirit was hovering. " * 200
    assert " ".join(_bible(f"bible = Bible(1, 'short', {verses!r})".encode())) == " ".join(
        verses.replace("`", "'").split()
    )


def test_documentation_of_services_and_modules_is_taken_out_of_its_markup() -> None:
    shape = {"b": {"documentation": "<p>Names a <code>bucket</code>.</p>"}, "documentation": "<p>The service</p>"}
    packed = gzip.compress(json.dumps({"shapes": [shape, 3]}).encode())
    assert list(_service_documentation(packed)) == ["The service", "Names a bucket ."]
    module = b"import x\nDOCUMENTATION = r'''\nmodule: copy\nshort_description: Copies\n'''\nEXAMPLES = '''no'''\n"
    assert list(_module_documentation(module)) == ["module: copy short_description: Copies"]


def test_questions_keep_line_ends_in_choices_and_lose_those_without_an_answer() -> None:
    rows = [
        {"question": "Which? ", "options": "A. one\nB. two\nlines\nC. three", "answer": "B. two\nlines"},
        {"question": "Which?", "options": "A. one\nB. two", "answer": "C. three"},
        {"question": "Which?", "options": "A. one", "answer": "A. one"},
    ]
    content = "\n".join(map(json.dumps, rows)).encode() + b"\n\n"
    assert list(parse_questions(content)) == [
        Question(question="Which?", choices=("one", "two\nlines", "three"), answer=1)
    ]


def test_the_studys_sources_are_openly_licensed_and_those_of_specialists_are_not_in_the_corpus() -> None:
    facts = StudySources().facts()
    assert {own["license"] for own in facts} == {
        "Apache 2.0",
        "BSD 3-Clause",
        "CC BY-SA 3.0",
        "CC BY-SA 4.0",
        "GPL 3.0 or later",
        "MIT",
        "ODC-By 1.0",
        "public domain",
    }
    assert all(len(own["sha256"]) == 64 and int(own["sha256"], 16) for own in facts)
    members = {(own.package.name, member) for own in CORPUS for member in own.members}
    judged = [own for held in SPECIALISTS.values() for own in held]
    assert members.isdisjoint((own.package.name, member) for own in [*judged, *QUESTIONS] for member in own.members)
    assert list(SPECIALISTS) == ["medicine", "religion", "encyclopedia", "computing"]
    assert sum(own.share for own in CORPUS) == pytest.approx(1.0)
    assert all(own.share > 0 for own in CORPUS)
