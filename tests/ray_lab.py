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
UNUSED_LISTS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
)
"""Keys that a configuration of Ray's autoscaler must have."""


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

    def start_cluster(self, *nodes: tuple[float, float], nvidia_smi: str = NVIDIA_SMI) -> None:
        """Nodes with these cores and (fake) GPUs each, which ``nvidia_smi``, a program, describes."""
        argv = [sys.executable, "-m", "tests.ray_nodes", json.dumps(nodes)]
        programs = self.folder / "bin"
        programs.mkdir()
        (programs / "nvidia-smi").write_text(nvidia_smi)
        (programs / "nvidia-smi").chmod(0o755)
        path = f"PATH={programs}{os.pathsep}{self.env['PATH']}"
        self._cluster = self.start(["env", path, *argv], cwd=ROOT)
        self.address = commands.next_line(self._cluster).strip()
        assert self.address, commands.finish(self._cluster)[1]
        self.env["RAY_ADDRESS"] = self.address

    def start_autoscaling_cluster(self, *, cpus: float, gpus: float, nodes: int) -> None:
        """A head of one core, and an autoscaler that adds nodes with these cores and (fake) GPUs on this machine."""
        worker = {"CPU": cpus, "GPU": gpus, "object_store_memory": 80 * 2**20}
        config = {
            "cluster_name": "lab",
            "provider": {
                "type": "fake_multinode",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "max_workers": nodes,
            "head_node_type": "head",
            "available_node_types": {
                "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
                "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": nodes},
            },
            "idle_timeout_minutes": 0.1,
            "upscaling_speed": 1.0,
            **{key: {} for key in ("auth", "docker", "file_mounts")},
            **{key: [] for key in UNUSED_LISTS},
        }
        file = self.folder / "autoscaling.json"
        file.write_text(json.dumps(config))
        words = ["--head", "--num-cpus=1", f"--object-store-memory={80 * 2**20}"]
        words += ["--include-dashboard=false", "--include-log-monitor=false"]
        words += [f"--autoscaling-config={file}", f"--temp-dir={self.folder}/r", "--node-ip-address=127.0.0.1"]
        self.env |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        begun = self.run([sys.executable, "-m", "ray.scripts.scripts", "start", *words], cwd=ROOT)
        assert begun.returncode == 0, begun.stderr
        self.address = self.env["RAY_ADDRESS"] = "127.0.0.1:6379"

    def tell_cluster(self, line: str) -> None:
        """Such as ``kill ID``."""
        assert self._cluster is not None
        assert self._cluster.stdin is not None
        self._cluster.stdin.write(line + "\n")
        self._cluster.stdin.flush()
        assert commands.next_line(self._cluster) == "ok\n"

    def drain(self, node: str) -> None:
        """Say that a node, named by Ray's id, will be preempted in an hour."""
        words = ["--address", self.env["RAY_ADDRESS"], "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        words += ["--reason-message", "test", "--deadline-remaining-seconds", "3600"]
        answer = self.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *words], cwd=self.folder)
        assert answer.returncode == 0, answer.stderr

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

    def kill(self, server: str) -> None:
        """Kill the only process of Ray with this name: ``raylet`` or ``gcs_server``."""
        (pid,) = [pid for pid, words in self.pids().items() if words.partition(" ")[0].endswith(f"/{server}")]
        os.kill(pid, signal.SIGKILL)

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
