"""Training: one rank of one run, from its configuration to its checkpoints."""
