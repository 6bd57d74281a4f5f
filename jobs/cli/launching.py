"""The commands that launch: plan, run, retry, behaviour.

Each finds its runs and where they go. :func:`jobs.cli.request.carry_out` launches them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.backends.choice import BackendChoice
from jobs.cli.arguments import (
    EXIT_RUN_FAILED,
    BehaviourArguments,
    LaunchArguments,
    PlanArguments,
    RetryArguments,
    RunArguments,
    StudyArguments,
)
from jobs.cli.report import behaviour_line, compute_missing_behaviour, write_report
from jobs.cli.request import carry_out, choose, choose_again, where
from jobs.cli.studying import chosen_runs
from jobs.cli.view import status_table
from jobs.launch.behaviour import SETTINGS, BehaviourLaunch
from jobs.launch.options import LaunchOptions
from jobs.launch.prepare import (
    check_data,
    estimated,
    find_data,
    plan_runs,
    resolve_resources,
    resolve_specs,
)
from jobs.manifests.filters import NO_FOLDERS, asks_for_identity, select
from jobs.manifests.load import Manifest, load_manifest
from jobs.manifests.reader import find_manifest
from jobs.plan.estimate import earlier_throughput
from jobs.plan.planned import PlannedRun
from jobs.plan.record import kept_policy, kept_untracked, record_of
from jobs.plan.totals import Totals, totals
from jobs.spec import RunSpec
from jobs.study.folder import find_study, is_behaviour_study, observe_study
from seqlm.data.corpus import corpus_facts
from seqlm.errors import DataError, UsageError, printable
from seqlm.rundir import RunDirectory
from slurm import backend as slurm_backend
from slurm.submission import require_plain_path

# -- plan ----------------------------------------------------------------------------------------------------------


def plan(arguments: PlanArguments) -> tuple[Any, int]:
    """Print what ``run`` would do to each run, and the costs. Exit code 2 if ``run`` would refuse the data.

    Raises:
        ManifestError, UsageError, DataError: the manifest, a filter or the data is wrong.
        BackendError: the backend cannot be reached, or can never run this.
    """
    manifest, specs, study_dir = _open_manifest(arguments)
    choice, slurm = choose(arguments, manifest)
    target, limit = slurm or choice.make(), choice.max_parallel
    planned = _estimated(plan_runs(specs, study_dir), arguments.runs_dir)
    planned = resolve_resources(planned, target, limit)
    terminal.say_table(_plan_table(planned))
    counts = {action: sum(item.action == action for item in planned) for action in ("start", "resume", "skip")}
    summary = ", ".join(f"{number} {action}" for action, number in counts.items() if number)
    terminal.say(f"\n{manifest.study}: {len(planned)} runs ({summary}) in {printable(str(study_dir))}")
    if manifest.excluded:
        terminal.say(f"excluded by the manifest: {', '.join(run.name for run in manifest.excluded)}")
    summed = totals(planned, target.capacity, max_parallel=limit)
    terminal.say(_totals_text(summed, where(target, choice)))
    scripts: list[str] = []
    if slurm is not None and any(item.action != "skip" for item in planned):
        require_plain_path(study_dir.absolute())
        scripts = slurm_backend.scripts(planned, study_dir, slurm.settings)
        for script in scripts:
            terminal.say(f"\nwould submit:\n{script}")
    records = [_plan_record(item) for item in planned]
    refused = _refusal(planned)
    if refused is not None:
        terminal.tell(f"error: run would refuse this: {refused}")
    costs = {"backend": target.name, "max_parallel": limit, **summed.to_dict()}
    data = {"study": manifest.study, "runs": records, "totals": costs, "refused": refused}
    return ({**data, "scripts": scripts} if scripts else data), 0 if refused is None else UsageError.exit_code


def _plan_table(planned: Sequence[PlannedRun]) -> str:
    rows = [
        [
            item.spec.name,
            item.run.id,
            item.action,
            terminal.short_number(found.parameters),
            terminal.short_number(found.flops_per_token),
            terminal.memory(found.measured_memory_bytes or found.memory_bytes),
            terminal.duration(found.seconds),
            item.reason or "",
        ]
        for item in planned
        if (found := item.estimate) is not None
    ]
    header = ["run", "id", "action", "parameters", "FLOPs/token", "memory", "time", ""]
    return terminal.table(header, rows, right=(3, 4, 5, 6))


def _refusal(planned: Sequence[PlannedRun]) -> str | None:
    """Return why ``run`` would refuse the text: ``plan`` knows the size of a corpus that ``run`` has to read."""
    try:
        check_data(planned)
    except DataError as error:
        return str(error)
    return None


def _totals_text(found: Totals, where: str) -> str:
    disk = f"disk {terminal.memory(found.disk_bytes)} for checkpoints"
    if found.gpu_hours is None:
        return f"{disk}; GPU hours and time are not known: {found.unknown}"
    return f"{terminal.duration(found.wall_seconds)} on {where}; {found.gpu_hours:.3g} GPU hours; {disk}"


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
        "config": item.spec.config.to_dict(),
        "resources": item.spec.resources.to_dict(),
        "parameters": found.parameters,
        "flops_per_token": found.flops_per_token,
        "memory_bytes": found.memory_bytes,
        "measured_memory_bytes": found.measured_memory_bytes,
        "seconds": found.seconds,
    }


def _estimated(planned: Sequence[PlannedRun], runs_dir: Path) -> list[PlannedRun]:
    facts = functools.cache(corpus_facts)
    known = [replace(item, facts=facts(item.spec.config.data, item.spec.data_path)) for item in planned]
    return estimated(known, earlier_throughput(runs_dir))


# -- run, retry, behaviour -----------------------------------------------------------------------------------------


def run(arguments: RunArguments) -> tuple[Any, int]:
    """Launch what is not done yet and print how it ended. Exit code 1 if a run failed.

    Raises:
        SeqlmError: nothing has been started.
        KeyboardInterrupt: interrupted; the workers have stopped, or the jobs of SLURM go on.
    """
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
        untracked=manifest.untracked,
    )
    specs = [replace(spec, command=[*alone, f"name={spec.name}", *changes, *paths]) for spec in specs]
    return train(arguments, specs, options, *choose(arguments, manifest))


def retry(arguments: RetryArguments) -> tuple[Any, int]:
    """Launch failed and cancelled runs again and print how they ended. Exit code 1 if a run failed.

    Raises:
        SeqlmError: nothing has been started.
        KeyboardInterrupt: as in :func:`run`.
    """
    study_dir = _find_trained(arguments)
    runs = chosen_runs(arguments, study_dir)
    chosen = [
        one
        for one in runs
        if one.observation.state in ("failed", "cancelled")
        and one.config is not None
        and (not arguments.kind or one.observation.kind in arguments.kind)
    ]
    if not chosen:
        terminal.say("nothing to retry: no such run has failed or was cancelled")
        return {"study": study_dir.name, "runs": [one.to_dict() for one in runs]}, 0
    specs = [one.to_spec() for one in chosen]
    specs = [replace(spec, data_path=find_data(arguments.data, spec.data_path)) for spec in specs]
    options = LaunchOptions(
        study_dir=study_dir,
        retry=True,
        policy=kept_policy(study_dir, terminal.tell),
        untracked=kept_untracked(study_dir),
    )
    return train(arguments, specs, options, *choose_again(study_dir, chosen, arguments))


def behaviour(arguments: BehaviourArguments) -> tuple[Any, int]:
    """Compute what trained models do and print what became of each. Exit code 1 if one failed or has no checkpoint.

    Raises:
        SeqlmError: nothing has been started.
        KeyboardInterrupt: as in :func:`run`.
    """
    study_dir = _find_trained(arguments)
    given = {key: value for key in SETTINGS if (value := getattr(arguments, key)) is not None}
    wanted = BehaviourLaunch.of(
        study_dir,
        only=arguments.only,
        exclude=arguments.exclude,
        given=given,
        force=arguments.force,
        data=arguments.data,
    )
    if not wanted.jobs:
        terminal.say("nothing to compute: no such run is done")
        return {"study": study_dir.name, "runs": []}, 0
    left = None
    if wanted.specs:
        chosen = choose_again(study_dir, [job.run for job in wanted.jobs], arguments)
        left, _ = carry_out(arguments, wanted.specs, wanted.options(terminal.tell), *chosen)
    outcomes = wanted.outcomes()
    if left is not None:
        missing = [found for found in outcomes if found.state == "missing"]
        for found in missing:  # these will have none, however the jobs end
            terminal.tell(behaviour_line(found))
        return left, EXIT_RUN_FAILED if missing else 0
    rows = [[found.name, found.id, found.state, found.reason or ""] for found in outcomes]
    terminal.say_table(terminal.table(["run", "id", "state", "reason"], rows, colors={2: terminal.STATE_COLORS}))
    failed = [found for found in outcomes if found.is_failure]
    _tell_failures([(found.name, found.state, found.reason) for found in failed])
    data = {"study": study_dir.name, "runs": [found.to_dict() for found in outcomes]}
    return data, EXIT_RUN_FAILED if failed else 0


def train(
    arguments: LaunchArguments,
    specs: Sequence[RunSpec],
    options: LaunchOptions,
    choice: BackendChoice,
    slurm: slurm_backend.SlurmTarget | None,
) -> tuple[Any, int]:
    """Launch runs as :func:`jobs.cli.request.carry_out` does, print how they ended, and write a report if wanted."""
    study_dir = options.study_dir
    left, ids = carry_out(arguments, specs, options, choice, slurm)
    if left is not None:
        return left, 0
    runs = [one for one in observe_study(study_dir) if ids is None or one.run.id in ids]
    terminal.say_table(status_table(runs))
    if arguments.report and ids is not None:
        if arguments.behaviour is not False:
            compute_missing_behaviour(study_dir, asked=arguments.behaviour is True)
        terminal.say(f"report: {write_report([study_dir], None)}")
    bad = ("failed", "cancelled") if ids is None else ("failed", "cancelled", "pending")  # pending: its job is gone
    failed = [one for one in runs if one.observation.state in bad]
    _tell_failures([(one.name, one.observation.state, one.observation.reason) for one in failed])
    data = {"study": study_dir.name, "runs": [one.to_dict() for one in runs]}
    return data, EXIT_RUN_FAILED if failed else 0


def _tell_failures(failed: Sequence[tuple[str, str, str | None]]) -> None:
    """Name the runs that failed if ``--quiet`` hides the table that does."""
    if terminal.is_quiet():
        for name, state, reason in failed:
            terminal.tell(f"error: {name}: {state}{f': {reason}' if reason else ''}")


# -- which runs ---------------------------------------------------------------------------------------------------


def _open_manifest(arguments: PlanArguments) -> tuple[Manifest, list[RunSpec], Path]:
    """Return the manifest, its runs that pass the filters with the identity of their text, and the study's folder."""
    manifest = load_manifest(find_manifest(arguments.manifest), arguments.changes)
    data = find_data(arguments.data, manifest.data_path)
    study_dir = arguments.runs_dir / manifest.study
    known: Sequence[RunSpec] = manifest.runs
    folders = NO_FOLDERS
    if asks_for_identity([*arguments.only, *arguments.exclude]):
        known, folders = resolve_specs(known, data), RunDirectory.folders(study_dir)
    chosen, why = select(known, arguments.only, arguments.exclude, folders)
    if why is not None:
        raise UsageError(f"{arguments.manifest}: {why}")
    if arguments.data and all(spec.config.data.corpus == "pydoc" for spec in chosen):
        raise UsageError(
            '--data: these runs read corpus "pydoc", which has no files; set data.corpus to "ptb" or "files"'
        )
    return manifest, resolve_specs(chosen, data), study_dir


def _find_trained(arguments: StudyArguments) -> Path:
    """Return the folder of a study of runs that train.

    Raises:
        UsageError: there is no such study, or its jobs compute behaviour.
    """
    study_dir = find_study(arguments.study, arguments.runs_dir)
    if is_behaviour_study(study_dir):
        hint = f"{terminal.program()} behaviour {study_dir.parent}"
        raise UsageError(f"{study_dir} holds behaviour jobs, not runs; use: {hint}")
    return study_dir
