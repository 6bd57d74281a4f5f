"""Launches that share the GPUs of one machine. The GPUs are fake: the workers compute on the processor."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seqlm.gpus import Ledger
from tests import commands
from tests.crawl import Crawl
from tests.facts import start_of
from tests.fake_gpus import FakeGpus, short
from tests.ray_lab import RayLab
from tests.small_study import ClusterStudy, RayStudy, Study, worker_of, worker_pid
from tests.waiting import wait_for

pytestmark = pytest.mark.process


def study_on(gpus: FakeGpus, folder: Path, *settings: str, env: dict[str, str] | None = None, **grid: Any) -> Study:
    folder.mkdir()
    study = ClusterStudy("local", folder, *settings, trains=False, env=env or {}, **grid)
    study.env = gpus.env
    return study


def run_with_others(study: Study, *words: str, user: int | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start the command line, as another user where this process may."""
    prefix = []
    if user is not None:
        for path in [study.folder, *study.folder.rglob("*")]:
            os.chown(path, user, user)
        rights = "-all,+dac_read_search"
        prefix = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
        prefix += [f"--inh-caps={rights}", f"--ambient-caps={rights}", f"--bounding-set={rights}"]
    places = {"HOME": study.folder, "SEQLM_CACHE": study.folder / "cache", "XDG_CONFIG_HOME": study.folder / "config"}
    env = {**study.env, **{name: str(place) for name, place in places.items()}}
    return commands.start([*prefix, *study.command(*words)], cwd=study.folder, env=env, **options)


def finish(launcher: subprocess.Popen[str]) -> str:
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 0, stderr
    return stderr


def states_of(study: Study) -> Callable[[], list[str]]:
    """Return a look at the states of the runs, which are none until the launcher has listed them."""
    return lambda: study.each() if (study.folder / "runs" / "small" / "queue.json").exists() else []


