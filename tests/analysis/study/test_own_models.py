"""A user's own models in a report: each file and class is an architecture with a name and a colour of its own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from analysis import open_study
from analysis.plots import look, palette
from analysis.sections.behaviour import behaviour_section, behaviour_table
from analysis.study import units
from analysis.study.columns import as_columns, forget_single_digests
from analysis.study.examined import examined_runs
from analysis.study.pairs import pairs_of
from analysis.study.settings import settings_of
from analysis.study.study import load_study
from seqlm.architectures import CustomConfig
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests.analysis.behaviour_made_up import add_behaviour
from tests.analysis.synthetic import make_run


@pytest.fixture(autouse=True)
def _own_models_of_the_test_alone() -> Iterator[None]:
    yield
    units.set_own_models({})


def own_run(folder: Path, order: int, source: str, *, sha256: str = "a" * 64, **arguments: object) -> RunDirectory:
    """A finished run of ``make_run`` whose model is one's own."""
    run = make_run(folder, order, epochs=2)
    model = CustomConfig(arch="custom", source=source, arguments=arguments, sha256=sha256)  # type: ignore[arg-type]
    run.config_file.unlink()
    config = replace(load_config(folder, order), model=model)
    write_json(run.config_file, config.to_dict())
    return run


def load_config(folder: Path, order: int):  # type: ignore[no-untyped-def]
    """The configuration that ``make_run`` gives to a run."""
    return make_run(folder.parent / "plain", order, epochs=2).read_config()


def test_arguments_share_the_columns_of_keys_with_their_names() -> None:
    columns = as_columns(
        {
            "model.arch": "custom",
            "model.source": "lstm.py:LSTM",
            "model.arguments.hidden_size": 8,
            "model.arguments.peepholes": True,
            "model.arguments.arch": "x",
            "model.files": ("cells.py",),
            "model.sha256": "ab",
            "seed": 1,
        }
    )
    assert columns == {
        "model.arch": "lstm.py:LSTM",
        "model.hidden_size": 8,
        "model.arguments": "arch = x, peepholes = true",
        "model.sha256": "ab",
        "seed": 1,
    }


def test_a_digest_stays_where_a_study_has_two_versions_of_a_model() -> None:
    configs = [
        {"model.arch": arch, "model.sha256": sha} for arch, sha in (("a.py:A", "1"), ("a.py:A", "2"), ("b", "3"))
    ]
    forget_single_digests(configs)
    assert [config.get("model.sha256") for config in configs] == ["1", "2", None]


def test_names_in_print_are_labels_or_classes_and_tell_models_apart() -> None:
    keys = ["gru", "a.py:Net", "b.py:Net", "c.py:GRU", None, "d.py:D", "e.py:E"]
    assert units.names_in_print(keys, {"d.py:D": "deep"}) == {
        "a.py:Net": "Net (a.py:Net)",
        "b.py:Net": "Net (b.py:Net)",
        "c.py:GRU": "GRU (c.py:GRU)",
        "d.py:D": "deep",
        "e.py:E": "E",
    }


def test_each_own_model_has_a_colour_until_the_palette_ends(tmp_path: Path) -> None:
    for number in range(5):
        own_run(tmp_path / "study", number, f"m.py:M{number}", hidden_size=8)
    study = load_study(tmp_path / "study")
    assert study.runs["arch"].map(units.architecture).tolist() == ["M0", "M1", "M2", "M3", "M4"]
    colours = [look.colour_of(arch) for arch in study.runs["arch"]]
    assert colours == [*palette.PALETTE[3:], palette.UNKNOWN_COLOUR]
    assert set(study.runs["model.hidden_size"]) == {8}


@pytest.mark.slow
def test_each_study_of_a_notebook_has_its_own_names_and_colours(tmp_path: Path) -> None:
    for name in ("one", "two"):
        own_run(tmp_path / name, 0, f"{name}.py:{name.title()}")
    one, two = open_study(tmp_path / "one"), open_study(tmp_path / "two")
    for study, label in ((one, "One"), (two, "Two"), (one, "One")):
        (line,) = study.plot_curves().get_lines()
        assert line.get_color() == palette.PALETTE[3]
        axes = study.plot_times()
        assert label in [text.get_text() for text in axes.get_legend().get_texts()]
        plt.close("all")


def test_two_versions_of_a_file_are_two_settings(tmp_path: Path) -> None:
    for number, sha256 in enumerate(("a" * 64, "b" * 64)):
        config = load_config(tmp_path / "study", 0)
        model = CustomConfig(arch="custom", source="m.py:M", sha256=sha256)
        run = make_run(tmp_path / "study", number, epochs=2)
        write_json(run.config_file, replace(config, model=model).to_dict())
    study = load_study(tmp_path / "study")
    assert study.runs["setting"].nunique() == 2
    assert [pair.key for pair in pairs_of(settings_of(study.runs))] == ["model.sha256"]


def test_a_model_without_hidden_states_has_no_gradients_and_the_report_says_so(tmp_path: Path) -> None:
    run = own_run(tmp_path / "study", 0, "m.py:M", hidden_size=8)
    add_behaviour(run, gradient_norms=None)
    study = load_study(tmp_path / "study")
    runs = examined_runs(study)
    assert [chart.name for chart in behaviour_section(study).charts] == ["loss-per-step"]
    assert len(behaviour_table(runs).rows) == len(runs) == 1
    assert not open_study(tmp_path / "study").plot_gradient_norms().get_lines()
    texts = [block.text for block in behaviour_section(study).blocks if hasattr(block, "text")]
    assert any(text.startswith("No gradient norms: the model names no hidden_states") for text in texts), texts
