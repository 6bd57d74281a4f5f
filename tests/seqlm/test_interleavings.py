"""What two ranks, their launcher, a second launcher and a user write, in any order, with a kill between any two writes.

A model: each actor is a generator that yields after each write of the functions that production calls. hypothesis
chooses who goes on and who is killed, and shrinks an order that breaks a property to its shortest form.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from jobs.attempt.attempt import Attempt, micro_batches
from jobs.attempt.supervisor import Ended, first_cause
from jobs.manifests.policy import Policy
from jobs.spec import Resources, Submission
from jobs.study.folder import launcher_dir
from seqlm.environment import MICRO_BATCHES
from seqlm.errors import EXIT_BUSY, EXIT_FAILED, EXIT_LOST, EXIT_STOPPED, RunBusyError
from seqlm.files import read_json, write_json, write_json_lines
from seqlm.lease import claim
from seqlm.reading import timestamp
from seqlm.requests import file_request
from seqlm.rundir import Observation, RunDirectory
from seqlm.state import View
from tests.seqlm.training.studies import make_config

Actor: TypeAlias = Literal["launcher", "second launcher", "first rank", "second rank", "cancel", "retry"]
Steps: TypeAlias = Iterator[None]
CONFIG = make_config()
EPOCHS = CONFIG.train.epochs
POLICY = Policy(node=9, oom=9, max_stalled_retries=1)
MOST_ATTEMPTS = 2 + POLICY.max_stalled_retries
"""Of one request: an attempt that fails gains at most one epoch, and the next ones none."""


@contextlib.contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Own a run or a study. Who is killed meanwhile leaves the lease of a process that has ended."""
    lease = claim(folder, busy="busy")
    try:
        yield
    except GeneratorExit:
        write_json(lease.file, {**(read_json(lease.file) or {}), "process_start": 1})
        raise
    lease.release()


