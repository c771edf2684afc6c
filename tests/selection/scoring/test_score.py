"""Scores of windows: each kind against a plain second computation, by any number of processes, after a kill."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from crisp_stream.cli.main import main
from crisp_stream.errors import InputError
from crisp_stream.format.dataset import Dataset, open_dataset
from crisp_stream.format.embeddings import WindowEmbeddings
from crisp_stream.format.provenance import document_spans
from crisp_stream.format.tokenizer import DocumentTokenizer
from crisp_stream.histograms.histogram import Histogram
from crisp_stream.histograms.window_scores import WindowScores, load_scores
from crisp_stream.loading.reader import read_windows
from crisp_stream.selection.scoring import score as scoring
from crisp_stream.selection.scoring.score import ScoreOptions, score_windows
from crisp_stream.storage.store import open_store
from crisp_stream.writers.write import write
from tests.support.seaweed import S3Server
from tests.support.synthetic import upload
from tests.support.written_dataset import TOPICS, small_options

ODD = [
    "Zeit für Döner!!! — 你好,世界。你好,世界。 हिन्दी में लिखा हुआ पाठ 😀😀😀 " * 3,
    "the same five words again " * 40,
    "one",
]


def quality_of(number: int) -> float:
    return round(number * 0.37 % 5 - 1, 3)


def quiet(_: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of CPython's documentation and some odd ones, with columns, in two files, one of them compressed."""
    folder = tmp_path_factory.mktemp("texts")
    documents = [*[text[:1200] for text in TOPICS], *ODD]
    documents[5:5] = [""]  # dropped, but counted
    lines = [
        json.dumps({"id": number, "text": text, "meta": {"quality": quality_of(number)}, "flag": number % 2 == 0})
        for number, text in enumerate(documents)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines[:40]) + "\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(("\n".join(lines[40:]) + "\n").encode()))
    return folder


@pytest.fixture(scope="module", params=["document", "joined"])
def dataset(request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("data") / "root"
    chosen = {"encoder": "lsi", "max_length": None, "packing": request.param, "embeddings": str(root.parent / "kept")}
    write(small_options(texts, root, inputs=[str(texts)], **chosen), log=quiet)
    return open_dataset(root)


def scored(dataset: Dataset, out: Path | str, by: str, *, processes: int = 1, **options: Any) -> np.ndarray:
    asked = ScoreOptions(by=by, out=f"{out}/x.scores.parquet", **options)
    scores = score_windows(dataset.root, asked, processes=processes, log=quiet)
    np.testing.assert_array_equal(WindowScores.load(asked.out).scores, scores.scores)
    assert scores.dataset_fingerprint == dataset.manifest.fingerprint
    return scores.scores


def documents_of_windows(dataset: Dataset) -> list[list[str]]:
    """The texts of the documents in every window, decoded by `tokenizers`."""
    tokenizer = DocumentTokenizer(dataset.tokenizer_path())
    eot = dataset.manifest.tokenizer.eot_token
    tokens = read_windows(dataset, np.arange(dataset.manifest.num_windows))["tokens"]
    return [[part.strip("\ufffd") for part in text.split(eot)] for text in tokenizer.decode(list(tokens))]


def plain_words(text: str) -> list[str]:
    """Words as `words.py` says, by a regular expression; ideographs and kana stand alone."""
    import unicodedata

    folded = unicodedata.normalize("NFKC", text).casefold()
    words, word = [], ""
    for character in folded:
        alone = "\u3040" <= character < "\u3100" or "\u4e00" <= character < "\ua000"
        if not alone and unicodedata.category(character)[0] in "LMN":
            word += character
            continue
        words += [word] if word else []
        words += [character] if alone else []
        word = ""
    return [*words, word] if word else words


def plain_symbols(documents: list[str]) -> float:
    import unicodedata

    text = "".join(documents)
    symbols = sum(unicodedata.category(c)[0] not in "LMN" and not c.isspace() for c in text)
    return symbols / max(len(text), 1)


def plain_types(documents: list[str]) -> float:
    words = [word for document in documents for word in plain_words(document)]
    return len(set(words)) / max(len(words), 1)


def plain_repeats(documents: list[str], ngram: int) -> float:
    words = [plain_words(document) for document in documents]
    counts = Counter(tuple(document[at : at + ngram]) for document in words for at in range(len(document) - ngram + 1))
    inside = total = 0
    for document in words:
        repeated = set()
        for at in range(len(document) - ngram + 1):
            if counts[tuple(document[at : at + ngram])] > 1:
                repeated |= set(range(at, at + ngram))
        inside += sum(len(document[at]) for at in repeated)
        total += sum(map(len, document))
    return inside / max(total, 1)


MEASURES: dict[str, Callable[[list[str]], float]] = {
    "symbols": plain_symbols,
    "types": plain_types,
    "repeats": lambda documents: plain_repeats(documents, 5),
}


@pytest.mark.parametrize("by", MEASURES)
def test_measures_of_text_are_those_of_a_plain_computation(dataset: Dataset, tmp_path: Path, by: str) -> None:
    expected = [MEASURES[by](documents) for documents in documents_of_windows(dataset)]
    found = scored(dataset, tmp_path, by)
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(found)) > 5
    assert found.dtype == np.float32


