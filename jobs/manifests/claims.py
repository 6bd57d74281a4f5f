"""What a manifest gives to the report: published results, expectations, groups, and runs to examine.

None of it is part of a run's configuration. It is kept in ``study.json`` (:mod:`jobs.plan.record`).
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from jobs.manifests.filters import arguments_in, facts_of_spec, meets, parse
from jobs.manifests.reader import Problems
from jobs.spec import RunSpec
from seqlm.errors import UsageError, nearest
from seqlm.references import ComparedMetric, Reference, references_in
from seqlm.schema import Count, Line, Table, Valid, show

_TITLE = 60
"""Most characters of the title of a group."""
Part = Literal[
    "results", "search", "groups", "published", "curves", "expected", "optimizers", "picks", "reliability", "next",
    "cost", "effects", "behaviour", "hyperparameters",
]  # fmt: skip
"""A part of the report that may have a note of the manifest."""
PARTS: tuple[str, ...] = get_args(Part)


# -- tables ----------------------------------------------------------------------------------------------------------


def _ascending(name: str, value: Any) -> Iterator[str]:
    if value[0] > value[1]:
        yield f"{name}: expected {_RANGE}, got {show(value)}"


def _conditions(name: str, value: Any) -> Iterator[str]:
    try:
        parse(value)
    except UsageError as error:
        yield f"{name}: {error}"


def _each_once(name: str, value: Any) -> Iterator[str]:
    for run in dict.fromkeys(value):
        if value.count(run) > 1:
            yield f"{name}: expected each run once, got {show(run)} twice"


_Text = Annotated[Line, Valid("a text in one line of at most 300 characters", most=300)]
_RANGE = "two finite numbers above 0, the lowest and the highest"
_Ppl = Annotated[float, Valid("a finite number above 0", above=0)]
Conditions = Annotated[str, Valid("a text of conditions on runs, such as 'arch=gru lr>1'", check=_conditions)]
_Names = Annotated[tuple[str, ...], Valid("a list of names of runs, at least one", least=1)]


@dataclass(frozen=True, kw_only=True)
class Published(Table):
    """Published results of a run."""

    NAME = "published"

    train_ppl: _Ppl | None = None
    """Published training perplexity of this run after its last epoch."""
    val_ppl: _Ppl | None = None
    """Published best validation perplexity of this run."""
    replications: Annotated[tuple[_Ppl, ...], Valid(_RANGE, least=2, most=2, check=_ascending)] | None = None
    """Lowest and highest best validation perplexity of independent replications: `[156.4, 157.5]`."""
    epochs: Count | None = None
    """Epochs after which these results were published. Default: `train.epochs` as written. A run that trained more is
    compared as it was then."""


@dataclass(frozen=True, kw_only=True)
class Claim(Table):
    """One ``[[expect]]`` as written."""

    text: _Text
    """The expectation in your own words."""
    metric: ComparedMetric = "val_ppl"
    """What is compared."""
    lower: Conditions
    """Conditions on runs, as after `--only`: `"arch=gru"`."""
    higher: Conditions
    """Runs of the other side, chosen in the same way. Each side has at least one run, and no run is on both."""
    why: _Text | None = None
    """Why you expect it. The report prints it only if it came out as expected."""
    otherwise: _Text | None = None
    """What it would mean if the opposite came out. The report prints it only then."""


@dataclass(frozen=True, kw_only=True)
class Report(Table):
    """``[report]``."""

    NAME = "report"

    behaviour: Annotated[_Names, Valid("a list of names of runs, at least one", check=_each_once)] = ()
    """Runs whose models the report examines: names with suffixes, as in `plan`, or patterns (`gru-*`)."""
    groups: Annotated[
        Mapping[Annotated[Line, Valid(most=_TITLE)], _Names],
        Valid(f"a table of titles of at most {_TITLE} characters, each with a list of names of runs, at least one"),
    ] = field(default_factory=dict)
    """Groups of runs with curves and a table of their own: title, then names or patterns."""
    notes: Annotated[
        Mapping[Part, Annotated[str, Valid(least=1)]],
        Valid(f"a table of texts in Markdown by part of the report: {', '.join(PARTS)}"),
    ] = field(default_factory=dict)
    """Your text in Markdown for a part of the report, printed below the computed one under the manifest's name. Results
    replace `{run.NAME.METRIC}` and `{best.ARCHITECTURE.METRIC}`."""


# -- with the runs ---------------------------------------------------------------------------------------------------


def expectations(
    claims: Mapping[int, Claim], specs: Sequence[RunSpec], file: str, problems: Problems
) -> list[dict[str, Any]]:
    """Return the claims with the names of their runs in ``lower`` and ``higher``, in place of conditions.

    ``claims`` are those of the manifest by number, from 1.
    """
    found = []
    facts = [facts_of_spec(spec) for spec in specs] if claims else []
    own = arguments_in(facts)
    for number, claim in claims.items():
        where = f"{file}: expect {number}"
        sides: dict[str, list[str]] = {}
        for side, text in (("lower", claim.lower), ("higher", claim.higher)):
            try:
                conditions = parse(text)
                sides[side] = [known["name"] for known in facts if meets(known, conditions, own)]
            except UsageError as error:
                problems.add(where, f"{side}: {error}")
        wrong = [f"{side}: no run matches {show(getattr(claim, side))}" for side in sides if not sides[side]]
        if both := [name for name in sides.get("lower", ()) if name in set(sides.get("higher", ()))]:
            wrong.append(f"expected different runs in lower and higher, got {show(both[0])} in both")
        for what in wrong:
            problems.add_unmatched(where, what)
        if len(sides) == 2 and not wrong:
            found.append({**vars(claim), **sides})
    return found


def runs_named(
    where: str, patterns: Sequence[str], names: Sequence[str], excluded: Sequence[str], problems: Problems
) -> tuple[str, ...]:
    """Return those of ``names`` that are one of the patterns or match one; each pattern is to match one.

    ``where`` ends with the key of the patterns; ``excluded`` are names of runs that an ``[[exclude]]`` drops.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        found.update(hits)
        if not hits and pattern in excluded:
            problems.add_unmatched(where, f"an [[exclude]] drops {show(pattern)}")
        elif not hits:
            got = f"got {show(pattern)}{nearest(pattern, names)}"
            problems.add_unmatched(where, f"expected the name of a run or a pattern, {got}")
    return tuple(name for name in names if name in found)


def check_notes(notes: Mapping[str, str], specs: Sequence[RunSpec], file: str, problems: Problems) -> None:
    """Add a line for each reference of a note that is wrong, or that names no run or architecture of the manifest."""
    names = {
        "run": ("the name of a run", [spec.name for spec in specs]),
        "best": ("an architecture of the manifest", [*dict.fromkeys(spec.config.model.kind for spec in specs)]),
    }
    for part, text in notes.items():
        where = f"{file}: report.notes.{part}"
        for written in dict.fromkeys(references_in(text)):
            try:
                found = Reference.parse(written)
            except UsageError as error:
                problems.add(where, str(error))
                continue
            what, known = names[found.kind]
            if found.name not in known:
                got = f"got {show(found.name)} in {{{written}}}{nearest(found.name, known)}"
                problems.add_unmatched(where, f"expected {what}, {got}")
