"""A study's folder: its runs and their state, the scheduler's view of them, the kept code."""
