"""``propose``: settings for the next runs of a study, as tables to add to its manifest.

:mod:`jobs.plan.proposals` has the rule. Here are the runs that it is fitted to, read from studies, and what is printed.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.manifests.load import Manifest, load_manifest
from jobs.plan.proposals import (
    SAMPLER,
    Ended,
    Evidence,
    Proposal,
    Proposer,
    Space,
    end_losses,
    is_inside,
    loss_limit,
    setting_of,
)
from jobs.study.folder import ObservedRun, find_study, observe_study
from jobs.study.record import KeptManifests
from seqlm.errors import DamagedFileError, UsageError
from seqlm.reading import finite, is_file, is_folder
from seqlm.rundir import study_record_file
from seqlm.search import Search

ENDS: tuple[Ended, ...] = ("finished", "stopped", "diverged", "running")
ENDED: Mapping[str, Ended] = {
    "done": "finished", "stopped": "stopped", "pending": "running", "queued": "running", "running": "running",
}  # fmt: skip
"""State of a run -> what its evidence is. A run that failed or was cancelled says nothing, unless it diverged."""
KINDS = ("model.arch", "model.source", "optim.optimizer")
"""Keys in which the runs of an earlier study must agree with a ``[[sample]]``."""


@final
class _Study:
    """A study as far as proposals need it: its runs, and the ranges of its manifest or its last launch."""

    def __init__(self, argument: str, runs_dir: Path) -> None:
        """Read a study. A manifest that was not launched yet is a study without runs."""
        path = Path(argument)
        is_manifest = path.suffix == ".toml" and is_file(path)
        self.manifest: Manifest | None = load_manifest(path) if is_manifest else None
        new_folder = runs_dir / self.manifest.study if self.manifest else None
        is_new = new_folder is not None and not is_folder(new_folder)
        self.folder = new_folder if new_folder is not None and is_new else find_study(argument, runs_dir)
        self.name = self.folder.name
        self._record = KeptManifests(self.folder, terminal.tell)
        self.runs = [] if is_new else [run for run in observe_study(self.folder) if run.config is not None]
        search = self._record.search if self.manifest is None else self.manifest.search
        self.metric = Search.metric if search is None else search.metric

    def spaces(self) -> list[Space]:
        """Return the space of each ``[[sample]]``."""
        with self._readable():
            samples = self._record.file.samples if self.manifest is None else self.manifest.samples
            return [Space.of(sample) for sample in samples]

    def planned(self) -> list[tuple[str, dict[str, Any]]]:
        """Return name and values of all runs, also of those that the record or the manifest alone has."""
        with self._readable():
            found = [(run.name, _values(run)) for run in self.runs]
            found += [(entry.name, dict(entry.config)) for entry in self._record.planned if entry.config]
            found += [(spec.name, spec.config.by_key()) for spec in self.manifest.runs] if self.manifest else []
            return found

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError):
            line = f"{study_record_file(self.folder)} is damaged; launch the manifest again"
            raise DamagedFileError(line) from None


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """A space whose losses can be compared, with its runs and what proposes from them."""

    space: Space
    runs: Mapping[str, Ended]
    """Run id -> how it ended, of the study itself."""
    earlier: Sequence[Evidence]
    proposer: Proposer


def propose_runs(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Print a ``[[run]]`` for each proposal, with its reason as a comment."""
    study = _Study(arguments.study, arguments.runs_dir)
    earlier = _Study(arguments.earlier, arguments.runs_dir) if arguments.earlier else None
    spaces, planned = study.spaces(), study.planned()
    if not spaces:
        raise UsageError(f"{study.name}: no [[sample]] to propose from; add one with ranges to the manifest")
    fitted = [one for space in spaces for one in _fit(space, study, planned, earlier, arguments.seed or 0)]
    if not fitted:
        raise UsageError(f"{study.name}: expected at least one finished run of a [[sample]], found none")
    records = _propose(fitted, planned, study.metric, arguments.count)
    if not records:
        raise UsageError(f"{study.name}: every setting in its ranges is in the study already; widen a range")
    if len(records) < arguments.count:
        terminal.tell(f"found only {len(records)} of {arguments.count} settings that are not in the study already")
    counts = Counter({run: ended for one in fitted for run, ended in one.runs.items()}.values())
    ends: dict[str, int] = {ended: counts[ended] for ended in ENDS}
    words = {"running": "unfinished"}
    basis = ", ".join(f"{number} {words.get(ended, ended)}" for ended, number in ends.items() if number)
    basis = f"{basis} runs of {study.name}" if basis else ""
    of_earlier = len({run.name for one in fitted for run in one.earlier})
    if earlier is not None:
        basis += f"{' and ' if basis else ''}{of_earlier} runs of {earlier.name}"
    terminal.say(f"# {len(records)} proposals of {SAMPLER}, fitted to {basis}")
    for one in records:
        table = {"name": one["name"], **one["values"]}
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
        terminal.say("", f"# {_reason(one, study.metric)}", "[[run]]", *lines)
    return {
        "study": study.name,
        "metric": study.metric,
        "sampler": SAMPLER,
        **ends,
        "earlier": of_earlier,
        "proposals": records,
    }, 0


