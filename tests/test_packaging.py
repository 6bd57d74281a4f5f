"""What an installed seqlm needs is in the wheel, and its version is in the changelog."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from jobs.manifests.load import load_manifest
from jobs.manifests.reader import find_manifest
from seqlm import __version__

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


@pytest.mark.parametrize("name", ["quickstart", "paper"])
def test_a_manifest_that_comes_with_seqlm_is_found_by_its_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_manifest(find_manifest(name)).runs
    assert find_manifest(f"{name}.toml") == Path(f"{name}.toml")
    (tmp_path / name).write_text("")
    assert find_manifest(name) == Path(name)


def test_the_version_has_the_first_dated_section_of_the_changelog() -> None:
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(__version__)} \(\d{{4}}-\d\d-\d\d\)", sections[1])
