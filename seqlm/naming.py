"""Which runs a text names, by one rule for commands and for Python.

The numbers of a table name no run: they change when runs are added.
"""

import fnmatch
import re
from collections.abc import Collection, Hashable, Iterable
from typing import NamedTuple

from seqlm.errors import UsageError, nearest

BEST = "best"
"""Names the run with the lowest validation perplexity, unless a run is called so."""
MOST_LISTED = 8
"""Most values that a message lists."""


class UnknownRunError(UsageError):
    """A text names no run of a study."""


class Candidate(NamedTuple):
    """What names a run."""

    id: str
    name: str
    val_ppl: float | None
    """Its lowest validation perplexity. ``None``: it has finished no epoch."""
    text: Hashable
    """What tells its text and vocabulary from others."""


def listing(values: Collection[str]) -> str:
    """Return the first values with commas between them."""
    shown = list(values)[:MOST_LISTED]
    return ", ".join(shown) + (", ..." if len(values) > MOST_LISTED else "")


def whole_id(text: str, ids: Collection[str]) -> str | None:
    """Return the id that equals or begins with ``text``. ``None``: there is no such id.

    Raises:
        UsageError: several ids begin with ``text``, and none equals it.
    """
    if text in ids:
        return text
    found = [run_id for run_id in ids if run_id.startswith(text)]
    if len(found) > 1:
        raise UsageError(f'"{text}" begins {len(found)} ids; write more of one of them: {listing(found)}')
    return found[0] if found else None


def ids_named(text: str, runs: Iterable[Candidate], study: str) -> list[str]:
    """Return the ids of the ``runs`` of a ``study`` that a text names.

    It names them by name, as ``best``, by a shell-style pattern, by id, or by the beginning of an id; the first of
    these that fits counts.

    Raises:
        UnknownRunError: the text names no run.
        UsageError: several ids begin so, or the best of runs on different texts is wanted.
    """
    runs = list(runs)
    named = [run.id for run in runs if run.name == text]
    if not named and text == BEST:
        return [_best_of(runs, study)]
    if not named and any(mark in text for mark in "*?["):
        named = [run.id for run in runs if fnmatch.fnmatchcase(run.name, text)]
    if not named and (run_id := whole_id(text, [run.id for run in runs])) is not None:
        named = [run_id]
    if not named:
        hint = nearest(text, [run.name for run in runs])
        if re.fullmatch(r"\d+[a-z]?", text):
            hint = "; runs have names and ids, since their numbers change when runs are added"
        raise UnknownRunError(f'{study} has no run "{text}"{hint}; `status` lists them')
    return named


def _best_of(runs: Iterable[Candidate], study: str) -> str:
    """Return the id of the run with the lowest validation perplexity.

    Raises:
        UsageError: no run has finished an epoch, or they have different texts, whose perplexities do not compare.
    """
    known = {run: run.val_ppl for run in runs if run.val_ppl is not None}
    if not known:
        raise UsageError(f"{BEST}: no run of {study} has finished an epoch")
    if len({run.text for run in known}) > 1:
        raise UsageError(
            f"{BEST}: the runs of {study} have different texts or vocabularies, whose perplexities do not compare; "
            "name a run (`results` ranks those of each text)"
        )
    return min(known, key=lambda run: known[run]).id
