"""The loop: start the study, disturb it at random times, start launchers that are gone, check when it is done."""

import math
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import IO, Any, final

from tests.chaos.check import Findings, check
from tests.chaos.disk import Disk
from tests.chaos.faults import Fault, Scene, end_all
from tests.chaos.quiet import Quiet
from tests.chaos.study import Lab, Study, workers

POLL_SECONDS = 0.05
RELAUNCH_SECONDS = 1.0
"""How long a study is without a launcher: somebody sees that it is gone, and starts it again."""
PATIENCE_SECONDS = 10.0
"""How long a fault that finds nothing to hit waits for it."""
FINISH_SECONDS = 900.0
"""How long a study may take once nothing disturbs it any more."""
IDLE_LAUNCHES = 3
"""Undisturbed launchers in a row after which runs that are still not done count as lost."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A fault to come. The seed decides all of it, whatever happens meanwhile."""

    after_seconds: float
    """Since the fault before."""
    fault: Fault
    numbers: tuple[float, ...]
    """What :attr:`Scene.draw` gives out."""


def schedule(seed: int, mean_seconds: float, kinds: tuple[Fault, ...]) -> Iterator[Planned]:
    """Faults without end: every kind once, in random order, then every kind once more."""
    dice = random.Random(seed)
    while True:
        for fault in dice.sample(kinds, len(kinds)):
            yield Planned(
                after_seconds=dice.uniform(0.2, 2 * mean_seconds - 0.2),
                fault=fault,
                numbers=tuple(dice.random() for _ in range(64)),
            )


