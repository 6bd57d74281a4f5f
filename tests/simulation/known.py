"""Faults that the simulation finds and that are not mended yet. The list is to become empty."""

from dataclasses import dataclass

from tests.simulation.story import Played


@dataclass(frozen=True, kw_only=True)
class Known:
    """A fault: which check finds it, after which accidents, and what happens then."""

    check: str
    accidents: frozenset[str]
    """Accidents all of which it needs."""
    story: str


KNOWN: tuple[Known, ...] = ()


def known(played: Played) -> Known | None:
    """Return the fault that explains what a check has found in a story. ``None``: it is a new one, or all is well."""
    for one in KNOWN:
        if one.check == played.check and one.accidents <= played.happened:
            return one
    return None
