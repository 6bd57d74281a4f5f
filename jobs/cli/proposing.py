"""``propose``: settings for the next runs of a study, as tables to add to its manifest."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.manifests.load import load_manifest
from jobs.plan.proposals import NEIGHBOURS, Space, Trained, propose, setting_of, spaces_of_runs
from jobs.plan.record import kept_search
from jobs.study.folder import ObservedRun, find_study, observe_study
from seqlm.errors import DamagedFileError, UsageError
from seqlm.files import read_json
from seqlm.reading import is_file
from seqlm.run_layout import study_record_file
from seqlm.search import Search

SAMPLER = "Optuna's TPE"
PREDICTED_BY = (
    f"mean of the {NEIGHBOURS} nearest runs, weighted by 1/distance; a diverged run has the worst value of all"
)


def propose_runs(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Print a ``[[run]]`` for each proposal, with its reason as a comment."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    record: Mapping[str, Any] = read_json(study_record_file(study_dir)) or {}
    path = Path(arguments.study)
    manifest = load_manifest(path) if path.suffix == ".toml" and is_file(path) else None
    search = kept_search(study_dir, terminal.tell) if manifest is None else manifest.search
    metric = Search.metric if search is None else search.metric
    observed = [run for run in observe_study(study_dir) if run.config is not None]
    trained = [found for run in observed if (found := trained_run(run, metric)) is not None]
    if not any(run.finished for run in trained):
        raise UsageError(f"{study_dir.name}: expected at least one finished run to learn from, found none")
    has = [(run.name, run.config.by_key()) for run in observed if run.config is not None]
    try:
        has += [(str(one["name"]), dict(one["config"])) for one in record.get("planned", []) if "config" in one]
        has += [(spec.name, spec.config.by_key()) for spec in manifest.runs] if manifest else []
        samples = record.get("samples", []) if manifest is None else manifest.samples
        known = [values for _, values in has]
        spaces = [Space.of_sample(sample) for sample in samples] or spaces_of_runs(trained, known)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise DamagedFileError(f"{study_record_file(study_dir)} is damaged; launch the manifest again") from None
    if not spaces:
        raise UsageError(
            f"{study_dir.name}: no [[sample]], and its trained runs of one architecture and optimizer differ in no "
            "number; add a [[sample]] with ranges to the manifest"
        )
    proposals = propose(
        spaces,
        trained,
        arguments.count,
        arguments.seed,
        taken={setting_of(values) for _, values in has},
        names={name for name, _ in has},
    )
    if not proposals:
        raise UsageError(
            f"{study_dir.name}: every setting in its ranges is in the study already, or nearly; widen a range"
        )
    if len(proposals) < arguments.count:
        terminal.tell(
            f"found only {len(proposals)} of {arguments.count} settings that are not in the study already, or nearly"
        )
    states = Counter(map(state_of, trained))
    counts = {state: states[state] for state in ("finished", "stopped", "diverged")}
    basis = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    terminal.say(f"# {len(proposals)} proposals of {SAMPLER}, fitted to {basis} runs of {study_dir.name}")
    terminal.say(f"# predicted: {PREDICTED_BY}")
    terminal.say("# distance: share of the ranges, from 0 to 1")
    records = []
    for number, proposal in enumerate(proposals, start=1):
        nearest = proposal.nearest
        value = "" if nearest.value is None else f" with {metric} {nearest.value:.5g}"
        near = f"nearest run {nearest.name} ({state_of(nearest)}{value}, distance {proposal.distance:.2f})"
        table = {"name": proposal.name, **proposal.values}
        lines = [f"{key} = {json.dumps(one, ensure_ascii=False)}" for key, one in table.items()]
        said = [f"\n# {number}: predicted {metric} {proposal.predicted:.5g}; {near}", "[[run]]", *lines]
        terminal.say("\n".join(said))
        records.append(
            {
                "name": proposal.name,
                "values": dict(proposal.values),
                "nearest": {"name": nearest.name, "value": nearest.value, "distance": proposal.distance},
                "predicted": proposal.predicted,
                "predicted_by": PREDICTED_BY,
            }
        )
    return {"study": study_dir.name, "metric": metric, "sampler": SAMPLER, **counts, "proposals": records}, 0


def trained_run(run: ObservedRun, metric: str) -> Trained | None:
    """Return what a run shows of its settings: its best value, or its last one if it was stopped.

    ``None``: it has neither finished nor been stopped nor diverged.
    """
    assert run.config is not None
    epochs, _ = run.run.read_metrics()
    values = [one[metric] for one in epochs if isinstance(one.get(metric), int | float) and math.isfinite(one[metric])]
    state = run.observation.state
    value = None if not values else min(values) if state == "done" else values[-1] if state == "stopped" else None
    if value is None and run.observation.kind != "diverged":
        return None
    return Trained(name=run.name, config=run.config, value=value, epochs=len(epochs), finished=state == "done")


def state_of(run: Trained) -> str:
    """Return whether a run has finished, was stopped, or has diverged."""
    return "finished" if run.finished else "diverged" if run.value is None else "stopped"
