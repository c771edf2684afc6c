"""What a user installs: the wheel, what stands in it, and that it works away from the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.seaweed import S3Server
from tests.support.synthetic import upload, write_synthetic_dataset

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIN = re.compile(r"([a-z0-9][a-z0-9-]*)==(\S+)")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as a package index's user would get it: from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def installed_copy(wheel: Path, folder: Path) -> Path:
    """Unpack a pure wheel into a folder of its own, which is what installing it does."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_away_from_checkout(code: str, installed: Path) -> subprocess.CompletedProcess[str]:
    """Run code with the installed copy before everything else, in a folder that is not the checkout."""
    prelude = f"import sys; sys.path[:] = [{str(installed)!r}, *(path for path in sys.path if path != {str(ROOT)!r})]"
    command = [sys.executable, "-c", f"{prelude}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=installed, timeout=1500)


def names_under(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


def test_the_wheel_holds_the_library_the_writers_and_the_recipes_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    writers = {f"crisp_stream/writers/{name}" for name in names_under(ROOT / "writers", "*.py")}
    recipes = {f"crisp_stream/recipes/{name}" for name in names_under(ROOT / "recipes", "*.yaml")}
    assert writers
    assert recipes
    assert writers <= names
    assert recipes <= names
    assert {"crisp_stream/py.typed", "crisp_stream/report/page.css", "crisp_stream/evaluation/tasks/mmlu.yaml"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"crisp_stream", f"crisp_stream-{PROJECT['version']}.dist-info"}


def test_the_sdist_builds_the_same_package_and_holds_what_a_packager_reads(wheel: Path) -> None:
    sdist = next(wheel.parent.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "FORMAT.md", "pyproject.toml"} <= names
    assert "crisp_stream/writers/__init__.py" in names


def test_the_installed_package_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed = installed_copy(wheel, tmp_path)
    files = sorted(names_under(ROOT / "writers", "*.py"))
    modules = [
        f"crisp_stream/writers/{file}".removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files
    ]
    recipes = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))
    code = f"""
import importlib, importlib.resources, pathlib
import crisp_stream
assert pathlib.Path(crisp_stream.__file__).parent.parent == pathlib.Path({str(installed)!r}), crisp_stream.__file__
for module in {modules!r}:
    importlib.import_module(module)
for recipe in {recipes!r}:
    assert importlib.resources.files("crisp_stream").joinpath("recipes", recipe).read_text(encoding="utf-8").strip()
"""
    done = run_away_from_checkout(code, installed)
    assert done.returncode == 0, done.stderr


def test_there_is_no_top_level_module_called_writers(wheel: Path, tmp_path: Path) -> None:
    done = run_away_from_checkout("import writers", installed_copy(wheel, tmp_path))
    assert "No module named 'writers'" in done.stderr


def test_the_writers_of_the_checkout_refuse_to_be_imported_as_top_level_writers() -> None:
    command = [sys.executable, "-c", "import writers"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1500)
    assert "ImportError: Import this package as crisp_stream.writers" in done.stderr


@pytest.mark.parametrize("name", ["writers", "recipes"])
def test_the_packages_symlinks_are_relative(name: str) -> None:
    assert (ROOT / "crisp_stream" / name).readlink() == Path("..") / name


def test_the_version_is_the_same_everywhere() -> None:
    import crisp_stream

    assert crisp_stream.__version__ == PROJECT["version"]


PINS = {name: (ROOT / name).read_text().splitlines() for name in ("constraints.txt", "constraints-plain.txt")}
INSTALLED = "constraints-plain.txt" if metadata.version("torch").startswith("2.7.") else "constraints.txt"
"""The pins of the stack that runs this test."""


def pins(name: str) -> dict[str, str]:
    """Versions by package; a marker says which platforms need it."""
    lines = [line.partition(" ; ")[0] for line in PINS[name] if not line.startswith("#")]
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("name", PINS)
def test_constraints_are_plain_pins_of_one_version_per_package(name: str) -> None:
    assert list(pins(name)) == sorted(pins(name))
    assert len(pins(name)) == sum(not line.startswith("#") for line in PINS[name])


