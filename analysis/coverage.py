"""Which architecture has been run with which optimizer, and how far that has come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from analysis import units
from analysis.load import Study
from analysis.tables import in_report_order

EXCLUDED, ABSENT = "excluded", "absent"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one combination that are in the same state."""

    state: str
    """For a failure with its kind: ``failed: oom``."""
    number: int
    """How many they are."""
    runs: list[int]
    """Their numbers; those that have a directory."""

    @property
    def style(self) -> str:
        return self.state.partition(":")[0]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The matrix, both axes in the report's order."""

    kind: ClassVar[str] = "coverage"

    name: str = "coverage"
    optimizers: list[str]
    lines: list[tuple[str, list[list[Group]]]]
    """For each architecture, and in it for each optimizer: the groups of its runs."""


def coverage(study: Study) -> Coverage:
    """Group the runs by architecture and optimizer, then by state; absent and excluded ones too."""
    found: list[tuple[str, str, str, int | None]] = []
    for run in in_report_order(study.runs).to_dict("records"):
        state = f"failed: {run['failure_kind']}" if run["state"] == "failed" and run["failure_kind"] else run["state"]
        found.append((units.architecture(run["arch"]), units.optimizer(run["optimizer"]), state, run["number"]))
    for absent in study.absent:
        if absent.arch is not None:
            found.append((units.architecture(absent.arch), units.optimizer(absent.optimizer), ABSENT, None))
    for excluded in study.excluded:
        found.append((units.architecture(excluded.arch), units.optimizer(excluded.optimizer), EXCLUDED, None))
    archs = _in_order(units.ARCHITECTURES, [arch for arch, *_ in found])
    optimizers = _in_order(units.OPTIMIZERS, [optimizer for _, optimizer, *_ in found])

    def cell(arch: str, optimizer: str) -> list[Group]:
        members = [(state, number) for a, o, state, number in found if (a, o) == (arch, optimizer)]
        counts = Counter(state for state, _ in members)
        return [
            Group(state=state, number=count, runs=[n for s, n in members if s == state and n is not None])
            for state, count in counts.items()
        ]

    return Coverage(optimizers=optimizers, lines=[(arch, [cell(arch, o) for o in optimizers]) for arch in archs])


def _in_order(known: dict[str, str], names: list[str]) -> list[str]:
    return [name for name in [*known.values(), units.UNKNOWN] if name in names]
