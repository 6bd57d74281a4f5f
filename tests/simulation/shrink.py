"""Make a story that fails shorter."""

from collections.abc import Iterator, Sequence

from tests.simulation.accidents import Accident
from tests.simulation.story import Played, play
from tests.simulation.study import Study


def shrunk(failed: Played) -> Played:
    """Return the story of a seed with as few accidents, runs, jobs and nodes as the same check fails with.

    One accident after the other is left out, the last first; then the study is made smaller, step by step. Each
    changes the order of calls, so a fault that needs a certain order may be lost: then that step is not taken.
    """
    best, is_shorter = failed, True
    while is_shorter:
        is_shorter = False
        for study, accidents in _shorter(best.study, best.accidents):
            played = play(best.seed, accidents, study)
            if played.check == failed.check:
                best, is_shorter = played, True
                break
    return best


def _shorter(study: Study, accidents: Sequence[Accident]) -> Iterator[tuple[Study, Sequence[Accident]]]:
    for place in reversed(range(len(accidents))):
        yield study, [*accidents[:place], *accidents[place + 1 :]]
    for smaller in study.smaller():
        yield smaller, accidents
