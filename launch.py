#!/usr/bin/env python3
"""The command line of seqlm: plan, run, status, list, logs, cancel, retry, clean, behaviour, report, doctor, data.

Nothing here imports torch, so that every command but the report answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from jobs import terminal
from jobs.backends.base import Target
from jobs.backends.choice import BackendChoice, choose_backend
from jobs.backends.ray_job import RayJob, is_remote
from jobs.cli import clean
from jobs.cli import list as listing
from jobs.cli.behaviour import compute_behaviour
from jobs.cli.doctor import check_devices, examine
from jobs.cli.lines import Progress
from jobs.cli.progress import launch_progress, watch, watch_in_lines
from jobs.cli.view import Watcher
from jobs.launch import logout
from jobs.launch.behaviour import SETTINGS, BehaviourLaunch, Outcome
from jobs.launch.dispatch import progress_variables
from jobs.launch.prepare import (
    LaunchOptions,
    check_data,
    detach,
    estimate_left,
    find_data,
    launch,
    plan_runs,
    preparing,
    resolve_specs,
    wait_for_launcher,
    wait_for_workers,
)
from jobs.manifests import secrets
from jobs.manifests.backends import BACKENDS
from jobs.manifests.filters import NO_FOLDERS, asks_for_identity, select, whole_id
from jobs.manifests.load import Manifest, load_manifest
from jobs.plan.estimate import Estimate, earlier_throughput
from jobs.plan.planned import Planned
from jobs.plan.record import kept_policy, kept_tables, kept_untracked, record_of
from jobs.plan.totals import Totals, totals
from jobs.spec import RunSpec
from jobs.study.cancel import mark, wait_until_stopped
from jobs.study.folder import (
    ObservedRun,
    find_study,
    is_behaviour_study,
    observe_study,
    read_jobs,
    select_runs,
    study_name,
)
from jobs.study.kept_code import distrust
from jobs.study.logs import follow_logs, print_log
from seqlm import __version__, machine
from seqlm.config import DataConfig
from seqlm.data.corpus import CorpusFacts, corpus_facts, downloaded_ptb
from seqlm.data.ptb_download import download_ptb
from seqlm.errors import BackendError, DataError, ManifestError, SeqlmError, UsageError, error_text, nearest, printable
from seqlm.rundir import RunDirectory, write_text
from slurm import backend as slurm_backend
from slurm.settings import SlurmSettings, read_settings
from slurm.submission import require_plain_path

SCHEMA_VERSION = 1
EXIT_RUN_FAILED = 1
EXIT_INTERRUPTED = 130
COMMAND = "COMMAND"
"""What the command is called in usage texts."""
REPORT_SECONDS = 10
"""How often ``report --watch`` looks for news, and its page loads itself again."""
CALIBRATION = Path(__file__).resolve().parent / "jobs" / "manifests" / "calibration.toml"


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ours: one line, and a JSON document where ``--json`` was given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is none of the choices, with the nearest one; argparse words this differently in each version."""
        valid = list(action.choices or [])
        if action.choices is None or value in valid:
            return
        hint = nearest(str(value), valid)
        if action.metavar == COMMAND:
            raise UsageError(f'unknown command "{value}"{hint} (valid: {", ".join(valid)}; see {self.prog} --help)')
        raise argparse.ArgumentError(action, f'expected one of {", ".join(valid)}, got "{value}"{hint}')

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, and refuse what is unknown here, so that a command names its own help page."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            has_filter = any(word in ("--only", "--exclude") for word in args or ())
            hint = "; --only and --exclude take one argument each: --only 'arch=gru lr>1'" if has_filter else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        options = parser().parse_args(arguments)
        options.argv = arguments
        data, code = options.handler(options)
        if as_json:
            _print_document(data, None, ok=code == 0)
        sys.stdout.flush()
    except SeqlmError as error:
        return _fail(error_text(error), error.exit_code, as_json)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED, as_json)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(code)


def _fail(message: str, code: int, as_json: bool) -> int:
    for line in message.split("\n"):
        terminal.tell(f"error: {line}")
    if as_json:
        _print_document(None, {"code": code, "message": message}, ok=False)
    return code


def _print_document(data: Any, error: Any, *, ok: bool) -> None:
    print(json.dumps({"schema_version": SCHEMA_VERSION, "ok": ok, "data": data, "error": error}, indent=1))


def _say(options: argparse.Namespace, text: str) -> None:
    """A result for a person: on stdout, unless that belongs to the JSON document."""
    for line in text.split("\n"):
        print(printable(line), file=sys.stderr if options.json else sys.stdout)


# -- plan and run --------------------------------------------------------------------------------------------------


