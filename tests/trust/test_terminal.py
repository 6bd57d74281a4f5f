"""What a log, a name or a message holds cannot drive the terminal that shows it."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import launch
from jobs import terminal
from jobs.cli.view import MEASURES, StudyView, Watcher, drawn, watch
from seqlm.errors import printable
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests.facts import fail
from tests.seqlm.training.studies import make_config, make_run

ESCAPES = {
    "clears the screen": "\x1b[2J\x1b[H",
    "sets the title": "\x1b]0;owned\x07",
    "writes the clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "one byte CSI": "\x9b31m",
    "goes back": "safe\rrm -rf",
    "rubs out": "safe\x08\x08\x08\x08",
    "turns the text around": "\u202egnp.exe",
    "new line": "a\nerror: b",
    "line separator": "a\u2028b",
    "NUL": "a\0b",
    "half a character": "a\udc80b",
}


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES.keys())
def test_what_would_drive_a_terminal_is_shown_as_an_escape(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert "\\" in shown


@pytest.mark.parametrize("text", ["größer 日本語 ελ عربي", "می‌خواهم", "👩‍💻", "a\u00a0b\u3000c", "a\tb", ""])
def test_the_letters_of_any_language_stay_as_they_are(text: str) -> None:
    assert printable(text) == text


HOSTILE = "\x1b]0;owned\x07\x1b[2Jüber\u202e"
SHOWN = "\\x1b]0;owned\\x07\\x1b[2Jüber\\u202e"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run with a hostile name, a hostile failure and hostile logs, in ``runs/small``."""
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "small" / "rnn-00000000", make_config())
    write_json(run.provenance_file, {"name": f"rnn{HOSTILE}", "resources": {}})
    fail(run, {"kind": "code", "message": f"ValueError: {HOSTILE}", "attempt": 1})
    bar = "\r".join(f"{share}%|{'█' * share}" for share in (1, 2, 3))
    run.stdout_log(1).write_bytes(f"first {HOSTILE}\r\n{bar}\n".encode())
    run.stderr_log(1).write_bytes(b"bytes \xff\xfe\n")
    return run


DRIVING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> bool:
    return DRIVING.search(text) is None


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("words", [["logs"], ["logs", "-f"], ["status"], ["results"], ["results", "--csv"], ["cancel"]])
def test_no_command_that_looks_at_a_run_passes_its_escapes_on(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main([words[0], "small", *words[1:]]) == 0
    said = capsys.readouterr()
    assert harmless(said.out + said.err)
    assert SHOWN in said.out or words in (["cancel"], ["results"])


@pytest.mark.usefixtures("run")
def test_a_progress_bar_in_a_log_is_its_last_state(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["logs", "small"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f"first {SHOWN}", "3%|███", "stderr: bytes \ufffd\ufffd"]


@pytest.mark.usefixtures("run")
def test_json_holds_the_lines_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["logs", "small", "--json"]) == 0
    said = capsys.readouterr()
    assert said.out.isascii()
    assert json.loads(said.out)["data"]["runs"][0]["stdout"][0] == f"first {HOSTILE}"
    assert harmless(said.err)


@pytest.mark.parametrize(
    "words",
    [["status", f"no{HOSTILE}"], ["status", f"no{HOSTILE}", "-v"], ["logs", "small", f"no{HOSTILE}"], [f"no{HOSTILE}"]],
)
@pytest.mark.usefixtures("run")
def test_an_error_does_not_pass_on_the_escapes_of_an_argument(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(words) == 2
    said = capsys.readouterr().err
    assert harmless(said)
    assert len(said.splitlines()) == 1 or "-v" in words, "with a traceback"


def test_the_live_table_draws_no_escapes_of_a_run(run: RunDirectory) -> None:
    console = Console(file=io.StringIO(), width=200, height=40, color_system=None)
    console.print(drawn(Watcher(run.path.parent).look(), console))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert harmless(said)
    assert "\\x1b]0;owned" in said


def test_a_line_for_a_person_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.tell(f"a\nerror: b {HOSTILE}")
    assert capsys.readouterr().err == f"a\\nerror: b {SHOWN}\n"


def test_a_log_that_grows_is_followed_by_whole_lines(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.cli.studying import _print_from

    log = run.stdout_log(1)

    def print_from(position: int, **options: Any) -> int:
        return _print_from(log, position, **{"rest": False, **options})

    log.write_bytes("über".encode()[:1])
    assert print_from(0) == 0
    log.write_bytes("über\n\x1b[2J half".encode())
    position = print_from(0)
    assert capsys.readouterr().out == "über\n"
    assert print_from(position) == position
    assert print_from(position, rest=True) == log.stat().st_size
    assert capsys.readouterr().out == "\\x1b[2J half\n"


def test_a_study_that_is_watched_in_lines_passes_on_no_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"name": f"rnn{HOSTILE}", "id": "rnn", "epochs_done": 0, "epochs_total": 2, "best_val_ppl": None}
    about |= {**dict.fromkeys(MEASURES), "origin": None}
    ends = [{**about, "state": "running", "reason": None}, {**about, "state": "failed", "reason": HOSTILE}]
    views = [StudyView(name="small", runs=[end]) for end in ends]

    seen = iter(views)
    monkeypatch.setattr(Watcher, "look", lambda self: next(seen))
    watch(Watcher(tmp_path))
    said = capsys.readouterr().out
    assert harmless(said)
    assert said.count(SHOWN) == 2
