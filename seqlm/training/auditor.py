"""What an audit computes of one run: the scores of ``best.pt``, and epochs trained again.

    scores       best.pt on the validation and test texts, against the recorded losses
    stretches    epochs from the seed or a kept checkpoint: loss and norm of each step, and the weights

If the fields of :data:`seqlm.rounding.ROUNDING` agree with the records, bits must. Else a band is measured: the stretch
is trained here once more, from weights that differ by their rounding.
"""

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from seqlm.audit import Stretch
from seqlm.data.corpus import Corpus
from seqlm.environment import MICRO_BATCHES
from seqlm.errors import CheckpointError, DivergedError
from seqlm.reading import exists
from seqlm.records.attempts import Worker
from seqlm.records.runs import Finding, Result
from seqlm.rounding import ROUNDING, differences, have_same_masks
from seqlm.rundir import RunDirectory
from seqlm.trace import Rows, read_trace
from seqlm.training.attempt import Attempt, StopRequested
from seqlm.training.checkpoint import Checkpoint, checkpoint_from_first, load_checkpoint, require_text, weights_digest
from seqlm.training.progress import Progress
from seqlm.training.records import best_epoch
from seqlm.training.scores import score
from seqlm.training.trainer import EpochEnded, StepsDone, Trainer
from seqlm.trust import require_launched

NOISE = 6e-8
"""Relative size of the change of weights whose growth gives the band: the rounding of float32."""
LEAST_BAND = 1e-6
FACTOR = 10.0
"""The band is ``LEAST_BAND`` and so many times the largest difference so far, in nats."""
WIDEST_BAND = 0.01
"""A wider band says nothing."""
SCORES = ("val_loss", "test_loss", "train_slice_loss")


@final
@dataclass(frozen=True)
class Trained:
    """What came of a stretch."""

    numbers: "array[float]"
    """Loss and norm of each step, as float32."""
    epochs: Sequence[dict[str, Any]]
    """Records of its epochs, with the digests of their weights."""

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.numbers) // 2 // len(self.epochs)

    def digest(self) -> str:
        """Return the SHA-256 of its steps and weights."""
        weights = "".join(record["weights"] for record in self.epochs)
        return hashlib.sha256(self.numbers.tobytes() + weights.encode()).hexdigest()


