"""The state of a run over all combinations of facts and views."""

import itertools
from collections.abc import Callable, Iterator
from typing import TypeAlias, get_args

from seqlm.state import Facts, FailureKind, RunState, Stage, State, View, rows, state_of
from tests.reference.states import described

EMPTY = [*rows(Facts(), View(), lambda: None)]

Case: TypeAlias = tuple[Facts, View, Callable[[], str | None]]


def cases() -> Iterator[Case]:
    ends = itertools.product(get_args(FailureKind), [False, True])
    failures = [
        None,
        *(
            RunState("cancelled" if kind == "cancelled" else "failed", f"{kind}: why", kind, is_final=is_final)
            for kind, is_final in ends
        ),
    ]
    views = [View(stage=stage, reason=reason) for stage in get_args(Stage) for reason in ("", "so it says")]
    views += [View(stage="ended", reason="it ended", kind=kind) for kind in get_args(FailureKind)]
    flags = list(itertools.product([False, True], repeat=4))
    texts = itertools.product([None, "damage"], [None, "stopped"], [None, "spent"])
    for (damage, stopped, spent), (done, owner, attempt, cancelled) in itertools.product(texts, flags):
        for failure, view in itertools.product(failures, views):
            facts = Facts(
                damage=damage,
                is_done=done,
                has_owner=owner,
                is_cancelled=cancelled,
                stopped=stopped,
                failure=failure,
                has_attempt=attempt,
                epochs=2 if attempt else 0,
            )
            yield facts, view, lambda spent=spent: spent  # type: ignore[misc]


def test_every_run_has_a_state_and_every_row_is_reached() -> None:
    documented = [(found.state, meaning) for (_, found), (_, meaning) in zip(EMPTY, described(), strict=True)]
    reached, states = set(), set()
    for case in cases():
        place, found = next((place, found) for place, (holds, found) in enumerate(rows(*case)) if holds)
        assert found == state_of(*case)
        state, meaning = documented[place]
        reached.add(place)
        states.add(found.state)
        assert found.state == state
        assert (found.kind is None) == (found.state not in ("failed", "cancelled"))
        assert found.reason != ""
        assert meaning or found.reason is None or found.state == "running"
    assert reached == {*range(len(documented))}
    assert states == set(get_args(State))


def test_a_scheduler_that_does_not_answer_makes_no_run_failed() -> None:
    for facts, view, spent in cases():
        if view.stage == "unknown" and not (facts.failure or facts.damage or facts.is_cancelled):
            assert state_of(facts, view, spent).state not in ("failed", "cancelled")


def test_a_run_that_is_not_over_says_how_its_last_attempt_failed() -> None:
    """Whether its launcher waits, has just started the next attempt, or was stopped in it."""
    again = RunState("failed", "oom: no memory", "oom", is_final=False)
    queued = View(stage="queued", reason="needs 1 GPU, 0 free")
    last = [Facts(failure=again, has_attempt=True), Facts(before="oom: no memory", has_attempt=True)]
    for facts, view in [*((facts, queued) for facts in last), (last[1], View())]:
        found = state_of(facts, view)
        assert found.state in ("queued", "pending")
        assert "oom: no memory" in str(found.reason)
        assert view.reason in str(found.reason)


def test_a_result_counts_whatever_else_is_known() -> None:
    assert all(state_of(*case).state == "done" for case in cases() if case[0].is_done and not case[0].damage)
