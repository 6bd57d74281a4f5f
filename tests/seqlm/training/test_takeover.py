"""A run whose worker was taken for dead: real workers, on hosts that see no lock of each other."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from seqlm.rundir import RunDirectory
from tests import commands
from tests.facts import failure_of
from tests.seqlm.training.studies import make_config, make_run, write_text
from tests.waiting import wait_for

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
EPOCHS = 4
BUSY = 75


class Hosts:
    """Starts workers of one run and knows all its files."""

    def __init__(self, folder: Path) -> None:
        self.go_on = folder / "go-on"
        self.hold = f"hold={self.go_on}"
        """An option: the worker stays in its second epoch until ``go_on`` exists."""
        self.run = make_run(folder / "study" / "run", make_config(epochs=EPOCHS))
        self.env = {
            **os.environ,
            "SEQLM_DATA": str(write_text(folder / "text", train_lines=60)),
            "SEQLM_DEVICE": "cpu",
            "SEQLM_LEASE_SECONDS": "0.1",
            "SEQLM_STALE_LEASE_MINUTES": "0.015",
            "OMP_NUM_THREADS": "1",
        }
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, host: str, *options: str, attempt: int, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        process = commands.start(
            [sys.executable, "-m", "tests.seqlm.training.elsewhere", host, *options, self.run.path],
            cwd=ROOT,
            env={**self.env, "SEQLM_ATTEMPT": str(attempt), **(env or {})},
        )
        self.started.append(process)
        return process

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.run.path)): path.read_bytes()
            for path in self.run.path.rglob("*")
            if path.is_file()
        }

    def finish_elsewhere(self, *options: str) -> str:
        """A worker on host b does what is left of the run; returns what it said on stderr."""
        second = self.start("b", *options, attempt=2)
        _, said = commands.finish(second)
        assert second.returncode == 0, said
        return said


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path)
    yield hosts
    for process in hosts.started:
        if process.poll() is None:
            process.kill()
            commands.finish(process)


def is_stopped(process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, commands.finish(process)
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def epochs(run: RunDirectory) -> list[int]:
    return [record["epoch"] for record in run.read_metrics()[0]]


@pytest.mark.parametrize("file", ["last.pt", "result.json"])
def test_a_worker_stopped_with_a_file_written_does_not_put_it_in_place_of_its_successors(
    hosts: Hosts, file: str
) -> None:
    # Its successor sees no temporary file to remove: the check before the renaming is all that there is.
    times = 1 if file == "result.json" else 2
    first = hosts.start("a", f"stop={file}:{times}", attempt=1)
    wait_for(lambda: is_stopped(first), "the worker to stop itself")
    hosts.finish_elsewhere("sweep=no")
    before = hosts.files()
    first.send_signal(signal.SIGCONT)
    _, said = commands.finish(first)
    assert first.returncode == BUSY, said
    assert "taken over by pid" in said
    after = hosts.files()
    own = {name for name in before if name.endswith(".tmp")}  # which the first removes itself, now that it is awake
    assert after == {name: data for name, data in before.items() if name not in own}


def test_a_worker_stopped_between_its_check_and_the_renaming_finds_nothing_to_rename(hosts: Hosts) -> None:
    first = hosts.start("a", "freeze=metrics.jsonl:2", attempt=1)
    wait_for(lambda: is_stopped(first), "the worker to stop itself")
    assert any(name.endswith(".tmp") for name in hosts.files())
    hosts.finish_elsewhere()
    before = hosts.files()
    assert not [name for name in before if name.endswith(".tmp")], "swept away by the new owner"
    first.send_signal(signal.SIGCONT)
    _, said = commands.finish(first)
    assert first.returncode == BUSY, said
    assert "taken over by pid" in said
    assert hosts.files() == before


def test_two_stopped_ranks_are_taken_over_and_once_they_wake_both_end_without_changing_a_byte(hosts: Hosts) -> None:
    meeting = {"WORLD_SIZE": "2", "SEQLM_RENDEZVOUS": str(hosts.run.path.parent / "meeting")}
    ranks = [hosts.start("a", hosts.hold, attempt=1, env={**meeting, "RANK": str(r)}) for r in (0, 1)]
    wait_for(lambda: epochs(hosts.run), "an epoch of the run")
    for process in ranks:
        process.send_signal(signal.SIGSTOP)
    said = hosts.finish_elsewhere()
    assert f"over from pid {ranks[0].pid} on a, which gives no sign of life" in said
    assert epochs(hosts.run) == list(range(EPOCHS))
    before = hosts.files()
    hosts.go_on.touch()
    for process in ranks:
        process.send_signal(signal.SIGCONT)
    ends = [commands.finish(process)[1].splitlines()[-1] for process in ranks]
    assert [process.returncode for process in ranks] == [BUSY, BUSY], ends
    assert all(end.startswith("error: this run was taken over by pid ") and " on b" in end for end in ends), ends
    assert hosts.files() == before
    assert failure_of(hosts.run) is None
