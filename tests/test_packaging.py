"""What an installed seqlm needs is in the wheel, and its version is in the changelog."""

import shutil
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from jobs.manifests.load import load_manifest
from jobs.manifests.reader import find_manifest
from tests import commands

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = ("seqlm", "jobs", "slurm", "analysis")
OWN_SETTINGS = ROOT / "slurm" / "cluster.toml"
"""A site file of this checkout, which is not part of seqlm."""


def test_every_file_that_is_no_module_is_declared_as_data_of_its_package() -> None:
    declared = PROJECT["tool"]["setuptools"]["package-data"]
    packed = {file for package, kinds in declared.items() for kind in kinds for file in (ROOT / package).glob(kind)}
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file()]
    missing = [file for file in files if file.suffix not in (".py", ".pyc") and file not in {*packed, OWN_SETTINGS}]
    assert not missing


@pytest.mark.parametrize("name", ["quickstart", "paper", "strong_small"])
def test_a_manifest_that_comes_with_seqlm_is_found_by_its_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_manifest(find_manifest(name)).runs
    assert find_manifest(f"{name}.toml") == Path(f"{name}.toml")
    (tmp_path / name).write_text("")
    assert find_manifest(name) == Path(name)


@pytest.mark.process
def test_the_source_archive_has_the_packages_and_no_part_of_the_tests(tmp_path: Path) -> None:
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored, symlinks=True)
    for name in (
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "launch.py",
        "examples/lstm/lstm.py",
        "tests/__init__.py",
        "tests/test_packaging.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    commands.run([sys.executable, "-c", build], cwd=tmp_path, check=True, cold=True)
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2]: name for name in file.getnames()}
        model = file.extractfile(names["jobs/manifests/lstm.py"])
        assert file.getmember(names["jobs/manifests/lstm.py"]).isreg(), "no link to a file that is not there"
        assert model is not None
        assert model.read() == (ROOT / "examples/lstm/lstm.py").read_bytes()
    assert {"launch.py", "seqlm/config.py", "jobs/manifests/paper.toml"} <= names.keys()
    assert not [name for name in names if name.startswith("tests")]
