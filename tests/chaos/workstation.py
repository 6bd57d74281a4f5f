"""Two users, three launches, eight fake GPUs: ``python -m tests.chaos.workstation --minutes 10 [--seed N]``, as root.

One user launches through Ray, the other with ``local`` and through Ray. Meanwhile raylets, workers and launchers are
killed, and a program that is not seqlm's is on one card. The GPUs exist for ``nvidia-smi`` alone: workers compute on
the processor.

Exit codes: 0 no GPU was held twice, nobody waited while a GPU was free, and each run came to what it comes to alone;
1 something else was found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, final

from seqlm.gpus import Ledger
from tests.chaos.check import Findings, check
from tests.chaos.loop import IDLE_LAUNCHES, RELAUNCH_SECONDS
from tests.chaos.quiet import Quiet
from tests.chaos.study import ALL, HEAD, LR, ROOT, Lab, Study, processes
from tests.fake_gpus import FakeGpus
from tests.outcome import outcomes
from tests.ray_lab import RayLab
from tests.seqlm.training.studies import write_text

GPUS, CORES, EPOCHS, LINES = 8, 16, 6, 1500
FOREIGN = GPUS - 1
"""The index of the card that another program uses, until half of the time is over."""
LONGEST_WAIT_SECONDS = 45.0
"""How long a GPU may be free while a run waits that could have it. A launch that begins or comes back takes half of
that on a busy machine of two cores."""
LOOK_SECONDS = 0.1
FINISH_SECONDS = 900.0
"""How long the studies may take once nothing disturbs them any more."""

RUN = """
[[run]]
name = "{arch}-{optimizer}-{seed}"
model.arch = "{arch}"
optim.optimizer = "{optimizer}"
optim.lr = {lr}
seed = {seed}
resources = {{ ranks = {ranks}, cpus = 1, gpus = {gpus} }}
"""
BACKENDS = """
[backend.local]
env = { SEQLM_DEVICE = "cpu" }
[backend.ray]
env = { SEQLM_DEVICE = "cpu" }
"""
LAUNCH = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from seqlm import machine
machine.cpu_count = lambda: {CORES}
import launch
sys.exit(launch.main(sys.argv[1:]))
"""
"""A launcher that believes to have cores for all GPUs."""


@final
class Workstation:
    """The machine: its GPUs, a network that has only loopback, and the text that all studies train on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.gpus = FakeGpus(folder / "gpus", GPUS)
        (folder / "gpus").chmod(0o777)
        self.network = RayLab()
        self.lab = Lab(folder)
        write_text(folder / "text", train_lines=LINES)
        runs = [
            RUN.format(
                arch=arch, optimizer=optimizer, seed=seed, ranks=ranks, lr=LR[optimizer], gpus=_share(ranks, number)
            )
            for number, (arch, optimizer, seed, ranks) in enumerate(ALL)
        ]
        self.lab.manifest.write_text("".join([HEAD.format(epochs=EPOCHS), BACKENDS, *runs]), "utf-8")
        (self.lab.shim / "steps").mkdir(parents=True)
        self.lab.control()
        for path in folder.rglob("*"):
            path.chmod(0o777 if path.is_dir() else 0o666 if path.is_relative_to(self.lab.shim) else 0o755)

    def launch(self, study: Study, backend: str, user: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a launcher of a study as a user, who may read everything and write what is theirs."""
        rights = "-all,+dac_read_search"
        prefix = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
        prefix += [f"--inh-caps={rights}", f"--ambient-caps={rights}", f"--bounding-set={rights}"]
        words = ["run", str(self.lab.manifest), "--backend", backend, "--runs-dir", str(study.runs_dir), "--no-canary"]
        argv = self.network.command([*prefix, sys.executable, "-c", LAUNCH, *words])
        home = self.folder / f"home-{user}"
        places = {"HOME": home, "SEQLM_CACHE": home / "cache", "XDG_CONFIG_HOME": home / "config"}
        env = {**self.lab.env(), **{name: str(place) for name, place in places.items()}}
        env |= {name: self.gpus.env[name] for name in ("PATH", "SEQLM_GPU_LEDGER")}
        env.pop("CUDA_VISIBLE_DEVICES", None)
        return subprocess.Popen(
            argv, cwd=study.folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )

    def quiet(self) -> Quiet:
        """Train the study alone on the backend ``local``."""
        study = Study(self.folder / "quiet", self.lab)
        study.folder.mkdir()
        log = self.folder / "quiet.log"
        with log.open("wb") as output:
            code = self.launch(study, "local", 0, output).wait()
        assert code == 0, f"the quiet study has failed:\n{log.read_text()}"
        return Quiet(outcomes(study.study_dir), self.lab.take_steps(), EPOCHS)


