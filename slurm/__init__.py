"""Backend ``slurm``: a study's runs as job arrays of a cluster, submitted through submitit."""
