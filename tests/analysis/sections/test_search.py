import itertools
import math
import random
import sys
from pathlib import Path

import pytest

from analysis.blocks.figure import Chart
from analysis.blocks.section import Block
from analysis.blocks.table import Table
from analysis.claims.search import search
from analysis.plots.scatter import costs_chart
from analysis.report import report_page
from analysis.sections.search import search_section
from analysis.study.study import StudyFiles, load_study
from seqlm.files import read_json, write_json, write_json_lines
from seqlm.records.requests import Folder, Folders, RequestFile, Wanted
from seqlm.records.runs import Provenance
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory
from tests.analysis.attempt_files import write_attempt, write_job
from tests.analysis.contents import table, too_long
from tests.analysis.hand_made import add_run, digits
from tests.analysis.searches import RULE, stop


def make_searched(tmp_path: Path) -> None:
    """Three runs went all their epochs, two were stopped; of 10 s an epoch on one core, one after another."""
    runs = [
        add_run(tmp_path, 0, "a", "gru", "adam", [100.0, 80.0, 60.0], lr=0.1),
        add_run(tmp_path, 1, "b", "gru", "adam", [110.0, 90.0, 70.0], lr=0.2),
        add_run(tmp_path, 2, "c", "gru", "adam", [105.0, 95.0, 50.0], lr=0.3),
        add_run(tmp_path, 3, "d", "gru", "adam", [200.0], lr=0.4, epochs=3, done=False),
        add_run(tmp_path, 4, "e", "gru", "adam", [107.0, 99.0], lr=0.5, epochs=3, done=False),
    ]
    stop(runs[3], 1, 200.0, rank=4, of=4, cut=105.0)
    stop(runs[4], 2, 99.0, rank=4, of=4, cut=90.0)
    for place, run in enumerate(runs):
        outcome = "done" if place < 3 else "rung"
        write_attempt(run, 1, start=100.0 * place, end=100.0 * place + 40, outcome=outcome)
        write_job(run, 1, cpus=1)
    write_json(tmp_path / "study.json", {"search": {**RULE, "rungs": [1, 2], "within": []}})


@pytest.fixture
def searched(tmp_path: Path) -> StudyFiles:
    make_searched(tmp_path)
    return load_study(tmp_path)


def blocks_of(study: StudyFiles) -> list[Block]:
    return search_section(study, search(study)).blocks


def points_of(study: StudyFiles) -> str:
    found = search(study)
    assert found is not None
    return "\n".join(found.points)


def test_the_rungs_are_held_against_the_end(searched: StudyFiles) -> None:
    val = searched.epochs.pivot_table(index="number", columns="epoch", values="val_ppl").dropna()
    pairs = list(itertools.combinations(val.index, 2))
    end = val.min(axis=1)
    agree = [sum((val[n][a] - val[n][b]) * (end[a] - end[b]) > 0 for a, b in pairs) for n in (0, 1)]
    rows = table(blocks_of(searched), "search-rungs")
    assert [(row["pairs"], row["agreeing"]) for row in rows] == [(str(len(pairs)), str(n)) for n in agree]


def test_the_frontier_is_the_best_so_far_over_the_hours_of_all_runs(searched: StudyFiles) -> None:
    chart = next(block for block in blocks_of(searched) if isinstance(block, Chart))
    line, *points = chart.panels[0].lines
    assert [round(3600 * x) for x in line.x] == [*range(10, 130, 10), 120]
    assert line.y.tolist() == [100, 80, 60, 60, 60, 60, 60, 60, 50, 50, 50, 50, 50]
    assert {point.run: float(point.y[0]) for point in points} == {"1": 60, "2": 70, "3": 50, "4": 200, "5": 99}
    assert chart.figure.axes[0].get_xlabel() == "Core hours spent by all runs"


