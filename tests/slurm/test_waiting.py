"""Why a job waits: SLURM's reasons in words, and its plan."""

import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.base import Waiting
from slurm.testcluster import LoopbackCluster
from slurm.waiting import REASONS, UNPLANNED, waiting_jobs
from tests import commands
from tests.slurm.programs import program
from tests.slurm_jobs import write_jobs
from tests.small_study import SlurmStudy
from tests.waiting import wait_for


def clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%dT%H:%M:%S")


@pytest.fixture
def now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """A SLURM with a queue of six jobs; four of them are a study's."""
    folder, now = tmp_path / "bin", float(int(time.time()))
    folder.mkdir()
    rows = ["7_0|Priority|{0}|gpu|2:00:00", "7_1|Resources|N/A|gpu|2:00:00", "7_2|JobHeldUser|N/A|gpu|2:00:00"]
    rows.append("7_3|ReqNodeNotAvail, UnavailableNodes:n[1-2]|N/A|gpu|2:00:00")
    listed = "\n".join(rows).format(clock(now + 7200))
    program(folder, "squeue", f'case "$*" in *" -p gpu "*) printf "5\\n7_1\\n6\\n7_0\\n";; *) echo "{listed}";; esac')
    said = f"sbatch: Job 9 to start at {clock(now + 600)} using 1 processors on nodes n1 in partition gpu"
    program(folder, "sbatch", f'case "$*" in *--time=30*) echo "{said}" >&2;; *) exit 1;; esac')
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    request = write_jobs(tmp_path / "study", {f"run-{number}": f"7_{number}" for number in range(4)})
    (request.folder / "array-0.sh").touch()
    return now


@pytest.mark.process
def test_a_waiting_job_has_its_reason_its_place_its_start_and_a_limit_that_starts_sooner(
    tmp_path: Path, now: float
) -> None:
    found = waiting_jobs(tmp_path / "study", {"run-0", "run-1", "run-2", "run-3"})
    assert found["run-0"] == Waiting(
        text=REASONS["Priority"][0],
        job="7_0",
        place="4th of 4 in gpu",
        starts_at=now + 7200,
        sooner=(30, now + 600),
    )
    assert (found["run-1"].place, found["run-1"].starts_at, found["run-1"].sooner) == ("2nd of 4 in gpu", None, None)
    assert (found["run-2"].place, "7_2" in found["run-2"].action) == ("", True)
    assert found["run-3"].text == REASONS["ReqNodeNotAvail"][0]


@pytest.mark.process
def test_starts_are_those_of_scontrol_for_a_full_cluster_a_held_job_a_begin_time_and_a_dependency(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    cluster = slurm_cluster
    wait_for(lambda: cluster.run("squeue", "-h").stdout, "jobs of other tests to end", until=lambda text: not text)
    full = cluster.run("sbatch", "--parsable", "-N3", "--exclusive", "-t", "45", "--wrap", "sleep 900").stdout.strip()
    study = SlurmStudy(cluster, tmp_path, rates=[0.01, 0.02, 0.03, 0.04], timeout_min=60)
    states = ("squeue", "-h", "-o", "%T")
    wait_for(lambda: cluster.run(*states).stdout.strip(), "the nodes to be full", until="RUNNING".__eq__)
    try:
        assert study("run", "small.toml", "--no-wait").returncode == 0
        array = cluster.run("squeue", "-h", "-t", "PD", "-o", "%A").stdout.strip()
        cluster.run("scontrol", "hold", f"{array}_1")
        cluster.run("scontrol", "update", f"JobId={array}_2", "StartTime=now+7200")
        cluster.run("scontrol", "update", f"JobId={array}_3", f"Dependency=afterok:{full}")

        def told() -> tuple[list[Any], list[Any]]:
            """Starts and reasons by `why`, and by scontrol, whose plan may change in between."""
            runs = commands.ask(["why", "small.toml"], folder=study.folder, env=study.env)["runs"]
            shown = [cluster.run("scontrol", "show", "job", f"{array}_{number}").stdout for number in range(4)]
            plan = [[re.findall(f"{key}=(\\S+)", text)[0] for key in ("StartTime", "Reason")] for text in shown]
            starts = [run["starts_at"] and clock(datetime.fromisoformat(run["starts_at"]).timestamp()) for run in runs]
            words = [run["headline"].partition(": ")[2].partition(";")[0] for run in runs]
            known = [None if start == "Unknown" or reason in UNPLANNED else start for start, reason in plan]
            expected = [(start, REASONS[reason][0]) for start, (_, reason) in zip(known, plan, strict=True)]
            return list(zip(starts, words, strict=True)), expected

        def is_planned(pair: tuple[list[Any], list[Any]]) -> bool:
            return pair[0] == pair[1] and [start is not None for start, _ in pair[0]] == [True, False, True, False]

        wait_for(told, "SLURM's plan, the same in both", until=is_planned)
        (held,) = commands.ask(["why", "small.toml", study.runs()[1].id], folder=study.folder, env=study.env)["runs"]
        assert held["details"]["do"] == REASONS["JobHeldAdmin"][1], "who holds it here is root"
    finally:
        cluster.run("scancel", "-u", "root", check=False)
        study("cancel", "small.toml", "--all")
