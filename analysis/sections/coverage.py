"""Which architecture has been run with which optimizer, how far that has come, and the unfinished runs."""

from collections import Counter
from typing import Any

from analysis.blocks.sentences import scope
from analysis.blocks.table import Column, Table, number
from analysis.study import units
from analysis.study.settings import Setting, by_perplexity
from analysis.study.study import StudyFiles
from analysis.study.values import rows_of

REASONS = {"running": "At work while this report was written.", "queued": "Waits for its turn."}
"""Of runs for which none is recorded."""


def coverage_table(study: StudyFiles) -> Table:
    """A row for each architecture, with the best setting and the states of its runs with each optimizer."""
    one = study.on_one_text.compared
    best: dict[tuple[Any, Any], Setting] = {}
    for setting in by_perplexity(one.settings):
        best.setdefault((setting.arch, setting.optimizer), setting)
    states = [(run.arch, run.optimizer, units.state_of(run.state, run.failure_kind)) for run in rows_of(study.runs)]
    states += [(run.arch, run.optimizer, "absent") for run in study.absent if run.arch is not None]
    states += [(*excluded, "excluded") for excluded in study.excluded]
    counts = Counter(states)

    def cell(arch: Any, optimizer: Any) -> str:
        found = best.get((arch, optimizer))
        of = [f"{count} {state}" for (*kind, state), count in counts.items() if kind == [arch, optimizer]]
        value = [f"{units.perplexity(found.val_ppl)} ({'/'.join(map(str, found.runs))})"] if found else []
        return "; ".join([*value, *([", ".join(of)] if of else [])]) or units.MISSING

    archs = units.in_order(units.ARCHITECTURES, (arch for arch, _, _ in states))
    optimizers = units.in_order(units.OPTIMIZERS, (kind for _, kind, _ in states))
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


def open_runs_table(study: StudyFiles) -> Table:
    """The runs that are not done, by number, those of the manifest without a directory too, with the end of their logs.

    Those that a search has stopped are in its section.
    """
    runs = study.runs[~study.runs["state"].isin(["done", "stopped"])]
    records: list[dict[Any, Any]] = [
        {**run, "reason": run["reason"] or REASONS.get(run["state"], "No reason recorded.")}
        for run in runs.to_dict("records")
    ]
    reason = "The manifest has a run at this place, but there is no run directory for it here."
    records += [{"number": run.number, "name": run.name, "state": "absent", "reason": reason} for run in study.absent]
    return Table(
        name="open",
        title="Unfinished runs",
        caption="Best: lowest validation perplexity so far. Where: place of the failure. Below: the end of its log, or "
        "steps of a diverged run.",
        columns=[
            number("number", "No."),
            Column("name", "Run"),
            Column("state", "State", kind="state"),
            Column("reason", "Reason"),
            Column("epochs_done", "Epochs", of=lambda run: run.get("epochs_done"), shown=_epochs, numeric=True),
            number("val_ppl", "Best", units.perplexity, lambda run: run.get("val_ppl")),
            Column("failure_where", "Where", units.text, lambda run: run.get("failure_where")),
        ],
        records=sorted(records, key=lambda run: run["number"]),
        code=lambda run: "\n".join(study.log_tails.get(run.get("id"), [])) or None,
        code_title="Log",
    )


def _epochs(run: dict[str, Any]) -> str:
    return units.epochs(run["epochs_done"], run["epochs_asked"]) if "epochs_done" in run else units.MISSING
