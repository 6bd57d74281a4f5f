"""A place for tests that need Ray: a network of its own that has only loopback, private folders, a cluster if wanted.

Ray always listens on the machine's own address. A network namespace has no such address.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import final

import pytest

from tests import commands
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent
GPU_MIB = 40_000
"""Memory of the fake GPUs of a cluster."""
NVIDIA_SMI = f"""#!/bin/sh
case "$*" in *memory.total*) echo {GPU_MIB} ;; *) echo "No devices were found" && exit 6 ;; esac
"""
HIDDEN = ("CUDA_VISIBLE_DEVICES",)
"""Ray refuses nodes of more (fake) GPUs than it names."""


@final
class RayLab:
    """Commands run in the lab's network; ``close`` ends everything in it."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []
        self._cluster: subprocess.Popen[str] | None = None
        # Ray makes sockets below its folder, and their paths must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="raylab", dir="/tmp"))
        command = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"]
        self._network = commands.start(command)
        if commands.next_line(self._network) != "up\n":
            self.close()
            message = "no network namespace: these tests need root, unshare and ip"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        self.address: str | None = None
        self.env = {
            **{name: value for name, value in os.environ.items() if name not in HIDDEN and not name.startswith("RAY_")},
            "HOME": str(self.folder),
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else other tests leave the ranks nothing of a busy machine
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "4",
            "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "10",  # agents that have nothing to tell ask themselves ten times
            "REPORTER_UPDATE_INTERVAL_MS": "60000",
            "SEQLM_BACKEND": "ray",
        }

    def start_cluster(self, *nodes: tuple[float, float]) -> None:
        """Nodes with these cores and (fake) GPUs each."""
        argv = [sys.executable, "-m", "tests.ray_nodes", json.dumps(nodes)]
        programs = self.folder / "bin"
        programs.mkdir()
        (programs / "nvidia-smi").write_text(NVIDIA_SMI)
        (programs / "nvidia-smi").chmod(0o755)
        path = f"PATH={programs}{os.pathsep}{self.env['PATH']}"
        self._cluster = self.start(["env", path, *argv], cwd=ROOT)
        self.address = commands.next_line(self._cluster).strip()
        assert self.address, commands.finish(self._cluster)[1]
        self.env["RAY_ADDRESS"] = self.address

    def tell_cluster(self, line: str) -> None:
        """Such as ``kill ID``."""
        assert self._cluster is not None
        assert self._cluster.stdin is not None
        self._cluster.stdin.write(line + "\n")
        self._cluster.stdin.flush()
        assert commands.next_line(self._cluster) == "ok\n"

    def command(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._network.pid}/ns/net", *argv]

    def run(self, argv: Sequence[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
        try:
            return commands.run(self.command(argv), cwd=cwd, env=self.env)
        except pytest.fail.Exception as failure:
            pytest.fail(f"{failure.msg}\n{self.ends_of_logs()}", pytrace=False)

    def start(self, argv: Sequence[str], *, cwd: Path) -> subprocess.Popen[str]:
        """Leader of a process group of its own, as a shell makes for each command, so that Ctrl-C can be imitated."""
        command = self.command(argv)
        process = commands.start(command, cwd=cwd, env=self.env, stdin=subprocess.PIPE, process_group=0)
        self._started.append(process)
        return process

    def ends_of_logs(self) -> str:
        """Return the last lines of Ray's logs."""
        logs: list[str] = []
        for path in sorted(self.folder.glob("**/session_2*/logs/*")):
            if path.is_file() and not path.is_symlink() and path.name.startswith(("raylet", "runtime_env", "gcs_")):
                text = path.read_text(errors="replace")
                lines = [line for line in text.splitlines() if re.match(r"\[?20\d\d-", line)]
                logs += ["", str(path.relative_to(self.folder)), *(line[:300] for line in lines[-12:])]
        return "\n".join(logs)

    def processes(self) -> list[str]:
        """Command lines of what lives in the lab's network, but for the lab itself; "" while a process is ending."""
        return list(self.pids().values())

    def pids(self) -> dict[int, str]:
        """The same by process number."""
        found: dict[int, str] = {}
        try:
            inside = Path(f"/proc/{self._network.pid}/ns/net").readlink()
        except OSError:
            return found  # there is no lab
        if inside == Path("/proc/self/ns/net").readlink():
            return found
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or int(entry.name) == self._network.pid:
                    continue
                # An ending thread loses its memory, and with it the command line, before its files and their locks.
                if any((thread / "ns/net").readlink() == inside for thread in (entry / "task").iterdir()):
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    found[int(entry.name)] = words
            except OSError:
                continue
        return found

    def _kill(self) -> dict[int, str]:
        """Kill all that lives in the lab, and return it: what it starts meanwhile is killed at the next call."""
        alive = self.pids()
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return alive

    def close(self) -> None:
        # Not `ray stop`, which ends every Ray of the machine.
        wait_for(self._kill, "the processes of the lab to end", until=lambda alive: not alive)
        for process in (*self._started, self._network):
            process.kill()
            with contextlib.suppress(ValueError):  # its pipes are closed already
                process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)
