"""Cancel runs from any terminal, given only the study's folder.

A request says which runs are to stop. Workers, launchers and jobs look for it on any machine; no process is signalled.
"""

import time
from collections.abc import Iterable
from typing import Any

from jobs.study.folder import ObservedRun, this_launcher
from seqlm.lease import live_owner
from seqlm.reading import timestamp
from seqlm.requests import file_request

STOP_SECONDS = 90.0
"""Seconds to wait for workers to stop: more than a launcher gives them before it kills them."""
LOOK_SECONDS = 0.1


def mark(runs: Iterable[ObservedRun]) -> list[ObservedRun]:
    """Mark every run that has not ended as cancelled, and return these runs in the order of ``runs``.

    The mark is one request that names all of them. A launcher or a job on any machine skips a marked run in its queue
    and stops one that is running. Workers check for it as well. A run that finishes at the same moment stays done.

    Raises:
        FileError: the request cannot be written; nothing is cancelled.
    """
    found = [run for run in runs if run.observation.state in ("pending", "queued", "running")]
    if found:
        wanted: dict[str, Any] = {one.run.id: {} for one in found}
        record = {"kind": "cancel", "at": timestamp(), "launcher": this_launcher(), "runs": wanted}
        file_request(found[0].run.path.parent, record)
    return found


def wait_until_stopped(runs: Iterable[ObservedRun]) -> dict[str, str]:
    """Wait until no worker is running any of these runs. Return run id -> a line, for each that has not stopped."""
    left = list(runs)
    deadline = time.monotonic() + STOP_SECONDS
    while (left := [one for one in left if live_owner(one.run.lease_dir) is not None]) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    found = {}
    for one in left:
        owner = live_owner(one.run.lease_dir) or {}
        who = f"its worker on {owner.get('host', 'an unknown host')} (process {owner.get('pid', 'unknown')})"
        line = f"marked as cancelled, but {who} has not stopped yet; see status, and end it there if it hangs"
        found[one.run.id] = line
    return found
