"""What has changed since runs of a study were launched: their texts, tokenizers, and the files of their own models."""

import contextlib
import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


def changes(planned: Sequence[PlannedRun], study_dir: Path) -> list[str]:
    """Return a line for each text, tokenizer and model of yours that runs to start have in another version."""
    starting = [item for item in planned if item.action == "start" and any(_digests(item.spec.config).values())]
    runs = list(RunDirectory.unordered_in(study_dir)) if starting else []
    by_rest = {_without_digests(item.spec.config): item for item in starting if runs}
    found: Counter[str] = Counter()
    for run in runs:
        with contextlib.suppress(FileError, ModelError):
            before = run.read_config()
            if (item := by_rest.get(_without_digests(before))) is not None:
                then = _digests(before)
                for name, now in _digests(item.spec.config).items():
                    if now != then[name]:
                        digests = f"sha256 {str(then[name])[:12]} -> {str(now)[:12]}"
                        found[f"{name} has changed ({', '.join([digests, *_sizes(before, run, item)])})"] += 1
    return [
        f"{what} since {'1 run' if number == 1 else f'{number} runs'} of this study began; "
        "earlier runs keep what they began with, and new runs start with what is there now"
        for what, number in sorted(found.items())
    ]


def _digests(config: RunConfig) -> Mapping[str, str | None]:
    own = {config.model.source: config.model.sha256} if isinstance(config.model, CustomConfig) else {}
    return {"the text": config.data.sha256, f"{config.data.tokenizer}": config.data.tokenizer_sha256, **own}


def _without_digests(config: RunConfig) -> RunConfig:
    model = replace(config.model, sha256=None) if isinstance(config.model, CustomConfig) else config.model
    return replace(config.with_epochs(1), data=replace(config.data, sha256=None, tokenizer_sha256=None), model=model)


def _sizes(before: RunConfig, run: RunDirectory, item: PlannedRun) -> Iterable[str]:
    """Return how many tokens each split has then and now, and how many lines of the user's own model differ."""
    then, now = cached_facts(before.data, before.data.sha256), item.facts
    if then and now:
        yield from (
            f"{split} {then.tokens[split]:,} -> {tokens:,} tokens"
            for split, tokens in now.tokens.items()
            if then.tokens[split] != tokens
        )
    files, model = item.spec.model_files, before.model
    if isinstance(model, CustomConfig) and files is not None and files.sha256 != model.sha256:
        old, new = (_lines(one) for one in (read_model_files(model, run.model_source(model)), files))
        marks = Counter(line[0] for line in difflib.ndiff(old, new))
        yield f"+{marks['+']} -{marks['-']} lines"


def _lines(files: ModelFiles) -> list[str]:
    return b"\n".join(content for _, content in sorted(files.contents.items())).decode(errors="replace").splitlines()


def edited_models(specs: Iterable[RunSpec], manifest: Path) -> list[str]:
    """Return a line for each of your own models of runs to retry whose files beside ``manifest`` are not theirs."""
    models = dict.fromkeys(model for spec in specs if isinstance(model := spec.config.model, CustomConfig))
    found = []
    for model in models:
        with contextlib.suppress(FileError, ModelError):  # the manifest was moved, or its files were
            if read_model_files(replace(model, sha256=None), manifest.parent).sha256 != model.sha256:
                found.append(
                    f"{model.source} has changed; `retry` trains the copy that the run began with; `run {manifest}` "
                    "starts the changed one"
                )
    return list(dict.fromkeys(found))  # models that differ in arguments alone have one line
