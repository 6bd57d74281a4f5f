"""Every call at a study's files fails once: nothing that a run has is taken for missing, and nothing is lost."""

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.launch.prepare import plan_runs
from jobs.manifests.policy import Policy
from jobs.plan.planned import plan
from jobs.spec import RunSpec, Submission
from jobs.study.budget import Budget
from jobs.study.folder import Observer, launching, observe_study
from seqlm.environment import MICRO_BATCHES
from seqlm.errors import FileError
from seqlm.files import write_json, write_json_lines
from seqlm.records.attempts import Exit
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from tests.analysis.attempt_files import write_attempt
from tests.cancelling import cancel
from tests.facts import launch_again, make_folder, owned
from tests.fakes import FakeBackend
from tests.faults import LookFaults
from tests.jobs.launch.test_dispatch import finish, run_all
from tests.seqlm.training.studies import make_config

SPEC = RunSpec(name="run", config=make_config(epochs=4), resources=Resources(ranks=1, cpus=1, gpus=0))


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_waiting")]


def interrupted(study: Path) -> RunDirectory:
    """A run with two attempts, the first of which ran out of memory, an hour spent, two epochs and a checkpoint."""
    run = make_folder(study, SPEC)
    run.attempt_dir(1).mkdir(parents=True)
    run.write_exit(1, Exit(kind="oom", message="no memory"))
    write_attempt(run, 2, start=0, end=3600)
    write_json_lines(run.metrics_file, [{"epoch": epoch, "val_ppl": 9.0} for epoch in range(2)])
    run.last_checkpoint.touch()
    write_json(run.position_file, {"epoch": 2, "step": 0})
    return run


def require_right_or_an_error(
    folder: Path,
    look: Callable[[Path], object],
    right: object,
    study_of: Callable[[Path], RunDirectory] = interrupted,
) -> None:
    """Call ``look`` on the study of an interrupted run, once for each of its looks at a file, which fails."""
    found: list[object] = []
    for number in itertools.count(1):
        study = folder / f"{number:04d}"
        study_of(study)
        with pytest.MonkeyPatch.context() as patch:
            faults = LookFaults(patch, study, number)
            with contextlib.suppress(FileError):
                found.append(look(study))
        if not faults.has_failed:
            break
    assert number > 5
    assert found[-1] == right
    assert [wrong for wrong in found if wrong != right] == []


def test_a_plan_is_right_or_an_error(tmp_path: Path) -> None:
    def look(study: Path) -> list[tuple[str, str | None]]:
        return [(item.action, item.reason) for item in plan_runs([SPEC], study)]

    require_right_or_an_error(tmp_path, look, [("resume", "after 2 epochs")])


def test_hours_spent_are_right_or_an_error(tmp_path: Path) -> None:
    require_right_or_an_error(tmp_path, lambda study: Budget(study, Policy()).spent()["core_hours"], 2.0)


def test_the_state_of_a_run_is_right_or_an_error(tmp_path: Path) -> None:
    def look(study: Path) -> list[tuple[str, int]]:
        states = [(seen.observation.state, seen.observation.epochs_done) for seen in observe_study(study)]
        if states == [("failed", 0)]:
            raise FileError("its reason says which file cannot be read")
        return states

    require_right_or_an_error(tmp_path, look, [("pending", 2)])


def test_a_cancellation_is_right_or_an_error(tmp_path: Path) -> None:
    def look(study: Path) -> str:
        (run,) = RunDirectory.unordered_in(study)
        return run.observe().state

    def cancelled(study: Path) -> RunDirectory:
        run = interrupted(study)
        cancel(run)
        return run

    require_right_or_an_error(tmp_path, look, "cancelled", study_of=cancelled)


def test_a_live_launcher_and_a_live_worker_are_seen_or_an_error(tmp_path: Path) -> None:
    def look(study: Path) -> tuple[bool, str]:
        (run,) = RunDirectory.unordered_in(study)
        with launching(study), owned(run):
            return Observer(study).launcher is not None, run.observe().state

    def started_again(study: Path) -> RunDirectory:
        run = interrupted(study)
        run.attempt_dir(3).mkdir()
        return run

    require_right_or_an_error(tmp_path, look, (True, "running"), study_of=started_again)


def test_a_launch_goes_on_after_the_last_attempt_and_remembers_what_failed_before(tmp_path: Path) -> None:
    def launch(study: Path) -> tuple[str, bool, set[str]]:
        run = RunDirectory.locate(study, SPEC.name, SPEC.fingerprint)
        item = plan(SPEC, run, run.observe(), has_checkpoint=True, retry=False)

        def work(submission: Submission) -> int:
            with contextlib.suppress(FileError):
                return -9 if submission.attempt == 3 else finish(submission)
            return finish(submission)

        backend = FakeBackend(work)
        try:
            run_all(backend, [item], is_requested=True, policy=policy)
        except FileError as error:
            raise AssertionError("one file of one run ends the launch") from error
        parts = {submission.env[MICRO_BATCHES.name] for submission in backend.submissions}
        numbers = [one.attempt for one in backend.submissions]
        is_new = numbers[0] > 2 and numbers == sorted(set(numbers))
        return run.observe().state, is_new, parts

    def requested(study: Path) -> RunDirectory:
        run = interrupted(study)
        launch_again(run, policy.to_dict())
        return run

    policy = Policy(max_stalled_retries=5)
    require_right_or_an_error(tmp_path, launch, ("done", True, {"2"}), study_of=requested)
