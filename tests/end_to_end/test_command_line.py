"""The command line itself: its records, what a command imports, help and color, and the answers to bad usage.

``python -m tests.end_to_end.test_command_line`` writes the answers in ``usage.txt`` again; read their diff.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import launch
from jobs.cli import arguments, parser
from jobs.launch.job import Order
from seqlm.errors import UsageError
from tests import commands, hostile
from tests.end_to_end.test_launch import launched
from tests.seqlm.training.studies import runs_in
from tests.small_study import ROOT, Study

COMMANDS = list(arguments.COMMANDS)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return Study(tmp_path)


# -- what a command imports ----------------------------------------------------------------------------------------


@pytest.mark.process
def test_commands_that_only_look_import_no_large_package(study: Study) -> None:
    launched(study, "pending")
    looks = ["--help", "plan small.toml", "status --help", "status small", "logs small", "cancel small --all"]
    program = """
import contextlib, sys
import launch
for words in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        assert launch.main(words.split()) == 0, words
large = {"torch", "numpy", "pandas", "scipy", "matplotlib", "ray", "submitit", "optuna"}
assert not large & set(sys.modules), large & set(sys.modules)
"""
    argv = [sys.executable, "-c", program, *looks]
    commands.run(argv, cold=True, cwd=study.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


# -- records -------------------------------------------------------------------------------------------------------


def examples() -> list[list[str]]:
    """The examples of the help, without the program's name and what a shell does with the output."""
    lines = arguments.parser("seqlm").format_help().partition("examples:\n")[2].splitlines()
    return [shlex.split(line.partition(" > ")[0])[1:] for line in lines if line.startswith("  seqlm")]


@pytest.mark.parametrize("words", examples(), ids=lambda words: words[0])
def test_the_example_of_a_command_becomes_a_frozen_record(words: list[str]) -> None:
    found = arguments.read(words)
    assert found is not None
    assert (found.command, found.argv) == (words[0], tuple(words))
    assert callable(launch.handler(found.command))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.json = True  # type: ignore[misc]
    hash(found)  # no list, no dictionary


MANY_WORDS = {"words", "studies", "a"}
FOR_ONE_STUDY = [
    name for name, command in arguments.COMMANDS.items()
    if "only" in command.takes and MANY_WORDS.isdisjoint(command.takes)
]  # fmt: skip


@pytest.mark.parametrize("name", FOR_ONE_STUDY)
def test_a_run_where_a_command_takes_none_is_refused_with_the_option_that_chooses_it(name: str) -> None:
    takes_a_run = "one_run" in arguments.COMMANDS[name].takes
    words = [name, "small", *(["gru-adam"] if takes_a_run else []), "gru-sgd"]
    with pytest.raises(UsageError) as raised:
        arguments.read(words)
    advice = re.search(r"--only \S+", str(raised.value))
    assert advice is not None
    found = arguments.read([name, "small", *advice[0].split()])
    assert found is not None
    assert found.only == ("gru-sgd",)


PATHS = [field for field in dataclasses.fields(arguments.Arguments) if field.type in (Path, Path | None)]


@pytest.mark.parametrize("option", PATHS, ids=lambda option: option.name)
def test_an_option_that_is_a_path_takes_no_empty_text(option: dataclasses.Field[Any]) -> None:
    """It may be a variable of the shell that is not set, and `Path("")` is the current folder."""
    everywhere = ("runs_dir",)
    words = next(words for words in examples() if option.name in (*arguments.COMMANDS[words[0]].takes, *everywhere))
    flag = parser.flag_of(option)
    assert arguments.read([*words, flag, "here"]) is not None
    with pytest.raises(UsageError, match=rf"{flag}: expected a path, got an empty text"):
        arguments.read([*words, flag, ""])


NAMING = [words for words in examples() if len(words) > 1 and not words[1].startswith("-")]


@pytest.mark.parametrize("words", NAMING, ids=lambda words: words[0])
def test_an_empty_text_is_no_study_and_no_manifest(words: list[str]) -> None:
    with pytest.raises(UsageError, match="got an empty text"):
        arguments.read([words[0], "", *words[2:]])


def test_each_command_has_one_example_one_group_and_one_handler(capsys: pytest.CaptureFixture[str]) -> None:
    assert [words[0] for words in examples()] == COMMANDS
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            launch.main([name, "--help"])
        assert f"example:\n  python launch.py {name} " in capsys.readouterr().out


# -- help and the program's name -----------------------------------------------------------------------------------


