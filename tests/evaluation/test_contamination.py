"""Examples of evaluation sets that have a part in a dataset."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crisp_stream.cli.main import main
from crisp_stream.errors import CorruptDataError, FormatError, InputError
from crisp_stream.evaluation import window_borders
from crisp_stream.evaluation.contamination import Contamination, check_contamination
from crisp_stream.evaluation.question_sets import open_question_set
from crisp_stream.examples.hashes import example_hash
from crisp_stream.examples.question_files import read_questions
from crisp_stream.examples.questions import question_hash
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.provenance import read_places
from crisp_stream.inspection import window_reading
from crisp_stream.inspection.window_texts import WindowDecoder
from crisp_stream.loading.reader import read_windows
from tests.support.seaweed import S3Server
from tests.support.synthetic import EOT_ID, upload, write_synthetic_dataset
from tests.support.words import write_words

WINDOW_TOKENS = 256
LEAVES = dict.fromkeys(range(16), 3)
VOCABULARY = [f"{first}{second}{third}" for first in "bdgkmp" for second in "aeiou" for third in "lnrst"]


def sentence(seed: int, num_words: int) -> str:
    """Words at random: no run of several is there twice."""
    return " ".join(np.random.default_rng(seed).choice(VOCABULARY, num_words).tolist())


def dataset_of(folder: Path, texts: dict[int, str]) -> Dataset:
    """A dataset of 48 windows of random words by a tokenizer of bytes; `texts` stand in the windows named."""
    tokens = np.full((sum(LEAVES.values()), WINDOW_TOKENS), EOT_ID, np.uint16)
    for window in range(len(tokens)):
        content = texts.get(window, sentence(10_000 + window, 60)).encode()[:WINDOW_TOKENS]
        pieces = content.split(b"|")
        own = np.concatenate([np.frombuffer(piece + b"\0", np.uint8).astype(np.uint16) for piece in pieces])[:-1]
        ends = np.cumsum([len(piece) + 1 for piece in pieces])[:-1] - 1
        own[ends] = EOT_ID
        tokens[window, : len(own)] = own
    return write_synthetic_dataset(folder, LEAVES, window_tokens=WINDOW_TOKENS, tokens=tokens, windows_per_shard=5)


def write_lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def quiet(_: str) -> None:
    """No progress."""


TEXTS = [sentence(1, 40), sentence(2, 40), sentence(3, 5), sentence(4, 9), sentence(5, 40), sentence(6, 25)]
QUESTION = sentence(7, 10)
CHOICES = [sentence(8, 6), sentence(9, 6)]


def planted(folder: Path) -> Dataset:
    """Copies: 20 words of text 0, text 3 whole, half of text 4 in either of two documents, a question with a choice."""
    words = TEXTS[4].split()
    return dataset_of(
        folder,
        {
            7: f"before {' '.join(TEXTS[0].upper().split()[10:30])} behind",
            30: f"{TEXTS[0]} too",
            21: f"{TEXTS[3].replace(' ', ', ')}.",
            22: f"{TEXTS[2]} is too short",
            40: f"{' '.join(words[:12])}|{' '.join(words[12:24])}",
            47: f"{QUESTION} {CHOICES[1]}",
        },
    )


def files(folder: Path) -> list[str]:
    rows: list[dict[str, object]] = [{"text": text} for text in TEXTS]
    questions: list[dict[str, object]] = [
        {"question": QUESTION, "choices": CHOICES, "answer": 0},
        {"question": sentence(11, 10), "choices": CHOICES, "answer": 1},
    ]
    return [write_lines(folder / "texts.jsonl", rows), write_lines(folder / "questions.jsonl", questions)]


def test_planted_copies_are_found_with_their_share_words_and_window(tmp_path: Path) -> None:
    root = planted(tmp_path / "data").root
    found = check_contamination(root, files(tmp_path), processes=1, log=quiet)
    assert found.contaminated.tolist() == [True, False, False, True, False, False, True, False]
    assert found.checked.tolist() == [True, True, False, True, True, True, True, True]
    assert found.windows.tolist() == [30, -1, -1, 21, -1, -1, 47, -1]
    assert found.shares[:6].tolist() == [1, 0, 0, 1, 0, 0]
    # A question of 10 words alone, and with a choice 4 n-grams; the choice that is there shares nothing with the other.
    assert found.shares[6] == 5 / 9
    assert found.words[0] == " ".join(TEXTS[0].split()[:13])
    assert found.words[3] == TEXTS[3]
    assert found.words[6] == QUESTION
    assert found.file.tolist() == [0] * 6 + [1] * 2
    assert found.row.tolist() == [1, 2, 3, 4, 5, 6, 1, 2]
    assert (found.num_windows, found.files) == (48, ["texts.jsonl", "questions.jsonl"])


def test_a_part_of_an_example_gives_the_share_of_its_ngrams(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data", {7: " ".join(TEXTS[0].split()[10:30])})
    found = check_contamination(dataset.root, files(tmp_path)[:1], processes=1, log=quiet)
    assert found.shares[0] == 8 / 28
    assert (found.windows[0], found.words[0]) == (7, " ".join(TEXTS[0].split()[10:23]))
    shorter = check_contamination(dataset.root, files(tmp_path)[:1], ngram=5, processes=1, log=quiet)
    assert shorter.shares[0] == 16 / 36
    assert shorter.checked.all()


def test_any_number_of_processes_and_size_of_task_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, names = planted(tmp_path / "data").root, files(tmp_path)
    saved = []
    for processes, task_bytes in ((1, 8 << 20), (2, 1), (2, 1200)):
        monkeypatch.setattr(window_reading, "_PART_BYTES", task_bytes)
        found = check_contamination(root, names, processes=processes, log=quiet)
        found.save(str(tmp_path / "found.parquet"))
        saved.append((tmp_path / "found.parquet").read_bytes())
        assert found.contaminated.sum() == 3
    assert saved[1:] == saved[:1] * 2


def test_the_flags_of_results_are_looked_up_by_their_examples(tmp_path: Path) -> None:
    root, names = planted(tmp_path / "data").root, files(tmp_path)
    check_contamination(root, names, processes=1, log=quiet).save(str(tmp_path / "found.parquet"))
    found = Contamination.load(str(tmp_path / "found.parquet"))
    texts = [example_hash(text) for text in reversed(TEXTS)]
    assert found.flags(texts).tolist() == [False, False, True, False, False, True]
    questions = np.array([question_hash(question) for question in read_questions(names[1])], np.uint64)
    assert found.flags(questions).tolist() == [True, False]
    with pytest.raises(InputError, match=r"got 1 of 2 that are in none of texts\.jsonl, questions\.jsonl\. Search"):
        found.flags([example_hash(TEXTS[0]), example_hash("another")])


def test_a_file_says_what_was_looked_for_where_and_other_files_are_refused(tmp_path: Path) -> None:
    dataset, path = planted(tmp_path / "data"), str(tmp_path / "found.parquet")
    written = check_contamination(dataset.root, files(tmp_path), processes=1, log=quiet)
    written.save(path)
    read = Contamination.load(path)
    assert {name: np.asarray(value).tolist() for name, value in vars(read).items()} == {
        name: np.asarray(value).tolist() for name, value in vars(written).items()
    }
    assert (read.dataset, read.fingerprint, read.ngram) == ("data", dataset.manifest.fingerprint, 13)
    assert read.dataset_warning(dataset.manifest.fingerprint) is None
    assert "trained on dataset 000000000000. Its" in str(read.dataset_warning("0" * 64))
    assert "trained on a dataset it does not name" in str(read.dataset_warning())
    both = str(read.dataset_warning(dataset.manifest.fingerprint, "0" * 64))
    assert "the model was trained also on dataset 000000000000. Its" in both
    table = pq.ParquetFile(path).read()
    for content, message in (
        (table.replace_schema_metadata({}), "not a file of contaminated examples"),
        (table.drop_columns(["share"]), "not a file of contaminated examples"),
        (_with_version(table, 2), r"contamination_version 2 is not 1\."),
    ):
        pq.write_table(content, path)
        with pytest.raises(FormatError, match=message):
            Contamination.load(path)
    with pytest.raises(InputError, match=r"found\.csv: contaminated examples are kept in a file ending in \.parquet"):
        written.save(str(tmp_path / "found.csv"))


def _with_version(table: pa.Table, version: int) -> pa.Table:
    (key, value) = next(iter(table.schema.metadata.items()))
    return table.replace_schema_metadata({key: json.dumps(json.loads(value) | {"contamination_version": version})})


def test_tasks_are_read_as_they_are_judged_and_pairs_of_answers_like_questions(tmp_path: Path) -> None:
    root = planted(tmp_path / "data").root
    rows: list[dict[str, object]] = [
        {"id": "1", "question": question, "choices": {"text": CHOICES, "label": ["A", "B"]}, "answerKey": "B"}
        for question in (sentence(12, 10), QUESTION)
    ]
    pairs: list[dict[str, object]] = [
        {"prompt": QUESTION, "chosen": CHOICES[1], "rejected": "no", "subset": subset}
        for subset in ("hep-cpp", "other")
    ]
    arc, pair = write_lines(tmp_path / "arc.jsonl", rows), write_lines(tmp_path / "pairs.jsonl", pairs)
    names = [f"arc_easy={arc}", f"rewardbench_reasoning={pair}", arc, pair]
    found = check_contamination(root, names, processes=1, log=quiet)
    assert found.files == ["arc_easy", "rewardbench_reasoning", "arc.jsonl", "pairs.jsonl"]
    assert found.contaminated.tolist() == [False, True, True, False, True, True, True]
    assert found.file.tolist() == [0, 0, 1, 2, 2, 3, 3]
    for name, own in ((names[0], found.file == 0), (names[1], found.file == 1), (names[0], found.file == 2)):
        assert open_question_set(name).example_ids.tolist() == found.example_ids[own].tolist()
    assert found.example_ids[2] == found.example_ids[5]


def test_what_is_found_is_what_comparing_all_words_finds(tmp_path: Path) -> None:
    """With few different words there are many chance matches, of which each is looked up by hand."""
    rng = np.random.default_rng(3)
    draw = lambda count: " ".join(rng.choice(["on", "by", "to"], count).tolist())  # noqa: E731
    windows = {window: "|".join(draw(int(rng.integers(1, 40))) for _ in range(2)) for window in range(48)}
    examples = [draw(int(rng.integers(4, 20))) for _ in range(200)]
    path = write_lines(tmp_path / "examples.jsonl", [{"text": text} for text in examples])
    found = check_contamination(dataset_of(tmp_path / "data", windows).root, [path], ngram=9, processes=1, log=quiet)
    kept = {number: f" {text[:WINDOW_TOKENS].replace('|', ' | ')} " for number, text in windows.items()}
    for at, text in enumerate(examples):
        words = text.split()
        length = min(9, len(words))
        runs = [" ".join(words[first : first + length]) for first in range(len(words) - length + 1)]
        holders = {run: [number for number, own in kept.items() if f" {run} " in own] for run in runs}
        there = [run for run in runs if holders[run]]
        is_checked = len(words) >= 8
        assert found.checked[at] == is_checked
        assert found.contaminated[at] == (is_checked and bool(there))
        if found.contaminated[at]:
            assert (found.words[at], found.windows[at]) == (there[0], holders[there[0]][0])
            assert found.shares[at] == len(set(there)) / len(set(runs))
    assert 20 < found.contaminated.sum() < found.checked.sum()


@pytest.mark.parametrize("packing", ["joined", "document"])
def test_words_across_the_border_of_two_windows_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    documents = [sentence(100 + number, 150) for number in range(12)]
    source = write_lines(tmp_path / "source.jsonl", [{"text": text} for text in documents])
    dataset = write_words([source], tmp_path / "data", packing=packing, window_tokens=128, part_characters=2400)
    runs = [" ".join(text.split()[at : at + 13]) for text in documents for at in range(138)]
    others = [f"{' '.join(one.split()[-7:])} {' '.join(two.split()[:6])}" for one, two in pairwise(documents)]
    path = write_lines(tmp_path / "examples.jsonl", [{"text": text} for text in (*runs, *others)])
    found = check_contamination(dataset.root, [path], processes=1, log=quiet)
    texts = WindowDecoder(dataset).documents(read_windows(dataset, np.arange(dataset.manifest.num_windows))["tokens"])
    whole = np.array([any(run in text for text in texts[0]) for run in runs])
    assert 0.05 < 1 - whole.mean() < 0.6
    is_found = found.contaminated[: len(runs)]
    assert is_found[whole].all()
    kept = 1.0 if packing == "document" else 0.75  # the last partial window of a part is in no dataset
    assert kept <= is_found.mean() <= 1.0
    assert not found.contaminated[len(runs) :].any()
    parts = {
        part for shard, row in enumerate(dataset.shards) for part, _ in read_places(dataset, shard, 0, row.num_windows)
    }
    assert len(parts) == 3
    assert found.num_borders == dataset.manifest.num_windows - len(parts)
    holders = [owner for run in runs for text, owner in zip(*texts, strict=True) if run in text]
    assert found.windows[: len(runs)][whole].tolist() == holders
    for at in np.flatnonzero(is_found & ~whole).tolist():
        own = " | ".join(text for text, owner in zip(*texts, strict=True) if owner == found.windows[at])
        assert own.endswith(tuple(runs[at][:length] for length in range(1, len(runs[at]))))
    again = check_contamination(dataset.root, [path], processes=2, log=quiet)
    assert again.windows.tolist() == found.windows.tolist()
    monkeypatch.setattr(window_borders, "MAX_WINDOWS", 4)
    alone = check_contamination(dataset.root, [path], processes=1, log=quiet)
    assert alone.contaminated[: len(runs)].tolist() == whole.tolist()
    assert alone.num_borders == 0


def test_a_damaged_window_is_named(tmp_path: Path) -> None:
    dataset = planted(tmp_path / "data")
    row = dataset.shards[1]
    path = Path(dataset.root.removeprefix("file://")) / row.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    window = int(dataset.first_window_per_shard[2]) - 1
    with pytest.raises(CorruptDataError, match=rf"window {window} .* does not match its checksum"):
        check_contamination(dataset.root, files(tmp_path), processes=1, log=quiet)


def test_windows_are_decoded_as_their_tokenizer_does_also_where_characters_are_cut(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data", {0: "naïve 中文 🙂 café|zwei 文"})
    decoder = WindowDecoder(dataset)
    tokens = read_windows(dataset, np.arange(2))["tokens"].copy()
    tokens[1, -5:] = [0xE4, 0xB8, EOT_ID, 0xAD, 0xF0]
    texts, owners = decoder.documents(tokens)
    assert texts[:2] == ["naïve 中文 🙂 café", "zwei 文"]
    assert owners[:2].tolist() == [0, 0]
    assert owners[-1] == 1
    assert texts[-1] == "\ufffd\ufffd"
    decoder._bytes_of_token = None
    again, owners_again = decoder.documents(tokens)
    assert (again, owners_again.tolist()) == (texts, owners.tolist())


def test_a_tokenizer_that_is_not_of_bytes_is_used_itself(tmp_path: Path) -> None:
    """Where the bytes of tokens one after another are not the text, the first windows show it."""
    decoder = WindowDecoder(dataset_of(tmp_path / "data", {0: "one two"}))
    assert decoder._bytes_of_token is not None
    decoder._bytes_of_token[ord("o")] = b"0"
    tokens = read_windows(open_dataset(tmp_path / "data"), np.arange(1))["tokens"]
    assert decoder.documents(tokens)[0][0] == "one two"


def test_a_dataset_in_object_storage_is_checked_and_the_file_put_there(s3: S3Server, tmp_path: Path) -> None:
    url = upload(planted(tmp_path / "data"), f"{s3.fresh_prefix()}/data")
    out = f"{url.rpartition('/')[0]}/found.parquet"
    assert main(["contamination", url, *files(tmp_path), "--out", out, "--processes", "2"]) == 0
    found = Contamination.load(out)
    assert found.contaminated.tolist() == [True, False, False, True, False, False, True, False]
    assert found.dataset == "data"


def test_the_command_shows_counts_examples_and_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = planted(tmp_path / "data").root, str(tmp_path / "found.parquet")
    assert main(["contamination", root, *files(tmp_path), "--out", out, "--processes", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        " examples contaminated too short  file",
        "        6            2         1  texts.jsonl",
        "        2            1         0  questions.jsonl",
    ]
    assert lines[4].startswith("row 1 of texts.jsonl: 100.0% of its n-grams; window 30: ")
    assert "3 of 8 examples contaminated; 48 windows, 0.0 MB of text in" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["texts.jsonl", "--out", "found.csv"], "found.csv: contaminated examples are kept in a file ending in"),
        (["texts.jsonl", "--out", "found.parquet", "--ngram", "1"], "ngram: must be 2 to 64 words, got 1"),
        (["texts.jsonl", "--out", "found.parquet", "--processes", "0"], "processes: must be at least 1, got 0"),
        (["short.jsonl", "--out", "found.parquet"], "at least one evaluation text of 8 words is needed"),
        (["other.jsonl", "--out", "found.parquet"], "other.jsonl:1: must hold a text in 'text', or a question in a"),
    ],
)
def test_what_cannot_be_checked_is_refused_before_the_dataset_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    root = planted(tmp_path / "data").root
    files(tmp_path)
    write_lines(tmp_path / "short.jsonl", [{"text": "far too short"}])
    write_lines(tmp_path / "other.jsonl", [{"content": "no text"}])
    assert main(["contamination", root, *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "contamination: done" not in captured.out
