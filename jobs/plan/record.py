"""``study.json`` in a study's folder: facts of the manifest and estimates, for readers that have only the folder.

Every launch records the whole manifest as written, whatever ``--only`` selects and ``--set`` changes, so that the
report can list runs that were never launched. What other manifests planned for the study is kept.
:class:`jobs.study.record.KeptManifests` reads it.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from jobs.manifests.load import Manifest
from jobs.manifests.secrets import looks_secret
from jobs.plan.planned import PlannedRun
from jobs.spec import RunSpec
from seqlm.config import RunConfig
from seqlm.data.corpus import resolve_data
from seqlm.errors import FileError, SeqlmError
from seqlm.records.studies import Claim, Entry, Estimate, Excluded, Group, LastLaunch, ManifestNote, StudyFile
from seqlm.references import runs_in
from seqlm.rundir import STUDY_FORMAT, study_record_file


class _OfManifest(Protocol):
    @property
    def manifest(self) -> str | None: ...


_PartT = TypeVar("_PartT", bound=_OfManifest)


def record_of(
    manifest: Manifest, chosen: Sequence[RunSpec], data_path: Path | None, launched: LastLaunch | None = None
) -> StudyFile:
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
    name = manifest.path.name
    asked = [spec for spec in manifest.runs if spec.entry in manifest.behaviour]
    asked_prints = (fingerprint for spec in asked for fingerprint in (prints[spec.entry], resolve(spec).fingerprint()))
    return StudyFile(
        version=STUDY_FORMAT,
        study=manifest.study,
        manifest=name,
        folder=str(manifest.path.parent.absolute()),
        planned=tuple(
            Entry(
                number=spec.order + 1,
                name=spec.name,
                fingerprint=prints[spec.name],
                arch=spec.config.model.kind,
                optimizer=spec.config.optim.kind,
                config=written[spec.name].by_key(),
                published=published.get(spec.name, {}),
                after=replace(spec, config=written[spec.name]).first_fingerprint(),
                manifest=name,
            )
            for spec in manifest.written
        ),
        excluded=tuple(Excluded(**run, manifest=name) for run in manifest.excluded),
        expectations=tuple(
            Claim(
                **{
                    **claim,
                    "lower": tuple(prints[run] for run in claim["lower"]),
                    "higher": tuple(prints[run] for run in claim["higher"]),
                },
                manifest=name,
            )
            for claim in manifest.expectations
        ),
        groups=tuple(
            Group(title=title, runs=tuple(prints[run] for run in runs), manifest=name)
            for title, runs in manifest.groups.items()
        ),
        notes=tuple(
            ManifestNote(
                part=part, text=text, runs={run: prints[run] for run in runs_in(text) if run in prints}, manifest=name
            )
            for part, text in manifest.notes.items()
        ),
        samples=tuple({**sample, "manifest": name} for sample in manifest.samples),
        behaviour=tuple(dict.fromkeys(asked_prints)),
        policy=manifest.policy.to_dict(),
        notify=None if manifest.notify is None else manifest.notify.to_dict(),
        search=None if manifest.search is None else manifest.search.to_dict(),
        backend={backend: _without_secrets(table) for backend, table in manifest.backend.items()},
        launched=launched,
    )


def kept_tables(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a manifest as ``study.json`` keeps them: without values that look like secrets."""
    backends = {backend: _without_secrets(table) for backend, table in tables.get("backend", {}).items()}
    return {**tables, "backend": backends} if backends else dict(tables)


def _without_secrets(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backend's table in which variables that look like secrets are moved from ``env`` to ``env_pass``."""
    names = [name for name in table.get("env", {}) if looks_secret(name)]
    if not names:
        return dict(table)
    env = {name: value for name, value in table["env"].items() if name not in names}
    return {**table, "env": env, "env_pass": list(dict.fromkeys([*table.get("env_pass", ()), *names]))}


def _with_other_manifests(record: StudyFile, before: StudyFile) -> StudyFile:
    """Return a record with what ``before`` has of other manifests, the manifests in the order of their first launches.

    A run that several manifests plan is an entry of the first. The runs are numbered consecutively.
    """
    manifests = [*(entry.manifest for entry in before.planned if entry.manifest is not None), record.manifest]
    place: dict[str | None, int] = {name: number for number, name in enumerate(dict.fromkeys(manifests))}

    def together(earlier: Sequence[_PartT], now: Sequence[_PartT]) -> tuple[_PartT, ...]:
        others = [part for part in earlier if part.manifest in place and part.manifest != record.manifest]
        return tuple(sorted([*others, *now], key=lambda part: place.get(part.manifest, 0)))

    firsts: dict[str, Entry] = {}
    for entry in together(before.planned, record.planned):
        firsts.setdefault(entry.fingerprint, entry)
    earlier = [one for one in before.samples if one.get("manifest") in place]
    others = [one for one in earlier if one.get("manifest") != record.manifest]
    samples = sorted([*others, *record.samples], key=lambda sample: place.get(sample.get("manifest"), 0))
    return replace(
        record,
        planned=tuple(replace(entry, number=number) for number, entry in enumerate(firsts.values(), start=1)),
        excluded=together(before.excluded, record.excluded),
        expectations=together(before.expectations, record.expectations),
        groups=together(before.groups, record.groups),
        notes=together(before.notes, record.notes),
        samples=tuple(samples),
    )


def write_record(study_dir: Path, record: StudyFile, todo: Sequence[PlannedRun], tell: Callable[[str], None]) -> None:
    """Write ``study.json`` with the estimate of each run in ``todo``, if anything has changed.

    The caller owns the study. Problems with the file are reported through ``tell`` and never stop a launch,
    since only the report needs it.
    """
    before = StudyFile.read_parts(study_record_file(study_dir), lambda line: tell(f"warning: {line}; it is replaced"))
    estimates = dict(before.estimates)
    for item in todo:
        if item.estimate is not None:
            estimates[item.spec.fingerprint] = _estimate(item, estimates.get(item.spec.fingerprint))
    after = replace(_with_other_manifests(record, before), estimates=estimates)
    if after == before:
        return
    try:
        after.write(study_dir)
    except FileError as error:
        tell(f"warning: {error}; the report will lack the facts of the manifest")


def _estimate(item: PlannedRun, earlier: Estimate | None) -> Estimate:
    """Return the seconds that a run takes for all its epochs, by an epoch as it was estimated before the run began."""
    epochs = item.spec.config.train.epochs
    each = None if item.seconds is None else item.seconds / max(1, epochs - item.epochs_done)
    if earlier is not None and earlier.seconds is not None and earlier.epochs is not None:
        each = earlier.seconds / earlier.epochs
    elif earlier is not None and earlier.seconds is None and item.action != "start":
        each = None  # the run itself has shown its speed since
    return Estimate(seconds=None if each is None else each * epochs, epochs=epochs)