def test_n_grams_may_be_of_another_length(dataset: Dataset, tmp_path: Path) -> None:
    expected = [plain_repeats(documents, 2) for documents in documents_of_windows(dataset)]
    assert scored(dataset, tmp_path, "repeats", ngram=2) == pytest.approx(expected, abs=1e-6)


def test_lengths_are_tokens_without_padding(dataset: Dataset, tmp_path: Path) -> None:
    tokens = read_windows(dataset, np.arange(dataset.manifest.num_windows))["tokens"]
    eot, full = dataset.manifest.tokenizer.eot_id, dataset.manifest.window_tokens
    joined = dataset.manifest.packing == "joined"
    expected = [full if joined or eot not in row else row.tolist().index(eot) for row in tokens]
    found = scored(dataset, tmp_path, "length")
    assert found.tolist() == expected
    assert (len(set(expected)) == 1) == joined


def test_centroid_is_the_cosine_to_the_leaf_by_embeddings_and_by_embedding_again(
    dataset: Dataset, tmp_path: Path
) -> None:
    kept = Path(dataset.root).parent / "kept"
    rows = WindowEmbeddings.load(kept, dataset).rows.astype(np.float64)
    expected = []
    for window, leaf in enumerate(dataset.leaf_of_windows(np.arange(len(rows))).tolist()):
        centroid = None
        for level, nodes in enumerate(dataset.tree.nodes_per_level, 1):
            node = leaf // dataset.manifest.arity ** (dataset.manifest.depth - level)
            if node not in nodes.tolist():
                break
            centroid = dataset.tree.centroids_per_level[level - 1][nodes.tolist().index(node)].astype(np.float64)
        assert centroid is not None
        row = rows[window]
        expected.append(row @ centroid / np.linalg.norm(row) / np.linalg.norm(centroid))
    assert scored(dataset, tmp_path, "centroid", embeddings=str(kept)) == pytest.approx(expected, abs=1e-6)
    assert scored(dataset, tmp_path / "again", "centroid") == pytest.approx(expected, abs=1e-3)
    assert np.std(expected) > 0.01


@pytest.mark.parametrize(("column", "value"), [("meta.quality", quality_of), ("flag", lambda n: float(n % 2 == 0))])
def test_a_column_is_the_mean_over_a_windows_tokens(
    dataset: Dataset, texts: Path, tmp_path: Path, column: str, value: Callable[[int], float]
) -> None:
    expected = []
    for source in document_spans(dataset, np.arange(dataset.manifest.num_windows)):
        numbers = [value(span.row + 40 * (span.source == "b.jsonl.gz")) for span in source.documents]
        weights = [span.num_tokens for span in source.documents]
        expected.append(np.average(numbers, weights=weights))
    found = scored(dataset, tmp_path, f"column:{column}", records=(str(texts),))
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(found)) > 1
    assert not (tmp_path / "x.scores.parquet.work").exists()


