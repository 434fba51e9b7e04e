"""The wheel holds the library alone: no laboratory, no tests, no examples."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
NEEDED = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory):
    """Names of the files of a wheel that is built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in NEEDED:
        shutil.copyfile(ROOT / name, folder / name)
    for name in ("ilrec_trl", "benchmarks", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_the_library_alone(wheel_files):
    rooms = {name.split("/")[0] for name in wheel_files}
    assert {room for room in rooms if not room.endswith(".dist-info")} == {"ilrec_trl"}
    assert len(rooms) == 2


def test_the_wheel_holds_every_file_of_the_library(wheel_files):
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ilrec_trl").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert "ilrec_trl/py.typed" in files
    assert sum(name.endswith(".jinja") for name in files) >= 10
    assert files - set(wheel_files) == set()
