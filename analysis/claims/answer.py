"""An answer to a question of the study."""

from dataclasses import dataclass, field

from analysis.claims.claim import Claim


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the data say on one question."""

    name: str
    title: str
    points: list[str]
    """The verdict."""
    details: list[str] = field(default_factory=list)
    """More numbers, which the page folds."""
    claims: list[Claim] = field(default_factory=list)
    evidence: tuple[str, ...] = ()
    """Names of the tables and figures that show it."""


def cannot(name: str, title: str, why: str) -> Answer:
    """Return the answer to a question that the data cannot answer."""
    return Answer(name=name, title=title, points=[f"Cannot be answered: {why}."])
