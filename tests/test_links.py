"""Links, anchors, images, files, modules and tests that the pages name exist, and prose fits into 120 columns."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("docs", "benchmarks", "crisp_stream", "examples", "recipes", "tests", "writers")
MADE_BY_COMMANDS = ("docs/judge/study/miniature/tables.md",)
"""Pages without prose of ours: `crisp-stream study report` writes them."""
METADATA_KEYS = {
    f"crisp_stream.{name}" for name in ("histogram", "task_embeddings", "terms", "texts", "window_scores", "windows")
}
"""Dotted names that are bytes of files, not modules."""


def pages() -> list[Path]:
    """All Markdown files of the repository."""
    return [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]


def texts_of_the_repository() -> list[Path]:
    """Files that name pages and tests: Markdown, Python, recipes."""
    ends = ("*.py", "*.yaml", "*.sh")
    sources = [path for folder in FOLDERS for end in ends for path in (ROOT / folder).rglob(end)]
    return [*pages(), *(path for path in sources if path != Path(__file__))]


def without_code(text: str) -> str:
    """The text without fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    """Names that GitHub gives to the headings: lower case, words joined by hyphens, numbered where they repeat."""
    names: Counter[str] = Counter()
    result = set()
    for heading in re.findall(
        r"^#+ +(.*?)\s*$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.M
    ):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        result.add(f"{name}-{names[name]}" if names[name] else name)
        names[name] += 1
    return result


def broken_links(page: Path) -> list[str]:
    """Targets of links and images that are no file, or no heading of it."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.M)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            found.append(target)
    return found


def missing_files(text: str, root: Path = ROOT) -> list[str]:
    """Paths in backticks, and pages named anywhere, that do not exist."""
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)[`\s]", text)
    named += re.findall(r"(?<![\w/.])(docs/[\w/-]+\.(?:md|svg))\b", text)
    return sorted({path for path in named if not (root / path).exists()})


def missing_modules(text: str, root: Path = ROOT) -> list[str]:
    """Dotted names below crisp_stream and benchmarks that are neither a module nor defined in one."""
    named = set(re.findall(r"(?<![\w/.])((?:crisp_stream|benchmarks)(?:\.[A-Za-z_]\w*)+)\b(?!/)", text))
    imported = re.findall(r"^from (crisp_stream[\w.]*) import ([\w, ]+)$", text, re.MULTILINE)
    named |= {f"{module}.{name.strip()}" for module, names in imported for name in names.split(",")}
    return sorted(name for name in named - METADATA_KEYS if not is_defined(name, root))


def is_defined(dotted: str, root: Path) -> bool:
    """Whether a dotted name is a package, a module, or a name that a module defines at its top."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        place, names = root.joinpath(*parts[:length]), parts[length:]
        file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        if file.is_file():
            pattern = rf'^(?:def |class |)"?{names[0]}\b|^    "{names[0]}":' if names else ""
            return re.search(pattern, file.read_text(), re.MULTILINE) is not None
    return False


def missing_tests(text: str, tests: Path = ROOT / "tests") -> list[str]:
    """Tests in backticks, by file name or by function, that do not exist; `test_must_1…` stands for its beginning."""
    files = {path.name for path in tests.rglob("*.py")}
    functions = set(re.findall(r"def (test_\w+)", "\n".join(path.read_text() for path in tests.rglob("test_*.py"))))
    absent = [name for name in re.findall(r"`(test_\w+\.py)`", text) if name not in files]
    for name, rest in re.findall(r"`(test_\w+)(…?)`", text):
        if name.count("_") < 3 and not rest:
            continue  # a key of a file, such as `test_limit`
        if name not in functions and not (rest and any(function.startswith(name) for function in functions)):
            absent.append(name)
    return absent


def long_lines(text: str) -> list[int]:
    """Numbers of prose lines over 120 columns.

    Tables, code blocks, images, lines that are one link, its target or a code span, and what a command writes between
    two HTML comments may be longer.
    """
    text = re.sub(
        r"^(?:```.*?^```|<!--.*?<!-- end.*?-->)", lambda match: "\n" * match[0].count("\n"), text, flags=re.S | re.M
    )
    free = re.compile(r"\||!\[|#|\[[^]]*\]: \S+$|\s*(?:[-*] )?(?:\[[^]]*\]\([^)]*\)|`[^`]*`)[.:,]?$|`python ")
    return [number for number, line in enumerate(text.splitlines(), 1) if len(line) > 120 and not free.match(line)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_anchors_and_images_resolve(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_files_modules_and_tests_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    assert (missing_files(text), missing_modules(text), missing_tests(text)) == ([], [], [])


def test_pages_that_code_and_recipes_name_exist() -> None:
    named = re.compile(r"(?<![\w/.])(?:docs/[\w/-]+\.(?:md|svg)|FORMAT\.md|README\.md|CONTRIBUTING\.md)")
    absent = {
        f"{file.relative_to(ROOT)}: {page}"
        for file in texts_of_the_repository()
        for page in named.findall(file.read_text())
        if not (ROOT / page).exists()
    }
    assert absent == set()


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_fits_into_120_columns(page: Path) -> None:
    if str(page.relative_to(ROOT)) not in MADE_BY_COMMANDS:
        assert long_lines(page.read_text()) == []


def test_every_page_of_the_docs_stands_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    guides = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md") if path.name != "tables.md"]
    assert [str(path) for path in guides if f"({path})" not in index and path.name != "README.md"] == []


def test_broken_links_anchors_and_images_are_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A `b` heading, twice\n\n## A b heading, twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#a-b-heading-twice) [c](other.md#a-b-heading-twice-1) [d](#here) "
        "[e](https://example.org/x)\n```\n[not](a-link)\n```\n"
        "[1](absent.md) [2](other.md#absent) [3](#absent) ![4](absent.svg)\n"
    )
    assert broken_links(page) == ["absent.md", "other.md#absent", "#absent", "absent.svg"]


def test_absent_files_modules_and_tests_are_seen(tmp_path: Path) -> None:
    text = (
        "`tests/test_links.py`, `tests/absent.py`, `benchmarks/absent.py run`, docs/absent.md, "
        "`crisp_stream.Phase`, `crisp_stream.order.order`, `crisp_stream.absent.order`, "
        "`crisp_stream.order.order.absent`, "
        "`test_links.py`, `test_absent.py`, `test_prose_fits_into_120_columns`, `test_must_1…`, "
        "`test_absent_of_all_files`, `test_limit`\n"
        "from crisp_stream import Histogram, Absent\n"
    )
    assert missing_files(text) == ["benchmarks/absent.py", "docs/absent.md", "tests/absent.py"]
    assert missing_modules(text) == [
        "crisp_stream.Absent",
        "crisp_stream.absent.order",
        "crisp_stream.order.order.absent",
    ]
    assert missing_tests(text) == ["test_absent.py", "test_absent_of_all_files"]


def test_long_prose_is_seen_and_tables_and_code_may_be_long() -> None:
    long = "word " * 30
    may_be_long = f"| {long} |\n```\n{long}\n```\n[name]: https://example.org/{'x' * 120}"
    page = f"{long}\n{may_be_long}\n- {long}\n<!-- table -->\n{long}\n<!-- end table -->\n{long}"
    assert long_lines(page) == [1, 7, 11]
