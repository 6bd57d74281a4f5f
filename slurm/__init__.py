"""Backend ``slurm``: submit a study's runs as job arrays to a cluster, through submitit."""