def test_columns_of_a_dataset_that_has_grown_need_the_records_of_all_of_it(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, added = tmp_path / "root", tmp_path / "c.jsonl"
    write(small_options(texts, root, inputs=[str(texts)], encoder="lsi", max_length=None), log=quiet)
    added.write_text(json.dumps({"text": TOPICS[3] + TOPICS[4], "meta": {"quality": 77}}) + "\n")
    assert main(["append", str(root), str(added), "--processes", "1"]) == 0
    dataset = open_dataset(root)
    with pytest.raises(InputError, match=r"--records: must hold all files .* but c\.jsonl is missing"):
        scored(dataset, tmp_path, "column:meta.quality", records=(str(texts),))
    found = scored(dataset, tmp_path, "column:meta.quality", records=(str(texts), str(added)))
    assert found.max() == 77
    old = ScoreOptions(by="length", out=str(tmp_path / "old.scores.parquet"))
    score_windows(str(root), old, generation=0, processes=1, log=quiet)
    asked = ["select", "where", "old > 0", "--scores", old.out, "--data", str(root), "--out"]
    assert main([*asked, str(tmp_path / "a.windows.parquet")]) == 2
    message = r"old\.scores\.parquet is one of generation 0 of .*, which is opened in generation 1: windows are"
    assert re.search(message, capsys.readouterr().err)
    assert main([*asked, str(tmp_path / "a.windows.parquet"), "--generation", "0"]) == 0


def test_documents_without_a_number_are_refused_or_get_one(texts: Path, tmp_path: Path) -> None:
    source = tmp_path / "docs.jsonl"
    values: list[object] = [3, None, "2.5", [[0, 9, 7.0]], "good"]
    lines = [
        json.dumps({"text": (text[:600] + "\n") * 2, "score": value})
        for text, value in zip(TOPICS, values * 20, strict=False)
    ]
    source.write_text("\n".join(lines))
    root = tmp_path / "root"
    chosen = {"inputs": [str(source)], "encoder": "lsi", "max_length": None, "packing": "document"}
    write(small_options(texts, root, **chosen), log=quiet)
    dataset = open_dataset(root)
    with pytest.raises(InputError, match=r"document 1 of docs\.jsonl: must have a number in the column 'score'"):
        scored(dataset, tmp_path, "column:score", records=(str(source),))
    found = scored(dataset, tmp_path, "column:score", records=(str(source),), missing=-1)
    assert set(found.tolist()) == {3.0, -1.0, 2.5, 7.0}
    source.write_text("\n".join(lines[:9]))
    with pytest.raises(InputError, match=r"docs\.jsonl must be the file .* but holds 9 records"):
        scored(dataset, tmp_path, "column:score", records=(str(source),), missing=-1)
    with pytest.raises(InputError, match=r"--records: must be the files .* which are called docs\.jsonl, got a\.jsonl"):
        scored(dataset, tmp_path, "column:score", records=(str(texts / "a.jsonl"),))


FUNCTIONS = """
import numpy as np
from pathlib import Path
CALLS = Path(__file__).with_name("calls.txt")

def letters(texts):
    with CALLS.open("a") as file:
        file.write("x")
    return [text.count("e") / 2 for text in texts]

def first_token(texts, tokens):
    return tokens[:, 0]

def broken(texts):
    return 1 / 0

def short(texts):
    return [1.0]

def words(texts):
    return texts

def infinite(texts):
    return [float("nan")] * len(texts)
"""


def test_functions_of_a_user_get_the_texts_and_tokens_of_windows(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    expected = [
        "\n\n".join(part.strip() for part in documents if part.strip()).count("e") / 2
        for documents in documents_of_windows(dataset)
    ]
    assert scored(dataset, tmp_path, "my_functions.py:letters").tolist() == expected
    assert scored(dataset, tmp_path, "my_functions:letters").tolist() == expected
    assert scored(dataset, tmp_path / "two", "my_functions:letters", processes=2).tolist() == expected
    tokens = read_windows(dataset, np.arange(dataset.manifest.num_windows))["tokens"]
    assert scored(dataset, tmp_path, "my_functions.py:first_token").tolist() == tokens[:, 0].tolist()
    assert WindowScores.load(tmp_path / "x.scores.parquet").provenance["function"] == "my_functions.py:first_token"


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("broken", r"windows 0 to \d+: raised ZeroDivisionError.*\(my_functions\.py, line 15\)\. Mend the function"),
        ("short", r"must give one number per text, \d+ of them, got shape \[1\]"),
        ("words", "must give a list of numbers, got list"),
        ("infinite", "every window must have a finite score that float32 holds, got NaN for window 0"),
        ("absent", r"my_functions\.py must have a function absent, but has none"),
    ],
)
def test_a_function_that_gives_no_numbers_is_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, message: str
) -> None:
    (tmp_path / "my_functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        scored(dataset, tmp_path, f"my_functions.py:{by}")
    assert not (tmp_path / "x.scores.parquet").exists()


def test_numbers_made_elsewhere_are_bound_to_the_dataset(dataset: Dataset, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=dataset.manifest.num_windows)
    np.save(tmp_path / "mine.npy", numbers)
    by = f"array:{tmp_path / 'mine.npy'}"
    np.testing.assert_array_equal(scored(dataset, tmp_path, by), numbers.astype(np.float32))
    np.save(tmp_path / "mine.npy", numbers[1:])
    with pytest.raises(InputError, match=r"must hold one number for each of .* windows"):
        scored(dataset, tmp_path, by)
    numbers[7] = np.inf
    np.save(tmp_path / "mine.npy", numbers)
    with pytest.raises(InputError, match="got inf for window 7"):
        scored(dataset, tmp_path, by)
    (tmp_path / "mine.npy").write_text("no array")
    with pytest.raises(InputError, match=r"must be a \.npy file of numbers"):
        scored(dataset, tmp_path, by)


def test_files_are_the_same_by_any_number_of_processes_and_tasks(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(dataset, tmp_path / "one", "repeats")
    monkeypatch.setattr(scoring, "TASK_BYTES", 37 * dataset.manifest.sample_bytes)
    scored(dataset, tmp_path / "two", "repeats", processes=2)
    files = [(tmp_path / name / "x.scores.parquet").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["x.scores.parquet"]


def test_a_stopped_run_goes_on_with_what_is_missing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TASK_BYTES", 40 * dataset.manifest.sample_bytes)
    real, calls = scoring.read_tokens, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(scoring, "read_tokens", stopping)
    asked = ScoreOptions(by="types", out=str(tmp_path / "x.scores.parquet"))
    with pytest.raises(KeyboardInterrupt):
        score_windows(dataset.root, asked, processes=1, log=quiet)
    assert not Path(asked.out).exists()
    lines: list[str] = []
    found = score_windows(dataset.root, asked, processes=1, log=lines.append)
    assert re.match(r"scores: [1-9]\d* of \d+ tasks were done by an earlier run", lines[0])
    np.testing.assert_array_equal(found.scores, scored(dataset, tmp_path / "whole", "types"))
    before = len(calls)
    score_windows(dataset.root, asked, processes=1, log=lines.append)
    assert len(calls) == before
    assert "holds these scores of" in lines[-1]
    # another function, n-gram or kind is another score
    score_windows(dataset.root, ScoreOptions(by="symbols", out=asked.out), processes=1, log=lines.append)
    assert len(calls) > before


SLOW = """
import time
from pathlib import Path

def score(texts):
    time.sleep(0.05)
    with open("calls.txt", "a") as file:
        file.write("x" * len(texts))
    return [len(text) for text in texts]
"""


def test_a_killed_command_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    code = (
        "import sys\nfrom crisp_stream.selection.scoring import score\nfrom crisp_stream.cli.main import main\n"
        f"score.TASK_BYTES = 20 * {dataset.manifest.sample_bytes}\nsys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "slow.scores.parquet"
    command = [sys.executable, "-c", code, "score", dataset.root, "--by", "slow.py:score", "--out", str(out)]
    command += ["--processes", "1"]
    calls = tmp_path / "calls.txt"
    for _ in range(2):  # killed twice
        had = len(calls.read_text()) if calls.exists() else 0
        running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not calls.exists() or len(calls.read_text()) < had + 50:
            assert running.poll() is None
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        assert not out.exists()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(r"scores: \d+ of \d+ tasks were done by an earlier run", done.stdout)
    num_windows = dataset.manifest.num_windows
    assert num_windows <= len(calls.read_text()) <= num_windows + 2 * 20  # again: the running task of each kill
    by_hand = [len("\n\n".join(t.strip() for t in texts if t.strip())) for texts in documents_of_windows(dataset)]
    assert WindowScores.load(out).scores.tolist() == by_hand


def test_roots_and_files_may_be_in_object_storage(dataset: Dataset, s3: S3Server, tmp_path: Path) -> None:
    root, out = upload(dataset, s3.fresh_prefix()), s3.fresh_prefix()
    here = scored(dataset, tmp_path, "symbols")
    there = scored(SimpleNamespace(root=root, manifest=dataset.manifest), out, "symbols", processes=2)  # type: ignore
    np.testing.assert_array_equal(here, there)
    assert [name for name, _ in open_store(out).list()] == ["x.scores.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "beauty"}, r"--by: must be length, symbols, .* got 'beauty'"),
        ({"by": "column:meta.quality"}, r"keeps no columns .* --records FILE"),
        ({"by": "repeats", "ngram": 1}, "--ngram: must be 2 to 100 words, got 1"),
        ({"by": "length", "records": ("a",)}, "--records: must be left out with --by length"),
        ({"by": "symbols", "embeddings": "a"}, "--embeddings: must be left out with --by symbols"),
        ({"by": "centroid", "embeddings": "a", "encoder": "b"}, "--encoder: must be left out beside --embeddings"),
        ({"by": "centroid", "embeddings": "nowhere"}, "nowhere: holds no embeddings"),
        ({"by": "no_such_module_here:f"}, "must name a module that can be imported, got ModuleNotFoundError"),
        ({"by": "nowhere.py:f"}, "no such file"),
        ({"by": "length", "name": "q8"}, "the name of a score must be letters, digits and _, .* got 'q8'"),
        ({"by": "length", "name": "and"}, "the name of a score .* got 'and'"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    dataset: Dataset, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        scored(dataset, tmp_path, **options)


def test_the_command_prints_quantiles_and_draws_them(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "my-types.scores.parquet", tmp_path / "types.svg"
    asked = ["score", dataset.root, "--by", "types", "--processes", "1", "--out"]
    assert main([*asked, str(out), "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    scores = WindowScores.load(out)
    assert scores.name == "my_types"
    ordered = np.sort(scores.scores)
    row = re.search(r"^all +([\d,]+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)", shown, re.M)
    assert row is not None
    assert int(row[1].replace(",", "")) == len(ordered)
    assert float(row[2]) == pytest.approx(ordered.mean(), abs=1e-3)
    assert float(row[3]) == pytest.approx(ordered[0], abs=1e-3)
    assert float(row[6]) == pytest.approx(ordered[-(-len(ordered) // 2) - 1], abs=1e-3)
    clusters = re.findall(r"^(\d+) +(\d+) ", shown, re.M)
    level_1 = np.unique(dataset.leaves // dataset.manifest.arity ** (dataset.manifest.depth - 1))
    assert sorted(int(node) for node, _ in clusters) == level_1.tolist()
    assert sum(int(windows) for _, windows in clusters) == len(ordered)
    assert "<svg" in plot.read_text()
    assert main([*asked, str(tmp_path / "types.npy")]) == 2
    assert "--out: must end in .scores.parquet" in capsys.readouterr().err
    assert main([*asked, str(out), "--plot", str(tmp_path / "a.gif")]) == 2
    assert "--plot: must end in .svg, .png, .pdf" in capsys.readouterr().err


def test_the_page_about_scores_does_what_it_says(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "task" / "scores.md").read_text()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(texts, "corpus")
    lines = [json.loads(line) for line in Path("corpus/a.jsonl").read_text().splitlines()]
    lines = [{**line, "quality": {"score": number}} for number, line in enumerate(lines)]
    Path("corpus/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("corpus/b.jsonl.gz").unlink()
    chosen = {"inputs": ["corpus"], "encoder": "lsi", "max_length": None, "window_tokens": 256}
    write(small_options(texts, "ROOT", **chosen), log=quiet)
    Histogram.base(open_dataset("ROOT")).save("task.parquet")
    python = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_quality.py").write_text(python[0])
    exec(compile(python[1], "scores.md", "exec"), {})
    assert load_scores(["mine.scores.parquet"], open_dataset("ROOT"))["mine"].scores.max() == 1
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)).replace("\\\n", "")
    commands = [re.split(r"\s\s+#", line)[0] for line in shell.splitlines() if line]
    assert len(commands) == 9
    for command in commands:
        words = shlex.split(command)
        more = ["--processes", "1"] if words[1] == "score" else []
        assert main([*words[1:], *more]) == 0, command
    written = yaml.safe_load(Path("tiers/components.yaml").read_text())
    [shown] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert written == yaml.safe_load(shown)
