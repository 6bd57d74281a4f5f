"""The ledger of the GPUs of a machine, and what nvidia-smi says of other programs."""

import contextlib
import json
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import launch as program
from seqlm import gpus, machine
from seqlm.errors import FileError
from seqlm.gpus import Booking, Claim, Ledger, Survey, TakenError, others_on, parse_use
from tests import commands
from tests.fake_gpus import FakeGpus
from tests.waiting import wait_for

GPU, OTHER = "GPU-aaaaaaaa-1111", "MIG-GPU-bbbbbbbb/1/0"
ANNA = {"study": "paper", "run": "gru-adam", "launch": "0123456789abcdef"}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@contextlib.contextmanager
def held(claims: list[Claim]) -> Iterator[None]:
    try:
        yield
    finally:
        for claim in claims:
            claim.release()


# -- bookings ------------------------------------------------------------------------------------------------------


def test_shares_of_a_gpu_are_booked_until_it_is_full(ledger: Ledger) -> None:
    shares = [(GPU, 0.25), (GPU, 0.5), (OTHER, 1.0)]
    with held(ledger.book(shares, ANNA)):
        found = ledger.bookings()
        assert sorted((one.gpu, one.share) for one in found) == sorted(shares)
        assert {(one.study, one.run, one.launch, one.pid) for one in found} == {(*ANNA.values(), os.getpid())}
        with pytest.raises(TakenError, match=r"GPU-aaaaaaaa-1111 is used by .*'s study paper"):
            ledger.book([("GPU-cccccccc-1111", 1.0), (GPU, 0.5)], {"study": "other"})
        assert len(ledger.bookings()) == 3, "all shares of a run are booked, or none"
        with held(ledger.book([(GPU, 0.25)], ANNA)):
            assert len(ledger.bookings()) == 4
    assert ledger.bookings() == []


@pytest.mark.process
def test_a_share_is_held_by_the_worker_that_inherits_it_whoever_is_killed(ledger: Ledger) -> None:
    program = f"""
import subprocess, sys, time
from pathlib import Path
from seqlm.gpus import Ledger
(claim,) = Ledger(Path({str(ledger.folder)!r})).book([("{GPU}", 1.0)], {ANNA!r})
quiet = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
worker = subprocess.Popen(["sleep", "1000"], pass_fds=[claim.handle], **quiet)
claim.hand_over(worker.pid)
print(worker.pid, flush=True)
time.sleep(1000)
"""
    launcher = commands.start([sys.executable, "-c", program], cold=True)
    worker = int(commands.next_line(launcher))
    launcher.kill()
    commands.finish(launcher)
    assert [one.pid for one in ledger.bookings()] == [worker]
    with pytest.raises(TakenError):
        ledger.book([(GPU, 0.1)], ANNA)
    os.kill(worker, 9)
    wait_for(ledger.bookings, "the share to be free", until=lambda there: not there)
    (claim,) = ledger.book([(GPU, 1.0)], ANNA)
    claim.release()
    assert list(ledger.folder.iterdir()) == [], "what the dead have left is deleted"


TAKER = """
import fcntl, os, random, sys, time
from pathlib import Path
from seqlm.gpus import Ledger, TakenError
ledger, witnesses, seed = Ledger(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
files = {gpu: os.open(witnesses / gpu, os.O_RDWR) for gpu in ("GPU-a", "GPU-b")}
print("ready", flush=True)
while True:
    gpu, quarters = chance.choice(list(files)), chance.choice((1, 2, 4))
    try:
        (claim,) = ledger.book([(gpu, quarters / 4)], {"study": str(seed)})
    except TakenError:
        time.sleep(0.001)
        continue
    # A quarter of a GPU is a byte of its witness, which the kernel frees with this process, before the booking.
    mine = []
    for byte in range(4):
        try:
            if len(mine) < quarters:
                fcntl.lockf(files[gpu], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                mine.append(byte)
        except OSError:
            pass
    if len(mine) < quarters:
        (witnesses / "overbooked").touch()
    (witnesses / f"taken-{seed}").touch()
    time.sleep(chance.uniform(0, 0.004))
    for byte in mine:
        fcntl.lockf(files[gpu], fcntl.LOCK_UN, 1, byte)
    claim.release()
"""


