"""What a shell completes after Tab."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests import commands
from tests.jobs.cli.test_watch import add
from tests.small_study import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for study, names in {"first": ("gru-one", "rnn-two"), "second": ("three",)}.items():
        for order, name in enumerate(names):
            add(tmp_path / "runs" / study, name, order=order)
        planned = ", ".join(f'{{"number": {number}, "name": "{name}"}}' for number, name in enumerate(names, 1))
        (tmp_path / "runs" / study / "study.json").write_text(f'{{"version": 3, "planned": [{planned}]}}')
    (tmp_path / "mine.toml").touch()
    (tmp_path / "sub").mkdir()
    return tmp_path


def completed(folder: Path, line: str) -> set[str]:
    """Return what may follow a command line of ``seqlm``."""
    answer = folder / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    env = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    commands.run([sys.executable, ROOT / "launch.py"], cwd=folder, env=env, check=True)
    return {word.strip() for word in answer.read_text().split("\v")} - {""}


@pytest.mark.process
def test_commands_options_studies_and_runs_are_completed(folder: Path) -> None:
    assert completed(folder, "seqlm sta") == {"status"}
    assert completed(folder, "seqlm run mine.toml --max-p") == {"--max-parallel"}
    assert completed(folder, "seqlm retry first --kind oo") == {"oom"}
    assert completed(folder, "seqlm status ") == {"first", "second", "runs/", "sub/"}
    assert completed(folder, "seqlm run ") >= {"mine.toml", "quickstart", "first", "second", "runs/"}
    assert completed(folder, "seqlm logs first ") == {"best", "gru-one", "rnn-two"}
    assert completed(folder, "seqlm logs runs/first g") == {"gru-one"}
    assert completed(folder, "seqlm curves first ") >= {"gru-one", "rnn-two", "second"}
    assert completed(folder, "seqlm diff first/r") == {"first/rnn-two"}
    assert completed(folder, "seqlm logs nowhere ") == set()
    assert completed(folder, "seqlm status --runs-dir sub ") == {"runs/", "sub/"}


@pytest.mark.process
def test_bash_completes_with_what_the_command_prints(folder: Path) -> None:
    program = folder / "seqlm"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(ROOT / "launch.py"))} "$@"\n')
    program.chmod(0o755)
    script = """
        set -e
        eval "$(seqlm completion bash)"
        COMP_LINE="seqlm logs first g" COMP_POINT=18 COMP_WORDS=(seqlm logs first g) COMP_CWORD=3
        _python_argcomplete seqlm
        echo "${COMPREPLY[@]}"
    """
    path = f"{folder}:{os.environ['PATH']}"
    found = commands.run(["bash", "-c", script], cwd=folder, env={**os.environ, "PATH": path}, check=True)
    assert found.stdout.split() == ["gru-one"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_lines_about_the_command(ask: commands.Ask, shell: str) -> None:
    code, document, _ = ask("completion", shell)
    assert (code, document["shell"], "seqlm" in document["script"]) == (0, shell, True)
