"""``study.json`` in a study's folder: facts of the manifest and estimates, for readers that have only the folder.

Every launch records the whole manifest as written, whatever ``--only`` selects and ``--set`` changes, so that the
report can list runs that were never launched. What other manifests planned for the study is kept. The estimate of a
run is kept from its first launch, since a later one would cover only the epochs left. Epochs that are requested later
are added.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.manifests.backends import check_tables
from jobs.manifests.load import Manifest
from jobs.manifests.policy import Policy
from jobs.manifests.reader import Problems
from jobs.manifests.secrets import looks_secret
from jobs.plan.planned import PlannedRun
from jobs.spec import RunSpec
from seqlm.config import RunConfig
from seqlm.data.corpus import resolve_data
from seqlm.errors import FileError, SeqlmError
from seqlm.files import read_json, write_json
from seqlm.run_layout import STUDY_FORMAT, study_record_file
from seqlm.schema import read
from seqlm.search import Search

PLAN = ("planned", "excluded", "expectations", "groups", "notes", "samples")
"""Sections whose entries belong to a manifest each."""


def record_of(manifest: Manifest, chosen: Sequence[RunSpec], data_path: Path | None) -> dict[str, Any]:
    """Return what ``study.json`` records of a manifest. Runs are identified by their fingerprints, as folders are.

    ``chosen`` are the runs to launch, with the digest of their corpus filled in. For the other runs it is filled in if
    their corpus is found.
    """
    by_name = {spec.name: spec.config.data for spec in chosen}
    known = {spec.config.data: by_name[spec.name] for spec in manifest.runs if spec.name in by_name}

    def resolve(spec: RunSpec) -> RunConfig:
        data = spec.config.data
        if data not in known:
            known[data] = data
            with contextlib.suppress(SeqlmError):  # the corpus of runs that are not launched may be missing
                known[data] = resolve_data(data, data_path, spec.tokenizer)
        return spec.config if known[data] == data else replace(spec.config, data=known[data])

    written = {spec.name: resolve(spec) for spec in manifest.written}
    prints = {name: config.fingerprint() for name, config in written.items()}
    launched = {
        plan.name: resolve(run).fingerprint() for plan, run in zip(manifest.written, manifest.runs, strict=True)
    }
    epochs = {spec.name: {"epochs": spec.config.train.epochs} for spec in manifest.written}
    published = {
        name: epochs[name] | {key: value for key, value in found.to_dict().items() if value is not None}
        for name, found in manifest.published.items()
    }
    named = {"manifest": manifest.path.name}
    return {
        "version": STUDY_FORMAT,
        "study": manifest.study,
        **named,
        "folder": str(manifest.path.parent.absolute()),
        "planned": [
            {
                "number": spec.order + 1,
                "name": spec.name,
                "fingerprint": prints[spec.name],
                "arch": spec.config.model.kind,
                "optimizer": spec.config.optim.kind,
                "config": written[spec.name].by_key(),
                "published": published.get(spec.name, {}),
                **named,
            }
            for spec in manifest.written
        ],
        "excluded": [{**vars(run), **named} for run in manifest.excluded],
        "expectations": [
            {
                **vars(claim),
                "lower": [prints[name] for name in claim.lower],
                "higher": [prints[name] for name in claim.higher],
                **named,
            }
            for claim in manifest.expectations
        ],
        "groups": [
            {"title": title, "runs": [prints[name] for name in names], **named}
            for title, names in manifest.groups.items()
        ],
        "notes": [{"part": part, "text": text, **named} for part, text in manifest.notes.items()],
        "samples": [{**sample, **named} for sample in manifest.samples],
        "behaviour": list(dict.fromkeys(known[name] for name in manifest.behaviour for known in (prints, launched))),
        "policy": manifest.policy.to_dict(),
        "search": None if manifest.search is None else manifest.search.to_dict(),
        "backend": {name: _without_secrets(table) for name, table in manifest.backend.items()},
    }


def _without_secrets(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backend's table in which variables that look like secrets are moved from ``env`` to ``env_pass``."""
    names = [name for name in table.get("env", {}) if looks_secret(name)]
    if not names:
        return dict(table)
    env = {name: value for name, value in table["env"].items() if name not in names}
    return {**table, "env": env, "env_pass": list(dict.fromkeys([*table.get("env_pass", ()), *names]))}


