"""What a study has used: totals in sentences, and a table of runs."""

import math
from collections import Counter
from typing import Any

import pandas as pd

from analysis.blocks.section import Block, Points, Prose, Section
from analysis.blocks.sentences import sentences
from analysis.blocks.table import RUN_COLUMNS, Table, number
from analysis.study import units
from analysis.study.columns import table_of
from analysis.study.comparison import finished
from analysis.study.pools import used_of_pools
from analysis.study.settings import in_report_order
from analysis.study.study import StudyFiles
from seqlm.enough import enough


def cost_section(study: StudyFiles) -> Section:
    """Time and memory of every run, and of all together."""
    attempts = costs_of(study.attempts)
    blocks: list[Block] = [Prose(text="No run has been started yet, so nothing has been spent.")]
    if len(attempts):
        blocks = [Points(items=totals(study, attempts)), resources_table(study)]
    return Section(name="cost", title="Resources", blocks=blocks)


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


def resources_of(study: StudyFiles) -> pd.DataFrame:
    """Return a row for each run that has been started, with what it asked for and used, and its columns in tables."""
    ran = costs_of(study.attempts)
    ran = ran.assign(
        timed=ran["spent"].where(ran["cpu_seconds"].notna()),
        idle_gpu_hours=ran["gpu_hours"] * (1 - ran["gpu_busy"]),
        kwh=ran["joules"] / 3.6e6,
    )
    by_run, last = ran.groupby("id", sort=False), ran.drop_duplicates("id", keep="last").set_index("id")
    found = by_run[["cpu_seconds", "timed", "core_hours", "gpu_hours", "idle_gpu_hours", "kwh"]].sum(min_count=1)
    used = found["cpu_seconds"] / found["timed"].where(found["timed"] > 0)  # times of attempts are whole seconds
    found = found.assign(
        cores=last["cores"],
        used_cores=used,
        enough_cores=[_enough_cores(*row) for row in zip(used, last["cores"], last["ranks"], strict=True)],
        peak_memory_bytes=study.epochs.groupby("id")["peak_memory_bytes"].max(),
        resident_bytes=by_run["resident_bytes"].max(),
    )
    runs = in_report_order(study.runs[study.runs["id"].isin(found.index)])
    rows: list[Any] = runs[["number", "id", "name", "arch", "optimizer"]].join(found, on="id").to_dict("records")
    return table_of("resources", rows, more=["name", "arch", "optimizer"])


def _enough_cores(used: float, had: float, ranks: float) -> float:
    """Return the cores of all ranks that are enough; NaN if those that were used are not known."""
    if math.isnan(used):
        return math.nan
    most = None if math.isnan(had) else math.ceil(had / ranks)
    return enough(cores=used / ranks, had=most).cpus * ranks


def resources_table(study: StudyFiles) -> Table:
    """The same as a table, without what no run has recorded, and without a number of attempts that is 1 for all."""
    by_run = costs_of(study.attempts).groupby("id", sort=False)
    records = resources_of(study).set_index("id", drop=False)
    records = records.assign(
        attempts=by_run.size(),
        lost_seconds=by_run["lost_seconds"].agg(math.fsum),
    )
    columns = [
        *([number("attempts", "Attempts")] if (records["attempts"] > 1).any() else []),
        number("lost_seconds", "Outside epochs", units.duration),
        number("cores", "Cores", units.decimals(".0f")),
        number("used_cores", "Used", units.decimals(".1f")),
        number("enough_cores", "Enough", units.decimals(".0f")),
        number("peak_memory_bytes", "Memory", units.memory),
        number("resident_bytes", "Host memory", units.memory),
        number("core_hours", "Core h", units.hours),
        number("gpu_hours", "GPU h", units.hours),
        number("idle_gpu_hours", "Idle GPU h", units.hours),
        number("kwh", "kWh", units.decimals(".2f")),
    ]
    return Table(
        name="resources",
        title="What each run asked for, and used",
        caption="Cores: of all ranks, then used on average, then enough. Memory: peak of a "
        "rank, on its GPU or of its process. Host memory: of all ranks.",
        columns=[*RUN_COLUMNS[:2], *(column for column in columns if records[column.key].notna().any())],
        records=records,
    )


# -- totals --------------------------------------------------------------------------------------------------------


def totals(study: StudyFiles, attempts: pd.DataFrame) -> list[str]:
    """What all runs together have cost, in sentences. ``attempts`` as :func:`costs_of` gives them."""
    over = study.runs.loc[study.runs["state"].isin(["failed", "cancelled"]), "id"]
    failed_before = attempts.duplicated("id", keep="last") & (attempts["outcome"] == "failed")
    done = finished(study.runs)
    return sentences(
        "cost",
        attempts=attempts,
        unknown=attempts[attempts["seconds"].isna()],
        hours={name: attempts[f"{name.lower()}_hours"].dropna() for name in ("GPU", "core")},
        pools=used_of_pools(study.directories.values(), attempts),
        over=over,
        spent_over=attempts.loc[attempts["id"].isin(over), "spent"].sum(),
        cut=(cut := attempts[failed_before | (attempts["outcome"] == "interrupted")]),
        lost=cut["lost_seconds"].dropna(),
        ratios=(done["wall_seconds"] / done["estimated_seconds"]).dropna(),
        changed=Counter(attempts["changes"].dropna()),
    )
