"""The files of one run: their names, who writes them, and the state of the run that they show.

Launching, training and reporting share nothing but run directories. Standard library alone.

Each file has one writer. The launcher or job that follows an attempt writes ``config.json``, ``provenance.json`` and
the attempt's ``start.json`` and ``exit.json``; workers write the others. What happened is written once and never
edited. A launch makes no folder of a run: until the first attempt, the run is as :mod:`seqlm.requests` has it.

A canary is a short trial of a run before its grid starts. Its folder ``runs/<study>/canary/<run id>/`` is like that of
a run, one level deeper, so that no list of the study's runs holds it. It trains a few steps and writes ``canary.json``
in place of metrics, checkpoints and result.

A behaviour job computes the behaviour of a trained model. Its folder ``runs/<study>/behaviour/<run id>/`` is like that
of a run, with ``task.json`` as well. It writes ``behaviour.json``, ``samples.jsonl`` and ``losses.f32`` into the run's
folder.
``status``, ``logs`` and ``cancel`` treat the folder ``behaviour`` as a study.
"""

import contextlib
import math
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from seqlm.ends import End, Progress, Verdict, end_of, most_micro_batches, verdict
from seqlm.errors import ConfigError, DamagedFileError, FileError, UnfitFileError, UsageError, printable
from seqlm.files import (
    Guard,
    append_to,
    json_text,
    make_directory,
    read_json,
    read_json_lines,
    remove,
    unguarded,
    write_text,
)
from seqlm.lease import live_owner
from seqlm.model_files import ModelFiles, keep_tokenizer, read_model_files
from seqlm.reading import (
    MOST_EPOCHS,
    below,
    exists,
    finite,
    is_folder,
    listed,
    open_regular,
    read_bytes,
    status,
    timestamp,
    without_impossible,
)
from seqlm.records.attempts import Environment, Exit, Position, ProgressFile, RankEnd, Start, Worker
from seqlm.records.leases import LeaseFile
from seqlm.records.requests import Folder
from seqlm.records.runs import CanaryResult, Provenance, Result, Rung, Settled
from seqlm.records.studies import StudyFile, TaskFile
from seqlm.requests import RUN_ID, Request, Requests
from seqlm.state import Facts, RunState, View, state_of

CANARY_FOLDER = "canary"
"""Folder of a study with its canaries."""
BEHAVIOUR_FOLDER = "behaviour"
"""Folder of a study with its behaviour jobs."""
AUDITS_FOLDER = "audits"
"""Folder of a study with a numbered folder for each audit, in which jobs are like runs."""
BEHAVIOUR_VERSION = 4
"""Of ``behaviour.json``, ``samples.jsonl`` and ``losses.f32``; rises when a key of them changes its meaning."""
BEHAVIOUR_READABLE_FROM = 3
"""The first version of them that is read, without what it has not recorded."""
FINGERPRINT_DIGITS = 8
"""Digits of the fingerprint in a folder's name. No two runs of a study may have the same."""
SAME_DIGITS = (
    f"whose fingerprint begins with the same {FINGERPRINT_DIGITS} digits; take another seed, or another study "
    "(--set study.name=...)"
)
"""Why a run is refused, and what to do."""
STUDY_FORMAT = 3
"""``version`` in ``study.json``. It rises when a study's files change so that earlier versions cannot read them. From
3 on, each version reads all earlier formats (docs/project/formats.md)."""
READABLE_FROM = 3
"""The first format that is read as it is. ``seqlm upgrade`` converts earlier ones."""
UPGRADE_FOLDER = "upgrade"
"""Folder of a study that is being converted (:mod:`jobs.study.upgrade`)."""
_OF_LAUNCHERS = (".config.", ".tokenizer.", ".provenance.", ".task.", ".start.", ".exit.")
"""Beginnings of the names of temporary files that a launcher or job writes, besides those of the user's model."""
_OF_OTHERS = (".behaviour.", ".samples.", ".losses.")
"""Of those that the run's behaviour job writes, which does not own the run."""


