"""``launch.py schema``: the JSON Schema agrees with what the loader accepts and refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from jobs.manifests.json_schema import config_keys, manifest_schema
from jobs.manifests.load import load_manifest
from jobs.manifests.reader import read_toml_file
from seqlm.config import valid_keys
from tests import commands

ROOT = Path(__file__).parents[3]
VALIDATOR = Draft202012Validator(manifest_schema())


def read(folder: Path, text: str, name: str) -> Any:
    """The manifest as an editor sees it: plain JSON data."""
    path = folder / name
    path.write_text(text, "utf-8")
    return json.loads(json.dumps(read_toml_file(path), default=str))


def errors(data: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(data)]


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(VALIDATOR.schema)
    assert config_keys().keys() == set(valid_keys())


def test_every_key_has_a_description() -> None:
    def undescribed(schema: Any, path: str) -> list[str]:
        found = []
        for name, inner in schema.get("properties", {}).items():
            if isinstance(inner, dict):
                leaf = "properties" not in inner and inner.get("type") != "array"
                found += [f"{path}.{name}"] if leaf and "description" not in inner else []
                found += undescribed(inner, f"{path}.{name}") if name != "sbatch" else []
                found += undescribed(inner.get("items", {}), f"{path}.{name}") if inner.get("type") == "array" else []
        return found

    assert undescribed(VALIDATOR.schema, "") == []


# -- valid manifests -----------------------------------------------------------------------------------------------

FOLDERS = [path for path in ROOT.iterdir() if not path.name.startswith(".")]  # a virtual environment has 60,000 files
FILES = sorted(path for folder in FOLDERS for path in folder.rglob("*.toml"))
FILES = [path for path in FILES if re.search(r"^\[study\]", path.read_text("utf-8"), re.M)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_manifests_of_the_project_are_right(path: Path) -> None:
    load_manifest(path)
    assert errors(json.loads(json.dumps(read_toml_file(path), default=str))) == []


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_the_command_prints_the_schema() -> None:
    program = [sys.executable, str(ROOT / "launch.py"), "schema"]
    printed = commands.run(program, check=True, stdin=subprocess.DEVNULL).stdout
    assert json.loads(printed) == VALIDATOR.schema
    document = json.loads(commands.run([*program, "--json"], check=True).stdout)
    assert (document["ok"], document["data"]) == (True, VALIDATOR.schema)
