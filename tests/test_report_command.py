"""``launch.py report`` on made-up studies."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

import launch
from seqlm.locks import exclusive_lock
from tests.analysis.synthetic import make_run

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.mark.slow
def test_several_studies_make_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for study in ("one", "two"):
        make_run(tmp_path / study, 0, epochs=2, provenance={"study": study})
    assert launch.main(["report", "one", "two", "--runs-dir", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == "writing the report of one, two", "before what takes time"
    data = json.loads(out)["data"]
    assert (data["studies"], data["report"]) == (["one", "two"], str(tmp_path / "report" / "index.html"))
    assert "one + two" in Path(data["report"]).read_text("utf-8")


@pytest.mark.slow
def test_a_watched_report_is_written_at_each_change_and_is_quiet_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "study", 0, epochs=2)
    going = make_run(tmp_path / "study", 3, epochs=1, done=False)
    page = tmp_path / "study" / "report" / "index.html"
    seen: list[tuple[bool, int]] = []
    with contextlib.ExitStack() as worker:
        worker.enter_context(exclusive_lock(going.worker_lock_file, "busy"))

        def time_passes(seconds: float) -> None:
            seen.append(('http-equiv="refresh"' in page.read_text("utf-8"), page.stat().st_mtime_ns))
            if len(seen) == 3:
                worker.close()
                make_run(tmp_path / "study", 3, epochs=2)
            elif len(seen) == 1:
                make_run(tmp_path / "study", 3, epochs=2, done=False)

        monkeypatch.setattr("jobs.cli.launching.time.sleep", time_passes)
        assert launch.main(["report", str(tmp_path / "study"), "--watch"]) == 0
    assert [refreshing for refreshing, _ in seen] == [True, True, True]
    times = [written for _, written in seen]
    assert times[0] < times[1] == times[2] < page.stat().st_mtime_ns
    assert "refresh" not in page.read_text("utf-8").partition("<body>")[0]
    printed = capsys.readouterr()
    assert "index.html: 1 of 2 runs done" in printed.err
    assert printed.out.strip() == str(page)


def test_watching_and_one_json_document_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["report", "any", "--watch", "--json"]) == 2
    assert "use one of them" in capsys.readouterr().err


def test_a_folder_that_no_report_may_replace_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "study", 0, epochs=2)
    monkeypatch.setattr("jobs.cli.launching.compute_missing_behaviour", lambda *_, **__: pytest.fail("computed"))
    assert launch.main(["report", str(tmp_path / "study"), "--output", str(tmp_path)]) == 2
    assert "is no report, so it is not replaced" in capsys.readouterr().err
