"""One attempt of a run on a node: ranks, signs of life, memory kills, retries."""
