"""Make a story that fails shorter."""

from collections.abc import Sequence

from tests.simulation.accidents import Accident
from tests.simulation.story import Played, play


def shrunk(seed: int, accidents: Sequence[Accident], failed: Played) -> Played:
    """Return the story of a seed without the accidents that the same check finds the same fault without.

    One accident after the other is left out, the last first, as long as that changes anything. The order of calls
    changes with each, so a fault that needs a certain order may be lost: then the accident stays.
    """
    assert failed.problem is not None
    check, left, best = failed.problem.partition(":")[0], list(accidents), failed
    is_shorter = True
    while is_shorter:
        is_shorter = False
        for place in reversed(range(len(left))):
            fewer = [*left[:place], *left[place + 1 :]]
            played = play(seed, fewer)
            if played.problem is not None and played.problem.partition(":")[0] == check:
                left, best, is_shorter = fewer, played, True
    return best
