"""Who owns a run, as the files of its lease tell it."""

import contextlib
import errno
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from seqlm import lease as leases
from seqlm import processes
from seqlm.errors import FileError, LeaseLostError, RunBusyError
from seqlm.lease import Lease, claim, kept, live_owner, newest_generation, newest_lease, require_attempt, stale_seconds
from seqlm.records.leases import LeaseFile
from tests import commands
from tests.faults import ChangeFaults, LookFaults
from tests.waiting import wait_for

STALE_SECONDS = 180.0
"""By default."""
ROOT = Path(__file__).parents[2]


class Cluster:
    """A folder of leases, and claimants on named hosts; time passes only where somebody waits."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.now = 0.0
        self.looks = 0
        """How often a claimant has looked at another's lease."""
        self.told: list[str] = []
        self._host = "a"
        monkeypatch.setattr(processes, "this_host", lambda: self.host(self._host))

    def host(self, name: str) -> dict[str, str]:
        return {"host": name, "machine_id": f"machine of {name}", "boot_id": "b", "pid_namespace": "pid:[1]"}

    def claim(self, host: str, *, while_waiting: Callable[[], object] = lambda: None, attempt: int = 1) -> Lease:
        def pause(seconds: float) -> None:
            self.now += seconds
            self.looks += 1
            while_waiting()

        self._host = host
        return claim(
            self.folder,
            attempt=attempt,
            busy="r has a worker",
            pause=pause,
            tell=self.told.append,
            clock=lambda: self.now,
        )

    def look(self, host: str) -> LeaseFile | None:
        self._host = host
        return live_owner(self.folder)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path / "lease", monkeypatch)


def set_back(file: Path, hours: float = 5.0) -> None:
    past = time.time() - 3600 * hours
    os.utime(file, (past, past))


def test_a_released_lease_is_claimed_at_once_and_numbers_go_on(cluster: Cluster) -> None:
    for number, host in enumerate(["a", "b", "a", "c"], start=1):
        lease = cluster.claim(host, while_waiting=lambda: pytest.fail("nothing to wait for"))
        assert lease.generation == number
        assert len(cluster.names()) == number, "no number is free again"
        lease.release()
        assert newest_lease(cluster.folder).released


def lease_in(file: Path) -> LeaseFile:
    lease = LeaseFile.read_file(file)
    assert lease is not None
    return lease


