"""``launch.py report`` on made-up studies."""

import json
from pathlib import Path

import pytest

import launch
from tests.analysis.synthetic import make_run

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.mark.slow
def test_several_studies_make_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for study in ("one", "two"):
        make_run(tmp_path / study, 0, epochs=2, provenance={"study": study})
    assert launch.main(["report", "one", "two", "--runs-dir", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    data = json.loads(out)["data"]
    assert (data["studies"], data["report"]) == (["one", "two"], str(tmp_path / "report" / "index.html"))
    assert "one + two" in Path(data["report"]).read_text("utf-8")


def test_a_folder_that_no_report_may_replace_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "study", 0, epochs=2)
    monkeypatch.setattr("jobs.cli.launching.compute_missing_behaviour", lambda *_, **__: pytest.fail("computed"))
    assert launch.main(["report", str(tmp_path / "study"), "--output", str(tmp_path)]) == 2
    assert "is no report, so it is not replaced" in capsys.readouterr().err
