"""How names, numbers and tokens are written in tables, captions and figures: one way for each, everywhere."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from seqlm import rundir
from seqlm.architectures import CLASS_SEPARATOR, CustomConfig
from seqlm.config import choices_of, labels

MOST_LETTERS = 30
"""Of the name in print of a user's own model."""

MINUS = "\N{MINUS SIGN}"

MISSING = "–"
"""Stands for a number that does not exist: not computed, not finite, or not applicable."""

UNKNOWN = "unknown"
"""Architecture and optimizer of a run whose configuration cannot be read."""

BUILT_IN = {arch: label for arch, label in labels("model").items() if arch not in CustomConfig.LABELS}
"""The architectures of seqlm, with their names in print."""

ARCHITECTURES = dict(BUILT_IN)
"""Architectures in the order of the report, with their names in print: seqlm's, then the own models of the study."""

OPTIMIZERS = labels("optim")
"""Kinds of optimizers in the order of the report, with their names in print. SGD with momentum is a kind of its own."""

SCHEDULES = {name: name for name in choices_of("optim.schedule")}
"""Learning-rate schedules in the order of the report, with their names in print."""


def set_own_models(names: Mapping[str, str]) -> None:
    """Name the own models of the study that is being read, such as ``lstm.py:LSTM``; they replace earlier ones."""
    ARCHITECTURES.clear()
    ARCHITECTURES.update(BUILT_IN)
    ARCHITECTURES.update(names)


