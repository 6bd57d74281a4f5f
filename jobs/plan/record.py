"""``study.json`` in a study's folder: facts of the manifest and estimates, for readers that have only the folder.

Every launch records the whole manifest as written, whatever ``--only`` selects and ``--set`` changes, so that the
report can list runs that were never launched. What other manifests planned for the study is kept.
:class:`jobs.study.record.StudyRecord` reads it.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.manifests.load import Manifest
from jobs.manifests.secrets import looks_secret
from jobs.plan.planned import PlannedRun
from jobs.spec import RunSpec
from seqlm.config import RunConfig
from seqlm.data.corpus import resolve_data
from seqlm.errors import FileError, SeqlmError
from seqlm.files import read_json, write_json
from seqlm.rundir import STUDY_FORMAT, study_record_file

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
                **_after(replace(spec, config=written[spec.name])),
                **named,
            }
            for spec in manifest.written
        ],
        "excluded": [{**run, **named} for run in manifest.excluded],
        "expectations": [
            {
                **claim,
                "lower": [prints[name] for name in claim["lower"]],
                "higher": [prints[name] for name in claim["higher"]],
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
        "behaviour": list(
            dict.fromkeys(
                fingerprint
                for spec in manifest.runs
                if spec.entry in manifest.behaviour
                for fingerprint in (prints[spec.entry], resolve(spec).fingerprint())
            )
        ),
        "policy": manifest.policy.to_dict(),
        "notify": None if manifest.notify is None else manifest.notify.to_dict(),
        "search": None if manifest.search is None else manifest.search.to_dict(),
        "backend": {name: _without_secrets(table) for name, table in manifest.backend.items()},
    }


def _after(spec: RunSpec) -> dict[str, str]:
    """Return the fingerprint of the run that a final seed follows, as ``after``; nothing of another run."""
    fingerprint = spec.first_fingerprint()
    return {} if fingerprint is None else {"after": fingerprint}


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

    The caller owns the study. Problems with the file are reported through ``tell`` and never stop a launch,
    since only the report needs it.
    """
    path = study_record_file(study_dir)
    before: Mapping[str, Any] = {}
    try:
        before = read_json(path) or {}
    except FileError as error:
        tell(f"warning: {error}; it is replaced, and the estimates and plans of earlier launches are lost")
    kept = before.get("estimates")
    estimates = dict(kept) if isinstance(kept, dict) else {}
    for item in todo:
        if item.estimate is not None:
            estimates[item.spec.fingerprint] = _estimate(item, estimates.get(item.spec.fingerprint))
    after = {**_with_other_manifests(record, before), "estimates": estimates}
    if after == before:
        return
    try:
        write_json(path, after)
    except FileError as error:
        tell(f"warning: {error}; the report will lack the facts of the manifest")


def _estimate(item: PlannedRun, earlier: Any) -> dict[str, Any]:
    """Return the seconds that a run takes for all its epochs, by an epoch as it was estimated before the run began."""
    epochs = item.spec.config.train.epochs
    each = None if item.seconds is None else item.seconds / max(1, epochs - item.epochs_done)
    match earlier:
        case {"seconds": int() | float() as seconds, "epochs": int(covered)} if covered > 0:
            each = seconds / covered
        case {"seconds": None} if item.action != "start":  # the run itself has shown its speed since
            each = None
    return {"seconds": None if each is None else each * epochs, "epochs": epochs}
