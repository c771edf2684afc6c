"""What importing loads, and who may import whom."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import crisp_stream
from tests.support.synthetic import write_synthetic_dataset

ROOT = Path(__file__).parent.parent
HEAVY = {
    "composer",
    "faiss",
    "lm_eval",
    "ray",
    "sentence_transformers",
    "sklearn",
    "streaming",
    "torch",
    "transformers",
}
TORCH_FREE = ["format.dataset", "histograms.histogram", "histograms.mixture", "order.order"]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1500)


def heavy_modules_loaded_by(code: str) -> set[str]:
    """Run code in a fresh interpreter; return which heavy libraries it left in sys.modules."""
    report = "\nimport sys, json\nprint('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = run_python(code + report)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_no_heavy_library() -> None:
    assert heavy_modules_loaded_by("import crisp_stream") == set()


def test_the_help_of_the_command_loads_no_heavy_library() -> None:
    code = """
import sys
from crisp_stream.cli.main import main
sys.argv = ["crisp-stream", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert heavy_modules_loaded_by(code) == set()


def test_the_check_for_heavy_libraries_sees_one_that_is_loaded() -> None:
    assert heavy_modules_loaded_by("import crisp_stream, sklearn") == {"sklearn"}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_pure_core_runs_without_torch(module: str) -> None:
    block = "import sys\nfor name in ('torch', 'transformers', 'composer', 'streaming'): sys.modules[name] = None\n"
    done = run_python(f"{block}import crisp_stream.{module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("blocked", "code", "message"),
    [
        ("torch", "from crisp_stream import MixtureDataset", "MixtureDataset needs torch, {}[loader]'"),
        (
            "streaming",
            "from crisp_stream import to_streams as it; it('r', None)",
            "streams needs mosaicml-streaming, {}",
        ),
        ("composer", "get('composer.utils.dist', extra='train', purpose='it')", "it needs mosaicml, {}[train]'"),
        ("composer", "get('crisp_stream.models.composer_gpt', extra='train', purpose='it')", "it needs mosaicml, {}"),
    ],
)
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    blocked: str, code: str, message: str
) -> None:
    prelude = f"import sys\nsys.modules[{blocked!r}] = None\nfrom crisp_stream.errors import import_extra as get\n"
    done = run_python(prelude + code)
    assert message.format("which is not installed. Run: pip install 'crisp-stream") in done.stderr


def test_inspect_needs_tokenizers_alone(tmp_path: Path) -> None:
    root = write_synthetic_dataset(tmp_path / "data", {0: 40, 5: 30}).root
    blocked = [*sorted(HEAVY), "scipy", "datasets", "matplotlib", "tiktoken"]
    code = "import sys\nfrom crisp_stream.cli.main import main\nfor name in {}: sys.modules[name] = None\n"
    code += f"sys.exit(main(['inspect', {root!r}]))"
    done = run_python(code.format(blocked))
    assert done.returncode == 0, done.stderr
    assert "Largest clusters of level 1" in done.stdout
    assert "(Terms need scikit-learn, which is not installed. Run: pip install 'crisp-stream[write]')" in done.stdout
    done = run_python(code.format([*blocked, "tokenizers"]))
    assert done.returncode == 2
    assert done.stderr == (
        "error: showing text needs tokenizers, which is not installed. Run: pip install 'crisp-stream[inspect]'\n"
    )


def test_the_help_starts_quickly(capsys: pytest.CaptureFixture[str]) -> None:
    """The wall time is printed, not asserted: a shared machine would make the test a coin."""
    seconds: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "crisp_stream", "--help"], capture_output=True, text=True, check=False, timeout=1500
        )
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
        assert "usage: crisp-stream" in done.stdout
    with capsys.disabled():
        print(f"\ncrisp-stream --help: {sorted(seconds)[1]:.2f} s (median of 3)")


@pytest.mark.parametrize("name", crisp_stream.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(crisp_stream, name).__name__ == name


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'MixturDataset'"):
        getattr(crisp_stream, "MixturDataset")  # noqa: B009 (pyright would refuse the attribute itself)


@functools.cache
def imported_modules(path: Path) -> set[str]:
    """Full names of all that a source file imports anywhere in it, `from a import b` as both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: imports are absolute, for one spelling per module"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            found |= {
                value.value for value in node.args if isinstance(value, ast.Constant) and isinstance(value.value, str)
            }
    return found


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if (ROOT / "crisp_stream/writers") not in path.parents)


def product_sources() -> list[Path]:
    """All source files of the library, in subfolders too."""
    files = [*sources("crisp_stream"), *sources("writers")]
    assert len(files) > 200
    return files


def project_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, without the package's name: `train`, `writers`."""
    names = (name.split(".") for name in imported_modules(path))
    return {parts[1] for parts in names if parts[0] == "crisp_stream" and len(parts) > 1}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_pure_core_imports_no_torch_anywhere(module: str) -> None:
    found = {
        name.partition(".")[0]
        for name in imported_modules(ROOT / "crisp_stream" / f"{module.replace(chr(46), chr(47))}.py")
    }
    assert found & HEAVY == set()


def test_no_source_imports_writers_by_another_name() -> None:
    files = [*sources("crisp_stream"), *sources("writers"), *sources("tests"), *sources("benchmarks")]
    assert [path.name for path in files if any(re.match(r"writers\b", name) for name in imported_modules(path))] == []


def test_the_readers_of_imports_see_every_form(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text(
        "import crisp_stream.cli.main\n"
        "from crisp_stream import train\n"
        "def later():\n    from crisp_stream.model import gpt\n    import_extra('torch', extra='train', purpose='x')\n"
    )
    assert project_imports(source) == {"cli", "train", "model"}
    assert "torch" in imported_modules(source)


def parquet_rule_breakers(files: list[Path]) -> list[str]:
    """Files that read Parquet with threads of Arrow, which made one short process in five abort at its exit."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    return [
        name
        for name, text in texts.items()
        if "read_table(" in text or text.count("ParquetFile(") != text.count("pre_buffer=False")
    ]


def test_no_parquet_file_is_read_by_threads_that_may_outlive_the_interpreter() -> None:
    assert parquet_rule_breakers(product_sources()) == []


@pytest.mark.parametrize("line", ["pq.read_table(path)", "pq.ParquetFile(path).read()"])
def test_the_rule_about_parquet_sees_both_ways_of_breaking_it(tmp_path: Path, line: str) -> None:
    (tmp_path / "deep.py").write_text(line)
    assert parquet_rule_breakers(sources(str(tmp_path))) == ["deep.py"]