def _plan(options: argparse.Namespace) -> tuple[Any, int]:
    manifest, specs, study_dir = _open_manifest(options)
    choice = _choice(manifest, options)
    backend = _site(choice)
    planned = plan_runs(specs, study_dir)
    estimates = _estimates(options, planned, _data_path(options, manifest))
    todo = {item.run.id: item.spec for item in planned if item.action != "skip"}
    at_most = min(len(todo), choice.max_parallel or len(todo))
    todo = {key: replace(spec, resources=backend.resolve(spec, at_most)) for key, spec in todo.items()}
    rows = [
        [
            item.spec.name,
            item.run.id,
            item.action,
            terminal.count(found.parameters),
            terminal.count(found.flops_per_token),
            terminal.memory(found.measured_memory_bytes or found.memory_bytes),
            terminal.duration(found.seconds),
            item.reason or "",
        ]
        for item, found in zip(planned, estimates, strict=True)
    ]
    header = ["run", "id", "action", "parameters", "FLOPs/token", "memory", "time", ""]
    _say(options, terminal.table(header, rows, right=(3, 4, 5, 6)))
    counts = {action: sum(item.action == action for item in planned) for action in ("start", "resume", "skip")}
    summary = ", ".join(f"{number} {action}" for action, number in counts.items() if number)
    _say(options, f"\n{manifest.study}: {len(planned)} runs ({summary}) in {printable(str(study_dir))}")
    if manifest.excluded:
        _say(options, f"excluded by the manifest: {', '.join(run.name for run in manifest.excluded)}")
    summed = totals(todo, planned, estimates, backend.capacity, max_parallel=choice.max_parallel)
    _say(options, _totals_text(summed, _where(backend, choice)))
    scripts: list[str] = []
    if isinstance(backend, slurm_backend.SlurmTarget) and todo:
        require_plain_path(study_dir.absolute())
        resources = {run_id: spec.resources for run_id, spec in todo.items()}
        scripts = slurm_backend.scripts(planned, resources, study_dir, backend.settings)
        for script in scripts:
            _say(options, f"\nwould submit:\n{script}")
    records = [_plan_record(item, found) for item, found in zip(planned, estimates, strict=True)]
    for record in records:
        if record["id"] in todo:
            record["resources"] = todo[record["id"]].resources.to_dict()
    where = {"backend": backend.name, "max_parallel": choice.max_parallel}
    refused = _refusal(planned, _data_path(options, manifest))
    if refused is not None:
        terminal.tell(f"error: run would refuse this: {refused}")
    data = {"study": manifest.study, "runs": records, "totals": {**where, **summed.to_dict()}, "refused": refused}
    return ({**data, "scripts": scripts} if scripts else data), 0 if refused is None else UsageError.exit_code


def _refusal(planned: list[Planned], data_path: Path | None) -> str | None:
    """What is wrong with the text of the runs to do: ``plan`` has sizes by heart for which ``run`` needs the text."""
    todo = [item for item in planned if item.action != "skip"]
    try:
        check_data(todo, {item.run.id: data_path for item in todo})
    except DataError as error:
        return str(error)
    return None


def _totals_text(found: Totals, where: str) -> str:
    disk = f"disk {terminal.memory(found.disk_bytes)} for checkpoints"
    if found.gpu_hours is None:
        return f"{disk}; GPU hours and time are not known: {found.unknown}"
    return f"{terminal.duration(found.wall_seconds)} on {where}; {found.gpu_hours:.3g} GPU hours; {disk}"


def _plan_record(item: Planned, found: Estimate) -> dict[str, Any]:
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


def _estimates(options: argparse.Namespace, planned: list[Planned], data_path: Path | None) -> list[Estimate]:
    throughput = earlier_throughput(options.runs_dir)
    facts: dict[DataConfig, CorpusFacts] = {}
    for item in planned:
        data = item.spec.config.data
        if data not in facts:
            facts[data] = corpus_facts(data, data_path)
    return [estimate_left(item, facts[item.spec.config.data], throughput) for item in planned]


def _run(options: argparse.Namespace) -> tuple[Any, int]:
    manifest, specs, study_dir = _open_manifest(options)
    choice = _choice(manifest, options)
    data = _data_path(options, manifest)

    def command(spec: RunSpec) -> list[str]:
        changes = [word for text in options.set for word in ("--set", text)]
        paths = ["--data", str(options.data)] if options.data else []
        return ["python", "launch.py", "run", options.manifest, "--only", f"name={spec.name}", *changes, *paths]

    settings = LaunchOptions(
        study_dir=study_dir,
        record=record_of(manifest, specs, data),
        policy=manifest.policy,
        untracked=manifest.untracked,
    )
    return _launch(options, specs, settings, choice, data_path=lambda spec: data, command=command)


def _retry(options: argparse.Namespace) -> tuple[Any, int]:
    study_dir = _find_trained(options)
    runs = _chosen(options, study_dir)
    chosen = [
        run
        for run in runs
        if run.observation.state in ("failed", "cancelled")
        and run.config is not None
        and (not options.kind or run.observation.kind in options.kind)
    ]
    if not chosen:
        _say(options, "nothing to retry: no such run has failed or was cancelled")
        return {"study": study_dir.name, "runs": [run.to_dict() for run in runs]}, 0
    provenance = {run.name: run.provenance for run in chosen}

    def data_path(spec: RunSpec) -> Path | None:
        recorded = provenance[spec.name].get("data")
        return find_data(options.data, Path(recorded) if recorded else None)

    def command(spec: RunSpec) -> list[str]:
        return list(provenance[spec.name].get("command", []))

    specs = [run.to_spec() for run in chosen]
    choice = _choice_again(study_dir, chosen, options)
    policy = kept_policy(study_dir, terminal.tell)
    settings = LaunchOptions(study_dir=study_dir, retry=True, policy=policy, untracked=kept_untracked(study_dir))
    return _launch(options, specs, settings, choice, data_path=data_path, command=command)


