import contextlib
import itertools
import shutil
import time
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import jobs.cli.view
import launch
from jobs import terminal
from jobs.cli.studies import summary
from jobs.cli.view import STATES, StudyView, Watcher, changes, played, table_lines, tell_skipped, watch
from jobs.spec import RunSpec
from jobs.study.folder import find_study, launching, write_queue
from jobs.study.scheduler import Views
from seqlm.files import write_json, write_json_lines
from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory
from seqlm.state import State
from slurm import scheduler
from tests.calls import counted
from tests.commands import ask
from tests.facts import fail, make_folder, owned, stop
from tests.fakes import make_planned
from tests.jobs.cli.test_live import shown
from tests.seqlm.training.studies import make_config
from tests.slurm_jobs import write_jobs

REASON = "stopped at epoch 2: 5th of 12, keeps 4"


@pytest.fixture
def stopped(tmp_path: Path) -> RunDirectory:
    run = add(tmp_path / "s", "one")
    trained(run, 2)
    stop(run, {"rung": 2, "rank": 5, "of": 12, "goes_on": 4})
    return run


def test_every_state_has_its_place_and_its_color() -> None:
    assert set(STATES) == set(typing.get_args(State))
    assert set(terminal.STATE_COLORS.values()) <= set(terminal.CODES)


@pytest.mark.usefixtures("stopped")
def test_status_watcher_list_and_live_table_show_it_as_over(tmp_path: Path) -> None:
    (run,) = ask(["status", "s", "--runs-dir", "."], folder=tmp_path, env={})["runs"]
    assert (run["state"], run["epochs_done"], run["epochs_total"], run["reason"]) == ("stopped", 2, 4, REASON)
    study = Watcher(tmp_path / "s").look()
    assert study.is_over
    assert study.summary == "s: 1 stopped"
    assert summary(tmp_path / "s", Views())["states"] == {"stopped": 1}
    assert any("stopped" in line and "180.00" in line for line in shown(study, 120))
    (line,) = changes(StudyView(name="s", runs=[{**study.runs[0], "state": "running"}]), study)
    assert line.endswith(REASON)