def may_be_others() -> bool:
    return os.geteuid() == 0 and sys.platform == "linux" and shutil.which("setpriv") is not None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter. pytest closes its own to them."""
    with tempfile.TemporaryDirectory(prefix="seqlm-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_gpu_that_another_users_launch_holds_is_given_out_when_its_worker_is_gone(
    open_folder: Path, tmp_path: Path
) -> None:
    anna, bert = (64711, 64712) if may_be_others() else (None, None)
    gpus, crawl = FakeGpus(open_folder / "gpus", 2), Crawl(tmp_path, epochs=0)
    (open_folder / "gpus").chmod(0o777)  # the ledger is made there by the first launch
    first = study_on(gpus, tmp_path / "first", env=crawl.env)
    launcher = run_with_others(first, "run", "small.toml", user=anna)
    wait_for(states_of(first), "the first run", until=lambda states: states == ["running"], by=launcher)
    second = study_on(gpus, tmp_path / "second", env=crawl.env, rates=(0.01, 0.02))
    other = run_with_others(second, "run", "small.toml", user=bert)
    wait_for(
        states_of(second),
        "one run of the second",
        until=lambda seen: sorted(seen) == ["queued", "running"],
        by=other,
    )
    held = {worker_of(run)["gpu"] for study in (first, second) for run in study.runs() if run.attempts()}
    assert held == {*gpus.ids}
    (reason,) = [run["reason"] for run in second.status() if run["state"] == "queued"]
    user = "user 64711" if anna else ""
    (gpu,) = {worker_of(run)["gpu"] for run in first.runs()}
    assert f"{short(gpu)} is used by {user}" in reason
    assert "study small" in reason
    assert gpus.ledger.stat().st_mode & 0o7777 == 0o1777
    os.kill(worker_pid(first.runs()[0]), signal.SIGKILL)  # its launcher may start it again, or the other its second
    wait_for(lambda: len(Ledger(gpus.ledger).bookings()), "both to be held again", until=lambda number: number == 2)
    launcher.kill()
    commands.finish(launcher)
    wait_for(states_of(second), "both runs of the second", until=lambda states: states == ["running"] * 2, by=other)
    crawl.end()
    finish(other)
    assert second.each() == ["done"] * 2
    assert Ledger(gpus.ledger).bookings() == []


def test_a_gpu_of_other_programs_is_not_given_out_and_an_attempt_that_met_one_keeps_its_micro_batches(
    tmp_path: Path,
) -> None:
    gpus, crawl = FakeGpus(tmp_path / "gpus", 1), Crawl(tmp_path, epochs=0)
    foreign = commands.start(["sleep", "1000"])
    gpus.use((0, foreign.pid, "/usr/bin/foreign"))
    fails = {"SEQLM_TEST_STUB": '{"1/1": "oom"}'}
    study = study_on(gpus, tmp_path / "study", env={**crawl.env, **fails})
    launcher = study.start("run", "small.toml")
    reason = wait_for(
        lambda: next((run["reason"] or "" for run in study.status()), "") if states_of(study)() else "",
        "the reason of the run",
        until=lambda text: "foreign" in text,
        by=launcher,
    )
    assert f"{short(gpus.ids[0])} is used by " in reason
    assert f"foreign (process {foreign.pid}, 2.0 GiB)" in reason
    gpus.use()
    wait_for(states_of(study), "the run to start", until=lambda states: states == ["running"], by=launcher)
    gpus.use((0, foreign.pid, "foreign"), (0, worker_pid(study.runs()[0]), "python"))
    crawl.end()
    (run,) = study.runs()
    wait_for(lambda: run.end(1).kind, "the attempt to fail", by=launcher)
    assert run.end(1).kind == "node"
    assert f"foreign (process {foreign.pid}" in run.end(1).message
    gpus.use()
    finish(launcher)
    assert study.each() == ["done"]
    assert start_of(run).micro_batches == 1
    foreign.kill()
    commands.finish(foreign)


def test_a_second_launch_gets_its_turn_before_the_first_has_ended(tmp_path: Path) -> None:
    gpus, crawl = FakeGpus(tmp_path / "gpus", 2), Crawl(tmp_path, epochs=0)
    rates = [0.01 * number for number in range(1, 5)]
    first = study_on(gpus, tmp_path / "first", env=crawl.env, rates=rates)
    launchers = [first.start("run", "small.toml")]
    wait_for(states_of(first), "two runs", until=lambda states: states.count("running") == 2, by=launchers[0])
    second = study_on(gpus, tmp_path / "second", env=crawl.env, rates=rates[:2])
    launchers.append(second.start("run", "small.toml"))
    wait_for(
        lambda: [note.needs for note in Ledger(gpus.ledger).launches()],
        "both to wait for a GPU",
        until=lambda needs: needs.count(1.0) >= 1 and len(needs) == 2,
        by=launchers[1],
    )
    crawl.end()
    for launcher in launchers:
        finish(launcher)
    starts = [[start_time(run) for run in study.runs()] for study in (first, second)]
    assert min(starts[1]) < max(starts[0])
    assert sorted(starts[0])[3] > min(starts[1]), "the next two runs are not both the first's"


def start_time(run: Any) -> float:
    return float(run.start_file(1).stat().st_mtime_ns)


def test_gpus_that_a_launch_leaves_stay_free(tmp_path: Path) -> None:
    gpus, crawl = FakeGpus(tmp_path / "gpus", 3), Crawl(tmp_path, epochs=0)
    study = study_on(gpus, tmp_path / "study", "leave_gpus = 2", env=crawl.env, rates=(0.01, 0.02))
    launcher = study.start("run", "small.toml")
    wait_for(states_of(study), "a run", until=lambda states: sorted(states) == ["queued", "running"], by=launcher)
    wait_for(
        lambda: [run["reason"] or "" for run in study.status()],
        "the reason",
        until=lambda reasons: any("leave_gpus = 2" in reason for reason in reasons),
    )
    assert len(Ledger(gpus.ledger).bookings()) == 1
    crawl.end()
    finish(launcher)
    answer = study("plan", "small.toml", "--set", "resources.ranks=2", "--set", "seed=9")
    assert answer.returncode == 3
    assert "leave_gpus = 2" in answer.stderr


def test_an_embedded_ray_and_the_backend_local_share_the_gpus(lab: RayLab, tmp_path: Path) -> None:
    gpus, crawl = FakeGpus(tmp_path / "gpus", 2), Crawl(tmp_path, epochs=0)
    foreign = commands.start(["sleep", "1000"])
    gpus.use((0, foreign.pid, "foreign"))
    study = RayStudy(lab, tmp_path, env=crawl.env)
    lab.env |= {name: gpus.env[name] for name in ("PATH", "SEQLM_GPU_LEDGER")}
    launcher = study.start("run", "small.toml")
    wait_for(states_of(study), "a run", until=lambda states: states == ["running"], by=launcher)
    (held,) = Ledger(gpus.ledger).bookings()
    assert held.gpu == gpus.ids[1], "not that of the other program"
    assert (held.pid, held.study) == (worker_pid(study.runs()[0]), "small")
    local = study_on(gpus, tmp_path / "local", env=crawl.env)
    other = local.start("run", "small.toml")
    wait_for(
        lambda: [run["reason"] or "" for run in local.status()] if states_of(local)() else [],
        "the reasons of the other launch",
        until=lambda reasons: reasons and "foreign" in reasons[0] and "study small" in reasons[0],
        by=other,
    )
    gpus.use()
    wait_for(states_of(local), "its run", until=lambda states: states == ["running"], by=other)
    foreign.kill()
    commands.finish(foreign)
    crawl.end()
    for process in (launcher, other):
        finish(process)
    assert study.each() == ["done"]


def test_on_a_cluster_a_taken_gpu_is_avoided_and_two_launches_take_turns(lab: RayLab, tmp_path: Path) -> None:
    gpus, crawl = FakeGpus(tmp_path / "gpus", 2), Crawl(tmp_path, epochs=0)
    lab.env["SEQLM_GPU_LEDGER"] = str(gpus.ledger)
    lab.start_cluster((8, 2), nvidia_smi=gpus.nvidia_smi)
    ledger = Ledger(gpus.ledger)
    (claim,) = ledger.book([(gpus.ids[0], 1.0)], {"study": "other"})  # the GPU that Ray gives first
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = RayStudy(lab, tmp_path / "first", rates=(0.01, 0.02, 0.03), env=crawl.env)
    launchers = [first.start("run", "small.toml")]
    reasons = wait_for(
        lambda: [run["reason"] or run["state"] for run in first.status()] if states_of(first)() else [],
        "a run, and the reason of others",
        until=lambda seen: "running" in seen and any("study other" in reason for reason in seen),
        by=launchers[0],
    )
    assert any(f"{short(gpus.ids[0])} is used by " in reason for reason in reasons)
    claim.release()
    wait_for(states_of(first), "a second run", until=lambda states: states.count("running") == 2, by=launchers[0])
    assert sorted(one.gpu for one in ledger.bookings()) == gpus.ids
    second = RayStudy(lab, tmp_path / "second", env=crawl.env)
    launchers.append(second.start("run", "small.toml"))
    wait_for(states_of(second), "it to wait", until=lambda states: states == ["queued"], by=launchers[1])
    wait_for(
        lambda: [run["reason"] or "" for run in first.status()],
        "the turn of the second launch",
        until=lambda seen: any("it is the turn of " in reason for reason in seen),
        by=launchers[0],
    )
    crawl.end()
    for launcher in launchers:
        finish(launcher)
    (start,) = [start_time(run) for run in second.runs()]
    assert start < max(start_time(run) for run in first.runs())
    assert not any(run.end(attempt).kind for run in first.runs() for attempt in run.attempts()), "no run has failed"
