"""Text to tokens to batches. Everything but :mod:`seqlm.data.batches` starts without torch."""
