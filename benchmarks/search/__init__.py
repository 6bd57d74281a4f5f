"""Searches in simulation: proposals against draws, and orders of starting against each other."""
