from pathlib import Path

import pytest

from jobs.attempt.attempt import Attempt, end_left
from jobs.attempt.supervisor import Ended, ended
from jobs.spec import Submission
from seqlm.files import make_directory
from seqlm.records.attempts import Start, Worker
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from seqlm.state import FailureKind
from tests.facts import fail
from tests.seqlm.training.studies import make_config, make_run


@pytest.mark.parametrize(
    ("codes", "explains"),
    [
        ((0, 1), 1),
        ((1, -9), -9),
        ((-9, 1), -9),
        ((74, 1), 74),
        ((1, 74), 74),
        ((1, 120), 120),
        ((143, 1), 143),
        ((74, -9), -9),
        ((1, 1), 1),
        ((1, -6), -6),
        ((-6, 74), 74),
        ((-11, -9), -9),
    ],
)
def test_a_rank_that_only_lost_another_does_not_hide_why(codes: tuple[int, int], explains: int) -> None:
    found = ended(dict(enumerate(codes)), 2)
    assert found.exit_code == explains
    assert f"rank {codes.index(explains)} " in found.message


def test_ranks_that_are_all_well_are_no_failure() -> None:
    assert ended({0: 0, 1: 0}, 2).exit_code == 0


def test_a_rank_that_was_killed_for_its_memory_explains_the_others() -> None:
    codes = {0: -9, 1: -9, 2: 1}
    found = ended(codes, 3, out_of_memory=1)
    assert found.out_of_memory
    assert (found.exit_code, found.message) == (-9, "rank 1 was killed by SIGKILL")
    assert not ended(codes, 3).out_of_memory


@pytest.mark.parametrize(
    ("code", "was_asked", "kind"),
    [
        (0, False, None),
        (75, False, None),  # another worker is at the run
        (143, True, None),
        (-15, True, None),
        (-2, True, None),
        (120, True, None),  # it stopped, and its last line found no room
        (143, False, "preempted"),
        (-15, False, "preempted"),
        (120, False, "node"),
        (74, True, "node"),
        (-9, True, "node"),
        (1, True, "start"),
    ],
)
def test_an_exit_without_a_failure_is_recorded_unless_it_was_asked_for(
    tmp_path: Path, code: int, was_asked: bool, kind: FailureKind | None
) -> None:
    run = make_run(tmp_path / "run", make_config())
    record(run, Ended(exit_code=code, message="ended"), was_asked=was_asked)
    assert run.end(1).kind == kind


def test_a_worker_that_has_begun_and_ends_without_a_word_is_at_fault_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_config())
    run.attempt_dir(1).mkdir(parents=True)
    Worker(rank=0).write_file(run.worker_file(1))
    record(run, Ended(exit_code=1, message="ended"))
    assert run.end(1).kind == "code"


def record(run: RunDirectory, end: Ended, *, was_asked: bool = False) -> None:
    submission = Submission(run_dir=run.path, attempt=1, argv=(), env={}, cwd=run.path, resources=Resources())
    Attempt(submission, "here").record_exit(end, was_asked=was_asked)


def test_a_kill_for_memory_goes_before_the_word_of_another_rank(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_config())
    fail(run, {"kind": "node", "message": "lost rank 1"})
    record(run, Ended(exit_code=-9, message="ended", out_of_memory=True))
    assert run.end(1).kind == "oom"


def test_a_worker_that_is_gone_has_failed_although_a_newer_attempt_was_never_started(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_config())
    for attempt in (1, 2):
        make_directory(run.attempt_dir(attempt))
    Start().write(run.attempt_dir(1))
    Worker(started_at="2026-01-01T00:00:00+00:00").write(run.attempt_dir(1))
    end_left(run, "here")
    assert [(end.attempt, end.kind) for end in run.failures()] == [(1, "node")]
