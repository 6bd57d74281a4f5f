"""Faults that the simulation finds and that are not mended yet. The list is to become empty."""

from dataclasses import dataclass

from tests.simulation.story import Played


@dataclass(frozen=True, kw_only=True)
class Known:
    """A fault: which check finds it, after which accidents, and what happens then."""

    check: str
    accidents: frozenset[str]
    """Accidents all of which it needs."""
    of_several_nodes: bool = False
    """Whether it happens to jobs of several nodes alone."""
    story: str


KNOWN: tuple[Known, ...] = ()


def known(played: Played) -> Known | None:
    """Return the fault that explains what a check has found in a story. ``None``: it is a new one, or all is well."""
    for one in KNOWN:
        is_of_its_jobs = not one.of_several_nodes or played.study.ranks_per_node is not None
        if one.check == played.check and one.accidents <= played.happened and is_of_its_jobs:
            return one
    return None
