"""The background launcher of ``--no-wait``, until the command that has started it returns."""

import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest

from jobs.launch import background
from seqlm.processes import process_start

pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")]

HANGS = ["-S", "-c", "import time; print('begins', flush=True); time.sleep(600)"]


def test_a_launcher_that_hangs_before_it_has_prepared_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(background, "START_SECONDS", 0.2)
    pid = background.detach(HANGS, tmp_path / "s")
    try:
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: the launcher is still preparing after 0.2 s")
        assert line.endswith(str(tmp_path / "s" / "launch-0001.log"))
        assert process_start(pid) is not None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_ctrl_c_before_a_background_launcher_has_prepared_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def interrupt(study_dir: Path) -> NoReturn:
        pids.extend(child for child in children() if child not in before)
        raise KeyboardInterrupt

    before = children()
    monkeypatch.setattr(background, "launcher_of", interrupt)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        background.detach(HANGS, tmp_path / "s")
    (pid,) = pids
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    del interrupted  # its traceback held the `Popen`, which would have collected the exit code when it was deleted


def test_a_log_never_goes_to_the_file_of_an_earlier_launcher(tmp_path: Path) -> None:
    """Although earlier logs were deleted, and somebody has put other files there."""
    for name in ("launch-0002.log", "launch-0007.log", "launch-0008.log.txt", "launch-new.log"):
        (tmp_path / name).write_text("earlier")
    background.detach(["-S", "-c", "print('later')"], tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.glob("launch-*.log")} == {
        "launch-0002.log": "earlier",
        "launch-0007.log": "earlier",
        "launch-0008.log": "later\n",
        "launch-new.log": "earlier",
    }


def children() -> set[int]:
    """The processes that this one has started."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}
