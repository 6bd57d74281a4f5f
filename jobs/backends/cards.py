"""Which GPUs of this machine a launch may take now: what others have booked or use, whose turn it is, what stays free.

Backends that start runs on this machine share :class:`Cards`. :func:`first_in_line` decides between launches, also on a
cluster of Ray.
"""

import math
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from jobs import terminal
from jobs.plan.capacity import TINY, Allocation
from jobs.study.folder import study_name
from seqlm.errors import BackendError, FileError
from seqlm.gpus import Booking, Claim, LaunchNote, Ledger, Survey, has_uuid, others_on, used_by
from seqlm.machine import NVIDIA_SMI_SECONDS, short_name

LOOK_SECONDS = 0.25
"""Least time between two looks at the ledger."""
RENEW_SECONDS = 2.0
"""Time between two signs of life of a launch."""
KEEP_SECONDS = 3600.0
"""The same for the files of its bookings, which must not look forgotten in a folder for temporary files."""


# -- between launches ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A launch among those that share GPUs, or cores."""

    token: str
    """Tells it from the others."""
    holder: str
    """Whose launch it is, for messages."""
    holds: float
    needs: float | None
    """The least amount with which one of its waiting runs can start. ``None``: none waits."""
    turn: float
    """When it last took or gave back something, else when it began, in seconds since 1970."""

    @property
    def place(self) -> tuple[float, float, str]:
        """Its sort key: what is free goes to the launch that holds least, then to the one that has waited longest."""
        return round(self.holds, 4), self.turn, self.token


def first_in_line(own: Standing, others: Sequence[Standing], total: float) -> Standing | None:
    """Return the waiting launch to which a launch leaves what is free. ``None``: it may start one more run itself.

    ``total`` is what all of them share. So each comes to an equal share, rounded up to a whole GPU. A run that needs
    more than the equal share of its launch keeps nobody waiting, since what it waits for could be idle for hours.
    """
    active = [one for one in others if one.holds > TINY or one.needs is not None]
    share = math.ceil(total / (1 + len(active)) - TINY)
    entitled = [one for one in active if one.needs is not None and one.holds + one.needs <= share + TINY]
    return min((one for one in entitled if one.place < own.place), key=lambda one: one.place, default=None)


def withhold_left(free: dict[str, float], held: Collection[str], leave: int) -> None:
    """Set to 0 what a launch may not take of its ``free`` GPUs, so that it uses all but ``leave`` of them at most.

    ``held`` are the GPUs that it uses.
    """
    spare = len(free) - leave - len(held)
    untouched = sorted((gpu for gpu in free if gpu not in held), key=lambda gpu: free[gpu], reverse=True)
    for gpu in untouched[max(0, spare) :]:
        free[gpu] = 0.0


# -- a launch ------------------------------------------------------------------------------------------------------


