"""What a launch and a watched study show while runs train.

``python -m tests.jobs.cli.test_live`` writes the tables in ``screens.txt`` again; read their diff.
"""

import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs import terminal
from jobs.cli import view
from jobs.cli.view import MEASURES, Record, StudyView, Watcher, drawn, following
from jobs.plan.planned import PlannedRun
from jobs.spec import RunSpec
from seqlm.errors import FileError
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory
from seqlm.state import State
from tests.facts import fail, owned
from tests.seqlm.training.studies import make_config, make_run
from tests.waiting import wait_for


def run(name: str, state: State = "queued", **changes: Any) -> Record:
    given = {"epochs_done": 0, "epochs_total": 40, "best_val_ppl": None, "reason": None, "origin": None, **changes}
    return {"name": name, "id": name, "state": state, **dict.fromkeys(MEASURES), **given}


RUNNING = run(
    "gru-adam",
    "running",
    epochs_done=2,
    share=0.45,
    train_ppl=149.8,
    val_ppl=138.46,
    best_val_ppl=131.2,
    tokens_per_second=31_500.0,
    seconds_left=720.0,
)
FAILED = run("rnn-adam", "failed", epochs_done=1, best_val_ppl=150.0, reason="diverged: the loss\nof a step is nan")
QUEUED = run("rnn-sgd", reason="needs 2 cores, 1 free")
DONE = run("rnn-3", "done", epochs_done=40, train_ppl=90.0, val_ppl=101.5, best_val_ppl=100.25)


def named(record: Record, name: str) -> Record:
    return {**record, "name": name, "id": name}


def study_of(*runs: Record) -> StudyView:
    return StudyView(name="mine", runs=runs)


def shown(study: StudyView, width: int, height: int = 60) -> list[str]:
    """The lines on a terminal, whose last one is for the cursor."""
    console = Console(file=io.StringIO(), width=width, height=height + 1)
    console.print(drawn(study, console))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


SCREENS = Path(__file__).with_name("screens.txt")
BROKEN = run("broken", "failed", epochs_done=None, epochs_total=None, reason="config.json is damaged")
VIEWS: dict[str, list[Record]] = {
    "every state": [QUEUED, DONE, FAILED, RUNNING, BROKEN],
    "long names": [named(QUEUED, "x" * 70), named(RUNNING, "y" * 90)],
    "an unknown time": [{**RUNNING, "seconds_left": None}],
    "nothing": [],
    "a thousand runs": [
        *(named(QUEUED, f"q{n}") for n in range(950)),
        *(named(DONE, f"d{n}") for n in range(46)),
        *(FAILED, *(named(RUNNING, f"r{n}") for n in range(3))),
    ],
    "more running runs than lines": [*(named(RUNNING, f"r{n}") for n in range(200)), QUEUED],
}
SIZES = [
    *(("every state", width, 20) for width in (60, 80, 140)),
    *((name, 80, 12) for name in VIEWS if name != "every state"),
    ("a thousand runs", 80, 24),
]


