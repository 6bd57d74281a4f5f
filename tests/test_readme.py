"""What the README tells a reader to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import launch
from jobs.cli.arguments import read
from jobs.manifests.load import load_manifest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
RAY = (ROOT / "docs" / "guides" / "ray.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines() if line]
RAY_BLOCKS = re.findall(r"^ *```(\w*)\n(.*?)^ *```", RAY, flags=re.MULTILINE | re.DOTALL)
RAY_COMMANDS = [line for _, block in RAY_BLOCKS for line in block.splitlines() if line.startswith("seqlm ")]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "launch.py" in line] + RAY_COMMANDS)
def test_every_command_line_is_understood(line: str) -> None:
    words = shlex.split(line.replace(".venv/bin/python launch.py", "seqlm"), comments=True)
    assert words[0] == "seqlm"
    arguments = read(words[1:])
    assert arguments is not None
    assert callable(launch.handler(arguments.command))


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = {shlex.split(line)[1] for line in COMMANDS if line.startswith("make ")}
    targets |= set(re.findall(r"`make (\w+)`", README))
    assert {"quickstart", "test", "check"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_example_manifest_is_nine_runs(tmp_path: Path) -> None:
    (block,) = [block for language, block in BLOCKS if language == "toml"]
    (tmp_path / "first.toml").write_text(block)
    manifest = load_manifest(tmp_path / "first.toml")
    assert manifest.study == "first"
    assert len(manifest.runs) == 9
    assert "rnn-adam-lr0.001" in [run.name for run in manifest.runs]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