def _launch(
    options: argparse.Namespace,
    specs: list[RunSpec],
    settings: LaunchOptions,
    choice: BackendChoice,
    *,
    data_path: Callable[[RunSpec], Path | None],
    command: Callable[[RunSpec], list[str]],
    outcome: Callable[[Collection[str] | None], tuple[Any, int]] | None = None,
) -> tuple[Any, int]:
    """Launch as chosen. ``settings`` say what is launched; the rest of them is filled in here from the command line.

    ``outcome`` tells how it has ended, given the ids of the jobs (none: all of them); none: as :func:`_outcome` does.
    """
    study_dir = settings.study_dir
    settings = replace(settings, live_code=options.live_code)
    if choice.name != "slurm":
        _advise(choice.env, f"backend.{choice.name}.env")
    if outcome is None:
        outcome = functools.partial(_outcome, options, study_dir)
    if choice.name == "slurm":
        return _launch_on_slurm(options, specs, settings, choice, data_path=data_path, command=command, outcome=outcome)
    if is_remote(choice.ray_address):
        return _launch_remotely(options, settings, choice, outcome=outcome)
    passed = secrets.passed(choice.env_pass, os.environ, f"backend.{choice.name}")
    if options.no_wait:
        argv = [str(Path(__file__).resolve()), *(word for word in options.argv if word not in ("--no-wait", "--json"))]
        pid = detach(argv, study_dir)
        _say(options, f"launched by process {pid}; see: launch.py status {printable(str(study_dir))}")
        if line := logout.advice(["python", "launch.py", *options.argv]):
            terminal.tell(f"warning: {line}")
        return {"study": study_name(study_dir), "launcher_pid": pid}, 0
    progress: list[Progress] = []
    backend = choice.make()
    if choice.ray_address is None and (note := machine.order_note()):
        terminal.tell(f"warning: {note}")

    def announce(planned: list[Planned]) -> Progress:
        todo = sum(item.action != "skip" for item in planned)
        what = f"{study_name(study_dir)}: {todo} of {len(planned)} runs to do"
        terminal.tell(f"{what} on {_where(backend, choice)}")
        for item in planned:
            if item.action == "skip" and item.reason != "done":
                terminal.tell(f"skipped {item.spec.name}: {item.reason}")
        progress.append(launch_progress(planned, study_dir))
        return progress[-1]

    settings = replace(
        settings,
        max_parallel=choice.max_parallel,
        policy=settings.policy.with_retries(choice.retries),
        env={**choice.env, **passed, **progress_variables(choice.progress_s)},
        canary=options.canary,
        tell=terminal.tell,
    )
    try:
        try:
            planned = launch(specs, backend, settings, data_path=data_path, command=command, progress=announce)
        finally:
            for bar in progress:
                bar.close()
    except KeyboardInterrupt:
        terminal.tell("the workers have stopped; the same command goes on from here")
        raise
    return outcome({item.run.id for item in planned})


def _advise(env: Mapping[str, str], where: str) -> None:
    for line in secrets.advice(env, where):
        terminal.tell(f"warning: {line}")


def _outcome(options: argparse.Namespace, study_dir: Path, ids: Collection[str] | None) -> tuple[Any, int]:
    """How the runs of a launch have ended, and the report if it is wanted. No ``ids``: all of the study.

    That is so where a launcher elsewhere has waited for them; it has written the report.
    """
    runs = [run for run in observe_study(study_dir) if ids is None or run.run.id in ids]
    _say(options, _status_table(runs))
    if options.report and ids is not None:
        if options.behaviour is not False:
            _compute_behaviour(study_dir, asked=options.behaviour is True)
        _say(options, f"report: {printable(str(_write_report([study_dir], None)))}")
    bad = ("failed", "cancelled") if ids is None else ("failed", "cancelled", "pending")  # pending: its job is gone
    failed = any(run.observation.state in bad for run in runs)
    return {"study": study_dir.name, "runs": [run.to_dict() for run in runs]}, EXIT_RUN_FAILED if failed else 0


def _launch_on_slurm(
    options: argparse.Namespace,
    specs: list[RunSpec],
    settings: LaunchOptions,
    choice: BackendChoice,
    *,
    data_path: Callable[[RunSpec], Path | None],
    command: Callable[[RunSpec], list[str]],
    outcome: Callable[[Collection[str] | None], tuple[Any, int]],
) -> tuple[Any, int]:
    """Submit to SLURM, and watch if wanted; the jobs need nobody to stay."""
    if options.canary:
        raise UsageError("--canary: jobs of SLURM start without canaries so far; leave the flag out")
    study_dir = settings.study_dir
    site = _site(choice)
    assert isinstance(site, slurm_backend.SlurmTarget), "asked before"
    slurm_backend.check(study_dir, site.settings)
    _advise(site.settings.env, "backend.slurm.env")
    settings = replace(settings, tell=terminal.tell)
    with preparing(specs, settings, resolve=site.resolve, data_path=data_path, command=command) as prepared:
        for item in prepared.planned:
            if item.action == "skip" and item.reason != "done":
                terminal.tell(f"skipped {item.spec.name}: {item.reason}")
        arrays: list[str] = []
        if prepared.code is not None:
            policy = settings.policy.with_retries(site.settings.retries)
            arrays = slurm_backend.submit(prepared, study_dir, site.settings, policy)
            if options.then_report:
                report = slurm_backend.submit_report(
                    study_dir, arrays, site.settings, prepared.code, behaviour=options.behaviour
                )
                terminal.tell(f"the report is written by job {report} after the last run")
    what = f"jobs {', '.join(arrays)}" if arrays else "nothing to submit"
    todo = f"{len(prepared.todo)} of {len(prepared.planned)} runs to do"
    terminal.tell(f"{study_name(study_dir)}: {todo}: {what}")
    ids = {item.run.id for item in prepared.planned}
    if options.no_wait:
        return {"study": study_name(study_dir), "jobs": arrays}, 0
    try:
        if options.json:
            watch_in_lines(_watcher(study_dir, ids), sys.stderr)
        else:
            watch(_watcher(study_dir, ids))
    except KeyboardInterrupt:
        terminal.tell("the jobs go on without this terminal; `cancel` stops them")
        raise
    return outcome(ids)