@pytest.mark.process
def test_no_gpu_is_overbooked_by_processes_that_take_shares_at_random_and_are_killed(
    ledger: Ledger, tmp_path: Path
) -> None:
    witnesses, chance = tmp_path / "witnesses", random.Random(1)
    witnesses.mkdir()
    for gpu in ("GPU-a", "GPU-b"):
        (witnesses / gpu).touch()
    (tmp_path / "taker.py").write_text(TAKER)
    seeds = iter(range(1000))

    def start() -> tuple[int, subprocess.Popen[str]]:
        seed = next(seeds)
        argv = [sys.executable, tmp_path / "taker.py", ledger.folder, witnesses, str(seed)]
        return seed, commands.start(argv, env={**os.environ, "PYTHONPATH": str(Path(gpus.__file__).parents[1])})

    takers = [start() for _ in range(5)]
    for _ in range(8):
        seed, taker = takers.pop(chance.randrange(len(takers)))
        wait_for((witnesses / f"taken-{seed}").exists, "it to have taken a share", by=taker)
        taker.kill()
        commands.finish(taker)
        used = dict.fromkeys(("GPU-a", "GPU-b"), 0.0)
        with ledger._alone():
            for one in ledger.bookings():
                used[one.gpu] += one.share
        assert max(used.values()) <= 1
        takers.append(start())
    for _, taker in takers:
        taker.kill()
        commands.finish(taker)
    assert not (witnesses / "overbooked").exists()
    wait_for(ledger.bookings, "all shares to be free", until=lambda there: not there)


# -- the folder ----------------------------------------------------------------------------------------------------


def test_the_folder_is_for_all_users_and_its_files_are_their_owners(ledger: Ledger) -> None:
    with held(ledger.book([(GPU, 1.0)], ANNA)):
        assert stat.S_IMODE(ledger.folder.stat().st_mode) == 0o1777
        assert {stat.S_IMODE(path.stat().st_mode) for path in ledger.folder.iterdir()} == {0o644}


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_or_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, kind: str) -> None:
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "ledger"
    elsewhere.mkdir()
    place.symlink_to(elsewhere) if kind == "link" else place.touch()
    with pytest.raises(FileError, match="expected a folder"):
        Ledger(place).book([(GPU, 1.0)], ANNA)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can make the folder of another user")
