"""A Ray cluster of several nodes on this machine, for tests: ``python -m tests.ray_nodes '[[CPUS, GPUS], ...]'``.

Prints the cluster's address, then obeys lines on stdin: ``kill ID`` ends a node, named by Ray's id, and all that runs
on it at once, without a word to the others; ``add CPUS GPUS`` adds a node. Ends when stdin does.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    nodes = json.loads(sys.argv[1])

    def options(cpus: float, gpus: float) -> dict[str, float]:
        return {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": 80 * 2**20}

    cluster = Cluster(initialize_head=True, head_node_args={**options(*nodes[0]), "include_dashboard": False})
    started = [cluster.head_node, *(cluster.add_node(**options(*node)) for node in nodes[1:])]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "kill":
            (node,) = [node for node in started if node.node_id == numbers[0]]
            cluster.remove_node(node, allow_graceful=False)
        else:
            started.append(cluster.add_node(**options(*map(float, numbers))))
        print("ok", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
