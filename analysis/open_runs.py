"""The runs that have no result, each with its reason and the end of its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from analysis import units
from analysis.load import Study
from analysis.run_files import LogTail


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run that has no result, and why."""

    number: int
    name: str
    state: str
    reason: str
    facts: list[tuple[str, str]]
    """What more is known: place of the failure, epochs finished, best perplexity so far."""
    log_tail: LogTail | None


@dataclass(frozen=True, kw_only=True)
class OpenRuns:
    """All of them, by number."""

    kind: ClassVar[str] = "open_runs"

    runs: list[OpenRun]


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
