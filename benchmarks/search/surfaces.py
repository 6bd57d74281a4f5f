"""Surfaces on which searches are simulated: settings, and the loss of each after each epoch.

Two are made up and have a known optimum. One was recorded: real runs on the corpus ``pydoc``.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final

from jobs.manifests.draws import Choice, Distribution, Real, Whole, draw
from jobs.plan.proposals import Space, distance, setting_of
from jobs.study.folder import observe_study
from seqlm.errors import UsageError
from seqlm.files import write_text
from seqlm.reading import finite

FOLDER = Path(__file__).resolve().parent
MANIFEST = FOLDER / "pydoc.toml"
"""The runs that were recorded."""
TABLE = FOLDER / "pydoc.csv"
"""What became of them."""
LOSS = "loss_"
"""Beginning of the columns of the table that hold the validation loss after an epoch."""


class Surface(Protocol):
    """What a search can try."""

    space: Mapping[str, Distribution]
    epochs: int
    lowest: float
    """Lowest loss that can be reached."""

    def curve(self, drawn: Mapping[str, Any]) -> Sequence[float]:
        """Return the loss after each epoch, as a run measures it; infinity if it has diverged."""
        ...

    def end(self, drawn: Mapping[str, Any]) -> float:
        """Return the loss at the end without the noise of a seed. Regret is its distance from ``lowest``."""
        ...


# -- made up -------------------------------------------------------------------------------------------------------


@final
class Synthetic:
    """A surface with one best setting, which the seed chooses.

    The best learning rate depends on the width. Settings learn at different speeds: a low learning rate and a large
    width start slowly, so their order at a rung is not that at the end. ``rough``: the loss also rises and falls
    along the learning rate and the dropout, seeds scatter by 0.01, and a learning rate of ten times the best diverges.
    """

    epochs = 9
    lowest = 4.0
    space: Mapping[str, Distribution] = {
        "model.arch": Choice(("rnn", "gru", "transformer")),
        "model.hidden_size": Whole(32, 128, 16),
        "model.keep": Real(0.5, 1.0, log=False),
        "optim.lr": Real(1e-4, 1e-1, log=True),
        "optim.weight_decay": Real(1e-6, 1e-2, log=True),
    }
    FALL = 2.5
    """Loss before the first epoch, above that at the end."""

    def __init__(self, seed: int, *, rough: bool) -> None:
        rng = random.Random(seed)
        self._seed, self._rough = seed, rough
        archs = ["rnn", "gru", "transformer"]
        rng.shuffle(archs)
        self._of_arch = dict(zip(archs, (0.0, 0.06, 0.15), strict=True))
        self._width = rng.choice(range(48, 128, 16))
        self._keep = round(rng.uniform(0.6, 0.9), 2)
        self._log_rate = rng.uniform(-3.2, -2.2)

    @property
    def best(self) -> dict[str, Any]:
        """The best setting."""
        (arch,) = (arch for arch, loss in self._of_arch.items() if loss == 0)
        return {
            "model.arch": arch,
            "model.hidden_size": self._width,
            "model.keep": self._keep,
            "optim.lr": math.pow(10, self._log_rate),
            "optim.weight_decay": 1e-4,
        }

    def _decades(self, drawn: Mapping[str, Any]) -> float:
        """Return how many decades the learning rate is above the best one of the width."""
        best = self._log_rate - 0.4 * math.log2(drawn["model.hidden_size"] / self._width)
        return math.log10(drawn["optim.lr"]) - best

    def _is_diverged(self, drawn: Mapping[str, Any]) -> bool:
        return self._rough and self._decades(drawn) > 1

    def end(self, drawn: Mapping[str, Any]) -> float:
        if self._is_diverged(drawn):
            return math.inf
        decades, keep = self._decades(drawn), drawn["model.keep"] - self._keep
        widths = math.log2(drawn["model.hidden_size"] / self._width)
        decay = math.log10(drawn["optim.weight_decay"]) + 4
        loss: float = self.lowest + self._of_arch[drawn["model.arch"]] + 0.25 * decades**2 + 0.06 * widths**2
        loss += 0.8 * keep**2 + 0.002 * decay**2
        if self._rough:
            loss += 0.05 * math.sin(4 * decades) ** 2 + 0.05 * math.sin(20 * keep) ** 2
        return loss

    def curve(self, drawn: Mapping[str, Any]) -> Sequence[float]:
        if self._is_diverged(drawn):
            return [math.inf] * self.epochs
        end = self.end(drawn)
        if self._rough:
            text = json.dumps([self._seed, *(drawn[key] for key in sorted(self.space))])
            end += random.Random(hashlib.sha256(text.encode()).hexdigest()).gauss(0, 0.01)
        speed = 0.7 * 10 ** (0.25 * self._decades(drawn)) * (64 / drawn["model.hidden_size"]) ** 0.25
        speed = min(max(speed, 0.3), 1.2)
        last = math.exp(-speed * self.epochs)
        return [end + self.FALL * (math.exp(-speed * epoch) - last) for epoch in range(1, self.epochs + 1)]


# -- recorded ------------------------------------------------------------------------------------------------------


@final
class Recorded:
    """Real runs. A setting has the curve of the recorded run that is nearest to it: nothing is interpolated."""

    def __init__(self, table: Path = TABLE) -> None:
        from jobs.manifests.load import load_manifest

        self.space = Space.of(load_manifest(MANIFEST).samples[0]).drawn
        if not table.is_file():
            raise UsageError(f"{table.name}: expected recorded runs, found no such file; {MANIFEST.name} says how")
        with table.open(encoding="ascii", newline="") as file:
            rows = list(csv.DictReader(file))
        self.epochs = sum(key.startswith(LOSS) for key in rows[0])
        self.runs = [
            ({key: _read(one, row[key]) for key, one in self.space.items()}, self._losses(row)) for row in rows
        ]
        self.lowest = min(min(curve) for _, curve in self.runs)

    def _losses(self, row: Mapping[str, str]) -> list[float]:
        return [float(row[f"{LOSS}{epoch}"]) for epoch in range(1, self.epochs + 1)]

    def curve(self, drawn: Mapping[str, Any]) -> Sequence[float]:
        _, place = min((distance(self.space, drawn, one), place) for place, (one, _) in enumerate(self.runs))
        return self.runs[place][1]

    def end(self, drawn: Mapping[str, Any]) -> float:
        return min(self.curve(drawn))


@final
class Interpolated:
    """Real runs, and what is between them: a linear radial basis function through the curves of all recorded runs.

    A diverged run counts with the highest finite loss of its epoch. ``lowest`` is that of many draws.
    """

    DRAWS = 16_384

    def __init__(self, recorded: Recorded) -> None:
        import numpy as np
        from scipy.interpolate import RBFInterpolator

        self.space, self.epochs = recorded.space, recorded.epochs
        curves = np.array([curve for _, curve in recorded.runs])
        highest = np.where(np.isfinite(curves), curves, -np.inf).max(axis=0)
        points = np.array([self._point(drawn) for drawn, _ in recorded.runs])
        self._through = RBFInterpolator(points, np.minimum(curves, highest), kernel="linear")
        many = self._through([self._point(drawn) for drawn in draw(self.space, self.DRAWS, 0)])
        self.lowest = min(recorded.lowest, float(many.min()))

    def _point(self, drawn: Mapping[str, Any]) -> list[float]:
        """Return a setting as numbers, in which settings are as far apart as :func:`distance` has them."""
        found: list[float] = []
        for key, one in self.space.items():
            value = drawn[key]
            match one:
                case Choice(values):
                    found += [float(value == other) / math.sqrt(2) for other in values]
                case Real(low, high, log=True):
                    found.append(math.log(value / low) / math.log(high / low))
                case Real(low, high) | Whole(low, high):
                    found.append((value - low) / (high - low))
        return found

    def curve(self, drawn: Mapping[str, Any]) -> Sequence[float]:
        (losses,) = self._through([self._point(drawn)]).tolist()
        return [float(loss) for loss in losses]

    def end(self, drawn: Mapping[str, Any]) -> float:
        return min(self.curve(drawn))


def _read(distribution: Distribution, text: str) -> Any:
    match distribution:
        case Choice(values):
            return next(value for value in values if str(value) == text)
        case Whole():
            return int(text)
        case Real():
            return float(text)


def record(study: Path, table: Path = TABLE) -> int:
    """Write the runs of :data:`MANIFEST` from its study as the table, and return how many.

    Runs that did not end are left out. A run that has diverged has an infinite loss from then on.

    Raises:
        UsageError: no run has ended.
    """
    from jobs.manifests.load import load_manifest

    manifest = load_manifest(MANIFEST)
    keys = list(Space.of(manifest.samples[0]).drawn)
    epochs = manifest.runs[0].config.train.epochs
    rows: list[list[Any]] = [[*keys, *(f"{LOSS}{epoch}" for epoch in range(1, epochs + 1))]]
    meant = {setting_of(spec.config.by_key()) for spec in manifest.runs}
    for run in observe_study(study):
        is_over = run.observation.state == "done" or run.observation.kind == "diverged"
        if run.config is None or not is_over or setting_of(run.config.by_key()) not in meant:
            continue
        losses = {record["epoch"]: finite(record.get("val_loss")) for record in run.epochs()}
        found = [losses.get(epoch) for epoch in range(epochs)]
        values = run.config.by_key()
        rows.append([*(values[key] for key in keys), *(_written(loss) for loss in found)])
    if len(rows) == 1:
        raise UsageError(f"{study}: expected runs of {MANIFEST.name} that have ended, found none")
    write_text(table, "".join(f"{','.join(map(str, row))}\n" for row in rows))
    return len(rows) - 1


def _written(loss: float | None) -> str:
    return "inf" if loss is None else f"{loss:.5f}"


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return mean, lowest and highest of some values, rounded."""
    found = list(values)
    return {
        "mean": round(sum(found) / len(found), 4),
        "least": round(min(found), 4),
        "most": round(max(found), 4),
    }
