"""From runs that are wanted to runs that have spoken: the plan (pure), then the loop that carries it out."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias, final

from jobs.backend import Backend, Ended
from jobs.code_snapshot import Code
from jobs.spec import RunSpec, Submission
from seqlm.errors import SeqlmError
from seqlm.rundir import FailureKind, Observation, RunDirectory, write_json

RESUMABLE: frozenset[FailureKind] = frozenset({"node", "preempted", "timeout"})
"""Failures that are not the run's own fault: launching again goes on with it."""

EXIT_STOPPED = 143
"""The worker's own word for "asked to stop"."""
EXIT_STORAGE = 74
"""The worker's own word for "my files cannot be written"."""
EXIT_BUSY = 75
"""The worker's own word for "another worker is at it"."""

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""Variables of glibc: logits are allocated and freed in every step, and giving their pages back to the system each time
cost a quarter of a small run's processor time (docs/decisions.md). Other C libraries ignore them."""

POLL_SECONDS = 0.1
STOP_SECONDS = 60.0
"""How long stopped workers may take before they are killed: a step at the published sizes takes seconds on a CPU."""

Action: TypeAlias = Literal["start", "resume", "skip"]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What will happen to one run."""

    spec: RunSpec
    run: RunDirectory
    observation: Observation
    action: Action
    reason: str | None
    """Why it is skipped, or from where it resumes."""


def plan(spec: RunSpec, run: RunDirectory, observation: Observation, *, has_checkpoint: bool, retry: bool) -> Planned:
    """Decide about one run from what its files say. Pure: nothing is read or written.

    A run that is done, running or queued is skipped; one that failed by its own fault or was cancelled is skipped
    unless ``retry``; every other goes on from its checkpoint, or starts.
    """
    action: Action = "skip"
    reason: str | None = None
    match observation.state:
        case "done" | "running" | "queued":
            reason = observation.state
        case "failed" | "cancelled" if not retry and observation.kind not in RESUMABLE:
            reason = f"{observation.reason or observation.state}; `retry` starts it again"
        case _:
            action = "resume" if has_checkpoint else "start"
            reason = (
                f"after {observation.epoch + 1} epochs" if has_checkpoint and observation.epoch is not None else None
            )
    return Planned(spec=spec, run=run, observation=observation, action=action, reason=reason)


EventKind: TypeAlias = Literal["started", "epoch", "ended"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a run, for whoever shows progress."""

    kind: EventKind
    planned: Planned
    observation: Observation


