import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.attempt.supervisor import Ended
from jobs.backends.local import LocalBackend
from jobs.spec import RunSpec, Submission
from jobs.study.kept_code import Code
from seqlm import machine
from seqlm.errors import BackendError
from seqlm.machine import Gpu
from seqlm.resources import Resources
from tests import commands
from tests.seqlm.training.studies import make_config
from tests.waiting import wait_for

TELL = """
import json, os, sys
names = "RANK WORLD_SIZE OMP_NUM_THREADS SEQLM_DEVICE CUDA_VISIBLE_DEVICES SEQLM_RENDEZVOUS SEQLM_ATTEMPT".split()
names += "SEQLM_GPU_SHARE CUDA_DEVICE_ORDER CUDA_MPS_PIPE_DIRECTORY".split()
names += "GOMP_SPINCOUNT KMP_BLOCKTIME OMP_WAIT_POLICY".split()
told = {"group": os.getpgrp(), **{n: os.environ.get(n) for n in names}}
json.dump(told, open(os.path.join(sys.argv[1], "rank" + os.environ["RANK"]), "w"))
os.write(1, b"out\\n"); os.write(2, b"err\\n")  # a line at once: two ranks write to the same file
"""


@pytest.fixture
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 4)
    monkeypatch.setattr(machine, "gpus", list)


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine, "gpus", lambda: [Gpu("GPU-aa", "Card"), Gpu("GPU-bb", "Card")])


def wanting(resources: Resources, precision: str = "fp32") -> RunSpec:
    return RunSpec(name="rnn", config=make_config(precision=precision), resources=resources)


def submission(folder: Path, program: str, resources: Resources) -> Submission:
    folder.mkdir(parents=True, exist_ok=True)
    argv = (sys.executable, "-S", "-c", program, str(folder))
    env = {"SEQLM_ATTEMPT": "1"}
    return Submission(run_dir=folder, attempt=1, argv=argv, env=env, cwd=folder, resources=resources)


def has_room(backend: LocalBackend, resources: Resources) -> bool:
    return backend.free().place(resources) is not None


def wait(backend: LocalBackend, job_id: str) -> Ended:
    ended = wait_for(lambda: backend.poll(job_id), "the job to end", until=lambda ended: ended is not None)
    assert ended is not None
    return ended


@pytest.mark.process
@pytest.mark.usefixtures("_four_cores")
def test_each_rank_is_a_process_that_knows_its_place(tmp_path: Path) -> None:
    backend = LocalBackend()
    resources = backend.resolve(wanting(Resources(ranks=2)), at_most=1)
    assert resources == Resources(ranks=2, cpus=2, gpus=0)
    job = backend.submit(submission(tmp_path / "run", TELL, resources))
    assert not has_room(backend, Resources(cpus=1, gpus=0)), "it holds all cores"
    assert wait(backend, job).exit_code == 0
    assert has_room(backend, resources)
    ranks = [json.loads((tmp_path / "run" / f"rank{rank}").read_text()) for rank in range(2)]
    assert [rank["RANK"] for rank in ranks] == ["0", "1"]
    assert os.getpgrp() not in {rank["group"] for rank in ranks}
    assert {rank["WORLD_SIZE"] for rank in ranks} == {"2"}
    assert {rank["OMP_NUM_THREADS"] for rank in ranks} == {"2"}
    assert {rank["SEQLM_DEVICE"] for rank in ranks} == {"cpu"}
    assert ranks[0]["SEQLM_RENDEZVOUS"] == ranks[1]["SEQLM_RENDEZVOUS"] is not None
    attempt = tmp_path / "run" / "attempts" / "0001"
    assert (attempt / "stdout.log").read_text() == "out\n" * 2
    assert (attempt / "stderr.log").read_text() == "err\n" * 2


@pytest.mark.process
@pytest.mark.usefixtures("_two_gpus")
def test_four_quarters_of_a_gpu_share_one_card(tmp_path: Path) -> None:
    backend = LocalBackend()
    quarter = backend.resolve(wanting(Resources(gpus=0.25)), at_most=8)
    assert quarter.cpus == 1
    jobs = [backend.submit(submission(tmp_path / str(number), TELL, quarter)) for number in range(5)]
    for job in jobs:
        wait(backend, job)
    seen = [json.loads((tmp_path / str(n) / "rank0").read_text()) for n in range(5)]
    assert [rank["CUDA_VISIBLE_DEVICES"] for rank in seen] == ["GPU-aa", "GPU-aa", "GPU-aa", "GPU-aa", "GPU-bb"]
    assert {rank["SEQLM_GPU_SHARE"] for rank in seen} == {"0.25"}


