"""Commands that take something away ask first on a terminal, and without one need a flag."""

import io
import sys
from pathlib import Path
from typing import final

import pytest

import launch
from tests.jobs.cli.test_clean import files, make_study, run_of


@final
class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "runs" / "small")


def has_happened(study: Path) -> dict[str, bool]:
    """What each command would do to the study: whether it is done."""
    return {
        "cancel": run_of(study, "open").is_cancelled(),
        "clean": not run_of(study, "first").has_checkpoint(),
    }


COMMANDS = {
    "cancel": ("cancel the one run of small that is not over? [y/N] ", "add --all, or choose some with --only"),
    "clean": ("delete 2 files and folders (2.0 KiB) of small? [y/N] ", "add --yes to delete, or --dry-run to look"),
}
"""Command -> its question, and what its refusal offers where there is no terminal."""


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_terminal_a_command_needs_its_flag(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    before = files(study)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert launch.main([command, str(study)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {command} would ")
    assert line.endswith(COMMANDS[command][1])
    assert files(study) == before


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("YES\n", 0), ("\n", 2), ("n\n", 2), ("", 2)])
@pytest.mark.parametrize("command", COMMANDS)
def test_on_a_terminal_a_command_asks(
    study: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    answer: str,
    code: int,
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert launch.main([command, str(study)]) == code
    assert COMMANDS[command][0] in capsys.readouterr().err
    assert has_happened(study)[command] == (code == 0)


def test_exclude_alone_chooses_nothing_and_all_and_only_exclude_each_other(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for words, said in ((["--exclude", "seed=1"], "add --all"), (["--all", "--only", "seed=2"], "use one of them")):
        assert launch.main(["cancel", str(study), *words]) == 2
        assert said in capsys.readouterr().err
    assert not has_happened(study)["cancel"]
    assert launch.main(["cancel", str(study), "--only", "seed=2"]) == 0
    assert has_happened(study)["cancel"]
    assert launch.main(["cancel", str(study)]) == 0, "nothing to ask about"