def test_it_calls_itself_what_the_user_typed(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def detach(argv: list[str], study_dir: Path) -> int:
        return 4711

    monkeypatch.setattr("jobs.cli.launching.detach", detach)
    for started, name in (("/opt/bin/seqlm", "seqlm"), ("launch.py", "python launch.py")):
        monkeypatch.setattr(sys, "argv", [started])
        assert launch.main([]) == 0
        assert capsys.readouterr().out.startswith(f"usage: {name} [-h]")
        assert launch.main(["status"]) == 2
        assert capsys.readouterr().err.endswith(f"(see {name} status --help)\n")
        assert launch.main(["run", "small.toml", "--backend", "local", "--no-wait"]) == 0
        assert capsys.readouterr().out == f"launched by process 4711; see: {name} status runs/small\n"


@pytest.mark.process
def test_the_installed_command_takes_its_own_modules_before_those_of_pythonpath(tmp_path: Path) -> None:
    hostile.put_modules(tmp_path, hostile.OURS)
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["seqlm"]
    module, _, function = installed.partition(":")
    script = f"import sys; sys.path.append({str(ROOT)!r}); from {module} import {function}; sys.exit({function}())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    commands.run([sys.executable, "-P", "-c", script, "--help"], cold=True, env=environment, cwd=tmp_path, check=True)


# -- bad usage: one line, and exit code 2 --------------------------------------------------------------------------

USAGE = Path(__file__).with_name("usage.txt")
BLOCKS = USAGE.read_text("utf-8").strip().split("\n\n")


def answered(folder: Path, block: str) -> str:
    """Return a block of ``usage.txt``, a command line, with what it is answered now."""
    line = block.partition("\n")[0]
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()) as said:
        assert launch.main(shlex.split(line)) == 2
    return f"{line}\n{said.getvalue().strip()}"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.partition("\n")[0])
def test_bad_usage_is_one_clear_line_and_leaves_nothing_behind(study: Study, block: str) -> None:
    found = answered(study.folder, block)
    error, *following = found.splitlines()[1:]
    assert error.startswith("error: ")
    assert len(following) <= 1, "what to do next"
    assert all(arguments.read(shlex.split(line)[3:]) for line in following), "next: python launch.py ..."
    assert found == block
    assert not (study.folder / "runs").exists()


# -- one command, one look at things -------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-n", "--dry-run"])
def test_a_dry_run_is_the_plan_and_starts_nothing(study: Study, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert launch.main(["plan", "small.toml", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert launch.main(["run", "small.toml", "--json", "--report", flag]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"] == plan["data"]
    assert [step["command"] for step in found["next"]] == ["python launch.py run small.toml --report"]
    assert not (study.folder / "runs").exists()


# -- color and verbose ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "on_terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_color_follows_no_color_then_the_terminal(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    on_terminal: bool,
    expected: bool,
) -> None:
    launched(study, "done", "failed")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_terminal)
    assert launch.main(["status", "small"]) == 0
    out = capsys.readouterr().out
    assert ("\x1b[32mdone\x1b[0m" in out) == ("\x1b[31mfailed\x1b[0m" in out) == expected
    assert ("\x1b" in out) == expected
    plain = out.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "").splitlines()
    column = plain[0].index("state")
    assert [line[column:].split()[0] for line in plain[1:]] == ["done", "failed"], "colors take no room"


def test_verbose_adds_the_settings_and_the_traceback_of_an_error(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["plan", "small.toml", "--backend", "local", "-v"]) == 0
    assert "backend: local; set in small.toml: nothing\n" in capsys.readouterr().err
    with (study.folder / "small.toml").open("a") as manifest:
        manifest.write("[backend.local]\nmax_parallel = 2\nenv = { API_KEY = 'hidden' }\n")
    assert launch.main(["plan", "small.toml", "--backend", "local", "-v"]) == 0
    err = capsys.readouterr().err
    assert "backend: local; set in small.toml: max_parallel, env\n" in err
    assert "hidden" not in err
    assert launch.main(["plan", "small.toml", "--backend", "local"]) == 0
    assert "backend:" not in capsys.readouterr().err
    assert launch.main(["status", "none", "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err


# -- retry ---------------------------------------------------------------------------------------------------------


def test_two_failed_runs_of_one_name_keep_their_own_command_and_data(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEQLM_DATA", raising=False)
    for run in launched(study, "failed", "failed"):
        known = {"name": "same", "command": ["made", run.id], "data": f"/text/{run.id}"}
        run.provenance_file.write_text(json.dumps(known))
    given: dict[str, tuple[Sequence[str], Path | None]] = {}

    def stop(study_of_runs: Any, order: Order, *_: Any) -> None:
        for spec in order.specs:
            given[spec.fingerprint[:8]] = (spec.command, spec.data_path)
        raise UsageError("no further")

    monkeypatch.setattr("jobs.cli.launching.launch", stop)
    assert launch.main(["retry", "small", "--backend", "local"]) == 2
    runs = runs_in(study.folder / "runs" / "small")
    wanted = {run.read_config().fingerprint()[:8]: (("made", run.id), Path(f"/text/{run.id}")) for run in runs}
    assert len(wanted) == 2
    assert given == wanted


if __name__ == "__main__":
    os.environ["SEQLM_BACKEND"] = "local"
    sys.argv[0] = "launch.py"
    with tempfile.TemporaryDirectory() as name:
        Study(Path(name))
        USAGE.write_text("\n\n".join(answered(Path(name), block) for block in BLOCKS) + "\n", "utf-8")