def _site(choice: BackendChoice) -> Target:
    """Where runs would go."""
    if choice.name == "slurm":
        settings = _slurm_settings(choice)
        return slurm_backend.SlurmTarget(replace(settings, max_parallel=choice.max_parallel, retries=choice.retries))
    return choice.make()


def _slurm_settings(choice: BackendChoice) -> SlurmSettings:
    return read_settings(choice.table, where=choice.where, environ=os.environ)


def _launch_remotely(
    options: argparse.Namespace,
    settings: LaunchOptions,
    choice: BackendChoice,
    *,
    outcome: Callable[[Collection[str] | None], tuple[Any, int]],
) -> tuple[Any, int]:
    """Have the same command line run on a cluster that this machine is no node of, and wait for it if wanted."""
    if options.live_code:
        raise UsageError("--live-code: a remote cluster is sent a copy of the code; leave the flag out")
    assert choice.ray_address is not None, "asked before"
    jobs_dir, study_dir = settings.study_dir, settings.code_dir or settings.study_dir
    manifest = Path(options.manifest).absolute() if "manifest" in options else None
    words = [word for word in options.argv if word not in ("--no-wait", "--json")]
    words = (
        _with_argument(words, "manifest", manifest.name)
        if manifest
        else _with_argument(words, "study", str(study_dir.absolute()))
    )
    data = find_data(options.data, load_manifest(manifest).data_path if manifest else None)
    words += ["--runs-dir", str(study_dir.parent.absolute()), "--backend", "ray", "--ray-address", "auto"]
    words += ["--data", str(data.absolute())] if data else []
    job = RayJob(choice.ray_address)
    job.submit(words, jobs_dir, manifest, code_dir=study_dir, untracked=settings.untracked, tell=terminal.tell)
    _say(options, f"launched by Ray job {job.id} on {job.address}; see: launch.py status {printable(str(jobs_dir))}")
    if options.no_wait:
        return {"study": study_name(jobs_dir), "ray_job": job.id}, 0
    try:
        if not options.json:
            watch(Watcher(jobs_dir))
        while not job.is_over():
            time.sleep(0.5)
    except KeyboardInterrupt:
        job.stop()
        raise
    if not observe_study(jobs_dir) or job.has_failed():
        raise BackendError(f"the launcher on the cluster ended with: {job.last_line()}")
    return outcome(None)


def _with_argument(words: Sequence[str], name: str, value: str) -> list[str]:
    """A command line with ``value`` for its argument ``name``; equal words that mean something else stay.

    Raises:
        UsageError: ``value`` cannot stand there.
    """
    options = vars(parser().parse_args(words))
    for place, word in enumerate(words):
        changed = [*words[:place], value, *words[place + 1 :]]
        with contextlib.suppress(UsageError):
            if word == options[name] and vars(parser().parse_args(changed)) == {**options, name: value}:
                return changed
    raise UsageError(f"{printable(value)}: cannot be sent as the {name} of a command line; rename it")


def _open_manifest(options: argparse.Namespace) -> tuple[Manifest, list[RunSpec], Path]:
    manifest = load_manifest(Path(options.manifest), options.set)
    data = _data_path(options, manifest)
    study_dir = options.runs_dir / manifest.study
    known: Sequence[RunSpec] = manifest.runs
    folders = NO_FOLDERS
    if asks_for_identity([*options.only, *options.exclude]):
        known, folders = resolve_specs(known, data), RunDirectory.folders(study_dir)
    chosen, why = select(known, options.only, options.exclude, folders)
    if why is not None:
        raise UsageError(f"{options.manifest}: {why}")
    if options.data and all(spec.config.data.corpus == "pydoc" for spec in chosen):
        raise UsageError(
            '--data: these runs read corpus "pydoc", which has no files; set data.corpus to "ptb" or "files"'
        )
    return manifest, resolve_specs(chosen, data), study_dir


def _data_path(options: argparse.Namespace, manifest: Manifest) -> Path | None:
    return find_data(options.data, manifest.data_path)


def _where(backend: Target, choice: BackendChoice) -> str:
    limit = f", at most {choice.max_parallel} at once" if choice.max_parallel else ""
    return f"{backend.describe()}{limit}"


def _last_backend(runs: list[ObservedRun]) -> str | None:
    """Where runs went last, if that was one place."""
    names = {(run.run.read_job() or {}).get("backend") for run in runs}
    return names.pop() if len(names) == 1 else None


