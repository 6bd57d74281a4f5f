"""A small search for the tests of each backend: what it adds to a manifest, and what is to become of its runs."""

import os
import signal
from collections.abc import Callable, Sequence

from seqlm.files import read_json
from seqlm.records.runs import Rung
from seqlm.rundir import RunDirectory
from tests.facts import failure_of
from tests.small_study import epochs_of, read_soon
from tests.waiting import wait_for

EPOCHS = 3
RATES = [0.02, 0.01, 1e-3, 1e-5]
TABLE = "\n[search]\nrungs = [1, 2]\nkeep = 0.5\nmin_runs = 2\n"


def kill_between_rungs(runs: Callable[[], Sequence[RunDirectory]]) -> RunDirectory:
    """Kill the worker of a run that goes on from the first rung, in the epoch after it; return the run.

    Its steps must be slow from its second epoch on (:mod:`tests.crawl`).
    """

    def training() -> list[tuple[RunDirectory, int]]:
        found = []
        for run in runs():
            if run.read_rungs().get(1, Rung()).decision == "goes on":
                progress = read_json(run.progress_file(run.last_attempt())) or {}
                if progress.get("epoch") == 1:
                    found.append((run, read_soon(run.worker_file(run.last_attempt()))["pid"]))
        return found

    victim, pid = wait_for(training, "a run to train on from the first rung")[0]
    os.kill(pid, signal.SIGKILL)
    return victim


def ends_of(runs: Sequence[RunDirectory]) -> dict[str, int]:
    """Run id -> its epochs, each of which it has done once, if its state is the one that follows from them."""
    for run in runs:
        done = epochs_of(run)
        assert done == list(range(len(done)))
        assert run.observe().state == ("done" if len(done) == EPOCHS else "stopped")
        assert failure_of(run) is None
    return {run.id: len(epochs_of(run)) for run in runs}
