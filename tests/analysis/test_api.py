import doctest
import math
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import Study, open_study
from analysis.study.columns import TABLES
from seqlm.errors import CheckpointError, UsageError
from seqlm.files import read_json, write_json, write_json_lines
from tests import commands, hostile
from tests.analysis.example_study import make_examples, make_widths
from tests.analysis.hand_made import add_run
from tests.analysis.synthetic import make_study

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "python.md"
FIGURES = {
    "plot_curves": {},
    "plot_times": {},
    "plot_effects": {"key": "model.hidden_size"},
    "plot_step_losses": {},
    "plot_gradient_norms": {},
}


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "runs"
    make_examples(folder)
    make_widths(folder)
    return folder


@pytest.fixture(scope="module")
def study(runs_dir: Path) -> Study:
    return open_study(runs_dir / "optimizers")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    pyplot.switch_backend("agg")
    pyplot.close("all")  # of other tests of this process
    yield
    pyplot.close("all")


def test_a_study_below_the_runs_folder_may_be_named(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLM_RUNS", str(runs_dir))
    assert open_study(["optimizers", "widths"]).name == "optimizers + widths"


# -- tables ------------------------------------------------------------------------------------------------------------


def test_every_column_is_documented_in_its_order_and_there_without_a_result(study: Study, tmp_path: Path) -> None:
    add_run(tmp_path, 0, "waits", "gru", "adam", [], done=False, epochs=3)
    waiting = open_study(tmp_path)
    for table, columns in TABLES.items():
        some, none = (
            one.steps(one.runs["id"].iloc[0]) if table == "steps" else getattr(one, table) for one in (study, waiting)
        )
        assert list(some.columns) == list(study.columns(table).index) == list(columns)
        assert all(meaning.text for meaning in columns.values())
        assert list(none.columns) == list(columns)
        assert len(none) == (1 if table == "runs" else 0)


def test_the_steps_of_a_run_are_those_of_its_trace_with_their_place_and_learning_rate(tmp_path: Path) -> None:
    run = add_run(tmp_path, 1, "rnn-sgd", "rnn", "sgd", [], done=False, epochs=3)
    write_json_lines(run.metrics_file, [{"epoch": 0, "steps": 2, "val_ppl": 90.0, "val_loss": 4.5}])
    rows = [(4.0, 1.0, 0.5), (3.0, 2.0, 0.5), (math.nan, math.inf, 0.5)]
    run.trace_file.write_bytes(b"".join(struct.pack("<3f", *row) for row in rows))
    add_run(tmp_path, 2, "waits", "gru", "adam", [], done=False, epochs=3)
    study = open_study(tmp_path)
    assert [text.get_text() for text in study.plot_steps("waits").texts] == ["The run has no trace of its steps"]
    steps = study.steps("rnn-sgd")
    assert steps[["epoch", "step"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0]]
    assert steps["loss"].tolist()[:2] == [4.0, 3.0]
    assert set(steps["lr"]) == {run.read_config().optim.lr}
    (line,) = study.plot_steps("rnn-sgd", value="grad_norm").lines
    assert line.get_xydata()[:2].tolist() == [[0.5, 1.0], [1.0, 2.0]]  # type: ignore[index]
    with pytest.raises(UsageError, match=r"value: expected one of epoch, .*, got 'losses'"):
        study.plot_steps("rnn-sgd", value="losses")


def test_results_are_the_means_over_seeds_with_an_interval(study: Study) -> None:
    results = study.results.set_index("number")
    assert results["runs"].to_dict() == {1: (1,), 2: (2,), 4: (4,), 5: (5, 6)}
    seeds = results.loc[5]
    assert seeds["name"] == "transformer"
    assert seeds["val_ppl"] == pytest.approx((120.0 * 124.0) ** 0.5)
    assert seeds["test_ppl"] == seeds["val_ppl"]  # the made-up test perplexity is the best validation perplexity
    assert seeds["val_ppl_low"] < 120.0 < 124.0 < seeds["val_ppl_high"]
    assert pd.isna(results.loc[4, "val_ppl_low"])
    assert results.loc[4, "seconds_to_best"] == 36.0


def test_a_missing_value_of_one_seed_leaves_the_mean_missing(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = add_run(tmp_path, seed, f"gru-seed{seed}", "gru", "adam", [100.0], seed=seed)
    write_json(
        run.result_file, {key: value for key, value in (read_json(run.result_file) or {}).items() if key != "test_ppl"}
    )
    (row,) = open_study(tmp_path).results.to_dict("records")
    assert pd.isna(row["test_ppl"])
    assert row["train_ppl"] == pytest.approx(50.0)


def test_a_table_that_does_not_exist_is_refused_with_the_names_of_those_that_do(study: Study) -> None:
    with pytest.raises(UsageError, match=r"table: expected one of runs, epochs, .*, got 'losses'"):
        study.columns("losses")


# -- studies that are not whole ----------------------------------------------------------------------------------------


def test_a_damaged_study_opens_with_warnings(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study")
    damaged = next(folder.glob("gru-adam-*"))
    (damaged / "config.json").write_text("{")
    study = open_study(folder)
    assert "config.json" in study.warnings[0]
    assert study.runs.set_index("name")["state"]["gru-adam"] == "failed"
    assert "warning" in study._repr_html_()
    for name in ("plot_curves", "plot_times"):
        assert isinstance(getattr(study, name)(), Axes)


def test_no_folder_or_an_empty_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="paths: expected the folder of at least one study, got none"):
        open_study([])
    with pytest.raises(UsageError, match="holds no runs"):
        open_study(tmp_path)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_name_and_id_and_as_the_best(study: Study) -> None:
    run = study.run("gru-adam")
    assert run.number == study.run("best").number == study.run(run.id).number == study.run(run.id[:-3]).number == 4
    assert run.config.model.arch == "gru"
    assert run.metrics["val_ppl"].to_list() == [220.0, 130.0, 110.0]
    assert run.checkpoint == run.directory / "checkpoints" / "best.pt"


def test_a_run_without_epochs_has_empty_metrics_and_no_checkpoint(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "waits", "gru", "adam", [], done=False, epochs=3)
    run = open_study(tmp_path).run("waits")
    assert run.metrics.empty
    assert run.checkpoint is None
    with pytest.raises(CheckpointError, match="best\\.pt is missing"):
        run.load_model()


def test_an_unknown_run_is_refused_with_the_nearest_name(study: Study) -> None:
    with pytest.raises(UsageError, match='has no run "gru-adma"; did you mean "gru-adam"'):
        study.run("gru-adma")
    with pytest.raises(UsageError, match="names and ids"):
        study.run("4")
    with pytest.raises(UsageError, match="names several runs"):
        study.run("gru*")


def test_a_name_of_several_runs_is_refused_with_their_ids(runs_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(runs_dir / "widths", tmp_path / "again")
    both = open_study([runs_dir / "widths", tmp_path / "again"])
    with pytest.raises(UsageError, match=r"use an id: widths/rnn-h32-\w+, widths \(2\)/rnn-h32-\w+"):
        both.run("rnn-h32")


def test_the_model_of_the_best_epoch_predicts(study: Study) -> None:
    import torch

    run = study.run("gru-adam")
    model, vocabulary = run.load_model(), run.load_vocabulary()
    assert not model.training
    with torch.no_grad():
        logits, _ = model(torch.tensor([[0], [3]]), model.initial_state(1))
    assert logits.shape == (2, 1, len(vocabulary))
    drawn = model.generate(torch.tensor([0]), model.initial_state(1), 5)
    assert all(0 <= token < len(vocabulary) for token in drawn.flatten().tolist())


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_draws_on_the_axes_it_is_given_or_on_some_that_a_notebook_shows(study: Study, name: str) -> None:
    axes = Figure().add_subplot()
    assert getattr(study, name)(ax=axes, **FIGURES[name]) is axes
    assert axes.get_xlabel()
    assert axes.lines or axes.patches or axes.collections
    assert not pyplot.get_fignums()
    made = getattr(study, name)(**FIGURES[name])
    assert made.get_figure() is pyplot.gcf()
    assert made.get_legend() is not None


def test_a_figure_without_data_says_so(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "waits", "gru", "adam", [], done=False, epochs=3)
    waiting = open_study(tmp_path)
    for name in FIGURES.keys() - {"plot_effects"}:
        (text,) = getattr(waiting, name)().texts
        assert text.get_text().startswith("No "), name


def test_curves_of_chosen_runs_and_of_the_mean_over_seeds(study: Study) -> None:
    def labels(axes: Axes) -> list[str]:
        legend = axes.get_legend()
        assert legend is not None
        return [text.get_text() for text in legend.get_texts()]

    assert labels(study.plot_curves(runs=["gru-adam", "rnn-ad*m"])) == ["1  rnn-adam", "4  gru-adam"]
    assert "5/6  transformer" in labels(study.plot_curves(mean_of_seeds=True))
    assert study.plot_curves(progress="time").get_xlabel() == "Wall-clock time (seconds)"


def test_curves_on_a_shared_axis_have_room_for_those_that_were_there(study: Study) -> None:
    first, second = Figure().subplots(1, 2, sharey=True)
    study.plot_curves(first, runs=["gru-adam"])
    study.plot_curves(second, runs=["gru-sgd"])
    low, high = first.get_ylim()
    assert low < 110.0 < 400.0 < high


def test_a_key_is_named_by_its_last_word_as_in_a_filter(study: Study) -> None:
    assert study.plot_effects("hidden_size").get_xlabel() == "model.hidden_size"


def test_a_key_that_does_not_vary_is_refused_with_those_that_do(study: Study) -> None:
    with pytest.raises(UsageError, match=r"got 'train\.batch_size'") as error:
        study.plot_effects("train.batch_size")
    assert "(model.hidden_size" in str(error.value)


# -- without torch, and in the docs ------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_study_opens_and_draws_without_torch_next_to_modules_of_the_names_of_ours(
    runs_dir: Path, tmp_path: Path
) -> None:
    hostile.put_modules(tmp_path, hostile.OURS)
    program = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "import seqlm\n"
        "assert 'open_study' in dir(seqlm)\n"
        "assert 'pandas' not in sys.modules\n"
        f"study = seqlm.open_study({str(runs_dir / 'optimizers')!r})\n"
        "study.results, study.samples, study._repr_html_(), study.run('gru-adam').config, study.plot_curves()\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "MPLBACKEND": "agg"}
    commands.run([sys.executable, "-c", program], cold=True, env=environment, cwd=tmp_path, check=True)


@pytest.mark.slow
def test_every_example_of_the_page_of_the_api_is_true(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs_dir.parent)
    test = doctest.DocTestParser().get_doctest(_examples(), {}, PAGE.name, str(PAGE), 0)
    assert len(test.examples) >= 25
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert not report, "".join(report)


def _examples() -> str:
    text = PAGE.read_text("utf-8")
    return "\n".join(part.split("```")[0] for part in text.split("```python\n")[1:])