@dataclass(kw_only=True)
class Outcome:
    """What the loop has to say."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    without_a_target: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    launchers: int = 0
    steps_needed: int = 0
    steps_computed: int = 0
    findings: Findings = field(default_factory=Findings)

    @property
    def extra_work_percent(self) -> float:
        return 100 * (self.steps_computed - self.steps_needed) / max(1, self.steps_needed)

    def to_dict(self) -> dict[str, Any]:
        counts = {name: dict(getattr(self, name)) for name in ("faults", "without_a_target")}
        findings = asdict(self.findings)
        return {**vars(self), **counts, "findings": findings, "extra_work_percent": round(self.extra_work_percent, 1)}


@final
class Loop:
    """Disturbs one study after the other until it has had enough faults or time."""

    def __init__(
        self,
        lab: Lab,
        quiet: Quiet,
        disk: Disk | None,
        *,
        kinds: tuple[Fault, ...],
        seed: int,
        minutes: float,
        mean_seconds: float,
        most_faults: int | None = None,
        step_seconds: float = 0.0,
        tell: Callable[[str], None],
    ) -> None:
        self._lab = lab
        self._quiet = quiet
        self._disk = disk
        self._plan = schedule(seed, mean_seconds, kinds)
        self._seconds = 60 * minutes
        self._most_faults = most_faults
        self._step_seconds = step_seconds
        self._tell_line = tell
        self._outcome = Outcome(seed=seed)
        self._began = time.monotonic()
        self._lasting: list[tuple[float, Iterator[str]]] = []
        """When each fault that lasts is to be resumed, which takes it back."""

    def run(self) -> Outcome:
        """Disturb, check, and say what was found."""
        while self._more_to_come() or not self._outcome.studies:
            self._one_study()
            if self._outcome.findings:
                break  # what is wrong is kept for a look, and nothing after it would be news
        return self._outcome

    def _more_to_come(self) -> bool:
        if self._most_faults is not None:
            return self._outcome.faults.total() < self._most_faults
        return time.monotonic() - self._began < self._seconds

    def _tell(self, line: str) -> None:
        self._tell_line(f"{time.monotonic() - self._began:7.1f} s  {line}")

    # -- one study ---------------------------------------------------------------------------------------------------

    def _one_study(self) -> None:
        number = self._outcome.studies = self._outcome.studies + 1
        where = self._disk.path if self._disk else self._lab.folder
        study = Study(where / f"study-{number}", self._lab)
        study.folder.mkdir()
        self._tell(f"study {number} begins")
        log = self._lab.folder / f"launch-{number}.log"
        with log.open("ab") as output:
            try:
                lost = self._until_done(study, output)
            except BaseException:
                end_all(study)
                raise
        self._lab.control(below=str(study.folder))
        found = check(study, self._quiet, log)
        found.lost_runs += [word for word in lost if not found.lost_runs]
        self._outcome.findings.add(found)
        self._outcome.steps_computed += sum(self._lab.take_steps().values())
        self._outcome.steps_needed += sum(self._quiet.steps.values())
        if found:
            kept = self._lab.folder / f"kept-{number}"
            if self._disk is not None:
                shutil.copytree(study.folder, kept, ignore=shutil.ignore_patterns("code"))
            self._tell(f"study {number} is not as it should be; see {kept if self._disk else study.folder} and {log}")
        else:
            shutil.rmtree(study.folder)
            self._tell(f"study {number} is as the quiet one, bit for bit")

    def _until_done(self, study: Study, output: IO[bytes]) -> list[str]:
        """Keep a launcher at work until every run is done; returns why it has given up, if it has."""
        scene = Scene(study, self._launch(study, output), self._disk)
        coming, due, tried_since = next(self._plan), 0.0, 0.0
        due = time.monotonic() + coming.after_seconds
        idle, disturbed_at = 0, time.monotonic()
        while True:
            now = time.monotonic()
            self._take_back(now)
            if self._more_to_come() and now >= due:
                tried_since = tried_since or now
                if self._disturb(scene, coming, give_up=now - tried_since > PATIENCE_SECONDS):
                    coming, tried_since, disturbed_at, idle = next(self._plan), 0.0, time.monotonic(), 0
                    due = disturbed_at + coming.after_seconds
            if scene.launcher.poll() is not None:
                if not workers(study) and self._is_done(study):
                    self._take_back(math.inf)
                    return []
                if not self._lasting and scene.launcher.returncode >= 0:
                    idle += 1
                if idle > IDLE_LAUNCHES and not workers(study) and not self._more_to_come():
                    self._take_back(math.inf)
                    return [f"{idle} launchers in a row have not finished the study"]
                time.sleep(RELAUNCH_SECONDS)
                scene.launcher = self._launch(study, output)
            if now - disturbed_at > FINISH_SECONDS:
                end_all(study)
                self._take_back(math.inf)
                return [f"not done {FINISH_SECONDS:g} s after the last fault"]
            time.sleep(POLL_SECONDS)

    def _is_done(self, study: Study) -> bool:
        runs = study.runs()
        return len(runs) == len(self._quiet.outcomes) and all(run.result_file.exists() for run in runs)

    def _launch(self, study: Study, output: IO[bytes]) -> subprocess.Popen[bytes]:
        self._outcome.launchers += 1
        return study.start(output, CHAOS_STEP_SECONDS=str(self._step_seconds))

    # -- faults ------------------------------------------------------------------------------------------------------

    def _disturb(self, scene: Scene, coming: Planned, *, give_up: bool) -> bool:
        """Try to have the coming fault happen; returns whether it is over with."""
        numbers = iter(coming.numbers)
        scene.draw = lambda: next(numbers)
        name = coming.fault.name
        happening = coming.fault.begin(scene)
        hit = next(happening, None)
        if hit is None:
            if give_up:
                self._outcome.without_a_target[name] += 1
            return give_up
        self._outcome.faults[name] += 1
        self._tell(f"{name}: {hit}")
        if coming.fault.lasts_seconds:
            self._lasting.append((time.monotonic() + coming.fault.lasts_seconds, happening))
        return True

    def _take_back(self, now: float) -> None:
        for item in [item for item in self._lasting if item[0] <= now]:
            self._lasting.remove(item)
            next(item[1], None)
