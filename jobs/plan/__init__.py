"""Decide what a launch will do, and estimate what it costs: plan, queue, capacity, estimates, study.json."""
