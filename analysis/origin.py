"""Where a study's results come from, summed up over the provenance of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Each list holds distinct values in the order of the runs; more than one means that the runs differ."""

    commits: list[str]
    """Git commits, with ``+ uncommitted changes`` where the tree was dirty."""
    versions: list[str]
    """Package and version, such as ``torch 2.13.0``."""
    devices: list[str]
    """Devices, with their count where a run had several alike."""
    hosts: list[str]
    launched: list[str]
    """First and last time of launch; one entry where they are the same."""


def origin_of(provenances: Iterable[Mapping[str, Any]]) -> Origin:
    """Sum up ``provenance.json`` of all runs; whatever a file lacks is left out."""
    records = list(provenances)
    times = sorted(str(record["launched_at"]) for record in records if record.get("launched_at"))
    versions = [_table(record, "versions") for record in records]
    packages = _distinct(package for found in versions for package in found)
    return Origin(
        commits=_distinct(_commit(record) for record in records),
        versions=[f"{name} {' and '.join(_distinct(str(v.get(name) or '') for v in versions))}" for name in packages],
        devices=_distinct(_devices(record.get("devices")) for record in records),
        hosts=_distinct(str(record.get("host") or "") for record in records),
        launched=_distinct([times[0], times[-1]] if times else []),
    )


def _commit(record: Mapping[str, Any]) -> str:
    git = _table(record, "git")
    if not git.get("commit"):
        return ""
    return str(git["commit"])[:12] + (" + uncommitted changes" if git.get("dirty") else "")


def _devices(devices: Any) -> str:
    if not isinstance(devices, list):
        return str(devices or "")
    names = [str(device) for device in devices]
    counted = [(names.count(name), name) for name in _distinct(names)]
    return ", ".join(f"{count} × {name}" if count > 1 else name for count, name in counted)


def _table(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def _distinct(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]