class World:
    """A study of one run, and who is alive."""

    def __init__(self, study_dir: Path, fates: list[str]) -> None:
        self.study_dir = study_dir
        self.run = RunDirectory.locate(study_dir, "run", CONFIG.fingerprint())
        self.fates = fates
        """How the first rank of each attempt ends; after the last one, all end well."""
        self.alive: dict[str, Steps] = {}
        self.codes: dict[int, int] = {}
        """Exit codes of the ranks of the newest attempt."""
        self.requested_at = 0
        """Attempts when the newest request to train was filed."""

    # -- actors ------------------------------------------------------------------------------------------------------

    def launcher(self) -> Steps:
        """Request the run unless it is over, then start attempts as long as the policy says."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(owning(launcher_dir(self.study_dir)))
            except RunBusyError:
                return
            if self.seen().state in ("done", "cancelled", "running"):
                return
            yield from self.request()
            while True:
                self.run.create_as_launched()
                yield
                attempt = Attempt(self.submission(), "here")
                if self.run.is_cancelled():
                    return
                attempt.record_start({"launcher": {"pid": 1, "host": "here"}, "backend": "local"})
                yield
                self.codes = {}
                for rank, name in enumerate(("first rank", "second rank")):
                    self.alive[name] = self.rank(rank, attempt.number)
                while len(self.codes) < 2:
                    yield
                ended = first_cause([Ended(exit_code=code, message="a rank ended") for code in self.codes.values()])
                attempt.record_exit(ended, was_asked=self.run.is_cancelled())
                yield
                failures = self.run.failures(self.run.first_attempt())
                is_over = self.run.is_done() or self.run.is_cancelled() or not failures
                if is_over or self.run.verdict(POLICY.to_dict(), failures).delay is None:
                    return

    def request(self) -> Steps:
        wanted = {"epochs": EPOCHS, "from_attempt": self.run.last_attempt() + 1}
        record = {"kind": "run", "policy": POLICY.to_dict(), "at": timestamp(), "runs": {self.run.id: wanted}}
        plan = {"runs": {self.run.id: {"config": CONFIG.to_dict(), "provenance": {"name": "run"}}}}
        file_request(self.study_dir, record, plan)
        self.requested_at = self.run.last_attempt()
        yield

    def submission(self) -> Submission:
        resources = Resources(ranks=2, cpus=1, gpus=0)
        env = {MICRO_BATCHES.name: str(micro_batches(self.run, 8, resources.ranks))}
        number = self.run.last_attempt() + 1
        return Submission(run_dir=self.run.path, attempt=number, argv=(), env=env, cwd=Path(), resources=resources)

    def rank(self, rank: int, attempt: int) -> Steps:
        """Train; the first rank owns the run and writes. The second ends as soon as the first one is gone."""
        run, code = self.run, EXIT_LOST
        try:
            if rank:
                while 0 not in self.codes:
                    yield
                code = 0
                if self.codes[0]:
                    code = EXIT_FAILED
                    run.write_end(attempt, rank, {"outcome": "failed", "kind": "node", "peer_lost": True})
                return
            fate = self.fates.pop(0) if self.fates else "done"
            try:
                with owning(run.lease_dir):
                    write_json(run.worker_file(attempt), {"pid": 1, "host": "here"})
                    yield
                    records, _ = run.read_metrics()
                    while len(records) < EPOCHS and not run.is_cancelled() and (fate == "done" or not records):
                        records.append({"epoch": len(records), "val_ppl": 9.0})
                        write_json_lines(run.metrics_file, records)
                        yield
                    if run.is_cancelled():
                        code, end = EXIT_STOPPED, {"outcome": "interrupted"}
                    elif fate == "done":
                        write_json(run.result_file, {"epochs": EPOCHS, "best_val_ppl": 9.0})
                        yield
                        code, end = 0, {"outcome": "done"}
                    else:
                        code, end = EXIT_FAILED, {"outcome": "failed", "kind": fate, "message": f"by {fate}"}
                    run.write_end(attempt, rank, end)
                    yield
            except RunBusyError:
                code = EXIT_BUSY
        except GeneratorExit:
            code = EXIT_LOST
            raise
        finally:
            self.codes[rank] = code

    def retry(self) -> Steps:
        if not self.has_launcher and self.seen().state in ("failed", "cancelled"):
            yield from self.request()

    def cancel(self) -> Steps:
        if self.seen().state in ("pending", "queued", "running"):
            file_request(self.study_dir, {"kind": "cancel", "at": timestamp(), "runs": {self.run.id: {}}})
        yield

    # -- what happens --------------------------------------------------------------------------------------------------

    def go(self, name: Actor, *, kill: bool) -> None:
        """Let an actor do its next step, or kill it."""
        if name not in self.alive and not kill and (begin := self.begins(name)) is not None:
            self.alive[name] = begin
        elif (actor := self.alive.get(name)) is not None:
            if kill:
                actor.close()  # type: ignore[attr-defined]
                del self.alive[name]
            elif next(actor, self) is self:
                self.alive.pop(name, None)

    def begins(self, name: Actor) -> Steps | None:
        actors = {
            "launcher": self.launcher,
            "second launcher": self.launcher,
            "cancel": self.cancel,
            "retry": self.retry,
        }
        return actors[name]() if name in actors else None

    @property
    def has_launcher(self) -> bool:
        return bool(self.alive.keys() & {"launcher", "second launcher"})

    def seen(self) -> Observation:
        return self.run.observe(View(stage="queued") if self.has_launcher else None)

    def check(self) -> None:
        run, seen = self.run, self.seen()
        has_result = read_json(run.result_file) is not None
        assert seen.state != "done" or has_result, "done only with a result"
        assert not has_result or seen.state == "done", "a result is not lost"
        if not self.alive:
            assert seen.state not in ("running", "queued"), "nobody is there"
            assert not run.is_cancelled() or seen.state in ("cancelled", "done")
        if seen.state == "running":
            assert "first rank" in self.alive
            assert not run.end(run.last_attempt()).has_ended, "over as soon as the first rank says so"
        assert run.last_attempt() - self.requested_at <= MOST_ATTEMPTS, "retries within the policy"
        event(f"{seen.state} {seen.kind or ''} {'final' if seen.is_final else 'tried again'}")

    def end(self) -> None:
        """Whatever was killed: one more launch finishes the run."""
        for actor in list(self.alive.values()):
            actor.close()  # type: ignore[attr-defined]
        self.alive, self.fates = {}, []
        self.check()
        before, _ = self.run.read_metrics()
        if self.seen().state != "done":
            list(self.retry())
            self.alive["launcher"] = self.launcher()
            while self.alive:
                for name in list(self.alive):
                    self.go(name, kill=False)  # type: ignore[arg-type]
                    self.check()
        assert self.seen().state == "done"
        after, _ = self.run.read_metrics()
        assert after[: len(before)] == before, "no epoch is trained twice"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fates=st.lists(st.sampled_from(["node", "oom", "code", "diverged", "done"]), min_size=1, max_size=4),
    steps=st.lists(st.tuples(st.integers(0, 11), st.sampled_from([False] * 15 + [True])), min_size=10, max_size=80),
)
def test_in_any_order_and_after_any_kill_the_state_is_true_and_one_launch_finishes_the_run(
    fates: list[str], steps: list[tuple[int, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (study_dir := Path(folder) / "study").mkdir()
        world = World(study_dir, fates)
        for choice, kill in steps:
            actors = [*sorted(world.alive), *sorted(world.alive), *get_args(Actor)]  # most steps go on with something
            world.go(actors[choice % len(actors)], kill=kill)
            world.check()
        world.end()
