"""Stories in which the simulation has found a fault that is mended since."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.simulation.accidents import Accident
from tests.simulation.study import Study


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A story, as ``python -m tests.simulation SEED --shrink`` prints it."""

    fault: str
    """What was wrong."""
    seed: int
    study: Study
    accidents: Sequence[Accident]


KEPT = (
    Kept(
        fault="a job of a pool looked again and again at a run that was cancelled and launched again meanwhile",
        seed=40,
        study=Study(runs=4, jobs=1, epoch_seconds=600.0, minutes=240),
        accidents=[Accident(at=269.0, kind="cancel_and_retry", target=0.98, seconds=5.0)],
    ),
    Kept(
        fault="scancel of an old job cancelled a run that a later request had launched again",
        seed=16,
        study=Study(runs=5, jobs=1, epoch_seconds=20.0, minutes=240),
        accidents=[
            Accident(at=51.06, kind="cancel_and_retry", target=0.84, seconds=1500.0),
            Accident(at=140.12, kind="scancel", target=0.87, seconds=30.0),
        ],
    ),
    Kept(
        fault="a job of a pool looked again and again at a run for which there was no room on the disk",
        seed=59,
        study=Study(runs=4, jobs=1, epoch_seconds=60.0, minutes=240),
        accidents=[Accident(at=186.0, kind="disk_full", target=0.0, seconds=30.0)],
    ),
    Kept(
        fault="a job that was preempted while a worker began did not come back",
        seed=24,
        study=Study(runs=2, jobs=1, epoch_seconds=20.0, minutes=20),
        accidents=[
            Accident(at=58.27, kind="kill_worker", target=0.03, seconds=5.0),
            Accident(at=103.4, kind="kill_worker", target=0.46, seconds=5.0),
            Accident(at=252.7, kind="preempt", target=0.54, seconds=5.0),
        ],
    ),
)
