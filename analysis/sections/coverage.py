"""Which architecture has been run with which optimizer, how far that has come, and the unfinished runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from analysis.blocks.section import Coverage, Group, OpenRun, OpenRuns
from analysis.study import units
from analysis.study.settings import in_report_order
from analysis.study.study import Study
from analysis.study.values import rows_of

REASONS = {"running": "At work while this report was written.", "queued": "Waits for its turn."}
"""Of runs for which none is recorded."""


def coverage(study: Study) -> Coverage:
    """Group the runs by architecture and optimizer, then by state; absent and excluded ones too."""
    runs = [
        (run.arch, run.optimizer, units.state_of(run.state, run.failure_kind), run.number)
        for run in rows_of(in_report_order(study.runs))
    ]
    runs += [(run.arch, run.optimizer, "absent", None) for run in study.absent if run.arch is not None]
    runs += [(*excluded, "excluded", None) for excluded in study.excluded]
    found = [(units.architecture(arch), units.optimizer(optimizer), *rest) for arch, optimizer, *rest in runs]

    def cell(*kind: str) -> list[Group]:
        members = [(state, number) for *of, state, number in found if of == [*kind]]
        return [
            Group(state=state, number=count, runs=[n for s, n in members if s == state and n is not None])
            for state, count in Counter(state for state, _ in members).items()
        ]

    archs = units.names_of(units.ARCHITECTURES, (arch for arch, *_ in runs))
    optimizers = units.names_of(units.OPTIMIZERS, (optimizer for _, optimizer, *_ in runs))
    return Coverage(
        optimizers=optimizers, lines=[(arch, [cell(arch, optimizer) for optimizer in optimizers]) for arch in archs]
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
