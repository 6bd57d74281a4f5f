"""The optimizers compared: perplexity, time and generalisation, over all runs and over pairs alike in all else."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import described, device_sentences, scope
from analysis.study import units
from analysis.study.columns import SETTING_KEYS
from analysis.study.comparison import finished
from analysis.study.settings import Setting, best_of, best_settings, expected_lowest_perplexity, expected_minimum
from analysis.study.study import Study
from analysis.study.values import rows_of

OTHER_KEYS = ["seed", *(key for key in SETTING_KEYS if not key.startswith("optim."))]
"""What a pair agrees in: model, data, training and seed."""


def optimizers_blocks(study: Study, settings: Sequence[Setting]) -> list[Block]:
    """The comparison over all runs, then the fair one."""
    rows = _rows(study, settings)
    if not rows:
        return [Prose(text="No run has finished, so the optimizers cannot be compared.")]
    if len(rows) == 1:
        text = f"Only {rows[0]['optimizer']} has finished runs, so there is nothing to compare it with."
        return [Prose(text=text), _table(rows, scope(study))]
    blocks: list[Block] = [Points(items=_sentences(study, rows)), _table(rows, scope(study))]
    duels = _duels(finished(study.runs))
    if duels.empty:
        text = (
            "No two finished runs with different optimizers agree in model, data, training and seed. So the settings "
            "differ in other ways too, and the numbers above are not the effect of the optimizer alone."
        )
        return [*blocks, Prose(text=text)]
    return [*blocks, Prose(text=_duel_sentences(duels)), _duel_table(duels, scope(study))]


# -- over all runs -------------------------------------------------------------------------------------------------


def _rows(study: Study, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return a row for each optimizer with a finished run, in the report's order; ``best`` is its best setting."""
    done = finished(study.runs)
    done = done.assign(final_gap=done["final_val_ppl"] - done["final_train_ppl"])
    medians = done.groupby("optimizer")[["seconds_to_5pct", "gap", "final_gap"]].median().add_prefix("median_")
    diverged = study.runs[(study.runs["state"] == "failed") & (study.runs["failure_kind"] == "diverged")]
    members = {key: [s for s in settings if s.optimizer == key] for key in sorted(medians.index, key=_place)}
    fewest = min(map(len, members.values()), default=0)
    return [
        {
            "optimizer": units.optimizer(key),
            "runs": int((done["optimizer"] == key).sum()),
            "diverged": int((diverged["optimizer"] == key).sum()),
            "settings": len(found),
            "best": (best := best_of(found)),
            "val_ppl": best.val_ppl,
            "at_equal_counts_ppl": expected_lowest_perplexity([setting.val_ppl for setting in found], fewest),
            "run": best.reference,
            "architecture": units.architecture(best.arch),
            "architectures": sorted(best_settings(found).values(), key=lambda s: (s.val_ppl, s.number)),
            "gap": best.gap,
            "final_gap": best.final_gap,
            **medians.loc[key],
        }
        for key, found in members.items()
    ]


def _place(optimizer: Any) -> tuple[int, str]:
    return units.rank(units.OPTIMIZERS, optimizer), str(optimizer)


def _sentences(study: Study, rows: Sequence[dict[str, Any]]) -> list[str]:
    ranked = sorted(rows, key=lambda row: row["val_ppl"])
    lowest = ", ".join(f"{row['optimizer']} {described(row['best'])}" for row in ranked)
    sentences = [f"Lowest validation perplexity: {lowest}."]
    if doubt := ranked[0]["best"].interval.doubt_against(ranked[1]["best"].interval):
        sentences[0] += f" The order of the first two is not clear ({doubt})."
    fewest = min(row["settings"] for row in rows)
    if fewest < max(row["settings"] for row in rows):
        listed = ", ".join(
            f"{row['optimizer']} {units.rounded(row['at_equal_counts_ppl'])} (of {row['settings']})"
            for row in sorted(ranked, key=lambda row: row["at_equal_counts_ppl"])
        )
        sentences.append(
            "The optimizers have unequal numbers of finished settings, and the lowest of more settings is lower by "
            f"chance alone. Expected lowest perplexity of {units.count(fewest, 'setting')} chosen at random: {listed}."
        )
    for row in ranked:
        first, *others = [f"{units.architecture(s.arch)} ({units.rounded(s.val_ppl)})" for s in row["architectures"]]
        then = (
            f"does best with {first}, then {units.listing(others)}" if others else f"has only finished runs of {first}"
        )
        sentences.append(f"{row['optimizer']} {then}.")
    if timed := _numbers(rows, "median_seconds_to_5pct"):
        listed = ", ".join(f"{units.duration(row['median_seconds_to_5pct'])} with {row['optimizer']}" for row in timed)
        text = f"Median time to within 5 % of a run's own best validation perplexity: {listed}."
        sentences.append(" ".join([text, *device_sentences(study)]))
    if gaps := _numbers(rows, "median_gap"):
        listed = "; ".join(
            "{optimizer} {median_gap} and {median_final_gap} ({gap} and {final_gap} in its best run)".format_map(
                {key: units.rounded(value) if key.endswith("gap") else value for key, value in row.items()}
            )
            for row in gaps
        )
        text = "Median generalisation gap (validation minus training perplexity) at the best epoch and after the last"
        sentences.append(f"{text}: {listed}.")
    return sentences