@pytest.mark.process
@pytest.mark.usefixtures("_two_gpus")
def test_each_rank_sees_its_own_gpu_and_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLM_GPU_SHARE", "0.5")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/run/mps")
    backend = LocalBackend()
    one = backend.resolve(wanting(Resources()), at_most=5)
    assert (one.gpus, one.cpus) == (1, 4)
    first = backend.submit(submission(tmp_path / "a", TELL, one))
    second = backend.submit(submission(tmp_path / "b", TELL, one))
    assert not has_room(backend, one)
    for job in (first, second):
        wait(backend, job)
    seen = [json.loads((tmp_path / run / "rank0").read_text()) for run in "ab"]
    assert [rank["CUDA_VISIBLE_DEVICES"] for rank in seen] == ["GPU-aa", "GPU-bb"]
    assert {rank["SEQLM_GPU_SHARE"] for rank in seen} == {"1"}, "whatever the caller's shell says"
    assert {rank["CUDA_DEVICE_ORDER"] for rank in seen} == {"PCI_BUS_ID"}, "a card without a UUID has a number"
    assert {rank["CUDA_MPS_PIPE_DIRECTORY"] for rank in seen} == {"/run/mps"}
    assert {rank["SEQLM_DEVICE"] for rank in seen} == {"cuda"}
    assert has_room(backend, backend.resolve(wanting(Resources(ranks=2)), at_most=1))


def test_ranks_on_instances_of_mig_are_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_count", lambda: 8)
    instances = [Gpu("MIG-aa", "A100 MIG"), Gpu("MIG-bb", "A100 MIG")]
    monkeypatch.setattr(machine, "gpus", lambda: [*instances, Gpu("GPU-cc", "A100")])
    with pytest.raises(BackendError, match=r"^rnn: needs a whole GPU for each of 2 ranks, .* has 1 whole GPU$"):
        LocalBackend().resolve(wanting(Resources(ranks=2)), at_most=1)
    assert LocalBackend().resolve(wanting(Resources(ranks=2, gpus=0)), at_most=1).ranks == 2
    assert LocalBackend().resolve(wanting(Resources()), at_most=1).gpus == 1


@pytest.mark.usefixtures("_two_gpus")
def test_a_share_of_a_card_for_one_process_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "exclusive_gpus", lambda: [Gpu("GPU-bb", "Card")])
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    half = wanting(Resources(gpus=0.5))
    with pytest.raises(BackendError, match=r"^rnn: resources.gpus = 0.5 .* GPU-bb .* Exclusive_Process"):
        LocalBackend().resolve(half, at_most=1)
    assert LocalBackend().resolve(wanting(Resources()), at_most=1).gpus == 1, "a whole one is no share"
    (tmp_path / "control").touch()
    assert LocalBackend().resolve(half, at_most=1).gpus == 0.5, "MPS is the one process"


@pytest.mark.usefixtures("_four_cores")
@pytest.mark.parametrize(
    ("precision", "flags", "message"),
    [
        ("tf32", True, r'^rnn: train.precision = "tf32" needs an NVIDIA GPU; this run .* processor .*; use "fp32"$'),
        ("bf16", False, r'^rnn: train.precision = "bf16" needs avx512_bf16 or .*, or an NVIDIA GPU; this run'),
    ],
)
def test_a_precision_that_the_processor_lacks_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, precision: str, flags: bool, message: str
) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: flags)
    with pytest.raises(BackendError, match=message):
        LocalBackend().resolve(wanting(Resources(), precision), at_most=1)
    monkeypatch.setattr(machine, "has_bf16", lambda: True)
    assert LocalBackend().resolve(wanting(Resources(), "bf16"), at_most=1).cpus == 4