@final
class Cards:
    """The GPUs of this machine, as one launch may take them. The ledger has those that have a UUID."""

    def __init__(self, gpus: Collection[str], study_dir: Path, *, leave: int = 0) -> None:
        """Nothing is read yet. ``gpus`` are those that the launch may use, and ``leave`` how many it never uses."""
        self._gpus = tuple(gpus)
        self._known = [gpu for gpu in gpus if has_uuid(gpu)]
        self._study = study_name(study_dir)
        self._leave = leave
        self._ledger = Ledger()
        self._survey = Survey()
        self._token = secrets.token_hex(8)
        self._note: Claim | None = None
        self._note_record: Mapping[str, Any] = {}
        self._needs: float | None = None
        self._fitting: Collection[str] = self._known
        """The GPUs that its waiting runs can use."""
        self._turn = time.time()
        self._usable: Collection[str] = self._known
        """Those that no other program uses."""
        self._bookings: Sequence[Booking] = ()
        self._launches: Sequence[LaunchNote] = ()
        self._looked_at = -math.inf
        self._held_at = dict.fromkeys(self._known, -math.inf)
        """GPU -> when it was last seen to be booked, on the monotonic clock."""
        self._renewed_at = self._kept_at = time.monotonic()
        self._claims: list[Claim] = []
        self._has_warned = False

    def announce(self) -> None:
        """Make the ledger known to this launch, and the launch to others.

        Raises:
            BackendError: the ledger cannot be used.
        """
        if not self._known:
            return
        try:
            self._ledger.make()
            self._note = self._ledger.announce(self._token, self._record())
        except FileError as error:
            raise BackendError(f"GPUs cannot be booked: {error}") from None
        self._survey.look()  # it is asked while runs are prepared

    def close(self) -> None:
        """Take back the note of this launch. Its workers hold their GPUs until they end."""
        self._survey.close()
        if self._note is not None:
            self._note.release()
            self._note = None

    @property
    def holder(self) -> dict[str, str]:
        """What a booking says of this launch."""
        return {"study": self._study, "launch": self._token}

    # -- what is free ----------------------------------------------------------------------------------------------

    def free(self, own: Mapping[str, float]) -> tuple[dict[str, float], str]:
        """Return the share of each GPU that this launch may take now, and why others are not free. Empty: all are.

        ``own`` is what its own runs leave of each.
        """
        free, held, why = dict(own), {gpu for gpu in own if own[gpu] < 1 - TINY}, list[str]()
        if self._note is not None:
            try:
                self._look()
            except FileError as error:
                return dict.fromkeys(free, 0.0), str(error)
            for gpu in self._known:
                holders = [one for one in self._bookings if one.gpu == gpu]
                left = 1 - sum(one.share for one in holders)
                free[gpu] = max(0.0, min(free[gpu], left if left > TINY else 0.0))
                if others := [one for one in holders if one.launch != self._token]:
                    why.append(used_by(gpu, others))
            why += self._without_other_programs(free)
        withhold_left(free, held, self._leave)
        if self._leave and len(held) + self._leave >= len(free):
            why.append(f"leave_gpus = {self._leave}")
        if self._note is not None and (first := self._first_in_line(free)) is not None:
            why.append(f"it is the turn of {first.holder}")
        self._tell_others()
        return free, _in_short(why)

    def waits(self, needs: float | None, fitting: Collection[str]) -> None:
        """Note the fewest GPUs, or the least share, for which a run of this launch waits. ``None``: none does.

        ``fitting`` are the GPUs that such runs can use.
        """
        self._needs, self._fitting = needs, fitting
        self._tell_others()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        self._bookings, self._launches = self._ledger.bookings(), self._ledger.launches()
        self._held_at |= {one.gpu: now for one in self._bookings if one.gpu in self._held_at}
        if now - self._kept_at > KEEP_SECONDS:
            self._kept_at = now
            for claim in self._claims:
                claim.renew()

    def _without_other_programs(self, free: dict[str, float]) -> list[str]:
        """Set to 0 what is free of GPUs that other programs use, and return who does."""
        candidates, why, now = [gpu for gpu in self._known if free[gpu] > TINY], list[str](), time.monotonic()
        self._usable = self._known
        if not candidates:
            return why
        use = self._survey.look()
        if self._survey.has_failed and not self._has_warned:
            self._has_warned = True
            terminal.tell(
                f"warning: nvidia-smi did not answer within {NVIDIA_SMI_SECONDS:g} s; GPUs that other programs use are "
                "not recognised until it does"
            )
        taken = set()
        for gpu in candidates:
            if use is not None:
                if others := others_on(gpu, use, self._bookings, held_at=self._held_at[gpu]):
                    taken.add(gpu)
                    why.append(f"{short_name(gpu)} is used by {others}")
            elif self._survey.is_asking and now - self._held_at[gpu] > 2 * LOOK_SECONDS:
                # What was booked a moment ago is not used by others.
                free[gpu] = 0.0
                why.append("nvidia-smi is asked which GPUs other programs use")
        for gpu in taken:
            free[gpu] = 0.0
        self._usable = [gpu for gpu in self._known if gpu not in taken]
        return why

    def _first_in_line(self, free: dict[str, float]) -> Standing | None:
        """Return the launch whose turn it is, if it is not this one's, and set to 0 what is left to it."""
        for note in self._launches:
            common = note.gpus.intersection(self._usable)
            if note.token == self._token or note.needs is None or not common:
                continue
            rivals = [one for one in self._launches if one.token != self._token and one.gpus & common]
            first = first_in_line(
                self._standing(self._token, "", self._needs, self._turn, common),
                [self._standing(one.token, one.holder, one.needs, one.turn, common) for one in rivals],
                len(common),
            )
            if first is not None:
                for gpu in common:
                    free[gpu] = 0.0
                return first
        return None

    def _standing(self, token: str, holder: str, needs: float | None, turn: float, gpus: Collection[str]) -> Standing:
        holds = sum(one.share for one in self._bookings if one.launch == token and one.gpu in gpus)
        return Standing(token=token, holder=holder, holds=holds, needs=needs, turn=turn)

    # -- what others are told ----------------------------------------------------------------------------------------

    def _record(self) -> dict[str, Any]:
        gpus = [gpu for gpu in self._usable if self._needs is None or gpu in self._fitting]
        return {"study": self._study, "gpus": gpus, "needs": self._needs, "turn": self._turn}

    def _tell_others(self) -> None:
        if self._note is None:
            return
        record, now = self._record(), time.monotonic()
        if record != self._note_record:
            self._note_record = record
            self._note.write(**record)
        if now - self._renewed_at > RENEW_SECONDS:
            self._renewed_at = now
            self._note.renew()

    def has_changed(self) -> None:
        """Note that this launch has taken or given back a GPU: it is the last in line of those that hold as much."""
        self._turn = time.time()
        self._looked_at = -math.inf
        self._tell_others()

    # -- booking -----------------------------------------------------------------------------------------------------

    def book(self, allocations: Sequence[Allocation], run: str) -> list[Claim | None]:
        """Book the GPUs of a run's ranks, all or none. ``None`` for a rank whose GPU cannot be booked, or without one.

        Raises:
            TakenError: another launch has taken one of them.
            FileError: the ledger cannot be read or written.
        """
        found: list[Claim | None] = [None] * len(allocations)
        shares = {
            rank: (one.device, one.gpus)
            for rank, one in enumerate(allocations)
            if self._note is not None and one.device in self._held_at and one.device is not None
        }
        if shares:
            claims = self._ledger.book(list(shares.values()), {**self.holder, "run": run})
            for rank, claim in zip(shares, claims, strict=True):
                found[rank] = claim
            self._claims += claims
            self.has_changed()
        return found

    def forget(self, claims: Sequence[Claim | None]) -> None:
        """Delete bookings whose processes have ended."""
        for claim in claims:
            if claim is not None:
                claim.forget()
                self._claims.remove(claim)
                self.has_changed()


def _in_short(reasons: Sequence[str]) -> str:
    """Return two reasons at most, and how many more there are."""
    reasons = list(dict.fromkeys(reasons))
    more = f" and {len(reasons) - 2} more" if len(reasons) > 2 else ""
    return f"{', '.join(reasons[:2])}{more}"
