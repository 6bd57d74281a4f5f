"""The simulation of searches: its surfaces, its rules and its command line."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.search import order, surfaces
from benchmarks.search.__main__ import main
from benchmarks.search.methods import FIRST, METHODS, RUNS, search
from benchmarks.search.surfaces import Synthetic
from jobs.manifests.draws import draw
from jobs.manifests.load import load_manifest
from seqlm.files import write_json, write_json_lines
from tests.analysis.hand_made import result_of
from tests.facts import fail, make_folder
from tests.seqlm.training.studies import make_config

SEEN = {"val_ppl": 9.0, "train_ppl": 9.0, "elapsed_seconds": 1.0}


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_no_setting_of_a_surface_ends_below_its_best(rough: bool, seed: int) -> None:
    surface = Synthetic(seed, rough=rough)
    assert surface.end(surface.best) == pytest.approx(surface.lowest)
    for drawn in draw(surface.space, 300, seed):
        assert surface.end(drawn) >= surface.lowest
        curve = surface.curve(drawn)
        assert len(curve) == surface.epochs
        assert curve == surface.curve(drawn)
        assert math.isfinite(curve[-1]) == math.isfinite(surface.end(drawn))
        if math.isfinite(curve[-1]):
            assert curve[-1] == pytest.approx(surface.end(drawn), abs=0.06 if rough else 1e-9)
            assert list(curve) == sorted(curve, reverse=True)


def test_all_searches_begin_with_the_same_draws_and_repeat_themselves() -> None:
    surface = Synthetic(1, rough=True)
    first: list[Any] = []
    for method in METHODS.values():
        found = search(surface, method, 1, stopping=True, epochs=60)
        first.append([run.drawn for run in found.runs[:FIRST]])
        assert found.spent == sum(len(run.losses) for run in found.runs)
        assert [run.drawn for run in search(surface, method, 1, stopping=True, epochs=60).runs] == [
            run.drawn for run in found.runs
        ]
    assert first[0] == first[1] == first[2]


def test_stopping_saves_epochs_and_a_regret_never_rises_on_a_smooth_surface() -> None:
    surface = Synthetic(2, rough=False)
    whole = search(surface, METHODS["draws"], 2, stopping=False)
    stopped = search(surface, METHODS["draws"], 2, stopping=True)
    assert len(whole.runs) == len(stopped.runs) == RUNS
    assert whole.spent == RUNS * surface.epochs > stopped.spent
    regrets = list(whole.regrets.values())
    assert regrets == sorted(regrets, reverse=True)
    assert regrets[-1] >= 0


@pytest.mark.parametrize("name", order.RULES)
def test_a_rule_ends_with_some_runs_in_no_more_than_the_whole_time(name: str) -> None:
    for seed in range(3):
        jobs = order.jobs_of(seed, 0.2)
        kept = order.RULES[name](jobs)
        assert kept.finished <= set(range(order.RUNS))
        assert kept.finished
        assert 0 < kept.spent < 1
        assert order.regret(jobs, kept) >= 0


def test_longest_first_keeps_more_of_the_slow_starters_than_the_order_of_the_manifest() -> None:
    kept = {
        name: [order.share_kept(jobs, order.RULES[name](jobs), order.BEST) for jobs in _jobs()]
        for name in ("longest first, as shipped", "manifest order")
    }
    assert sum(kept["longest first, as shipped"]) > sum(kept["manifest order"])


def _jobs() -> list[list[order.Job]]:
    return [order.jobs_of(seed, order.SLOWNESS["much"]) for seed in range(10)]


@pytest.mark.process
def test_the_document_of_a_part_has_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--parts", "order", "--repetitions", "1", "--out", str(tmp_path / "found.json")]) == 0
    table = (tmp_path / "found.md").read_text("utf-8")
    assert all(name in table for name in order.RULES)
    assert table in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--parts", "smoth"], ["--repetitions", "0"], ["--record", "nowhere"]])
def test_a_mistake_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) == 1


def test_a_study_is_recorded_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of the manifest alone; one that has diverged is infinite from then on."""
    specs = load_manifest(surfaces.MANIFEST).runs[:3]
    strange = dataclasses.replace(specs[0], config=make_config("rnn"), name="strange")
    study = tmp_path / "study"
    for place, spec in enumerate([*specs, strange]):
        epochs = 2 if place == 1 else 6
        run = make_folder(study, spec)
        records = [{**SEEN, "epoch": epoch, "val_loss": 5.0 + place - epoch / 10} for epoch in range(epochs)]
        write_json_lines(run.metrics_file, records)
        if place == 1:
            fail(run, {"kind": "diverged", "message": "bad"})
        else:
            write_json(run.result_file, result_of(records))
    table = tmp_path / "table.csv"
    assert surfaces.record(study, table) == 3
    read = surfaces.Recorded(table)
    assert (len(read.runs), read.epochs, read.lowest) == (3, 6, pytest.approx(4.5))
    curves = [read.curve({key: spec.config.by_key()[key] for key in read.space}) for spec in specs]
    assert curves[0] == pytest.approx([5.0, 4.9, 4.8, 4.7, 4.6, 4.5])
    assert curves[1][:2] == pytest.approx([6.0, 5.9])
    assert not any(map(math.isfinite, curves[1][2:]))
    assert search(read, METHODS["draws"], 1, stopping=False).regret == 0
