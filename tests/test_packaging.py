"""What is built is what is in the tree."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("calibration", "cli", "compress", "export", "runtime")
BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CMakeLists.txt", "constraints.txt")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a copy of the tree as releases do: an sdist, and the wheel from it."""
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILD_FILES:
        shutil.copy(REPOSITORY / name, tree / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return tree / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    (path,) = dist.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def sdist_names(dist: Path) -> set[str]:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_the_wheel_holds_exactly_the_files_of_the_five_packages(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tree = {f"tlc/{package}/{path.name}" for package in PACKAGES for path in (REPOSITORY / package).glob("*.*")}
    assert shipped == tree


def test_every_package_is_marked_as_typed(wheel: zipfile.ZipFile) -> None:
    assert {f"tlc/{package}/py.typed" for package in PACKAGES} <= set(wheel.namelist())


def test_the_wheel_has_one_console_script_and_the_licence(wheel: zipfile.ZipFile) -> None:
    texts = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(texts["entry_points.txt"]).decode().split() == [
        "[console_scripts]",
        "tlc",
        "=",
        "tlc.cli.main:main",
    ]
    assert wheel.read(texts["licenses/LICENSE"]) == (REPOSITORY / "LICENSE").read_bytes()


def test_the_console_script_can_be_loaded() -> None:
    (script,) = entry_points(group="console_scripts", name="tlc")
    assert callable(script.load())


def test_the_sdist_holds_the_native_runtime(sdist_names: set[str]) -> None:
    native = {
        str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "runtime" / "native").glob("*") if path.is_file()
    }
    assert native
    assert native | {"CMakeLists.txt", "constraints.txt"} <= sdist_names


def _pins() -> dict[str, list[str]]:
    """Return {normalised name: [version of each environment]} of constraints.txt."""
    pins: dict[str, list[str]] = {}
    for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)( ; [\w.'<>=!() *]+)?", line)
            assert pin, f"not a plain pin: {line!r}"
            pins.setdefault(pin[1], []).append(pin[2])
    return pins


def test_every_dependency_has_a_tested_pin_that_its_range_allows() -> None:
    pins = _pins()
    for requirement in map(Requirement, requires("tlc") or []):
        if requirement.name != "tlc":
            versions = pins[requirement.name]
            assert all(requirement.specifier.contains(version) for version in versions), (requirement, versions)
