from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.attempt.retry import (
    Decision,
    Failed,
    Progress,
    decide,
    failed_of,
    history,
    let_stand,
    may_go_on,
    progress_of,
    put_failure_aside,
)
from jobs.manifests.policy import Policy
from seqlm.errors import FileError
from seqlm.files import read_json, write_json, write_json_lines
from seqlm.rundir import Observation, RunDirectory
from seqlm.state import FailureKind, State
from tests.training.studies import make_config, make_run

POLICY = Policy()


def ask(policy: Policy, *kinds: FailureKind | None, progress: Progress = (0, 0), by_hand: int = 0) -> Decision:
    """The decision about the last of some failures, all with the same progress; the first ``by_hand`` were retried."""
    failures = [Failed(kind=kind, progress=progress, by_hand=number < by_hand) for number, kind in enumerate(kinds)]
    return decide(policy, failures[:-1], failures[-1], most_micro_batches=64)


@pytest.mark.parametrize("kind", ["diverged", "code", "cancelled", None])
def test_a_fault_of_the_runs_own_is_never_tried_again_and_its_message_stays(kind: FailureKind | None) -> None:
    assert ask(POLICY, kind) == Decision()


def test_retries_in_a_row_without_progress_wait_longer_each_time_up_to_a_limit() -> None:
    waits = [ask(Policy(max_stalled_retries=7), *["node"] * number).delay for number in range(1, 9)]
    assert waits == [1, 5, 25, 125, 300, 300, 300, None]


def test_progress_in_between_starts_the_row_and_the_waiting_anew() -> None:
    policy = Policy(max_stalled_retries=2)
    steps: list[Progress] = [(0, 0), (0, 40), (1, 0), (1, 0), (1, 0), (1, 0)]
    failures = [Failed(kind="node", progress=progress) for progress in steps]
    found = [decide(policy, failures[:n], failures[n], most_micro_batches=1).delay for n in range(len(steps))]
    assert found == [1, 1, 1, 5, None, None]


def test_what_was_lost_and_gained_again_is_no_progress() -> None:
    failures = [Failed(kind="node", progress=progress) for progress in ((3, 0), (2, 0), (3, 0))]
    assert decide(Policy(max_stalled_retries=2), failures[:2], failures[2], most_micro_batches=1).delay is None


def test_kinds_are_counted_apart() -> None:
    policy = Policy(oom=1, timeout=1, max_stalled_retries=100)
    assert ask(policy, "oom", "timeout").delay is not None
    assert ask(policy, "timeout", "oom", "node", "preempted").delay is not None
    assert ask(policy, "timeout", "oom", "timeout").why == ", after 1 retry of this kind"
    assert ask(policy, "timeout", "oom", "oom").why == ", after 1 retry with ever smaller micro-batches"


def test_a_time_limit_counts_however_much_was_gained_in_between() -> None:
    policy = Policy(timeout=2)
    failures = [Failed(kind="timeout", progress=(epoch, 0)) for epoch in range(3)]
    assert decide(policy, failures[:2], failures[2], most_micro_batches=1).why == ", after 2 retries of this kind"


def test_lost_nodes_and_preemptions_are_free_as_long_as_something_is_gained() -> None:
    failures = [Failed(kind="node", progress=(epoch, 0)) for epoch in range(300)]
    assert decide(POLICY, failures[:-1], failures[-1], most_micro_batches=1).delay == 1


def test_retries_in_a_row_are_counted_whatever_their_kinds() -> None:
    policy = Policy(max_stalled_retries=3)
    kinds: list[FailureKind] = ["node", "preempted", "timeout", "node"]
    assert ask(policy, *kinds[:3]).delay is not None
    assert ask(policy, *kinds).why == ", after 3 retries in a row without progress"


@pytest.mark.parametrize("kind", ["oom", "timeout", "node", "preempted"])
def test_a_policy_of_none_means_none_and_says_which_key(kind: FailureKind) -> None:
    assert ask(Policy(**{kind: 0}), kind).why == f"; not tried again, since policy.{kind} is 0"  # type: ignore[arg-type]
    assert ask(Policy(max_stalled_retries=0), kind).why == "; not tried again, since policy.max_stalled_retries is 0"


def test_micro_batches_end_at_the_columns_of_a_rank() -> None:
    failed = Failed(kind="oom", micro_batches=4)
    assert decide(Policy(oom=None), [], failed, most_micro_batches=8).delay == 1
    why = decide(Policy(oom=None), [], failed, most_micro_batches=4).why
    assert why == ", with 4 micro-batches a step; its ranks have too few columns for smaller ones"


def test_a_person_who_has_it_tried_again_resets_the_count_of_that_kind_and_of_the_row() -> None:
    policy = Policy(oom=1, timeout=1, max_stalled_retries=1)
    assert ask(policy, "oom", "oom").delay is None
    failures = [Failed(kind="oom"), Failed(kind="oom", by_hand=True), Failed(kind="oom")]
    assert decide(policy, failures[:2], failures[2], most_micro_batches=64).delay == 1
    others = [Failed(kind="timeout"), Failed(kind="oom", by_hand=True), Failed(kind="timeout")]
    assert decide(policy, others[:2], others[2], most_micro_batches=64).delay is None, "of that kind alone"