@pytest.mark.process
@pytest.mark.usefixtures("_four_cores")
@pytest.mark.parametrize(
    ("manifest", "shell", "expected"),
    [
        ({}, {}, ["1000", "0", None]),
        ({"GOMP_SPINCOUNT": "7"}, {}, ["7", None, None]),
        ({}, {"KMP_BLOCKTIME": "200"}, [None, "200", None]),
        ({}, {"OMP_WAIT_POLICY": "active"}, [None, None, "active"]),
    ],
)
def test_waiting_threads_spin_for_a_short_time_unless_the_user_says_how_they_wait(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    manifest: dict[str, str],
    shell: dict[str, str],
    expected: list[str | None],
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")  # of the tests
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    backend = LocalBackend()
    wait(backend, backend.submit(replace(submission(tmp_path, TELL, Resources(cpus=1, gpus=0)), env=manifest)))
    told = json.loads((tmp_path / "rank0").read_text())
    assert [told[name] for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")] == expected


@pytest.mark.process
@pytest.mark.usefixtures("_four_cores")
def test_a_rank_killed_by_a_signal_explains_the_others(tmp_path: Path) -> None:
    program = "import os, signal, sys, time\nif os.environ['RANK'] == '1': os.kill(os.getpid(), 9)\nsys.exit(1)"
    backend = LocalBackend()
    ended = wait(backend, backend.submit(submission(tmp_path / "run", program, Resources(ranks=2, cpus=1, gpus=0))))
    assert (ended.exit_code, ended.message) == (-9, "rank 1 was killed by SIGKILL")


@pytest.mark.process
@pytest.mark.usefixtures("_four_cores")
def test_ranks_left_hanging_by_a_failed_one_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.attempt.supervisor.PEER_GRACE_SECONDS", 0.2)
    program = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(7)\ntime.sleep(600)"
    backend = LocalBackend()
    ended = wait(backend, backend.submit(submission(tmp_path / "run", program, Resources(ranks=2, cpus=1, gpus=0))))
    assert "rank" in ended.message


@pytest.mark.process
@pytest.mark.usefixtures("_four_cores")
def test_stop_asks_with_sigterm_and_force_kills(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *a: open(sys.argv[1] + '/asked', 'w'))\n"
        "open(sys.argv[1] + '/ready', 'w')\nwhile True: time.sleep(0.05)"
    )
    backend = LocalBackend()
    job = backend.submit(submission(tmp_path / "run", program, Resources(cpus=1, gpus=0)))
    wait_for((tmp_path / "run" / "ready").exists, "the worker to be ready")
    backend.stop(job, force=False)
    wait_for((tmp_path / "run" / "asked").exists, "the worker to be asked")
    assert backend.poll(job) is None
    backend.stop(job, force=True)
    assert wait(backend, job).exit_code == -9


@pytest.mark.process
@pytest.mark.usefixtures("_four_cores")
def test_a_rank_that_does_not_end_when_it_is_killed_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = LocalBackend()
    job = backend.submit(submission(tmp_path / "run", "import time; time.sleep(600)", Resources(cpus=4, gpus=0)))
    with monkeypatch.context() as patch:  # it waits in the kernel, which delivers no signal
        patch.setattr("subprocess.Popen.send_signal", lambda process, number: None)
        backend.stop(job, force=True)
        assert backend.poll(job) is None
        assert not has_room(backend, Resources(cpus=1, gpus=0)), "it still holds its cores"
        backend.close()
    backend.stop(job, force=True)
    assert wait(backend, job).exit_code == -9


@pytest.mark.process
@pytest.mark.usefixtures("_four_cores")
@pytest.mark.parametrize("kills", [0, 1])
def test_a_rank_that_the_system_has_killed_for_its_memory_is_told_from_one_that_somebody_has_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 0\n")
    monkeypatch.setattr("jobs.attempt.supervisor.own_groups", lambda: [counter.parent])
    die = f"import os; open({str(counter)!r}, 'w').write('oom_kill {kills}\\n'); os.kill(os.getpid(), 9)"
    backend = LocalBackend()
    resources = Resources(cpus=1)
    found = wait(backend, backend.submit(submission(tmp_path / "run", die, resources)))
    assert found == Ended(exit_code=-9, message="the worker was killed by SIGKILL", out_of_memory=bool(kills))


@pytest.mark.process
@pytest.mark.parametrize("word", ["loop", os.fsdecode(b"\xff"), "x" * 5000])
def test_a_foreign_process_with_a_variable_of_ours_stops_no_launch(tmp_path: Path, word: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    argv = [sys.executable, "-S", "-c", "print(flush=True); input()", str(tmp_path / word)]
    foreign = commands.start(argv, env={**os.environ, "SEQLM_ATTEMPT": "1"}, stdin=subprocess.PIPE)
    commands.next_line(foreign)
    backend = LocalBackend()
    backend.executor(tmp_path)
    backend.open(Code(path=tmp_path, commit=None, dirty=False, live=True))
    backend.close()
    assert commands.finish(foreign, "\n")[1] == ""
