"""A Ray cluster of nodes on this machine, for tests: ``python -m tests.ray_nodes '[[CPUS, GPUS], ...]'``.

Its files are in RAY_TMPDIR. Print the cluster's address, then read commands from stdin: ``kill ID`` kills a node, named
by Ray's id, with all its processes, without notice to the others; ``add CPUS GPUS`` adds a node. Exit when stdin is
closed. Workers are forks of a warm process (:mod:`tests.ray_worker`).
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests import ray_worker, warm


def start_workers(asked: socket.socket) -> None:
    """Start a worker for each that asks, and let go of the asker when the worker has ended."""

    def start(asker: socket.socket) -> None:
        with asker:
            data, files, _, _ = socket.recv_fds(asker, warm.MOST_BYTES, 3)
            stdin, stdout, stderr = files
            pipes = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
            worker = subprocess.Popen(**json.loads(data), **pipes, process_group=0)  # as a raylet gives to each
            for file in files:
                os.close(file)
            worker.wait()

    while True:
        asker, _ = asked.accept()
        threading.Thread(target=start, args=[asker], daemon=True).start()


def main() -> None:
    nodes = json.loads(sys.argv[1])
    folder = Path(os.environ["RAY_TMPDIR"])
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asked.bind(str(folder / "workers"))
    asked.listen()
    os.environ[ray_worker.VARIABLE] = str(folder / "workers")
    threading.Thread(target=start_workers, args=[asked], daemon=True).start()

    numbers = itertools.count(1)

    def options(cpus: float, gpus: float) -> dict[str, Any]:
        return {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "object_store_memory": 80 * 2**20,
            "include_log_monitor": False,
            "no_monitor": True,
            "setup_worker_path": ray_worker.__file__,
        }

    def add(cpus: float, gpus: float) -> Any:
        # As on machines of their own: a node unpacks the code that a launch sends along by removing what lies there
        # first, and would take it away from under the workers of another one.
        return cluster.add_node(**options(cpus, gpus), temp_dir=str(folder / f"n{next(numbers)}"))

    head = {**options(*nodes[0]), "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    started = [cluster.head_node, *(add(*node) for node in nodes[1:])]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for line in sys.stdin:
        word, *words = line.split()
        if word == "kill":
            (node,) = [node for node in started if node.node_id == words[0]]
            cluster.remove_node(node, allow_graceful=False)
        else:
            started.append(add(*map(float, words)))
        print("ok", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