def _with_other_manifests(record: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with what ``before`` has of other manifests, the manifests in the order of their first launches.

    A run that several manifests plan is an entry of the first. The runs are numbered consecutively.
    """

    def earlier(section: str) -> list[Mapping[str, Any]]:
        found = before.get(section)
        entries = found if isinstance(found, list) else []
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("manifest"), str)]

    this = record.get("manifest")
    manifests = [*(entry["manifest"] for entry in earlier("planned")), this]
    place = {name: number for number, name in enumerate(dict.fromkeys(manifests))}
    found = dict(record)
    for section in PLAN:
        others = [entry for entry in earlier(section) if entry["manifest"] in place.keys() - {this}]
        found[section] = sorted([*others, *record.get(section, [])], key=lambda entry: place[entry["manifest"]])
    firsts: dict[str, Mapping[str, Any]] = {}
    for entry in found["planned"]:
        firsts.setdefault(str(entry.get("fingerprint")), entry)
    found["planned"] = [{**entry, "number": number} for number, entry in enumerate(firsts.values(), start=1)]
    return found


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
        tell(f"warning: {path} is damaged and is replaced; the estimates and plans of earlier launches are lost")
    estimates = {} if damaged else dict(before.get("estimates", {}))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for item in todo:
        # An estimate without a time gives way to one with a time while the run has not started: canaries and other
        # runs may have measured the speed since.
        earlier, made = estimates.get(item.spec.fingerprint), item.estimate
        timeless = isinstance(earlier, dict) and earlier.get("seconds") is None and item.action == "start"
        if made is None:
            continue
        if isinstance(earlier, dict) and not (timeless and made.seconds is not None):
            estimates[item.spec.fingerprint] = _for_its_epochs(earlier, item)
            continue
        keys = ("seconds", "parameters", "flops_per_token", "memory_bytes")
        found = {key: getattr(made, key) for key in keys}
        estimates[item.spec.fingerprint] = {**found, "epochs": item.spec.config.train.epochs, "at": now}
    after = {**_with_other_manifests(record, before), "estimates": estimates}
    if after == before:
        return
    try:
        write_json(path, after)
    except FileError as error:
        tell(f"warning: {error}; the report will lack the facts of the manifest")


def _for_its_epochs(earlier: Mapping[str, Any], item: PlannedRun) -> Mapping[str, Any]:
    """Return the estimate of a run from an earlier launch, for the epochs that this launch requests.

    What it lacks for more epochs is estimated now.
    """
    epochs, covered, seconds = item.spec.config.train.epochs, earlier.get("epochs"), earlier.get("seconds")
    if not isinstance(covered, int) or covered == epochs:
        return earlier
    if seconds is not None and epochs < covered:
        seconds *= epochs / covered
    elif seconds is not None:
        left = max(1, epochs - item.epochs_done)  # which the estimate of now is about
        seconds = None if item.seconds is None else seconds + item.seconds * (epochs - covered) / left
    return {**earlier, "seconds": seconds, "epochs": epochs}


def kept_policy(study_dir: Path, tell: Callable[[str], None]) -> Policy:
    """Return the policy of a study's last launch from a manifest; the defaults if none was kept."""
    return read(Policy, _kept(study_dir, "policy", tell))


def kept_search(study_dir: Path, tell: Callable[[str], None]) -> Search | None:
    """Return the search of a study's last launch from a manifest; ``None`` if it is no search."""
    kept = _kept(study_dir, "search", tell)
    return read(Search, kept) if kept else None


def kept_tables(study_dir: Path, tell: Callable[[str], None]) -> Mapping[str, Mapping[str, Any]]:
    """Return the ``[backend.*]`` tables of a study's last launch from a manifest, by backend; empty if none."""
    return _kept(study_dir, "backend", tell)


def kept_manifest(study_dir: Path) -> Path:
    """Return where the manifest of a study's last launch was: beside this process if that was not kept."""
    found: Mapping[str, Any] = {}
    with contextlib.suppress(FileError):
        found = read_json(study_record_file(study_dir)) or {}
    return Path(str(found.get("folder", "")), str(found.get("manifest", "")))


def _kept(study_dir: Path, section: str, tell: Callable[[str], None]) -> Mapping[str, Any]:
    """Return ``policy``, ``search`` or ``backend`` of the record; empty if it was not kept or is damaged."""
    path = study_record_file(study_dir)
    problems = Problems()
    without = "no run is stopped" if section == "search" else f"the defaults of [{section}] apply"
    try:
        kept: Mapping[str, Any] = (read_json(path) or {}).get(section) or {}
        if kept and section == "backend":
            check_tables(kept, str(path), problems)
        elif kept:
            problems.read(Policy if section == "policy" else Search, kept, str(path))
        if problems.lines:
            raise FileError(problems.lines[0])
    except FileError as error:
        tell(f"warning: {error}; {without}")
        return {}
    return kept
