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
RAY = (ROOT / "docs" / "ray.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines() if line]
RAY_COMMANDS = re.findall(r"^\.venv/bin/python launch\.py .*", RAY, flags=re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in COMMANDS + RAY_COMMANDS if "launch.py" in line])
def test_every_command_line_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[:2] == [".venv/bin/python", "launch.py"]
    arguments = read(words[2:])
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
    guides = ("study.md", "manifest.md", "ray.md", "slurm.md", "reliability.md", "architecture.md")
    for document in (README, *((ROOT / "docs" / name).read_text("utf-8") for name in guides)):
        folder = ROOT if document is README else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#]+)", document):
            assert target.startswith("https://") or (folder / target).exists(), target
