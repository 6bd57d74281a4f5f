"""A worker on another host, for the tests of its lease.

Usage: ``python -m tests.seqlm.training.elsewhere HOST OPTION=... RUN_DIR``.

Hosts that share files and see no lock of each other are played by processes whose locks do nothing and whose machine
has the name HOST. Everything else is the real worker. Options:

    hold=PATH            from its second epoch on, it begins none until the first is in its files and PATH exists
    stop=last.pt:3       it stops itself (SIGSTOP) the third time that it has written last.pt and not yet put in place
    freeze=last.pt:3     the same in the instant before the renaming, when its guard has been asked
    sweep=no             it sees no temporary file of others, as where a listing lags
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from seqlm import lease, processes
from seqlm.rundir import RunDirectory
from seqlm.training import worker
from seqlm.training.trainer import EpochBegins, Trainer
from tests.waiting import wait_for


def stop_at(order: str) -> Callable[[str], None]:
    """Stop this process after a given number of calls for a file."""
    name, _, number = order.partition(":")
    told: list[str] = []

    def tell(path: str) -> None:
        if f".{name}." in Path(path).name:
            told.append(path)
            if len(told) == int(number):
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread does not go a step further

    return tell


def main(host: str, *options_and_run: str) -> int:
    """Run one rank on ``host``; returns its exit code."""
    *options, run_dir = options_and_run
    orders = dict(option.split("=") for option in options)
    fsync, replace = os.fsync, os.replace
    events = Trainer.events
    written = stop_at(orders.get("stop", "nothing:0"))
    about_to_rename = stop_at(orders.get("freeze", "nothing:0"))

    def events_when_told(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        for event in events(self, *args, **kwargs):
            yield event
            if "hold" in orders and isinstance(event, EpochBegins) and self.epoch > 0:
                wait_for(RunDirectory(Path(run_dir)).metrics_file.exists, "the first epoch, which a thread saves")
                wait_for(Path(orders["hold"]).exists, "the test to let this worker go on")

    def fsync_then_stop(handle: int) -> None:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)
        written(path)

    def stop_then_replace(source: Any, target: Any, **options: Any) -> None:
        about_to_rename(str(source))
        replace(source, target, **options)

    with (
        mock.patch.object(processes, "this_host", return_value={"host": host, "machine_id": host}),
        mock.patch.object(lease, "LOOK_SECONDS", 0.05),
        mock.patch.object(Trainer, "events", events_when_told),
        mock.patch.object(os, "fsync", fsync_then_stop),
        mock.patch.object(os, "replace", stop_then_replace),
    ):
        if orders.get("sweep") == "no":
            mock.patch.object(RunDirectory, "sweep").start()
        return worker.main([run_dir])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
