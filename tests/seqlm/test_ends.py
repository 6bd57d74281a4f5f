"""How an attempt ended, from its witnesses in any order, and whether its failure is final."""

import itertools
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jobs.launch.prepare import record_what_scheduler_knows
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun, plan
from jobs.spec import RunSpec
from seqlm.ends import End, Verdict, end_of, verdict
from seqlm.errors import FileError
from seqlm.files import write_json, write_json_lines
from seqlm.records.attempts import Exit, RankEnd, Start
from seqlm.resources import Resources
from seqlm.rundir import Observation, RunDirectory
from seqlm.state import KINDS, FailureKind, Kind, State, View
from tests.commands import ask
from tests.facts import fail, launch_again
from tests.seqlm.training.studies import make_config, make_run

T = TypeVar("T")

POLICY = Policy()


def failed(kind: FailureKind | None, **more: Any) -> End:
    return End(attempt=1, kind=kind, **more)


def judge(policy: Policy, *ends: End) -> Verdict:
    """The verdict about the last of some failures."""
    return verdict(policy.to_dict(), ends, most_micro_batches=64)


# -- what the witnesses say ----------------------------------------------------------------------------------------

RANKS = [
    RankEnd(rank=0, outcome="failed", kind="node", message="lost rank 1", peer_lost=True),
    RankEnd(rank=1, outcome="failed", kind="code", message="a bug"),
    RankEnd(rank=2, outcome="failed", kind="oom", message="too large"),
    RankEnd(rank=3, outcome="interrupted"),
]
EXITS = [
    Exit(kind="oom", message="killed for its memory", exit_code=-9),
    Exit(kind="node", message="killed", exit_code=-9),
    Exit(kind="node", message="aborted", exit_code=-6),
    Exit(kind="timeout", message="the time limit"),
    Exit(kind=None, message="ended", exit_code=143),
]
STRENGTH = ["killed for its memory", "too large", "killed", "a bug", "aborted", "lost rank 1", "the time limit", ""]
"""The strongest first."""


def test_the_strongest_witness_counts_in_whatever_order_they_are_read() -> None:
    for ranks, exits in itertools.product(_subsets(RANKS), _subsets(EXITS)):
        said = {record.message for record in (*ranks, *exits) if record.kind} or {""}
        expected = next(message for message in STRENGTH if message in said)
        found = {end_of(1, some, others).message for some in (ranks, ranks[::-1]) for others in (exits, exits[::-1])}
        assert found == {expected}


def _subsets(records: list[T]) -> list[list[T]]:
    return [list(some) for size in range(len(records) + 1) for some in itertools.combinations(records, size)]


def test_a_kind_that_this_version_does_not_know_is_an_error_of_the_code() -> None:
    later = end_of(1, [RankEnd(kind="later", message="x")], [])
    assert (later.kind, later.message) == ("code", "x")


# -- whether a failure is final ------------------------------------------------------------------------------------


def row(*kinds: FailureKind | None, **more: Any) -> list[End]:
    """Failures of these kinds, none of which has saved anything."""
    return [failed(kind, progress=(0, 0), **more) for kind in kinds]


def gaining(kind: FailureKind, number: int) -> list[End]:
    """Failures with an epoch before each."""
    return [failed(kind, progress=(epoch, 0)) for epoch in range(number)]


IN_A_ROW = ", after {} retries in a row without progress"
FEW_COLUMNS = ", with 64 micro-batches a step; its ranks have too few columns for smaller ones"