def _choice_again(study_dir: Path, runs: list[ObservedRun], options: argparse.Namespace) -> BackendChoice:
    """Where runs of a study go again, with the settings of the last launch from its manifest."""
    return _choice(None, options, last=_last_backend(runs), kept=kept_tables(study_dir, terminal.tell))


def _choice(
    manifest: Manifest | None,
    options: argparse.Namespace,
    *,
    last: str | None = None,
    kept: Mapping[str, Mapping[str, Any]] | None = None,
) -> BackendChoice:
    choice = choose_backend(
        manifest,
        last=last,
        kept=kept,
        name=options.backend,
        max_parallel=options.max_parallel,
        retries=options.retries,
        ray_address=options.ray_address,
    )
    if choice.name != "slurm":
        return choice
    site = _slurm_settings(choice)
    retries = site.retries if choice.retries is None else choice.retries
    return replace(choice, max_parallel=choice.max_parallel or site.max_parallel, retries=retries)


# -- behaviour -----------------------------------------------------------------------------------------------------


def _behaviour(options: argparse.Namespace) -> tuple[Any, int]:
    study_dir = _find_trained(options)
    given = {key: value for key in SETTINGS if (value := getattr(options, key)) is not None}
    wanted = BehaviourLaunch.of(study_dir, only=options.only, exclude=options.exclude, given=given, force=options.force)

    def outcome(ids: Collection[str] | None) -> tuple[Any, int]:
        outcomes = wanted.outcomes()
        rows = [[found.name, found.id, found.state, found.reason or ""] for found in outcomes]
        _say(options, terminal.table(["run", "id", "state", "reason"], rows))
        failed = any(found.is_failure for found in outcomes)
        data = {"study": study_dir.name, "runs": [found.to_dict() for found in outcomes]}
        return data, EXIT_RUN_FAILED if failed else 0

    if not wanted.jobs:
        _say(options, "nothing to compute: no such run is done")
        return {"study": study_dir.name, "runs": []}, 0
    if not wanted.specs:
        return outcome(None)
    data, code = _launch(
        options,
        wanted.specs,
        wanted.options(terminal.tell),
        _choice_again(study_dir, [job.run for job in wanted.jobs], options),
        data_path=functools.partial(wanted.data_path, flag=options.data),
        command=wanted.command,
        outcome=outcome,
    )
    if options.no_wait:  # nothing is known of the rest, but there is no need to wait to know that these will have none
        missing = [found for found in wanted.outcomes() if found.state == "missing"]
        for found in missing:
            terminal.tell(_behaviour_line(found))
        return data, EXIT_RUN_FAILED if missing else code
    return data, code


def _compute_behaviour(study_dir: Path, *, asked: bool) -> list[dict[str, Any]]:
    """Compute the behaviour that a report lacks, on this machine. Problems go to stderr and keep no report back.

    Unless it was ``asked`` for by a flag, nothing is computed where that might run somebody else's code.
    """
    if is_behaviour_study(study_dir):
        return []
    try:
        problem = None if asked else distrust(study_dir, untracked=kept_untracked(study_dir))
        if problem is not None:
            terminal.tell(f"behaviour is left as it is: {problem}; --behaviour computes what is missing")
            return []
        outcomes = compute_behaviour(study_dir)
    except SeqlmError as error:
        terminal.tell(f"behaviour is left as it is: {'; '.join(str(error).splitlines())}")
        return []
    if not outcomes:
        terminal.tell("no run is done, so there is no behaviour to compute")
    for found in outcomes:
        if found.is_failure or found.state == "kept":
            terminal.tell(_behaviour_line(found))
    return [found.to_dict() for found in outcomes]


def _behaviour_line(found: Outcome) -> str:
    return f"behaviour of {found.name}: {found.state}: {found.reason or 'no reason is known'}"


def _find_trained(options: argparse.Namespace) -> Path:
    """The study whose runs have trained or will: what a launch of a folder of behaviour jobs would start anew."""
    study_dir = find_study(options.study, options.runs_dir)
    if is_behaviour_study(study_dir):
        raise UsageError(f"{study_dir} holds behaviour jobs, not runs; use: launch.py behaviour {study_dir.parent}")
    return study_dir


# -- looking after a study -----------------------------------------------------------------------------------------


def _chosen(options: argparse.Namespace, study_dir: Path) -> list[ObservedRun]:
    """The runs of a study that pass the filters; a line says why if there are none, which is no error."""
    runs, why = select_runs(observe_study(study_dir), options.only, options.exclude)
    if why is not None:
        terminal.tell(why)
    return runs


def _status(options: argparse.Namespace) -> tuple[Any, int]:
    if options.watch and options.json:
        raise UsageError("--watch shows the study as it changes, --json prints one document; use one of them")
    study_dir = find_study(options.study, options.runs_dir)
    runs = _chosen(options, study_dir)
    chosen = {run.run.id for run in runs} if options.only or options.exclude else None
    if options.watch:
        watch(_watcher(study_dir, chosen))
        return None, 0
    _say(options, _status_table(runs))
    if options.svg is not None:
        from jobs.cli.live_table import svg  # rich: only where the view is drawn

        write_text(options.svg, svg(Watcher(study_dir, chosen).look()))
        _say(options, f"picture: {printable(str(options.svg))}")
    return {"study": study_dir.name, "runs": [run.to_dict() for run in runs]}, 0