def _propose(
    fitted: Sequence[_Fitted], planned: Sequence[tuple[str, Mapping[str, Any]]], metric: str, count: int
) -> list[dict[str, Any]]:
    """Return up to ``count`` proposals, of each space in turn. None is in the study already."""
    taken, names = {setting_of(values) for _, values in planned}, {name for name, _ in planned}
    records: list[dict[str, Any]] = []
    left = list(fitted)
    while left and len(records) < count:
        one = left.pop(0)
        space = one.space

        def is_free(drawn: Mapping[str, Any], space: Space = space) -> bool:
            config = space.config(drawn)
            return config is not None and setting_of(config.by_key()) not in taken and space.allows(drawn)

        proposal = one.proposer.ask(is_free)
        if proposal is None:
            continue  # the space has no more settings
        left.append(one)
        config = space.config(proposal.drawn)
        assert config is not None, "settings that are no valid run are not free"
        name = space.run_name(proposal.drawn, config.by_key())
        while name in names:
            name += "-2"
        taken.add(setting_of(config.by_key()))
        names.add(name)
        seeds = {"seeds": space.seeds} if space.seeds else {}
        values = {**space.written, **proposal.drawn, **seeds}
        records.append({"name": name, "values": values, **_reason_of(proposal, metric)})
    return records


def _reason_of(proposal: Proposal, metric: str) -> dict[str, Any]:
    nearest = proposal.nearest
    return {
        "is_draw": proposal.is_draw,
        "predicted": _in_metric(proposal.predicted, metric),
        "nearest": {
            "name": nearest.name,
            "ended": nearest.ended,
            "value": None if nearest.ended == "diverged" else _in_metric(proposal.nearest_loss, metric),
            "distance": proposal.distance,
        },
    }


def _reason(record: Mapping[str, Any], metric: str) -> str:
    near = record["nearest"]
    value = "diverged" if near["value"] is None else f"{metric} {near['value']:.5g}"
    value += " expected at its end" if near["ended"] == "stopped" else ""
    source = "a draw near what was proposed, which cannot be run or was; " if record["is_draw"] else ""
    predicted = f"predicted {metric} {record['predicted']:.5g}"
    return f"{source}{predicted}; nearest run {near['name']} ({value}), distance {near['distance']:.2f}"


def _in_metric(loss: float, metric: str) -> float:
    return math.exp(loss) if metric.endswith("_ppl") else loss


# -- runs as evidence ----------------------------------------------------------------------------------------------


