"""Export runs: CSV files, events of TensorBoard, an SQLite store of MLflow, offline runs of Weights & Biases.

A run is exported as far as its newest checkpoint, so nothing exported is computed again. ``exported.json`` in the
output folder says how far each run is. Nothing uses a network.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seqlm.errors import UsageError, file_errors
from seqlm.files import make_directory, read_json, replacing, write_json
from seqlm.reading import moment
from seqlm.rundir import RunDirectory
from seqlm.trace import read_trace

STEP_VALUES = ("step/loss", "step/grad_norm", "step/seconds")
MLFLOW_BATCH = 1000
"""Most metrics that MLflow takes at once."""


class Point(NamedTuple):
    """What is known of a run at a step, counted from 0 over all epochs."""

    step: int
    time: float
    """Seconds since 1970, as if the run had never paused."""
    values: dict[str, float]
    """By name: ``step/...``, of the epoch that ends there ``epoch/...``, and of the run ``result/...``."""


def export_run(run: RunDirectory, name: str, target: str, folder: Path) -> int:
    """Export the points of a run that are new, and return how many.

    Raises:
        FileError: a file cannot be read or written.
        UsageError: the library of ``target`` is not installed.
    """
    state_file, key = folder / "exported.json", f"{target}/{run.path.parent.name}/{run.id}"
    state, (epochs, _) = read_json(state_file) or {}, run.read_metrics()
    result, before = _numbers("result", run.read_result() or {}), state.get(key, {})
    seen = [len(epochs), *run.progress(), result.get("result/epochs")]
    if seen == before.get("seen"):
        return 0
    points = _points(run, epochs)
    new = [point for point in points if point.step >= before.get("next_step", 0)]
    if points and result:
        points.append(points[-1]._replace(values=result))
        new += points[-1:] if before.get("seen", [None])[-1] != seen[-1] else []
    if new:
        make_directory(folder)
        try:
            with file_errors("write", folder, within=True):
                TARGETS[target](folder.absolute(), run, name, points, new)
        except ImportError as error:
            raise UsageError(
                f'--to {target}: {error.name} is not installed; use: pip install "seqlm[{target}]"'
            ) from None
        write_json(state_file, {**state, key: {"next_step": points[-1].step + 1, "seen": seen}})
    return len(new)


def _points(run: RunDirectory, epochs: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return what a checkpoint covers. The last step of an epoch waits for the values of the epoch."""
    values: defaultdict[int, dict[str, float]] = defaultdict(dict)
    trace = read_trace(run)
    for step, row in enumerate(trace.rows[: min(trace.covered, (len(epochs) + 1) * trace.steps - 1)] if trace else ()):
        values[step] = dict(zip(STEP_VALUES, row, strict=True)) if row[2] == row[2] else {}  # else nobody recorded it
    for record in epochs:
        steps = record.get("steps")
        values[(record["epoch"] + 1) * (steps if type(steps) is int else 1) - 1] |= _numbers("epoch", record)
    time = start = moment((read_json(run.worker_file(1)) or {}).get("started_at")) or 0.0
    points = []
    for step, found in sorted(values.items()):
        time = start + found.get("epoch/elapsed_seconds", time - start + found.get("step/seconds", 0.0))
        points += [Point(step, time, found)] if found else []
    return points


def _numbers(prefix: str, record: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}/{key}": float(value) for key, value in record.items() if type(value) in (int, float)}


# -- targets: each writes the new points of a run; ImportError: its library is missing ---------------------------------


def _to_csv(folder: Path, run: RunDirectory, name: str, points: list[Point], new: list[Point]) -> None:
    columns = dict.fromkeys(key for point in points for key in point.values)
    with replacing(folder / f"{run.id}.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["step", "time", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, "time": time, **values} for step, time, values in points)


def _to_tensorboard(folder: Path, run: RunDirectory, name: str, points: list[Point], new: list[Point]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder / run.id))
    for step, time, values in new:
        summary = Summary(value=[Summary.Value(tag=key, simple_value=value) for key, value in values.items()])
        writer.add_event(Event(step=step, wall_time=time, summary=summary))
    writer.close()


def _to_mlflow(folder: Path, run: RunDirectory, name: str, points: list[Point], new: list[Point]) -> None:
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}  # read when it is imported
    import sqlalchemy  # noqa: F401 -- mlflow-skinny comes without it, and says something else if it is missing
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client, study = MlflowClient(f"sqlite:///{folder}/mlflow.db"), run.path.parent.name
    known = client.get_experiment_by_name(study)
    experiment = known.experiment_id if known else client.create_experiment(study, str(folder / "mlflow"))
    found = client.search_runs([experiment], f"tags.seqlm_id = '{run.id}'")
    own = found[0] if found else client.create_run(experiment, run_name=name, tags={"seqlm_id": run.id})
    if new[0] is points[0]:
        client.log_batch(
            own.info.run_id, params=[Param(key, str(value)) for key, value in run.read_config().by_key().items()]
        )
    metrics = [Metric(key, value, int(1000 * at), step) for step, at, values in new for key, value in values.items()]
    for place in range(0, len(metrics), MLFLOW_BATCH):
        client.log_batch(own.info.run_id, metrics[place : place + MLFLOW_BATCH])
    if "result/epochs" in points[-1].values:
        client.set_terminated(own.info.run_id)


def _to_wandb(folder: Path, run: RunDirectory, name: str, points: list[Point], new: list[Point]) -> None:
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # else it looks up an address when it is imported
    import wandb

    quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True)
    own: dict[str, Any] = {
        "id": run.id,
        "name": name,
        "project": run.path.parent.name,
        "config": run.read_config().by_key(),
    }
    with wandb.init(**own, mode="offline", dir=folder, resume="allow", settings=quiet) as session:
        for step, _, values in new:
            session.log(values, step=step)


TARGETS = {"csv": _to_csv, "tensorboard": _to_tensorboard, "mlflow": _to_mlflow, "wandb": _to_wandb}
