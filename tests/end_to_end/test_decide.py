"""A study with ``[[decide]]`` on this machine: seeds until it is clear."""

from pathlib import Path

import pytest

from seqlm.comparisons import read_comparisons, verdict_of
from tests.small_study import Study

pytestmark = pytest.mark.process

MOST_SEEDS = 12
BETTER, WORSE = 0.01, 1e-9
"""Learning rates; the losses of the stub differ by 10 nats between them, and by at most 1 between seeds."""


def test_a_comparison_that_is_decided_stops_its_runs_and_keeps_its_verdict(tmp_path: Path) -> None:
    study = Study(tmp_path, stub=True, rates=(BETTER, WORSE), cpus=1)
    better, worse = (f"lr={rate}" for rate in (BETTER, WORSE))
    study.write("[[decide]]", f'a = "{better}"', f'b = "{worse}"', f"seeds = {MOST_SEEDS}")
    launched = study("run", "small.toml", "--max-parallel", "2")
    assert launched.returncode == 0, launched.stderr

    studied = tmp_path / "runs" / "small"
    ((_, comparison),) = read_comparisons(studied).items()
    verdict = verdict_of(studied, comparison, 1)
    assert (verdict.outcome, verdict.a, verdict.b) == ("lower", better, worse)
    ends = [(run.observe().state, run.observe().reason or "") for run in study.runs()]
    assert len(ends) == 2 * MOST_SEEDS
    stopped = [reason for state, reason in ends if state == "stopped"]
    assert {state for state, _ in ends} == {"done", "stopped"}
    assert len(ends) - len(stopped) < 2 * MOST_SEEDS
    assert all(f"{better} is lower than {worse}" in reason for reason in stopped)

    files = {path: path.read_bytes() for path in (studied / "comparisons").rglob("*.json")}
    asked = study("compare", "small", better, worse)
    assert f"{better} is lower than {worse}" in asked.stdout, asked.stderr
    assert {path: path.read_bytes() for path in (studied / "comparisons").rglob("*.json")} == files
    assert f"0 of {2 * MOST_SEEDS} runs to do" in study("run", "small.toml").stderr

    retried = study("retry", "small", "--kind", "stopped")
    assert retried.returncode == 0, retried.stderr
    assert study.each() == 2 * MOST_SEEDS * ["done"], "who wants them all gets them"