def screen(name: str, width: int, height: int) -> str:
    """A block of ``screens.txt``."""
    lines = shown(study_of(*VIEWS[name]), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    return "\n".join([f"== {name}, {width} x {height}", *lines, ""])


@pytest.mark.parametrize(("name", "width", "height"), SIZES)
def test_a_study_fits_its_terminal(name: str, width: int, height: int) -> None:
    assert screen(name, width, height) in re.split(r"(?m)^(?=== )", SCREENS.read_text("utf-8"))


def test_without_colours_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed() -> str:
        stream = io.StringIO()
        console = Console(file=stream, width=100, force_terminal=True, color_system="standard")
        console.print(drawn(study_of(RUNNING), console))
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[36m" in printed()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in printed()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("term", "can"), [("xterm-256color", True), ("dumb", False), ("", False)])
def test_only_a_terminal_that_can_redraw_gets_the_table(monkeypatch: pytest.MonkeyPatch, term: str, can: bool) -> None:
    monkeypatch.setenv("TERM", term)
    assert terminal.can_redraw(_Terminal()) == can
    assert not terminal.can_redraw(io.StringIO())


def planned_in(study_dir: Path) -> PlannedRun:
    config = make_config()
    made = make_run(study_dir / "one-00000001", config)
    spec = RunSpec(name="one", config=config)
    return PlannedRun(spec=spec, run=made, observation=made.observe(), action="start", reason=None)


def launched(study_dir: Path, dispatch: Callable[[], None]) -> None:
    with following(study_dir, "this machine", [planned_in(study_dir)]):
        dispatch()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[StudyView]:
    """What a watcher sees."""
    look, found = Watcher.look, list[StudyView]()

    def noted(self: Watcher) -> StudyView:
        found.append(look(self))
        return found[-1]

    monkeypatch.setattr(view, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Watcher, "look", noted)
    return found


def look_twice(looks: list[StudyView]) -> None:
    before = len(looks)
    wait_for(lambda: len(looks), "two looks at the study", until=lambda count: count >= before + 2)


def trains(study_dir: Path, looks: list[StudyView]) -> Callable[[], None]:
    """Return what a launch does to the files of its run: an epoch, a failure, and the end."""
    run = RunDirectory(study_dir / "one-00000001")

    def dispatch() -> None:
        with owned(run):
            look_twice(looks)
            write_json_lines(run.metrics_file, [{"epoch": 0, "val_ppl": 100.0}])
            look_twice(looks)
            fail(run, {"kind": "node", "message": "killed by SIGKILL"})
        look_twice(looks)
        write_json(run.result_file, {})

    return dispatch


def test_a_launch_tells_each_change_of_a_run_in_a_line(
    tmp_path: Path, looks: list[StudyView], capsys: pytest.CaptureFixture[str]
) -> None:
    launched(tmp_path / "s", trains(tmp_path / "s", looks))
    assert capsys.readouterr().err.splitlines() == [
        "s: 1 of 1 runs to do on this machine: 1 start",
        "s: 1 pending",
        "one-00000001  running",
        "one-00000001  running  epoch 1/2  best val ppl 100.00",
        "one-00000001  failed  epoch 1/2  best val ppl 100.00  node: killed by SIGKILL",
        "one-00000001  done  epoch 1/2  best val ppl 100.00",
    ]


def test_on_a_terminal_the_changes_stand_above_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[StudyView]
) -> None:
    stream = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr", stream)
    launched(tmp_path / "s", trains(tmp_path / "s", looks))
    text = stream.getvalue()
    assert "one-00000001  failed  epoch 1/2" in text
    assert text.index("one-00000001  failed  epoch 1/2") < text.rindex("s: 1 done")
    assert "\x1b[?25h" in text, "the cursor is back"


@pytest.mark.parametrize("error", [FileError("gone"), OSError("gone")])
def test_a_file_that_cannot_be_read_for_a_moment_ends_neither_display_nor_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    look, looks = Watcher.look, list[StudyView | None]()

    def fails_once(self: Watcher) -> StudyView:
        looks.append(None if len(looks) == 1 else look(self))
        if (found := looks[-1]) is None:
            raise error
        return found

    def dispatch() -> None:
        wait_for(lambda: len(looks), "another look at the study", until=lambda count: count >= 3)
        write_json(tmp_path / "s" / "one-00000001" / "result.json", {})

    monkeypatch.setattr(view, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Watcher, "look", fails_once)
    launched(tmp_path / "s", dispatch)
    assert capsys.readouterr().err.splitlines()[1:] == ["s: 1 pending", "one-00000001  done"]


def test_an_error_of_a_launch_ends_its_display(tmp_path: Path) -> None:
    def dispatch() -> None:
        raise KeyboardInterrupt

    threads_of_earlier_tests = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        launched(tmp_path / "s", dispatch)
    assert set(threading.enumerate()) <= threads_of_earlier_tests


if __name__ == "__main__":
    SCREENS.write_text("".join(screen(*size) for size in SIZES), "utf-8")
