"""Stories of launching: the product comes to no new fault, and planted faults are found."""

import os
import re
import subprocess
import sys

import pytest

from tests import commands
from tests.small_study import ROOT

pytestmark = pytest.mark.process


def simulate(*words: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Play stories in a process of their own, which replaces functions of the standard library."""
    command = [sys.executable, "-m", "tests.simulation", *words]
    return commands.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed})


def test_no_story_has_an_end_that_is_not_known() -> None:
    found = simulate("--seeds", "100")
    assert found.returncode == 0, found.stdout + found.stderr


def test_faults_that_were_mended_do_not_come_back() -> None:
    found = simulate("--kept")
    assert found.returncode == 0, found.stdout + found.stderr


def test_planted_faults_are_found() -> None:
    """That a kept story still finds its fault depends on the order of calls, which changes with the product."""
    found = simulate("--planted")
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_run_costs_as_many_calls_in_a_large_study() -> None:
    each = []
    for runs in (6, 24):
        told = simulate("3", "--runs", str(runs)).stdout
        calls = re.search("([0-9]+) calls in", told)
        assert calls is not None, told
        each.append(int(calls[1]) / runs)
    assert each[1] < 1.2 * each[0]


def test_a_seed_tells_the_same_story_each_time() -> None:
    stories = [simulate("7", hash_seed=hash_seed) for hash_seed in ("0", "1")]
    assert re.search("digest [0-9a-f]{16}", stories[0].stdout), stories[0].stdout + stories[0].stderr
    assert stories[0].stdout == stories[1].stdout


def test_a_story_that_fails_is_told_with_few_accidents_and_can_be_kept() -> None:
    found = simulate("--plant", "never-back", "--only", "preempt", "--seeds", "2")
    assert found.returncode == 1, found.stdout + found.stderr
    _, _, told = found.stdout.partition("The shortest story of seed ")
    assert "is preempted" in told
    (kept,) = re.findall("^To keep it: .*", told, re.M)
    assert kept.count("Accident(") == 1
