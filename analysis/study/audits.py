"""The audits of a study (``seqlm audit``): what was checked, what came of it, and what may have been missed."""

from collections.abc import Mapping
from pathlib import Path

from analysis.study import units
from seqlm.audit import chance_to_miss, counted
from seqlm.reading import listed
from seqlm.records.runs import AuditFile, AuditResult, Finding
from seqlm.rundir import AUDITS_FOLDER


def read_audits(study_dir: Path, names: Mapping[str, str], warnings: list[str]) -> list[str]:
    """Return a line for each audit. A file that is damaged adds a warning, and so does each part that differs.

    ``names``: of the runs, by id. Runs that were deleted since do not count.

    Raises:
        FileError: a folder cannot be read.
    """
    lines = []
    for folder in listed(study_dir / AUDITS_FOLDER, "[0-9]*"):
        file = AuditFile.read(folder, warnings.append)
        if file is None:
            continue
        verdicts, trained = [], 0
        for run_id in sorted(file.records.keys() & names.keys(), key=lambda one: (names[one], one)):
            result = AuditResult.read(folder / run_id, warnings.append)
            findings = [file.records[run_id], *(result.findings if result else [Finding(verdict="unknown")])]
            verdicts += [found.verdict for found in findings]
            trained += sum(found.digest is not None for found in findings)
            for found in findings:
                if found.verdict == "differs":
                    warnings.append(f"audit {folder.name}: {names[run_id]}, {found.part} differs: {found.text}")
        if verdicts:
            runs = units.count(len(file.records.keys() & names.keys()), "run")
            what = f"{units.count(len(verdicts), 'part')} of {runs}: {counted(verdicts)}"
            lines.append(f"{folder.name}: {what} ({_again(file, trained)})")
    return lines


def _again(file: AuditFile, trained: int) -> str:
    """Return what an audit has trained again. ``trained``: parts of which something was."""
    if file.whole:
        return f"all epochs of {units.count(trained, 'run')} trained again"
    if file.seed is None:
        return "no epoch trained again"
    chosen = f"{trained} of {units.count(file.epochs, 'epoch')} trained again"
    drawn = f"drawn from {file.possible} with seed {file.seed}"
    return f"{chosen}, {drawn}: one false in ten would be missed in {100 * chance_to_miss(trained):.2g} % of cases"
