"""What is done about failures, how often runs are saved, what they may use: ``[policy]``; and messages: ``[notify]``.

Neither is part of a run's identity. Both are kept in ``study.json``, for launches without the manifest, and sent with
each job of a scheduler.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from seqlm.schema import Count, Line, NotNegative, Table, Valid, show
from seqlm.state import KINDS

UNLIMITED = "unlimited"

_Limit = NotNegative | Literal["unlimited"] | None
"""A manifest writes "unlimited", which becomes ``None``; likewise hours."""
_Hours = Annotated[float, Valid("a number of hours above 0", above=0)] | Literal["unlimited"] | None


@dataclass(frozen=True, kw_only=True)
class Policy(Table):
    """How often a run is retried automatically after each kind of failure, how often saved, and the study's budget."""

    NAME = "policy"
    NO_KEYS: ClassVar[Mapping[str, str]] = {
        kind: f"{{name}}: such a failure is never retried automatically; use `retry --kind {kind}`"
        for kind, row in KINDS.items()
        if row.retries == 0
    } | {"without_progress": "{name}: no such key any more; use policy.max_stalled_retries"}

    checkpoint_min: Annotated[float, Valid("a number of minutes above 0", above=0)] = 10
    """Minutes between checkpoints within an epoch."""
    oom: _Limit = KINDS["oom"].retries
    """Retries of a run that ran out of memory, each with micro-batches of half the size."""
    timeout: _Limit = KINDS["timeout"].retries
    """Resumes after a job's time limit."""
    node: _Limit = KINDS["node"].retries
    """Retries after a lost node, GPU, disk or rank."""
    preempted: _Limit = KINDS["preempted"].retries
    """Resumes after a preemption."""
    start: _Limit = KINDS["start"].retries
    """Retries of a run whose worker ended before it began, on another node if there is one."""
    max_stalled_retries: NotNegative = 10
    """Consecutive retries, of any kind, without progress: no finished epoch and no later checkpoint.
    `--max-stalled-retries` overrides it."""
    keep_last: bool = True
    """Whether a finished run keeps ``checkpoints/last.pt``, from which it could go on."""
    keep_epochs: Annotated[tuple[Count, ...], Valid("a list of whole numbers above 0")] = ()
    """Epochs after which a run keeps its checkpoint: `[10, 20]`, as ``checkpoints/epoch-10.pt``. `audit` can train
    again from there."""
    gpu_hours: _Hours = "unlimited"
    """Study's budget: hours times GPUs over all attempts. Once spent, runs stop at a checkpoint and others wait; `run`
    with a higher budget goes on."""
    core_hours: _Hours = "unlimited"
    """Budget of the whole study in core hours: hours times processor cores over all attempts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in vars(self).items():
            object.__setattr__(self, name, None if value == UNLIMITED else value)

    def with_retries(self, retries: int | None) -> Self:
        """Return the policy with this value of ``max_stalled_retries``. ``None``: no override."""
        return self if retries is None else replace(self, max_stalled_retries=retries)

    def to_dict(self) -> dict[str, Any]:
        """As the manifest would write it."""
        return {key: UNLIMITED if value is None else value for key, value in vars(self).items()}


Event: TypeAlias = Literal["over", "failed", "stalled"]


@dataclass(frozen=True, kw_only=True)
class Notify(Table):
    """Who gets a message about a study, and about what."""

    NAME = "notify"

    command: Line | None = None
    """Program that gets each message on standard input, in your home folder and without a shell:
    `"mail -s seqlm me@example.org"`."""
    url_env: Annotated[str, Valid("the name of a variable", pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Variable with the URL of an Apprise service, in place of a command: `"SEQLM_NOTIFY"`. No file has the URL."""
    on: Annotated[tuple[Event, ...], Valid('a list of "over", "failed" and "stalled"')] = ("over", "failed", "stalled")
    """`over`: no run is running or queued any more. `failed`: a run failed and is not retried. `stalled`: a run failed
    twice in a row without progress, and is retried."""

    def _conditions(self) -> Iterator[str]:
        if (self.command is None) == (self.url_env is None):
            got = "neither" if self.command is None else "both"
            yield f"notify.command: expected it or notify.url_env, got {got}"
        if self.command is None:
            return
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            yield f"notify.command: cannot be split into words: {error}"
            return
        if not words:
            yield "notify.command: expected a program, got an empty text"
        elif for_shell := _FOR_SHELL.search(_QUOTED.sub("", self.command)):
            yield f'notify.command: no shell runs it, so "{for_shell[0]}" means nothing; write {in_shell(self.command)}'


_QUOTED = re.compile(r"""'[^']*'|"[^"]*"|\\.""")
_FOR_SHELL = re.compile(r"\||(?<!\S)\d*[<>]\S*|[;&]+(?=\s|$)|`|\$\(|(?<!\S)\$\w+")
"""What only a shell understands: pipelines, redirections, lists of commands, and what it puts in place of words."""


def in_shell(command: str) -> str:
    """Return the value of ``notify.command``, as TOML has it, that has a shell run this command."""
    return show(shlex.join(["sh", "-c", command]))
