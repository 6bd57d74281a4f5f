"""A rank of two that stops for good without ending: found, ended, and tried again, with the bits of a quiet run.

Needs SEQLM_COLLECTIVE_MINUTES (how long a rank waits for the others) and SEQLM_HUNG_MINUTES (how long a launcher waits
for a sign of life).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests import commands
from tests.chaos.study import FEW, Lab, Study, processes, workers
from tests.crawl import Crawl
from tests.outcome import Outcome, differences, outcomes
from tests.test_launch import epochs_of
from tests.waiting import wait_for

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("stopped-rank")]  # one study that nobody disturbs

EPOCHS = 4


(ARCH, OPTIMIZER, SEED, _) = next(run for run in FEW if run[3] == 2)
ONLY = ("--only", f"name={ARCH}-{OPTIMIZER}-{SEED}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.create(tmp_path_factory.mktemp("stopped") / "lab", few=True, epochs=EPOCHS, lines=200)


@pytest.fixture(scope="module")
def quiet(lab: Lab) -> dict[str, Outcome]:
    """What the run comes to if nobody disturbs it."""
    study = Study(lab.folder / "quiet", lab)
    study.folder.mkdir()
    with (lab.folder / "quiet.log").open("wb") as output:
        launcher = study.start(output, *ONLY)
        commands.finish(launcher)
        assert launcher.returncode == 0
    return outcomes(study.study_dir)


@pytest.mark.parametrize(
    ("rank", "collective_minutes", "hung_minutes", "says"),
    [(1, "0.2", "10", "lost another rank"), (0, "10", "0.4", "no step")],
    ids=["the-second-found-by-the-first", "the-first-found-by-the-launcher"],
)
def test_a_rank_that_is_stopped_for_good_is_found_and_the_run_ends_as_the_quiet_one(
    lab: Lab,
    quiet: dict[str, Outcome],
    tmp_path: Path,
    rank: int,
    collective_minutes: str,
    hung_minutes: str,
    says: str,
) -> None:
    study = Study(tmp_path / "loud", lab)
    study.folder.mkdir()
    crawl = Crawl(tmp_path, epochs=0)
    crawl.env["PYTHONPATH"] += f"{os.pathsep}{lab.shim}"
    waits = {"SEQLM_COLLECTIVE_MINUTES": collective_minutes, "SEQLM_HUNG_MINUTES": hung_minutes}
    log = tmp_path / "loud.log"
    with log.open("wb") as output:
        launcher = study.start(output, *ONLY, **waits, **crawl.env)
        wait_for(lambda: [epochs_of(run) for run in study.runs()], "an epoch of the run", until=any)
        (victim,) = [worker for worker in workers(study) if worker.rank == rank]
        os.kill(victim.pid, signal.SIGSTOP)
        crawl.end()
        try:
            commands.finish(launcher)
            assert launcher.returncode == 0, log.read_text()
        finally:
            launcher.kill()
            commands.finish(launcher)
            for process in processes(study.folder):
                os.kill(process.pid, signal.SIGKILL)
    (run,) = study.runs()
    assert epochs_of(run) == list(range(EPOCHS))
    assert run.attempts() == [1, 2]
    assert run.end(1).kind == "node"
    assert says in run.end(1).message
    assert differences(outcomes(study.study_dir), quiet) == []
    assert not Path(f"/proc/{victim.pid}/cmdline").exists()