def test_without_its_rule_a_stopped_run_is_shown_all_the_same(tmp_path: Path) -> None:
    run = add_run(tmp_path, 0, "a", "gru", "adam", [100.0, 60.0], done=False, epochs=3)
    stop(run, 2, 60.0, rank=4, of=4, cut=50.0)
    blocks = blocks_of(load_study(tmp_path))
    assert len(table(blocks, "search-stopped")) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_sampled_runs_have_short_labels_and_captions(tmp_path: Path) -> None:
    folder, draw = tmp_path / "search", random.Random(7)
    for order in range(12):
        keys = {"lr": float(f"{10 ** draw.uniform(-4, -1):.4g}"), "hidden_size": 16 * draw.randint(4, 64)}
        keys["keep"] = round(draw.uniform(0.2, 0.9), 4)
        name = "-".join(f"{key}{value}" for key, value in keys.items())
        val = [(10 + order) * (1 + 3 * math.exp(-0.4 * epoch)) for epoch in range(12 if order < 9 else 3)]
        arch = ("rnn", "gru", "transformer")[order % 3]
        run = add_run(folder, order, name, arch, "adam", val, epochs=12, done=order < 9, **keys)
        if order >= 9:
            stop(run, 3, val[-1], rank=4, of=4, cut=val[-1] - 1)
    write_json(folder / "study.json", {"search": RULE})
    add_run(folder, 12, "longer", "gru", "adam", [200.0 - epoch for epoch in range(14)], lr=0.07, hidden_size=96)
    study = load_study(folder)
    assert set(study.runs["compared_epochs"]) == {12}
    page = report_page(study)
    assert too_long(page) == {}
    panels = next(chart for chart in page.charts if chart.name == "runs-epochs")
    labels = [panel.axes.get_title(loc="left") for panel in panels.panels[:-1]]
    assert all("lr" in label and "…" not in label for label in labels), labels
    slices = {chart.name: chart for chart in page.charts if chart.name.startswith("slices")}
    assert {panel.axes.get_xlabel() for panel in slices["slices-rung"].panels} == {
        *("model.hidden_size", "model.keep", "optim.lr"),
    }
    assert len(slices["slices-rung"].panels[0].axes.lines) == 13, "every run has reached the first rung"
    assert "slices" not in slices, "no two finished settings agree in all keys but one"


def test_of_an_epoch_on_two_lines_the_last_counts_at_a_rung(tmp_path: Path) -> None:
    run = add_run(tmp_path, 0, "a", "gru", "adam", [100.0, 60.0])
    add_run(tmp_path, 1, "b", "gru", "adam", [90.0, 70.0], lr=0.2)
    first, second = run.read_metrics()[0]
    write_json_lines(run.metrics_file, [{**first, "val_ppl": 80.0}, first, second])
    write_json(tmp_path / "study.json", {"search": {**RULE, "rungs": [1]}})
    (row,) = table(blocks_of(load_study(tmp_path)), "search-rungs")
    assert (row["reached"], row["pairs"], row["agreeing"]) == ("2", "1", "0")


# -- which hyperparameter matters, and the frontier of parameters ----------------------------------------------------


def make_many(folder: Path, number: int) -> StudyFiles:
    """Return runs whose first epoch depends on the learning rate alone. A third was stopped there, some diverged."""
    rng = random.Random(3)
    for order in range(number):
        rate, size = float(f"{10 ** rng.uniform(-4, -1):.4g}"), 16 * rng.randint(1, 4)
        ppl = 100 * math.exp(abs(math.log10(rate) + 2.5) + rng.gauss(0, 0.02))
        keys: dict[str, float] = {"lr": rate, "hidden_size": size, "keep": round(rng.uniform(0.5, 0.9), 3)}
        if order % 10 == 0:
            add_run(folder, order, f"r{order}", "gru", "adam", [math.nan], failure="diverged", done=False, **keys)
        elif order % 3:
            add_run(folder, order, f"r{order}", "gru", "adam", [ppl, ppl - 5], **keys)
        else:
            run = add_run(folder, order, f"r{order}", "gru", "adam", [ppl], epochs=2, done=False, **keys)
            stop(run, 1, ppl, rank=9, of=9, cut=ppl - 1)
    write_json(folder / "study.json", {"search": {**RULE, "rungs": [1], "within": []}})
    return load_study(folder)