def _watcher(study_dir: Path, ids: Collection[str] | None) -> Watcher:
    """A watcher that looks as often as the jobs of a study on SLURM write where they are."""
    if not read_jobs(study_dir):
        return Watcher(study_dir, ids)
    try:
        table = kept_tables(study_dir, terminal.tell).get("slurm", {})
        settings = read_settings(table, where="study.json", environ=os.environ)
    except ManifestError:  # a site file that is wrong now keeps nobody from looking
        settings = SlurmSettings()
    return Watcher(study_dir, ids, every_seconds=settings.progress_s)


def _status_table(runs: list[ObservedRun]) -> str:
    rows = []
    for run in runs:
        seen, total = run.observation, run.epochs_total
        epochs = "-" if total is None else f"{run.epochs_done}/{total}"
        rows.append(
            [run.name, run.run.id, seen.state, epochs, terminal.perplexity(seen.best_val_ppl), seen.reason or ""]
        )
    return terminal.table(["run", "id", "state", "epochs", "best val ppl", "reason"], rows, right=(3, 4))


def _list(options: argparse.Namespace) -> tuple[Any, int]:
    return listing.show_studies(options.runs_dir, no_sizes=options.no_sizes, say=functools.partial(_say, options))


def _clean(options: argparse.Namespace) -> tuple[Any, int]:
    say = functools.partial(_say, options)
    return clean.clean_study(options.study, options.runs_dir, dry_run=options.dry_run, yes=options.yes, say=say)


def _logs(options: argparse.Namespace) -> tuple[Any, int]:
    study_dir = find_study(options.study, options.runs_dir)
    runs = _chosen(options, study_dir)
    if options.run:
        runs = _named(runs, options.run, study_dir)
    if options.follow:
        if options.json:
            raise UsageError("--follow prints lines as they come, --json one document at the end; use one of them")
        if len(runs) != 1:
            raise UsageError(f"--follow takes one run, found {len(runs)}; name it: logs {options.study} RUN -f")
        follow_logs(runs[0], options.lines)
        return None, 0
    records = [print_log(run, options.lines, sys.stderr if options.json else sys.stdout) for run in runs]
    return {"study": study_dir.name, "runs": records}, 0


def _named(runs: list[ObservedRun], text: str, study_dir: Path) -> list[ObservedRun]:
    """The runs with this name, else the one with this id or beginning of an id."""
    named = [run for run in runs if run.name == text]
    if named:
        return named
    run_id = whole_id(text, [run.run.id for run in runs])
    if run_id is None:
        hint = nearest(text, [run.name for run in runs])
        raise UsageError(f'{study_dir.name} has no run "{text}"{hint}; `status` lists them')
    return [run for run in runs if run.run.id == run_id]


def _cancel(options: argparse.Namespace) -> tuple[Any, int]:
    study_dir = find_study(options.study, options.runs_dir)
    runs = _chosen(options, study_dir)
    _confirm_cancel(options, study_dir, runs)
    jobs = read_jobs(study_dir)
    marked = mark(runs)
    with_job = [one for one in marked if one.run.id in jobs]
    if with_job:
        try:
            slurm_backend.cancel_jobs(study_dir, [one.observed for one in with_job])
        except BackendError as error:
            for one in with_job:
                one.problem = one.problem or f"marked as cancelled, but its job goes on until it sees the mark: {error}"
    wait_until_stopped(one for one in marked if one not in with_job)
    wait_for_workers([one.run for one in with_job if one.problem is None], seconds=30)
    for one in marked:
        if one.problem is None:
            _say(options, f"cancelled {one.observed.name}")
        else:
            terminal.tell(f"error: {one.observed.name}: {one.problem}")
    if not marked:
        _say(options, "nothing to cancel: every such run is over")
    after = observe_study(study_dir)
    if marked and not any(run.observation.state in ("queued", "running") for run in after):
        wait_for_launcher(study_dir, seconds=10)  # it has nothing left to do; `retry` should find the study free
    problems = {one.run.id: one.problem for one in marked}
    records = [{**run.to_dict(), "problem": problems[run.run.id]} for run in after if run.run.id in problems]
    return {"study": study_dir.name, "runs": records}, EXIT_RUN_FAILED if any(problems.values()) else 0


def _confirm_cancel(options: argparse.Namespace, study_dir: Path, runs: Sequence[ObservedRun]) -> None:
    """Make sure that all runs are meant where no ``--only`` chooses some.

    Raises:
        UsageError: they are not, or there is nobody to ask.
    """
    if options.all and options.only:
        raise UsageError("--all cancels every run, --only some of them; use one of them")
    number = sum(run.observation.state in ("pending", "queued", "running") for run in runs)
    if options.all or options.only or not number:
        return
    what = f"all {number} runs" if number > 1 else "the one run"
    what = f"{what} of {printable(study_name(study_dir))} that {'are' if number > 1 else 'is'} not over"
    if not sys.stdin.isatty():
        raise UsageError(f"cancel would stop {what}; add --all, or choose some with --only")
    print(f"cancel {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing is cancelled; choose runs with --only, or answer y")


