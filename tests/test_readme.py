"""README.md is short, and what it names is there. tests/test_pages.py checks its commands."""

from __future__ import annotations

import re
import tomllib

from tests.docs_blocks import ROOT, read_blocks

PAGE = ROOT / "README.md"
README = PAGE.read_text("utf-8")
TUTORIAL = ROOT / "docs" / "start" / "first-study.md"


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"\bmake (\w+)", README))
    assert {"quickstart", "test", "docs", "check", "chaos"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_first_study_has_ten_lines_and_is_that_of_the_tutorial() -> None:
    (short,) = [block.text for block in read_blocks(PAGE) if block.language == "toml"]
    long = next(block.text for block in read_blocks(TUTORIAL) if block.language == "toml")
    assert len(short.splitlines()) == 10
    assert tomllib.loads(short) == tomllib.loads(long)


def test_the_tests_behind_its_claims_exist() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", README.split("## What is verified", 1)[1])
    assert len(named) >= 5
    for name in named:
        assert (ROOT / name).exists(), name
