"""The commands that launch: plan, run, retry, behaviour; and report, which computes missing behaviour.

Each finds its runs and where they go. :func:`jobs.cli.request.carry_out` launches them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from jobs import terminal
from jobs.cli.arguments import (
    EXIT_RUN_FAILED,
    BehaviourArguments,
    LaunchArguments,
    PlanArguments,
    ReportArguments,
    RetryArguments,
    RunArguments,
    StudyArguments,
)
from jobs.cli.request import BackendChoice, attend, carry_out, choose, choose_again
from jobs.cli.studying import chosen_runs
from jobs.cli.view import status_table
from jobs.launch.behaviour import FAILURES, SETTINGS, BehaviourLaunch
from jobs.launch.job import LaunchOptions
from jobs.launch.own_models import check_models
from jobs.launch.prepare import (
    check_data,
    estimated,
    find_data,
    in_search,
    plan_runs,
    resolve_resources,
    resolve_specs,
)
from jobs.manifests.filters import asks_for_identity, facts_of_spec, select
from jobs.manifests.load import Manifest, load_manifest
from jobs.manifests.reader import find_manifest
from jobs.plan.affordable import BudgetPlan
from jobs.plan.estimate import earlier_throughput
from jobs.plan.planned import Action, PlannedRun
from jobs.plan.record import kept_policy, kept_search, kept_untracked, record_of, require_same_tokenizers
from jobs.plan.totals import totals
from jobs.search import expected_share, search_line
from jobs.spec import RunSpec
from jobs.study.budget import Budget, KeptBudget, Ledger
from jobs.study.folder import find_study, is_behaviour_study, observe_study
from jobs.study.kept_code import distrust
from seqlm.data.corpus import corpus_facts
from seqlm.errors import DataError, SeqlmError, UsageError, printable
from seqlm.machine import cpu_count
from seqlm.rundir import Observation, RunDirectory
from slurm import backend as slurm_backend
from slurm.submission import require_plain_path

REPORT_SECONDS = 10
"""How often ``report --watch`` checks for changes, and its page reloads."""

MOST_PROCESSES = 8
"""How many processes draw the figures of a large study, however many cores there are."""

# -- plan ----------------------------------------------------------------------------------------------------------


def plan(arguments: PlanArguments) -> tuple[Any, int]:
    """Print what ``run`` would do to each run, and the costs. Exit code 2 if ``run`` would refuse the data."""
    manifest, specs, study_dir = _open_manifest(arguments)
    choice = choose(arguments, manifest)
    target, limit = choice.slurm or choice.make(), choice.max_parallel
    planned = _estimated(plan_runs(specs, study_dir), arguments.runs_dir, keep_last=manifest.policy.keep_last)
    planned = in_search(resolve_resources(planned, target, limit), manifest.search)
    todo, budget = [item for item in planned if item.action != "skip"], Budget.of(manifest.policy)
    allowed = BudgetPlan.of(todo, budget, Ledger(study_dir).spent(), manifest.search) if budget else None
    if allowed is not None:
        planned = [replace(item, reason=allowed.waits.get(item.run.id, item.reason)) for item in planned]
    records = [_plan_record(item) for item in planned]
    header = ["run", "id", "action", "parameters", "FLOPs/token", "memory", "time", ""]
    rows = [
        [
            record["name"],
            record["id"],
            f"extend {record['reason']}" if record["action"] == "extend" else record["action"],
            terminal.short_number(record["parameters"]),
            terminal.short_number(record["flops_per_token"]),
            terminal.memory(record["measured_memory_bytes"] or record["memory_bytes"]),
            terminal.duration(record["seconds"]),
            "" if record["action"] == "extend" else record["reason"] or "",
        ]
        for record in records
    ]
    terminal.say_table(terminal.table(header, rows, right=(3, 4, 5, 6)))
    counts = {action: sum(item.action == action for item in planned) for action in get_args(Action)}
    summary = ", ".join(f"{number} {action}" for action, number in counts.items() if number)
    terminal.say(f"\n{manifest.study}: {len(planned)} runs ({summary}) in {printable(str(study_dir))}")
    if manifest.excluded:
        terminal.say(f"excluded by the manifest: {', '.join(run.name for run in manifest.excluded)}")
    search = None
    if manifest.search is not None:
        share = expected_share(manifest.search, specs)
        search = {**manifest.search.to_dict(), "expected_share": share}
        terminal.say(search_line(manifest.search, share))
    costs = totals(planned, target.capacity, max_parallel=limit)
    disk = f"disk {terminal.memory(costs.disk_bytes)} for checkpoints"
    if costs.gpu_hours is None:
        terminal.say(f"{disk}; GPU hours and time are not known: {costs.unknown}")
    else:
        wall = f"{terminal.duration(costs.wall_seconds)} on {choice.where(target)}"
        terminal.say(f"{wall}; {costs.gpu_hours:.3g} GPU hours; {disk}")
    if allowed is not None:
        terminal.say(allowed.line())
    scripts: list[str] = []
    if choice.slurm is not None and any(item.action != "skip" for item in planned):
        require_plain_path(study_dir.absolute())
        scripts = slurm_backend.scripts(planned, study_dir, choice.slurm.settings, manifest.policy, manifest.search)
        for script in scripts:
            terminal.say(f"\nwould submit:\n{script}")
    refused = None
    try:
        check_data(planned)  # plan knows the size of a corpus that run has to read
    except DataError as error:
        refused = str(error)
        terminal.tell(f"error: run would refuse this: {refused}")
    total = {"backend": target.name, "max_parallel": limit, **costs.to_dict()}
    limits = None if allowed is None else allowed.to_dict()
    data = {"study": manifest.study, "runs": records, "search": search, "totals": total, "budget": limits}
    data["refused"] = refused
    return ({**data, "scripts": scripts} if scripts else data), 0 if refused is None else UsageError.exit_code


def _plan_record(item: PlannedRun) -> dict[str, Any]:
    found = item.estimate
    assert found is not None, "plan estimates every run"
    return {
        "name": item.spec.name,
        "id": item.run.id,
        "fingerprint": item.spec.fingerprint,
        "directory": str(item.run.path),
        "action": item.action,
        "reason": item.reason,
        "epochs_done": item.observation.epochs_done,
        "config": item.spec.config.to_dict(),
        "resources": item.spec.resources.to_dict(),
        "parameters": found.parameters,
        "flops_per_token": found.flops_per_token,
        "memory_bytes": found.memory_bytes,
        "measured_memory_bytes": found.measured_memory_bytes,
        "seconds": found.seconds,
    }


def _estimated(planned: Sequence[PlannedRun], runs_dir: Path, *, keep_last: bool) -> list[PlannedRun]:
    facts = functools.cache(corpus_facts)
    specs = [item.spec for item in planned]
    known = [facts(spec.config.data, spec.data_path, spec.tokenizer) for spec in specs]
    planned = [replace(item, facts=found) for item, found in zip(planned, known, strict=True)]
    check_models(planned)
    return estimated(planned, earlier_throughput(runs_dir), keep_last=keep_last)


# -- run, retry, behaviour -----------------------------------------------------------------------------------------


def run(arguments: RunArguments) -> tuple[Any, int]:
    """Launch what is not done yet and print how it ended. Exit code 1 if a run failed."""
    if arguments.dry_run:
        return plan(arguments)
    manifest, specs, study_dir = _open_manifest(arguments)
    data = find_data(arguments.data, manifest.data_path)
    terminal.detail(f"data: {data or 'the default place'}")
    changes = [word for text in arguments.changes for word in ("--set", text)]
    paths = ["--data", str(arguments.data)] if arguments.data else []
    alone = [*terminal.program().split(), "run", arguments.manifest, "--only"]
    options = LaunchOptions(
        study_dir=study_dir,
        record=record_of(manifest, specs, data),
        policy=manifest.policy,
        search=manifest.search,
        untracked=manifest.untracked,
    )
    specs = [replace(spec, command=[*alone, f"name={spec.name}", *changes, *paths]) for spec in specs]
    return train(arguments, specs, options, choose(arguments, manifest))


def retry(arguments: RetryArguments) -> tuple[Any, int]:
    """Launch failed and cancelled runs again and print how they ended. Exit code 1 if a run failed.

    Runs that a search stopped go on only with ``--kind stopped``.
    """
    study_dir = _find_trained(arguments)
    runs = chosen_runs(arguments, study_dir)
    chosen = [one for one in runs if one.config is not None and _is_to_retry(one.observation, arguments.kind)]
    if not chosen:
        what = "was stopped" if arguments.kind == ("stopped",) else "has failed or was cancelled"
        stopped = "stopped" not in arguments.kind and any(one.observation.state == "stopped" for one in runs)
        hint = "; --kind stopped lets runs go on that a search stopped" if stopped else ""
        terminal.say(f"nothing to retry: no such run {what}{hint}")
        return {"study": study_dir.name, "runs": [one.to_dict() for one in runs]}, 0
    specs = [one.to_spec() for one in chosen]
    specs = [replace(spec, data_path=find_data(arguments.data, spec.data_path)) for spec in specs]
    options = LaunchOptions(
        study_dir=study_dir,
        retry=True,
        policy=kept_policy(study_dir, terminal.tell),
        search=kept_search(study_dir, terminal.tell),
        untracked=kept_untracked(study_dir),
    )
    return train(arguments, specs, options, choose_again(study_dir, chosen, arguments))


def _is_to_retry(seen: Observation, kinds: Sequence[str]) -> bool:
    if seen.state == "stopped":
        return "stopped" in kinds
    return seen.state in ("failed", "cancelled") and (not kinds or seen.kind in kinds)


def behaviour(arguments: BehaviourArguments) -> tuple[Any, int]:
    """Compute what trained models do and print what became of each. Exit code 1 if one failed or has no checkpoint."""
    study_dir = _find_trained(arguments)
    wanted = BehaviourLaunch(
        study_dir,
        only=arguments.only,
        exclude=arguments.exclude,
        given={key: value for key in SETTINGS if (value := getattr(arguments, key)) is not None},
        force=arguments.force,
        data=arguments.data,
    )
    if not wanted.jobs:
        terminal.say("nothing to compute: no such run is done")
        return {"study": study_dir.name, "runs": []}, 0
    left = None
    if wanted.specs:
        choice = choose_again(study_dir, [job.run for job in wanted.jobs], arguments)
        left, _ = carry_out(arguments, wanted.specs, wanted.options(), choice)
    outcomes = wanted.outcomes()
    if left is not None:
        missing = [found for found in outcomes if found["state"] == "missing"]
        for found in missing:  # these will have none, however the jobs end
            terminal.tell(behaviour_line(found))
        return left, EXIT_RUN_FAILED if missing else 0
    rows = [[found["name"], found["id"], found["state"], found["reason"] or ""] for found in outcomes]
    terminal.say_table(terminal.table(["run", "id", "state", "reason"], rows, colors={2: terminal.STATE_COLORS}))
    data = {"study": study_dir.name, "runs": outcomes}
    return data, _exit_code([found for found in outcomes if found["state"] in FAILURES])


def train(
    arguments: LaunchArguments, specs: Sequence[RunSpec], options: LaunchOptions, choice: BackendChoice
) -> tuple[Any, int]:
    """Launch runs as :func:`jobs.cli.request.carry_out` does, print how they ended, and write a report if wanted."""
    study_dir = options.study_dir
    left, ids = carry_out(arguments, specs, options, choice)
    if left is not None:
        return left, 0
    runs = [one for one in observe_study(study_dir) if ids is None or one.run.id in ids]
    terminal.say_table(status_table(runs))
    budget = KeptBudget(study_dir)
    if (line := budget.line()) is not None:
        terminal.say(line)
    if arguments.report and ids is not None:
        if arguments.behaviour is not False:
            compute_missing_behaviour(study_dir, asked=arguments.behaviour is True)
        terminal.say(f"report: {write_report([study_dir], None)}")
    bad = ("failed", "cancelled") if ids is None else ("failed", "cancelled", "pending")  # pending: its job is gone
    records = [one.to_dict() for one in runs]
    data = {"study": study_dir.name, "runs": records, "budget": budget.to_dict()}
    return data, _exit_code([record for record in records if record["state"] in bad])


def _exit_code(failed: Sequence[dict[str, Any]]) -> int:
    """Return the exit code, and name the runs that failed if ``--quiet`` hides the table that does."""
    if terminal.is_quiet():
        for one in failed:
            terminal.tell(": ".join(filter(None, ("error", one["name"], one["state"], one["reason"]))))
    return EXIT_RUN_FAILED if failed else 0


# -- report -----------------------------------------------------------------------------------------------------------


def report(arguments: ReportArguments) -> tuple[Any, int]:
    """Write the report, with the behaviour of trained models that is missing."""
    if arguments.watch and arguments.json:
        raise UsageError("--watch writes the report at each change, --json prints one document; use one of them")
    study_dirs = [find_study(name, arguments.runs_dir) for name in arguments.studies]
    if arguments.watch:
        _watch_report(study_dirs, arguments.output)
    behaviour = []
    if arguments.behaviour is not False:
        asked = arguments.behaviour is True
        behaviour = [found for study_dir in study_dirs for found in compute_missing_behaviour(study_dir, asked=asked)]
    page = write_report(study_dirs, arguments.output, processes=min(cpu_count(), MOST_PROCESSES))
    terminal.say(str(page))
    names = [study_dir.name for study_dir in study_dirs]
    return {"study": names[0], "studies": names, "report": str(page), "behaviour": behaviour}, 0


def _watch_report(study_dirs: Sequence[Path], output: Path | None) -> None:
    """Write the report now and at each finished epoch or changed state, until every run is over."""
    written = None
    while True:
        runs = [run for study_dir in study_dirs for run in observe_study(study_dir)]
        seen = [(run.run.path, run.observation.state, run.observation.epoch) for run in runs]
        if not any(run.observation.state in ("queued", "running") for run in runs):
            return
        if seen != written:
            page = write_report(study_dirs, output, refresh_seconds=REPORT_SECONDS)
            done = sum(run.observation.state == "done" for run in runs)
            terminal.tell(f"{page}: {done} of {len(runs)} runs done")
            written = seen
        time.sleep(REPORT_SECONDS)


def write_report(
    study_dirs: Sequence[Path], output: Path | None, *, refresh_seconds: int | None = None, processes: int = 1
) -> Path:
    """Write the report of these studies and return its page.

    ``refresh_seconds``: how often the page reloads. ``processes``: how many draw the figures of a large study.
    """
    from analysis.report import write_report as write  # pandas and matplotlib: a second that only the report needs

    return write(*study_dirs, output=output, refresh_seconds=refresh_seconds, processes=processes)


def compute_missing_behaviour(study_dir: Path, *, asked: bool) -> list[dict[str, Any]]:
    """Compute on this machine the behaviour that a report lacks. Problems go to stderr and do not stop the report.

    Unless ``asked`` for by a flag, nothing is computed where that might run another user's code. A result is kept as
    long as its checkpoints are unchanged, whatever its settings. If nothing is missing, only checkpoints are read.
    """
    if is_behaviour_study(study_dir):
        return []
    try:
        problem = None if asked else distrust(study_dir, untracked=kept_untracked(study_dir))
        if problem is not None:
            terminal.tell(f"behaviour is left as it is: {problem}; --behaviour computes what is missing")
            return []
        wanted = BehaviourLaunch(study_dir)
        if wanted.specs:
            attend(wanted.specs, wanted.options(), BackendChoice(name="local"))
        outcomes = wanted.outcomes()
    except SeqlmError as error:
        terminal.tell(f"behaviour is left as it is: {'; '.join(str(error).splitlines())}")
        return []
    if not outcomes:
        terminal.tell("no run is done, so there is no behaviour to compute")
    for found in outcomes:
        if found["state"] in (*FAILURES, "kept"):
            terminal.tell(behaviour_line(found))
    return outcomes


def behaviour_line(found: Mapping[str, Any]) -> str:
    """Return one line about the behaviour of a run."""
    return f"behaviour of {found['name']}: {found['state']}: {found['reason'] or 'no reason is known'}"


# -- which runs ---------------------------------------------------------------------------------------------------


def _open_manifest(arguments: PlanArguments) -> tuple[Manifest, list[RunSpec], Path]:
    """Return the manifest, its runs that pass the filters with the identity of their text, and the study's folder."""
    manifest = load_manifest(find_manifest(arguments.manifest), arguments.changes)
    data = find_data(arguments.data, manifest.data_path)
    study_dir = arguments.runs_dir / manifest.study
    known: Sequence[RunSpec] = manifest.runs
    folders: Mapping[str, Path] = {}
    if asks_for_identity([*arguments.only, *arguments.exclude]):
        known, folders = resolve_specs(known, data), RunDirectory.folders(study_dir)
    chosen, why = select(known, arguments.only, arguments.exclude, lambda spec: facts_of_spec(spec, folders))
    if why is not None:
        raise UsageError(f"{arguments.manifest}: {why}")
    if arguments.data and all(spec.config.data.corpus == "pydoc" for spec in chosen):
        raise UsageError(
            '--data: these runs read corpus "pydoc", which has no files; set data.corpus to "ptb" or "files"'
        )
    specs = resolve_specs(chosen, data)
    require_same_tokenizers(study_dir, manifest.path.name, specs)
    return manifest, specs, study_dir


def _find_trained(arguments: StudyArguments) -> Path:
    """Return the folder of a study of runs that train."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    if is_behaviour_study(study_dir):
        hint = f"{terminal.program()} behaviour {study_dir.parent}"
        raise UsageError(f"{study_dir} holds behaviour jobs, not runs; use: {hint}")
    return study_dir
