"""Which architecture has been run with which optimizer, how far that has come, and the unfinished runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from analysis.blocks.section import OpenRun, OpenRuns
from analysis.blocks.table import Column, Table
from analysis.blocks.texts import on_one_text, scope
from analysis.study import units
from analysis.study.settings import Setting, settings_of
from analysis.study.study import Study
from analysis.study.values import rows_of

REASONS = {"running": "At work while this report was written.", "queued": "Waits for its turn."}
"""Of runs for which none is recorded."""


def coverage_table(study: Study) -> Table:
    """A row for each architecture, with the best setting and the states of its runs with each optimizer."""
    one = on_one_text(study).compared
    best: dict[tuple[Any, Any], Setting] = {}
    for setting in sorted(settings_of(one.runs), key=lambda one: (one.val_ppl, one.number)):
        best.setdefault((setting.arch, setting.optimizer), setting)
    states = [(run.arch, run.optimizer, units.state_of(run.state, run.failure_kind)) for run in rows_of(study.runs)]
    states += [(run.arch, run.optimizer, "absent") for run in study.absent if run.arch is not None]
    states += [(*excluded, "excluded") for excluded in study.excluded]
    counts = Counter(states)

    def cell(arch: Any, optimizer: Any) -> str:
        found = best.get((arch, optimizer))
        of = [f"{number} {state}" for (*kind, state), number in counts.items() if kind == [arch, optimizer]]
        value = [f"{units.perplexity(found.val_ppl)} ({'/'.join(map(str, found.runs))})"] if found else []
        return "; ".join([*value, *([", ".join(of)] if of else [])]) or units.MISSING

    archs, optimizers = (
        sorted({state[axis] for state in states}, key=lambda key: (units.rank(table, key), str(key)))
        for axis, table in enumerate((units.ARCHITECTURES, units.OPTIMIZERS))
    )
    return Table(
        name="coverage",
        title="Each optimizer with each architecture",
        caption="Lowest validation perplexity of a setting, its runs; then the states of all runs. Absent: without a "
        f"run directory; excluded: left out by the manifest.{scope(one)}",
        columns=[
            Column("architecture", "Architecture"),
            *(Column(str(kind), units.optimizer(kind)) for kind in optimizers),
        ],
        records=[
            {"architecture": units.architecture(arch), **{str(kind): cell(arch, kind) for kind in optimizers}}
            for arch in archs
        ],
    )


def open_runs(study: Study) -> OpenRuns:
    """The runs that are not done, by number, those of the manifest without a directory too.

    Those that a search has stopped are in its section.
    """
    found = [
        OpenRun(
            number=run.number,
            name=run.name,
            state=run.state,
            reason=_reason(run),
            facts=_facts(run),
            log_tail=study.log_tails.get(run.id),
        )
        for run in rows_of(study.runs)
        if run.state not in ("done", "stopped")
    ]
    reason = "The manifest has a run at this place, but there is no run directory for it here."
    absent = [
        OpenRun(number=run.number, name=run.name, state="absent", reason=reason, facts=[], log_tail=None)
        for run in study.absent
    ]
    return OpenRuns(runs=sorted([*found, *absent], key=lambda run: run.number))


def _reason(run: Any) -> str:
    if isinstance(run.reason, str) and run.reason:
        return run.reason
    return REASONS.get(run.state, "Not started yet." if run.epochs_done == 0 else "No reason recorded.")


def _facts(run: Any) -> list[tuple[str, str]]:
    facts = [("Epochs finished", units.epochs(run.epochs_done, run.epochs_asked))]
    if units.is_number(run.val_ppl):
        best = f"{units.perplexity(run.val_ppl)} (epoch {run.best_epoch + 1})"
        facts.append(("Best validation perplexity so far", best))
    if isinstance(run.failure_where, str):
        facts.append(("Where", run.failure_where))
    return facts
