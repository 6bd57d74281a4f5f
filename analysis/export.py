"""Export runs: CSV files, events of TensorBoard, an SQLite store of MLflow, offline runs of Weights & Biases.

A run is exported as far as its newest checkpoint, so nothing exported is computed again. ``exported.json`` in the
output folder says how far each run is. An export that is killed before it says so is repeated, and replaces what it had
written: the names of files say which batch of the run they hold, and MLflow keeps equal values once. Nothing uses a
network.
"""

import csv
import heapq
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from seqlm.errors import UsageError, file_errors
from seqlm.files import folder_beside, make_directory, read_json, replace_folder, replacing, write_json
from seqlm.reading import listed, moment
from seqlm.records.runs import Result
from seqlm.rundir import RunDirectory
from seqlm.trace import read_trace

STEP_VALUES = ("step/loss", "step/grad_norm", "step/seconds")
MLFLOW_BATCH = 1000
"""Most metrics that MLflow takes at once."""


class Point(NamedTuple):
    """What is known of a run at a step."""

    step: int
    """From 0 over all epochs."""
    is_result: bool
    """A point of its own, after that of the step."""
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
    record_file, key = folder / "exported.json", f"{target}/{run.path.parent.name}/{run.id}"
    record, result, (epochs, _) = read_json(record_file) or {}, run.read_result() or Result(), run.read_metrics()
    before = record.get(key, {"after": [-1, False], "batches": 0})
    seen = [len(epochs), *run.progress(), result.epochs]
    if seen == before.get("seen"):
        return 0
    points, after = Points(run, epochs, result), before["after"]
    number, last = 0, None
    for point in points.after(after):
        number, last = number + 1, point
    if last is not None:
        make_directory(folder)
        try:
            with file_errors("write", folder, within=True):
                TARGETS[target](folder.absolute(), run, name, points, after, last, before["batches"])
        except ImportError as error:
            raise UsageError(
                f'--to {target}: {error.name} is not installed; use: pip install "seqlm[{target}]"'
            ) from None
        write_json(record_file, {**record, key: {"after": last[:2], "batches": before["batches"] + 1, "seen": seen}})
    return number


@final
class Points:
    """The points of a run that a checkpoint covers, in order. Each is made when its turn comes: there may be many."""

    def __init__(self, run: RunDirectory, epochs: Sequence[Mapping[str, Any]], result: Result) -> None:
        """The last step of an epoch waits for the values of the epoch."""
        trace = read_trace(run)
        steps = trace.steps if trace else 1
        self._rows = trace.rows if trace else ()
        self._covered = min(trace.covered, (len(epochs) + 1) * steps - 1) if trace else 0
        self._values: dict[tuple[int, bool], dict[str, float]] = {}
        """What epochs and the result say, by step and whether it is the result."""
        for record in epochs:
            self._values.setdefault(((record["epoch"] + 1) * steps - 1, False), {}).update(_numbers("epoch", record))
        if epochs and (found := _numbers("result", vars(result))):
            self._values[(result.epochs or len(epochs)) * steps - 1, True] = found
        self._start = moment(run.read_worker(1).started_at) or 0.0

    def __iter__(self) -> Iterator[Point]:
        time = start = self._start
        steps = ((step, False) for step in range(self._covered))
        for place, _ in itertools.groupby(heapq.merge(steps, sorted(self._values))):
            found = {**self._of_step(*place), **self._values.get(place, {})}
            time = start + found.get("epoch/elapsed_seconds", time - start + found.get("step/seconds", 0.0))
            if found:
                yield Point(*place, time, found)

    def _of_step(self, step: int, is_result: bool) -> dict[str, float]:
        """Return what the trace says of a step; nothing if it is not recorded."""
        row = (math.nan,) if is_result or step >= self._covered else self._rows[step]
        return {} if math.isnan(row[-1]) else dict(zip(STEP_VALUES, row, strict=True))

    def after(self, place: Sequence[Any]) -> Iterator[Point]:
        """Yield the points after a step and whether it was the result."""
        return (point for point in self if [*point[:2]] > [*place])


def _numbers(prefix: str, record: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}/{key}": float(value) for key, value in record.items() if type(value) in (int, float)}


# -- targets: each writes the points after a place as one batch; ImportError: a library is missing ---------------------


def _to_csv(
    folder: Path, run: RunDirectory, name: str, points: Points, after: Sequence[Any], last: Point, batch: int
) -> None:
    columns = dict.fromkeys(key for point in points for key in point.values)
    with replacing(folder / f"{run.id}.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["step", "time", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": point.step, "time": point.time, **point.values} for point in points)


def _to_tensorboard(
    folder: Path, run: RunDirectory, name: str, points: Points, after: Sequence[Any], last: Point, batch: int
) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    make_directory(folder / run.id)
    with replacing(folder / run.id / f"events.out.tfevents.{batch:08}") as path, path.open("wb") as file:
        writer = RecordWriter(file)
        first = next(points.after(after))
        writer.write(Event(wall_time=first.time, file_version="brain.Event:2").SerializeToString())
        for step, _, time, values in points.after(after):
            summary = Summary(value=[Summary.Value(tag=key, simple_value=value) for key, value in values.items()])
            writer.write(Event(step=step, wall_time=time, summary=summary).SerializeToString())


def _to_mlflow(
    folder: Path, run: RunDirectory, name: str, points: Points, after: Sequence[Any], last: Point, batch: int
) -> None:
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}  # read when it is imported
    import sqlalchemy  # noqa: F401 -- mlflow-skinny comes without it, and says something else if it is missing
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client, study = MlflowClient(f"sqlite:///{folder}/mlflow.db"), run.path.parent.name
    known = client.get_experiment_by_name(study)
    experiment = known.experiment_id if known else client.create_experiment(study, str(folder / "mlflow"))
    found = client.search_runs([experiment], f"tags.seqlm_id = '{run.id}'")
    own = found[0] if found else client.create_run(experiment, run_name=name, tags={"seqlm_id": run.id})
    if batch == 0:
        params = [Param(key, str(value)) for key, value in run.read_config().by_key().items()]
        client.log_batch(own.info.run_id, params=params)
    metrics = (
        Metric(key, value, int(1000 * at), step)
        for step, _, at, values in points.after(after)
        for key, value in values.items()
    )
    while batch_of_metrics := [*itertools.islice(metrics, MLFLOW_BATCH)]:
        client.log_batch(own.info.run_id, batch_of_metrics)
    if last.is_result:
        client.set_terminated(own.info.run_id)


def _to_wandb(
    folder: Path, run: RunDirectory, name: str, points: Points, after: Sequence[Any], last: Point, batch: int
) -> None:
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # else it looks up an address when it is imported
    import wandb

    quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True)
    own: dict[str, Any] = {"id": run.id, "name": name, "project": run.path.parent.name, "resume": "allow"}
    make_directory(folder / "wandb")
    with folder_beside(folder / "wandb" / run.id) as new_folder:
        with wandb.init(
            **own, config=run.read_config().by_key(), mode="offline", dir=new_folder, settings=quiet
        ) as session:
            for point in points.after(after):
                session.log(point.values, step=point.step)
        (made,) = listed(new_folder / "wandb", "offline-run-*")
        replace_folder(made, folder / "wandb" / f"offline-run-{batch:08}-{run.id}")


TARGETS = {"csv": _to_csv, "tensorboard": _to_tensorboard, "mlflow": _to_mlflow, "wandb": _to_wandb}
