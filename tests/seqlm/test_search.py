"""The rule of a search and its records, on made-up curves in files."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqlm.config import DataConfig, EvalConfig
from seqlm.errors import FileError, UsageError
from seqlm.files import write_json_lines
from seqlm.records.runs import Rung
from seqlm.rundir import RunDirectory
from seqlm.search import Search, decide, goes_on, values_at
from tests.facts import launch_again
from tests.seqlm.training.studies import make_config, make_run

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "reached", "keep", "min_runs", "expected"),
    [
        (3.0, [3.0], 0.34, 1, True),  # one of one: ceil(0.34) is 1
        (3.0, [1.0, 3.0], 0.34, 3, True),  # too few runs to stop anybody
        (3.0, [1.0, 3.0], 0.34, 2, False),
        (2.0, [1.0, 2.0, 3.0], 0.34, 3, True),  # ceil(1.02) is 2
        (2.0, [1.0, 2.0, 3.0], 1 / 3, 3, False),
        (2.0, [2.0, 2.0, 2.0], 0.1, 3, True),  # equal values share a place
        (2.0, [1.0, 2.0, 2.0], 0.1, 3, False),
        (NAN, [NAN, 1.0, 2.0], 0.5, 3, False),
        (INF, [NAN, INF, INF], 0.1, 3, True),  # all are equally bad
        (NAN, [1.0, 2.0, NAN, INF], 0.75, 3, True),  # and so they share the third place
        (2.0, [NAN, 2.0, INF], 0.1, 3, True),
    ],
)
def test_the_rule(value: float, reached: list[float], keep: float, min_runs: int, expected: bool) -> None:
    assert goes_on(value, reached, keep=keep, min_runs=min_runs) is expected


@pytest.mark.parametrize("number", [25, 50, 100])
def test_the_share_that_goes_on_is_exact(number: int) -> None:
    reached = [float(value) for value in range(1, number + 1)]
    for hundredths in range(1, 100):
        places = math.ceil(Fraction(number * hundredths, 100))
        rule = {"keep": hundredths / 100, "min_runs": 1}
        going_on = [goes_on(value, reached, **rule) for value in (float(places), places + 1.0) if value <= number]
        assert going_on == [True, False][: len(going_on)], f"{places} of {number} with keep = {hundredths / 100}"


# -- a replay ------------------------------------------------------------------------------------------------------


def write_epochs(run: RunDirectory, values: Sequence[float | None]) -> None:
    write_json_lines(run.metrics_file, [{"epoch": n, "val_ppl": v, "train_ppl": 9.0} for n, v in enumerate(values)])


VOCAB_SIZE = 1000
RUNGS = (1, 3, 5)
VALUES = st.sampled_from([NAN, INF, 2.0, 3.0, 999.0, 1000.0, 1000.5]) | st.floats(1, 1500)
CURVES = st.lists(st.tuples(st.sampled_from(["rnn", "gru"]), st.tuples(VALUES, VALUES, VALUES)), min_size=1, max_size=9)


def replay(
    curves: Sequence[tuple[str, tuple[float, ...]]], arrivals: Sequence[int], keep: Fraction, min_runs: int
) -> list[int | None]:
    """The rung at which each run is stopped. ``arrivals``: the run that comes to its next rung. By counting alone."""
    boards: dict[tuple[str, int], list[float]] = {}
    passed, stopped = [0] * len(curves), list[int | None]([None] * len(curves))
    for number in arrivals:
        if stopped[number] is not None:
            continue
        group, values = curves[number]
        value = values[passed[number]]
        board = boards.setdefault((group, passed[number]), [])
        board.append(value if math.isfinite(value) else INF)
        lower = sum(other < board[-1] for other in board)
        is_behind = len(board) >= min_runs and lower >= math.ceil(len(board) * keep)
        if is_behind or board[-1] > VOCAB_SIZE:
            stopped[number] = RUNGS[passed[number]]
        passed[number] += 1
    return stopped


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    curves=CURVES,
    hundredths=st.sampled_from([10, 25, 33, 50, 67, 90]),
    min_runs=st.integers(1, 4),
    data=st.data(),
)
def test_decisions_on_files_are_those_of_a_replay_in_whatever_order_runs_arrive(
    curves: Sequence[tuple[str, tuple[float, ...]]], hundredths: int, min_runs: int, data: st.DataObject
) -> None:
    numbers = range(len(curves))
    arrivals = data.draw(st.permutations([number for number in numbers for _ in RUNGS]))
    search = Search(rungs=RUNGS, keep=hundredths / 100, min_runs=min_runs, within=("model.arch",))
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            make_run(Path(folder) / f"run-{number:08x}", make_config(arch, seed=number, epochs=8))
            for number, (arch, _) in enumerate(curves)
        ]
        passed = [0] * len(runs)
        for number in arrivals:
            run, values = runs[number], curves[number][1]
            if any(one.decision == "stopped" for one in run.read_rungs().values()):
                continue
            rung = RUNGS[passed[number]]
            passed[number] += 1
            write_epochs(run, [values[sum(end <= epoch for end in RUNGS)] for epoch in range(rung)])
            decide(run, search, rung, 1, vocab_size=VOCAB_SIZE)
        found = [(run.read_stopped() or Rung()).rung for run in runs]
        assert found == replay(curves, arrivals, Fraction(hundredths, 100), min_runs)
        for run in runs:
            if stopped := run.read_stopped():
                assert stopped.value is None or stopped.value > (stopped.cut or 0.0)


# -- the files of a study ------------------------------------------------------------------------------------------


def study(folder: Path, values: Sequence[Any]) -> list[RunDirectory]:
    """Runs that have finished three epochs, with these values of the third."""
    runs = [make_run(folder / f"r-{n:08x}", make_config(seed=n, epochs=8)) for n in range(len(values))]
    for run, value in zip(runs, values, strict=True):
        write_epochs(run, [9.0, 8.0, value])
    return runs


def test_only_whole_records_of_runs_count(tmp_path: Path) -> None:
    runs = study(tmp_path, [5.0, None, 7.0, "7", True, 4, 6.0, 1.0, 2.0])
    runs[2].metrics_file.write_text(runs[2].metrics_file.read_text()[:-4])  # cut while it was copied
    runs[6].metrics_file.write_text('{"epoch": 2, "val_ppl": 1' + "0" * 400 + "}\n")
    runs[7].config_file.write_text("{")
    runs[8].metrics_file.unlink()
    runs[8].metrics_file.mkdir()
    (tmp_path / "canary").mkdir()
    (tmp_path / "notes-00000000").mkdir()
    group = Search(rungs=(3,), within=("model.arch",))
    assert values_at(runs[0], group, 3) == {runs[0].id: 5.0, runs[1].id: INF, runs[5].id: 4.0}
    with pytest.raises(FileError, match=r"expected val_loss of epoch 3, found none"):
        values_at(runs[0], Search(rungs=(3,), metric="val_loss"), 3)
    assert set(values_at(runs[0], Search(rungs=(3,), metric="train_ppl"), 3).values()) == {9.0}


def test_a_run_is_compared_with_its_like(tmp_path: Path) -> None:
    configs = [make_config(arch, lr=lr, epochs=8) for arch in ("rnn", "transformer") for lr in (0.1, 0.2)]
    runs = [make_run(tmp_path / f"r-{n:08x}", config) for n, config in enumerate(configs)]
    for run in runs:
        write_epochs(run, [5.0])

    def compared(*within: str) -> list[int]:
        found = values_at(runs[0], Search(rungs=(1,), within=within), 1)
        return [number for number, run in enumerate(runs) if run.id in found]

    assert compared() == [0, 1, 2, 3]
    assert compared("model.arch") == [0, 1]
    assert compared("optim.lr", "data.corpus") == [0, 2]
    assert compared("model.num_heads") == [0, 1], "runs without a key have it in common"


def test_runs_are_compared_only_if_their_text_and_its_scoring_are_equal(tmp_path: Path) -> None:
    own = replace(make_config(epochs=8), data=DataConfig(corpus="files", sha256="0" * 64, tokenizer="a.json"))
    others = {
        "another seed": replace(own, seed=2),
        "another text": replace(own, data=replace(own.data, sha256="1" * 64)),
        "another column": replace(own, data=replace(own.data, column="body")),
        "another tokenizer": replace(own, data=replace(own.data, tokenizer_sha256="2" * 64)),
        "the same tokenizer in another file": replace(own, data=replace(own.data, tokenizer="b.json")),
        "another vocabulary": replace(own, data=DataConfig(corpus="files", sha256="0" * 64, vocab_size=300)),
        "scored in other windows": replace(own, eval=EvalConfig(seq_len=7)),
    }
    runs = {name: make_run(tmp_path / f"r-{n:08x}", config) for n, (name, config) in enumerate(others.items())}
    run = make_run(tmp_path / "own-0000000a", own)
    for other in (run, *runs.values()):
        write_epochs(other, [5.0])
    found = values_at(run, Search(rungs=(1,), within=("model.arch",)), 1)
    compared = {name for name, other in runs.items() if other.id in found}
    assert compared == {"another seed", "the same tokenizer in another file"}


def test_a_decision_is_made_once(tmp_path: Path) -> None:
    search = Search(rungs=(3, 5))
    good, _, _, bad = study(tmp_path, [5.0, 6.0, 7.0, 8.0])
    assert good.read_rungs() == {}
    assert [decide(run, search, 3, 1, vocab_size=1000) for run in (good, bad)] == ["goes on", "stopped"]
    evidence, stopped = good.read_rungs()[3], bad.read_stopped() or Rung()
    assert stopped == replace(evidence, decision="stopped", value=8.0, rank=4, at=stopped.at)
    assert (evidence.rank, evidence.of, evidence.goes_on, evidence.cut) == (1, 4, 2, 6.0)
    for run in study(tmp_path, [9.0, 6.0, 7.0, 1.0]):  # others are better by now
        run.read_metrics()
    assert [decide(run, search, 3, 1, vocab_size=1000) for run in (good, bad)] == ["goes on", "stopped"]
    bad.attempt_dir(1).mkdir(parents=True)
    assert bad.observe().state == "stopped"
    assert bad.observe().reason == "stopped at epoch 3: 4th of 4, keeps 2"
    assert (good.observe().state, bad.observe().epoch, bad.observe().kind) == ("pending", 2, None)


def test_a_run_that_a_user_lets_go_on_is_not_stopped_there_again(tmp_path: Path) -> None:
    search = Search(rungs=(3, 5))
    runs = study(tmp_path, [5.0, 6.0, 7.0, 8.0])
    bad = runs[3]
    assert decide(bad, search, 3, 1, vocab_size=1000) == "stopped"
    bad.attempt_dir(1).mkdir(parents=True)
    launch_again(bad)
    assert (bad.observe().state, decide(bad, search, 3, 2, vocab_size=1000)) == ("pending", "goes on")
    assert bad.read_rungs()[3].decision == "stopped", "what was decided stays on record"
    for run in runs:
        write_epochs(run, [9.0, 8.0, 7.0, 6.0, float(run.id[-1])])
    assert decide(bad, search, 5, 2, vocab_size=1000) == "stopped", "at the next rung it is compared like any other"


def test_the_rule_goes_through_an_environment_variable() -> None:
    search = Search(rungs=(3, 9), keep=0.5, within=("model.arch", "optim.lr"))
    assert Search.from_text(search.to_text()) == search
    assert Search.from_text("") is None
    for text in ("{", "[]", '{"rungs": [3], "rate": 2}', "3"):
        with pytest.raises(UsageError, match=r"SEQLM_SEARCH: expected the \[search\] table as JSON, got "):
            Search.from_text(text)


@pytest.mark.parametrize(
    ("metric", "value", "decision"),
    [
        ("val_ppl", 1.5e15, "stopped"),
        ("val_ppl", 1000.5, "stopped"),
        ("val_ppl", 1000.0, "goes on"),
        ("train_ppl", 1001.0, "stopped"),
        ("val_ppl", None, "stopped"),
        ("val_loss", math.log(1000) + 0.01, "stopped"),
        ("val_loss", math.log(1000) - 0.01, "goes on"),
    ],
)
def test_a_run_that_is_worse_than_guessing_is_stopped_even_if_it_is_the_first_at_the_rung(
    tmp_path: Path, metric: Any, value: float | None, decision: str
) -> None:
    run = make_run(tmp_path / "r-0000000a", make_config(epochs=8))
    write_json_lines(run.metrics_file, [{"epoch": 2, "val_ppl": 5.0, metric: value}])
    assert decide(run, Search(rungs=(3,), metric=metric, min_runs=9), 3, 1, vocab_size=1000) == decision
    run.attempt_dir(1).mkdir(parents=True)
    seen = run.observe()
    assert seen.state == ("stopped" if decision == "stopped" else "pending")
    if decision == "stopped":
        assert "guessing" in str(seen.reason)


def test_without_the_key_one_of_three_goes_on() -> None:
    search = Search(rungs=(1,))
    good = [goes_on(value, [1.0, 2.0, 3.0], keep=search.keep, min_runs=search.min_runs) for value in (1.0, 2.0, 3.0)]
    assert good == [True, False, False]


def test_a_decision_reads_the_decisions_of_others_and_the_metrics_of_those_that_have_none(tmp_path: Path) -> None:
    search = Search(rungs=(3,), within=("model.arch",))
    runs = study(tmp_path, [5.0, 6.0, None, 8.0, 9.0])
    gru = make_run(tmp_path / "g-0000000a", make_config("gru", epochs=8))
    write_epochs(gru, [9.0, 8.0, 1.0])
    decided = [*runs[1:4], gru]
    for run in decided:
        decide(run, search, 3, 1, vocab_size=1000)
        run.metrics_file.unlink()  # nobody reads it
        run.config_file.write_text("{")
    runs[3].rung_file(3).write_text("{")
    found = values_at(runs[0], search, 3)
    assert found == {runs[0].id: 5.0, runs[1].id: 6.0, runs[2].id: INF, runs[4].id: 9.0}


def test_a_decision_by_another_rule_says_nothing(tmp_path: Path) -> None:
    first, second = study(tmp_path, [5.0, 6.0])
    write_json_lines(second.metrics_file, [{"epoch": 2, "val_ppl": 6.0, "train_ppl": 7.0}])
    decide(second, Search(rungs=(3,)), 3, 1, vocab_size=1000)
    for run in (first, second):
        write_json_lines(run.metrics_file, [{"epoch": 2, "val_ppl": 4.0, "train_ppl": 7.0}])
    assert values_at(first, Search(rungs=(3,)), 3)[second.id] == 6.0
    assert values_at(first, Search(rungs=(3,), within=("model.arch",)), 3)[second.id] == 4.0
    assert values_at(first, Search(rungs=(3,), metric="train_ppl"), 3)[second.id] == 7.0