def test_a_launch_names_the_first_run_in_each_state_that_it_skips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table at its end has the reasons of all."""
    config = add(tmp_path / "s", "one").read_config()
    states: list[State] = ["failed", "failed", "stopped", "failed"]
    planned = [
        replace(make_planned(RunSpec(name=f"run{number}", config=config)), action="skip", reason=f"because {number}")
        for number in range(4)
    ]
    planned = [
        replace(item, observation=replace(item.observation, state=state))
        for item, state in zip(planned, states, strict=True)
    ]
    tell_skipped(planned)
    failed, stopped = capsys.readouterr().err.splitlines()
    assert failed == "skipped run0: because 0; and 2 more failed (--verbose names them)"
    assert stopped == "skipped run2: because 2"
    terminal.configure(verbose=True)
    tell_skipped(planned)
    terminal.configure()
    assert len(capsys.readouterr().err.splitlines()) == 4


STEPS = 50


def add(study: Path, name: str, arch: str = "rnn", order: int = 0, **changes: Any) -> RunDirectory:
    config = make_config(arch, seed=order, **{"epochs": 4, **changes})
    return make_folder(study, RunSpec(name=name, config=config, order=order))


def trained(run: RunDirectory, epochs: int, *, seconds: float = 10.0) -> None:
    records = [
        {
            "epoch": epoch,
            "train_ppl": 200.0 - epoch,
            "val_ppl": 180.0 + (epoch - 1) ** 2,  # best in epoch 1
            "epoch_seconds": seconds,
            "train_tokens_per_second": 1000.0,
        }
        for epoch in range(epochs)
    ]
    write_json_lines(run.metrics_file, records)


@contextlib.contextmanager
def running(run: RunDirectory, *, attempt: int = 1) -> Iterator[None]:
    run.attempt_dir(attempt).mkdir(parents=True, exist_ok=True)
    with owned(run):
        yield


def at_step(run: RunDirectory, epoch: int, step: int, attempt: int = 1) -> None:
    record = {
        "epoch": epoch,
        "step": step,
        "steps": STEPS,
        "train_loss": 5.0,
        "train_ppl": 148.4,
        "train_tokens_per_second": 500.0,
        "phase": "train",
    }
    write_json(run.progress_file(attempt), record)


def seen(study: Path, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(run[key] for key in keys) for run in Watcher(study).look().runs]


def test_a_running_run_is_seen_within_its_epoch(tmp_path: Path) -> None:
    run = add(tmp_path / "s", "one")
    trained(run, 2)
    with running(run):
        at_step(run, epoch=2, step=25)
        assert seen(tmp_path / "s", "state", "epochs_done", "share") == [("running", 2, 0.5)]
        assert seen(tmp_path / "s", "train_ppl", "val_ppl", "best_val_ppl") == [(148.4, 180, 180)]
        assert seen(tmp_path / "s", "tokens_per_second", "seconds_left") == [(500, 15)], "one and a half epochs of 10 s"


def test_progress_of_an_epoch_that_is_over_or_of_an_earlier_attempt_is_not_shown(tmp_path: Path) -> None:
    run = add(tmp_path / "s", "one")
    trained(run, 2)
    with running(run):
        at_step(run, epoch=1, step=50)
        assert seen(tmp_path / "s", "share", "train_ppl", "tokens_per_second") == [(None, 199, 1000)]
    at_step(run, epoch=2, step=40)
    with running(run, attempt=2):
        assert seen(tmp_path / "s", "share") == [(None,)]


def test_an_attempt_that_never_got_the_run_hides_no_progress(tmp_path: Path) -> None:
    run = add(tmp_path / "s", "one")
    trained(run, 2)
    with running(run):
        at_step(run, epoch=2, step=25)
        run.attempt_dir(2).mkdir()
        assert seen(tmp_path / "s", "state", "share", "train_ppl") == [("running", 0.5, 148.4)]


def test_status_has_the_speed_the_time_left_and_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = add(tmp_path / "s", "one"), add(tmp_path / "s", "two", "gru", order=1)
    trained(first, 2)
    trained(second, 4)
    write_json(second.result_file, {})
    words = ["status", "s", "--runs-dir", str(tmp_path)]
    with running(first):
        at_step(first, epoch=2, step=25)
        status = ask(words, folder=tmp_path, env={})
        launch.main(words)
    shown = capsys.readouterr().out
    assert "500" in shown
    assert "15 s" in shown
    one, two = status["runs"]
    assert (status["seconds_left"], one["seconds_left"], two["seconds_left"]) == (15, 15, None)
    assert (one["tokens_per_second"], two["tokens_per_second"]) == (500, None)
    assert [run["differs"] for run in status["runs"]] == [
        {"model.arch": "rnn", "seed": 0},
        {"model.arch": "gru", "seed": 1},
    ]


@pytest.mark.parametrize(("tokens_per_second", "is_slow"), [(40_000, True), (1_000, False), (None, False)])
def test_a_run_several_times_slower_than_its_launch_has_estimated_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens_per_second: float | None, is_slow: bool
) -> None:
    run = add(tmp_path / "s", "one")
    seconds = None if tokens_per_second is None else 4 * STEPS * 8 * 5 / tokens_per_second
    fingerprint = run.read_config().fingerprint()
    write_json(tmp_path / "s" / "study.json", {"estimates": {fingerprint: {"seconds": seconds, "epochs": 4}}})
    with running(run):
        at_step(run, epoch=0, step=25)
        launch.main(["status", "s", "--runs-dir", str(tmp_path)])
        study = Watcher(tmp_path / "s").look()
    assert ("one: several times slower" in capsys.readouterr().out) == is_slow
    assert any("500 of 40.0k tok/s" in line for line in table_lines(study, 120, 40)) == is_slow


def test_before_the_first_epoch_ends_the_time_left_comes_from_tokens_per_second(tmp_path: Path) -> None:
    run = add(tmp_path / "s", "one")
    with running(run):
        at_step(run, epoch=0, step=25)
        study = Watcher(tmp_path / "s").look()
    seconds_per_epoch = STEPS * 8 * 5 / 500  # windows of 5 tokens in 8 columns
    assert study.runs[0]["seconds_left"] == pytest.approx(3.5 * seconds_per_epoch)
    assert study.seconds_left == study.runs[0]["seconds_left"]


@pytest.mark.parametrize(("arch", "seconds", "total"), [("rnn", 40, 15 + 40 + 40), ("gru", None, None)])
def test_waiting_runs_have_their_reason_and_the_time_of_runs_like_them(
    tmp_path: Path, arch: str, seconds: float | None, total: float | None
) -> None:
    study_dir = tmp_path / "s"
    first, second, third = (add(study_dir, f"run{order}", arch if order else "rnn", order) for order in range(3))
    trained(first, 2)
    with launching(study_dir), running(first):
        at_step(first, epoch=2, step=25)
        write_queue(study_dir, {third.id: "needs 1 GPU, 0 free", second.id: "run2 is to start first"})
        study = Watcher(study_dir).look()
    assert [run["state"] for run in study.runs] == ["running", "queued", "queued"]
    assert study.runs[2]["reason"] == "needs 1 GPU, 0 free"
    assert [run["seconds_left"] for run in study.runs] == [15, seconds, seconds]
    assert study.seconds_left == total


def test_a_damaged_run_hides_no_other_and_a_run_that_vanishes_is_gone(tmp_path: Path) -> None:
    broken, good = add(tmp_path / "s", "a"), add(tmp_path / "s", "b", order=1)
    broken.config_file.write_text("{")
    good.progress_file(1).parent.mkdir(parents=True)
    good.progress_file(1).write_text('{"epoch": 0, "step": "x", "steps": 0, "train_ppl": "y"}')
    with running(good):
        states = {run["id"]: (run["state"], run["share"]) for run in Watcher(tmp_path / "s").look().runs}
    assert states == {broken.id: ("failed", None), good.id: ("running", None)}
    shutil.rmtree(broken.path)
    assert seen(tmp_path / "s", "id") == [(good.id,)]


def test_only_the_chosen_runs_are_watched(tmp_path: Path) -> None:
    first, _ = add(tmp_path / "s", "a"), add(tmp_path / "s", "b", order=1)
    assert [run["id"] for run in Watcher(tmp_path / "s", [first.id]).look().runs] == [first.id]


def test_a_run_that_is_launched_again_is_not_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add(tmp_path / "s", "a")
    fail(run, {"kind": "diverged", "message": "nan"})
    watcher = Watcher(tmp_path / "s")
    assert watcher.look().is_over
    folder = write_jobs(tmp_path / "s", {run.id: "12_0"}).folder
    monkeypatch.setattr(scheduler, "ask", lambda *command: f"12_0|PENDING|Priority|{folder}")
    again = watcher.look()
    assert ([one["state"] for one in again.runs], again.is_over) == (["queued"], False)


def with_result(run: RunDirectory) -> None:
    trained(run, 4)
    write_json(run.result_file, {"epochs": 4, "best_val_ppl": 180.0})


@pytest.mark.parametrize("on_slurm", [False, True])
def test_runs_that_are_over_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_slurm: bool) -> None:
    monkeypatch.setattr(scheduler, "ask", lambda *_: "")
    costs = []
    for number in (2, 40):
        study = tmp_path / str(number)
        live, *others = [add(study, f"r{order}", order=order) for order in range(number + 1)]
        if on_slurm:
            write_jobs(study, {run.id: f"7_{place}" for place, run in enumerate((live, *others))})
        for run in others:
            with_result(run)
        write_json(study / "study.json", {"policy": {"core_hours": 1}})
        watcher = Watcher(study)
        with running(live):
            watcher.look()
            with counted() as calls:
                view = watcher.look()
        assert Counter(run["state"] for run in view.runs) == {"running": 1, "done": number}
        costs.append(calls.total())
    assert costs[0] == costs[1] > 0


def test_a_run_that_was_done_is_read_again_after_a_request_and_gone_with_its_folder(tmp_path: Path) -> None:
    first, second = add(tmp_path / "s", "a"), add(tmp_path / "s", "b", order=1)
    for run in (first, second):
        with_result(run)
    watcher = Watcher(tmp_path / "s")
    assert [run["state"] for run in watcher.look().runs] == ["done", "done"]
    file_request(tmp_path / "s", RequestFile(kind="run", runs={first.id: Wanted(epochs=8)}))
    assert [run["state"] for run in watcher.look().runs] == ["pending", "done"]
    shutil.rmtree(second.path)
    assert [run["id"] for run in watcher.look().runs] == [first.id]


@pytest.mark.parametrize(("took", "pause"), [(0, 0.5), (0.3, 1.5)])
def test_a_large_study_is_looked_at_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: float, pause: float
) -> None:
    watcher = Watcher(tmp_path)
    monkeypatch.setattr(time, "monotonic", iter([0.0, took]).__next__)
    watcher.look()
    assert watcher.pause_seconds == pytest.approx(pause)


def test_changes_are_states_and_epochs_each_once(tmp_path: Path) -> None:
    first, second = add(tmp_path / "s", "a"), add(tmp_path / "s", "longer", order=1)
    watcher = Watcher(tmp_path / "s")
    looks: list[StudyView] = [watcher.look()]
    with running(first):
        trained(first, 1)
        looks.append(watcher.look())
        at_step(first, epoch=1, step=30)
        looks.append(watcher.look())
    trained(first, 4)
    write_json(first.result_file, {})
    fail(second, {"kind": "diverged", "message": "the loss is nan"})
    looks.append(watcher.look())
    lines = [changes(before, after) for before, after in itertools.pairwise(looks)]
    assert lines == [
        ["a       running  epoch 1/4  best val ppl 181.00"],
        [],
        [
            "a       done  epoch 4/4  best val ppl 180.00",
            "longer  failed  diverged: the loss is nan",
        ],
    ]


def test_watching_waits_for_runs_that_a_live_launcher_has_not_requested_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `run --no-wait`, which returns when the launcher has locked the study."""
    study_dir = tmp_path / "s"
    monkeypatch.setattr(jobs.cli.view, "LOOK_SECONDS", 0.01)
    made = add(tmp_path / "kept", "b")
    run = RunDirectory(study_dir / made.id)

    def requested() -> None:
        shutil.copytree(made.path, run.path)
        write_queue(study_dir, {run.id: "about to start"})

    steps: Iterator[Callable[[], object]] = iter(
        [
            lambda: None,
            requested,
            lambda: write_json(run.result_file, {}),
            lambda: pytest.fail("watched on, though every run was over"),
        ]
    )
    look = Watcher.look

    def stepped(self: Watcher) -> StudyView:
        next(steps)()
        return look(self)

    monkeypatch.setattr(Watcher, "look", stepped)
    with launching(study_dir):
        assert find_study("s", tmp_path) == study_dir, "status finds it before its first file"
        watch(Watcher(study_dir, [run.id]))
    assert capsys.readouterr().out.splitlines() == ["s: 1 queued", "b  done", "s: 1 done"]


