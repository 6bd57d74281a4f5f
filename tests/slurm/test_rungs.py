"""Jobs at the rungs of a search, without SLURM."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.manifests.policy import Policy
from jobs.spec import Resources
from jobs.study.folder import AtWork, read_all_jobs, read_jobs, write_jobs
from jobs.study.folder import look_at as look_at_run
from jobs.study.squeue import JobState, Stage
from seqlm.errors import EXIT_RUNG
from seqlm.files import read_json, write_json, write_json_lines
from seqlm.rundir import FailureKind, RunDirectory
from seqlm.search import Search, decision_at, wait_at
from slurm import backend
from slurm.job import JobPlan, Signals
from slurm.rungs import attempts_from_rung
from slurm.settings import SlurmSettings
from slurm.task import Task
from tests.fake_slurm import FakeSlurm
from tests.slurm.test_submission import planned
from tests.slurm.test_task import place, plan
from tests.training.studies import make_config, make_run
from tests.waiting import DEADLINE_SECONDS

SYNC = Search(rungs=(2, 4), keep=0.5, min_runs=2, mode="sync")


def at_rung(folder: Path, *values: float, rung: int = 2) -> list[RunDirectory]:
    """Runs that wait at a rung with these values."""
    runs = [make_run(folder / f"r-{n:08x}", make_config(seed=n, epochs=6)) for n in range(len(values))]
    for run, value in zip(runs, values, strict=True):
        write_json_lines(run.metrics_file, [{"epoch": epoch, "val_ppl": value} for epoch in range(rung)])
        wait_at(run, rung)
        run.attempt_dir(1).mkdir(parents=True)
        write_jobs(folder, {}, {run.id: "0001"})
    return runs


def job(*runs: RunDirectory, rung: int | None = 2, ranks: int = 1, **changes: object) -> JobPlan:
    return plan(*runs, search=SYNC, rung=rung, resources=Resources(ranks=ranks, cpus=1, gpus=0), **changes)


@pytest.mark.process
def test_each_stage_of_a_search_waits_for_all_arrays_of_the_stage_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSlurm(tmp_path / "fake", max_array_size=2).on_path(monkeypatch)
    items = planned(tmp_path, 4)
    items[3] = replace(items[3], spec=replace(items[3].spec, resources=Resources(ranks=2, cpus=1, gpus=1)))

    def waits(search: Search | None) -> list[list[str]]:
        made = backend.scripts(items, tmp_path, SlurmSettings(max_parallel=1), Policy(), search)
        return [re.findall(r"ARRAY_(\d)", script) for script in made]

    one_at_a_time = [[], ["1"], ["2"]]
    assert waits(None) == waits(replace(SYNC, mode="async")) == one_at_a_time
    assert waits(replace(SYNC, rungs=(1, 2))) == [  # no run has more than two epochs
        *one_at_a_time,
        *(["1", "2", "3"], ["1", "2", "3", "4"], ["1", "2", "3", "5"]),
    ]


def test_the_first_rank_decides_and_the_others_follow(tmp_path: Path) -> None:
    good, bad = at_rung(tmp_path, 5.0, 6.0)
    told = job(good, bad, ranks=2)
    found: dict[str, int] = {}
    other = threading.Thread(
        target=lambda: found.update(attempts_from_rung(told, tmp_path, place(SLURM_PROCID="1"), Signals()))
    )
    other.start()
    assert attempts_from_rung(told, tmp_path, place(), Signals()) == {good.id: 2}
    other.join(DEADLINE_SECONDS)
    assert found == {good.id: 2}
    assert [decision_at(run, 2) for run in (good, bad)] == ["goes on", "stopped"]
    assert bad.observe().reason == "stopped at epoch 2: 2nd of 2, keeps 1"


def test_a_rank_that_waits_for_the_first_heeds_a_signal(tmp_path: Path) -> None:
    signals = Signals()
    signals.told = True
    assert attempts_from_rung(job(*at_rung(tmp_path, 5.0)), tmp_path, place(SLURM_PROCID="1"), signals) == {}


def test_a_job_that_is_started_again_goes_on_with_its_run_until_the_next_rung(tmp_path: Path) -> None:
    good, _ = at_rung(tmp_path, 5.0, 6.0)
    told = job(good)
    assert attempts_from_rung(told, tmp_path, place(), Signals()) == {good.id: 2}
    good.attempt_dir(2).mkdir()
    good.write_failure_once({"kind": "node", "message": "killed", "attempt": 2})
    again = place(SLURM_RESTART_COUNT="1")
    assert attempts_from_rung(told, tmp_path, again, Signals()) == {good.id: 3}
    good.failure_file.unlink()
    write_json_lines(good.metrics_file, [{"epoch": epoch, "val_ppl": 5.0} for epoch in range(4)])
    wait_at(good, 4)
    assert attempts_from_rung(told, tmp_path, again, Signals()) == {}, "its own job decides about it there"
    assert attempts_from_rung(job(good, rung=4), tmp_path, again, Signals()) == {good.id: 3}


def test_only_runs_of_the_job_that_have_come_to_the_rung_go_on(tmp_path: Path) -> None:
    done, failed, taken, late, own = at_rung(tmp_path, 5.0, 5.0, 5.0, 5.0, 5.0)
    write_json(done.result_file, {})
    failed.write_failure_once({"kind": "diverged", "message": "nan"})
    write_jobs(tmp_path, {}, {taken.id: "0002"})
    late.rungs_file.unlink()
    write_json_lines(late.metrics_file, [{"epoch": 0, "val_ppl": 5.0}])  # its job was lost
    assert attempts_from_rung(job(done, failed, taken, late, own), tmp_path, place(), Signals()) == {own.id: 2}


@pytest.mark.process
def test_a_job_whose_runs_leave_at_a_rung_has_done_its_work(tmp_path: Path) -> None:
    waits, stops, goes = at_rung(tmp_path, 5.0, 6.0, 1.0)
    goes.rungs_file.unlink()
    goes.metrics_file.unlink()
    program = (
        f"import shutil, sys; shutil.copytree(r'{waits.path}', sys.argv[1], dirs_exist_ok=True); sys.exit({EXIT_RUNG})"
    )
    write_json(stops.stopped_file, {"rung": 2})
    assert Task(job(waits, stops, goes, rung=None, program=program), place(), Signals(), started=time.time()).run()
    assert not any(run.failure_file.exists() for run in (waits, stops, goes))
    assert goes.observe().state == "pending"
    assert [run.attempts() for run in (waits, stops, goes)] == [[1]] * 3, "none was started but the one"
    # a job of the rung, none of whose runs go on, ends well without a worker
    task = Task(job(stops), place(), Signals(), started=time.time())
    task.choose(attempts_from_rung(job(stops), tmp_path, place(), Signals()))
    assert task.run()


def test_a_run_whose_next_job_was_never_submitted_still_waits(tmp_path: Path) -> None:
    (run,) = at_rung(tmp_path, 5.0)

    def seen(stage: Stage, kind: FailureKind | None = None) -> tuple[str, str | None]:
        work = AtWork(jobs={run.id: JobState(stage=stage, reason="waiting for another job", kind=kind)})
        found = look_at_run(run, work).observation
        return found.state, found.reason

    waits = "waits after 2 epochs for the runs that it is compared with; run again to go on"
    assert seen("queued") == ("queued", "waiting for another job")
    assert seen("ended", "code") == seen("gone") == ("pending", waits)
    assert seen("ended", "cancelled")[0] == "cancelled"


def test_all_jobs_of_a_run_are_cancelled_and_its_last_one_says_why_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = at_rung(tmp_path, 5.0, 6.0)
    for stage in ("7", "8", "9"):
        write_jobs(tmp_path, {first.id: f"{stage}_0", second.id: f"{stage}_1"}, {})
    assert read_jobs(tmp_path) == {first.id: "9_0", second.id: "9_1"}
    assert read_all_jobs(tmp_path)[first.id] == ["7_0", "8_0", "9_0"]
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(backend, "ask", lambda *words: calls.append(words))
    first.write_failure_once({"kind": "cancelled", "message": "cancelled by the user"})
    backend.cancel_jobs(tmp_path, [look_at_run(first, AtWork())])
    assert calls == [("scancel", "--quiet", "7_0", "8_0", "9_0")]
    write_jobs(tmp_path, {}, {first.id: "0002"})
    assert first.id not in read_all_jobs(tmp_path), "the jobs of an earlier launch"
    record = read_json(tmp_path / "slurm" / "jobs.json") or {}
    write_json(tmp_path / "slurm" / "jobs.json", {key: record[key] for key in ("jobs", "submissions")})
    assert read_all_jobs(tmp_path) == {second.id: ["9_1"]}, "an older record"
