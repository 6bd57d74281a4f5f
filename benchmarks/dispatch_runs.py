"""One turn: our Dispatcher runs a list of submissions. ``python -m benchmarks.dispatch_runs TURN.json``, from others.

A process of its own for each turn, so that none inherits what another has left in memory.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.stand_ins import WORKER, StandIn, make_study, spans
from jobs.backends.base import Executor
from jobs.backends.local import LocalBackend
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import StudySettings
from jobs.study.kept_code import live_code

SAMPLE_SECONDS = 0.25


def main() -> int:
    turn = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    wanted = [StandIn(**raw) for raw in turn["runs"]]
    print(json.dumps(dispatch(Path(turn["study"]), wanted, turn["backend"], turn["address"])))
    return 0


def dispatch(study: Path, wanted: Sequence[StandIn], name: str, address: str | None) -> dict[str, Any]:
    """Makespan from the Dispatcher's start to its end, the workers' spans, and the memory of this process meanwhile."""
    planned = make_study(study, wanted)
    code = live_code()
    backend = _executor(name, address, study)
    dispatcher = Dispatcher(backend, code, StudySettings(path=study, worker=WORKER[1:]), writes_queue=False)
    start = time.time()
    backend.open(code)
    opened = time.time()
    memory = _MemorySamples()
    processor = time.process_time()
    try:
        dispatcher.dispatch(planned)
        end = time.time()
        processor = time.process_time() - processor
    finally:
        memory.stop()
        backend.close()
    return {
        "open_seconds": opened - start,
        "began": opened,
        "makespan": end - opened,
        "processor_seconds": processor,
        "spans": [[vars(span) for span in ranks] for ranks in spans(planned)],
        "resident_mb": memory.megabytes,
    }


def _executor(name: str, address: str | None, study: Path) -> Executor:
    if name == "local":
        return LocalBackend().executor(study)
    from jobs.backends.ray_executor import RayExecutor

    return RayExecutor(address=address)


class _MemorySamples:
    """Resident memory of this process, every quarter of a second until ``stop``."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
            self.megabytes.append(pages * 4096 / 1e6)


if __name__ == "__main__":
    sys.exit(main())
