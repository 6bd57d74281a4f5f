"""Canaries: before a grid starts, a short run of each architecture-optimizer pair checks that it fits and trains."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jobs import terminal
from jobs.backends.base import Executor
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import CANARY_STEPS, StudySettings
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun
from jobs.study.folder import pair_of
from jobs.study.kept_code import Code
from seqlm.errors import CanaryError
from seqlm.reading import timestamp
from seqlm.records.requests import Folder, Folders, RequestFile, Wanted
from seqlm.requests import Request, file_request
from seqlm.rundir import CANARY_FOLDER, RunDirectory

CANARY_ABOVE = 10
"""Up to this many runs start without canaries. A user watches a few runs; a large grid fails overnight."""
POLICY = Policy(oom=0, max_stalled_retries=1)
"""Retry once after a lost node. Never shrink micro-batches: a canary that runs out of memory must be reported."""


def wanted(choice: bool | None, todo: Iterable[PlannedRun]) -> bool:
    """Return whether to run canaries: ``choice``, or if that is ``None``, whether more than :data:`CANARY_ABOVE` start.

    Runs that resume do not count, since they have trained already.
    """
    return sum(item.action == "start" for item in todo) > CANARY_ABOVE if choice is None else choice


class Canaries(NamedTuple):
    """The canaries of a launch."""

    items: list[PlannedRun]
    request: Request


def requested(todo: Sequence[PlannedRun], study_dir: Path, backend: str) -> Canaries | None:
    """File the request for a canary of each architecture-optimizer pair of runs that start. ``None``: none starts.

    ``todo`` are the runs about to start or resume, as prepared.
    """
    chosen = choose(item for item in todo if item.action == "start")
    if not chosen:
        return None
    pairs = ", ".join(pair_of(item.spec.config) for item in chosen)
    terminal.tell_progress(f"canaries first, {CANARY_STEPS} steps each: {pairs} (--no-canary starts without them)")
    canaries, folders = [], dict[str, Folder]()
    for item in chosen:
        run = RunDirectory.canary(study_dir, item.run.id)
        folders[run.id] = Folder(config=item.spec.config.to_dict(), provenance=item.run.read_provenance())
        canaries.append(PlannedRun(spec=item.spec, run=run, observation=run.observe(), action="start", reason=None))
    wanted = {item.run.id: Wanted(from_attempt=item.run.last_attempt() + 1) for item in canaries}
    request = RequestFile(kind="run", at=timestamp(), backend=backend, policy=POLICY.to_dict(), runs=wanted)
    return Canaries(canaries, file_request(study_dir / CANARY_FOLDER, request, Folders(runs=folders)))


def of_canaries(study: StudySettings) -> StudySettings:
    """Return the settings of the canaries of a study, which are a study of their own. They send no messages."""
    return replace(study, path=study.path / CANARY_FOLDER, policy=POLICY, notify=None)


def check(todo: Sequence[PlannedRun], executor: Executor, code: Code, study: StudySettings) -> None:
    """Run the canaries of a launch, and return if all pass. ``executor`` is open.

    Raises:
        CanaryError: a canary failed.
    """
    filed = requested(todo, study.path, executor.name)
    if filed is None:
        return
    canaries = filed.items
    Dispatcher(executor, code, of_canaries(study), filed.request.number, writes_queue=False).dispatch(canaries)
    if any(item.run.is_cancelled() for item in canaries):
        return  # with all runs of the launch
    failed: list[str] = []
    kinds = set()
    for item in canaries:
        pair, seen, record = pair_of(item.spec.config), item.run.observe(), item.run.read_canary()
        if seen.state == "done" and record is not None:
            figures = f"{record.step_seconds:.2g} s a step, {terminal.memory(record.peak_memory_bytes)}"
            terminal.tell_progress(f"canary {pair} passes: {figures}")
        else:
            terminal.tell_progress(f"canary {pair} fails")
            kinds.add(seen.kind)
            log = item.run.stderr_log(max(1, item.run.last_attempt()))
            failed.append(f"canary {pair} ({item.spec.name}): {seen.reason}; see {log}")
    if failed:
        # A failure of kind `code`, such as a wrong device, would fail every run.
        hint = "" if kinds == {"code"} else "; --no-canary starts it without canaries"
        raise CanaryError("\n".join([*failed, f"no run of the grid was started{hint}"]))


def choose(items: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Return for each pair the run that needs most memory, as the one most likely not to fit.

    Ties go to the lowest learning rate, since the highest ones of a sweep may diverge on purpose. Runs whose memory is
    unknown, of the user's own models, count alike.
    """

    def rank(item: PlannedRun) -> tuple[int, float]:
        assert item.estimate is not None, "prepared runs have an estimate"
        return item.estimate.memory_bytes or 1, -item.spec.config.optim.lr

    pairs: dict[str, list[PlannedRun]] = {}
    for item in items:
        pairs.setdefault(pair_of(item.spec.config), []).append(item)
    return [max(runs, key=rank) for runs in pairs.values()]
