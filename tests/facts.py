"""Facts of runs as workers and launchers write them, for tests that make up a study."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.spec import RunSpec
from seqlm.files import make_directory, read_json, write_json
from seqlm.lease import Lease, claim, kept
from seqlm.records.attempts import Start
from seqlm.records.requests import RequestFile, Wanted
from seqlm.records.runs import Provenance
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory


def make_folder(study_dir: Path, spec: RunSpec) -> RunDirectory:
    """Make the folder of a run, as its first attempt does."""
    run = RunDirectory.locate(study_dir, spec.name, spec.fingerprint)
    run.create(spec.config, Provenance(name=spec.name, order=spec.order))
    return run


def newest_attempt(run: RunDirectory) -> int:
    """Return the newest attempt of a run, which gets a first one if it has none."""
    attempt = max(1, run.last_attempt())
    make_directory(run.attempt_dir(attempt))
    return attempt


@contextlib.contextmanager
def owned(run: RunDirectory) -> Iterator[Lease]:
    """Own a run while the block runs, as its worker does."""
    with kept(claim(run.lease_dir, attempt=run.last_attempt(), busy="busy")) as lease:
        yield lease


def fail(run: RunDirectory, record: Mapping[str, Any]) -> None:
    """End the newest attempt of a run by a failure, in the words of its first rank."""
    file = run.end_file(newest_attempt(run))
    before = read_json(file) or {}
    write_json(file, {**before, "outcome": "failed", "kind": "code", "message": "it fails", **record})


def failure_of(run: RunDirectory) -> dict[str, Any] | None:
    """Return how the newest attempt of a run failed. ``None``: it has not."""
    end = run.end(run.last_attempt())
    return None if end.kind is None else asdict(end)


def stop(run: RunDirectory, evidence: Mapping[str, Any]) -> None:
    """Have a search stop a run at the rung of ``evidence``."""
    attempt = newest_attempt(run)
    write_json(run.rung_file(evidence["rung"]), {"decision": "stopped", "attempt": attempt, **evidence})


def start_of(run: RunDirectory) -> Start:
    """Return the record of the start of a run's newest attempt."""
    return Start.read(run.attempt_dir(run.last_attempt())) or Start()


def launch_again(run: RunDirectory, policy: Mapping[str, Any] | None = None) -> None:
    """Have a request name a run, as a launch does: what its attempts did so far is history."""
    wanted = {run.id: Wanted(from_attempt=run.last_attempt() + 1)}
    file_request(run.path.parent, RequestFile(kind="run", policy=policy or {}, runs=wanted))
