"""A Ray cluster of nodes on this machine, for tests: ``python -m tests.ray_nodes '[[CPUS, GPUS], ...]'``.

Its files are in RAY_TMPDIR. Print the cluster's address, then read commands from stdin: ``kill ID`` kills a node, named
by Ray's id, with all its processes, without notice to the others; ``add CPUS GPUS`` adds a node. Exit when stdin is
closed.
"""

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster


def main() -> None:
    nodes = json.loads(sys.argv[1])
    folder = Path(os.environ["RAY_TMPDIR"])
    numbers = itertools.count(1)

    def options(cpus: float, gpus: float) -> dict[str, Any]:
        return {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "object_store_memory": 80 * 2**20,
            "include_log_monitor": False,
            "no_monitor": True,
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
