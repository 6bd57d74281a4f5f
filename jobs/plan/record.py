"""``study.json`` in a study's folder: facts of the manifest and estimates, for readers that have only the folder.

Every launch rewrites it for the whole manifest, whatever ``--only`` selects, so that the report can list runs that were
never launched. The estimate of a run is kept from its first launch, since a later one would cover only the epochs left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.manifests.backends import BACKENDS, check_table
from jobs.manifests.claims import Published
from jobs.manifests.fields import Problems, read_table
from jobs.manifests.load import Manifest
from jobs.manifests.policy import Policy
from jobs.manifests.secrets import looks_secret
from jobs.plan.planned import PlannedRun
from jobs.spec import RunSpec
from seqlm.config import DataConfig
from seqlm.data.corpus import resolve_data
from seqlm.errors import FileError, SeqlmError
from seqlm.files import read_json, write_json
from seqlm.rundir import study_record_file

VERSION = 1


def record_of(manifest: Manifest, chosen: Sequence[RunSpec], data_path: Path | None) -> dict[str, Any]:
    """Return what ``study.json`` records of a manifest. Runs are identified by their fingerprints, as folders are.

    ``chosen`` are the runs to launch, with the digest of their corpus filled in. For the other runs it is filled in if
    their corpus is found.
    """
    prints = _fingerprints(manifest, chosen, data_path)
    return {
        "version": VERSION,
        "study": manifest.study,
        "manifest": manifest.path.name,
        "planned": [
            {
                "number": spec.order + 1,
                "name": spec.name,
                "fingerprint": prints[spec.name],
                "arch": spec.config.model.arch,
                "optimizer": spec.config.optim.optimizer,
            }
            for spec in manifest.runs
        ],
        "excluded": [{"name": run.name, "arch": run.arch, "optimizer": run.optimizer} for run in manifest.excluded],
        "published": {prints[name]: _published(found) for name, found in manifest.published.items()},
        "expectations": [
            {
                "text": claim.text,
                "metric": claim.metric,
                "lower": [prints[name] for name in claim.lower],
                "higher": [prints[name] for name in claim.higher],
            }
            for claim in manifest.expectations
        ],
        "behaviour": [prints[name] for name in manifest.behaviour],
        "untracked": list(manifest.untracked),
        "policy": manifest.policy.to_dict(),
        "backend": {name: _without_secrets(table) for name, table in manifest.backend.items()},
    }


def _fingerprints(manifest: Manifest, chosen: Sequence[RunSpec], data_path: Path | None) -> dict[str, str]:
    """Return the fingerprint of each run of the manifest, with the digest of its corpus filled in, by name."""
    found = {spec.name: spec.fingerprint for spec in chosen}
    resolved_by_name = {spec.name: spec.config.data for spec in chosen}
    resolved: dict[DataConfig, DataConfig] = {
        spec.config.data: resolved_by_name[spec.name] for spec in manifest.runs if spec.name in found
    }
    for spec in manifest.runs:
        if spec.name in found:
            continue
        data = spec.config.data
        if data not in resolved:
            resolved[data] = _resolve(data, data_path)
        same = resolved[data] == data
        found[spec.name] = spec.fingerprint if same else replace(spec.config, data=resolved[data]).fingerprint()
    return found


def _resolve(data: DataConfig, data_path: Path | None) -> DataConfig:
    try:
        return resolve_data(data, data_path)
    except SeqlmError:  # the corpus of runs that are not launched may be missing
        return data


def _without_secrets(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backend's table in which variables that look like secrets are moved from ``env`` to ``env_pass``."""
    env = table.get("env", {})
    names = [name for name in env if looks_secret(name)]
    if not names:
        return dict(table)
    passed = dict.fromkeys([*table.get("env_pass", ()), *names])
    return {**table, "env": {name: env[name] for name in env if name not in names}, "env_pass": list(passed)}


def _published(found: Published) -> dict[str, Any]:
    record: dict[str, Any] = {"train_ppl": found.train_ppl, "val_ppl": found.val_ppl}
    record["replications"] = None if found.replications is None else list(found.replications)
    return {key: value for key, value in record.items() if value is not None}


