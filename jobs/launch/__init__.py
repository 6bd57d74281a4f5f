"""Carrying out a plan: preparation, canaries, the dispatch loop, behaviour jobs."""
