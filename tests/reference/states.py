"""The table of the states of a run, from the rows of :mod:`seqlm.state`."""

from __future__ import annotations

from seqlm.state import Facts, View, rows
from tests.reference.markdown import table


def parts() -> dict[str, str]:
    """Return the Markdown of the generated parts by name."""
    found = enumerate(rows(Facts(), View(), lambda: None), start=1)
    lines = [[str(n), row.condition, f"`{row.found.state}`", row.meaning or "-"] for n, row in found]
    return {"states": table(["", "if", "state", "reason"], lines)}
