"""The commands that launch: run, retry, behaviour; and report, which computes missing behaviour.

Each finds its runs and where they go. :func:`carry_out` launches them: attended, in the background, or by a scheduler.
"""

import contextlib
import functools
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.backends.base import Backend
from jobs.backends.local import LocalBackend
from jobs.cli.arguments import EXIT_RUN_FAILED, Arguments
from jobs.cli.naming import chosen_runs, find_trained
from jobs.cli.planning import choose, choose_again, launch_of, open_manifest, plan
from jobs.cli.view import Watcher, following, status_of, tell_skipped, watch
from jobs.launch import notify
from jobs.launch.background import detach
from jobs.launch.behaviour import FAILURES, SETTINGS, BehaviourLaunch
from jobs.launch.job import Order, StudySettings
from jobs.launch.launch import launch
from jobs.launch.prepare import edited_models, find_data, things_of, to_do
from jobs.manifests import secrets
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun
from jobs.plan.record import record_of
from jobs.spec import RunSpec
from jobs.study.folder import find_study, is_behaviour_study, observe_study, study_name
from jobs.study.launched import trust_study
from jobs.study.record import KeptManifests
from jobs.terminal import STATE, Column, Result, show
from seqlm.comparisons import turns_of
from seqlm.errors import SeqlmError, UsageError, printable
from seqlm.rundir import Observation
from seqlm.trust import distrusted

LAUNCH_FILE = Path(__file__).resolve().parents[2] / "launch.py"

# -- run, retry, behaviour -----------------------------------------------------------------------------------------


def run(arguments: Arguments) -> Result | tuple[Any, int]:
    """Launch what is not done yet, or with ``--dry-run`` return what would be done."""
    return plan(arguments) if arguments.dry_run else run_manifest(arguments)


def run_manifest(arguments: Arguments) -> tuple[Any, int]:
    """Launch what is not done yet and print how it ended. Exit code 1 if a run failed."""
    study, order, backend = prepared(arguments)
    return train(arguments, study, order, backend)


def prepared(arguments: Arguments) -> tuple[StudySettings, Order, Backend]:
    """Return the settings of a manifest's study, what its launch is asked to do, and where its runs go."""
    arguments, manifest, specs, study_dir = open_manifest(arguments)
    data = find_data(arguments.data, manifest.data_path)
    terminal.detail(f"data: {data or 'the default place'}")
    for line in manifest.advice:
        terminal.tell(line)
    backend = choose(arguments, manifest)
    study = StudySettings(
        path=study_dir,
        policy=manifest.policy.with_retries(backend.settings.retries),
        notify=manifest.notify,
        search=manifest.search,
    )
    changes = [word for text in arguments.changes for word in ("--set", text)]
    paths = ["--data", str(arguments.data)] if arguments.data else []
    alone = [*terminal.program().split(), "run", arguments.manifest, "--only"]
    record = record_of(manifest, specs, data, launch_of(arguments, manifest))
    specs = [replace(spec, command=[*alone, f"name={spec.name}", *changes, *paths]) for spec in specs]
    decides = None if arguments.only or arguments.exclude else manifest.decides
    return study, _ordered(arguments, specs, record=record, decides=decides), backend


def _ordered(arguments: Arguments, specs: Sequence[RunSpec], **more: Any) -> Order:
    """Return what a launch of runs that train is asked to do."""
    return Order(
        specs=specs,
        oversized=arguments.oversized,
        canary=arguments.canary,
        live_code=arguments.live_code,
        then_report=arguments.then_report,
        behaviour=arguments.behaviour,
        **more,
    )


