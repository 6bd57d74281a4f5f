"""A user's own model in a manifest: its keys, its files, and its place in the identity of a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.manifests.filters import facts_of_spec, select
from jobs.manifests.load import Manifest
from jobs.plan.proposals import Space, setting_of
from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from tests.jobs.manifests.test_json_schema import errors, read
from tests.jobs.manifests.test_manifest import BASE, load, names, problems
from tests.seqlm.check_model.faulty import write_model

OWN = """
[[grid]]
model.arch = "custom"
model.source = "model.py:Model"
model.arguments = { hidden_size = [4, 8], leak = 0.5 }
optim.optimizer = "adam"
"""
RNN = '\n[[run]]\nmodel.arch = "rnn"\noptim.optimizer = "sgd"\n'


def models(manifest: Manifest) -> list[CustomConfig]:
    return [run.config.model for run in manifest.runs if isinstance(run.config.model, CustomConfig)]


def test_lists_of_arguments_multiply_and_files_travel_in_the_identity(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    manifest = load(tmp_path, BASE + OWN + RNN)
    assert names(manifest) == ["Model-adam-hidden4", "Model-adam-hidden8", "rnn-sgd"]
    first, second = models(manifest)
    assert first.arguments == {"hidden_size": 4, "leak": 0.5}
    assert first.sha256 == second.sha256
    files = manifest.runs[0].model_files
    assert files is not None
    assert dict(files.contents) == {"model.py": path.read_bytes()}
    prints = [run.fingerprint for run in manifest.runs]
    path.write_text(path.read_text() + "\n# edited\n")
    again = [run.fingerprint for run in load(tmp_path, BASE + OWN + RNN).runs]
    assert [one == other for one, other in zip(prints, again, strict=True)] == [False, False, True]


def test_a_configuration_with_arguments_survives_json(tmp_path: Path) -> None:
    write_model(tmp_path)
    text = BASE + OWN.replace("grid", "run").replace("[4, 8]", "[4, 8, true]")
    (run,) = load(tmp_path, text).runs
    assert run.config.by_key()["model.arguments.hidden_size"] == (4, 8, True), "in a [[run]] a list is a value"
    again = RunConfig.from_dict(run.config.to_dict())
    assert (again, hash(again), again.fingerprint()) == (run.config, hash(run.config), run.fingerprint)
    other = replace(run.config.model, arguments={**run.config.model.arguments, "leak": 1})
    same_number = replace(other, arguments={**other.arguments, "leak": 1.0})
    assert other != same_number, "1 and 1.0 have two fingerprints"
    assert RunConfig.from_dict({**run.config.to_dict(), "model": vars(same_number)}).model == same_number
    with pytest.raises(TypeError, match="cannot be changed"):
        run.config.to_dict()["model"]["arguments"]["leak"] = 2


def test_set_and_filters_reach_arguments(tmp_path: Path) -> None:
    write_model(tmp_path)
    manifest = load(tmp_path, BASE + OWN + RNN, "model.arguments.leak=0.25", "model.arguments={ depth = 2 }")
    assert models(manifest)[0].arguments == {"hidden_size": 4, "leak": 0.25, "depth": 2}

    def passing(text: str) -> list[str]:
        return [run.name for run in select(manifest.runs, [text], [], facts_of_spec)[0]]

    assert passing("model.arguments.leak<0.5 model.arguments.hidden_size=8") == ["Model-adam-hidden8"]
    assert passing("hidden_size=8") == ["Model-adam-hidden8", "rnn-sgd"], "a table has one column for both"
    assert passing("hidden_size>2 leak<0.5") == passing("leak<0.5") == ["Model-adam-hidden4", "Model-adam-hidden8"]
    assert passing("model.arguments.depth=2 arch=custom") == ["Model-adam-hidden4", "Model-adam-hidden8"]


def test_further_files_are_part_of_the_digest_and_do_not_multiply(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "cells.py").write_text("x = 1\n")
    one = OWN.replace("[4, 8]", "4")
    (alone,) = models(load(tmp_path, BASE + one))
    (both,) = models(load(tmp_path, BASE + one + 'model.files = ["cells.py"]\n'))
    assert both.files == ("cells.py",)
    assert alone.sha256 != both.sha256


def test_a_sample_draws_arguments_and_has_one_list_of_files(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "cells.py").write_text("x = 1\n")
    text = OWN.replace("[[grid]]", "[[sample]]\ncount = 3").replace("leak = 0.5", "leak = { uniform = [0.1, 0.9] }")
    manifest = load(tmp_path, BASE + text + 'model.files = ["cells.py"]\n')
    assert [model.files for model in models(manifest)] == [("cells.py",)] * 3
    assert len({model.arguments["leak"] for model in models(manifest)}) == 3
    space = Space.of(manifest.samples[0])
    for run in manifest.runs:
        values = run.config.by_key()
        assert space.drawn.keys() == {"model.arguments.hidden_size", "model.arguments.leak"}
        assert setting_of(space.config({key: values[key] for key in space.drawn}).by_key()) == setting_of(values)
    assert errors(read(tmp_path, BASE + text + 'model.files = ["cells.py"]\n', "study.toml")) == []
    (found,) = problems(tmp_path, BASE + text + 'model.files = [["cells.py"], []]\n')
    assert found.endswith('model.files: expected single values in the list, got [["cells.py"], []]')


def test_a_model_without_its_file_or_of_another_digest_gets_one_line(tmp_path: Path) -> None:
    assert problems(tmp_path, BASE + OWN) == [
        "study.toml: grid 1: model.source: model.py does not exist",
    ]
    write_model(tmp_path)
    (found,) = problems(tmp_path, BASE + OWN + 'model.sha256 = "00"\n')
    assert f"model.sha256: model.py in {tmp_path} changed: expected sha256 00, found " in found


def test_keys_of_an_own_model_do_not_apply_to_others(tmp_path: Path) -> None:
    assert problems(tmp_path, BASE + RNN + "model.arguments.leak = 1\n") == [
        'study.toml: run 1: model.arguments: applies to custom only, got arch = "rnn"'
    ]