def test_watching_waits_for_the_queue_of_a_launcher_that_tries_runs_again(tmp_path: Path) -> None:
    run = add(tmp_path / "s", "a")
    fail(run, {"kind": "diverged", "message": "nan"})
    write_queue(tmp_path / "s", {})  # of this process
    with launching(tmp_path / "s"):
        assert Watcher(tmp_path / "s").look().is_over
        write_json(tmp_path / "s" / "queue.json", {"launcher": {"pid": 1, "host": "here"}, "waiting": {}})
        assert not Watcher(tmp_path / "s").look().is_over, "the queue is that of an earlier launcher"


def test_watching_a_study_whose_launcher_has_ended_before_its_runs_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch(Watcher(tmp_path))
    assert capsys.readouterr().out == f"{tmp_path.name}: no runs\n"


@pytest.mark.parametrize(
    ("running", "waiting", "expected"),
    [
        ([10, 30], [], 30),
        ([10, 30], [15], 30),
        ([10, 30], [15, 10, 5], 35),
        ([5], [1, 2, 3], 11),
        ([10, None], [], None),
        ([10], [5, None], None),
        ([], [5], None),
        ([], [], None),
    ],
)
def test_as_many_runs_go_at_once_as_now_and_an_unknown_time_leaves_no_estimate(
    running: list[float | None], waiting: list[float | None], expected: float | None
) -> None:
    runs = [{"state": "running", "seconds_left": seconds} for seconds in running]
    runs += [{"state": "queued", "seconds_left": seconds} for seconds in waiting]
    assert StudyView(name="s", runs=runs).seconds_left == expected
    assert played([None], [5, 5])[0] == [None, None]


def test_the_slowest_run_is_named_if_it_is_several_times_slower_than_estimated() -> None:
    def going(name: str, speed: float, expected: float | None) -> dict[str, Any]:
        return {"name": name, "tokens_per_second": speed, "expected_tokens_per_second": expected}

    well = [going("well", 30_000, 40_000), going("unknown", 1, None)]
    assert StudyView(name="s", runs=well).slow_line is None
    line = StudyView(name="s", runs=[*well, going("slow", 9_000, 40_000), going("slower", 600, 40_000)]).slow_line
    assert line is not None
    assert "slower and 1 more" in line
    assert "600 of 40.0k tok/s" in line
