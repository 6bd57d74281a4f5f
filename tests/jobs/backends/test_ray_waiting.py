"""How often a launch of many runs calls `ray.wait`, with a stand-in for Ray."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.backends.ray_executor import RayExecutor, _Job
from jobs.spec import Resources, Submission

RUNS = 50


def test_a_round_asks_about_each_answer_a_constant_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    submission = Submission(run_dir=Path("/run"), attempt=1, argv=(), env={}, cwd=Path("/"), resources=Resources())
    backend = RayExecutor()
    backend._refreshed_at = math.inf  # no cluster is there to ask
    for number in range(RUNS):
        backend._jobs[str(number)] = _Job(submission=submission, groups=[], pending={str(number): 0}, since=0.0)
    asked = 0

    def wait(references: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        nonlocal asked
        asked += len(references)
        return references[:num_returns], references[num_returns:]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(RayExecutor, "_take", lambda self, job, reference: job.pending.pop(reference))
    backend.wait(0)
    assert not any(job.pending for job in backend._jobs.values()), "all that have arrived are taken at once"
    assert asked <= 2 * RUNS
