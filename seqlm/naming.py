"""Which runs a text names, by one rule for commands and for Python.

A run has no number that lasts: in tables runs are numbered anew when some are added.
"""

import fnmatch
import re
from collections.abc import Collection, Mapping

from seqlm.errors import UsageError, nearest

BEST = "best"
"""Names the run with the lowest validation perplexity, unless a run is called so."""
MOST_LISTED = 8
"""Most values that a message lists."""


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


def ids_named(text: str, names: Mapping[str, str], study: str) -> list[str]:
    """Return the ids of the runs that a text names: by name, by a shell-style pattern, by id, or by its beginning.

    ``names`` has the name of each run of the ``study`` by its id.

    Raises:
        UsageError: the text names no run, or several ids begin so.
    """
    named = [run_id for run_id, name in names.items() if name == text]
    if not named and any(mark in text for mark in "*?["):
        named = [run_id for run_id, name in names.items() if fnmatch.fnmatchcase(name, text)]
    if not named and (run_id := whole_id(text, names)) is not None:
        named = [run_id]
    if not named:
        hint = nearest(text, names.values())
        if re.fullmatch(r"\d+[a-z]?", text):
            hint = "; runs have names and ids, since their numbers change when runs are added"
        raise UsageError(f'{study} has no run "{text}"{hint}; `status` lists them')
    return named


def best_of(values: Mapping[str, tuple[float | None, object]], study: str) -> str:
    """Return the id of the run with the lowest validation perplexity.

    ``values`` has for each run, by its id, its lowest validation perplexity (``None``: no epoch has ended) and its
    text, in any form that tells texts apart.

    Raises:
        UsageError: no run has finished an epoch, or they have different texts, whose perplexities do not compare.
    """
    known = {run_id: found for run_id, (found, _) in values.items() if found is not None}
    if not known:
        raise UsageError(f"{BEST}: no run of {study} has finished an epoch")
    if len({repr(values[run_id][1]) for run_id in known}) > 1:
        raise UsageError(
            f"{BEST}: the runs of {study} have different texts or vocabularies, whose perplexities do not compare; "
            "name a run (`results` ranks those of each text)"
        )
    return min(known, key=lambda run_id: known[run_id])
