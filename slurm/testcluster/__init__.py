"""A real SLURM on one machine's loopback network: ``python -m slurm.testcluster up``, or :class:`LoopbackCluster`."""

from slurm.testcluster.cluster import LoopbackCluster
from slurm.testcluster.configuration import ClusterOptions

__all__ = ["ClusterOptions", "LoopbackCluster"]
