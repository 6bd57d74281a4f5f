"""What a rank records of itself: what it used, and where it is if the run hangs."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seqlm.files import read_json, write_json
from seqlm.hang import explain, waiting_ranks
from seqlm.reading import below, listed
from seqlm.records.attempts import GpuUsage, Usage
from seqlm.training import attempt as attempts
from seqlm.training.distributed import Rank
from seqlm.training.witness import Card, resources, where_it_is
from tests import commands
from tests.seqlm.training.studies import make_config, make_run
from tests.waiting import wait_for

HANGS = """
import ctypes, os, signal, sys, time
from pathlib import Path
import torch
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import Attempt
from seqlm.training.distributed import process_group, rank_from_environment, run_program

def hang():
    match sys.argv[2]:
        case "sleeps":
            time.sleep(3600)
        case "is stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "holds the interpreter":
            ctypes.PyDLL(None).sleep(3600)

def work():
    with process_group(rank):
        for number in range(4):
            if number == 3 and rank.index == 1:
                hang()
            rank.sum(torch.ones(2))

rank = rank_from_environment(os.environ)
run_program(lambda: Attempt(run=RunDirectory(Path(sys.argv[1])), rank=rank, number=1).make(work))
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("sleeps", "it was in hang, "),
        ("is stopped", "it was stopped, "),
        ("holds the interpreter", "it was in hang, "),
    ],
)
def test_the_rank_that_hangs_is_named_with_the_operation_that_it_did_not_come_to(
    tmp_path: Path, how: str, where: str
) -> None:
    run = make_run(tmp_path / "study" / "run", make_config())
    run.attempt_dir(1).mkdir(parents=True)
    run.stdout_log(1).write_text("")
    meeting = {"WORLD_SIZE": "2", "SEQLM_RENDEZVOUS": str(tmp_path / "meeting"), "SEQLM_DEVICE": "cpu"}
    env = {**os.environ, **meeting, "SEQLM_HUNG_MINUTES": "0.05"}
    argv = [sys.executable, "-c", HANGS, run.path, how]
    ranks = [commands.start(argv, env={**env, "RANK": str(rank)}) for rank in (0, 1)]
    try:
        found = wait_for(
            lambda: explain(run, 1), "the ranks", until=lambda text: where in text and "all_reduce" in text
        )
    finally:
        for rank in ranks:
            rank.kill()
            commands.finish(rank)
    assert found.startswith("rank 1 of 2 (")
    assert "did not come to all_reduce " in found
    assert not run.end_file(1).exists()


BURNS = """
import os, subprocess, sys, time
from pathlib import Path
from seqlm.training.witness import resources

def burn(seconds):
    while time.process_time() < seconds:
        pass

burn(float(sys.argv[2]))
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 1: pass"], check=True)
resources().write_file(Path(sys.argv[1]))
os._exit(0)  # as workers end
"""


