"""``seqlm.plan`` and ``seqlm.run``: as the commands of that name, in a script and in a notebook."""

import traceback
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import seqlm
from seqlm.errors import SeqlmError, error_text
from tests.commands import Ask
from tests.small_study import ROOT, STUB_WORKER, Study
from tests.waiting import DEADLINE_SECONDS


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return Study(tmp_path, stub=True, archs=("rnn", "gru"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, []),
        ({"only": "arch=gru"}, ["--only", "arch=gru"]),
        (
            {"only": ["arch=gru", "lr<1"], "exclude": "arch=rnn"},
            ["--only=arch=gru", "--only=lr<1", "--exclude=arch=rnn"],
        ),
        ({"changes": {"train.epochs": 3, "model.tied": False}}, ["--set=train.epochs=3", "--set=model.tied=false"]),
        (
            {"changes": {"data.level": "char", "optim.lr": 0.5}},
            ["--set=data.level=char", "--set=optim.lr=0.5"],
        ),
        ({"max_parallel": 1, "backend": "local"}, ["--max-parallel=1", "--backend=local"]),
        ({"runs_dir": Path("else where")}, ["--runs-dir=else where"]),
    ],
)
def test_a_plan_is_that_of_the_command(study: Study, ask: Ask, given: dict[str, Any], words: list[str]) -> None:
    code, document, _ = ask("plan", "small.toml", *words)
    assert code == 0, document
    table = seqlm.plan("small.toml", **given)
    wanted = [{key: run[key] for key in table} for run in document.pop("runs")]
    assert table.astype(object).where(table.notna(), None).to_dict("records") == wanted
    assert table.attrs == document


@pytest.mark.parametrize(
    ("manifest", "given", "words"),
    [
        ("smal.toml", {}, []),
        ("small.toml", {"only": "arch=gri"}, ["--only=arch=gri"]),
        ("small.toml", {"only": "optimizer=sgd"}, ["--only=optimizer=sgd"]),
        ("small.toml", {"changes": {"train.epochs": 0, "optim.lr": -1}}, ["--set=train.epochs=0", "--set=optim.lr=-1"]),
        ("small.toml", {"backend": "slrm"}, ["--backend=slrm"]),
        ("small.toml", {"max_parallel": 0}, ["--max-parallel=0"]),
        ("small.toml", {"data": "nowhere"}, ["--data=nowhere"]),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_mistake_is_an_error_with_the_lines_of_the_command_and_no_code_of_seqlm(
    study: Study,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    manifest: str,
    given: dict[str, Any],
    words: list[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["seqlm"])
    code, document, _ = ask(command, manifest, *words)
    with pytest.raises(SeqlmError) as found:
        getattr(seqlm, command)(manifest, **given)
    assert (error_text(found.value), found.value.exit_code) == (document["message"], code)
    assert not study.folder.joinpath("runs").exists()
    frames = traceback.extract_tb(found.value.__traceback__)
    assert len(frames) <= 2, "the caller, and the function that it called"


@pytest.mark.parametrize("value", [None, {"a": 1}, float("nan"), object()])
def test_a_change_that_is_no_value_of_a_manifest_is_refused_with_its_key(study: Study, value: Any) -> None:
    with pytest.raises(SeqlmError, match=r"^changes: train\.epochs: expected "):
        seqlm.plan("small.toml", changes={"train.epochs": value})


def cell_outputs(cell: Any, kind: str) -> str:
    """Return the texts of the outputs of a cell: of a stream, such as ``stderr``, or of its error."""
    outputs = [output for output in cell.get("outputs", ()) if kind in (output.get("name"), output["output_type"])]
    return "".join(output["text"] if "text" in output else "\n".join(output["traceback"]) for output in outputs)


@pytest.mark.process
def test_a_notebook_trains_what_is_not_done_and_shows_a_bar_and_mistakes_in_few_lines(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(study.folder / variable.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    stub = f"StudySettings.__init__.__kwdefaults__['worker'] = ({str(STUB_WORKER)!r},)"
    sources = [
        f"import seqlm\nfrom jobs.launch.job import StudySettings\n{stub}",
        "seqlm.run('small.toml', only='arch=gru')",
        "seqlm.run('small.toml')",
        "seqlm.run('small.toml').runs['state'].to_list()",
        "seqlm.run('small.tml')",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, timeout=DEADLINE_SECONDS, resources={"metadata": {"path": "."}})
    client.allow_errors = True
    client.execute()
    setup, first, second, third, wrong = notebook.cells
    assert not cell_outputs(setup, "error")
    for cell, runs in ((first, 1), (second, 2)):
        assert not cell_outputs(cell, "error")
        assert f"{2 * runs}.0/{2 * runs} epochs" in cell_outputs(cell, "stderr")
        assert f"{runs} done]" in cell_outputs(cell, "stderr").splitlines()[-1]
    assert "1 of 2 runs to do" in cell_outputs(second, "stderr")
    assert "0 of 2 runs to do" in cell_outputs(third, "stderr")
    assert third.outputs[-1]["data"]["text/plain"] == "['done', 'done']"
    assert study.each("state") == ["done", "done"]
    assert "did you mean" in cell_outputs(wrong, "error")
    assert "launching.py" not in cell_outputs(wrong, "error")
    assert len(cell_outputs(wrong, "error").splitlines()) < 20