def write_record(
    study_dir: Path, record: Mapping[str, Any], todo: Sequence[PlannedRun], tell: Callable[[str], None]
) -> None:
    """Write ``study.json`` with the estimate of each run in ``todo``, if anything has changed.

    The caller holds the study's lock. Problems with the file are reported through ``tell`` and never stop a launch,
    since only the report needs it.
    """
    path = study_record_file(study_dir)
    before: Mapping[str, Any] = {}
    try:
        before = read_json(path) or {}
        damaged = bool(before) and not isinstance(before.get("estimates"), dict)
    except FileError:
        damaged = True
    if damaged:
        tell(f"warning: {path} is damaged and is replaced; the estimates of earlier launches are lost")
    kept = {} if damaged else before.get("estimates", {})
    now = datetime.now(UTC).isoformat(timespec="seconds")
    after = {**record, "estimates": {**kept, **_estimates(kept, todo, now)}}
    if after == before:
        return
    try:
        write_json(path, after)
    except FileError as error:
        tell(f"warning: {error}; the report will lack the facts of the manifest")


def _estimates(kept: Mapping[str, Any], todo: Sequence[PlannedRun], now: str) -> dict[str, Any]:
    """Return an estimate of each run that has none so far, by fingerprint.

    An estimate without a time is replaced by one with a time while the run has not started: canaries and other runs may
    have measured the speed since.
    """
    found: dict[str, Any] = {}
    for item in todo:
        earlier = kept.get(item.spec.fingerprint)
        timeless = isinstance(earlier, dict) and earlier.get("seconds") is None and item.action == "start"
        if isinstance(earlier, dict) and not timeless:
            continue
        made = item.estimate
        if made is None or (timeless and made.seconds is None):
            continue
        found[item.spec.fingerprint] = {
            "seconds": made.seconds,
            "parameters": made.parameters,
            "flops_per_token": made.flops_per_token,
            "memory_bytes": made.memory_bytes,
            "at": now,
        }
    return found


def kept_policy(study_dir: Path, tell: Callable[[str], None]) -> Policy:
    """Return the policy of a study's last launch from a manifest; the defaults if none was kept."""
    return Policy.from_dict(_kept(study_dir, "policy", _check_policy, tell))


def kept_tables(study_dir: Path, tell: Callable[[str], None]) -> Mapping[str, Mapping[str, Any]]:
    """Return the ``[backend.*]`` tables of a study's last launch from a manifest, by backend; empty if none."""
    return _kept(study_dir, "backend", _check_backends, tell)


def kept_untracked(study_dir: Path) -> tuple[str, ...]:
    """Return ``study.untracked`` of a study's last launch from a manifest; empty if the record is damaged.

    This function does not warn of damage, since :func:`kept_policy` reads the same file and does.
    """
    try:
        found = (read_json(study_record_file(study_dir)) or {}).get("untracked", [])
    except FileError:
        return ()
    return tuple(file for file in found if isinstance(file, str)) if isinstance(found, list) else ()


def _check_policy(table: Mapping[str, Any], where: str, problems: Problems) -> None:
    read_table(Policy, table, where, problems, prefix="policy.")


def _check_backends(tables: Mapping[str, Any], where: str, problems: Problems) -> None:
    for name, table in tables.items():
        if name in BACKENDS and isinstance(table, Mapping):
            check_table(name, table, where, problems, prefix=f"backend.{name}.")
        else:
            problems.add(where, f"backend.{name}: expected a table of backend {' or '.join(BACKENDS)}")


def _kept(
    study_dir: Path,
    section: str,
    check: Callable[[Mapping[str, Any], str, Problems], None],
    tell: Callable[[str], None],
) -> Mapping[str, Any]:
    """Return one section of the record; empty if it was not kept or is damaged."""
    path = study_record_file(study_dir)
    problems = Problems()
    try:
        kept = (read_json(path) or {}).get(section, {})
        if not isinstance(kept, Mapping):
            raise FileError(f"{path} is damaged ({section}: expected a table); move it away")
    except FileError as error:
        tell(f"warning: {error}; the defaults of [{section}] apply")
        return {}
    check(kept, str(path), problems)
    if problems.lines:
        tell(f"warning: {problems.lines[0]}; the defaults of [{section}] apply")
        return {}
    return kept
