"""References of a manifest's notes to results: ``{best.gru.val_ppl}``, ``{run.gru-adam.test_ppl}``.

A reference is text in braces that starts with a letter and has a full stop and no space. Other braces, such as those
of a formula, are plain text.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from seqlm.errors import UsageError, nearest
from seqlm.schema import show

Metric: TypeAlias = Literal["val_ppl", "train_ppl", "test_ppl", "gap", "final_gap", "wall_seconds", "epoch_seconds"]
"""A result of a run that a manifest names in a reference. Of each, less is better."""
ComparedMetric: TypeAlias = Literal[Metric, "seconds_to_common"]
"""What an ``[[expect]]`` compares: such a result, or the time to the lowest perplexity that both sides reach."""
METRICS: tuple[str, ...] = get_args(Metric)
FORMS = "{run.NAME.METRIC} or {best.ARCHITECTURE.METRIC}"
_WRITTEN = re.compile(r"\{([A-Za-z][^\s{}]*\.[^\s{}]*)\}")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference to a result."""

    kind: str
    """``run``, or ``best``: the setting of an architecture with the lowest validation perplexity."""
    name: str
    """Of a run in the manifest as written, or of an architecture."""
    metric: str
    """One of ``METRICS``."""

    @classmethod
    def parse(cls, written: str) -> "Reference":
        """Return the reference that is written between braces.

        >>> Reference.parse("run.gru-keep0.5.val_ppl")
        Reference(kind='run', name='gru-keep0.5', metric='val_ppl')

        Raises:
            UsageError: it is none; one line says what is right.
        """
        kind, _, rest = written.partition(".")
        name, _, metric = rest.rpartition(".")
        if kind not in ("run", "best") or not name:
            raise UsageError(f"expected {FORMS}, got {show(f'{{{written}}}')}")
        if metric not in METRICS:
            found = f"{show(metric)} in {{{written}}}{nearest(metric, METRICS)}"
            raise UsageError(f"expected one of {', '.join(METRICS)}, got {found}")
        return cls(kind=kind, name=name, metric=metric)


def references_in(text: str) -> list[str]:
    """Return what is written between the braces of each reference of a text, right or wrong."""
    return _WRITTEN.findall(text)


def runs_in(text: str) -> list[str]:
    """Return the name of each run that a text refers to. Its references are right."""
    found = [Reference.parse(written) for written in references_in(text)]
    return [*dict.fromkeys(one.name for one in found if one.kind == "run")]


def fill_references(text: str, value_of: Callable[[Reference], str]) -> str:
    """Return a text with the value of each reference in its place. A reference that is wrong stays as it is written."""

    def value(match: re.Match[str]) -> str:
        try:
            return value_of(Reference.parse(match[1]))
        except UsageError:
            return match[0]

    return _WRITTEN.sub(value, text)