def _share(ranks: int, number: int) -> float:
    return 1 if ranks > 1 else (1, 0.5, 1, 0.25)[number % 4]


@dataclass(eq=False)
class Launch:
    """One of the three launches, started again whenever it is gone."""

    study: Study
    backend: str
    user: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    idle: int = 0
    """Undisturbed launchers in a row that have not finished the study."""

    def is_over(self, quiet: Quiet) -> bool:
        runs = self.study.runs()
        return len(runs) == len(quiet.outcomes) and all(run.result_file.exists() for run in runs)

    def waiting(self) -> list[str]:
        """Return why runs wait that could start now, if there is a launcher."""
        if self.process is None or self.process.poll() is not None:
            return []
        with contextlib.suppress(OSError, ValueError):
            waiting = json.loads((self.study.study_dir / "queue.json").read_text())["waiting"]
            return [reason for reason in waiting.values() if "GPU" in reason]
        return []


@dataclass(kw_only=True)
class Watch:
    """What is seen of the GPUs while the launches run."""

    looks: int = 0
    most_held: int = 0
    held_twice: list[str] = field(default_factory=list)
    beside_others: list[str] = field(default_factory=list)
    longest_wait: float = 0.0
    """Seconds in which a whole GPU was free and a run waited for one."""
    waited: list[str] = field(default_factory=list)
    _free_since: float | None = None

    def look(self, station: Workstation, launches: list[Launch], foreign: int | None) -> None:
        self.looks += 1
        held = Counter[str]()
        for gpu, share in shares_held(station.folder):
            held[gpu] += share
        self.most_held = max(self.most_held, len(held))
        self.held_twice += [f"{gpu}: {share:g}" for gpu, share in held.items() if share > 1.001]
        if foreign is not None and held[gpu := station.gpus.ids[foreign]]:
            self.beside_others.append(gpu)
        booked = {one.gpu for one in Ledger(station.gpus.ledger).bookings()} if station.gpus.ledger.exists() else set()
        free = (
            {*station.gpus.ids} - booked - held.keys() - ({station.gpus.ids[foreign]} if foreign is not None else set())
        )
        reasons = [f"{launch.backend}: {reason}" for launch in launches for reason in launch.waiting()]
        now = time.monotonic()
        if not free or not any("needs 2" not in reason or len(free) > 1 for reason in reasons):
            self._free_since = None
            return
        self._free_since = self._free_since or now
        if (seconds := now - self._free_since) > self.longest_wait:
            self.longest_wait = seconds
            if seconds > LONGEST_WAIT_SECONDS and not self.waited:
                self.waited = [f"{len(free)} GPUs free for {seconds:.0f} s", *reasons]