def all_requirements() -> Iterable[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return (requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"])


@pytest.mark.parametrize("name", PINS)
def test_constraints_pin_every_requirement_at_a_version_that_it_allows(name: str) -> None:
    refused = {
        str(requirement)
        for requirement in all_requirements()
        if not requirement.specifier.contains(pins(name).get(canonicalize_name(requirement.name), "none"))
    }
    assert refused == set()


def test_the_current_stack_is_current_and_allowed_by_the_overrides() -> None:
    lines = (ROOT / "overrides.txt").read_text().splitlines()
    overrides = [Requirement(line) for line in lines if not line.startswith("#")]
    assert [str(line) for line in overrides if not line.specifier.contains(pins("constraints.txt")[line.name])] == []
    assert {"torch>=2.14", "transformers>=5"} <= {str(line) for line in overrides}


def test_every_package_has_builds_for_the_newest_python() -> None:
    """All that reading, writing and training need resolves for 3.14 from wheels alone. Nothing is installed."""
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "compile", "pyproject.toml", "--override", "overrides.txt", "-c", "constraints.txt"]
    command += ["--extra=train", "--extra=write", "--extra=ray", "--extra=streaming", "--only-binary=:all:"]
    command += ["--python-version=3.14", "--python-platform=x86_64-manylinux_2_28"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert f"torch=={pins('constraints.txt')['torch']}" in done.stdout


def test_reading_works_with_the_oldest_versions_that_are_allowed(wheel: Path, tmp_path: Path, s3: S3Server) -> None:
    """In a fresh environment that holds `crisp-stream[inspect]` and nothing else; from S3 by a profile, too."""
    uv = str(Path(sys.executable).with_name("uv"))
    python = tmp_path / "oldest" / "bin" / "python"
    dataset = write_synthetic_dataset(tmp_path / "data", {0: 40, 5: 30})
    root, bucket = dataset.root, upload(dataset, s3.fresh_prefix())
    profile = f"aws_access_key_id={s3.access_key_id}\naws_secret_access_key={s3.secret_access_key}\n"
    (tmp_path / "keys").write_text(f"[default]\n{profile}")
    own = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    environment = {name: text for name, text in os.environ.items() if name not in own}
    environment["AWS_SHARED_CREDENTIALS_FILE"] = str(tmp_path / "keys")
    install = [uv, "pip", "install", "--python", str(python), "--resolution=lowest-direct", "--only-binary=:all:"]
    for command in (
        [uv, "venv", "--python", sys.executable, str(tmp_path / "oldest")],
        [*install, f"crisp-stream[inspect] @ {wheel.as_uri()}"],
        [str(python), "-m", "crisp_stream", "inspect", root],
        [str(python), "-m", "crisp_stream", "inspect", root, "--window", "3"],
        [str(python), "-c", OLDEST_READS.format(root=root, bucket=bucket)],
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=1500
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["70", "100", "70"]


OLDEST_READS = """
import numpy
from crisp_stream import Histogram, Mixture, Phase, open_dataset
from crisp_stream.loading.reader import read_windows
from crisp_stream.order.blocks import Blocks
from crisp_stream.order.draw_table import DrawTable
from crisp_stream.order.order import SampleOrder, phases_in_turn
dataset = open_dataset({root!r})
Histogram.base(dataset.manifest).save("base.parquet")
assert Histogram.load("base.parquet").fingerprint == Histogram.base(dataset.manifest).fingerprint
print(len(read_windows(dataset, numpy.arange(70))["tokens"]))
phases = phases_in_turn([(numpy.array([0.5, 0.5]), None)])
order = SampleOrder(DrawTable.of_leaves(dataset.leaves, dataset.windows_per_leaf), phases, Blocks(seed=1))
print(len(order.window_ids(numpy.arange(100))))
print(len(read_windows(open_dataset({bucket!r}), numpy.arange(70))["tokens"]))
"""


def needed_distributions() -> set[str]:
    """Canonical names of all that `crisp-stream[dev]` needs on this platform, by the installed packages' metadata."""
    needed: set[str] = set()
    waiting: list[tuple[str, str]] = [(PROJECT["name"], "dev")]
    done: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            found = canonicalize_name(requirement.name)
            needed.add(found)
            waiting += [(found, wanted) for wanted in ("", *requirement.extras)]
    return needed - {PROJECT["name"]}


def test_constraints_pin_every_package_that_the_environment_needs() -> None:
    assert needed_distributions() - pins(INSTALLED).keys() == set()
