"""``[notify]``: each message once, whichever process dies, from launchers alone, at no cost if it cannot be sent."""

import functools
import logging
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import launch
from jobs.launch import notify
from jobs.launch.notify import over
from jobs.manifests.policy import Notify, Policy
from jobs.spec import RunSpec, Submission
from jobs.study.record import KeptManifests
from seqlm.errors import ConfigError, FileError
from seqlm.files import write_json
from seqlm.reading import exists
from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory, study_record_file
from seqlm.schema import read
from seqlm.trust import record_launch, table_digest
from tests import commands
from tests.analysis.synthetic import make_run
from tests.facts import fail, launch_again, make_folder
from tests.fakes import FakeBackend
from tests.jobs.launch.test_dispatch import run_all, todo
from tests.seqlm.training.studies import make_config
from tests.small_study import Study
from tests.waiting import wait_for

pytestmark = pytest.mark.process
MESSAGES = Notify(command="tee -a messages")
SPECS = [RunSpec(name=f"run{number}", config=make_config(seed=number)) for number in range(12)]
FAILURE = {"kind": "diverged", "message": "its own"}
NUMBER = re.compile(r"\(message (\S+)\)")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, in which the command runs, of a user who has launched nothing."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def numbers(home: Path, name: str = "messages") -> list[str]:
    """The messages in the order in which they came."""
    path = home / name
    return NUMBER.findall(path.read_text()) if path.exists() else []


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A study whose run is done."""
    launch_again(make_run(tmp_path / "small", 0))
    return tmp_path / "small"


# -- once --------------------------------------------------------------------------------------------------------------


def test_a_message_comes_again_only_if_its_sender_could_not_write_the_answer_down_and_with_the_same_number(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> bool:
        raise FileError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(notify, "write_once", refuse)
        over(done, MESSAGES)
    for _ in range(3):
        over(done, MESSAGES)
    assert numbers(done.parent / "home") == ["1/over"] * 2


MOMENTS: list[Callable[[Study], object]] = [
    lambda study: exists(study.folder / "runs/small/launches/000001/request.json"),
    lambda study: any(run.attempts() for run in study.runs()),
    *(
        functools.partial(lambda number, study: sum(map(len, study.epochs())) >= number, number)
        for number in range(1, 7)
    ),
]
"""When a launcher is killed. Two more times the program that it sends messages with kills it."""
PROGRAM = """
[ $(cat tries | wc -c) -lt 2 ] && printf x >> tries && kill -9 $PPID && exit
cat >> messages
"""


@pytest.mark.slow
def test_a_study_whose_launcher_is_killed_at_ten_moments_is_said_to_be_over_once(tmp_path: Path) -> None:
    study = Study(tmp_path, stub=True, epochs=4, rates=[0.01, 0.02])
    program, env = tmp_path / "program", {**study.env, "SEQLM_TEST_STUB_SECONDS": "0.4"}
    program.write_text(PROGRAM)
    study.write("[notify]", f'command = "sh {program}"', 'on = ["over"]')
    words = ("run", "small.toml", "--backend", "local", "--no-canary")
    for moment in MOMENTS:
        launcher = study.start(*words, env=env)
        wait_for(functools.partial(moment, study), "the moment")
        launcher.kill()
        commands.finish(launcher)
    codes = [study(*words, env=env).returncode for _ in range(4)]
    assert codes[-2:] == [0, 0]
    study_dir = tmp_path / "runs" / "small"
    assert (tmp_path / "home" / "tries").read_text() == "xx"
    newest = max(int(folder.name) for folder in (study_dir / "launches").iterdir())
    assert numbers(tmp_path / "home") == [f"{newest}/over"]


# -- what is sent ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_waiting")
def test_a_run_that_fails_and_one_that_gets_no_further_are_one_message_each(tmp_path: Path) -> None:
    items, policy = todo(tmp_path / "s", 3), Policy(max_stalled_retries=3)
    diverges, stalls, _ = (item.run for item in items)

    def end(submission: Submission) -> int:
        run = RunDirectory(submission.run_dir)
        if run == diverges:
            fail(run, FAILURE)
        elif run != stalls:
            write_json(run.result_file, {"best_val_ppl": 1.0})
        return {diverges: 1, stalls: -9}.get(run, 0)

    wanted = {item.run.id: Wanted() for item in items}
    request = file_request(tmp_path / "s", RequestFile(kind="run", policy=policy.to_dict(), runs=wanted))
    given: dict[str, Any] = {"is_requested": True, "policy": policy, "request": request.number}
    run_all(FakeBackend(end), items, notify=MESSAGES, **given)
    expected = [f"1/failed-{diverges.id}", f"1/failed-{stalls.id}", f"1/stalled-{stalls.id}"]
    assert sorted(numbers(tmp_path / "home")) == expected
    over(tmp_path / "s", MESSAGES)
    text = (tmp_path / "home" / "messages").read_text()
    assert "over: 2 failed, 1 done" in text
    assert text.count("its own") == 2


def test_many_failures_are_ten_messages_and_what_nobody_asked_for_is_none(tmp_path: Path, home: Path) -> None:
    for asked, number in (("failed", 10), ("stalled", 0)):
        folder = tmp_path / asked
        messages = notify.Messages(folder, Notify(command=f"tee -a messages-{asked}", on=(asked,)), 1)
        for run in (make_folder(folder, spec) for spec in SPECS):
            fail(run, FAILURE)
            messages.failure(run, run.failures(), "diverged", is_final=True)
            messages.wait()
        assert len(numbers(home, f"messages-{asked}")) == number


# -- by whom -----------------------------------------------------------------------------------------------------------


def test_no_command_that_reads_sends_anything_and_a_study_of_somebody_else_has_no_say_in_a_launch(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(done.parent / "config"))
    write_json(study_record_file(done), {"notify": MESSAGES.to_dict()})
    for words in ("status", "results", "logs", "list", "note", "report --behaviour", "retry", "clean --dry-run"):
        name, *flags = words.split()
        study = [] if name == "list" else [str(done)]
        assert launch.main([name, *study, *flags, "--runs-dir", str(done.parent)]) == 0
    assert numbers(done.parent / "home") == []
    assert KeptManifests(done).notify is None
    record_launch(done, {table_digest("notify", MESSAGES.to_dict())})
    assert KeptManifests(done).notify == MESSAGES


# -- what cannot be sent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["no-such-program", "false", "sleep 600"])
def test_a_program_that_fails_costs_a_line_and_is_not_tried_again(
    done: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "SEND_SECONDS", 0.1)
    for lines in (1, 0):
        over(done, Notify(command=command))
        assert len(capsys.readouterr().err.splitlines()) == lines


@pytest.mark.parametrize(
    "command",
    [
        "tee a | cat",
        "cat>a|cat",
        "cat > messages",
        "cat 2>&1",
        "cd; cat",
        "cat && true",
        "cat &",
        "echo $(cat)",
        "mail $ME",
    ],
)
def test_what_only_a_shell_understands_is_refused_and_the_advice_is_a_command(command: str) -> None:
    with pytest.raises(ConfigError, match=r"notify\.command: no shell runs it") as refused:
        read(Notify, {"command": command})
    (line,) = refused.value.problems
    advised = tomllib.loads(f"command = {line.partition('write ')[2]}")["command"]
    assert shlex.split(advised) == ["sh", "-c", command]
    assert read(Notify, {"command": advised}).command == advised


@pytest.mark.parametrize("command", ["tee -a 'a | b'", 'mail -s "a > b; c" me', "curl https://host/?a=1&b=2", "a\\|b"])
def test_what_is_quoted_or_part_of_a_word_needs_no_shell(command: str) -> None:
    assert read(Notify, {"command": command}).command == command


@pytest.mark.parametrize("command", ["no-such-program -x", "~/no-such-program", "./no-such-program"])
def test_a_program_that_does_not_exist_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    study = Study(tmp_path, epochs=1)
    study.write("[notify]", f'command = "{command}"')
    monkeypatch.chdir(tmp_path)
    for name, *flags in (["plan", "--backend", "local"], ["run", "--backend", "local"], ["notify", "--test"]):
        assert launch.main([name, "small.toml", *flags]) == 2
        err = capsys.readouterr().err
        assert f'there is no program "{command.split()[0]}"' in err
        assert f"sh -c '{command}'" in err or f"sh -c {command}" in err
    assert not (tmp_path / "runs").exists()


def test_a_test_sends_one_message_each_time_as_the_manifest_or_the_study_says(
    done: Path, home: Path, ask: commands.Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.parent)
    study = Study(done.parent, epochs=1)
    study.write("[notify]", 'command = "tee -a messages"')
    write_json(study_record_file(done), {"notify": MESSAGES.to_dict()})
    assert ask("notify", str(done))[0] == 2, "this user has not launched it"
    for number, words in enumerate((["small.toml"], ["small.toml", "--test"], [str(done), "--trust", "--test"])):
        code, found, err = ask("notify", *words)
        assert (code, found["study"], found["sent"]) == (0, "small", True if number else None), err
        text = (home / "messages").read_text() if number else ""
        assert text.count("test") == number
    study.manifest.write_text(study.manifest.read_text().replace("tee -a messages", "false"))
    code, found, err = ask("notify", "small.toml", "--test")
    assert (code, found["sent"]) == (1, False)
    assert "false" in err


@pytest.mark.parametrize("answer", [True, False, OSError])
def test_a_url_gets_the_message_and_is_neither_shown_nor_written(
    done: Path, answer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in for Apprise, which says what it does with its address."""
    url, got = "json://me:pass@host", list[str]()

    class Apprise:
        def add(self, url: str) -> bool:
            logging.getLogger("apprise").error("cannot reach %s", url)
            got.append(url)
            return True

        def notify(self, *, title: str, body: str) -> bool:
            got.append(body)
            if answer is OSError:
                raise OSError(5, url)
            return bool(answer)

    module = ModuleType("apprise")
    module.Apprise = Apprise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apprise", module)
    monkeypatch.setenv("SEQLM_NOTIFY", url)
    over(done, Notify(url_env="SEQLM_NOTIFY"))
    assert got[0] == url
    assert "over: 1 done" in got[1]
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == (answer is not True)
    assert "pass" not in said.out + said.err
    assert not [path for path in done.rglob("*") if path.is_file() and b"pass@" in path.read_bytes()]


def test_a_variable_that_is_not_set_is_an_error_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(tmp_path, epochs=1)
    study.write("[notify]", 'url_env = "SEQLM_NOTIFY"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEQLM_NOTIFY", raising=False)
    assert launch.main(["run", "small.toml", "--backend", "local"]) == 2
    assert "notify.url_env: SEQLM_NOTIFY is not set" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