@pytest.mark.parametrize(
    ("policy", "ends", "expected"),
    [
        *(({}, row(kind), "") for kind in ("diverged", "code", "cancelled", None)),
        # Each wait is longer than the one before, up to a limit.
        *(
            ({"max_stalled_retries": 7}, row(*["node"] * n), s)
            for n, s in enumerate((1, 5, 25, 125, 300, 300), start=1)
        ),
        ({"max_stalled_retries": 7}, row(*["node"] * 8), IN_A_ROW.format(7)),
        ({"max_stalled_retries": 100_000}, row(*["node"] * 5_000), 300),
        # A row is counted whatever its kinds. Progress starts the count again, but not what is regained.
        ({"max_stalled_retries": 3}, row("node", "preempted", "timeout"), 25),
        (
            {"max_stalled_retries": 3},
            row("node", "preempted", "timeout", "node"),
            IN_A_ROW.format(3),
        ),
        ({"max_stalled_retries": 2}, [*row("node", "node"), failed("node", progress=(0, 40))], 1),
        (
            {"max_stalled_retries": 2},
            [failed("node", progress=progress) for progress in ((3, 0), (2, 0), (3, 0))],
            IN_A_ROW.format(2),
        ),
        ({}, gaining("node", 300), 1),
        # Kinds are counted apart, and a time limit however much was gained in between.
        ({"oom": 1, "timeout": 1}, row("oom", "timeout"), 5),
        ({"timeout": 1, "max_stalled_retries": 9}, row("timeout", "oom", "timeout"), ", after 1 retry of this kind"),
        ({"timeout": 2}, gaining("timeout", 3), ", after 2 retries of this kind"),
        # Memory: at once, in ever smaller parts.
        ({"oom": 1}, row("timeout", "oom", "oom"), ", after 1 retry with ever smaller micro-batches"),
        ({"oom": None}, row(*["oom"] * 5), 1),
        ({"oom": None}, row("oom", micro_batches=32), 1),
        ({"oom": None}, row("oom", micro_batches=64), FEW_COLUMNS),
        *(
            ({key: 0}, row(kind), f"; not tried again, since policy.{key} is 0")
            for kind in ("oom", "timeout", "node", "preempted")
            for key in (kind, "max_stalled_retries")
        ),
    ],
)
def test_a_failure_is_tried_again_after_so_many_seconds_or_is_final_for_a_reason(
    policy: dict[str, Any], ends: list[End], expected: float | str
) -> None:
    found = judge(Policy(**policy), *ends)
    assert (found.why if found.delay is None else found.delay) == expected


def test_a_node_that_failed_twice_in_a_row_is_sick() -> None:
    ends = [failed("node", node=node, progress=(0, n)) for n, node in enumerate(("a", "b", "b", None, None, "c"))]
    assert judge(POLICY, *ends).sick_nodes == ("b",)


@pytest.mark.parametrize("policy", [{}, {"oom": "many", "node": True, "max_stalled_retries": None}])
def test_a_policy_that_is_missing_or_damaged_allows_no_retry(policy: dict[str, Any]) -> None:
    for kind in ("oom", "node", "code"):
        assert verdict(policy, [failed(kind)], most_micro_batches=64).delay is None  # type: ignore[arg-type]