@pytest.mark.process
def test_what_a_program_and_its_children_used_is_what_the_system_counts(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", BURNS, tmp_path / "used.json", "3"]
    program = commands.start(argv, cold=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, counted = os.wait4(program.pid, 0)
    program.returncode = status
    used = Usage.read_file(tmp_path / "used.json") or Usage()
    assert counted.ru_utime + counted.ru_stime > 4
    assert used.cpu_seconds == pytest.approx(counted.ru_utime + counted.ru_stime, rel=0.05)
    assert used.peak_resident_bytes == pytest.approx(counted.ru_maxrss * 1024, rel=0.05)


class Nvml:
    """The documented functions of pynvml for a card that can tell its energy, or for one that tells nothing."""

    class NVMLError(Exception): ...

    def __init__(self, *, tells: bool = True) -> None:
        self.tells, self.looks = tells, 0

    def __getattr__(self, function: str) -> Any:
        def ask(handle: str) -> Any:
            if not self.tells:
                raise self.NVMLError("Not Supported")
            self.looks += function == "nvmlDeviceGetUtilizationRates"
            return {
                "nvmlDeviceGetTotalEnergyConsumption": 10**6 + 5000 * self.looks,  # mJ
                "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=40 * self.looks, memory=1),
                "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2**30 // self.looks if self.looks else 0, total=2**33),
                "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4 if self.looks == 1 else 0x1,
            }[function]

        return ask


def test_a_card_tells_its_energy_and_the_shares_of_its_time_and_one_that_cannot_tells_nothing(tmp_path: Path) -> None:
    card, silent = Card(Nvml(), "card"), Card(Nvml(tells=False), "card")
    for _ in range(2):
        card.look()
        silent.look()
    found = card.record()
    assert found.joules == pytest.approx(10.0)
    assert found == GpuUsage(busy=0.6, peak_memory_bytes=2**30, joules=found.joules, throttled={"power cap": 0.5})
    silent.record().write_file(tmp_path / "silent.json")
    assert GpuUsage.read_file(tmp_path / "silent.json") == GpuUsage()


def test_nothing_is_recorded_of_a_shared_card(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(Nvml(), "card")
    card.look()
    assert resources(card).gpu == card.record()
    monkeypatch.setenv("SEQLM_GPU_SHARE", "0.5")
    assert resources(card).gpu == "shared"


def test_a_rank_adds_what_it_used_and_runs_with_to_its_record_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "gpu")
    run = make_run(tmp_path / "study" / "run", make_config())
    begun: list[dict[str, Any]] = []

    def work() -> None:
        begun.append(read_json(run.worker_file(1)) or {})

    assert attempts.Attempt(run=run, rank=Rank(), number=1).make(work) == 0
    record = read_json(run.worker_file(1)) or {}
    assert record["resources"]["cpu_seconds"] > 0
    assert record.items() >= {key: begun[0][key] for key in begun[0] if key not in ("resources", "environment")}.items()
    file = run.environment(record["environment"])
    assert listed(tmp_path / "study" / "environments") == [file]
    environment = read_json(file) or {}
    assert {"seqlm", "torch", "psutil"} <= environment["packages"].keys()
    assert environment["variables"]["SLURM_JOB_PARTITION"] == "gpu"
    assert "very-secret" not in file.read_text()
    assert {path.name for path in listed(run.attempt_dir(1))} == {"worker.json", "end.json"}


def test_what_a_kill_leaves_of_an_environment_lies_where_the_next_worker_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "study" / "run", make_config())
    found: list[Path] = []

    def look(*_: object) -> bool:
        found.extend(below(tmp_path, ".*.tmp"))
        return False

    monkeypatch.setattr("seqlm.files.hard_link", look)
    assert attempts.Attempt(run=run, rank=Rank(), number=1).make(lambda: None) == 0
    assert {path.parent for path in found} == {run.lease_dir, run.attempt_dir(1)}


def test_a_run_without_several_ranks_says_where_its_worker_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "study" / "run", make_config())
    run.attempt_dir(1).mkdir(parents=True)
    assert explain(run, 1) == ""
    write_json(run.worker_file(1), {})
    where_it_is().write_file(run.hang_file(1, 0))
    assert explain(run, 1).startswith("its worker was in ")


def test_ranks_that_came_to_unlike_numbers_of_operations_name_the_one_behind(tmp_path: Path) -> None:
    run = make_run(tmp_path / "study" / "run", make_config())
    run.attempt_dir(1).mkdir(parents=True)
    for rank in range(4):
        write_json(run.worker_file(1, rank), {"ranks": 4, "node": f"n{rank}"})
        calls = [[number, "all_reduce", number < 8] for number in range(3, 8 if rank == 2 else 10)]
        write_json(run.hang_file(1, rank), {"where": "forward, own.py:7", "collectives": calls})
    expected = "rank 2 of 4 (n2) did not come to all_reduce 8; it was in forward, own.py:7"
    assert explain(run, 1) == expected
    assert waiting_ranks(run, 1) == "ranks 0, 1, 3 in all_reduce, own.py:7"
    run.hang_file(1, 1).write_text('{"collectives": [[1], 7, ["a", "b", "c"]]}')
    assert explain(run, 1).startswith("rank 1 of 4 (n1) did not come to all_reduce 8; "), "damage stops nothing"
