"""The test cluster is a real SLURM, survives what is done to it, and leaves nothing behind."""

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from seqlm.errors import BackendError, UsageError
from slurm.testcluster import ClusterOptions, LoopbackCluster, programs
from slurm.testcluster.configuration import ClusterFolder, slurm_conf
from slurm.testcluster.slots import take_slot
from slurm.testcluster.supervisor import descendants
from tests import commands
from tests.slurm.real import require_slurm
from tests.waiting import wait_for

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent.parent


def text_of(path: Path) -> str:
    """What a file holds; nothing if it does not exist yet."""
    return path.read_text() if path.exists() else ""


def wait_for_ends(pids: Iterable[int]) -> None:
    wait_for(lambda: [pid for pid in pids if not is_gone(pid)], "processes to end", until=lambda alive: not alive)


def submit(cluster: LoopbackCluster, folder: Path, script: str, *options: str) -> str:
    path = folder / f"{len(list(folder.iterdir()))}.sh"
    path.write_text(f"#!/bin/bash\n{script}\n")
    command = ["sbatch", "--parsable", f"--output={folder}/%x.%A.%a.out", "--open-mode=append", *options, str(path)]
    return cluster.run(*command, cwd=folder).stdout.strip()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


# -- nothing is left behind ------------------------------------------------------------------------------------------


def test_closing_ends_jobs_daemons_and_what_jobs_left_running(tmp_path: Path) -> None:
    require_slurm()
    with LoopbackCluster(ClusterOptions(nodes=1)) as own:
        submit(own, tmp_path, f"setsid sleep 300 & echo $! > {tmp_path}/pid; exec sleep 300")
        left = wait_for(lambda: text_of(tmp_path / "pid"), "the pid that the job prints", until=lambda t: "\n" in t)
        pids = descendants([own.supervisor_pid])
        assert int(left) in pids
    assert all(map(is_gone, pids))
    assert not own.folder.exists()
    own.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_an_owner_that_is_interrupted_or_killed(number: signal.Signals) -> None:
    require_slurm()
    up = commands.start([sys.executable, "-m", "slurm.testcluster", "up", "--nodes", "1"], cwd=ROOT, stderr=None)
    commands.next_line(up)
    conf = Path(commands.next_line(up).strip().partition("=")[2])
    assert conf.exists()
    env = {**os.environ, "SLURM_CONF": str(conf)}
    commands.run(["sbatch", "--wrap=sleep 300", "--output=/dev/null"], env=env, check=True)
    pids = descendants([up.pid])
    assert len(pids) > 3
    up.send_signal(number)
    commands.finish(up)
    assert up.returncode == (0 if number == signal.SIGINT else -number)
    wait_for_ends(pids)
    assert not conf.parent.exists()


def test_a_cluster_whose_supervisor_was_killed_is_gone_and_can_be_closed() -> None:
    require_slurm()
    with LoopbackCluster(ClusterOptions(nodes=1)) as own:
        pids = descendants([own.supervisor_pid])
        os.kill(own.supervisor_pid, signal.SIGKILL)
        wait_for_ends(pids)
        with pytest.raises(BackendError, match="its supervisor has ended"):
            own.start_node(0)
    assert not own.folder.exists()


def test_a_failure_while_starting_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    require_slurm()
    folder = Path(f"/tmp/sc{os.getpid()}")
    broken = LoopbackCluster(ClusterOptions(nodes=1, extra_lines=["SchedulerType=sched/nonsense"]), folder)
    with pytest.raises(BackendError, match=r"slurmctld has exited: .*failed to initialize sched plugin"):
        broken.start()
    assert not folder.exists()
    with pytest.raises(BackendError, match="not running"):
        broken.wait_for_nodes()


def test_up_detached_and_down_from_the_command_line() -> None:
    require_slurm()
    folder = f"/tmp/sd{os.getpid()}"
    command = [sys.executable, "-m", "slurm.testcluster"]
    size = ["--nodes", "1", "--gpus", "0", "--cpus", "2", "--memory-mb", "100"]
    up = commands.run([*command, "up", "--detach", "--folder", folder, *size], cwd=ROOT)
    assert f"export SLURM_CONF={folder}/slurm.conf\n" in up.stdout, up.stderr
    env = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
    nodes = commands.run(["sinfo", "-h", "-o", "%D %c %m %G"], env=env).stdout
    assert nodes == "1 2 100 (null)\n"
    again = commands.run([*command, "up", "--folder", folder], cwd=ROOT)
    assert (again.returncode, again.stderr) == (2, f"error: test cluster: {folder} is not empty\n")
    for code in (0, 2):
        down = commands.run([*command, "down", "--folder", folder], cwd=ROOT)
        assert down.returncode == code
    assert down.stderr == f"error: {folder}: expected the folder of a running test cluster\n"
    assert not Path(folder).exists()


# -- without SLURM ---------------------------------------------------------------------------------------------------


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "SEARCHED", str(tmp_path))
    with pytest.raises(BackendError, match=r"not installed: munged, .*: apt-get install slurm-wlm munge$"):
        LoopbackCluster().start()
    with pytest.raises(BackendError, match=r"munge slurmdbd slurm-wlm-mysql-plugin mariadb-server$"):
        LoopbackCluster(ClusterOptions(accounting=True)).start()


@pytest.mark.parametrize("wrong", [{"nodes": 0}, {"nodes": 1000}, {"gpus": -1}, {"max_time_min": 0}])
def test_impossible_options_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"test cluster: {next(iter(wrong))}: expected "):
        ClusterOptions(**wrong)  # type: ignore[arg-type]


def test_clusters_at_the_same_time_share_no_port_and_no_address() -> None:
    slots = [take_slot(64) for _ in range(3)]
    try:
        ports = {slot.controller_port for slot in slots} | {slot.accounting_port for slot in slots}
        ports |= {slot.node_port(index) for slot in slots for index in range(240)}
        assert len(ports) == 3 * 242
        assert len({slot.node(index) for slot in slots for index in range(240)}) == 3 * 240
    finally:
        for slot in slots:
            slot.reservation.close()


def test_the_configuration_names_the_partitions_limit_and_the_extra_lines(tmp_path: Path) -> None:
    slot = take_slot(1)
    with slot.reservation:
        options = ClusterOptions(nodes=1, gpus=0, max_time_min=7, extra_lines=["MaxJobCount=9"])
        lines = slurm_conf(options, ClusterFolder(folder=tmp_path, slot=slot)).splitlines()
    assert "PartitionName=main Nodes=ALL Default=YES MaxTime=7 State=UP" in lines
    assert "MaxJobCount=9" in lines
    assert not any("gpu" in line or "Preempt" in line or "Accounting" in line for line in lines)
