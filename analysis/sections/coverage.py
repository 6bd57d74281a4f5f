"""Which architecture has been run with which optimizer, how far that has come, and the runs without a result."""

from __future__ import annotations

from collections import Counter
from typing import Any

from analysis.blocks.section import Coverage, Group, OpenRun, OpenRuns
from analysis.study import units
from analysis.study.numbering import RunNumber
from analysis.study.settings import in_report_order
from analysis.study.study import Study

EXCLUDED, ABSENT = "excluded", "absent"


def coverage(study: Study) -> Coverage:
    """Group the runs by architecture and optimizer, then by state; absent and excluded ones too."""
    found: list[tuple[str, str, str, RunNumber | None]] = []
    for run in in_report_order(study.runs).to_dict("records"):
        kind = units.architecture(run["arch"]), units.optimizer(run["optimizer"])
        found.append((*kind, units.state_of(run), run["number"]))
    for absent in study.absent:
        if absent.arch is not None:
            found.append((units.architecture(absent.arch), units.optimizer(absent.optimizer), ABSENT, None))
    for excluded in study.excluded:
        found.append((units.architecture(excluded.arch), units.optimizer(excluded.optimizer), EXCLUDED, None))
    archs = _in_order(units.ARCHITECTURES, [arch for arch, *_ in found])
    optimizers = _in_order(units.OPTIMIZERS, [optimizer for _, optimizer, *_ in found])

    def cell(arch: str, optimizer: str) -> list[Group]:
        members = [(state, number) for a, o, state, number in found if (a, o) == (arch, optimizer)]
        counts = Counter(state for state, _ in members)
        return [
            Group(state=state, number=count, runs=[n for s, n in members if s == state and n is not None])
            for state, count in counts.items()
        ]

    return Coverage(optimizers=optimizers, lines=[(arch, [cell(arch, o) for o in optimizers]) for arch in archs])


def _in_order(known: dict[str, str], names: list[str]) -> list[str]:
    return [name for name in [*known.values(), units.UNKNOWN] if name in names]


# -- runs without a result -----------------------------------------------------------------------------------------


def open_runs(study: Study) -> OpenRuns:
    """Collect them, those of the manifest without a directory too."""
    found = [
        OpenRun(
            number=run["number"],
            name=run["name"],
            state=run["state"],
            reason=_reason(run),
            facts=_facts(run),
            log_tail=study.log_tails.get(run["id"]),
        )
        for run in study.runs.to_dict("records")
        if run["state"] != "done"
    ]
    reason = "The manifest has a run at this place, but there is no run directory for it here."
    absent = [
        OpenRun(number=run.number, name=run.name, state="absent", reason=reason, facts=[], log_tail=None)
        for run in study.absent
    ]
    return OpenRuns(runs=sorted([*found, *absent], key=lambda run: run.number))


def _reason(run: dict[Any, Any]) -> str:
    if isinstance(run["reason"], str) and run["reason"]:
        return run["reason"]
    return {"running": "At work while this report was written.", "queued": "Waits for its turn."}.get(
        run["state"], "Not started yet." if run["epochs_done"] == 0 else "No reason recorded."
    )


def _facts(run: dict[Any, Any]) -> list[tuple[str, str]]:
    facts = [("Epochs finished", f"{run['epochs_done']} of {units.plain_value(run['train.epochs'])}")]
    if units.is_number(run["val_ppl"]):
        best = f"{units.perplexity(run['val_ppl'])} (epoch {run['best_epoch'] + 1})"
        facts.append(("Best validation perplexity so far", best))
    if isinstance(run["failure_where"], str):
        facts.append(("Where", run["failure_where"]))
    return facts
