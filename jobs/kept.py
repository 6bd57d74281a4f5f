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
    problems = Problems()
    try:
        kept = _kept(study_dir, "policy")
    except FileError as error:
        tell(f"warning: {error}; the defaults of [policy] hold")
        return Policy()
    for name, value in kept.items():
        check_policy(f"policy.{name}", value, str(study_record_file(study_dir)), problems)
    if problems.lines:
        tell(f"warning: {problems.lines[0]}; the defaults of [policy] hold")
        return Policy()
    return Policy.from_dict(kept)


def kept_tables(study_dir: Path, tell: Callable[[str], None]) -> Mapping[str, Mapping[str, Any]]:
    """The tables ``[backend.*]`` of a study's last launch from a manifest, by backend; none where none were kept."""
    try:
        kept = _kept(study_dir, "backend")
    except FileError as error:
        tell(f"warning: {error}; nothing is known of its [backend] settings")
        return {}
    problems = Problems()
    where = str(study_record_file(study_dir))
    for name, table in kept.items():
        if name in BACKENDS and isinstance(table, Mapping):
            check_table(name, table, where, problems, prefix=f"backend.{name}.")
        else:
            problems.add(where, f"backend.{name}: no backend's table")
    if problems.lines:
        tell(f"warning: {problems.lines[0]}; the study's [backend] settings are left out")
        return {}
    return kept


def _kept(study_dir: Path, section: str) -> Mapping[str, Any]:
    path = study_record_file(study_dir)
    kept = (read_json(path) or {}).get(section, {})
    if not isinstance(kept, Mapping):
        raise FileError(f"{path} is damaged ({section} is no table); move it away")
    return kept
