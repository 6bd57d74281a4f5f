"""Whose turn it is among launches that share GPUs, and what a launch leaves free."""

import random

import pytest

from jobs.backends.cards import Standing, first_in_line, withhold_left


def standing(token: str, holds: float, needs: float | None, turn: float = 0.0) -> Standing:
    return Standing(token=token, holder=token, holds=holds, needs=needs, turn=turn)


@pytest.mark.parametrize(
    ("own", "others", "gpus", "first"),
    [
        (standing("a", 3, 1), [], 4, None),
        (standing("a", 3, 1), [standing("b", 0, None)], 4, None),
        (standing("a", 3, 1), [standing("b", 0, 1)], 4, "b"),
        (standing("a", 3, None), [standing("b", 0, 2)], 4, "b"),
        (standing("a", 2, 1), [standing("b", 2, 1)], 4, None),
        (standing("a", 2, 1), [standing("b", 1, 1)], 3, "b"),
        (standing("a", 1, 1, turn=5), [standing("b", 1, 1, turn=4)], 3, "b"),
        (standing("a", 1, 1, turn=3), [standing("b", 1, 1, turn=4)], 3, None),
        (standing("a", 0, 1, turn=5), [standing("b", 0, 1, turn=4)], 1, "b"),
        (standing("a", 0.25, 0.25), [standing("b", 0, 0.5)], 1, "b"),
        (standing("a", 3, 1), [standing("wide", 0, 4)], 4, None),
        (standing("a", 3, 1), [standing("wide", 0, 2)], 4, "wide"),
        (standing("a", 2, 1), [standing("b", 1, 1), standing("c", 0, 1)], 4, "c"),
    ],
)
def test_what_is_free_goes_to_the_waiting_launch_below_its_share_that_holds_least(
    own: Standing, others: list[Standing], gpus: float, first: str | None
) -> None:
    found = first_in_line(own, others, gpus)
    assert (None if found is None else found.token) == first


@pytest.mark.parametrize("seed", range(20))
def test_no_gpu_is_idle_while_a_launch_waits_and_each_gets_its_share(seed: int) -> None:
    chance = random.Random(seed)
    gpus, number = chance.randint(1, 8), chance.randint(2, 4)
    holds, left = [0] * number, [chance.randint(1, 30) for _ in range(number)]
    arrives, turns = [0, *(chance.randint(1, 20) for _ in range(number - 1))], [0.0] * number
    starts: list[list[int]] = [[] for _ in range(number)]
    for step in range(1000):
        running = [one for one in range(number) for _ in range(holds[one])]
        if running and chance.random() < 0.5:
            ended = chance.choice(running)
            holds[ended] -= 1
            turns[ended] = step + 0.5
        for _ in range(gpus - sum(holds)):
            there = [one for one in range(number) if arrives[one] <= step and (left[one] or holds[one])]
            all_of_them = [standing(str(one), holds[one], 1 if left[one] else None, turns[one]) for one in there]
            may = [
                int(own.token)
                for own in all_of_them
                if own.needs is not None
                and first_in_line(own, [one for one in all_of_them if one is not own], gpus) is None
            ]
            assert may or not any(left[one] for one in there), "a launch waits, and none may start"
            if may:
                one = chance.choice(may)
                left[one], holds[one], turns[one] = left[one] - 1, holds[one] + 1, step + 0.6
                starts[one].append(step)
    assert not any(left)
    for one in range(1, number):
        waited = [step for step in starts[0] if arrives[one] <= step < starts[one][0]]
        assert len(waited) <= gpus, "the first launch has not started all of its runs before another's first"


def test_a_launch_leaves_gpus_that_it_does_not_use_the_fullest_first() -> None:
    free = {"a": 0.0, "b": 1.0, "c": 0.5, "d": 1.0}
    withhold_left(free, {"a"}, leave=2)
    assert free in ({"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0}, {"a": 0.0, "b": 0.0, "c": 0.0, "d": 1.0})
    free = {"a": 0.5, "b": 0.0}
    withhold_left(free, {"a", "b"}, leave=1)
    assert free == {"a": 0.5, "b": 0.0}, "shares of GPUs that it uses already are no further GPUs"