# -- what files tell -----------------------------------------------------------------------------------------------


def made(tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path / "run", make_config())
    run.attempt_dir(1).mkdir(parents=True)
    return run


def position(run: RunDirectory, **content: Any) -> None:
    write_json(run.last_checkpoint.parent / "position.json", content)


def test_progress_is_epochs_or_a_later_checkpoint(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert progress_of(run) == (0, 0)
    position(run, epoch=0, step=40)
    assert progress_of(run) == (0, 40)
    write_json_lines(run.metrics_file, [{"epoch": 0, "val_ppl": 9.0}])
    assert progress_of(run) == (1, 0)
    position(run, epoch=1, step=7)
    assert progress_of(run) == (1, 7)
    (run.last_checkpoint.parent / "position.json").write_text("{")
    assert progress_of(run) == (1, 0), "a damaged file says nothing"


def test_a_failure_put_aside_keeps_what_was_saved_and_counts_in_the_next_launch(tmp_path: Path) -> None:
    run = made(tmp_path)
    position(run, epoch=0, step=40)
    run.write_failure_once({"kind": "oom", "message": "no memory", "attempt": 1})
    put_failure_aside(run, micro_batches=2)
    assert not run.failure_file.exists()
    assert history(run) == [Failed(kind="oom", progress=(0, 40), micro_batches=2)]
    run.attempt_dir(2).mkdir()
    run.write_failure_once({"kind": "timeout", "message": "time", "attempt": 2})
    put_failure_aside(run, by_hand=True)
    assert history(run)[1] == Failed(kind="timeout", progress=(0, 40), by_hand=True)


def test_a_failure_goes_to_its_own_attempt_though_the_next_has_begun(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.write_failure_once({"kind": "node", "message": "lost", "attempt": 1})
    run.attempt_dir(2).mkdir()
    put_failure_aside(run)
    assert [(run.attempt_dir(n) / "failure.json").exists() for n in (1, 2)] == [True, False]


def test_what_only_a_scheduler_knows_is_put_on_record(tmp_path: Path) -> None:
    run = made(tmp_path)
    reason = "oom: SLURM reports OUT_OF_MEMORY"
    put_failure_aside(run, seen=Observation(state="failed", epoch=None, best_val_ppl=None, reason=reason, kind="oom"))
    assert history(run) == [Failed(kind="oom", progress=(0, 0))]


def test_a_failure_that_stands_says_why_and_is_nobodys_to_take_up(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.write_failure_once({"kind": "oom", "message": "no memory", "attempt": 1})
    assert may_go_on(run)
    let_stand(run, Decision(why=", after 3 retries with ever smaller micro-batches"))
    assert run.observe().reason == "oom: no memory, after 3 retries with ever smaller micro-batches"
    assert not may_go_on(run)


# -- boundaries ----------------------------------------------------------------------------------------------------


def test_one_step_is_progress() -> None:
    failures = [Failed(kind="node", progress=progress) for progress in ((0, 0), (0, 1))]
    policy = Policy(max_stalled_retries=1)
    assert decide(policy, failures[:1], failures[1], most_micro_batches=1).delay == 1


def test_a_limit_of_two_allows_two_retries() -> None:
    policy = Policy(timeout=2, max_stalled_retries=100)
    assert [ask(policy, *["timeout"] * number).delay is not None for number in (1, 2, 3)] == [True, True, False]


def test_one_retry_and_one_micro_batch_are_singular() -> None:
    assert ask(Policy(max_stalled_retries=1), "node", "node").why == ", after 1 retry in a row without progress"
    why = decide(Policy(oom=None), [], Failed(kind="oom"), most_micro_batches=1).why
    assert why == ", with 1 micro-batch a step; its ranks have too few columns for smaller ones"


def test_a_run_short_of_memory_waits_one_second_however_often_it_failed() -> None:
    assert [ask(Policy(oom=None), *["oom"] * number).delay for number in (1, 2, 5)] == [1, 1, 1]


def test_the_wait_after_thousands_of_retries_is_the_longest_one() -> None:
    assert ask(Policy(max_stalled_retries=100_000), *["node"] * 5_000).delay == 300


@pytest.mark.parametrize("content", [{"epoch": "1", "step": 3}, {"epoch": 1, "step": None}, {"step": 3}, {}])
def test_a_position_without_two_whole_numbers_says_nothing(tmp_path: Path, content: dict[str, Any]) -> None:
    run = made(tmp_path)
    position(run, **content)
    assert progress_of(run) == (0, 0)


def test_an_attempt_without_a_failure_and_one_whose_record_is_damaged_count_for_nothing(tmp_path: Path) -> None:
    run = made(tmp_path)
    for attempt, text in ((2, '{"kind": "node"}'), (3, "{"), (4, '{"kind": "oom"}')):
        run.attempt_dir(attempt).mkdir()
        (run.attempt_dir(attempt) / "failure.json").write_text(text)
    assert [failed.kind for failed in history(run)] == ["node", "oom"]


@pytest.mark.parametrize("told", [None, 7, "12", [1], [1, 2, 3], [1, "x"], ["x", 1], {"1": 1, "2": 2}])
def test_a_failure_that_does_not_say_its_progress_has_the_one_given(told: Any) -> None:
    assert failed_of({"kind": "node", "progress": told}, (2, 3)) == Failed(kind="node", progress=(2, 3))
    assert failed_of({"kind": "node", "progress": [4, 5]}, (2, 3)) == Failed(kind="node", progress=(4, 5))
    assert failed_of({"kind": "node"}) == Failed(kind="node", progress=None)


@pytest.mark.parametrize(("told", "parts"), [(None, 1), ("4", 1), (-2, 1), (0, 1), (1, 1), (2, 2)])
def test_micro_batches_of_a_failure_are_one_unless_it_has_a_positive_number(told: Any, parts: int) -> None:
    assert failed_of({"kind": "oom", "micro_batches": told}).micro_batches == parts


def test_only_a_failure_that_may_be_retried_is_there_to_take_up_or_to_let_stand(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert not may_go_on(run), "no failure"
    let_stand(run, Decision(why=", no more"))
    assert not run.failure_file.exists()
    run.failure_file.write_text("{")
    assert may_go_on(run), "damaged by a crash of the machine"
    failure = {"kind": "code", "message": "a bug", "attempt": 1}
    write_json(run.failure_file, failure)
    assert not may_go_on(run)
    let_stand(run, Decision(why=", no more"))
    assert run.read_failure() == failure


def test_a_damaged_failure_is_put_aside_as_one_of_kind_node(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", make_config())
    run.failure_file.write_text("{")
    put_failure_aside(run)
    assert not run.failure_file.exists()
    assert history(run) == [Failed(kind="node", progress=(0, 0))]


@pytest.mark.parametrize("attempts", [0, 1, 3])
def test_a_failure_without_an_attempt_goes_to_the_last_one(tmp_path: Path, attempts: int) -> None:
    run = make_run(tmp_path / "run", make_config())
    for attempt in range(1, attempts + 1):
        run.attempt_dir(attempt).mkdir(parents=True)
    write_json(run.failure_file, {"kind": "node", "message": "lost"})
    put_failure_aside(run)
    found = [path.parent.name for path in sorted(run.path.glob("attempts/*/failure.json"))]
    assert found == [run.attempt_dir(max(1, attempts)).name]
    assert history(run) == [Failed(kind="node", progress=(0, 0))]


def test_what_a_scheduler_knows_counts_only_of_a_failed_run_with_attempts_and_no_failure_of_its_own(
    tmp_path: Path,
) -> None:
    def seen(state: State) -> Observation:
        return Observation(state=state, epoch=None, best_val_ppl=None, reason="oom: SLURM reports so", kind="oom")

    run = make_run(tmp_path / "run", make_config())
    put_failure_aside(run, seen=seen("failed"))
    assert history(run) == [], "no attempt"
    run.attempt_dir(1).mkdir(parents=True)
    put_failure_aside(run)
    put_failure_aside(run, seen=seen("running"))
    assert history(run) == []
    write_json(run.failure_file, {"kind": "node", "message": "lost"})
    put_failure_aside(run, seen=seen("failed"))
    assert [failed.kind for failed in history(run)] == ["node"]


def test_the_record_of_a_failure_that_was_put_aside_has_what_was_given_and_no_more(tmp_path: Path) -> None:
    run = made(tmp_path)
    reason = "oom: SLURM reports OUT_OF_MEMORY"
    put_failure_aside(run, seen=Observation(state="failed", epoch=None, best_val_ppl=None, reason=reason, kind="oom"))
    record = read_json(run.attempt_dir(1) / "failure.json") or {}
    assert record == {"progress": [0, 0], "kind": "oom", "message": reason, "attempt": 1}, "when it failed is unknown"


def test_a_failure_whose_own_record_has_its_progress_keeps_it(tmp_path: Path) -> None:
    run = made(tmp_path)
    position(run, epoch=2, step=0)
    write_json(run.failure_file, {"kind": "node", "message": "lost", "progress": [1, 7], "attempt": 1})
    put_failure_aside(run, by_hand=True)
    assert history(run) == [Failed(kind="node", progress=(1, 7), by_hand=True)]


def test_a_failure_that_the_disk_does_not_let_go_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if path == run.failure_file:
            raise OSError(30, "Read-only file system")

    run = made(tmp_path)
    run.failure_file.write_text('{"kind": "node"}')
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(FileError) as caught:
        put_failure_aside(run)
    assert str(caught.value).startswith(f"cannot remove {run.failure_file}: ")
