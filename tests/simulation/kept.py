"""Stories in which the simulation has found a fault that is mended since, each with its seed and its accidents."""

from collections.abc import Mapping, Sequence

from tests.simulation.accidents import Accident

KEPT: Mapping[str, tuple[int, Sequence[Accident]]] = {
    "a job of a pool looked again and again at a run that was cancelled and launched again meanwhile": (
        40,
        [Accident(at=269.0, kind="cancel_and_retry", target=0.98, seconds=5.0)],
    ),
    "scancel of an old job cancelled a run that a later request had launched again": (
        16,
        [
            Accident(at=51.06, kind="cancel_and_retry", target=0.84, seconds=1500.0),
            Accident(at=140.12, kind="scancel", target=0.87, seconds=30.0),
        ],
    ),
    "a job of a pool looked again and again at a run for which there was no room on the disk": (
        59,
        [Accident(at=186.0, kind="disk_full", target=0.0, seconds=30.0)],
    ),
    "a job that was preempted while a worker began did not come back": (
        24,
        [
            Accident(at=58.27, kind="kill_worker", target=0.03, seconds=5.0),
            Accident(at=103.4, kind="kill_worker", target=0.46, seconds=5.0),
            Accident(at=252.7, kind="preempt", target=0.54, seconds=5.0),
        ],
    ),
}
"""What was wrong -> how it came about."""
