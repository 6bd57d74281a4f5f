"""The unfinished runs, with the reason of each."""

from typing import Any

from analysis.blocks.table import Column, Table, number
from analysis.study import units
from analysis.study.study import StudyFiles

REASONS = {"running": "At work while this report was written.", "queued": "Waits for its turn."}
"""Of runs for which none is recorded."""


def open_runs_table(study: StudyFiles) -> Table:
    """The runs that are not done, by number, those of the manifest without a directory too, with the end of their logs.

    Those that a search has stopped are in its section. What the manifest excludes comes last.
    """
    runs = study.runs[~study.runs["state"].isin(["done", "stopped"])]
    records: list[dict[Any, Any]] = [
        {**run, "reason": run["reason"] or REASONS.get(run["state"], "No reason recorded.")}
        for run in runs.to_dict("records")
    ]
    reason = "The manifest has a run at this place, but there is no run directory for it here."
    records += [{"number": run.number, "name": run.name, "state": "absent", "reason": reason} for run in study.absent]
    records.sort(key=lambda run: run["number"])
    records += [
        {
            "number": None,
            "name": f"{units.architecture(arch)}, {units.optimizer(kind)}",
            "state": "excluded",
            "reason": "The manifest leaves it out.",
        }
        for arch, kind in study.excluded
    ]
    return Table(
        name="open",
        title="Unfinished runs",
        caption="Best: lowest validation perplexity so far. Where: place of the failure. Below: the end of its log, or "
        "steps of a diverged run.",
        columns=[
            number("number", "No.", lambda place: units.MISSING if place is None else str(place)),
            Column("name", "Run"),
            Column("state", "State", kind="state"),
            Column("reason", "Reason"),
            Column("epochs_done", "Epochs", of=lambda run: run.get("epochs_done"), shown=_epochs, numeric=True),
            number("val_ppl", "Best", units.perplexity, lambda run: run.get("val_ppl")),
            Column("failure_where", "Where", units.text, lambda run: run.get("failure_where")),
        ],
        records=records,
        code=lambda run: "\n".join(study.log_tails.get(run.get("id"), [])) or None,
        code_title="Log",
    )


def _epochs(run: dict[str, Any]) -> str:
    return units.epochs(run["epochs_done"], run["epochs_asked"]) if "epochs_done" in run else units.MISSING
