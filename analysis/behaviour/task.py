"""What to compute: the task that the launcher has put into the job's folder."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from seqlm.config import RunConfig
from seqlm.errors import ConfigError, FileError
from seqlm.records.base import WrongFieldError, made
from seqlm.records.behaviour import BehaviourSettings
from seqlm.records.studies import TaskFile
from seqlm.rundir import RunDirectory
from seqlm.schema import show


def settings_from(raw: Mapping[str, Any], config: RunConfig) -> BehaviourSettings:
    """Read settings strictly; what is absent follows from the run's configuration.

    Raises:
        ConfigError: with one line for every unknown key and impossible value.
    """
    known = {field.name for field in fields(BehaviourSettings)}
    unknown = [f"settings.{key}: expected one of {', '.join(sorted(known))}" for key in raw if key not in known]
    if unknown:
        raise ConfigError(unknown)
    seq_len = config.train.seq_len
    values = {"window": 2 * seq_len, "lengths": [seq_len, 2 * seq_len], "seed": config.seed, **raw}
    try:
        return made(BehaviourSettings, "settings.", values)
    except WrongFieldError as error:
        raise ConfigError([str(error)]) from None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One job: what is computed of a run's model, and whose models rate its texts."""

    panel: tuple[str, ...]
    """Ids of finished runs of the study whose models rate the texts. Empty: the texts get no rating."""
    settings: BehaviourSettings

    @classmethod
    def read(cls, job: RunDirectory, config: RunConfig) -> Self:
        """The task of a job's folder.

        Raises:
            FileError: ``task.json`` is missing or damaged.
            ConfigError: something in it is wrong.
        """
        path = job.task_file
        task = TaskFile.read(job.path)
        if task is None:
            raise FileError(f"{path} is missing; {job.path} is not the folder of a behaviour job")
        for member in task.panel:
            if member in ("", ".", "..") or set(member) & set("/\\\0"):
                raise ConfigError([f"{path}: panel: expected ids of runs of the study, got {show(member)}"])
        try:
            return cls(panel=task.panel, settings=settings_from(task.settings, config))
        except ConfigError as error:
            raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None
