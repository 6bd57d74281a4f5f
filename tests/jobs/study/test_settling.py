from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.manifests.policy import Policy
from jobs.study.folder import Observer, launching, write_queue
from jobs.study.logs import follow_logs
from jobs.study.squeue import Scheduler
from seqlm.files import write_json
from seqlm.locks import exclusive_lock
from seqlm.rundir import RunDirectory
from tests.facts import fail, launch_again
from tests.jobs.cli.test_watch import Touched
from tests.slurm_jobs import write_jobs
from tests.training.studies import make_config, make_run
from tests.waiting import wait_for


@contextmanager
def worker(run: RunDirectory, attempt: int) -> Iterator[None]:
    run.attempt_dir(attempt).mkdir(parents=True)
    with exclusive_lock(run.worker_lock_file, "busy"):
        yield
        run.stdout_log(attempt).write_text(f"attempt {attempt} was here\n")


class Following:
    """``follow_logs`` in a thread, which looks at the run when the test says so."""

    def __init__(self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        self._looks = self._wanted = 0
        monkeypatch.setattr("jobs.study.logs.time", SimpleNamespace(sleep=self._pause))
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


def test_following_the_logs_of_a_run_touches_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    run, other = (make_run(study / f"run-0000000{number}", make_config(seed=number)) for number in (1, 2))
    write_jobs(study, {run.id: "12_0", other.id: "12_1"})
    queue = "12_0|RUNNING|\n12_1|RUNNING|"
    monkeypatch.setattr(Scheduler, "_call", lambda self, *command: queue)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            write_json(run.result_file, {})

    monkeypatch.setattr("jobs.study.logs.time", SimpleNamespace(sleep=pause))
    seen = Observer(study).look_at(run)
    touched = Touched(monkeypatch)
    follow_logs(seen, 20)
    assert pauses == [1.0] * 3
    assert touched.below(run.path)
    assert touched.below(other.path) == []


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
    monkeypatch.setattr("jobs.study.logs.time", SimpleNamespace(sleep=lambda seconds: write_json(run.result_file, {})))
    follow_logs(Observer(run.path.parent).look_at(run), 20)
    assert capsys.readouterr().out.splitlines()[1:] == ["before", "meanwhile"]
