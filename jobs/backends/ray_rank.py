"""The actor of one rank on Ray, which holds its cores and GPU and runs its process."""

import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import final

import ray

from jobs.attempt.supervisor import (
    Ended,
    MemoryKills,
    Supervisor,
    die_with_the_parent,
    interface_of,
    rank_variables,
)
from jobs.spec import Submission
from seqlm import machine
from seqlm.errors import EXIT_LOST, EXIT_STOPPED, FileError
from seqlm.gpus import Claim, Ledger, TakenError, full_id, has_uuid, who_has
from seqlm.reading import confine, exists, is_folder
from seqlm.rundir import RunDirectory

POLL_SECONDS = 0.05
SEEN_SECONDS = 60.0
"""How long the record of an attempt may take to be seen on another node: NFS remembers for up to a minute that a file
does not exist (``acdirmax``)."""


@final
class RankHost:
    """The actor of one rank.

    The process has the same command line as on every backend. So Ray's processes hold no GPU and no threads, and a
    crash of the rank is an exit code. ``run`` takes as long as the rank does; Ray calls the others in further threads.
    """

    def __init__(self) -> None:
        die_with_the_parent()  # Ray itself leaves workers behind whose node has ended
        self._stopped: set[Path] = set()
        """The folders of the attempts that were asked to stop."""
        self._failed: set[Path] = set()
        """The folders of the attempts of which another rank has failed."""
        self._gpu: str | None = None
        """The GPU of the last rank, if it can be booked."""

    def gpu(self) -> str | None:
        """Return Ray's name of the GPU that it has booked for this rank. ``None``: none."""
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return str(gpus[0]) if gpus else None

    def run(
        self,
        submission: Submission,
        rank: int,
        *,
        node: str,
        first_host: str,
        kept_code: Path | None,
        device: str | None = None,
        holder: Mapping[str, str] | None = None,
    ) -> Ended | None:
        """Run a rank's process to its end. ``None``: this node does not see the folder that the launcher writes to.

        The interpreter is that of this actor, whatever ``argv`` names. ``node`` is Ray's id of this node, and
        ``first_host`` the address of the first rank's. ``kept_code``: ``None`` means the code that came with the actor.
        ``device`` is the GPU that the launcher has chosen; ``None``: it is the one that Ray has given this actor, if
        any. ``holder`` says for whom it is booked on this machine.
        """
        if not _sees_attempt(submission):
            return None
        confine(RunDirectory(submission.run_dir).study_dir)
        address = ray.util.get_node_ip_address()
        is_chosen = device is not None
        if device is None and (given := self.gpu()) is not None:
            device = full_id(machine.addressed(given))
        variables = rank_variables(
            submission,
            rank,
            device,
            node=node,
            first_host=first_host,
            interface=interface_of(address) if submission.resources.ranks > 1 else None,
        )
        argv = (sys.executable, *submission.argv[1:])
        ranks = Supervisor(replace(submission, argv=argv, cwd=kept_code or Path.cwd()), memory_kills=MemoryKills())
        attempt = RunDirectory(submission.run_dir).attempt_dir(submission.attempt)
        if attempt in self._stopped:
            return Ended(exit_code=EXIT_STOPPED, message="stopped before it had started")
        if is_chosen:
            variables[machine.ORDER] = machine.PCI_ORDER  # a GPU without a UUID has nvidia-smi's number
        self._gpu, claim = device if device is not None and has_uuid(device) else None, None
        try:
            if self._gpu is not None:
                claim = self._book(self._gpu, submission, holder or {}, is_chosen=is_chosen)
            ranks.start(rank, variables, claim=claim)
        except TakenError as taken:
            return Ended(exit_code=EXIT_LOST, message=str(taken), is_lost=True, taken=str(taken))
        except (OSError, FileError) as error:
            if claim is not None:
                claim.release()
            problem = f"cannot start the worker on {socket.gethostname()}: {error}"
            return Ended(exit_code=EXIT_LOST, message=problem, is_lost=True)
        ended = ranks.follow(
            POLL_SECONDS,
            is_stopped=lambda: attempt in self._stopped,
            has_peer_failed=lambda: attempt in self._failed,
        )
        if claim is not None:
            claim.forget()
        return ended

    def _book(self, gpu: str, submission: Submission, holder: Mapping[str, str], *, is_chosen: bool) -> Claim:
        """Book the GPU of a rank. A launcher that has chosen it has looked for other programs there.

        Raises:
            TakenError: somebody else has it.
            FileError: the ledger cannot be read or written.
        """
        share = submission.resources.gpus or 0.0
        if not is_chosen and (why := who_has(gpu, share, asks_nvidia_smi=True)):
            raise TakenError(f"{why} on {socket.gethostname()}")
        (claim,) = Ledger().book([(gpu, share)], {**holder, "run": submission.run_dir.name})
        return claim

    def who_has(self, share: float) -> str | None:
        """Return who has the GPU of the rank that could not start here. ``None``: nobody any more."""
        if self._gpu is None:
            return None
        try:
            why = who_has(self._gpu, share, asks_nvidia_smi=True)
        except FileError as error:
            why = str(error)
        return None if why is None else f"{why} on {socket.gethostname()}"

    def stop(self, attempt: Path) -> None:
        """Ask the rank to stop between two steps. A rank that has not started yet does not start."""
        self._stopped.add(attempt)

    def peer_failed(self, attempt: Path) -> None:
        """Note that another rank has failed: if this one does not notice in time, it is killed."""
        self._failed.add(attempt)


def _sees_attempt(submission: Submission) -> bool:
    """Return whether this node sees what the launcher has written about an attempt; false if its file system fails.

    The folder alone may be an old copy, in which a run would go on from an old checkpoint, unseen by its launcher.
    """
    start = RunDirectory(submission.run_dir).start_file(submission.attempt)
    deadline = time.monotonic() + SEEN_SECONDS
    try:
        while not exists(start):
            if not is_folder(submission.run_dir) or time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
    except FileError:
        return False
    return True
