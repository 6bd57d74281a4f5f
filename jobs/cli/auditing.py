"""The command ``audit``: check what a study's files say, by its records, its trained models, and by training again."""

import secrets
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.backends.local import LocalBackend
from jobs.cli.arguments import EXIT_RUN_FAILED, Arguments
from jobs.cli.launching import carry_out
from jobs.cli.naming import chosen_runs, find_trained
from jobs.cli.planning import choose_again
from jobs.launch.audit import WORKER, Drawn, code_differs, draw, elsewhere, open_audit, specs_of, tasks_of
from jobs.launch.job import Order, StudySettings
from jobs.launch.prepare import things_of
from jobs.manifests.policy import Policy
from jobs.plan.capacity import with_noun
from jobs.study import launched
from jobs.study.folder import ObservedRun, Observer, find_study
from jobs.terminal import Result
from seqlm.audit import WORDS, chance_to_miss, counted, records_finding
from seqlm.errors import DataError, FileError, UsageError, printable
from seqlm.files import file_sha256, folder_beside, make_directory, replace_folder
from seqlm.reading import LARGEST_HASHED, below, is_file, listed, open_regular, timestamp
from seqlm.records.runs import AuditEnd, AuditFile, AuditResult, Finding
from seqlm.records.studies import StudyFile
from seqlm.requests import claim_number
from seqlm.rundir import AUDITS_FOLDER, RunDirectory
from seqlm.trust import distrusted

COLORS = {"equal": "green", "rounding": "green", "differs": "red", "unknown": "yellow", "failed": "red"}
BAD = ("differs", "failed")
"""Verdicts that make the exit code 1."""


@dataclass(frozen=True, kw_only=True)
class AuditOutcome(Result):
    """What an audit has found."""

    HIDDEN = frozenset({"drawn", "trained"})

    study: str
    audit: str
    """Folder of the audit."""
    seed: int | None
    """Of the draw. ``None``: nothing was drawn."""
    runs: Sequence[Mapping[str, Any]]
    """Name, id and findings of each run."""
    code_differs: Sequence[str]
    """Files of seqlm that differ from those that the study keeps."""
    missed: float | None
    """Probability to miss every fault if one stretch in ten has one. ``None``: nothing was drawn."""
    drawn: Drawn | None
    trained: int
    """Epochs that were trained again; fewer than were drawn if a job failed, or had no text."""

    @property
    def exit_code(self) -> int:
        return EXIT_RUN_FAILED if any(verdict in BAD for verdict in self._verdicts()) else 0

    def _verdicts(self) -> list[str]:
        return [str(found["verdict"]) for run in self.runs for found in run["findings"]]

    def render(self) -> None:
        has_color = terminal.has_color(terminal.results())
        for run in self.runs:
            for found in run["findings"]:
                where = f" (on {found['node']}; trained on {found['trained_on']})" if found["digest"] else ""
                verdict = WORDS[found["verdict"]]
                text = printable(f"{run['name']}, {found['part']}: {found['text']}{where}")
                verdict = terminal.paint(verdict, COLORS[found["verdict"]]) if has_color else verdict
                terminal.say(f"{verdict}: {text}")
        if self.code_differs:
            files = f"{with_noun(len(self.code_differs), 'file')} of the study's code, such as {self.code_differs[0]}"
            terminal.say(printable(f"note: not as installed here: {files}; bits may differ for it"))
        terminal.say(counted(self._verdicts()))
        if self.drawn is not None:
            drawn = f"{self.drawn.number} drawn from {with_noun(self.drawn.possible, 'epoch')} with --seed {self.seed}"
            terminal.say(f"trained again: {self.trained} of {drawn}")
            missed = f"{100 * chance_to_miss(self.trained):.2g} %"
            terminal.say(f"if one epoch in ten were false, such a draw would miss all of them in {missed} of cases")
            if self.drawn.possible < self.drawn.epochs:
                left = self.drawn.epochs - self.drawn.possible
                terminal.say(f"{left} of {self.drawn.epochs} epochs can only be audited whole (--whole)")


