"""The table of the states of a run, from the rows of :mod:`seqlm.state`."""

from __future__ import annotations

from seqlm.state import ROWS
from tests.reference.markdown import table


def parts() -> dict[str, str]:
    """Return the Markdown of the generated parts by name."""
    rows = [[str(n), row.condition, f"`{row.state}`", row.reason or "-"] for n, row in enumerate(ROWS, start=1)]
    return {"states": table(["", "if", "state", "reason"], rows)}