def test_a_folder_of_another_user_serves_if_all_may_write(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.folder.mkdir(mode=0o755)
    os.chown(ledger.folder, 64711, 64711)
    monkeypatch.setattr(gpus, "FOLDER_SECONDS", 0.05)
    with pytest.raises(FileError, match=r"mode 1777\), found mode 755; .*SEQLM_GPU_LEDGER"):
        ledger.make()
    ledger.folder.chmod(0o1777)
    with held(ledger.book([(GPU, 1.0)], ANNA)):
        assert len(ledger.bookings()) == 1


def test_what_others_have_put_into_the_folder_disturbs_nothing(ledger: Ledger) -> None:
    ledger.make()
    (ledger.folder / f"{GPU}.0123456789abcdef").write_text("not locked")
    (ledger.folder / f"{GPU}.0123456789abcdee").symlink_to("/dev/zero")
    os.mkfifo(ledger.folder / f"{GPU}.0123456789abcded")
    (ledger.folder / "notes.txt").write_text("a note")
    (claim,) = ledger.book([(GPU, 0.5)], ANNA)
    os.pwrite(claim.handle, b"{" * 100, 0)
    (found,) = ledger.bookings()
    assert (found.share, found.study, found.pid) == (1.0, "", None), "a record that cannot be read is of a whole GPU"
    claim.release()


def test_a_launch_that_gives_no_sign_of_life_waits_for_nothing(ledger: Ledger) -> None:
    note = ledger.announce("0123456789abcdef", {"study": "paper", "gpus": [GPU], "needs": 2.0, "turn": 5.0})
    with held([note]):
        (found,) = ledger.launches()
        assert (found.study, found.gpus, found.needs, found.turn) == ("paper", {GPU}, 2.0, 5.0)
        (path,) = ledger.folder.iterdir()
        os.utime(path, (time.time() - 60, time.time() - 60))
        assert [one.needs for one in ledger.launches()] == [None]
        note.renew()
        assert [one.needs for one in ledger.launches()] == [2.0]
    assert ledger.launches() == []


# -- other programs ------------------------------------------------------------------------------------------------

PROCESSES = """\
GPU-a, 1, 2048, /usr/bin/python3
GPU-a, 2147483646, [N/A], gone
GPU-b, 1, 300, nvidia-cuda-mps-server
No devices were found
"""
MEMORY = "GPU-a, 2100\nGPU-b, 350\nGPU-c, 4096\nGPU-d, [N/A]\n"
USE = parse_use(PROCESSES, MEMORY, at=100.0)


def booking(gpu: str, pid: int | None) -> Booking:
    return Booking(gpu=gpu, share=0.5, user="anna", study="paper", run="gru", launch="", pid=pid)


@pytest.mark.parametrize(
    ("gpu", "bookings", "more", "found"),
    [
        ("GPU-a", [], {}, "root's python3 (process 1, 2.0 GiB)"),
        ("GPU-a", [booking("GPU-a", os.getpid())], {}, "root's python3 (process 1, 2.0 GiB)"),
        ("GPU-a", [booking("GPU-a", 1)], {}, None),
        ("GPU-a", [booking("GPU-a", None)], {}, None),
        ("GPU-a", [], {"mine": [1]}, None),
        ("GPU-b", [], {}, None),
        ("GPU-c", [], {}, "programs that nvidia-smi does not name, with 4.0 GiB"),
        ("GPU-c", [], {"held_at": 99.5}, None),
        ("GPU-c", [booking("GPU-c", os.getpid())], {}, None),
        ("GPU-d", [], {}, None),
    ],
)
def test_processes_without_a_booking_and_memory_of_nobody_are_others(
    gpu: str, bookings: list[Booking], more: dict[str, Any], found: str | None
) -> None:
    assert others_on(gpu, USE, bookings, **more) == found


def test_a_desktop_may_use_some_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLM_GPU_OTHERS_GIB", "5")
    assert others_on("GPU-c", USE, []) is None


@pytest.mark.process
def test_an_nvidia_smi_that_does_not_answer_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeGpus(tmp_path / "gpus", 1)
    monkeypatch.setenv("PATH", fake.env["PATH"])
    monkeypatch.setattr(gpus, "ASK_SECONDS", 0.05)
    survey = Survey()
    assert wait_for(survey.look, "an answer", until=lambda use: use is not None)
    survey.wait()  # no question is on its way
    fake.wedge()
    monkeypatch.setattr(machine, "NVIDIA_SMI_SECONDS", 0.3)
    started = time.monotonic()
    wait_for(lambda: (survey.look(), survey.has_failed), "it to count as failed", until=lambda seen: seen[1])
    assert time.monotonic() - started >= 0.3
    assert not survey.is_asking
    assert survey.look() is None
    survey.close()


def test_without_gpus_nothing_is_booked(ask: commands.Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLM_GPU_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setattr(machine, "cards", list)
    code, found, _ = ask("status", "--machine")
    assert (code, found["gpus"], found["launches"]) == (0, [], [])
    assert not (tmp_path / "ledger").exists()


@pytest.mark.process
def test_status_says_who_uses_the_gpus_of_this_machine(
    ask: commands.Ask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ledger: Ledger,
) -> None:
    fake = FakeGpus(tmp_path / "gpus", 3)
    monkeypatch.setenv("PATH", fake.env["PATH"])
    monkeypatch.setenv("SEQLM_GPU_LEDGER", str(ledger.folder))
    machine._printed.cache_clear()
    fake.use((2, 1, "init"))
    note = ledger.announce("0123456789abcdef", {"study": "paper", "gpus": fake.ids, "needs": 2.0, "turn": 5.0})
    with held([note, *ledger.book([(fake.ids[0], 0.25), (fake.ids[0], 0.5)], ANNA)]):
        code, found, _ = ask("status", "--machine")
        assert program.main(["status", "--machine"]) == 0
    machine._printed.cache_clear()
    assert code == 0
    assert [gpu["used"] for gpu in found["gpus"]] == [0.75, 0, 0]
    assert {one["run"] for one in found["gpus"][0]["bookings"]} == {"gru-adam"}
    assert [gpu["other_programs"] is None for gpu in found["gpus"]] == [True, True, False]
    (launch,) = found["launches"]
    assert (launch["study"], launch["holds"], launch["needs"]) == ("paper", 0.75, 2.0)
    table = capsys.readouterr().out
    assert "paper/gru-adam (0.25)" in table
    assert "study paper waits for 2 GPUs, holds 0.75" in table
    json.dumps(found)