def audit(arguments: Arguments) -> Result | tuple[Any, int]:
    """Compare the records of finished runs, score their models again, and train a share of their epochs again."""
    if arguments.whole and arguments.share is not None:
        raise UsageError("expected --share or --whole, got both: --whole trains all epochs of the chosen runs again")
    if arguments.seed is not None and arguments.share is None:
        raise UsageError("--seed is that of the draw; add --share, such as --share 0.02")
    study_dir = _study(arguments)
    runs = [run for run in chosen_runs(arguments, study_dir) if _is_audited(run)]
    if not runs:
        raise UsageError(f"{printable(str(study_dir))}: no run that was chosen is done, so there is nothing to audit")
    specs = specs_of(runs, arguments.data)
    things = things_of(specs)
    if why := distrusted(things):
        if not arguments.trust_models:
            raise UsageError(f"{why}; read it, then add --trust-models, or leave its runs out with --exclude")
        launched.record(study_dir, things, terminal.tell)
    is_drawn = arguments.share is not None and not arguments.whole
    unfinished = open_audit(study_dir)
    seed = arguments.seed
    if seed is None:
        kept = unfinished[1].seed if unfinished else None
        seed = secrets.randbelow(2**32) if kept is None else kept
    drawn = draw(runs, arguments.share or 0.0, seed, whole=arguments.whole)
    records = {run.run.id: records_finding(run.run, run.config) for run in runs if run.config is not None}
    file = AuditFile(
        records=records,
        share=arguments.share,
        whole=arguments.whole,
        seed=seed if is_drawn else None,
        drawn=drawn.number,
        possible=drawn.possible,
        epochs=drawn.epochs,
    )
    if unfinished is not None and unfinished[1] == file:
        folder = unfinished[0]
        terminal.tell(f"goes on with audit {folder.name}, which was interrupted or left with --no-wait")
    else:
        folder = claim_number(study_dir / AUDITS_FOLDER)
        file.write(folder)
    is_found = {run.run.id: AuditResult.read(folder / run.run.id) is not None for run in runs}
    specs = [spec for run, spec in zip(runs, specs, strict=True) if not is_found[run.run.id]]
    findings = {run_id: [found] for run_id, found in records.items()}
    backend = LocalBackend() if arguments.backend is None else choose_again(study_dir, runs, arguments)
    if backend.is_scheduled:
        elsewhere(backend, runs)
    study = StudySettings(path=folder, worker=WORKER, policy=Policy(oom=0))
    tasks = tasks_of([run for run in runs if not is_found[run.run.id]], drawn)
    order = Order(specs=specs, tasks=tasks, canary=False, live_code=arguments.live_code)
    try:
        left, _ = carry_out(arguments, study, order, backend) if specs else (None, ())
    except DataError as error:  # the records can be compared without the text
        unknown = Finding(part="scores", verdict="unknown", text=str(error))
        findings = {run_id: [*found, unknown] for run_id, found in findings.items()}
    else:
        if left is not None:
            return left, 0
        for run in runs:
            findings[run.run.id] += _found(folder, run)
    for run in runs:
        findings[run.run.id] = [_with_earlier(study_dir, run, found, folder) for found in findings[run.run.id]]
    differ: Sequence[str] = ()
    try:
        differ = code_differs(study_dir)
    except FileError as error:
        terminal.tell(f"warning: {error}")
    audited = [
        {"name": run.name, "id": run.run.id, "findings": [found.to_plain() for found in findings[run.run.id]]}
        for run in runs
    ]
    trained = sum(found.digest is not None for run_findings in findings.values() for found in run_findings)
    AuditEnd(at=timestamp()).write(folder)
    return AuditOutcome(
        study=study_dir.name,
        audit=str(folder),
        seed=file.seed,
        runs=audited,
        code_differs=differ,
        missed=chance_to_miss(trained) if is_drawn else None,
        drawn=drawn if is_drawn else None,
        trained=trained,
    )


def _is_audited(run: ObservedRun) -> bool:
    if run.config is not None and run.observation.state == "done":
        return True
    terminal.tell(f"left out {run.name}: {run.observation.state} {run.observation.reason or ''}".rstrip())
    return False


def _found(folder: Path, run: ObservedRun) -> Sequence[Finding]:
    """Return the findings of a job, or why there are none."""
    job = RunDirectory(folder / run.run.id)
    result = AuditResult.read(job.path)
    if result is not None:
        return result.findings
    seen = Observer(folder).observe(job)
    return [Finding(part="scores", verdict="failed", text=f"the job is {seen.state}: {seen.reason}")]


def _with_earlier(study_dir: Path, run: ObservedRun, found: Finding, folder: Path) -> Finding:
    """Return a finding that differs with what earlier audits on other nodes say of it."""
    if found.verdict != "differs" or found.digest is None:
        return found
    for earlier in listed(study_dir / AUDITS_FOLDER):
        result = AuditResult.read(earlier / run.run.id, lambda line: None) if earlier != folder else None
        for other in result.findings if result else ():
            if other.part == found.part and other.digest is not None and other.node != found.node:
                nodes = f"{found.trained_on} computed otherwise than {other.node} and {found.node}"
                text = nodes if other.digest == found.digest else "all nodes differ: operations that vary"
                return Finding(**{**vars(found), "text": f"{found.text}; {text}"})
    return found


# -- archives ------------------------------------------------------------------------------------------------------


def _study(arguments: Arguments) -> Path:
    """Return the folder of a study; an archive is unpacked below the folder of studies first."""
    path = Path(arguments.audited)
    if is_file(path) and not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path) or path.suffix == ".toml"):
        raise UsageError(f"{path}: expected a study, or an archive of its folder (.tar.gz, .tar, .zip)")
    if not is_file(path) or not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
        return find_trained(replace(arguments, study=arguments.audited))
    make_directory(arguments.runs_dir)
    with folder_beside(arguments.runs_dir / path.name) as building:
        try:
            _unpack(path, building)
        except Exception as error:  # many kinds for a malicious file
            raise UsageError(f"{path}: cannot be unpacked: {error}") from None
        folders = {found.parent for found in below(building, StudyFile.FILE)}
        studies = [one for one in folders if not folders & {*one.parents}]  # not those that an upgrade has kept
        if len(studies) != 1:
            raise UsageError(f"{path}: expected one study with a {StudyFile.FILE}, found {len(studies)}")
        target = arguments.runs_dir / f"{studies[0].name}-{str(file_sha256(path))[:8]}"
        replace_folder(studies[0], target)
    terminal.tell(f"{path} is unpacked in {target}")
    return find_study(str(target), arguments.runs_dir)


def _unpack(path: Path, folder: Path) -> None:
    """Unpack an archive: files and folders inside of ``folder`` alone, and not more than its disk has room for."""
    free = shutil.disk_usage(folder).free
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > free:
                raise ValueError("it is larger than the free disk")
            archive.extractall(folder)  # drops "..", links and absolute paths
        return
    with open_regular(path, largest=LARGEST_HASHED) as file, tarfile.open(fileobj=file) as tar:
        if sum(member.size for member in tar.getmembers()) > free:
            raise ValueError("it is larger than the free disk")
        tar.extractall(folder, filter="data")