def shares_held(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield GPU and share of each live worker below a folder, by its variables: not by what anybody has booked."""
    for process in processes(folder):
        if not process.is_worker:
            continue
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")
            variables = dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)
            if gpu := variables.get("CUDA_VISIBLE_DEVICES"):
                yield gpu, float(variables.get("SEQLM_GPU_SHARE", "1"))


def disturb(dice: random.Random, station: Workstation, launches: list[Launch]) -> str | None:
    """Kill something, and return what it was. ``None``: there is nothing of that kind just now."""
    kind = dice.choice(("worker", "worker", "launcher", "raylet", "gcs_server"))
    if kind == "launcher":
        alive = [one for one in launches if one.process is not None and one.process.poll() is None]
        pids = [one.process.pid for one in alive if one.process is not None]
    elif kind == "worker":
        pids = [process.pid for process in processes(station.folder) if process.is_worker]
    else:
        pids = [pid for pid, words in station.network.pids().items() if words.partition(" ")[0].endswith(f"/{kind}")]
    if not pids:
        return None
    pid = dice.choice(sorted(pids))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return f"{kind} {pid}"


def main(argv: list[str]) -> int:
    """Disturb the studies; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.workstation")
    parser.add_argument("--minutes", type=float, default=10, help="how long to disturb (default: 10)")
    parser.add_argument("--every", type=float, default=10, metavar="SECONDS", help="mean time between kills (10)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="seqlm-station-"))
    print(f"seed {options.seed}, in {folder}", flush=True)
    station = Workstation(folder)
    try:
        return _run(station, options)
    finally:
        station.network.close()


def _run(station: Workstation, options: argparse.Namespace) -> int:
    began = time.monotonic()
    quiet = station.quiet()
    print(f"quiet study: {len(quiet.outcomes)} runs, {time.monotonic() - began:.0f} s", flush=True)
    foreign = subprocess.Popen(["sleep", "100000"])
    station.gpus.use((FOREIGN, foreign.pid, "/usr/bin/simulation"))
    dice, watch, found, kills = random.Random(options.seed), Watch(), Findings(), Counter[str]()
    began, number, starts = time.monotonic(), 0, 0
    end = began + 60 * options.minutes
    try:
        while time.monotonic() < end or not number:
            number += 1
            launches = _launches(station, number)
            _until_over(station, quiet, launches, foreign, dice, watch, found, kills, (began, end), options.every)
            starts += sum(one.starts for one in launches)
            for one in launches:
                found.add(check(one.study, quiet, one.log))
            if found:
                break
    finally:
        foreign.kill()
        foreign.wait()
    held = f"{watch.looks} looks, at most {watch.most_held} GPUs held at once"
    print(f"{number} rounds of 3 studies, {starts} launchers, killed: {dict(kills)}; {held}", flush=True)
    print(f"longest wait beside a free GPU: {watch.longest_wait:.1f} s {watch.waited}", flush=True)
    print(f"held twice: {watch.held_twice[:9]}; beside another program: {watch.beside_others[:9]}", flush=True)
    print(f"findings: {found}", flush=True)
    return 1 if found or watch.held_twice or watch.beside_others or watch.waited else 0


def _launches(station: Workstation, number: int) -> list[Launch]:
    found = []
    for name, backend, user in (("a", "ray", 64711), ("b", "local", 64712), ("c", "ray", 64712)):
        study = Study(station.folder / f"{number}{name}", station.lab)
        study.folder.mkdir()
        os.chown(study.folder, user, user)
        home = station.folder / f"home-{user}"
        home.mkdir(exist_ok=True)
        os.chown(home, user, user)
        found.append(Launch(study, backend, user, station.folder / f"{number}{name}.log"))
    return found


def _until_over(
    station: Workstation,
    quiet: Quiet,
    launches: list[Launch],
    foreign: subprocess.Popen[bytes],
    dice: random.Random,
    watch: Watch,
    found: Findings,
    kills: Counter[str],
    times: tuple[float, float],
    every: float,
) -> None:
    """Keep the launchers at work until each run is done."""
    began, end = times
    due = time.monotonic() + dice.uniform(0, 2 * every)
    gone_at: dict[int, float] = {}
    is_there = foreign.poll() is None and time.monotonic() < (began + end) / 2
    while left := [one for one in launches if not one.is_over(quiet) or (one.process and one.process.poll() is None)]:
        now = time.monotonic()
        if is_there and now > (began + end) / 2:
            is_there = False
            station.gpus.use()
        watch.look(station, launches, FOREIGN if is_there else None)
        for one in left:
            if one.process is not None and one.process.poll() is None:
                continue
            if one.process is not None and one.process.returncode >= 0:
                one.idle += now > end and one.starts > 0
                if one.idle > IDLE_LAUNCHES:
                    found.lost_runs.append(f"{one.backend}: {one.idle} launchers have not finished the study")
                    return
            if now - gone_at.setdefault(id(one), now) < RELAUNCH_SECONDS:
                continue
            del gone_at[id(one)]
            one.starts += 1
            with one.log.open("ab") as output:
                one.process = station.launch(one.study, one.backend, one.user, output)
        if now >= due and now < end and (what := disturb(dice, station, launches)):
            kills[what.partition(" ")[0]] += 1
            print(f"{now - began:7.1f} s  killed {what}", flush=True)
            due = now + dice.uniform(0, 2 * every)
        if now > end + FINISH_SECONDS:
            found.lost_runs.append(f"not done {FINISH_SECONDS:g} s after the last kill")
            return
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
