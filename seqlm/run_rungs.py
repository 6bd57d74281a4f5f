"""The records of a run about its study's search, which decides at rungs which runs go on (:mod:`seqlm.search`).

Standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqlm.errors import DamagedFileError
from seqlm.files import read_json
from seqlm.run_layout import RunLayout


class RungRecords(RunLayout):
    """The part of a run's folder that a search writes."""

    def read_stopped(self) -> dict[str, Any] | None:
        """Return why the search stopped the run; ``None``: it has not.

        Raises:
            FileError: the record cannot be read.
        """
        return read_json(self.stopped_file)

    def read_rungs(self) -> dict[str, dict[str, Any]]:
        """Return the decisions of the search, by rung. Those of a damaged record are made again.

        Raises:
            FileError: the record cannot be read.
        """
        try:
            found = read_json(self.rungs_file) or {}
        except DamagedFileError:
            return {}
        return {rung: entry for rung, entry in found.items() if rung.isdecimal() and isinstance(entry, dict)}

    def waits_at_rung(self) -> bool:
        """Return whether the run left at a rung and nothing has been decided about it.

        Raises:
            FileError: the record cannot be read.
        """
        return any(entry.get("decision") == "waits" for entry in self.read_rungs().values())


def stopped_reason(stopped: Mapping[str, Any]) -> str:
    """Return the content of ``stopped.json`` in one line, such as ``stopped at epoch 9: 5th of 12, keeps 4``."""
    rank = stopped.get("rank")
    place = ordinal(rank) if isinstance(rank, int) else "?"
    return f"stopped at epoch {stopped.get('rung')}: {place} of {stopped.get('of')}, keeps {stopped.get('goes_on')}"


def ordinal(number: int) -> str:
    """Return a place as text.

    >>> [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '13th', '21st', '102nd', '111th']
    """
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
