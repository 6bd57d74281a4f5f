"""What ``study.json`` keeps of a study's manifest for the commands that read none: ``retry`` and ``behaviour``.

What is wrong with it is told in a line, and the defaults hold: a damaged record stops no launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs.backend_keys import BACKENDS, check_table
from jobs.policy import Policy, check_policy
from jobs.problems import Problems
from seqlm.errors import FileError
from seqlm.rundir import read_json, study_record_file


def kept_policy(study_dir: Path, tell: Callable[[str], None]) -> Policy:
    """The policy of a study's last launch from a manifest; the defaults where none was kept."""
    return Policy.from_dict(_kept(study_dir, "policy", check_policy, tell))


def kept_tables(study_dir: Path, tell: Callable[[str], None]) -> Mapping[str, Mapping[str, Any]]:
    """The tables ``[backend.*]`` of a study's last launch from a manifest, by backend; none where none were kept."""
    return _kept(study_dir, "backend", _check_table, tell)


def kept_untracked(study_dir: Path) -> tuple[str, ...]:
    """The files of ``study.untracked`` of a study's last launch from a manifest; none where the record is damaged.

    Of damage the policy tells, which is read from the same file.
    """
    try:
        found = (read_json(study_record_file(study_dir)) or {}).get("untracked", [])
    except FileError:
        return ()
    return tuple(file for file in found if isinstance(file, str)) if isinstance(found, list) else ()


def _check_table(key: str, table: Any, where: str, problems: Problems) -> None:
    name = key.removeprefix("backend.")
    if name in BACKENDS and isinstance(table, Mapping):
        check_table(name, table, where, problems, prefix=f"{key}.")
    else:
        problems.add(where, f"{key}: no backend's table")


def _kept(
    study_dir: Path, section: str, check: Callable[[str, Any, str, Problems], None], tell: Callable[[str], None]
) -> Mapping[str, Any]:
    """One section of the record, empty where it was not kept or something is wrong with it."""
    path = study_record_file(study_dir)
    problems = Problems()
    try:
        kept = (read_json(path) or {}).get(section, {})
        if not isinstance(kept, Mapping):
            raise FileError(f"{path} is damaged ({section} is no table); move it away")
    except FileError as error:
        tell(f"warning: {error}; the defaults of [{section}] hold")
        return {}
    for name, value in kept.items():
        check(f"{section}.{name}", value, str(path), problems)
    if problems.lines:
        tell(f"warning: {problems.lines[0]}; the defaults of [{section}] hold")
        return {}
    return kept
