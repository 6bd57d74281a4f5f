"""``launch.py schema``: the JSON Schema agrees with what the loader accepts and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from jobs.manifests.backends import table_of
from jobs.manifests.claims import Claim, Published, Report
from jobs.manifests.entries import EntryTable, StudyTable
from jobs.manifests.fields import Problems, read_table
from jobs.manifests.json_schema import backend_keys, config_keys, manifest_schema, policy_keys, table_keys
from jobs.manifests.load import load_manifest
from jobs.manifests.policy import Policy
from jobs.manifests.reader import read_manifest_file
from jobs.registry import BACKENDS
from seqlm.config import valid_keys
from seqlm.errors import ManifestError
from tests import commands
from tests.jobs.manifests import test_draws, test_manifest, test_manifest_report

ROOT = Path(__file__).parents[3]
VALIDATOR = Draft202012Validator(manifest_schema())


def read(folder: Path, text: str, name: str) -> Any:
    """The manifest as an editor sees it: plain JSON data."""
    path = folder / name
    path.write_text(text, "utf-8")
    return json.loads(json.dumps(read_manifest_file(path), default=str))


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
def test_the_manifests_of_the_project_are_valid(path: Path) -> None:
    assert len(FILES) >= 3
    assert errors(json.loads(json.dumps(read_manifest_file(path), default=str))) == []


def good_texts() -> list[str]:
    base = test_manifest_report.BASE + test_manifest_report.RNN
    texts = [test_manifest.GOOD, test_manifest.TOML, test_draws.GOOD, base]
    return [*texts, base + test_manifest_report.GRU + test_manifest_report.EXPECT, *test_manifest.examples()]


@pytest.mark.parametrize("text", good_texts())
def test_what_the_loader_accepts_is_valid(tmp_path: Path, text: str) -> None:
    data = read(tmp_path, text, "study.toml")
    load_manifest(tmp_path / "study.toml")
    assert errors(data) == []


@pytest.mark.parametrize(
    "line",
    [
        "model.arch = ['rnn', 'gru']\n[[zip]]\nresources.ranks = [1, 2]",
        "data.vocab_size = [100, 200]",
        "resources.gpus = 0.25",
        "[policy]\noom = 'unlimited'\nnode = 3",
        "[backend.slurm]\nsbatch.gres_flags = 'x'\nsbatch.container-image = 'x'\nsbatch.exclusive = true\nenv.A = 'b'",
        "[[exclude]]\nname = ['g-*', 'x']\nmodel.arch = ['rnn']",
    ],
)
def test_each_kind_of_value_has_its_place(tmp_path: Path, line: str) -> None:
    text = "[study]\nname = 's'\n[[grid]]\noptim.optimizer = 'sgd'\n"
    assert errors(read(tmp_path, text + line, "study.toml")) == []


def test_dotted_keys_in_quotes_are_checked_as_nested_ones_are() -> None:
    def entry(**values: Any) -> Any:
        return {"study": {"name": "s"}, "run": [{"model.arch": "rnn", **values}]}

    assert errors(entry(**{"model.keep": 0.5, "model": {"num_layers": 1}})) == []
    assert len(errors(entry(**{"model.keep": 2}))) == 1
    assert len(errors(entry(model={"keep": 2}))) == 1
    assert len(errors(entry(**{"model.mlp_size": 8}))) == 1
    assert len(errors(entry(model={"mlp_size": 8}))) == 1


VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2.5,
        0.25,
        10**20,
        65535,
        65536,
        "",
        " ",
        "a",
        "a b",
        "a\nb",
        "é",
        "END,FAIL",
        "auto",
    ),
    *("arch=gru", "unlimited", "x" * 300, "x" * 301, [], [1], ["a"], ["a", "a"], [""], ["a b"], [1, 2], [1, 2, 3], {}),
    *({"a": "b"}, {"a": 1}, {"a-b": "c"}, {"gres": "x"}, {"gres_flags": 1}, {"hold": True}, {"exclusive": True}),
]
TABLES: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    **{f"backend.{name}": (table_of(name), {}, backend_keys(name)) for name in BACKENDS},
    "policy": (Policy, {}, policy_keys()),
    "study": (StudyTable, {"name": "s"}, table_keys(StudyTable)),
    "published": (Published, {}, table_keys(Published)),
    "expect": (Claim, {"text": "t", "lower": "arch=gru", "higher": "arch=rnn"}, table_keys(Claim)),
    "report": (Report, {}, table_keys(Report)),
    "entry": (EntryTable, {}, table_keys(EntryTable)),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_value_that_a_table_accepts_is_valid(name: str) -> None:
    kind, others, keys = TABLES[name]
    accepted = 0
    for key, schema in keys.items():
        for value in VALUES:
            problems = Problems()
            read_table(kind, {**others, key: value}, "m.toml", problems, prefix=f"{name}.")
            if not problems.lines:
                accepted += 1
                found = [error.message for error in Draft202012Validator(schema).iter_errors(value)]
                assert found == [], f"{name}.{key} = {value!r}"
    assert accepted >= len(keys)


# -- invalid manifests ---------------------------------------------------------------------------------------------

BEYOND_A_SCHEMA = {
    *("zip of unequal lists", "absurd grid", "more ranks than columns", "missing key"),
    *("exclude whose keys match different runs", "exclude of a key that no run has"),
    *("every run excluded", "one name for two entries", "one made-up name for two entries"),
    *("entries that differ in epochs alone", "a grid over epochs"),
    *("one configuration in two entries", "share of a GPU for two ranks", "key twice, dotted and quoted"),
    *("control character in a key",),
    *(
        "behaviour of an unknown run",
        "behaviour of an excluded run",
        "group without a run",
        "run on both sides",
        "side without runs",
    ),
    *("bounds that descend", "equal bounds", "step beyond the range", "nothing drawn", "count above what there is"),
    "key both drawn and fixed",
    *("draws that a run refuses", "a condition on two keys"),
    *("side that is no condition", "side that compares a text", "replications that descend"),
}
"""What a schema cannot tell: conditions across tables, on the expanded runs, and on the text of filters."""
NOT_PLAIN = {"not a number", "infinite", "published perplexity without end"}
"""JSON has no NaN and no infinity."""
WRONG = {**test_manifest.WRONG, **test_manifest_report.WRONG, **test_draws.WRONG}


@pytest.mark.parametrize("name", [name for name in WRONG if name not in NOT_PLAIN])
def test_what_the_loader_refuses_is_invalid_as_far_as_a_schema_can_tell(tmp_path: Path, name: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(WRONG[name][0], "utf-8")
    try:
        data = read(tmp_path, WRONG[name][0], "study.toml")
    except ManifestError:
        return  # an editor's parser refuses the text, or it is too deep
    assert bool(errors(data)) == (name not in BEYOND_A_SCHEMA), errors(data)


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_the_command_prints_the_schema_or_writes_it(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "launch.py"), "schema"]
    printed = commands.run(program, check=True, stdin=subprocess.DEVNULL).stdout
    assert json.loads(printed) == VALIDATOR.schema
    document = json.loads(commands.run([*program, "--json"], check=True).stdout)
    assert (document["ok"], document["data"]) == (True, VALIDATOR.schema)
    path = tmp_path / "manifest.json"
    commands.run([*program, "--output", str(path)], check=True)
    assert json.loads(path.read_text("utf-8")) == VALIDATOR.schema
    absent = commands.run([*program, "--output", str(tmp_path / "no" / "folder.json")])
    assert absent.returncode == 1
    assert absent.stderr.startswith("error: ")
    assert "Traceback" not in absent.stderr
