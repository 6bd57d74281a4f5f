"""Write the tables of docs/environment.md between their markers: ``python -m tests.variable_tables``."""

from __future__ import annotations

import re
from pathlib import Path

from seqlm.environment import VARIABLES, Variable

PAGE = Path(__file__).parents[1] / "docs" / "environment.md"
MARKED = re.compile(r"(<!-- variables: (\w+), written by tests/variable_tables\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str) -> str:
    """The page with its tables as they should be."""
    return MARKED.sub(lambda found: f"{found[1]}\n{table(is_internal=found[2] == 'internal')}\n{found[3]}", text)


def table(*, is_internal: bool) -> str:
    rows = ["| variable | value | default | meaning |", "|---|---|---|---|"]
    rows += [row(variable) for variable in VARIABLES if variable.is_internal == is_internal]
    return "\n".join(rows) + "\n"


def row(variable: Variable[object]) -> str:
    cells = [f"`{variable.name}`", variable.expected, variable.default_words, variable.meaning]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
