import json
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.analysis.example_study import make_examples
from tests.waiting import DEADLINE_SECONDS

NOTEBOOK = Path(__file__).parents[2] / "examples" / "report.ipynb"


def test_the_stored_notebook_has_no_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert not [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.process
def test_the_notebook_runs_and_shows_tables_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    make_examples(tmp_path / "runs", "quickstart")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=DEADLINE_SECONDS, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert "5 of 7 runs done" in shown[0]["text/html"]
    assert sum("image/png" in data for data in shown) == 6
    assert sum("text/html" in data for data in shown) == 6
    assert shown[-1]["text/plain"].startswith("'the ")
