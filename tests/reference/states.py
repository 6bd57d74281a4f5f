"""The table of the states of a run, from the rows of :mod:`seqlm.state`."""

import inspect
import re

from seqlm.state import Facts, View, rows
from tests.reference.markdown import table


def described() -> list[tuple[str, str]]:
    """Return condition and meaning of each row, from the comment above it. The meaning is empty without a reason."""
    comments = re.findall(r"(?:    #: .*\n)+", inspect.getsource(rows))
    texts = (" ".join(comment.replace("#:", "").split()).partition(" -> ") for comment in comments)
    return [(condition, meaning) for condition, _, meaning in texts]


def parts() -> dict[str, str]:
    """Return the Markdown of the generated parts by name."""
    found = enumerate(zip(described(), rows(Facts(), View(), lambda: None), strict=True), start=1)
    lines = [[str(n), condition, f"`{state.state}`", meaning or "-"] for n, ((condition, meaning), (_, state)) in found]
    return {"states": table(["", "if", "state", "reason"], lines)}
