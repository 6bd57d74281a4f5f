"""What to compute: the task that the launcher has put into the job's folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seqlm.config import LARGEST_SEED, SEEDS, RunConfig
from seqlm.errors import ConfigError, FileError, nearest
from seqlm.files import read_json
from seqlm.rundir import RunDirectory
from seqlm.schema import show

TASK_KEYS = ("judge", "settings")

_COUNT = "a whole number of at least 1"


def _is_whole(value: Any, least: int = 1, most: int = 2**63 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "window": (_is_whole, _COUNT),
    "samples": (_is_whole, _COUNT),
    "lengths": (
        lambda value: isinstance(value, list | tuple) and bool(value) and all(map(_is_whole, value)),
        f"a list of at least one, each {_COUNT}",
    ),
    "temperature": (
        lambda value: (isinstance(value, float) or _is_whole(value)) and 0 < value < math.inf,
        "a positive finite number",
    ),
    "prompt": (lambda value: value is None or isinstance(value, str), "a text or null"),
    "gradient_columns": (_is_whole, _COUNT),
    "seed": (lambda value: _is_whole(value, 0, LARGEST_SEED), SEEDS),
}
"""Key of the settings -> whether a value is valid, and what is."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is computed, and how the texts are drawn."""

    window: int
    """Tokens of the windows over which the loss at each time step is averaged; default twice ``seq_len``."""
    samples: int = 10
    """Texts of each length."""
    lengths: tuple[int, ...]
    """Tokens of the texts; default ``seq_len`` and twice that."""
    temperature: float = 1.0
    """The logits are divided by it before a token is drawn; 1 is the model's own distribution."""
    prompt: str | None = None
    """The start of each text. ``None``: one random token for each."""
    gradient_columns: int = 20
    """Sequences over which gradients are averaged: as many for every model, whatever its batch size."""
    seed: int
    """Decides every draw; default the seed of the run."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], config: RunConfig) -> Settings:
        """Read plain data strictly; what is absent follows from the run's configuration.

        Raises:
            ConfigError: with one line for every unknown key and impossible value.
        """
        keys = ", ".join(_RULES)
        problems = [
            f"settings.{key}: expected {_RULES[key][1]}, got {show(value)}"
            if key in _RULES
            else f'unknown key "settings.{key}"{nearest(key, _RULES)} (valid in settings: {keys})'
            for key, value in raw.items()
            if key not in _RULES or not _RULES[key][0](value)
        ]
        if problems:
            raise ConfigError(problems)
        seq_len = config.train.seq_len
        values = {"window": 2 * seq_len, "lengths": (seq_len, 2 * seq_len), "seed": config.seed, **raw}
        values["lengths"] = tuple(values["lengths"])
        values["temperature"] = float(values.get("temperature", 1.0))
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One job: a run's model, and who judges its texts."""

    judge: str | None
    """Id of another finished run of the study, whose model rates the texts. ``None``: the texts get no rating."""
    settings: Settings

    @classmethod
    def read(cls, job: RunDirectory, config: RunConfig) -> Task:
        """The task of a job's folder.

        Raises:
            FileError: ``task.json`` is missing or damaged.
            ConfigError: with one line for everything in it that is wrong.
        """
        path = job.task_file
        raw = read_json(path)
        if raw is None:
            raise FileError(f"{path} is missing; {job.path} is not the folder of a behaviour job")
        problems = [
            f'unknown key "{key}"{nearest(key, TASK_KEYS)} (valid: {", ".join(TASK_KEYS)})'
            for key in raw
            if key not in TASK_KEYS
        ]
        judge, settings = raw.get("judge"), raw.get("settings", {})
        no_ids = ("", ".", "..", job.id)
        if judge is not None and (not isinstance(judge, str) or judge in no_ids or set(judge) & set("/\\\0")):
            problems.append(f"judge: expected the id of another run of the study, or null, got {show(judge)}")
        if not isinstance(settings, Mapping):
            problems.append(f"settings: expected a table, got {show(settings)}")
            settings = {}
        try:
            read = Settings.from_dict(settings, config)
        except ConfigError as error:
            problems.extend(error.problems)
        if problems:
            raise ConfigError([f"{path}: {problem}" for problem in problems])
        return cls(judge=judge, settings=read)
