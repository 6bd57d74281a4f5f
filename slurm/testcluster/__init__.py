"""A real SLURM on the loopback of one machine: ``python -m slurm.testcluster up``, or :class:`LoopbackCluster`."""

from slurm.testcluster.cluster import LoopbackCluster
from slurm.testcluster.configuration import ClusterOptions

__all__ = ["ClusterOptions", "LoopbackCluster"]
