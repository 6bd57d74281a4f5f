"""The short form of the loop, with a fixed seed; ``make chaos`` is the long one."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests import commands
from tests.chaos.faults import ALL
from tests.chaos.loop import Planned, schedule
from tests.chaos.study import ROOT

SEED = 5301  # the first five: an error of files, a late listing without a launcher, a kill, a full disk, a power cut


@pytest.mark.process
def test_a_study_that_is_disturbed_five_times_ends_as_the_quiet_one_bit_for_bit(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--short", "--faults", "5", "--every", "1.5", "--seed", str(SEED), "--json", str(report)]
    argv = [sys.executable, "-m", "tests.chaos", *options]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # as `make chaos` has it
    env["TMPDIR"] = str(tmp_path)
    answer = commands.run(argv, cwd=ROOT, env=env)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    said = json.loads(report.read_text())
    assert sum(said["faults"].values()) >= 5
    assert not any(said["findings"].values())
    assert said["steps_computed"] >= said["steps_needed"] > 0
    assert f"seed {SEED}" in answer.stdout


def test_a_seed_draws_the_same_accidents_again() -> None:
    def drawn(seed: int) -> list[object]:
        return [fault for fault, _ in zip(schedule(seed, 4.0, ALL), range(40), strict=False)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert {planned.fault for planned in first(3)} == set(ALL), "no kind is left to luck"


def first(seed: int) -> list[Planned]:
    return [planned for planned, _ in zip(schedule(seed, 4.0, ALL), ALL, strict=False)]