def test_a_new_kind_of_failure_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests of the launch are older than the kind, so that their policy does not name it."""
    monkeypatch.setitem(KINDS, "disk", Kind(retries=2, is_free=True, advice="free some space"))  # type: ignore[misc]
    run = make_run(tmp_path / "study" / "run-00000001", make_config())
    launch_again(run, Policy().to_dict())
    for attempt in (1, 2, 3):
        run.attempt_dir(attempt).mkdir(parents=True)
        fail(run, {"kind": "disk", "message": "no space"})
        seen = run.observe()
        assert (seen.state, seen.kind, seen.is_final) == ("failed", "disk", attempt == 3)
    assert run.observe().reason == "disk: no space, after 2 retries of this kind"
    spec = RunSpec(name="run", config=run.read_config(), resources=Resources())
    assert plan(spec, run, run.observe(), has_checkpoint=True, retry=False).action == "resume", "it is no fault of it"
    run_view = View(stage="ended", reason="its job found no space", kind="disk")  # type: ignore[arg-type]
    other = make_run(tmp_path / "study" / "run-00000002", make_config())
    assert not other.observe(run_view).is_final
    (shown,) = (ask(["why", "study", "run-00000001", "--runs-dir", "."], folder=tmp_path, env={}))["runs"]
    assert shown["details"]["do"] == "free some space"


# -- what files tell -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path / "study" / "run-00000001", make_config())
    run.attempt_dir(1).mkdir(parents=True)
    return run


def test_progress_is_epochs_or_a_later_checkpoint(run: RunDirectory) -> None:
    assert run.progress() == (0, 0)
    write_json(run.position_file, {"epoch": 0, "step": 40})
    assert run.progress() == (0, 40)
    write_json_lines(run.metrics_file, [{"epoch": 0, "val_ppl": 9.0}])
    assert run.progress() == (1, 0)
    write_json(run.position_file, {"epoch": 1, "step": 7})
    assert run.progress() == (1, 7)
    for damage in ("{", '{"epoch": "1", "step": 3}', '{"epoch": 1, "step": null}', "{}"):
        run.position_file.write_text(damage)
        assert run.progress() == (1, 0), "a damaged file says nothing"


def test_a_failure_is_final_or_not_as_the_policy_of_the_newest_request_says(run: RunDirectory) -> None:
    launch_again(run, Policy(node=1).to_dict())
    for attempt, is_final in ((2, False), (3, True)):
        run.attempt_dir(attempt).mkdir()
        fail(run, {"kind": "node", "message": "lost"})
        seen = run.observe()
        assert (seen.state, seen.is_final, run.has_ended()) == ("failed", is_final, is_final)
        assert run.observe(View(stage="queued")).state == ("failed" if is_final else "queued")
    assert run.observe().reason == "node: lost, after 1 retry of this kind"
    launch_again(run)
    assert run.observe().state == "pending", "a later request: the failure is history"


def test_the_first_witness_of_a_kind_stands(run: RunDirectory) -> None:
    for message in ("first", "what followed"):
        run.write_end(1, RankEnd(kind="code", message=message))
        run.write_exit(1, Exit(kind="node", message=message, exit_code=-9))
    assert run.end(1).message == "first"
    assert not list(run.path.rglob(".*.tmp"))


def test_an_exit_is_written_only_if_it_adds_something(run: RunDirectory) -> None:
    run.write_end(1, RankEnd(outcome="failed", kind="diverged", message="nan"))
    run.write_exit(1, Exit(kind="code", message="exit code 1", exit_code=1))
    assert not run.exit_file(1).exists()
    run.write_exit(2, Exit(kind=None, message="ended", exit_code=143))
    assert run.end(2).has_ended


def test_a_job_that_ends_badly_is_no_fault_of_a_run_whose_attempt_it_had_begun(run: RunDirectory) -> None:
    view = View(stage="ended", reason="SLURM reports FAILED", kind="code")
    assert run.observe(view).kind == "node", "its process was killed, or could not write"
    launch_again(run)
    assert run.observe(view).kind == "code", "it has not come to an attempt"


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 40, b"[]", b"\xff"])
def test_a_damaged_record_is_a_failure_of_kind_node_and_stops_nothing(run: RunDirectory, content: bytes) -> None:
    run.end_file(1).write_bytes(content)
    seen = run.observe()
    assert (seen.state, seen.kind) == ("failed", "node")
    assert "end.json is damaged" in (seen.reason or "")


def test_a_record_that_the_disk_does_not_read_is_an_error(run: RunDirectory) -> None:
    run.end_file(1).mkdir()
    with pytest.raises(FileError, match=r"cannot read .*end\.json: expected a regular file, found a folder"):
        run.observe()


@pytest.mark.parametrize("state", ["failed", "running", "cancelled"])
def test_what_only_a_scheduler_knows_is_put_on_record(run: RunDirectory, state: State) -> None:
    Start(micro_batches=4).write(run.attempt_dir(1))
    seen = Observation(state=state, reason="oom: SLURM reports OUT_OF_MEMORY", kind="oom")
    item = PlannedRun(
        spec=RunSpec(name="a", config=make_config()), run=run, observation=seen, action="start", reason=None
    )
    record_what_scheduler_knows(item)
    found = run.failures()
    if state == "failed":
        assert [(end.kind, end.message, end.micro_batches) for end in found] == [
            ("oom", "SLURM reports OUT_OF_MEMORY", 4)
        ]
    else:
        assert found == []