def retry(arguments: Arguments) -> tuple[Any, int]:
    """Launch failed and cancelled runs again and print how they ended. Exit code 1 if a run failed.

    Runs that a search or a comparison stopped go on only with ``--kind stopped``.
    """
    study_dir = _found(arguments)
    runs = chosen_runs(arguments, study_dir)
    chosen = [one for one in runs if one.config is not None and _is_to_retry(one.observation, arguments.kind)]
    for one in runs:
        if one.config is None:
            terminal.tell(f"skipped {one.name}: {one.observation.reason}")
    if not chosen:
        what = "was stopped" if arguments.kind == ("stopped",) else "has failed or was cancelled"
        stopped = "stopped" not in arguments.kind and any(one.observation.state == "stopped" for one in runs)
        hint = "; --kind stopped lets runs go on that were stopped" if stopped else ""
        terminal.say(f"nothing to retry: no run that was chosen {what}{hint}")
        return {"study": study_dir.name, "runs": [one.to_dict() for one in runs]}, 0
    record = KeptManifests(study_dir, terminal.tell)
    specs = [one.to_spec() for one in chosen]
    if not arguments.kept_models:
        _require_same_models(specs, record, arguments)
    if arguments.dry_run:
        for one in chosen:
            terminal.say(f"would retry {one.name}: {one.observation.state}: {one.observation.reason}")
        return {"study": study_dir.name, "runs": [one.to_dict() for one in chosen]}, 0
    turns = turns_of(study_dir)
    specs = [replace(spec, turn=turns.get(one.run.id, 0)) for one, spec in zip(chosen, specs, strict=True)]
    specs = [replace(spec, data_path=find_data(arguments.data, spec.data_path)) for spec in specs]
    kept = StudySettings(path=study_dir, policy=record.policy or Policy(), notify=record.notify, search=record.search)
    backend = choose_again(study_dir, chosen, arguments)
    study = replace(kept, policy=kept.policy.with_retries(backend.settings.retries))
    return train(arguments, study, _ordered(arguments, specs, retry=True), backend)


def _require_same_models(specs: Sequence[RunSpec], record: KeptManifests, arguments: Arguments) -> None:
    """Check that no model of the user has changed since its run was launched: `retry` would train the earlier one.

    Raises:
        UsageError: one has changed.
    """
    if edited := edited_models(specs, record.manifest):
        words = shlex.join(word for word in arguments.argv if word not in ("--json", "-n", "--dry-run"))
        has_changed = f"{', '.join(edited)} {'has' if len(edited) == 1 else 'have'} changed"
        raise UsageError(
            f"{has_changed} since these runs were launched: `{record.run_command}` trains what is there now, "
            f"`{words} --kept-models` what they began with"
        )


def _found(arguments: Arguments) -> Path:
    """Return the folder of the study, and with ``--trust`` record that what it keeps is this user's."""
    study_dir = find_trained(arguments)
    if arguments.trust:
        trust_study(study_dir, terminal.tell)
    return study_dir


def _is_to_retry(seen: Observation, kinds: Sequence[str]) -> bool:
    if seen.state == "stopped":
        return "stopped" in kinds
    return seen.state in ("failed", "cancelled") and (not kinds or seen.kind in kinds)


def behaviour(arguments: Arguments) -> tuple[Any, int]:
    """Compute what trained models do and print what became of each. Exit code 1 if one failed or has no checkpoint."""
    study_dir = _found(arguments)
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
        backend = choose_again(study_dir, [job.run for job in wanted.jobs], arguments)
        study, order = wanted.study(backend.settings.retries), wanted.order(live_code=arguments.live_code)
        left, _ = carry_out(arguments, study, order, backend)
    outcomes = wanted.outcomes()
    if left is not None:
        missing = [found for found in outcomes if found["state"] == "missing"]
        for found in missing:  # these will have none, however the jobs end
            terminal.tell(behaviour_line(found))
        return left, EXIT_RUN_FAILED if missing else 0
    show((Column("run", "name"), Column("id"), STATE, Column("reason")), outcomes)
    for found in outcomes:
        if found["samples"] is not None:
            terminal.say(f"texts of {found['name']}: {found['samples']}")
    data = {"study": study_dir.name, "runs": outcomes}
    return data, EXIT_RUN_FAILED if any(found["state"] in FAILURES for found in outcomes) else 0


