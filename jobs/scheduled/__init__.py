"""Jobs of a scheduler, which need no launcher: what is the same on each of them."""