def rewrite(lease: Lease, **changes: Any) -> None:
    """Change the record of a lease."""
    lease.file.write_text(json.dumps({**json.loads(lease.file.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes", [{"pid": 2**22 + 1}, {"process_start": 1}], ids=["it has ended", "its id belongs to another process"]
)
def test_a_lease_that_a_dead_process_of_this_host_left_is_taken_over_at_once(
    cluster: Cluster, changes: dict[str, int]
) -> None:
    rewrite(cluster.claim("a"), **changes)
    assert not newest_lease(cluster.folder).released
    assert cluster.claim("a").generation == 2
    assert cluster.now == 0.0


def test_a_live_process_of_this_host_keeps_its_lease_even_if_it_was_stopped(cluster: Cluster) -> None:
    first = cluster.claim("a")
    set_back(first.file)
    assert cluster.look("a") is not None
    with pytest.raises(RunBusyError, match="on a"):
        cluster.claim("a", while_waiting=lambda: pytest.fail("nothing to wait for"))


@pytest.mark.parametrize(
    "other", [{"host": "b"}, {"machine_id": "m2"}, {"boot_id": "b2"}, {"pid_namespace": "pid:[2]"}]
)
def test_a_process_id_means_nothing_on_a_host_that_differs_in_anything(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    """Cloned machines share the boot id, and containers share the kernel."""
    here = {"host": "a", "machine_id": "m1", "boot_id": "b1", "pid_namespace": "pid:[1]"}
    monkeypatch.setattr(cluster, "host", lambda name: here if name == "a" else {**here, **other})
    first = cluster.claim("a")
    rewrite(first, pid=2**22 + 1)
    assert processes.is_alive(lease_in(first.file)) is False
    with pytest.raises(RunBusyError):
        cluster.claim("c", while_waiting=first.beat)
    assert processes.is_alive(lease_in(first.file)) is None


@pytest.mark.process
def test_a_process_is_known_by_its_id_and_its_start(tmp_path: Path) -> None:
    program = (
        "import json; from seqlm.processes import this_process; print(json.dumps(this_process()), flush=True); input()"
    )
    process = commands.start([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE)
    record = LeaseFile(**json.loads(commands.next_line(process)))
    assert (record.pid, record.process_start) == (process.pid, processes.process_start(process.pid))
    assert processes.is_alive(record) is True
    assert processes.is_alive(replace(record, process_start=(record.process_start or 0) + 1)) is False
    assert processes.is_alive(replace(record, process_start=None)) is None
    assert processes.is_alive(replace(record, boot_id="another")) is None
    process.kill()
    wait_for(lambda: processes.is_alive(record), "the process to have ended, reaped or not", until=lambda a: a is False)
    commands.finish(process)
    assert processes.is_alive(record) is False
    assert processes.process_start(process.pid) is None


def lose_for_two_looks(cluster: Cluster, first: Lease) -> None:
    """The file of a lease is not there for two looks: a file server has lost it for a moment."""
    aside = cluster.folder / "aside"
    if cluster.looks == 1:
        first.file.rename(aside)
    if cluster.looks == 3:
        aside.rename(first.file)


def sleep_for_an_hour(cluster: Cluster, first: Lease) -> None:
    """The watcher was itself stopped, and has not watched meanwhile; so was the owner's machine, of the same rack."""
    if cluster.looks == 2:
        cluster.now += 3600
    if cluster.looks == 5:
        first.beat()


def claim_for_c(cluster: Cluster, first: Lease) -> None:
    if cluster.looks == 2:
        record = json.loads(first.file.read_text())
        (cluster.folder / "000002.json").write_text(json.dumps({**record, "host": "c", "machine_id": "c"}))


STALE = int(STALE_SECONDS / leases.LOOK_SECONDS)
"""Looks until a lease is stale."""
WATCHES, TAKES = "pid {pid} on a has not released", "taking {name} over from pid {pid} on a"
WATCHES_C, TAKES_C = WATCHES.replace("on a", "on c"), TAKES.replace("on a", "on c")


@pytest.mark.parametrize(
    ("happen", "looks", "owner", "told"),
    [
        (lambda _, first: first.beat(), 1, 1, [WATCHES]),
        (lambda _, first: set_back(first.file, hours=9), 1, 1, [WATCHES]),
        (lambda cluster, first: cluster.looks == STALE and first.beat(), STALE, 1, [WATCHES]),
        (sleep_for_an_hour, 5, 1, [WATCHES]),
        (lambda _, first: first.release(), 1, 2, [WATCHES]),
        (lambda *_: None, STALE, 2, [WATCHES, TAKES]),
        (lose_for_two_looks, 3 + STALE, 2, None),
        (claim_for_c, 2 + STALE, 3, [WATCHES, WATCHES_C, TAKES_C]),
    ],
    ids=[
        "a beat",
        "a beat on a clock set back",
        "a beat at the last look",
        "the watcher is stopped, and then a beat",
        "a release",
        "nothing",
        "a file that is lost for two looks",
        "another claimant",
    ],
)
def test_a_claimant_on_another_host_watches_for_a_sign_of_life_and_says_so(
    cluster: Cluster, happen: Callable[[Cluster, Lease], object], looks: int, owner: int, told: list[str] | None
) -> None:
    first = cluster.claim("a")
    set_back(first.file)  # what its age looks like decides nothing
    who = rf"^r has a worker \(pid {os.getpid()} on a\)$"
    with pytest.raises(RunBusyError, match=who) if owner == 1 else contextlib.nullcontext():
        assert cluster.claim("b", while_waiting=lambda: happen(cluster, first)).generation == owner
    assert cluster.looks == looks
    if told is not None:
        said = [line.format(pid=os.getpid(), name=cluster.folder.parent.name) for line in told]
        assert all(line.startswith(start) for line, start in zip(cluster.told, said, strict=True)), cluster.told
    if owner == 1:
        first.check()
        with pytest.raises(RunBusyError, match="on a"):
            cluster.claim("a", while_waiting=first.beat)


def test_a_former_owner_learns_at_its_next_check_by_whom_it_was_taken_over(cluster: Cluster) -> None:
    first = cluster.claim("a")
    second = cluster.claim("b")
    with pytest.raises(LeaseLostError, match=rf"taken over by pid {os.getpid()} on b"):
        first.check()
    second.check()
    before = second.file.stat().st_mtime_ns
    first.beat()
    first.release()
    assert cluster.names() == ["000001.json", "000002.json"]
    assert not json.loads(first.file.read_text())["released"], "it has nothing left to release"
    assert second.file.stat().st_mtime_ns == before
    assert not newest_lease(cluster.folder).released


@pytest.mark.parametrize("seen", [[], ["000001.json"], ["000002.json", "000001.json"]])
def test_a_claimant_whose_listing_lags_behind_finds_the_owner_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, seen: list[str]
) -> None:
    cluster.claim("a").release()
    cluster.claim("b").release()
    third = cluster.claim("c")
    listed, exists = os.listdir, leases.exists
    monkeypatch.setattr(os, "listdir", lambda folder: seen if folder == cluster.folder else listed(folder))
    # What a client of NFS remembers to be missing it takes to be missing, until the server refuses the link.
    monkeypatch.setattr(leases, "exists", lambda path: path.name in seen and exists(path))
    with pytest.raises(RunBusyError, match="on c"):
        cluster.claim("a", while_waiting=third.beat)
    third.check()


def test_a_link_that_the_server_made_but_did_not_confirm_counts(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def made_but_asked_again(source: Path, target: Path, **options: Any) -> None:
        link(source, target, **options)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", made_but_asked_again)
    assert cluster.claim("a").generation == 1


NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS]


def refuse_links(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(source: Path, target: Path, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("code", NO_LINKS)
def test_where_links_are_refused_a_lease_is_made_by_exclusive_creation(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse_links(monkeypatch, code)
    first = cluster.claim("a")
    assert json.loads(first.file.read_text())["host"] == "a"
    exists = leases.exists
    monkeypatch.setattr(leases, "exists", lambda path: path.name != "000002.json" and exists(path))  # a listing lags

    def claim_for_c() -> None:
        if not (cluster.folder / "000002.json").exists():
            first.release()
            (cluster.folder / "000002.json").write_text(json.dumps({"host": "c", "pid": 1, "machine_id": "c"}))

    assert cluster.claim("b", while_waiting=claim_for_c).generation == 3, "two is taken, and then it gives no sign"
    assert cluster.names() == ["000001.json", "000002.json", "000003.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "\0"])
def test_a_lease_that_cannot_be_read_is_watched_like_that_of_a_stranger(cluster: Cluster, content: str) -> None:
    first = cluster.claim("a")
    first.file.write_text(content)
    with pytest.raises(RunBusyError, match="another worker"):
        cluster.claim("a", while_waiting=first.beat)
    assert cluster.claim("a").generation == 2
    assert cluster.now >= STALE_SECONDS


# -- heartbeat -----------------------------------------------------------------------------------------------------


def wait_for_a_beat(lease: Lease) -> None:
    set_back(lease.file)
    old = lease.file.stat().st_mtime_ns
    wait_for(lambda: lease.file.stat().st_mtime_ns, "a heartbeat", until=lambda now: now != old)


def hearts() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lease"]


def test_a_lease_beats_while_it_is_kept_and_is_released_at_the_end(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLM_LEASE_SECONDS", "0.02")
    lease = cluster.claim("a")
    with kept(lease):
        for _ in range(3):
            wait_for_a_beat(lease)
        assert len(hearts()) == 1
        assert not newest_lease(cluster.folder).released
    assert newest_lease(cluster.folder).released
    assert hearts() == [], "a released lease is dead"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ENOENT])
def test_a_heart_goes_on_after_beats_that_the_disk_refuses(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    lease, utime, refused = cluster.claim("a"), os.utime, []

    def refuse(path: Path, times: None = None, **options: Any) -> None:
        refused.append(path)
        raise OSError(code, "no")

    def refused_to_poll() -> None:
        raise FileError("cannot read failure.json")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setenv("SEQLM_LEASE_SECONDS", "0.02")
    with kept(lease, refused_to_poll):
        wait_for(lambda: len(refused), "more than three refused beats", until=lambda count: count > 3)
        monkeypatch.setattr(os, "utime", utime)
        wait_for_a_beat(lease)


HELD = """
import sys
from pathlib import Path
from seqlm.lease import claim, kept
held = kept(claim(Path(sys.argv[1]), attempt=1, busy="busy"))
held.__enter__()
print("held", flush=True)
"""


@pytest.mark.process
def test_a_beating_heart_keeps_no_process_alive(tmp_path: Path) -> None:
    ended = commands.run([sys.executable, "-c", HELD, tmp_path], cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (0, "held\n")


# -- many claimants ------------------------------------------------------------------------------------------------

RACE = """
import os, sys, time
from pathlib import Path
from seqlm import lease, processes
from seqlm.errors import RunBusyError
folder, me, log = Path(sys.argv[1]), sys.argv[2], open(sys.argv[3], "a")
if sys.argv[4] == "no links":
    def refuse(source, target, **options):
        raise PermissionError(1, "no hard links here")
    os.link = refuse
processes.this_host = lambda: {"host": me, "machine_id": me}
lease.LOOK_SECONDS = 0.002
os.environ |= {"SEQLM_LEASE_SECONDS": "0.01", "SEQLM_STALE_LEASE_MINUTES": "0.5"}
print("ready", flush=True)
sys.stdin.readline()
won = 0
while won < 30:
    try:
        mine = lease.claim(folder, attempt=1, busy="busy")
    except RunBusyError:
        continue
    won += 1
    with lease.kept(mine):
        log.write(f"{mine.generation} begin {me}\\n"); log.flush()
        time.sleep(0.003)
        mine.check()
        log.write(f"{mine.generation} end {me}\\n"); log.flush()
"""


@pytest.mark.process
@pytest.mark.parametrize("links", ["links", "no links"])
def test_of_four_claimants_on_as_many_hosts_one_at_a_time_is_the_owner(tmp_path: Path, links: str) -> None:
    log = tmp_path / "log"
    claimants = [
        commands.start(
            [sys.executable, "-c", RACE, tmp_path / "lease", str(number), log, links], cwd=ROOT, stdin=subprocess.PIPE
        )
        for number in range(4)
    ]
    for claimant in claimants:
        assert commands.next_line(claimant) == "ready\n"
    for claimant in claimants:  # now
        assert claimant.stdin is not None
        claimant.stdin.write("\n")
        claimant.stdin.flush()
    for claimant in claimants:
        _, said = commands.finish(claimant)
        assert claimant.returncode == 0, said
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 2 * 4 * 30
    for number, (begin, end) in enumerate(zip(lines[::2], lines[1::2], strict=True), start=1):
        assert begin == [str(number), "begin", begin[2]]
        assert end == [str(number), "end", begin[2]], "nobody else begins before it ends"


# -- from outside --------------------------------------------------------------------------------------------------


def test_who_looks_sees_an_owner_by_the_age_of_its_heartbeat(cluster: Cluster) -> None:
    assert cluster.look("b") is None
    lease = cluster.claim("a")
    seen = cluster.look("b")
    assert seen is not None
    assert (seen.host, seen.pid) == ("a", os.getpid())
    assert cluster.look("a") == seen, "its process lives"
    rewrite(lease, pid=2**22 + 1)
    assert cluster.look("a") is None, "its process has ended"
    assert cluster.look("b") is not None, "which is not known elsewhere"
    set_back(lease.file)
    assert cluster.look("b") is None
    lease.beat()
    assert cluster.look("b") is not None
    lease.release()
    assert cluster.look("b") is None


@pytest.mark.parametrize(
    ("heartbeat", "stale", "seconds"), [("", "", STALE_SECONDS), ("2", "0.5", 30.0), ("600", "", 1800.0)]
)
def test_a_lease_is_stale_after_the_minutes_of_the_variable_and_at_least_three_heartbeats(
    monkeypatch: pytest.MonkeyPatch, heartbeat: str, stale: str, seconds: float
) -> None:
    monkeypatch.setenv("SEQLM_LEASE_SECONDS", heartbeat)
    monkeypatch.setenv("SEQLM_STALE_LEASE_MINUTES", stale)
    assert stale_seconds() == seconds


# -- boundaries ----------------------------------------------------------------------------------------------------


def test_a_host_is_known_by_what_the_system_says_of_it_and_without_that_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "a")
    files = {"/etc/machine-id": "0f3a\n", "/proc/sys/kernel/random/boot_id": "77\n"}
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: files[str(path)])
    monkeypatch.setattr(Path, "readlink", lambda path: {"/proc/self/ns/pid": Path("pid:[4]")}[str(path)])
    assert processes.this_host() == {
        "host": "a",
        "machine_id": "0f3a",
        "boot_id": "77",
        "pid_namespace": "pid:[4]",
    }
    for error in (OSError(errno.ENOENT, "no /proc"), UnicodeDecodeError("ascii", b"\xff", 0, 1, "not ASCII")):

        def refuse(path: Path, encoding: str = "", error: Exception = error) -> str:
            raise error

        monkeypatch.setattr(Path, "read_text", refuse)
        monkeypatch.setattr(Path, "readlink", lambda path: refuse(path, error=OSError()))
        assert processes.this_host() == {"host": "a", "machine_id": "a", "boot_id": "", "pid_namespace": ""}


def test_the_record_of_a_lease_says_who_holds_it_since_when(cluster: Cluster) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    records = []
    for _ in range(2):
        lease = cluster.claim("a", attempt=3)
        records.append(json.loads(lease.file.read_text()))
        lease.release()
    owners = [record.pop("owner") for record in records]
    times = [datetime.fromisoformat(record.pop("taken_at")) for record in records]
    expected: dict[str, Any] = cluster.host("a")
    expected |= {
        "pid": os.getpid(),
        "process_group": os.getpgrp(),
        "process_start": processes.process_start(os.getpid()),
    }
    expected |= {"attempt": 3, "released": False, "heartbeat_seconds": 10.0}
    assert records == [{"generation": number, **expected} for number in (1, 2)]
    assert owners[0] != owners[1]
    assert all(before <= taken_at <= datetime.now(UTC) and taken_at.microsecond == 0 for taken_at in times)


def test_a_rank_without_a_lease_stops_only_for_an_owner_of_a_later_attempt(cluster: Cluster) -> None:
    require_attempt(cluster.folder, 1)  # nobody has been here yet
    cluster.claim("a", attempt=2)
    require_attempt(cluster.folder, 2)
    require_attempt(cluster.folder, 3)
    with pytest.raises(LeaseLostError) as caught:
        require_attempt(cluster.folder, 1)
    expected = f"this run was taken over by pid {os.getpid()} on a; this rank is of an earlier attempt"
    assert str(caught.value) == expected
    for record in ({}, {"attempt": "9"}):
        (cluster.folder / "000002.json").write_text(json.dumps(record))
        require_attempt(cluster.folder, 1)


def test_leases_that_a_listing_does_not_show_yet_are_asked_for_by_name(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        cluster.claim("a").release()
    monkeypatch.setattr(os, "listdir", lambda folder: ["000001.json", "000002.json", "notes.json", "9.json"])
    assert newest_generation(cluster.folder) == 5


@pytest.mark.parametrize("kind", [LookFaults, ChangeFaults])
def test_a_claim_whose_nth_call_fails_is_one_line_and_the_next_claimant_gets_the_run(
    tmp_path: Path, cluster: Cluster, kind: type[LookFaults] | type[ChangeFaults]
) -> None:
    for number in itertools.count(1):
        cluster.folder = tmp_path / str(number)
        cluster.claim("a").release()
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            faults = kind(patch, cluster.folder, number)
            try:
                lease = cluster.claim("b")
                lease.release()
            except FileError as error:
                said.append(str(error))
        assert all(line.startswith("cannot ") and line.isprintable() for line in said)
        assert all(re.fullmatch(r"\d{6}\.json", name) for name in cluster.names())
        after = cluster.claim("c")
        after.check()
        assert after.generation > 1
        if not faults.has_failed:
            break
    assert number > 3


def test_a_claimant_whose_file_was_swept_away_by_the_new_owner_claims_the_next_number(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def swept(source: Path, target: Path, **options: Any) -> None:
        if target.name == "000001.json":
            target.write_text('{"released": true}')
            source.unlink()
        link(source, target, **options)

    monkeypatch.setattr(os, "link", swept)
    assert cluster.claim("a").generation == 2