def train(arguments: Arguments, study: StudySettings, order: Order, backend: Backend) -> tuple[Any, int]:
    """Launch runs as :func:`carry_out` does, print how they ended, and write a report if wanted."""
    left, planned = carry_out(arguments, study, order, backend)
    short = any(item.falls_short for item in planned)
    if left is not None:
        return left, EXIT_RUN_FAILED if short else 0
    ids = {item.run.id for item in planned}
    runs = [one for one in observe_study(study.path) if one.run.id in ids]
    result = status_of(runs, study.path)
    result.render()
    if arguments.report:
        terminal.say(f"report: {write_report_of(arguments, [study.path])[0]}")
    is_search = study.search is not None
    has_failed = any(_is_bad(one.observation, is_search=is_search) for one in runs)
    return result.document(), EXIT_RUN_FAILED if has_failed or short else 0


def _is_bad(seen: Observation, *, is_search: bool) -> bool:
    """Return whether a run makes the exit code 1. In a search, a setting that diverges is an outcome like any other."""
    if is_search and seen.state == "failed" and seen.kind == "diverged":
        return False
    return seen.state in ("failed", "cancelled", "pending")  # pending: its job is gone, or it waits for the budget


# -- the ways to launch --------------------------------------------------------------------------------------------


def carry_out(
    arguments: Arguments, study: StudySettings, order: Order, backend: Backend
) -> tuple[dict[str, Any] | None, Sequence[PlannedRun]]:
    """Launch runs of a study on a backend, and wait unless ``--no-wait`` says otherwise.

    Returns what runs on without this process (``None``: it has waited), and what was planned for each run (nothing for
    a launcher in the background).

    Raises:
        SeqlmError: nothing has been started, or a canary has failed.
        KeyboardInterrupt: interrupted while waiting.
    """
    settings, command = backend.settings, study.notify.command if study.notify else None
    for line in [*secrets.advice(settings.env, f"backend.{backend.name}.env"), *secrets.advice_on_command(command)]:
        terminal.tell(f"warning: {line}")
    needed = notify.require(study.notify)
    if backend.is_scheduled:
        backend.settings = replace(settings, env_pass=(*settings.env_pass, *needed))
        return _submit(study, order, backend, waits=not arguments.no_wait)
    if not arguments.no_wait:
        return None, attend(study, order, backend)
    backend.check(study.path)  # an error now, not in the background
    argv = [word for word in arguments.argv if word not in ("--no-wait", "--json")]
    pid = detach([str(LAUNCH_FILE), *argv], study.path)
    see = f"{terminal.program()} status {printable(str(study.path))}"
    terminal.say(f"launched by process {pid}; see: {see}")
    return {"study": study_name(study.path), "launcher_pid": pid}, ()


def attend(study: StudySettings, order: Order, backend: Backend) -> Sequence[PlannedRun]:
    """Launch from this process, wait, and return what was planned for each run. Progress goes to stderr.

    Raises:
        SeqlmError: nothing has been started, or a canary has failed.
        KeyboardInterrupt: interrupted; the workers have stopped.
    """
    shown = functools.partial(following, study.path, backend.where())
    try:
        return launch(study, order, backend, shown).planned
    finally:
        if not isinstance(sys.exception(), KeyboardInterrupt):
            notify.over(study.path, study.notify)


def _submit(
    study: StudySettings, order: Order, backend: Backend, *, waits: bool
) -> tuple[dict[str, Any] | None, Sequence[PlannedRun]]:
    """Submit to a scheduler, and watch the jobs if the command ``waits``; they need no launcher.

    Final seeds of a search are submitted once the others have ended. If the command does not wait, a later launch
    submits them.
    """
    left, planned = _submit_once(study, order, backend, waits=waits)
    final = [spec for spec in order.specs if spec.first_seed is not None]
    if final and waits:
        _, more = _submit_once(study, replace(order, specs=final), backend, waits=True)
        planned = [*planned, *more]
    return left, planned