def _report(options: argparse.Namespace) -> tuple[Any, int]:
    if options.watch and options.json:
        raise UsageError("--watch writes the report again and again, --json prints one document; use one of them")
    study_dirs = [find_study(name, options.runs_dir) for name in options.studies]
    if options.watch:
        _watch_report(options, study_dirs)
    behaviour = []
    if options.behaviour is not False:
        asked = options.behaviour is True
        behaviour = [found for study_dir in study_dirs for found in _compute_behaviour(study_dir, asked=asked)]
    page = _write_report(study_dirs, options.output)
    _say(options, printable(str(page)))
    names = [study_dir.name for study_dir in study_dirs]
    return {"study": names[0], "studies": names, "report": str(page), "behaviour": behaviour}, 0


def _watch_report(options: argparse.Namespace, study_dirs: list[Path]) -> None:
    """Write the report at once and whenever a run has got further, until every run is over."""
    written = None
    while True:
        runs = [run for study_dir in study_dirs for run in observe_study(study_dir)]
        seen = [(run.run.path, run.observation.state, run.observation.epoch) for run in runs]
        if not any(run.observation.state in ("queued", "running") for run in runs):
            return
        if seen != written:
            page = _write_report(study_dirs, options.output, refresh_seconds=REPORT_SECONDS)
            done = sum(run.observation.state == "done" for run in runs)
            terminal.tell(f"{page}: {done} of {len(runs)} runs done")
            written = seen
        time.sleep(REPORT_SECONDS)


def _write_report(study_dirs: list[Path], output: Path | None, *, refresh_seconds: int | None = None) -> Path:
    from analysis.report import write_report  # pandas and matplotlib: a second that only the report needs

    return write_report(*study_dirs, output=output, refresh_seconds=refresh_seconds)


def _doctor(options: argparse.Namespace) -> tuple[Any, int]:
    findings = examine(options.runs_dir, find_data(options.data, None))
    if options.calibrate:
        findings += check_devices()
    if options.backend == "slurm":
        from slurm import doctor as cluster  # only who has a cluster waits for it
        from slurm.settings import read_settings

        settings = read_settings({}, where="", environ=os.environ)
        findings += cluster.examine(settings, runs_dir=options.runs_dir, wait_s=options.wait_s)
    rows = [[finding.level, finding.subject, finding.text] for finding in findings]
    _say(options, terminal.table(["", "", ""], rows).lstrip("\n"))
    data = {"findings": [vars(finding) for finding in findings]}
    if any(finding.level == "bad" for finding in findings):
        return data, BackendError.exit_code
    if options.calibrate:
        return data, _calibrate(options)
    return data, 0


def _calibrate(options: argparse.Namespace) -> int:
    """Train one ordinary small run of each architecture on the whole machine; ``plan`` finds their speed."""
    manifest = load_manifest(CALIBRATION)
    command = ["python", "launch.py", "doctor", "--calibrate"]
    choice = BackendChoice(name="local", max_parallel=1)
    study_dir = options.runs_dir / manifest.study
    launched = parser().parse_args(["run", str(CALIBRATION), "--runs-dir", str(options.runs_dir)])
    launched.json = options.json
    _, code = _launch(
        launched,
        list(manifest.runs),
        LaunchOptions(study_dir=study_dir, record=record_of(manifest, manifest.runs, None)),
        choice,
        data_path=lambda spec: None,
        command=lambda spec: command,
    )
    return code


def _data(options: argparse.Namespace) -> tuple[Any, int]:
    folder = options.to or downloaded_ptb()
    fetched = download_ptb(folder)
    _say(options, f"Penn Treebank is in {folder} ({len(fetched)} files fetched, all verified)")
    return {"directory": str(folder), "fetched": [str(path) for path in fetched]}, 0


