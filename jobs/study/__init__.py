"""A study's folder: its runs and their states, cancelling, logs, and the kept code."""