def names_in_print(archs: Iterable[str | None], labels: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each of a user's own models among ``archs``, in their order: its label, else its class.

    ``labels`` are those that models give themselves. If two models have one name, their files are added.
    """
    keys = dict.fromkeys(arch for arch in archs if arch is not None and CLASS_SEPARATOR in arch)
    names = {key: (labels.get(key) or key.rpartition(CLASS_SEPARATOR)[2])[:MOST_LETTERS] for key in keys}
    taken = [*BUILT_IN.values(), *names.values()]
    return {key: name if taken.count(name) == 1 else f"{name} ({key})" for key, name in names.items()}


def architecture(key: Any) -> str:
    """An architecture's name in print. Of a user's own model of another study, the name of its class."""
    if key not in ARCHITECTURES and isinstance(key, str) and CLASS_SEPARATOR in key:
        return key.rpartition(CLASS_SEPARATOR)[2]
    return ARCHITECTURES.get(key, UNKNOWN)


def optimizer(key: Any) -> str:
    """An optimizer's name in print."""
    return OPTIMIZERS.get(key, UNKNOWN)


def rank(table: Mapping[str, str], key: Any) -> int:
    """Place of a key in the report's order; unknown ones come last."""
    return list(table).index(key) if key in table else len(table)


def in_order(table: Mapping[str, str], keys: Iterable[Any]) -> list[Any]:
    """Return some keys, each once, in the report's order; unknown ones come last.

    >>> in_order(OPTIMIZERS, ["x", "sgd", "adam", "sgd"])
    ['adam', 'sgd', 'x']
    """
    return sorted(set(keys), key=lambda key: (rank(table, key), str(key)))


def is_number(value: Any) -> bool:
    """Whether there is a finite number to show."""
    return not isinstance(value, str) and value is not None and not pd.isna(value) and math.isfinite(value)


def perplexity(value: Any) -> str:
    """``1,234.56``; from a million on ``1.23e+06``."""
    if not is_number(value):
        return MISSING
    return f"{value:,.2f}" if abs(value) < 1e6 else f"{value:.2e}"


def duration(seconds: Any) -> str:
    """Return ``4.8 s``, ``48 s``, ``12 min``, ``3 h 05 min`` or ``2 d 04 h``, rounded to the unit that matters.

    >>> duration(59.4), duration(59.6), duration(9.96), duration(3599)
    ('59 s', '1 min', '10 s', '1 h 00 min')
    """
    if not is_number(seconds):
        return MISSING
    if round(seconds) < 60:  # 59.6 s is 1 min
        return f"{seconds:.0f} s" if round(seconds, 1) >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def hours(value: Any) -> str:
    """A number of hours: ``1,234``, ``12.3``, ``0.25`` or ``0.0034``."""
    if not is_number(value):
        return MISSING
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def memory(size: Any) -> str:
    """Bytes as ``331 MiB`` or ``3.00 GiB``."""
    if not is_number(size):
        return MISSING
    return f"{size / 2**20:.0f} MiB" if round(size / 2**20) < 1024 else f"{size / 2**30:.2f} GiB"


def plain_value(value: Any) -> str:
    """A hyperparameter as one would type it: ``0.0001``, ``1500``, ``ptb``; ``none`` where it is set to none."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return MISSING
        return f"{value:.12f}".rstrip("0").rstrip(".") if 1e-6 <= abs(value) < 1e6 else f"{value:g}"
    return str(value)


def whole(value: Any) -> str:
    """A whole number without separators."""
    return str(int(value)) if is_number(value) else MISSING


def ordinal(number: Any) -> str:
    """A place: ``1st``, ``12th``."""
    return rundir.ordinal(int(number)) if is_number(number) else MISSING


def decimals(digits: str) -> Callable[[Any], str]:
    """How to write numbers by a format such as ``.3f``, with a minus sign; one that is rounded to 0 has no sign."""

    def write(value: Any) -> str:
        text = f"{value:{digits}}" if is_number(value) else MISSING
        return text.replace("-", MINUS) if text.strip("+-0.") else text.lstrip("+-")

    return write


signed = decimals("+.3f")
"""How to write a difference of losses, in nats."""


def percent(share: Any) -> str:
    """A share: ``12 %``."""
    return f"{100 * share:.0f} %" if is_number(share) else MISSING


def text(value: Any) -> str:
    """A text that may be missing."""
    return value if isinstance(value, str) and value else MISSING


def shortened(text: str, most: int) -> str:
    """A text cut to at most ``most`` characters.

    >>> shortened("transformer", 6)
    'trans…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def short_name(name: str, most: int, *known: str | None) -> str:
    """Return a name for a label of at most ``most`` characters: without the parts in ``known``, and with initials.

    Nothing goes that need not go.

    >>> short_name("gru-adam-hidden1024-keep0.8004-lr0.009801", 25, "gru", "adam")
    'h1024-k0.8004-lr0.009801'
    >>> short_name("transformer-sgd_schedule-lr5", 25, "transformer", "sgd_schedule")
    'sgd_schedule-lr5'
    """
    for one in known:
        if len(name) > most:
            name = "-".join(part for part in name.split("-") if part != one) or name
    if len(name) > most:
        name = re.sub(r"\b([a-z])[a-z_]{2,}(?=\d)", r"\1", name)
    return shortened(name, most)


def state_of(state: str, failure_kind: Any) -> str:
    """A run's state in print, for a failure with its kind."""
    return f"failed: {failure_kind}" if state == "failed" and isinstance(failure_kind, str) else state


def epochs(gone: Any, asked: Any) -> str:
    """Epochs gone and asked for: ``40``, or ``9 of 40`` for a run that has not gone as far as it was asked."""
    return whole(gone) if is_number(asked) and gone >= asked else f"{whole(gone)} of {whole(asked)}"


def count(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``, ``1,000 runs``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listing(items: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


# -- tokens ------------------------------------------------------------------------------------------------------------

EOS = "<eos>"

CLINGS = {"n't", "'s", "'m", "'d", "'re", "'ve", "'ll", "'", "''", "”", "’", "%", ")", "]", "}", "-rrb-"}
"""Tokens that stand close to the one before them. The first seven are the Penn Treebank's way with contractions."""
MARKS = set(".,;:!?…")
HOLDS = {"``", "“", "‘", "(", "[", "{", "$", "#", "-lrb-"}
"""Tokens that the next one stands close to."""

SHOWN = {"``": "“", "''": "”", "-lrb-": "(", "-rrb-": ")"}
"""The Penn Treebank's names of signs, and the signs."""


def pieces(tokens: Sequence[str], level: str) -> list[tuple[str, str]]:
    r"""Return what stands before each token (nothing, a space or a line's end), and how the token is shown.

    >>> pieces(["it", "is", "n't", "<eos>", "no"], "word")
    [('', 'it'), (' ', 'is'), ('', "n't"), ('', ''), ('\n', 'no')]
    """
    found = []
    before = ""
    for token in tokens:
        clings = token == EOS or token in CLINGS or (token != "" and set(token) <= MARKS)
        is_apart = level == "word" and before != "" and before not in HOLDS and not clings
        gap = "\n" if before == EOS else " " if is_apart else ""
        text = "" if token == EOS else SHOWN.get(token, token) if level == "word" else token
        found.append((gap, text))
        before = token
    return found


def plain_text(tokens: Sequence[str], level: str) -> str:
    """The whole as one text."""
    return "".join(gap + text for gap, text in pieces(tokens, level))
