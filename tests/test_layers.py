"""Packages import downwards only, files form no circle, and no folder is too wide to find something in."""

from __future__ import annotations

import ast
import graphlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.test_imports import HEAVY, ROOT, imported_modules, product_sources

LAYERS = """cli | study demo | trial | training | evaluation selection report | inspection forecast counting hub
            | loading corpora | writers histograms results | format models | config examples order tree | records
            | storage typed table figure processes ranks | digits errors hashing"""
LEVEL = {name: -line for line, names in enumerate(LAYERS.split("|")) for name in names.split()}
MOST_MODULES = 18


def module_name(path: Path, root: Path = ROOT) -> str:
    """`crisp_stream.order.draws` of crisp_stream/order/draws.py; files of writers/ are crisp_stream.writers."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = ("crisp_stream", *parts) if parts[0] == "writers" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """The package below crisp_stream, or the name of a module that stands there alone."""
    return module.split(".")[1] if "." in module else ""


def file_imports(files: list[Path], root: Path = ROOT) -> dict[str, set[str]]:
    """The modules among `files` that each of them imports anywhere: locally and for type checkers, too."""
    names = {module_name(path, root): path for path in files}
    return {module: (imported_modules(path) & names.keys()) - {module} for module, path in names.items()}


def upward_imports(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports from a package of the same line of LAYERS, or of a line above."""
    arrows = [(module, other) for module, others in graph.items() for other in others]
    return sorted(
        (module, other)
        for module, other in arrows
        if "" not in (package := (package_of(module), package_of(other)))
        and package[0] not in ("__main__", package[1])
        and LEVEL[package[0]] <= LEVEL[package[1]]
    )


def without_folders(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Imports without those of packages: `from a.b import c` imports a.b.c, and a.b only as its folder."""
    folders = {module.rpartition(".")[0] for module in graph}
    return {module: others - folders for module, others in graph.items()}


def too_wide(files: list[Path]) -> dict[str, int]:
    """Folders with more modules than a reader takes in, `__init__` not counted."""
    modules = Counter(str(path.parent) for path in files if path.name != "__init__.py")
    return {folder: count for folder, count in modules.items() if count > MOST_MODULES}


def test_packages_import_downwards_only() -> None:
    assert upward_imports(file_imports(product_sources())) == []


def test_files_form_no_circle() -> None:
    graphlib.TopologicalSorter(
        without_folders(file_imports(product_sources()))
    ).prepare()  # CycleError names the circle


def test_no_folder_is_too_wide() -> None:
    assert too_wide(product_sources()) == {}


def write_sources(root: Path, texts: dict[str, str]) -> list[Path]:
    files = [root / name for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return files


def test_an_upward_import_inside_a_function_or_for_type_checkers_is_seen(tmp_path: Path) -> None:
    texts = {
        "crisp_stream/order/draws.py": "def later():\n    from crisp_stream.loading.reader import read\n",
        "crisp_stream/loading/reader.py": "if TYPE_CHECKING:\n    from crisp_stream.counting.count import Count\n",
        "writers/write.py": "from crisp_stream.counting import count\n",
        "crisp_stream/counting/count.py": "from crisp_stream.order.draws import draw\n",
    }
    assert upward_imports(file_imports(write_sources(tmp_path, texts), tmp_path)) == [
        ("crisp_stream.loading.reader", "crisp_stream.counting.count"),
        ("crisp_stream.order.draws", "crisp_stream.loading.reader"),
        ("crisp_stream.writers.write", "crisp_stream.counting.count"),
    ]


def test_a_circle_hidden_in_a_function_is_seen(tmp_path: Path) -> None:
    texts = {
        "crisp_stream/order/order.py": "import crisp_stream.order.draws\n",
        "crisp_stream/order/draws.py": "def later():\n    from crisp_stream.order import order\n",
    }
    with pytest.raises(graphlib.CycleError, match="nodes are in a cycle"):
        graphlib.TopologicalSorter(without_folders(file_imports(write_sources(tmp_path, texts), tmp_path))).prepare()


def test_a_wide_folder_is_seen() -> None:
    assert too_wide([Path("order") / f"part_{number}.py" for number in range(MOST_MODULES + 1)]) == {"order": 19}


def packages() -> list[Path]:
    """The `__init__.py` of every package below crisp_stream."""
    return [path for path in product_sources() if path.name == "__init__.py" and path.parent != ROOT / "crisp_stream"]


def heavy_files(folder: Path) -> dict[str, set[str]]:
    """The files of a package that import each heavy library."""
    imports = {path.name: {name.partition(".")[0] for name in imported_modules(path)} for path in folder.glob("*.py")}
    libraries = {library: {file for file, names in imports.items() if library in names} for library in HEAVY}
    return {library: files for library, files in libraries.items() if files}


def stated_heavy_files(docstring: str) -> dict[str, set[str]]:
    """`torch (batches.py, topology.py), composer (any file)` as a mapping."""
    stated = re.findall(r"(\w+)\s+\(([^)]+)\)", docstring.partition("Heavy libraries:")[2])
    return {library: set(re.split(r",\s+", files)) for library, files in stated}


@pytest.mark.parametrize("path", packages(), ids=lambda path: path.parent.relative_to(ROOT).as_posix())
def test_every_package_says_what_it_takes_and_gives_and_where_heavy_libraries_are(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert 5 <= len(docstring.splitlines()) <= 15
    assert re.search(r"\nIn: .+\nOut: .+\nBegin with: .+\nHeavy libraries: ", docstring, re.DOTALL)
    named = set(re.findall(r"\w+\.py", docstring)) - set(re.findall(r"\w+\.py(?= in the folder above)", docstring))
    assert {name for name in named if not (path.parent / name).is_file()} == set()
    stated, real = stated_heavy_files(docstring), heavy_files(path.parent)
    assert {library: real[library] if files == {"any file"} else files for library, files in stated.items()} == real


def test_a_heavy_library_in_another_file_is_seen(tmp_path: Path) -> None:
    write_sources(tmp_path, {"batches.py": "import torch\n", "control.py": "def later():\n    import torch.cuda\n"})
    assert heavy_files(tmp_path) == {"torch": {"batches.py", "control.py"}}
    assert stated_heavy_files("Heavy libraries: torch (batches.py), ray (any file).") == {
        "torch": {"batches.py"},
        "ray": {"any file"},
    }