def _numbers(rows: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the rows that have a number there, the lowest first."""
    return sorted((row for row in rows if units.is_number(row[key])), key=lambda row: row[key])


def _table(rows: Sequence[dict[str, Any]], of: str) -> Table:
    return Table(
        name="discussion-2-optimizers",
        title="The optimizers compared",
        caption="Best valid.: of all settings; equal counts: expected of as many as the fewest. Time to 5 %: median. "
        f"Gap: validation minus training; final: after the last epoch.{of}",
        columns=[
            Column("optimizer", "Optimizer"),
            number("runs", "Runs"),
            number("diverged", "Diverged"),
            number("val_ppl", "Best valid.", units.perplexity),
            number("at_equal_counts_ppl", "Equal counts", units.perplexity),
            Column("run", "Run"),
            Column("architecture", "Architecture"),
            number("median_seconds_to_5pct", "Time to 5 %", units.duration),
            number("gap", "Gap of best", units.perplexity),
            number("final_gap", "Final gap of best", units.perplexity),
            number("median_gap", "Median gap", units.perplexity),
            number("median_final_gap", "Median final gap", units.perplexity),
        ],
        records=rows,
    )


# -- in pairs ------------------------------------------------------------------------------------------------------


def _duels(done: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each two optimizers with finished runs alike in all else; of several runs the best counts.

    Differences are validation losses of the second optimizer minus those of the first, in nats; "equal counts" are
    expected lowest losses of as many runs as the optimizer with fewer has. ``unequal`` counts the pairs in which these
    numbers of runs differ.
    """
    done = done.sort_values(["val_ppl", "number"])
    alike = done.groupby(OTHER_KEYS, dropna=False, sort=False).ngroup()
    groups: dict[Any, dict[Any, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    columns = (done[key] for key in ("optimizer", "val_ppl", "seconds_to_5pct"))
    for group, optimizer, ppl, seconds in zip(alike, *columns, strict=True):
        groups[group][optimizer].append((math.log(ppl), seconds))
    pairs = []
    for sides in groups.values():
        for first, second in itertools.combinations(sorted(sides, key=_place), 2):
            losses = [[loss for loss, _ in sides[key]] for key in (first, second)]
            times = [sides[key][0][1] for key in (first, second)]
            fewer = min(map(len, losses))
            pair = {
                "first": units.optimizer(first),
                "second": units.optimizer(second),
                "difference_nats": losses[1][0] - losses[0][0],
                "equal_counts_nats": expected_minimum(losses[1], fewer) - expected_minimum(losses[0], fewer),
                "unequal": len(losses[0]) != len(losses[1]),
                "time_ratio": times[1] / times[0] if times[0] > 0 else math.nan,
            }
            pairs.append(((_place(first), _place(second)), pair))
    if not pairs:
        return pd.DataFrame()
    table = pd.DataFrame([pair for _, pair in sorted(pairs, key=lambda item: item[0])])
    return table.groupby(["first", "second"], sort=False, as_index=False).agg(
        pairs=("difference_nats", "size"),
        first_wins=("difference_nats", lambda nats: (nats > 0).sum()),
        second_wins=("difference_nats", lambda nats: (nats < 0).sum()),
        median_difference_nats=("difference_nats", "median"),
        equal_counts_nats=("equal_counts_nats", "median"),
        median_time_ratio=("time_ratio", "median"),
        unequal=("unequal", "sum"),
    )


def _duel_sentences(duels: pd.DataFrame) -> str:
    number = int(duels["pairs"].sum())
    text = (
        f"{units.count(number, 'pair')} of runs {'agrees' if number == 1 else 'agree'} in model, data, training and "
        f"seed: {'; '.join(map(_duel_phrase, rows_of(duels)))}."
    )
    unequal = duels[duels["unequal"] > 0]
    if unequal.empty:
        return text
    pairs = units.count(int(unequal["unequal"].sum()), "pair")
    parts = [f"{duel.second} against {duel.first} {duel.equal_counts_nats:+.3f} nats" for duel in rows_of(unequal)]
    return (
        f"{text} In {pairs} one optimizer has more runs to choose the best from (such as more learning rates), which "
        f"favours it. Expected median difference at equal numbers of runs: {', '.join(parts)}."
    )


def _duel_phrase(duel: Any) -> str:
    if duel.first_wins == duel.second_wins == 0:
        return f"{duel.first} and {duel.second} are equal in {duel.pairs} of {duel.pairs}"
    if duel.first_wins == duel.second_wins:
        wins = f"{duel.first_wins} of {duel.pairs}"
        return f"{duel.first} and {duel.second} each have the lower validation perplexity in {wins}"
    winner, loser, wins = duel.first, duel.second, duel.first_wins
    if duel.second_wins > duel.first_wins:
        winner, loser, wins = duel.second, duel.first, duel.second_wins
    size = f"{'by' if duel.pairs == 1 else 'median difference'} {abs(duel.median_difference_nats):.3f} nats"
    return f"{winner} has a lower validation perplexity than {loser} in {wins} of {duel.pairs} ({size})"


def _duel_table(duels: pd.DataFrame, of: str) -> Table:
    return Table(
        name="discussion-2-pairs",
        title="Optimizers where all else is alike",
        caption="Of several runs, such as learning rates, the best counts. Difference: loss of the second minus the "
        f"first; equal counts: expected at equal numbers of runs. Time ratio: second / first, time to 5 %.{of}",
        columns=[
            Column("first", "First"),
            Column("second", "Second"),
            number("pairs", "Pairs"),
            number("first_wins", "First lower"),
            number("second_wins", "Second lower"),
            number("median_difference_nats", "Median difference (nats)", units.decimals("+.3f")),
            number("equal_counts_nats", "Equal counts (nats)", units.decimals("+.3f")),
            number("median_time_ratio", "Time ratio", units.decimals(".2f")),
        ],
        records=duels,
    )
