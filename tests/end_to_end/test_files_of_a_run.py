"""How many files a run has: file systems of clusters limit them."""

import os
import signal
from pathlib import Path

import pytest

from seqlm.reading import below
from seqlm.rundir import RunDirectory
from tests import commands
from tests.crawl import Crawl
from tests.small_study import Study, epochs_of, worker_pid
from tests.waiting import wait_for

pytestmark = pytest.mark.process

MOST = 15
"""Files of a run of one rank that was done in one attempt."""
FURTHER = 4
"""Further files of each further attempt."""


def files(run: RunDirectory) -> set[str]:
    return {str(path.relative_to(run.path)) for path in below(run.path) if path.is_file()}


def test_a_run_has_15_files_and_4_more_for_each_further_attempt(tmp_path: Path) -> None:
    crawl = Crawl(tmp_path, epochs=1)
    study = Study(tmp_path, epochs=3)
    words = ("run", "small.toml", "--backend", "local")
    launcher = study.start(*words, env={**os.environ, **crawl.env})
    study.until_they_train()
    (run,) = study.runs()
    os.kill(worker_pid(run), signal.SIGKILL)
    wait_for(lambda: run.attempts() == [1, 2] and (run.worker_file(2)).exists(), "the second attempt")
    wait_for(lambda: len(epochs_of(run)) == 2, "one more epoch")
    launcher.send_signal(signal.SIGTERM)
    commands.finish(launcher)
    crawl.end()
    assert study(*words).returncode == 0
    assert run.attempts() == [1, 2, 3]
    found = files(run)
    assert len(found) <= MOST + 2 * FURTHER + 1, sorted(found)  # and older.log
    older = run.older_log.read_text()
    assert [f"== attempt {number}, {name}.log" in older for number in (1, 2) for name in ("stdout", "stderr")] == [
        True
    ] * 4
    assert "epoch 1/3 done" in older
    once = Study(tmp_path / "once", epochs=1)
    assert once(*words).returncode == 0
    (single,) = once.runs()
    assert len(files(single)) <= MOST, sorted(files(single))
