import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.cli.studying import follow_logs
from jobs.manifests.policy import Policy
from jobs.study.folder import Observer, launching, write_queue
from seqlm.rundir import RunDirectory
from tests.facts import fail, launch_again, owned
from tests.seqlm.training.studies import make_config, make_run


def follow(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """Follow the logs of a run, to which these things happen between two looks; the last look ends it."""
    left = iter(steps)
    monkeypatch.setattr("jobs.cli.studying.time", SimpleNamespace(sleep=lambda seconds: next(left)()))
    follow_logs(Observer(run.path.parent).look_at(run), 20)
    assert list(left) == []


def test_followed_logs_go_on_while_a_failed_run_is_tried_again_and_end_with_a_final_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    run, worker = make_run(study / "run-00000001", make_config()), contextlib.ExitStack()

    def begin(attempt: int) -> None:
        run.attempt_dir(attempt).mkdir(parents=True)
        worker.enter_context(owned(run))

    def end(attempt: int) -> None:
        run.stdout_log(attempt).write_text(f"attempt {attempt} was here\n")
        worker.close()
        fail(run, {"kind": "node", "message": "killed by SIGKILL"})

    with launching(study):
        launch_again(run, Policy(node=1).to_dict())
        write_queue(study, {run.id: "about to start"})
        begin(1)
        follow(run, monkeypatch, lambda: None, lambda: end(1), lambda: begin(2), lambda: end(2))
    printed = capsys.readouterr().out  # it ends with the run, not with the launcher
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
    follow(run, monkeypatch)
    assert capsys.readouterr().out.splitlines()[1:] == ["before", "meanwhile"]
