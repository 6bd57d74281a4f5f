"""What has changed since runs of a study were launched: their texts, and the files of their own models."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.plan.planned import PlannedRun
from jobs.spec import RunSpec
from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from seqlm.data.corpus import cached_facts
from seqlm.errors import FileError, ModelError
from seqlm.model_files import ModelFiles, read_model_files
from seqlm.rundir import RunDirectory

SHOWN_DIGITS = 12
"""Digits of a digest in a message."""


def changes(planned: Sequence[PlannedRun], study_dir: Path) -> list[str]:
    """Return a line for each text and own model with which runs start that earlier runs have with another content."""
    starting = {
        _without_digests(item.spec.config): item
        for item in planned
        if item.action == "start" and _digests(item.spec.config) != (None, None)
    }
    found: dict[str, int] = {}
    for run in RunDirectory.unordered_in(study_dir) if starting else ():
        with contextlib.suppress(FileError, ModelError):
            before = run.read_config()
            item = starting.get(_without_digests(before))
            for what in () if item is None else _differences(before, run, item):
                found[what] = found.get(what, 0) + 1
    return [
        f"{what.format(runs='1 run of this study was' if number == 1 else f'{number} runs of this study were')}; "
        "they keep what they began with, and new runs start with what is there now"
        for what, number in sorted(found.items())
    ]


def _digests(config: RunConfig) -> tuple[str | None, str | None]:
    return config.data.sha256, config.model.sha256 if isinstance(config.model, CustomConfig) else None


def _without_digests(config: RunConfig) -> RunConfig:
    model = config.model
    model = replace(model, sha256=None) if isinstance(model, CustomConfig) else model
    return replace(config.with_epochs(1), data=replace(config.data, sha256=None), model=model)


def _differences(before: RunConfig, run: RunDirectory, item: PlannedRun) -> Iterable[str]:
    now = item.spec.config
    if before.data.sha256 != now.data.sha256:
        then = cached_facts(before.data)
        counts = [
            f"{split} {then.tokens[split]:,} -> {tokens:,} tokens"
            for split, tokens in (item.facts.tokens.items() if then and item.facts else ())
            if then and then.tokens[split] != tokens
        ]
        where = "pydoc" if now.data.corpus == "pydoc" else item.spec.data_path
        yield f"the text ({where}) {_changed(before.data.sha256, now.data.sha256, counts)}"
    if isinstance(now.model, CustomConfig) and isinstance(before.model, CustomConfig):
        files = item.spec.model_files
        if before.model.sha256 != now.model.sha256 and files is not None:
            counts = [_lines(read_model_files(before.model, run.model_dir), files)]
            yield f"{now.model.source} {_changed(before.model.sha256, now.model.sha256, counts)}"


def _changed(before: str | None, now: str | None, counts: Sequence[str]) -> str:
    digests = f"sha256 {str(before)[:SHOWN_DIGITS]} -> {str(now)[:SHOWN_DIGITS]}"
    return f"has changed since {{runs}} launched ({', '.join([digests, *counts])})"


def _lines(before: ModelFiles, now: ModelFiles) -> str:
    """Return how many lines two versions of a model's files differ in, such as ``+2 -1 lines``."""
    then, there = (
        b"\n".join(content for _, content in sorted(files.contents.items())).decode(errors="replace").splitlines()
        for files in (before, now)
    )
    marks = [line[0] for line in difflib.ndiff(then, there)]
    return f"+{marks.count('+')} -{marks.count('-')} lines"


def edited_models(specs: Iterable[RunSpec], manifest: Path) -> list[str]:
    """Return a line for each own model of runs to retry whose files beside ``manifest`` are not those of the runs."""
    models = dict.fromkeys(model for spec in specs if isinstance(model := spec.config.model, CustomConfig))
    found = []
    for model in models:
        with contextlib.suppress(FileError, ModelError):  # the manifest was moved, or its files were
            if read_model_files(replace(model, sha256=None), manifest.parent).sha256 != model.sha256:
                found.append(
                    f"{model.source} has changed; `retry` trains the copy that the run began with; `run {manifest}` "
                    "starts the changed one"
                )
    return found
