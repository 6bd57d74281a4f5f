"""The actor of one rank on Ray, which holds its cores and GPU and runs its process."""

import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import final

import ray

from jobs.attempt.supervisor import Ended, MemoryKills, Supervisor, interface_of, rank_variables
from jobs.spec import Submission
from seqlm import machine
from seqlm.errors import EXIT_LOST, EXIT_STOPPED, FileError
from seqlm.gpus import Claim, Ledger, TakenError, full_id, has_uuid, who_has
from seqlm.reading import confine, is_folder
from seqlm.rundir import RunDirectory

POLL_SECONDS = 0.05


@final
class RankHost:
    """The actor of one rank.

    The process has the same command line as on every backend. So Ray's processes hold no GPU and no threads, and a
    crash of the rank is an exit code. ``run`` takes as long as the rank does; Ray calls the others in further threads.
    """

    def __init__(self) -> None:
        self._stopped: set[Path] = set()
        """The folders of the attempts that were asked to stop."""
        self._failed: set[Path] = set()
        """The folders of the attempts of which another rank has failed."""
        self._gpu: str | None = None
        """The GPU of the last rank, if it can be booked."""

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
        """Run a rank's process to its end. ``None``: this node does not see the run's folder.

        The interpreter is that of this actor, whatever ``argv`` names. ``node`` is Ray's id of this node, and
        ``first_host`` the address of the first rank's. ``kept_code``: ``None`` means the code that came with the actor.
        ``device`` is the GPU that the launcher has chosen; ``None``: it is the one that Ray has given this actor, if
        any. ``holder`` says for whom it is booked on this machine.
        """
        if not _sees(submission.run_dir):
            return None
        confine(RunDirectory(submission.run_dir).study_dir)
        address = ray.util.get_node_ip_address()
        given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        is_chosen = device is not None
        if device is None and given:
            device = full_id(machine.addressed(given[0]))
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
                claim = self._book(submission, holder or {}, is_chosen=is_chosen)
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

    def _book(self, submission: Submission, holder: Mapping[str, str], *, is_chosen: bool) -> Claim:
        """Book the GPU of a rank. A launcher that has chosen it has looked for other programs there.

        Raises:
            TakenError: somebody else has it.
            FileError: the ledger cannot be read or written.
        """
        assert self._gpu is not None, "asked whether it can be booked"
        share = submission.resources.gpus or 0.0
        if not is_chosen and (why := who_has(self._gpu, share, asks_nvidia_smi=True)):
            raise TakenError(f"{why} on {socket.gethostname()}")
        (claim,) = Ledger().book([(self._gpu, share)], {**holder, "run": submission.run_dir.name})
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


def _sees(folder: Path) -> bool:
    """Return whether a folder can be seen on this node; false if its file system fails."""
    try:
        return is_folder(folder)
    except FileError:
        return False
