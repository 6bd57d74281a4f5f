from pathlib import Path

import pytest

from benchmarks.scheduler_calls import CallCounter
from benchmarks.slurm_submission import Measured, summary
from tests import commands


def measured() -> Measured:
    """Three rounds, of which the first is slow and does not count."""
    found = Measured()
    for slow, seconds in ((50.0, 40.0), (6.0, 2.0), (8.0, 2.0)):
        found.figures["seqlm"].append({"seconds": slow, "peak_memory_mb": 40.0})
        found.figures["seqlm, the call"].append({"seconds_of_the_call": slow / 2})
        row = {"seconds": seconds, "peak_memory_mb": 20.0, "seconds_of_the_call": 1.0}
        found.figures["submitit"].append(row)
        found.figures["sbatch loop"].append({"seconds": 2 * slow, "peak_memory_mb": 10.0})
    found.calls = {name: {"sbatch": 1, "sinfo": 1} for name in found.figures}
    return found


def test_ratios_are_taken_within_the_rounds_that_count() -> None:
    found = summary(measured(), rounds=2)
    assert found["turns"]["seqlm"]["seconds"] == {"median": 7.0, "least": 6.0, "most": 8.0}
    assert found["ratios"]["seqlm's command in those of submitit's"] == {"median": 3.5, "least": 3.0, "most": 4.0}
    assert found["ratios"]["the loop in those of seqlm's command"]["median"] == 2


@pytest.mark.process
def test_calls_are_counted_and_made(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "sbatch").write_text("#!/bin/sh\necho submitted $1\n")
    (real / "sbatch").chmod(0o755)
    counter = CallCounter(tmp_path, {"PATH": f"{real}:/usr/bin:/bin"})
    for word in ("one", "two words"):
        done = commands.run(["sbatch", word], env=counter.env, check=True)
        assert done.stdout == f"submitted {word}\n"
    assert counter.take() == {"sbatch": 2}
    assert counter.take() == {}
