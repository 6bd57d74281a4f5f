"""One launch of a study: find its data, plan its runs, make their folders, keep the code, dispatch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.backend import Backend
from jobs.code_snapshot import keep_code, live_code
from jobs.dispatch import Dispatcher, Event, Planned, plan
from jobs.provenance import provenance
from jobs.spec import RunSpec
from jobs.study import launch_lock_file, launcher_of, launching, observe_run
from seqlm.config import DataConfig
from seqlm.data.corpus import load_corpus, resolve_data
from seqlm.data.layout import require_windows
from seqlm.errors import BackendError, DataError
from seqlm.rundir import Observation, RunDirectory, is_locked, make_directory

WORKER = (sys.executable, "-m", "seqlm.training.worker")


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What a launch needs to know beyond its runs."""

    study_dir: Path
    live_code: bool = False
    """Workers run from the working tree instead of the copy kept with the study."""
    retry: bool = False
    """Runs that failed or were cancelled are launched too."""


def find_data(flag: Path | None, manifest: Path | None) -> Path | None:
    """Where the corpus lies: the flag, over ``SEQLM_DATA``, over the manifest; none for the default place."""
    if flag is not None:
        return flag
    variable = os.environ.get("SEQLM_DATA")
    return Path(variable) if variable else manifest


def resolve_specs(specs: Sequence[RunSpec], data_path: Path | None) -> list[RunSpec]:
    """The runs with the identity of their text filled in.

    Raises:
        DataError: the text of a ``files`` corpus is not found or not the one that the configuration names.
    """
    resolved: dict[DataConfig, DataConfig] = {}
    for data in dict.fromkeys(spec.config.data for spec in specs):
        resolved[data] = resolve_data(data, data_path)
    return [replace(spec, config=replace(spec.config, data=resolved[spec.config.data])) for spec in specs]


def plan_runs(specs: Sequence[RunSpec], study_dir: Path, *, retry: bool = False) -> list[Planned]:
    """What a launch would do to each run. Reads the folders, writes nothing."""
    launcher = launcher_of(study_dir)
    planned = []
    for spec in specs:
        run = RunDirectory.locate(study_dir, spec.name, spec.fingerprint)
        observation = observe_run(run, launcher)
        has_checkpoint = run.last_checkpoint.exists()
        planned.append(plan(spec, run, observation, has_checkpoint=has_checkpoint, retry=retry))
    return planned


def check_data(planned: Sequence[Planned], data_path: Mapping[str, Path | None]) -> None:
    """Read and tokenise every corpus here and now, rather than by a worker hours later; workers then find it cached.

    Raises:
        DataError: a corpus is missing, damaged, or too small for a run's batch and window.
    """
    sizes: dict[tuple[DataConfig, Path | None], dict[str, int]] = {}
    for item in planned:
        config = item.spec.config
        key = (config.data, data_path.get(item.run.id))
        if key not in sizes:
            sizes[key] = load_corpus(*key).tokens
        for split, tokens in sizes[key].items():
            try:
                require_windows(split, tokens, config.train.batch_size, config.train.seq_len)
            except DataError as error:
                raise DataError(f"{item.spec.name}: {error}") from None


def launch(
    specs: Sequence[RunSpec],
    backend: Backend,
    options: LaunchOptions,
    *,
    data_path: Callable[[RunSpec], Path | None],
    command: Callable[[RunSpec], list[str]],
    progress: Callable[[list[Planned]], Callable[[Event], None]],
) -> list[Planned]:
    """Launch the runs and wait for them.

    ``command`` gives the command line that launches one run alone; ``progress`` gets the plan and returns who is told
    of events.

    Raises:
        RunBusyError: another launcher is at work on this study.
        BackendError, DataError, FileError: nothing has been started.
        KeyboardInterrupt: interrupted; the workers have stopped and can be resumed.
    """
    # Everything that can be wrong is found before the first file is written.
    expected = [item for item in plan_runs(specs, options.study_dir, retry=options.retry) if item.action != "skip"]
    paths = {item.run.id: data_path(item.spec) for item in expected}
    check_data(expected, paths)
    for item in expected:
        backend.resolve(item.spec, len(expected))
    with launching(options.study_dir):
        planned = plan_runs(specs, options.study_dir, retry=options.retry)
        todo = [item for item in planned if item.action != "skip" and item.run.id in paths]
        if not todo:
            progress(planned)
            return planned
        code = live_code() if options.live_code else keep_code(options.study_dir)
        for item in todo:
            record = provenance(
                item.spec,
                study=options.study_dir.name,
                command=command(item.spec),
                code=code,
                data_path=paths[item.run.id],
            )
            item.run.create(item.spec.config, record)
        dispatcher = Dispatcher(backend, code=code, argv=WORKER, data_path=paths, on_event=progress(planned))
        dispatcher.dispatch(todo)
        return planned


def detach(argv: Sequence[str], study_dir: Path) -> int:
    """Start a launcher of its own that outlives this process (``--no-wait``); returns its pid.

    What it prints goes to ``launch-NNNN.log`` in the study's folder.

    Raises:
        BackendError: it ended before it had taken the study on; the last line of its log says why.
    """
    make_directory(study_dir)
    log = study_dir / f"launch-{len(list(study_dir.glob('launch-*.log'))) + 1:04d}.log"
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while True:
        holder = launcher_of(study_dir)
        if holder is not None and holder["pid"] == child.pid:
            return child.pid
        if child.poll() is not None:
            if child.returncode == 0:  # so quick that its lock was never seen
                return child.pid
            lines = log.read_text("utf-8", errors="replace").strip().splitlines()
            raise BackendError(f"the launcher ended at once: {lines[-1] if lines else 'no output'} (see {log})")
        time.sleep(0.05)


def wait_for_launcher(study_dir: Path, seconds: float) -> None:
    """Wait until no launcher is at work on this study, ``seconds`` at most."""
    deadline = time.monotonic() + seconds
    while is_locked(launch_lock_file(study_dir)) and time.monotonic() < deadline:
        time.sleep(0.05)


def status_record(name: str, run: RunDirectory, observation: Observation) -> dict[str, Any]:
    """One run in the answer of ``status --json``."""
    return {
        "name": name,
        "id": run.id,
        "state": observation.state,
        "epoch": observation.epoch,
        "best_val_ppl": observation.best_val_ppl,
        "reason": observation.reason,
    }
