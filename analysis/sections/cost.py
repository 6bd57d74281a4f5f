"""What a study has cost: the section with a table of runs, totals in sentences, and the timeline of its jobs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pandas as pd

from analysis.blocks.section import Block, Points, Prose, Section
from analysis.blocks.table import RUN_COLUMNS, Column, Table, number
from analysis.plots.timeline import timeline_chart
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.settings import in_report_order
from analysis.study.study import Study

MAY_BE_SHARED = ("backend", "device", "ranks")
"""Columns that the page leaves out where all runs agree; the caption then says so, and the CSV file has them."""


def cost_section(study: Study) -> Section:
    """Time, memory and machines of every run, and of all together."""
    attempts = costs_of(study.attempts)
    blocks: list[Block] = [Prose(text="No run has been started yet, so nothing has been spent.")]
    if len(attempts):
        table, chart = shortened(cost_table(study, attempts)), timeline_chart(study)
        blocks = [Points(items=totals(study, attempts)), table, *([chart] if chart else [])]
    return Section(name="cost", title="Cost", blocks=blocks)


def costs_of(attempts: pd.DataFrame) -> pd.DataFrame:
    """The attempts that ran, with three more columns.

    ``spent``: seconds; where start or end is not recorded the seconds of the epochs finished in it, which are a part
    of them. ``gpu_hours``, ``core_hours``: GPUs or cores times ``spent``, NaN for an attempt on the other of the two.
    """
    ran = attempts[attempts["outcome"] != "not started"].copy()
    ran["spent"] = ran["seconds"].fillna(ran["epoch_seconds"])
    ran["gpu_hours"] = (ran["spent"] * ran["gpus"] / 3600).where(ran["gpus"] > 0)
    ran["core_hours"] = (ran["spent"] * ran["cores"] / 3600).where(ran["gpus"] == 0)
    return ran


# -- the table -----------------------------------------------------------------------------------------------------


def cost_table(study: Study, attempts: pd.DataFrame) -> Table:
    """A row for each run that has been started. ``attempts`` as :func:`costs_of` gives them."""
    by_run = attempts.groupby("id", sort=False)
    last = attempts.drop_duplicates("id", keep="last").set_index("id")
    measured = study.epochs.groupby("id", sort=False).agg(
        tokens_per_second=("train_tokens_per_second", "median"), peak_memory_bytes=("peak_memory_bytes", "max")
    )
    runs = in_report_order(study.runs[study.runs["id"].isin(attempts["id"])]).set_index("id", drop=False)
    records = runs.assign(
        **last[list(MAY_BE_SHARED)],
        ratio=(runs["wall_seconds"] / runs["estimated_seconds"]).where(runs["state"] == "done"),
        attempts=by_run.size(),
        **by_run[["lost_seconds", "gpu_hours", "core_hours"]].agg(math.fsum),
    ).join(measured)
    return Table(
        name="cost",
        title="What each run has cost",
        caption="Estimate: at the first launch. Tokens/s: median. Memory: peak of one rank. Outside epochs: start-up, "
        "checkpoints, test.",
        columns=[
            *RUN_COLUMNS,
            Column("backend", "Backend", units.text),
            Column("device", "Device", units.text),
            number("ranks", "Ranks", units.whole),
            number("estimated_seconds", "Estimate", units.duration),
            number("wall_seconds", "Actual", units.duration),
            number("ratio", "Ratio", units.decimals(".2f")),
            number("tokens_per_second", "Tokens/s", units.decimals(",.0f")),
            number("peak_memory_bytes", "Memory", units.memory),
            number("attempts", "Attempts"),
            number("lost_seconds", "Outside epochs", units.duration),
            number("gpu_hours", "GPU h", units.hours),
            number("core_hours", "Core h", units.hours),
        ],
        records=records,
        run=lambda run: run["number"],
    )


def shortened(table: Table) -> Table:
    """The table without the columns in which all runs agree or that are empty; its CSV file keeps them."""
    shared: list[str] = []
    kept = []
    for place, column in enumerate(table.columns):
        texts = {row.cells[place].text for row in table.rows}
        if column.key in MAY_BE_SHARED and len(texts) == 1 and len(table.rows) > 1:
            shared += [f"{column.title} = {text}" for text in texts if text != units.MISSING]
        elif column.key not in ("gpu_hours", "core_hours") or texts != {units.MISSING}:
            kept.append(column)
    return replace(
        table,
        caption=f"{table.caption} The same in every run: {', '.join(shared)}." if shared else table.caption,
        columns=kept,
        full_csv=table.to_csv(),
    )


# -- totals --------------------------------------------------------------------------------------------------------


def totals(study: Study, attempts: pd.DataFrame) -> list[str]:
    """What all runs together have cost, in sentences. ``attempts`` as :func:`costs_of` gives them."""
    unknown = attempts[attempts["seconds"].isna()]
    at_least = "" if unknown.empty else "at least "
    items = [
        f"{units.count(attempts['id'].nunique(), 'run')} in {units.count(len(attempts), 'attempt')}: {at_least}"
        f"{_hours(attempts['spent'])} run hours (an attempt counts once, however many ranks it has), of which "
        f"{_hours(attempts['epoch_seconds'])} in finished epochs."
    ]
    for key, name, on, what in (("gpu_hours", "GPU", "", "GPUs"), ("core_hours", "core", " on processors", "cores")):
        hours = attempts[key].dropna()
        if len(hours):
            items.append(
                f"{at_least}{units.hours(hours.sum())} {name} hours, in {units.count(len(hours), 'attempt')}{on} "
                f"(hours times {what})."
            )
    items += [_failed_sentence(study, attempts), _interrupted_sentence(attempts), _estimate_sentence(study)]
    if changed := Counter(attempts["changes"].dropna()):
        listed = "; ".join(f"{text} ({number})" for text, number in changed.most_common())
        items.append(
            f"{units.count(changed.total(), 'attempt')} went on in other circumstances than the one before, so that "
            f"sums may be rounded otherwise or other dropout masks drawn: {listed}."
        )
    if len(unknown):
        items.append(
            f"Not recorded: the start of {units.count(int(attempts['started_at'].isna().sum()), 'attempt')} and the "
            f"end of {attempts['ended_at'].isna().sum()}. Of these attempts only the finished epochs are counted."
        )
    return [item[0].upper() + item[1:] for item in items]


def _hours(seconds: pd.Series[float]) -> str:
    return units.hours(seconds.sum() / 3600)


def _failed_sentence(study: Study, attempts: pd.DataFrame) -> str:
    over = study.runs.loc[study.runs["state"].isin(["failed", "cancelled"]), "id"]
    if over.empty:
        return "No run has failed or been cancelled."
    spent = _hours(attempts.loc[attempts["id"].isin(over), "spent"])
    runs = "1 run that" if len(over) == 1 else f"{len(over)} runs that"
    return f"{spent} of these run hours went into {runs} failed or {'was' if len(over) == 1 else 'were'} cancelled."


def _interrupted_sentence(attempts: pd.DataFrame) -> str:
    """Time between the last finished epoch and the end of attempts after which the run went on, or may."""
    failed_before = attempts.duplicated("id", keep="last") & (attempts["outcome"] == "failed")
    cut = attempts[failed_before | (attempts["outcome"] == "interrupted")]
    if cut.empty:
        return "No attempt was interrupted."
    known = cut["lost_seconds"].dropna()
    verb = "was" if len(cut) == 1 else "were"
    text = f"{units.count(len(cut), 'attempt')} {verb} interrupted and had to be repeated or resumed"
    if known.empty:
        return f"{text}; the time lost is not recorded."
    of = "" if len(known) == len(cut) else f" (known of {len(known)})"
    return f"{text}: {_hours(known)} hours outside finished epochs were lost{of}."


def _estimate_sentence(study: Study) -> str:
    done = finished(study.runs)
    ratios = (done["wall_seconds"] / done["estimated_seconds"]).dropna()
    if ratios.empty:
        return "No finished run has an estimate to compare with."
    n = units.count(len(ratios), "finished run")
    spread = f", from {ratios.min():.2f} to {ratios.max():.2f}" if len(ratios) > 1 else ""
    return f"Actual time over estimate: median {ratios.median():.2f}{spread} (n = {n})."
