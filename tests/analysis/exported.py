"""Read back what ``export`` has written, each target by its own library.

``python -m tests.analysis.exported TARGET DIR`` prints a JSON list of [run, name, step, value], sorted. It is a program
of its own, since MLflow leaves threads and files open.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from tests import commands

Value: TypeAlias = tuple[str, str, int, float]


def of_csv(folder: Path) -> Iterator[Value]:
    for path in folder.glob("*.csv"):
        for row in csv.DictReader(path.read_text("utf-8").splitlines()):
            step = int(row.pop("step"))
            yield from ((path.stem, name, step, float(text)) for name, text in row.items() if text and name != "time")


def of_tensorboard(folder: Path) -> Iterator[Value]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for path in (path for path in folder.iterdir() if path.is_dir()):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            yield from ((path.name, name, event.step, event.value) for event in events.Scalars(name))


def of_mlflow(folder: Path) -> Iterator[Value]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.absolute()}/mlflow.db")
    for run in client.search_runs([one.experiment_id for one in client.search_experiments()]):
        for name in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, name)
            yield from ((run.data.tags["seqlm_id"], name, metric.step, metric.value) for metric in history)


def of_wandb(folder: Path) -> Iterator[Value]:
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        printed = commands.run(command, cold=True, check=True).stdout
        for record in map(json.loads, printed.splitlines()):
            item = record["history"]["item"] if record["type"] == "history" else {}
            names = [name for name in item if not name.startswith("_")]
            yield from ((path.stem.removeprefix("run-"), name, item["_step"], float(item[name])) for name in names)


READERS = {"csv": of_csv, "tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb}


if __name__ == "__main__":
    print(json.dumps(sorted(READERS[sys.argv[1]](Path(sys.argv[2])))))
