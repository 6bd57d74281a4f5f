"""Which runs of a study its manifests plan: its folders, compared with the plan in ``study.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.manifests.filters import Origin
from seqlm.config import RunConfig
from seqlm.files import read_json
from seqlm.run_layout import FINGERPRINT_DIGITS, slugify, study_record_file

NOTES: Mapping[Origin | None, str] = {
    "text": "of another text or tokenizer",
    "model": "of another version of its model",
    "manifest": "of another manifest",
    "orphaned": "of no entry of the manifest",
}


@dataclass(frozen=True)
class StudyPlan:
    """What launches from manifests have planned. Empty if no such launch is recorded."""

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """First digits of a fingerprint -> the entry of that run."""
    named: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> entry, that of the latest manifest if several have the name."""
    launched: frozenset[str] = frozenset()
    """First digits of the fingerprints of all runs that were ever to start."""
    latest: str | None = None
    """The manifest of the latest launch. ``None``: all of its runs are entries of other manifests as well."""

    @classmethod
    def of(cls, study_dir: Path) -> StudyPlan:
        """Return the plan of a study.

        Raises:
            FileError: its record cannot be read, or is damaged.
        """
        record = read_json(study_record_file(study_dir)) or {}
        planned, estimates, latest = (record.get(key) for key in ("planned", "estimates", "manifest"))
        entries = [entry for entry in planned if isinstance(entry, dict)] if isinstance(planned, list) else []
        entries.sort(key=lambda entry: entry.get("manifest") == latest)
        return cls(
            entries={str(entry.get("fingerprint"))[:FINGERPRINT_DIGITS]: entry for entry in entries},
            named={str(entry.get("name")): entry for entry in entries},
            launched=frozenset(key[:FINGERPRINT_DIGITS] for key in (estimates if isinstance(estimates, dict) else ())),
            latest=latest if any(entry.get("manifest") == latest for entry in entries) else None,
        )

    def origin(self, run_id: str, config: RunConfig | None, provenance: Mapping[str, Any]) -> Origin | None:
        """Return how a run belongs to the plan. ``None``: unknown."""
        entry = self.entries.get(run_id.rpartition("-")[2])
        if entry is not None:
            return "planned" if self.latest in (None, entry.get("manifest")) else "manifest"
        if config is None or not self.entries:
            return None
        plan = self.named.get(str(provenance.get("entry") or provenance.get("name")), {}).get("config")
        if not isinstance(plan, dict):
            return "orphaned"
        differs = {key for key, value in config.by_key().items() if plan.get(key, value) != value} - {"train.epochs"}
        if plan.get("data.sha256") is None:  # the launch did not find the text of this entry
            differs -= {"data.sha256"}
        if differs & {"data.sha256", "data.tokenizer_sha256"}:
            return "text"
        if "model.sha256" in differs:
            return "model"
        return "orphaned" if differs and "--set" not in provenance.get("command", ()) else "planned"

    def absent(self, run_ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Return the entries without a folder, by digits. One of which only variants (``--set``) ran is not absent."""
        known = {part for run_id in run_ids for part in run_id.rpartition("-")[::2]}
        return {
            digits: entry
            for digits, entry in self.entries.items()
            if digits not in known and (digits in self.launched or slugify(str(entry.get("name"))) not in known)
        }
