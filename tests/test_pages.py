"""Every code block of the documentation is run or says why not, and every manifest in it is one."""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from benchmarks.toml_text import toml_text
from jobs.cli.arguments import read
from jobs.manifests.json_schema import manifest_schema
from jobs.manifests.load import load_manifest
from jobs.manifests.reader import read_toml_file
from slurm.settings import read_settings
from tests.docs_blocks import PLACES, ROOT, Block, command_words, pages, place_of, read_blocks

BLOCKS = [block for page in pages() for block in read_blocks(page)]
MANIFESTS = [block for block in BLOCKS if block.language == "toml"]
COMMANDS = [block for block in BLOCKS if block.language in ("", "bash", "console", "sh")]
KINDS = ("run", "file", "output", "elsewhere", "not run")
VALIDATOR = Draft202012Validator(manifest_schema())
WHOLE: dict[str, Any] = {
    "study": {"name": "fragment"},
    "defaults": {"model": {"hidden_size": 16}, "optim": {"optimizer": "adam", "lr": 0.01}},
}
"""What a part of a manifest leaves out."""
RUNS = [{"name": arch, "model": {"arch": arch}} for arch in ("rnn", "gru", "transformer")]
ENTRIES = {"run", "grid", "zip", "sample"}


def place(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("block", BLOCKS, ids=place)
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    marked = block.kind in KINDS
    assert marked or block.language in ("toml", "markdown"), "expected a marker (tests/docs_blocks.py)"
    if block.kind in ("run", "file", "output"):
        assert place_of(ROOT / block.page) in PLACES, "expected a marker <!-- blocks run on: ... --> on the page"
    if block.kind == "elsewhere":
        assert (ROOT / block.argument).is_file()
    if block.kind == "not run" or block.argument == "GPU":
        assert re.search("Not tested here|No test runs", block.section), "expected a visible note in this section"


@pytest.mark.parametrize("block", COMMANDS, ids=place)
def test_the_commands_of_a_block_exist(block: Block) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for words in command_words(block.text) if block.kind != "output" else []:
        if words[:2] == [".venv/bin/python", "launch.py"]:
            words[:2] = ["seqlm"]
        if words[0] in ("seqlm", ".venv/bin/seqlm"):
            assert read(words[1:]) is not None
        if words[0] == "make":
            target = next(word for word in words[1:] if "=" not in word)
            assert target.startswith(".venv/") or re.search(rf"^{target}:", makefile, re.M), target
        if words[0].endswith("python") and words[1:2] == ["-m"]:
            assert importlib.util.find_spec(words[2]), words[2]


@pytest.mark.parametrize("block", MANIFESTS, ids=place)
def test_a_manifest_is_accepted_by_loader_and_schema(block: Block, tmp_path: Path) -> None:
    for other in BLOCKS:  # the models that it names
        if (other.page, other.kind, other.language) == (block.page, "file", "python"):
            (tmp_path / other.argument).write_text(other.text, "utf-8")
    file = tmp_path / f"manifest.{block.language}"
    file.write_text(block.text, "utf-8")
    data = read_toml_file(file)
    if not data.keys() & VALIDATOR.schema["properties"].keys():
        read_settings(data, where=block.place, environ={})  # of a cluster's site file
        return
    if "study" not in data:
        data = merged(WHOLE if data.keys() & ENTRIES else {**WHOLE, "run": RUNS}, data)
        file = tmp_path / "whole.toml"
        file.write_text(toml_text(data), "utf-8")
    assert load_manifest(file).runs
    assert [error.message for error in VALIDATOR.iter_errors(json.loads(json.dumps(data)))] == []


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with the values of both; those of ``over`` hold."""
    both = {key: merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(over[key], dict)}
    return {**base, **over, **both}