@dataclass(frozen=True, kw_only=True)
class Observation(RunState):
    """The state of a run, and how far it is, read from its files."""

    epoch: int | None = None
    """Last finished epoch, counted from 0 as in ``metrics.jsonl``. ``None``: no epoch is finished."""
    best_val_ppl: float | None = None
    """Lowest validation perplexity so far."""
    result_epochs: int = 0
    """Epochs that ``result.json`` is about. 0: there is none, or it does not say."""

    @classmethod
    def damaged(cls, error: Exception) -> Self:
        """Return the state of a run of which a file cannot be read, with the error as its reason."""
        return cls(**vars(state_of(Facts(damage=str(error)))))

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs."""
        return max(0 if self.epoch is None else self.epoch + 1, self.result_epochs)


class _Below:
    """The path of a file or folder of a run."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __get__(self, run: "RunDirectory", kind: type | None = None) -> Path:
        return run.path.joinpath(*self._names)


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder, ``runs/<study>/<slug>-<fingerprint8>/``.

    Whatever reads or writes its files raises ``FileError`` if that fails, and ``DamagedFileError``, which is one, if a
    file holds something else than it should.
    """

    path: Path
    seen: Requests | None = field(default=None, compare=False, repr=False)
    """The requests of its study, for callers that look at many runs at one moment. ``None``: as they are now."""

    @property
    def requests(self) -> Requests:
        """The requests of its study."""
        return self.seen or Requests(self.path.parent)

    @property
    def study_dir(self) -> Path:
        """The folder of its study, that of a canary or a behaviour job too."""
        parent = self.path.parent
        is_below = parent.name in (CANARY_FOLDER, BEHAVIOUR_FOLDER) and exists(study_record_file(parent.parent))
        return parent.parent if is_below else parent

    @classmethod
    def canary(cls, study_dir: Path, run_id: str) -> Self:
        """The folder for the canary of a study's run."""
        return cls(study_dir / CANARY_FOLDER / run_id)

    # -- names ---------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The run's own id: the name of its folder."""
        return self.path.name

    config_file = _Below("config.json")
    tokenizer_file = _Below("tokenizer.json")
    """The tokenizer that the run was launched with; only runs with ``data.tokenizer`` have one."""
    provenance_file = _Below(Provenance.FILE)
    metrics_file = _Below("metrics.jsonl")
    trace_file = _Below("steps.f32")
    """Loss, gradient norm and time of every step (:mod:`seqlm.trace`)."""
    token_losses_file = _Below("valid.f32")
    """Loss of each token of the validation text (:mod:`seqlm.token_losses`)."""
    result_file = _Below(Result.FILE)
    settled_file = _Below(Settled.FILE)
    """That all comparisons of the run were decided before its end (:mod:`seqlm.comparisons`)."""
    model_dir = _Below("model")
    """The files of the user's own model, kept when the run was launched. Other runs have no such folder."""
    canary_file = _Below(CanaryResult.FILE)
    """What a canary has measured; no other run has one."""
    behaviour_file = _Below("behaviour.json")
    """How the trained model behaves, written after training by :mod:`analysis.behaviour`."""
    samples_file = _Below("samples.jsonl")
    """Texts that the trained model has written, one on each line, beside :attr:`behaviour_file`."""
    losses_file = _Below("losses.f32")
    """Losses at each step of a window, of blocks of tokens, beside :attr:`behaviour_file`."""

    def kept_dir(self, sha256: str) -> Path:
        """What a launch keeps of the files with this digest until the run's first attempt copies them."""
        return self.path.parents[1 if self.is_canary else 0] / "kept" / sha256

    def rung_file(self, rung: int) -> Path:
        """What has been decided about the run at a rung of its study's search (:mod:`seqlm.search`)."""
        return self.path / f"rung-{rung}.json"

    last_checkpoint = _Below("checkpoints", "last.pt")
    previous_checkpoint = _Below("checkpoints", "previous.pt")
    """The checkpoint before :attr:`last_checkpoint`, for when that one turns out to be damaged."""
    position_file = _Below("checkpoints", Position.FILE)
    """Epoch and step of :attr:`last_checkpoint`, readable without PyTorch."""
    best_checkpoint = _Below("checkpoints", "best.pt")

    def epoch_checkpoint(self, epochs: int) -> Path:
        """The checkpoint after so many epochs, which ``policy.keep_epochs`` keeps."""
        return self.path / "checkpoints" / f"epoch-{epochs}.pt"

    def kept_epochs(self) -> list[int]:
        """Return after which numbers of epochs there is such a checkpoint, ascending."""
        names = (path.stem.removeprefix("epoch-") for path in listed(self.path / "checkpoints", "epoch-*.pt"))
        return sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]{0,6}", name))

    lease_dir = _Below("lease")
    """The owners of the run (:mod:`seqlm.lease`)."""
    task_file = _Below(TaskFile.FILE)
    """What a behaviour job has to compute. A run has no such file."""

    def attempt_dir(self, attempt: int) -> Path:
        """Folder of one attempt, counted from 1: ``attempts/0001``."""
        return self.path / "attempts" / f"{attempt:04d}"

    def stdout_log(self, attempt: int, first_rank: int = 0) -> Path:
        """What the ranks on one node print. Appends of several nodes to one file lose lines on a network disk."""
        return self.attempt_dir(attempt) / (f"stdout-{first_rank}.log" if first_rank else "stdout.log")

    def stderr_log(self, attempt: int, first_rank: int = 0) -> Path:
        """What the ranks on one node, of which ``first_rank`` is the first, print on stderr."""
        return self.attempt_dir(attempt) / (f"stderr-{first_rank}.log" if first_rank else "stderr.log")

    def logs(self, attempt: int) -> list[Path]:
        """The logs of an attempt: the two of its first node, which may not exist yet, and those of other nodes."""
        names = re.compile("std(?:out|err)-([1-9][0-9]{0,5})[.]log")
        others = {path: found for path in listed(self.attempt_dir(attempt)) if (found := names.fullmatch(path.name))}
        ranked = sorted(others, key=lambda path: int(others[path][1]))
        return [self.stdout_log(attempt), self.stderr_log(attempt), *ranked]

    older_log = _Below("older.log")
    """What the attempts before the newest one have printed."""

    def finding_file(self, number: int) -> Path:
        """What an audit has found of a part of the run, numbered from 1: the scores, then each stretch."""
        return self.path / "findings" / f"{number}.json"

    def start_file(self, attempt: int) -> Path:
        """Who follows an attempt, and with what it starts. An attempt that a user started has none."""
        return self.attempt_dir(attempt) / Start.FILE

    def end_file(self, attempt: int, rank: int = 0) -> Path:
        """How a rank of an attempt ended, in its own words: ``end.json``, ``end-1.json``, ..."""
        return self.attempt_dir(attempt) / (f"end-{rank}.json" if rank else RankEnd.FILE)

    def exit_file(self, attempt: int) -> Path:
        """How an attempt ended, as seen from outside, if that adds something."""
        return self.attempt_dir(attempt) / Exit.FILE

    def worker_file(self, attempt: int, rank: int = 0) -> Path:
        """Host, devices and resources of a rank of an attempt: ``worker.json``, ``worker-1.json``, ..."""
        return self.attempt_dir(attempt) / (f"worker-{rank}.json" if rank else Worker.FILE)

    def hang_file(self, attempt: int, rank: int = 0) -> Path:
        """Where a rank is that makes no progress. It goes if the rank goes on (:mod:`seqlm.hang`)."""
        return self.attempt_dir(attempt) / f"hang-{rank}.json"

    def environment(self, digest: str) -> Path:
        """Packages, driver and variables of workers of the study."""
        is_below = self.path.parent.name in (CANARY_FOLDER, BEHAVIOUR_FOLDER)
        return self.path.parents[1 if is_below else 0] / "environments" / f"{digest}.json"

    def read_worker(self, attempt: int, rank: int = 0) -> Worker:
        """Return what a rank of an attempt has recorded of itself; an empty record if it has not."""
        return Worker.read_file(self.worker_file(attempt, rank)) or Worker()

    def read_environment(self, worker: Worker) -> Environment:
        """Return with what packages, driver and variables a rank ran; empty if that is not known, or damaged."""
        digest = worker.environment or ""
        if not re.fullmatch("[0-9a-f]{64}", digest):
            return Environment()
        found = None
        with contextlib.suppress(FileError):
            found = Environment.read_file(self.environment(digest))
        return found or Environment()

    def progress_file(self, attempt: int) -> Path:
        """The progress of an attempt within its epoch, written by its first rank at intervals."""
        return self.attempt_dir(attempt) / ProgressFile.FILE

    def attempts(self) -> list[int]:
        """Numbers of the attempts made so far, ascending."""
        found = [entry for entry in listed(self.path / "attempts") if re.fullmatch("[0-9]{4,9}", entry.name)]
        return sorted(int(entry.name) for entry in found if is_folder(entry))

    def last_attempt(self) -> int:
        """Number of the newest attempt, 0 before the first."""
        return (self.attempts() or [0])[-1]

    def live_worker(self) -> LeaseFile | None:
        """Return the lease of the worker that owns the run and may live. ``None``: nobody, or it has recorded its end.

        Raises:
            FileError: a file of the run cannot be read.
        """
        owner = live_owner(self.lease_dir)
        if owner is None:
            return None
        attempt = owner.attempt or self.last_attempt()
        return None if attempt and self.end(attempt).has_ended else owner

    def working_attempt(self) -> int:
        """Number of the attempt whose worker owns the run; of the newest attempt if no worker seems to live.

        An attempt that is newer than that of the owner never got the run, or was never started: its process may have
        died after it had made the folder.

        Raises:
            FileError: a file of the run cannot be read.
        """
        owner = self.live_worker()
        return self.last_attempt() if owner is None or owner.attempt is None else owner.attempt

    @property
    def is_canary(self) -> bool:
        """Whether this is the folder of a canary, by its place."""
        return self.path.parent.name == CANARY_FOLDER

    # -- creating and finding ------------------------------------------------------------------------------------

    @classmethod
    def folders(cls, study_dir: Path) -> dict[str, Path]:
        """The folders of a study's runs by the digits of their fingerprints, those that are yet to make among them."""
        there = sorted((path for path in listed(study_dir, "*-*") if is_folder(path)), reverse=True)
        found = [*(study_dir / run_id for run_id in Requests(study_dir).by_run()), *there]
        return {path.name.rpartition("-")[2]: path for path in found}

    @classmethod
    def locate(cls, study_dir: Path, name: str, fingerprint: str, folders: Mapping[str, Path] | None = None) -> Self:
        """Return the folder of the run with ``fingerprint``: the existing one under any name, else the one to make.

        A run is its configuration, so a renamed entry of a manifest is the same run. For many runs, pass the result of
        :meth:`folders` so that the study's folder is listed once.
        """
        digits = fingerprint[:FINGERPRINT_DIGITS]
        existing = (cls.folders(study_dir) if folders is None else folders).get(digits)
        return cls(existing or study_dir / f"{slugify(name)}-{digits}")

    @classmethod
    def any_in(cls, study_dir: Path) -> bool:
        """Whether the folder holds a run."""
        return next(cls.unordered_in(study_dir), None) is not None

    @classmethod
    def unordered_in(cls, study_dir: Path, known: Collection[str] = ()) -> Iterator[Self]:
        """Every run of a study in no order, even if it waits for its first attempt, with the requests of now.

        The caller knows that the names in ``known`` are ids of runs.
        """
        seen = Requests(study_dir)
        ids = {*(path.name for path in listed(study_dir, "[!.]*")), *seen.by_run()}
        return (run for run_id in ids if (run := cls(study_dir / run_id, seen)).id in known or run.is_known())

    def is_known(self) -> bool:
        """Whether a launch has requested the run, or it has one of its first two files, of which one may be lost.

        A linked folder, which is not looked into, is a run if it is named like one.
        """
        if self.requests.to_train(self.id) is not None:
            return True
        try:
            return exists(self.config_file) or exists(self.provenance_file)
        except UnfitFileError:  # a link
            return re.search(f"-[0-9a-f]{{{FINGERPRINT_DIGITS}}}$", self.id) is not None

    def place(self, provenance: Provenance) -> tuple[float, str]:
        """Return the sort key of a run in its study: its place in the manifest, then its id."""
        return (math.inf if provenance.order is None else provenance.order, self.id)

    def launched(self) -> tuple[Request, Folder] | None:
        """Return the newest request to train the run, and what the run's folder gets. ``None``: there is none."""
        request = self.requests.to_train(self.id)
        found = None if request is None else request.planned(self.id)
        return None if request is None or found is None else (request, found)

    def model_source(self, model: CustomConfig) -> Path:
        """Return the folder with the files of the user's own model: what the launch has kept, or the run has copied."""
        kept = self.kept_dir(str(model.sha256))
        return kept if exists(kept) else self.model_dir

    def tokenizer_source(self, sha256: str) -> Path:
        """Return the tokenizer file with this digest: what the launch has kept, or the run has copied."""
        kept = self.kept_dir(sha256) / self.tokenizer_file.name
        return kept if exists(kept) else self.tokenizer_file

    def create_as_launched(self) -> None:
        """Make or bring up to date what the newest request to train the run says of its folder (:meth:`create`).

        A run without a request was made by other means, and stays as it is.

        Raises:
            UsageError, ModelError: as :meth:`create`.
        """
        if (found := self.launched()) is None:
            return
        config = self._config(found[1].config, found[0].folder)
        model, data = config.model, config.data
        files = tokenizer = None
        if isinstance(model, CustomConfig):
            files = read_model_files(model, self.model_source(model))
        if data.tokenizer_sha256 is not None:
            tokenizer = self.tokenizer_source(data.tokenizer_sha256)
        self.create(config, found[1].provenance.of_launch(found[0].folders.provenance), tokenizer, files)
        task = found[1].task
        if task is not None:
            task.write(self.path)

    def create(
        self,
        config: RunConfig,
        provenance: Provenance,
        tokenizer: Path | None = None,
        model_files: ModelFiles | None = None,
    ) -> None:
        """Make the folder, ``config.json`` and ``provenance.json``, and copy the files of the user that the run needs.

        Of a ``config.json`` that exists only ``train.epochs`` changes: the latest launch says how far the run is to go.
        The copies never change. No worker owns the run.

        Raises:
            UsageError: the tokenizer file has another digest than the configuration, or as :meth:`read_config_of`.
            ModelError: the folder holds other files of the model.
        """
        make_directory(self.path / "checkpoints")
        if tokenizer is not None and config.data.tokenizer_sha256 is not None:
            keep_tokenizer(tokenizer, self.tokenizer_file, config.data.tokenizer_sha256)
        if model_files is not None:
            model_files.keep(self.model_dir)
        if exists(self.config_file):
            config = self.read_config_of(config.fingerprint()).with_epochs(config.train.epochs)
        texts = ((self.config_file, json_text(config.to_dict())), (self.provenance_file, provenance.to_text()))
        for file, text in texts:
            if not exists(file) or read_bytes(file) != text.encode():
                write_text(file, text)

    def sweep(self, attempt: int | None = None) -> None:
        """Remove the temporary files of former workers, but those of ``attempt``. ``None``: of former launchers.

        Called by a new owner of the run, or of its study. A former owner that is late, not dead, cannot put its file in
        place after this.
        """
        own = None if attempt is None else self.attempt_dir(attempt)
        for path in below(self.path, ".*.tmp"):
            is_launchers = path.name.startswith(_OF_LAUNCHERS) or path.is_relative_to(self.model_dir)
            is_others = path.name.startswith(_OF_OTHERS) or path.parent == own
            if is_launchers == (attempt is None) and not is_others:
                remove([path])

    def fold(self, attempt: int) -> None:
        """Keep fewer files of the attempts before ``attempt``: their logs become one, and their progress goes.

        Called by a new owner of the run. Errors are left to the next one.
        """
        for number in self.attempts():
            if number >= attempt:
                break
            with contextlib.suppress(OSError, FileError):
                self.drop_progress(number)
                remove([path for path in listed(self.attempt_dir(number), "hang-*.txt") if status(path).st_size == 0])
            logs: list[Path] = []
            with contextlib.suppress(FileError):
                logs = self.logs(number)
            for path in logs:
                with (
                    contextlib.suppress(OSError, FileError),
                    open_regular(path, largest=sys.maxsize) as log,
                    append_to(self.older_log) as older,
                ):
                    older.write(f"== attempt {number}, {path.name}\n".encode())
                    shutil.copyfileobj(log, older)
                    remove([path])

    def drop_progress(self, attempt: int) -> None:
        """Delete the progress of an attempt of one rank that has ended: its other files say how far it came."""
        has_ended = exists(self.end_file(attempt)) and exists(self.metrics_file)
        if (has_ended or exists(self.exit_file(attempt))) and not exists(self.worker_file(attempt, 1)):
            remove([self.progress_file(attempt)])

    # -- reading -------------------------------------------------------------------------------------------------

    def read_config(self) -> RunConfig:
        """The resolved configuration, with as many epochs as the newest launch requests."""
        raw = read_json(self.config_file)
        request = self.requests.to_train(self.id)
        file = self.config_file
        if raw is None and request is not None:
            planned = request.planned(self.id)
            raw, file = None if planned is None else dict(planned.config or {}), request.folder
        if raw is None:
            raise DamagedFileError(
                f"{self.config_file} is missing, and so is the launch of its run; move the folder away"
            )
        config = self._config(raw, file)
        epochs = None if request is None else request.runs[self.id].epochs
        return config.with_epochs(epochs) if epochs else config

    def _config(self, raw: Any, source: Path) -> RunConfig:
        try:
            return RunConfig.from_dict(raw if isinstance(raw, dict) else {})
        except ConfigError as error:
            raise DamagedFileError(f"{source} is not a configuration of this version: {error.problems[0]}") from None

    def read_config_of(self, fingerprint: str) -> RunConfig:
        """The resolved configuration of the run with ``fingerprint``, whose digits name the folder.

        Raises:
            UsageError: the folder is that of another run with the same digits.
            DamagedFileError: the file is missing, or holds another configuration.
        """
        config = self.read_config()
        if config.fingerprint() == fingerprint:
            return config
        if config.fingerprint()[:FINGERPRINT_DIGITS] == fingerprint[:FINGERPRINT_DIGITS]:
            raise UsageError(f"{self.path} is the folder of another run, {SAME_DIGITS}")
        raise DamagedFileError(f"{self.config_file} holds another configuration than the manifest; move it away")

    def read_provenance(self) -> Provenance:
        """Who launched the code that has trained the run, and what is to train it if nothing has."""
        found = Provenance.read(self.path)
        if found is None and (launched := self.launched()) is not None:
            request, folder = launched
            found = folder.provenance.of_launch(request.folders.provenance)
        return found or Provenance()

    def read_result(self) -> Result | None:
        """Return what the run has come to. ``None``: it is not done."""
        return Result.read(self.path)

    def write_result(self, result: Result, *, guard: Guard = unguarded) -> None:
        """Write what the run has come to. A result for the same epochs stays as it is.

        On a network file system a host may not see for a minute that another one has finished a run.
        """
        if not result.write(self.path, once=True, guard=guard):
            before = self.read_result()
            if before is None or before.epochs != result.epochs:
                result.write(self.path, guard=guard)

    def read_canary(self) -> CanaryResult | None:
        """Return what a canary has measured. ``None``: this is no canary, or it has not passed."""
        return CanaryResult.read(self.path)

    def is_done(self) -> bool:
        """Whether the run has a result, for as many epochs as ``config.json`` requests."""
        result = self.read_result()
        return result is not None and self._covers(result, self.first_attempt())

    def _covers(self, result: Result, first: int, config: RunConfig | None = None) -> bool:
        """Whether a result is what was asked: its epochs, or an attempt from ``first`` on if it has none.

        If it is about fewer epochs than ``config`` has, more have been requested since.
        """
        if result.epochs is None:
            return result.attempt is None or result.attempt >= first
        return result.epochs >= (config or self.read_config()).train.epochs

    def _has_passed(self, first: int) -> bool:
        """Whether it is a canary that has passed in an attempt from ``first`` on."""
        canary = self.read_canary() if self.is_canary else None
        return canary is not None and canary.attempt >= first

    def has_ended(self) -> bool:
        """Whether the run is done, cancelled or stopped by a search, has damaged files, or has failed for good."""
        if not exists(self.path):  # it has no files
            return self.is_cancelled() or self.left_out() is not None
        try:
            found = state_of(self.facts(0, self.read_result()))
        except FileError:
            return exists(self.result_file)
        return found.state in ("done", "cancelled", "stopped") or (found.state == "failed" and found.is_final)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return exists(self.last_checkpoint) or exists(self.previous_checkpoint)

    def cannot_go_on(self, epochs: int) -> str | None:
        """Return why a run of ``epochs`` epochs cannot go on: its last checkpoint was deleted at its end. Else `None`.

        ``clean`` and ``policy.keep_last = false`` delete that checkpoint and leave ``position.json``.
        """
        if self.has_checkpoint():
            return None
        position = None
        with contextlib.suppress(DamagedFileError):  # a run with a damaged record starts from its first epoch
            position = Position.read_file(self.position_file)
        if position is None:
            return None
        is_at_end = (position.epoch, position.step) == (epochs, 0)
        if not is_at_end and not exists(self.result_file):
            return None
        return f"its last.pt was deleted after the training had ended; move {self.path} away to train it again"

    def end(self, attempt: int) -> End:
        """Return how an attempt ended, as far as it has."""
        ranks, exits = self._witnesses(attempt)
        end = end_of(attempt, ranks, exits)
        was_killed = any(record.kind == "oom" for record in exits)
        if not was_killed and (end.kind not in ("node", "start") or end.node is not None):
            return end
        start = Start.read(self.attempt_dir(attempt))
        if start is None:
            return end
        if not was_killed:
            return replace(end, node=start.node)
        has_gpu = start.resources.gpus is not None and start.resources.gpus > 0
        return replace(end, memory_mb=start.memory_mb) if has_gpu else end

    def _witnesses(self, attempt: int) -> tuple[list[RankEnd], list[Exit]]:
        """Return what the ranks of an attempt have recorded of its end, and those who waited for them.

        A damaged record counts as a failure of kind ``node``: the machine may have crashed while it was written.
        """
        ranks: list[RankEnd] = []
        exits: list[Exit] = []
        for path in listed(self.attempt_dir(attempt), "e*.json"):
            try:
                if path.name == Exit.FILE:
                    exits += filter(None, [Exit.read_file(path)])
                else:
                    ranks += filter(None, [RankEnd.read_file(path)])
            except DamagedFileError:
                message = f"{path.name} is damaged: the machine may have crashed while it was written"
                exits.append(Exit(kind="node", message=message))
        return ranks, exits

    def failures(self, first: int = 1) -> list[End]:
        """Return the failures from attempt ``first`` on. One that was stopped, or killed with its launcher, is none."""
        return [end for number in self.attempts() if number >= first and (end := self.end(number)).kind is not None]

    def last_out_of_memory(self) -> End | None:
        """Return the last failure for memory in the run's life. ``None``: there is none."""
        return next((one for one in reversed(self.failures()) if one.kind == "oom"), None)

    def verdict(self, policy: Mapping[str, Any], failures: Sequence[End]) -> Verdict:
        """Say whether the run is tried again after the last of these failures."""
        most = 1
        if failures[-1].kind == "oom":
            start = Start.read(self.attempt_dir(failures[-1].attempt))
            if start is not None:
                most = most_micro_batches(self.read_config().train.batch_size, start.resources.ranks)
        return verdict(policy, failures, most_micro_batches=most)

    def write_end(self, attempt: int, end: RankEnd, *, guard: Guard = unguarded) -> None:
        """Write how a rank ended, as the rank says, with the present time and progress.

        Raises:
            LeaseLostError: ``guard`` says that the run belongs to another worker by now.
        """
        make_directory(self.attempt_dir(attempt))
        progress = None
        with contextlib.suppress(FileError):
            progress = self.progress()
        end = replace(end, ended_at=timestamp(), progress=progress)
        end.write_file(self.end_file(attempt, end.rank), once=True, guard=guard)

    def write_exit(self, attempt: int, record: Exit) -> None:
        """Write how an attempt ended, as seen from outside, if that adds something to what its ranks say.

        A time or progress that ``record`` lacks is the present one.
        """
        progress = self.progress() if record.progress is None else record.progress
        record = replace(record, ended_at=record.ended_at or timestamp(), progress=progress)
        ranks, exits = self._witnesses(attempt)
        if end_of(attempt, ranks, [*exits, record]) != end_of(attempt, ranks, exits):
            folder = self.attempt_dir(attempt)
            make_directory(folder)
            record.write(folder, once=True)

    def progress(self) -> Progress:
        """Return what is saved of the run, from its metrics and the position of its last checkpoint."""
        records, _ = self.read_metrics()
        saved = (int(records[-1]["epoch"]) + 1 if records else 0, 0)
        with contextlib.suppress(FileError):
            position = Position.read_file(self.position_file)
            if position is not None:
                return max(saved, (position.epoch, position.step))
        return saved

    def request(self) -> Request | None:
        """Return the newest request that names the run."""
        return self.requests.newest(self.id)

    def first_attempt(self) -> int:
        """Return the first attempt that the newest request is about."""
        newest = self.request()
        return 1 if newest is None else newest.first_attempt(self.id)

    def read_rungs(self) -> dict[int, Rung]:
        """Return what the search has decided about the run, by rung. A damaged decision is made again."""
        found = {}
        for path in listed(self.path, "rung-*.json"):
            rung = path.stem.removeprefix("rung-")
            with contextlib.suppress(DamagedFileError):
                if rung.isdecimal() and (record := Rung.read_file(path)) is not None:
                    found[int(rung)] = record
        return found

    def read_stopped(self, first: int | None = None) -> Rung | None:
        """Return why the search stopped the run; ``None``: it has not, or a later request lets the run go on.

        ``first``: the first attempt that the newest request is about, if it is known.
        """
        rungs = self.read_rungs()
        newest = rungs[max(rungs)] if rungs else Rung()
        if newest.decision != "stopped":
            return None
        is_history = newest.attempt is not None and newest.attempt < (first or self.first_attempt())
        return None if is_history else newest

    def why_settled(self, first: int | None = None) -> str | None:
        """Return the verdicts for which the run was stopped. ``None``: it was not, or a later request lets it go on.

        ``first``: as for :meth:`read_stopped`.
        """
        settled = None
        with contextlib.suppress(DamagedFileError):
            settled = Settled.read(self.path)
        if settled is None or (settled.attempt or 0) < (first or self.first_attempt()):
            return None
        return settled.reason

    def why_stopped(self, first: int | None = None) -> str | None:
        """Return why a search or a comparison stopped the run. ``None``: none did, or a later request lets it go on.

        ``first``: as for :meth:`read_stopped`.
        """
        stopped = self.read_stopped(first)
        return stopped_reason(stopped) if stopped else self.why_settled(first)

    def read_metrics(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the epochs of ``metrics.jsonl``, and one warning for each line that is no complete record."""
        records, warnings = read_json_lines(self.metrics_file, _is_epoch, is_kept=False)
        return [without_impossible(record, ("train_ppl", "val_ppl")) for record in records], warnings

    def first_seed(self) -> Self | None:
        """Return the run that a final seed of a search follows. ``None``: this run follows none.

        Final seeds are compared with nobody at a rung, and start once the run that they follow is done.
        """
        request = self.requests.to_train(self.id)
        run_id = None if request is None else request.runs[self.id].after
        if run_id is None or not RUN_ID.fullmatch(run_id):
            return None
        return replace(self, path=self.path.with_name(run_id))

    def left_out(self) -> str | None:
        """Return why a final seed is not trained: the run that it follows has not reached its end.

        ``None``: it has, or may still do so, or this run follows none or has begun.
        """
        first = self.first_seed()
        if first is None or self.attempts():
            return None
        try:
            seen = first.observe()
        except FileError:  # `status` shows it with that run
            return None
        ends = {"stopped": "was stopped", "cancelled": "was cancelled"}
        end = "has failed" if seen.state == "failed" and seen.is_final else ends.get(seen.state)
        return None if end is None else f"not trained: its first seed, {first.id}, {end}"

    def is_cancelled(self) -> bool:
        """Return whether the newest request that names the run cancels it."""
        newest = self.request()
        return newest is not None and newest.is_cancel

    def facts(self, epochs: int, result: Result | None, config: RunConfig | None = None) -> Facts:
        """Read what decides the state of the run. ``epochs``, ``result`` and ``config`` are those of its files.

        The state of a worker on this machine is certain. A worker of another host counts as alive if its heartbeat is
        recent: if its machine has crashed, the run stays "running" for some minutes (``SEQLM_STALE_LEASE_MINUTES``)
        unless somebody has recorded an exit.
        """
        newest = self.request()
        is_cancelled = newest is not None and newest.is_cancel
        first = 1 if newest is None else newest.first_attempt(self.id)
        if (result is not None and self._covers(result, first, config)) or self._has_passed(first):
            return Facts(is_done=True)
        attempts = self.attempts()
        end = self.end(attempts[-1]) if attempts else None
        has_owner = self._has_owner(attempts, end)
        stopped = self.why_stopped(first) if attempts and not has_owner else None
        return Facts(
            has_owner=has_owner,
            is_cancelled=is_cancelled,
            stopped=stopped if attempts else self.left_out(),
            failure=self._failure(end, newest, first) if end and not has_owner else None,
            before=self._failed_before(first) if end and end.kind is None and not has_owner else None,
            has_attempt=bool(attempts),
            has_begun=bool(attempts) and attempts[-1] >= first,
            epochs=epochs,
        )

    def _has_owner(self, attempts: Sequence[int], newest: End | None) -> bool:
        """Return whether a worker that may live owns the run, and its attempt has not recorded its end.

        Its attempt may be older than the ``newest``, which then never got the run, however that has ended.
        """
        has_newest_ended = newest is not None and newest.has_ended
        if has_newest_ended and len(attempts) == 1:
            return False
        owner = live_owner(self.lease_dir)
        if owner is None:
            return False
        if owner.attempt is None or (newest is not None and owner.attempt == newest.attempt):
            return not has_newest_ended
        return not self.end(owner.attempt).has_ended

    def _failure(self, end: End, request: Request | None, first: int) -> RunState | None:
        """Return the failure of the newest attempt, if it counts, and whether it is final."""
        if end.kind is None or end.attempt < first:
            return None
        if end.kind == "cancelled":
            return RunState("cancelled", end.message, end.kind)
        # Without a request, nobody tries it again.
        found = Verdict() if request is None else self.verdict(request.policy, self.failures(first))
        return RunState("failed", f"{end.kind}: {end.message}{found.why}", end.kind, is_final=found.delay is None)

    def _failed_before(self, first: int) -> str | None:
        """Return kind and message of the last failure of the attempts from ``first`` on. ``None``: there is none."""
        failures = self.failures(first)
        return f"{failures[-1].kind}: {failures[-1].message}" if failures else None

    def observe(
        self,
        view: View | None = None,
        spent: Callable[[], str | None] = lambda: None,
        config: RunConfig | None = None,
    ) -> Observation:
        """Return the state of the run and how far it is. ``config``: the configuration, if the caller has read it.

        ``view`` is what its launcher or scheduler says of it (``None``: nothing will start it), and ``spent`` returns
        why no run of the study goes on.
        """
        if not exists(self.path):  # it has no files
            facts = Facts(is_cancelled=self.is_cancelled(), stopped=self.left_out())
            return Observation(**vars(state_of(facts, view or View(), spent)))
        result = self.read_result()
        facts = self.facts(0, result, config)
        of_result = 0 if result is None else result.epochs or 0
        epoch: int | None
        best: float | None
        if result is not None and facts.is_done and of_result:  # it sums up the epochs
            epoch, best = of_result - 1, result.best_val_ppl
        else:
            epochs, _ = self.read_metrics()
            epoch = epochs[-1]["epoch"] if epochs else None
            best = min((ppl for one in epochs if (ppl := finite(one["val_ppl"])) is not None), default=None)
            facts = replace(facts, epochs=0 if epoch is None else epoch + 1)
        found = state_of(facts, view or View(), spent)
        return Observation(**vars(found), epoch=epoch, best_val_ppl=best, result_epochs=of_result)


def study_record_file(study_dir: Path) -> Path:
    """``study.json``: what the report needs of the manifest. Written by the launcher that owns the study."""
    return study_dir / StudyFile.FILE


def slugify(name: str) -> str:
    """Return a name as a folder name: lower-case letters, digits, ``_``, ``.`` and ``-`` only, at most 80 characters.

    >>> slugify("GRU / adam, lr=0.1")
    'gru-adam-lr-0.1'
    """
    slug = re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.")[:80].strip("-.")
    return slug or "run"


def format_of(study_dir: Path) -> int | None:
    """Return the format of a study's files. ``None``: ``study.json`` is missing or damaged, or does not say."""
    return StudyFile.read_parts(study_record_file(study_dir), lambda line: None, only=("version",)).version


def require_format(study_dir: Path) -> None:
    """Check that this version reads a study's files. A damaged ``study.json`` says nothing of that.

    Raises:
        UsageError: they are of another version, or their conversion was interrupted.
    """
    name = printable(str(study_dir))
    if exists(study_dir / UPGRADE_FOLDER):
        raise UsageError(f"{name}: its upgrade was interrupted; `seqlm upgrade {name}` goes on with it")
    found = format_of(study_dir)
    if found is not None and found < READABLE_FROM:
        raise UsageError(
            f"{name}: written by an earlier version of seqlm; `seqlm upgrade {name}` converts it, and keeps its files"
        )
    if found is not None and found > STUDY_FORMAT:
        raise UsageError(
            f"{name}: written by a later version of seqlm; to train, launch the manifest under another name "
            "(--set study.name=...) or move the folder away"
        )


def stopped_reason(stopped: Rung) -> str:
    """Return the decision that stopped a run in one line, such as ``stopped at epoch 9: 5th of 12, keeps 4``."""
    value, guessing = stopped.value, stopped.guessing
    if guessing is not None and (value is None or value > guessing):
        found = "is not finite" if value is None else f"= {value:.6g}"
        return f"stopped at epoch {stopped.rung}: {stopped.metric} {found}, worse than guessing ({guessing:.6g})"
    place = "?" if stopped.rank is None else ordinal(stopped.rank)
    return f"stopped at epoch {stopped.rung}: {place} of {stopped.of}, keeps {stopped.goes_on}"


def ordinal(number: int) -> str:
    """Return a place as text.

    >>> [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '13th', '21st', '102nd', '111th']
    """
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _is_epoch(record: Any) -> bool:
    epoch = record.get("epoch") if isinstance(record, dict) else None
    return type(epoch) is int and 0 <= epoch < MOST_EPOCHS and "val_ppl" in record
