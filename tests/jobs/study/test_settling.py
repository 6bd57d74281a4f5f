from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.cli.studying import follow_logs
from jobs.manifests.policy import Policy
from jobs.study.folder import Observer, launching, write_queue
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests.facts import fail, launch_again, owned
from tests.seqlm.training.studies import make_config, make_run
from tests.waiting import wait_for


@contextmanager
def worker(run: RunDirectory, attempt: int) -> Iterator[None]:
    run.attempt_dir(attempt).mkdir(parents=True)
    with owned(run):
        yield
        run.stdout_log(attempt).write_text(f"attempt {attempt} was here\n")


class Following:
    """``follow_logs`` in a thread, which looks at the run when the test says so."""

    def __init__(self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        self._looks = self._wanted = 0
        monkeypatch.setattr("jobs.cli.studying.time", SimpleNamespace(sleep=self._pause))
        self._thread = threading.Thread(
            target=lambda: follow_logs(Observer(run.path.parent).look_at(run), 20), daemon=True
        )

    def _pause(self, _: float) -> None:
        self._looks += 1
        wait_for(lambda: self._wanted > self._looks, "the test to want another look")

    def start(self) -> None:
        self._thread.start()
        self.look()

    def look(self) -> None:
        """Have it look once more, and go on."""
        self._wanted += 1
        wait_for(lambda: self._looks == self._wanted or not self._thread.is_alive(), "a look at the run")
        assert self._thread.is_alive()

    def end(self) -> None:
        """Have it look once more, and end."""
        self._wanted += 1
        wait_for(lambda: not self._thread.is_alive(), "the end of following")


def test_followed_logs_go_on_while_a_failed_run_is_tried_again_and_end_with_a_final_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    run = make_run(study / "run-00000001", make_config())
    following = Following(run, monkeypatch)
    with launching(study):
        launch_again(run, Policy(node=1).to_dict())
        write_queue(study, {run.id: "about to start"})
        with worker(run, 1):
            following.start()
            following.look()
        fail(run, {"kind": "node", "message": "killed by SIGKILL"})
        following.look()
        with worker(run, 2):
            following.look()
        fail(run, {"kind": "node", "message": "killed by SIGKILL"})
        following.end()  # with the run, not with the launcher
    printed = capsys.readouterr().out
    assert printed.index("attempt 1 was here") < printed.index("attempt 2 was here")


def test_followed_logs_hold_what_was_written_while_their_end_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "study" / "run-00000001", make_config())
    run.attempt_dir(1).mkdir(parents=True)
    run.stdout_log(1).write_text("before\n")
    real = sys.stdout.write

    def write(text: str) -> int:
        if "before" in text:
            with run.stdout_log(1).open("a") as log:
                log.write("meanwhile\n")
        return real(text)

    monkeypatch.setattr(sys.stdout, "write", write)
    monkeypatch.setattr(
        "jobs.cli.studying.time", SimpleNamespace(sleep=lambda seconds: write_json(run.result_file, {}))
    )
    follow_logs(Observer(run.path.parent).look_at(run), 20)
    assert capsys.readouterr().out.splitlines()[1:] == ["before", "meanwhile"]
