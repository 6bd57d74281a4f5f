"""Faults that the simulation finds and that are not mended yet. The list is to become empty."""

from dataclasses import dataclass

from tests.simulation.story import Played


@dataclass(frozen=True, kw_only=True)
class Known:
    """A fault: which check finds it, after which accidents, and what happens then."""

    check: str
    accidents: frozenset[str]
    """Accidents all of which it needs."""
    is_by_srun: bool = False
    """Whether it happens to runs of several nodes alone, of whose job srun has ended the first program or hidden how
    it ended."""
    story: str


KNOWN = (
    Known(
        check="END",
        accidents=frozenset({"kill_program"}),
        story="the program of a job is killed; its script does not put the job back, and its runs wait for the next "
        "`run`",
    ),
    Known(
        check="END",
        accidents=frozenset({"node_without_device"}),
        story="a job starts on a node whose GPUs are gone, and ends without being put back",
    ),
    Known(
        check="END",
        accidents=frozenset({"config_unreadable"}),
        story="the files of a run cannot be read when its job looks at it; no other job takes the run, and the job "
        "ends without it",
    ),
    Known(
        check="END",
        accidents=frozenset({"silence"}),
        story="the controller answers nothing while a job is to be put back; its runs wait for the next `run`",
    ),
    Known(
        check="END",
        accidents=frozenset({"controller_gone"}),
        story="the controller is gone while a job is to be put back, or at its time limit, which then strikes without "
        "a warning; its runs wait for the next `run`",
    ),
    Known(
        check="END",
        accidents=frozenset({"disk_full"}),
        story="the disk is full for longer than ten starts of a job take; its runs wait for the next `run`",
    ),
    Known(
        check="END",
        accidents=frozenset({"quota_used_up"}),
        story="a quota is used up for longer than ten starts of a job take; its runs wait for the next `run`",
    ),
    Known(
        check="END",
        accidents=frozenset({"writes_broken"}),
        story="nothing that one node writes arrives, so nothing says that its jobs should avoid it; they start there "
        "ten times, and their runs wait for the next `run`",
    ),
    Known(
        check="END",
        accidents=frozenset({"files_slow"}),
        story="files are so slow that a job is not done with them at its time limit; its runs wait for the next `run`",
    ),
    Known(
        check="END",
        accidents=frozenset({"files_hang"}),
        story="the file server does not answer at a job's time limit; its runs wait for the next `run`",
    ),
    Known(
        check="NODES",
        accidents=frozenset({"lose_node"}),
        story="SLURM requeues a job whose node is lost; nothing records that, so the job starts there again, "
        "and the failure does not count",
    ),
    Known(
        check="END",
        accidents=frozenset(),
        is_by_srun=True,
        story="the programs of a job of several nodes do not end within ten seconds of each other, and `srun` kills "
        "the later one; or another node's program fails after the first has asked for a requeue. `srun` then returns "
        "something else than the first program, and the script does not put the job back",
    ),
)


def known(played: Played) -> Known | None:
    """Return the fault that explains what a check has found in a story. ``None``: it is a new one, or all is well."""
    for one in KNOWN:
        is_its_run = not one.is_by_srun or any(f"END: {name} is" in str(played.problem) for name in played.by_srun)
        if one.check == played.check and one.accidents <= played.happened and is_its_run:
            return one
    return None