def _submit_once(
    study: StudySettings, order: Order, backend: Backend, *, waits: bool
) -> tuple[dict[str, Any] | None, Sequence[PlannedRun]]:
    """Submit what can start now, and watch the jobs if the command ``waits``."""
    launched = launch(study, order, backend, _told)
    jobs, number = list(launched.jobs), len(to_do(launched.planned))
    what = f"jobs {', '.join(jobs)}" if jobs else "nothing to submit"
    terminal.tell(f"{study_name(study.path)}: {number} of {len(launched.planned)} runs to do: {what}")
    if not waits:
        return {"study": study_name(study.path), "jobs": jobs}, launched.planned
    try:
        watch(Watcher(study.path, {item.run.id for item in launched.planned}))
    except KeyboardInterrupt:
        terminal.tell("the jobs go on without this terminal; `cancel` stops them")
        raise
    return None, launched.planned


@contextlib.contextmanager
def _told(planned: Sequence[PlannedRun]) -> Iterator[None]:
    """Tell which runs are skipped."""
    tell_skipped(planned)
    yield


# -- report -----------------------------------------------------------------------------------------------------------


def report(arguments: Arguments) -> tuple[Any, int]:
    """Write the report, with the behaviour of trained models that is missing."""
    study_dirs = [find_study(name, arguments.runs_dir) for name in arguments.studies]
    page, behaviour = write_report_of(arguments, study_dirs)
    terminal.say(page)
    names = [study_dir.name for study_dir in study_dirs]
    return {"study": names[0], "studies": names, "report": page, "behaviour": behaviour}, 0


def write_report_of(arguments: Arguments, study_dirs: Sequence[Path]) -> tuple[str, list[dict[str, Any]]]:
    """Return the path of a report, and what became of each missing behaviour job."""
    terminal.tell(f"writing the report of {', '.join(map(study_name, study_dirs))}")
    from analysis.report import folder_of, write_report  # pandas and matplotlib: a second that only the report needs

    folder_of(*study_dirs, output=arguments.output)  # refused before anything is computed
    wanted, asked = study_dirs if arguments.behaviour is not False else (), arguments.behaviour is True
    for study_dir in study_dirs if arguments.trust else ():
        trust_study(study_dir, terminal.tell)
    behaviour = [found for study_dir in wanted for found in compute_missing_behaviour(study_dir, asked=asked)]
    return str(write_report(*study_dirs, output=arguments.output)), behaviour


def compute_missing_behaviour(study_dir: Path, *, asked: bool) -> list[dict[str, Any]]:
    """Compute on this machine the behaviour that a report lacks. Problems go to stderr and do not stop the report.

    Unless ``asked`` for by a flag, nothing is computed for a run that this user has not launched. A result is kept as
    long as its checkpoints are unchanged, whatever its settings.
    """
    if is_behaviour_study(study_dir):
        return []
    try:
        wanted = BehaviourLaunch(study_dir)
        problem = None if asked or not wanted.specs else _not_launched(study_dir, wanted)
        if problem is not None:
            where = printable(str(study_dir))
            terminal.tell(f"behaviour is left as it is: in {where}, {problem}; --trust computes what is missing")
            return []
        if wanted.specs:
            attend(wanted.study(), wanted.order(), LocalBackend())
        outcomes = wanted.outcomes()
    except SeqlmError as error:
        terminal.tell(f"behaviour is left as it is: {'; '.join(str(error).splitlines())}")
        return []
    if not outcomes:
        names = ", ".join(dict.fromkeys(KeptManifests(study_dir).behaviour.values()))
        what = f"none of the runs in [report] behaviour ({names})" if names else "no run"
        terminal.tell(f"{what} is done, so there is no behaviour to compute")
    for found in outcomes:
        if found["state"] in (*FAILURES, "kept"):
            terminal.tell(behaviour_line(found))
    return outcomes


def _not_launched(study_dir: Path, wanted: BehaviourLaunch) -> str | None:
    """Return what of missing behaviour this user has not launched. ``None``: nothing."""
    return distrusted(things_of(wanted.specs, whole=True)) or KeptManifests(study_dir).distrusted("behaviour")


def behaviour_line(found: Mapping[str, Any]) -> str:
    """Return one line about the behaviour of a run."""
    return f"behaviour of {found['name']}: {found['state']}: {found['reason'] or 'no reason is known'}"