@pytest.mark.usefixtures("blank_figures")
def test_with_enough_runs_the_report_says_which_hyperparameter_matters(tmp_path: Path) -> None:
    rows = table(blocks_of(make_many(tmp_path, 60)), "search-importance")
    assert {row["key"]: row["verdict"] for row in rows} == {
        "optim.lr": "yes",
        "model.hidden_size": "not shown",
        "model.keep": "not shown",
    }
    assert rows[0]["key"] == "optim.lr"


@pytest.mark.usefixtures("blank_figures")
def test_with_few_runs_or_without_optuna_a_line_says_why_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(study: StudyFiles) -> str:
        blocks = blocks_of(study)
        assert not any(isinstance(block, Table) and block.name == "search-importance" for block in blocks)
        return points_of(study).rpartition("Which hyperparameter matters")[2]

    assert "30 settings" in said(make_many(tmp_path / "few", 30))
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "optuna" in said(make_many(tmp_path / "many", 60))


def test_the_frontier_of_parameters_is_the_lowest_of_at_most_as_many(tmp_path: Path) -> None:
    sizes, ppls = [1000, 2000, 3000, 4000], [90.0, 95.0, 70.0, 80.0]
    for order, (size, ppl) in enumerate(zip(sizes, ppls, strict=True)):
        keys = {"lr": 0.1 + order, "result": {"parameters": size}}
        add_run(tmp_path, order, f"r{order}", "gru", "adam", [200.0, ppl], **keys)
    run = add_run(tmp_path, 4, "r4", "gru", "adam", [50.0], lr=9.0, epochs=2, done=False)
    stop(run, 1, 50.0, rank=4, of=4, cut=40.0)
    chart = costs_chart(load_study(tmp_path).compared.on_one_text)
    assert chart is not None
    line = chart.figure.axes[-1].get_lines()[0]
    assert line.get_xydata().tolist() == [[1.0, 90.0], [3.0, 70.0], [4.0, 70.0]]


def test_final_seeds_are_results_and_no_rung_counts_them_and_those_that_are_not_trained_are_no_runs(
    tmp_path: Path,
) -> None:
    make_searched(tmp_path)
    before = load_study(tmp_path)
    done, stopped = (before.runs[before.runs["state"] == state].iloc[0] for state in ("done", "stopped"))
    values = [99.0, 77.0, 33.0]
    final = add_run(
        tmp_path, 5, "f", "gru", "adam", values, lr=float(done["optim.lr"]), seed=7, provenance={"first_seed": 1111}
    )
    left = "g-00000009"
    config = RunDirectory(tmp_path / stopped["id"]).read_config()
    provenance = Provenance(name="g", order=6, first_seed=1111)
    own = Folder(config={**config.to_dict(), "seed": 7}, provenance=provenance)
    wanted = {left: Wanted(epochs=3, after=stopped["id"])}
    file_request(tmp_path, RequestFile(kind="run", runs=wanted), Folders(runs={left: own}))
    planned = [
        {"number": 6, "name": "f", "fingerprint": digits(final), "after": done["id"].rpartition("-")[2]},
        {"number": 7, "name": "g", "fingerprint": "00000009", "after": stopped["id"].rpartition("-")[2]},
    ]
    write_json(tmp_path / "study.json", {**(read_json(tmp_path / "study.json") or {}), "planned": planned})
    after = load_study(tmp_path)
    assert set(after.runs["id"]) == {*before.runs["id"], final.id}
    assert "g" not in {run.name for run in after.absent}
    assert after.final_seeds == {final.id}
    rungs = [table(blocks_of(study), "search-rungs") for study in (before, after)]
    assert rungs[0] == rungs[1]
    assert "final seed" in points_of(after)
    assert "final seed" not in points_of(before)
    assert after.runs.set_index("id").loc[final.id, "setting"] == done["number"]