def _fit(
    space: Space,
    study: _Study,
    planned: Sequence[tuple[str, Mapping[str, Any]]],
    earlier: _Study | None,
    seed: int,
) -> Iterator[_Fitted]:
    """Yield each part of a space in which losses can be compared and in which a run has finished.

    A run that the study plans and that has no result yet counts as running.
    """
    seen = {setting_of(_values(run)) for run in study.runs}
    waiting = {setting_of(values): (name, values) for name, values in planned if setting_of(values) not in seen}
    for part in _parts(space, [*(_values(run) for run in study.runs), *(_values(run) for run in _runs(earlier))]):
        own = [(run, found) for run in study.runs if (found := _evidence(part, run, study.metric)) is not None]
        known = {setting_of(_values(run)) for run, found in own if found.ended != "running"}
        # Another seed of a setting with a result is no news of it.
        own = [(run, found) for run, found in own if found.ended != "running" or setting_of(_values(run)) not in known]
        evidence = [found for _, found in own]
        evidence += [
            Evidence(name=name, drawn={key: values[key] for key in part.drawn}, ended="running", losses={})
            for name, values in waiting.values()
            if part.has(values)
        ]
        from_earlier = _earlier_evidence(part, earlier, evidence, study.metric)
        if any(run.ended == "finished" and run.losses for run in (*evidence, *from_earlier)):
            yield _Fitted(
                space=part,
                runs={run.run.id: found.ended for run, found in own},
                earlier=from_earlier,
                proposer=Proposer(part.drawn, [*evidence, *from_earlier], seed=seed),
            )


def _parts(space: Space, runs: Sequence[Mapping[str, Any]]) -> list[Space]:
    """Return the space; if it varies the text, a part for each text that a run has, with something else to vary."""
    if not space.text_keys:
        return [space]
    texts = [{key: values.get(key) for key in space.text_keys} for values in runs]
    drawn = {key: space.drawn[key] for key in space.text_keys}
    found = {json.dumps(text, sort_keys=True): text for text in texts if is_inside(drawn, text)}
    return [part for _, text in sorted(found.items()) if (part := space.at_text(text)).drawn]


def _evidence(space: Space, run: ObservedRun, metric: str, *, is_earlier: bool = False) -> Evidence | None:
    """Return what a run says of its setting. ``None``: nothing, or it is no setting of the space.

    ``is_earlier``: the run is of another study, and may differ from the space in keys that are not drawn.
    """
    seen, values = run.observation, _values(run)
    ended: Ended | None = "diverged" if seen.kind == "diverged" else ENDED.get(seen.state)
    drawn = {key: values.get(key) for key in space.drawn}
    if ended is None or not (is_inside(space.drawn, drawn) if is_earlier else space.has(values)):
        return None
    most = loss_limit(values.get("data.vocab_size"))
    losses: dict[int, float] = {}
    for record in run.epochs():
        value = finite(record.get(metric))
        if value is not None and (value > 0 or metric == "val_loss"):
            losses[record["epoch"] + 1] = min(value if metric == "val_loss" else math.log(value), most)
    if (ended == "finished" and not losses) or (ended == "stopped" and seen.epochs_done == 0):
        return None
    return Evidence(name=run.name, drawn=drawn, ended=ended, losses=losses, epochs=seen.epochs_done)


def _earlier_evidence(space: Space, earlier: _Study | None, own: Sequence[Evidence], metric: str) -> list[Evidence]:
    """Return the runs of an earlier study with drawn values in the ranges of a space, and its model and optimizer.

    If such a run differs from the space in other keys, or went another number of epochs, its losses are not those that
    it would have here. They are shifted, all by the same number, so that the lowest of them is the lowest loss here.
    """
    same: list[Evidence] = []
    alike: list[Evidence] = []
    for run in _runs(earlier):
        found, values = _evidence(space, run, metric, is_earlier=True), _values(run)
        if found is None or found.ended == "running" or earlier is None:
            continue
        named = replace(found, name=f"{earlier.name}/{found.name}")
        config = space.config(found.drawn)
        if config is None or any(config.by_key().get(key) != values.get(key) for key in KINDS):
            continue
        has_epochs = config.train.epochs == values.get("train.epochs")
        (same if has_epochs and space.has(values) else alike).append(named)
    lowest_here = min((loss for loss in end_losses([*own, *same]) if loss is not None), default=None)
    lowest_there = min((loss for loss in end_losses(alike) if loss is not None), default=None)
    if lowest_here is None or lowest_there is None:
        return [*same, *alike]
    shift = lowest_here - lowest_there
    return [*same, *(replace(run, losses={e: loss + shift for e, loss in run.losses.items()}) for run in alike)]


def _runs(study: _Study | None) -> list[ObservedRun]:
    return [] if study is None else study.runs


def _values(run: ObservedRun) -> dict[str, Any]:
    assert run.config is not None, "those without were left out"
    return run.config.by_key()