@final
class Auditor:
    """Audits one run. All ranks do the same, and come to the same findings."""

    def __init__(self, run: RunDirectory, attempt: Attempt, corpus: Corpus) -> None:
        self._run, self._attempt, self._corpus = run, attempt, corpus
        self._config = run.read_config()
        require_launched(self._config)
        self._epochs, _ = run.read_metrics()
        self._result = run.read_result() or Result()
        trace = read_trace(run)
        self._steps = trace.steps if trace else 0
        self._rows = trace.rows if trace else Rows(array("f"))
        now = attempt.run.read_worker(attempt.number)
        fields = (*ROUNDING, "gpus", "node", "host")
        self._now = Worker(**attempt.rank.from_rank(0, {field: getattr(now, field) for field in fields}))

    # -- findings --------------------------------------------------------------------------------------------------

    def scores(self) -> Finding:
        """Compare the scores of ``best.pt`` with those that are recorded."""
        path, place = self._run.best_checkpoint, best_epoch(self._epochs)
        if not exists(path):
            return self._finding("scores", "unknown", "there is no best.pt")
        try:
            checkpoint = load_checkpoint(path, self._config.fingerprint())
            require_text(path, checkpoint, self._corpus.sha256)
        except CheckpointError as error:
            return self._finding("scores", "differs", str(error).partition(";")[0])
        recorded, keys = self._epochs[: place + 1], ("epoch", "train_loss", "val_loss", "weights")
        for one, other in zip(recorded, checkpoint.history, strict=False):
            if any(one.get(key) != other.get(key) for key in keys):
                text = f"best.pt has another record of epoch {one['epoch'] + 1} than metrics.jsonl"
                return self._finding("scores", "differs", text)
        digest = recorded[-1].get("weights")
        if digest is not None and digest != weights_digest(checkpoint.model):
            text = f"the weights in best.pt are not those that metrics.jsonl has for epoch {place + 1}"
            return self._finding("scores", "differs", text)
        expected = [recorded[-1].get("val_loss"), self._result.test_loss, self._result.train_slice_loss]
        found = self._scored(checkpoint.model)
        if found is None:
            return self._finding("scores", "differs", "best.pt does not hold the parameters of its model")
        compared = [place for place, then in enumerate(expected) if then is not None]  # earlier versions lack the last
        if all(found[place] == expected[place] for place in compared):
            return self._finding("scores", "equal", f"{', '.join(SCORES[place] for place in compared)}, bit for bit")
        is_same, *_ = self._devices(recorded[-1].get("attempt"), self._result.attempt)
        near = found if is_same else self._scored(checkpoint.model, noise=NOISE) or found
        for place in compared:
            here, then = found[place], float(expected[place] or 0.0)
            band = 0.0 if is_same else LEAST_BAND + FACTOR * abs(here - near[place])
            if not abs(here - then) <= band:
                text = f"{SCORES[place]} of best.pt: {here!r} here, {then!r} recorded"
                return self._finding("scores", "differs", text)
        return self._finding("scores", "rounding", ", ".join(SCORES[place] for place in compared))

    def stretch(self, stretch: Stretch) -> Finding:
        """Train some epochs again, and compare."""
        before = self._epochs[max(0, stretch.start - 1)].get("attempt") if stretch.start else 1
        is_same, why, doubt = self._devices(before, self._epochs[stretch.end - 1].get("attempt"))
        if why:
            return self._finding(stretch.part, "unknown", why)
        try:
            here = self._trained(stretch)
        except CheckpointError as error:
            return self._finding(stretch.part, "differs", str(error).partition(";")[0])
        except DivergedError as error:
            return self._finding(stretch.part, "differs" if is_same else "unknown", f"here {error}")
        if self._steps not in (0, here.steps):
            text = f"an epoch has {here.steps:,} steps here, {self._steps:,} recorded"
            return self._finding(stretch.part, "differs", text)
        difference = self._difference(stretch, here)
        if difference is None:
            steps = sum(not math.isnan(row[0]) for row in self._recorded(stretch))
            weights = "and the weights" if self._epochs[stretch.end - 1].get("weights") else "(no weights recorded)"
            return self._finding(stretch.part, "equal", f"{steps:,} losses and norms {weights}, bit for bit", here)
        if is_same:
            return self._finding(stretch.part, "differs", difference, here)
        return self._within_band(stretch, here, doubt)

    def _within_band(self, stretch: Stretch, here: Trained, doubt: str) -> Finding:
        """Compare losses with the band of those that a change of the weights by their rounding makes.

        ``doubt``: why a loss outside of it accuses nobody. Empty: it does.
        """
        try:
            near = self._trained(stretch, noise=NOISE).numbers
        except DivergedError:
            near = array("f")
        widest, part = 0.0, stretch.part
        for place, row in enumerate(self._recorded(stretch)):
            loss = here.numbers[2 * place]
            widest = max(widest, abs(loss - near[2 * place])) if 2 * place < len(near) else math.inf
            band = LEAST_BAND + FACTOR * widest
            if band > WIDEST_BAND:
                step, epoch = place % self._steps + 1, stretch.start + place // self._steps + 1
                text = f"until step {step} of epoch {epoch}; later steps say nothing"
                return self._finding(part, "rounding" if place else "unknown", text, here)
            if abs(loss - row[0]) > band:
                numbers = f"{loss:.9g} here, {row[0]:.9g} recorded"
                text = f"{self._place(stretch, place)}: {numbers}, which rounding does not explain"
                if doubt:
                    return self._finding(part, "unknown", f"{text}; {doubt}")
                return self._finding(part, "differs", text, here)
        return self._finding(part, "rounding", f"{len(here.numbers) // 2:,} losses, up to rounding", here)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _trainer(self) -> Trainer:

        parts = MICRO_BATCHES.read()
        return Trainer(
            self._config,
            self._corpus,
            rank=self._attempt.rank,
            attempt=self._attempt.number,
            micro_batches=parts,
            model_dir=self._attempt.run.model_dir,
        )

    def _trained(self, stretch: Stretch, *, noise: float = 0.0) -> Trained:
        """Train a stretch, with weights changed by ``noise`` at its start.

        Raises:
            CheckpointError: the checkpoint that it starts from cannot be used.
            DivergedError: a loss is not finite.
            StopRequested: a signal has come.
        """
        trainer = self._trainer()
        if stretch.start:
            checkpoint = checkpoint_from_first(trainer.rank, lambda: self._kept(stretch.start))
            assert checkpoint is not None, "it is read or raises"
            trainer.restore(checkpoint)
        _disturb(trainer.model, noise)
        progress = Progress(trainer, self._attempt)
        progress.say(f"{stretch.part}{' with other rounding' if noise else ''}")
        trainer.prepare()
        numbers, records = array("f"), []
        stop = self._attempt.stop
        for event in trainer.events(
            stretch.end, asks=lambda: (stop.received, False), before_window=progress.before_window
        ):
            progress.show(event)
            if isinstance(event, StepsDone):
                for loss, norm, _ in event.rows:
                    numbers.extend((loss, norm))
                if event.stop:
                    raise StopRequested
            if isinstance(event, EpochEnded):
                weights = weights_digest(trainer.model.state_dict())
                records.append({**trainer.history[-1], "weights": weights})
        return Trained(numbers, records)

    def _kept(self, epochs: int) -> Checkpoint:
        """Return the checkpoint that was kept after so many epochs.

        Raises:
            CheckpointError: it is damaged, or not the one that was kept.
            FileError: it cannot be read.
        """
        path = self._run.epoch_checkpoint(epochs)
        checkpoint = load_checkpoint(path, self._config.fingerprint())
        require_text(path, checkpoint, self._corpus.sha256)
        recorded = self._epochs[epochs - 1].get("weights")
        is_there = (checkpoint.position.epoch, checkpoint.position.step) == (epochs, 0)
        if not is_there or checkpoint.optimizer is None or recorded not in (None, weights_digest(checkpoint.model)):
            raise CheckpointError(f"{path.name} is not the checkpoint of which metrics.jsonl has the weights")
        return checkpoint

    def _scored(self, model: dict[str, Any], *, noise: float = 0.0) -> list[float] | None:
        """Return the :data:`SCORES` of a checkpoint's parameters. ``None``: they do not fit the model."""
        trainer = self._trainer()
        trainer.prepare()
        try:
            trainer.model.load_state_dict(model)
        except RuntimeError:
            return None
        _disturb(trainer.model, noise)
        progress = Progress(trainer, self._attempt)
        valid = trainer.evaluate("valid", progress.before_window)
        scores, _ = score(trainer, progress.before_window)
        return [valid.mean, scores.test.mean, scores.train_slice.mean]

    def _recorded(self, stretch: Stretch) -> Rows:
        return self._rows[stretch.start * self._steps : stretch.end * self._steps]

    def _difference(self, stretch: Stretch, here: Trained) -> str | None:
        """Return the first difference to the records. ``None``: there is none, bit for bit."""
        for place, row in enumerate(self._recorded(stretch)):
            for name, then, now in zip(("loss", "norm"), row, here.numbers[2 * place : 2 * place + 2], strict=False):
                if now != then and not math.isnan(row[0]):
                    return f"{self._place(stretch, place)}: {name} {now:.9g} here, {then:.9g} recorded"
        for record, made in zip(self._epochs[stretch.start : stretch.end], here.epochs, strict=True):
            epoch = record["epoch"] + 1
            for key in ("train_loss", "val_loss"):
                if record.get(key) != made[key]:
                    return f"at the end of epoch {epoch}: {key} {made[key]!r} here, {record.get(key)!r} recorded"
            if record.get("weights") not in (None, made["weights"]):
                return f"in the weights after epoch {epoch}; its losses and norms are equal"
        return None

    def _place(self, stretch: Stretch, place: int) -> str:
        return f"from step {place % self._steps + 1} of epoch {stretch.start + place // self._steps + 1}"

    def _devices(self, first: Any, last: Any) -> tuple[bool, str, str]:
        """Return whether the attempts from ``first`` to ``last`` computed as this one, and why nothing can be compared.

        Empty: it can, up to rounding if they did not. Last comes why a difference may have another cause.
        """
        are_known = type(first) is int and type(last) is int
        numbers = [number for number in self._run.attempts() if are_known and first <= number <= last]
        workers = [worker for number in numbers if (worker := self._run.read_worker(number)).device is not None]
        if not workers:
            return False, "", ""  # of unknown hardware
        if not all(have_same_masks(workers[0], worker) for worker in workers):
            return False, "it was trained by attempts on unlike devices, whose dropout masks differ", ""
        found = [differences(worker, self._now) for worker in workers]
        has_dropout = any(key.endswith("keep") and value != 1 for key, value in vars(self._config.model).items())
        if has_dropout and not have_same_masks(workers[-1], self._now):
            names = ", ".join(found[-1].values())
            if have_same_masks(workers[-1], replace(self._now, torch=workers[-1].torch)):
                # Most versions of PyTorch draw the same masks. If this one does not, no loss comes near.
                return False, "", f"dropout masks may be other ones here: {names}"
            return False, f"dropout masks would be other ones here: {names}", ""
        # What an earlier version did not record may differ: bits need not agree.
        are_recorded = all(getattr(worker, key) is not None for worker in workers for key in ROUNDING)
        return are_recorded and not any(found), "", ""

    def _finding(self, part: str, verdict: str, text: str, here: Trained | None = None) -> Finding:
        then = self._run.read_worker(self._result.attempt or 1)
        trained_on, node = (worker.node or worker.host for worker in (then, self._now))
        digest = None if here is None else here.digest()
        return Finding(part=part, verdict=verdict, text=text, trained_on=trained_on, node=node, digest=digest)


def _disturb(model: torch.nn.Module, noise: float) -> None:
    """Multiply each parameter by 1 + ``noise`` times a normal number, the same on every rank."""
    if not noise:
        return
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=draw).to(parameter.device))