@final
class Dispatcher:
    """Carries a plan out on a backend and waits for every run to end."""

    def __init__(
        self,
        backend: Backend,
        *,
        code: Code,
        argv: Sequence[str],
        data_path: Mapping[str, Path | None],
        on_event: Callable[[Event], None],
    ) -> None:
        """``argv``: the worker's command without the folder; ``data_path``: corpus of each run, by run id."""
        self._backend = backend
        self._code = code
        self._argv = tuple(argv)
        self._data_path = data_path
        self._on_event = on_event
        self._waiting: list[Planned] = []
        self._live: dict[str, tuple[Planned, Submission]] = {}
        self._epochs: dict[str, int | None] = {}

    def dispatch(self, planned: Sequence[Planned]) -> None:
        """Run everything that is to start or resume. Returns when all has ended.

        Raises:
            BackendError: a run can never fit; nothing has been started then.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the workers have stopped by then and can be resumed.
        """
        todo = [item for item in planned if item.action != "skip"]
        self._waiting = [
            replace(item, spec=replace(item.spec, resources=self._backend.resolve(item.spec, len(todo))))
            for item in todo
        ]
        for item in self._waiting:
            _put_failure_aside(item.run)
            write_json(item.run.job_file, self._job_record(item, None))
        with _interruptible():
            try:
                while self._waiting or self._live:
                    self._start_what_fits()
                    self._collect()
                    time.sleep(POLL_SECONDS)
            except BaseException:
                self._stop_all()
                raise

    # -- one round -----------------------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        # In order, and no overtaking: a run of many ranks is not starved by small ones behind it.
        while self._waiting and self._backend.has_room(self._waiting[0].spec.resources):
            item = self._waiting.pop(0)
            if item.run.observe().state == "cancelled":
                self._on_event(Event(kind="ended", planned=item, observation=item.run.observe()))
                continue  # cancelled from another terminal while it waited here
            self._start(item)

    def _start(self, item: Planned) -> None:
        attempt = item.run.last_attempt() + 1
        env = {
            "PYTHONPATH": str(self._code.path.absolute()),
            "PYTHONUNBUFFERED": "1",
            "SEQLM_ATTEMPT": str(attempt),
            **KEEP_MEMORY,
        }
        data_path = self._data_path.get(item.run.id)
        if data_path is not None:
            env["SEQLM_DATA"] = str(data_path.absolute())
        submission = Submission(
            run_dir=item.run.path.absolute(),
            attempt=attempt,
            argv=(*self._argv, str(item.run.path.absolute())),
            env=env,
            cwd=self._code.path,
            resources=item.spec.resources,
        )
        job_id = self._backend.submit(submission)
        # Remembered before anything can go wrong, so that whatever does stops this worker too.
        self._live[job_id] = (item, submission)
        self._epochs[item.run.id] = item.observation.epoch
        write_json(item.run.job_file, self._job_record(item, submission, job_id))
        self._on_event(Event(kind="started", planned=item, observation=item.observation))

    def _collect(self) -> None:
        for job_id, (item, submission) in list(self._live.items()):
            ended = self._backend.poll(job_id)
            if ended is not None:
                del self._live[job_id]
                _settle(item.run, submission, ended)
            observation = item.run.observe(launching=True)
            if observation.epoch != self._epochs[item.run.id]:
                self._epochs[item.run.id] = observation.epoch
                self._on_event(Event(kind="epoch", planned=item, observation=observation))
            if ended is not None:
                self._on_event(Event(kind="ended", planned=item, observation=item.run.observe()))

    def _stop_all(self) -> None:
        """Ask every worker to stop between two steps; a second interrupt, or a minute, ends them at once."""
        for job_id in self._live:
            self._backend.stop(job_id, force=False)
        deadline = time.monotonic() + STOP_SECONDS
        try:
            while self._live and time.monotonic() < deadline:
                self._forget_ended()
                time.sleep(POLL_SECONDS)
        finally:
            for job_id in self._live:
                self._backend.stop(job_id, force=True)
            self._forget_ended()

    def _forget_ended(self) -> None:
        for job_id in list(self._live):
            if self._backend.poll(job_id) is not None:
                del self._live[job_id]

    def _job_record(self, item: Planned, submission: Submission | None, job_id: str | None = None) -> dict[str, Any]:
        record: dict[str, Any] = {
            "backend": self._backend.name,
            "job_id": job_id,
            "launcher": {"pid": os.getpid(), "host": socket.gethostname()},
            "resources": item.spec.resources.to_dict(),
            "attempt": None,
        }
        if submission is not None:
            record.update(
                attempt=submission.attempt,
                argv=list(submission.argv),
                code=str(submission.cwd),
                submitted_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        return record


def _settle(run: RunDirectory, submission: Submission, ended: Ended) -> None:
    """See to it that an ended worker has spoken: one that died without a word gets its ``failure.json`` here."""
    if ended.exit_code == 0 or run.result_file.exists() or run.failure_file.exists():
        return
    if ended.exit_code in (EXIT_STOPPED, EXIT_BUSY):
        return
    last_line = _last_line(run.stderr_log(submission.attempt))
    if ended.exit_code == EXIT_STORAGE:
        kind, message = "node", last_line or "its files could not be written: is the disk full, or a quota used up?"
    elif ended.exit_code < 0:
        kind, message = "node", ended.message
    else:
        kind, message = "code", f"{ended.message}: {last_line}" if last_line else ended.message
    run.write_failure_once(
        {
            "kind": kind,
            "message": message,
            "where": "outside the worker's own code",
            "attempt": submission.attempt,
            "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _put_failure_aside(run: RunDirectory) -> None:
    """Move the failure of the attempt before into that attempt's folder: it stays on record."""
    try:
        failure = run.read_failure()
    except SeqlmError:
        failure = {}
    if failure is None:
        return
    folder = run.attempt_dir(max(1, run.last_attempt()))
    folder.mkdir(parents=True, exist_ok=True)
    run.failure_file.replace(folder / "failure.json")


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text("utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP count as Ctrl-C while the block runs."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # A signal that the caller has this process ignore (nohup) stays ignored.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