# -- arguments -----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line: each command with its handler."""
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document on stdout, all else on stderr")
    common.add_argument(
        "--runs-dir",
        type=Path,
        default=Path(os.environ.get("SEQLM_RUNS", "runs")),
        metavar="DIR",
        help="where studies lie (default: SEQLM_RUNS, else runs)",
    )
    filters = _Parser(add_help=False)
    filters.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CONDITIONS",
        help="runs that meet all conditions: 'arch=gru lr>1'; repeat --only for runs that meet these or those",
    )
    filters.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="CONDITIONS",
        help="leave out runs that meet all conditions; repeat --exclude to leave out more",
    )
    data = _Parser(add_help=False)
    data.add_argument("--data", type=Path, metavar="PATH", help="folder or zip of the corpus (else SEQLM_DATA)")
    manifest = _Parser(add_help=False)
    manifest.add_argument("manifest", help="the study: a TOML, YAML or JSON file")
    manifest.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as train.epochs=2")
    placing = _Parser(add_help=False)
    placing.add_argument(
        "--backend", choices=tuple(BACKENDS), help="where runs go (default: SEQLM_BACKEND, the manifest's, ray, local)"
    )
    placing.add_argument(
        "--ray-address", metavar="ADDRESS", help="join this Ray cluster (else RAY_ADDRESS, else start one here)"
    )
    placing.add_argument("--max-parallel", type=_positive, metavar="N", help="at most N runs at once")
    leaving = _Parser(add_help=False, parents=[placing])
    leaving.add_argument(
        "--retries", type=_whole, metavar="N", help="retries in a row without progress (default: the policy's, 10)"
    )
    leaving.add_argument("--no-wait", action="store_true", help="leave a launcher behind and return")
    leaving.add_argument(
        "--live-code", action="store_true", help="run the working tree, not a copy kept beside the runs"
    )
    reporting = _Parser(add_help=False)
    reporting.add_argument(
        "--behaviour",
        action=argparse.BooleanOptionalAction,
        help="the report: compute what is missing of the trained models' behaviour first, in another user's study "
        "too (default: only in your own)",
    )
    launching = _Parser(add_help=False, parents=[leaving, reporting])
    launching.add_argument(
        "--canary",
        action=argparse.BooleanOptionalAction,
        help="try a few steps of each architecture with each optimizer first (default: above 10 runs)",
    )
    launching.add_argument(
        "--then-report", action="store_true", help="have a job write the report after the last run (slurm)"
    )
    launching.add_argument("--report", action="store_true", help="write the report at the end")
    study = _Parser(add_help=False)
    study.add_argument("study", help="a study's folder, its manifest, or its name")

    top = _Parser(prog="launch.py", description="A whole language-model study from one manifest.")
    top.add_argument("--version", action="version", version=f"seqlm {__version__}")
    commands = top.add_subparsers(metavar=COMMAND, required=True)

    def command(name: str, handler: Callable[..., Any], text: str, *parents: _Parser) -> _Parser:
        made = commands.add_parser(name, help=text, description=text, parents=[*parents, common])
        made.set_defaults(handler=handler)
        return made

    plan = command("plan", _plan, "show what run would do, and what it costs", manifest, filters, data, placing)
    plan.set_defaults(retries=None)
    command("run", _run, "launch what is not done yet, and wait", manifest, filters, data, launching)
    status = command("status", _status, "the state of each run", study, filters)
    form = status.add_mutually_exclusive_group()
    form.add_argument("--watch", action="store_true", help="show it as it changes, until every run is over")
    form.add_argument("--svg", type=Path, metavar="FILE", help="write the table that --watch shows as a picture")
    listing.add_arguments(command("list", _list, listing.TEXT))
    clean.add_arguments(command("clean", _clean, clean.TEXT, study))
    logs = command("logs", _logs, "the logs of the latest attempts", study, filters)
    logs.add_argument("run", nargs="?", help="one run, by its name, its id, or a unique beginning of its id")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run is over")
    logs.add_argument("-n", "--lines", type=_positive, default=20, help="last lines of each log (default: 20)")
    cancelling = command("cancel", _cancel, "stop runs that are not over", study, filters)
    cancelling.add_argument("--all", action="store_true", help="every run, without asking")
    retry = command("retry", _retry, "launch failed and cancelled runs again", study, filters, data, launching)
    kinds = ("oom", "diverged", "node", "preempted", "timeout", "code", "cancelled")
    retry.add_argument(
        "--kind", action="append", choices=kinds, help="only failures of this kind; several times: of these"
    )
    behaviour = command("behaviour", _behaviour, "compute what trained models do", study, filters, data, leaving)
    behaviour.add_argument("--window", type=_positive, metavar="N", help="tokens of context (default: 2 seq_len)")
    behaviour.add_argument("--samples", type=_positive, metavar="N", help="texts of each length (default: 10)")
    behaviour.add_argument("--temperature", type=_above_zero, metavar="X", help="of the sampling (default: 1)")
    behaviour.add_argument("--prompt", metavar="TEXT", help="what texts begin with (default: nothing)")
    behaviour.add_argument("--seed", type=_whole, metavar="N", help="of the sampling (default: the run's)")
    behaviour.add_argument("--force", action="store_true", help="compute it anew, even if nothing has changed")
    behaviour.set_defaults(canary=False, report=False, then_report=False)
    report = command(
        "report", _report, "the report of one study, or of several together, from the runs' files", reporting
    )
    report.add_argument("studies", nargs="+", metavar="study", help="a study's folder, its manifest, or its name")
    report.add_argument(
        "--output", type=Path, metavar="DIR", help="default: report in the study's folder, of several beside them"
    )
    report.add_argument("--watch", action="store_true", help="write it again as runs go on, until every run is over")
    doctor = command("doctor", _doctor, "check this machine, or a cluster", data)
    doctor.add_argument("--backend", choices=tuple(BACKENDS), help="slurm: look at the cluster too, with a trial job")
    doctor.add_argument(
        "--wait-s", type=_positive, default=120, metavar="S", help="how long the trial job may take (default: 120)"
    )
    doctor.add_argument(
        "--calibrate",
        action="store_true",
        help="check fused operations on this device, then measure training speed, for the times of plan",
    )
    fetch = command("data", _data, "fetch a corpus")
    fetch.add_argument("corpus", choices=("ptb",), help="ptb: Penn Treebank")
    fetch.add_argument("--to", type=Path, metavar="DIR", help="default: where runs look for it by themselves")
    return top


def _whole(text: str) -> int:
    return int(_checked(text, int, lambda number: number >= 0, "a whole number, 0 or more"))


def _positive(text: str) -> int:
    return int(_checked(text, int, lambda number: number >= 1, "a whole number, 1 or more"))


def _above_zero(text: str) -> float:
    return _checked(text, float, lambda number: 0 < number < math.inf, "a number above 0")


def _checked(text: str, kind: Callable[[str], float], is_valid: Callable[[float], bool], valid: str) -> float:
    """A number of the command line; otherwise a line that says what would be right."""
    with contextlib.suppress(ValueError):
        if is_valid(number := kind(text)):
            return number
    raise argparse.ArgumentTypeError(f"found {text}, valid is {valid}")


if __name__ == "__main__":
    sys.exit(main())
