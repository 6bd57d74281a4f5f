"""Why a job waits: SLURM's reasons in words, and its plan."""

import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.base import Waiting
from jobs.study.folder import read_jobs
from slurm.scheduler import REASONS, meaning
from slurm.testcluster import LoopbackCluster
from slurm.waiting import waiting_jobs
from tests import commands
from tests.slurm.programs import program
from tests.slurm_jobs import write_jobs
from tests.small_study import SlurmStudy
from tests.waiting import wait_for


def clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%dT%H:%M:%S")


@pytest.mark.process
def test_a_waiting_job_has_its_reason_its_place_its_start_and_a_limit_that_starts_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a queue of six jobs, of which four are a study's."""
    folder, now = tmp_path / "bin", float(int(time.time()))
    folder.mkdir()
    soon, limit = clock(now + 7200), f"2:00:00|{tmp_path}/study/launches/000001"
    reasons = {"7_1": "Resources|N/A", "6": "Priority|N/A", "7_0": f"Priority|{soon}", "7_2": f"JobHeldUser|{soon}"}
    reasons["7_3"] = "ReqNodeNotAvail, UnavailableNodes:n[1-2]|N/A"
    listed = "\n".join(["5|cpu|Priority|N/A|1:00|/x", *(f"{job}|gpu|{text}|{limit}" for job, text in reasons.items())])
    program(folder, "squeue", f'case "$*" in *%o) echo "/a|b.sh";; *) echo "{listed}";; esac')
    said = f"sbatch: Job 9 to start at {clock(now + 600)} using 1 processors on nodes n1 in partition gpu"
    program(folder, "sbatch", f'case "$*" in *"--time=30 /a|b.sh") echo "{said}" >&2;; *) exit 1;; esac')
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    write_jobs(tmp_path / "study", {f"run-{number}": f"7_{number}" for number in range(4)})
    (found,) = waiting_jobs({"run-0": read_jobs(tmp_path / "study")["run-0"]}).values()
    text, action = REASONS["Priority"]
    known = {"job": "7_0", "text": text, "action": action, "place": "3rd of 5 in gpu", "starts_at": now + 7200}
    assert found == Waiting(**known, sooner=(30, now + 600))
    _, resources, held, drained = waiting_jobs(read_jobs(tmp_path / "study")).values()
    assert (resources.place, resources.starts_at, resources.sooner) == ("1st of 5 in gpu", None, None)
    assert (held.starts_at, "7_2" in held.action) == (None, True)
    assert drained.text == REASONS["ReqNodeNotAvail"][0]


def test_each_reason_means_what_its_row_says_and_has_something_to_do() -> None:
    assert {word: meaning(word) for word in REASONS} == REASONS
    assert all(all(row) for row in REASONS.values())


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
            is_held = [reason.startswith(("JobHeld", "Dependency")) for _, reason in plan]
            known = [
                None if held or start == "Unknown" else start for held, (start, _) in zip(is_held, plan, strict=True)
            ]
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
