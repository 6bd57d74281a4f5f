"""Every environment variable of seqlm: name, type, default and meaning. Standard library alone.

No other module reads a variable whose name begins with ``SEQLM_``. The tables of
docs/reference/environment.md are made from this list (``python -m tests.reference``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from seqlm.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Variable(Generic[T]):
    """An environment variable."""

    name: str
    meaning: str
    default: T
    """The value if the variable is unset or empty."""
    expected: str
    """The valid values, in the words that follow "expected" in messages."""
    parse: Callable[[str], T]
    """Converts the text of the variable. Raises ValueError if it is not valid."""
    default_words: str
    """The default in words, for the documentation."""
    is_internal: bool = False
    """Whether a launcher sets it for its workers, so that nobody else needs to."""

    def read(
        self,
        env: Mapping[str, str] | None = None,
        *,
        is_valid: Callable[[T], bool] = lambda value: True,
        expected: str | None = None,
    ) -> T:
        """Return the value of the variable.

        Args:
            env: the variables. ``None``: the environment of this process.
            is_valid: a further condition, which depends on more than the variable.
            expected: the valid values in words, with that condition. ``None``: as the field of that name.

        Raises:
            UsageError: the value is not valid.
        """
        if not self.is_set(env):
            return self.default
        text = (os.environ if env is None else env)[self.name]
        try:
            if is_valid(value := self.parse(text)):
                return value
        except ValueError:
            pass
        raise UsageError(f'{self.name}: expected {expected or self.expected}, got "{text}"')

    def is_set(self, env: Mapping[str, str] | None = None) -> bool:
        """Return whether the variable is set and not empty."""
        return bool(((os.environ if env is None else env).get(self.name) or "").strip())


# -- types ---------------------------------------------------------------------------------------------------------


def _number(name: str, default: float, unit: str, meaning: str, *, is_internal: bool = False) -> Variable[float]:
    def parse(text: str) -> float:
        number = float(text)
        if not (math.isfinite(number) and number > 0):
            raise ValueError(text)
        return number

    return Variable(
        name=name,
        meaning=meaning,
        default=default,
        expected=f"a number of {unit} above 0",
        parse=parse,
        default_words=f"{default:g}",
        is_internal=is_internal,
    )


def _positive_whole(text: str) -> int:
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise ValueError(text)
    return number


def _flag(name: str, meaning: str, *, default: bool, is_internal: bool = False) -> Variable[bool]:
    def parse(text: str) -> bool:
        return {"0": False, "1": True}[_choice(text, ("0", "1"))]

    return Variable(
        name=name,
        meaning=meaning,
        default=default,
        expected="0 or 1",
        parse=parse,
        default_words=str(int(default)),
        is_internal=is_internal,
    )


def _choice(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ValueError(text)
    return text


def _path(name: str, default_words: str, meaning: str) -> Variable[Path | None]:
    return Variable(
        name=name, meaning=meaning, default=None, expected="a path", parse=Path, default_words=default_words
    )


def _text(name: str, default: str, default_words: str, expected: str, meaning: str) -> Variable[str]:
    return Variable(
        name=name,
        meaning=meaning,
        default=default,
        expected=expected,
        parse=str,
        default_words=default_words,
        is_internal=True,
    )


# -- where things are ----------------------------------------------------------------------------------------------

RUNS = Variable(
    name="SEQLM_RUNS",
    meaning="Folder of the studies. `--runs-dir` overrides it.",
    default=Path("runs"),
    expected="a path",
    parse=Path,
    default_words="`runs`",
)
DATA = _path(
    "SEQLM_DATA",
    "the manifest's path, else the corpus's own place",
    "Folder or zip file of the corpus. `--data` overrides it.",
)
CACHE = _path(
    "SEQLM_CACHE",
    "`XDG_CACHE_HOME/seqlm`, else `~/.cache/seqlm`",
    "Folder for tokenised corpora, the Penn Treebank and passed self-checks.",
)
SLURM_CONFIG = _path(
    "SEQLM_SLURM_CONFIG",
    "`slurm/cluster.toml`, if it exists",
    "Site file of the backend slurm.",
)

# -- how runs are computed -----------------------------------------------------------------------------------------

BACKEND: Variable[str | None] = Variable(
    name="SEQLM_BACKEND",
    meaning="Where runs are sent. `--backend` overrides it.",
    default=None,
    expected="the name of a backend",
    parse=str,
    default_words="the manifest's, else ray if it is installed, else local",
)
DEVICE: Variable[str | None] = Variable(
    name="SEQLM_DEVICE",
    meaning="Device of a worker.",
    default=None,
    expected="cpu or cuda",
    parse=lambda text: _choice(text, ("cpu", "cuda")),
    default_words="set by the launcher, else cuda if PyTorch sees a GPU",
)
DETERMINISTIC = _flag(
    "SEQLM_DETERMINISTIC",
    "1: use only operations whose results do not vary from one time to the next, on a GPU too.",
    default=False,
)

# -- when something counts as dead ---------------------------------------------------------------------------------

HUNG_MINUTES = _number(
    "SEQLM_HUNG_MINUTES",
    10.0,
    "minutes",
    "A run that shows no progress for so long is killed and tried again.",
)
COLLECTIVE_MINUTES = _number(
    "SEQLM_COLLECTIVE_MINUTES",
    10.0,
    "minutes",
    "A rank that waits for the other ranks for so long gives up.",
)
PROGRESS_SECONDS = _number(
    "SEQLM_PROGRESS_SECONDS",
    1.0,
    "seconds",
    "Least time between two writes of `progress.json`. The key `progress_s` of a backend's table sets it.",
)
LEASE_SECONDS = _number(
    "SEQLM_LEASE_SECONDS",
    10.0,
    "seconds",
    "Time between two heartbeats of a run's lease.",
)
STALE_LEASE_MINUTES = _number(
    "SEQLM_STALE_LEASE_MINUTES",
    3.0,
    "minutes",
    "A worker of another host without a heartbeat for so long counts as dead, and its run is taken over.",
)

# -- set by a launcher for its workers -----------------------------------------------------------------------------

ATTEMPT: Variable[int | None] = Variable(
    name="SEQLM_ATTEMPT",
    meaning="Number of the attempt.",
    default=None,
    expected="a whole number above 0",
    parse=_positive_whole,
    default_words="one more than the attempts so far",
    is_internal=True,
)
CANARY: Variable[int | None] = Variable(
    name="SEQLM_CANARY",
    meaning="In the folder of a canary: train this number of steps and write `canary.json`.",
    default=None,
    expected="a whole number above 0",
    parse=_positive_whole,
    default_words="an ordinary run",
    is_internal=True,
)
MICRO_BATCHES = Variable(
    name="SEQLM_MICRO_BATCHES",
    meaning="Parts in which a step takes the rank's columns, to save memory.",
    default=1,
    expected="a whole number above 0",
    parse=_positive_whole,
    default_words="1",
    is_internal=True,
)
CHECKPOINT_MINUTES = _number(
    "SEQLM_CHECKPOINT_MINUTES",
    10.0,
    "minutes",
    "Time between two checkpoints within an epoch. `policy.checkpoint_min` sets it.",
    is_internal=True,
)
KEEP_LAST = _flag(
    "SEQLM_KEEP_LAST",
    "0: delete `last.pt` as soon as the run is done. `policy.keep_last` sets it.",
    default=True,
    is_internal=True,
)
SEARCH = Variable(
    name="SEQLM_SEARCH",
    meaning="The table `[search]` of the manifest as JSON: at its rungs the worker may stop the run.",
    default="",
    expected="the table as JSON",
    parse=str,
    default_words="no search",
    is_internal=True,
)
GPU_SHARE = _number(
    "SEQLM_GPU_SHARE",
    1.0,
    "GPUs",
    "Share of the GPU whose memory a rank may use. `resources.gpus` sets it.",
    is_internal=True,
)
NODE = _text(
    "SEQLM_NODE",
    "",
    "none",
    "a name",
    "Name of the node, if its host name does not identify it. Recorded in `worker.json`.",
)
RENDEZVOUS = _text(
    "SEQLM_RENDEZVOUS",
    "env://",
    "`MASTER_ADDR` and `MASTER_PORT`",
    "a URL",
    "`file:///...`: the file in which the first rank writes the port where the ranks meet.",
)
RENDEZVOUS_HOST = _text(
    "SEQLM_RENDEZVOUS_HOST",
    "127.0.0.1",
    "`127.0.0.1`",
    "an address",
    "Address of the first rank's host.",
)

VARIABLES: tuple[Variable[object], ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Variable)
)
"""All variables, in the order of the documentation."""
