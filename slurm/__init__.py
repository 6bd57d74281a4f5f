"""SLURM: the backend for clusters, and a cluster on one machine to try it on."""
