"""What launches do for each other: ``limit``, which changes a live launch, and ``status --machine``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.plan.capacity import TINY, with_noun
from jobs.registry import SCHEDULERS, scheduler
from jobs.study.folder import file_limit, find_study, launcher_of, study_name
from jobs.terminal import Column, Result, show
from seqlm import machine
from seqlm.errors import UsageError, printable
from seqlm.gpus import Booking, Ledger, Survey, others_on
from seqlm.requests import Requests


def limit(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Set how many runs of a live launch there may be at once. Runs that are running go on."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    name, most = printable(study_name(study_dir)), arguments.max_parallel
    if most is None:
        raise UsageError("limit: expected --max-parallel N")
    if launcher_of(study_dir) is None:
        requests = (one.record.backend for one in Requests(study_dir).newest_first() if one.runs)
        backend = next(requests, None)
        hint = f"`run --max-parallel {most}` sets it for the next launch"
        if backend in SCHEDULERS:
            hint = scheduler(str(backend)).THROTTLE.format(most=most) or hint
        raise UsageError(f"{name}: no launcher is at work, so there is nothing to limit; {hint}")
    file_limit(study_dir, most)
    terminal.say(f"{name}: at most {with_noun(most, 'run')} at once from now on; runs that are running go on")
    return {"study": study_name(study_dir), "max_parallel": most}, 0


# -- status --machine ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MachineResult(Result):
    """Who uses the GPUs of this machine, and which launches wait for one."""

    ledger: str
    gpus: Sequence[Mapping[str, Any]]
    launches: Sequence[Mapping[str, Any]]

    def render(self) -> None:
        if self.gpus:
            show(GPUS, self.gpus)
        else:
            terminal.say("this machine has no GPU")
        for launch in self.launches:
            if launch["needs"] is not None:
                what = f"{with_noun(launch['needs'], 'GPU')}, holds {launch['holds']:g}"
                terminal.say(f"{launch['user']}'s study {launch['study']} waits for {what}")


def machine_status() -> MachineResult:
    """Return who uses the GPUs of this machine, and which launches wait for one.

    Raises:
        BackendError: nvidia-smi gives no answer.
        FileError: the ledger cannot be read.
    """
    ledger = Ledger()
    cards = [gpu for card in machine.cards() for gpu in card.gpus]
    bookings, notes = (ledger.bookings(), ledger.launches()) if cards else ([], [])
    survey = Survey()
    try:
        use = survey.wait() if cards else None
    finally:
        survey.close()
    if cards and use is None:
        terminal.tell("warning: nvidia-smi does not say who uses the GPUs; other programs than seqlm's are not shown")
    gpus = [
        {
            "gpu": gpu,
            "name": name,
            "used": round(sum(one.share for one in bookings if one.gpu == gpu), 4),
            "bookings": [_booking(one) for one in bookings if one.gpu == gpu],
            "other_programs": None if use is None else others_on(gpu, use, bookings),
        }
        for gpu, name in cards
    ]
    launches: list[dict[str, Any]] = [
        {
            "user": one.user,
            "study": one.study,
            "pid": one.pid,
            "holds": round(sum(share.share for share in bookings if share.launch == one.token), 4),
            "needs": one.needs,
        }
        for one in notes
    ]
    return MachineResult(ledger=str(ledger.folder), gpus=gpus, launches=launches)


def _booking(one: Booking) -> dict[str, Any]:
    return {"user": one.user, "study": one.study, "run": one.run, "share": one.share, "pid": one.pid}


def _users(gpu: Mapping[str, Any]) -> str:
    """Return who is on a GPU, in a line."""
    found = []
    for one in gpu["bookings"]:
        share = f" ({one['share']:g})" if one["share"] < 1 - TINY else ""
        found.append(f"{one['user']}: {one['study']}/{one['run']}{share}")
    found += [gpu["other_programs"]] if gpu["other_programs"] else []
    return "; ".join(found)


GPUS = (
    Column("GPU", "gpu", machine.short_name),
    Column("name", spare=1),
    Column("booked", "used", lambda share: f"{share:g}", right=True),
    Column("used by", _users),
)
