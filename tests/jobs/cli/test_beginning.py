"""``init`` and ``open``: a manifest that runs, and a report that is found."""

from pathlib import Path

import pytest

import launch
from seqlm.files import write_text
from tests.commands import ask
from tests.jobs.cli.test_watch import add


def test_a_new_manifest_can_be_planned_and_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ask(["init", "mine"], folder=tmp_path, env={})["manifest"]
    written = (tmp_path / path).read_text()
    assert len(ask(["plan", path, "--backend", "local"], folder=tmp_path, env={})["runs"]) == 4
    assert len([line for line in written.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "mine.toml", "a/b", "..", ""):
        assert launch.main(["init", name]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix == ".toml"] == [path]
    assert (tmp_path / path).read_text() == written


@pytest.mark.parametrize("environment", [{"SSH_CONNECTION": "a 1 b 2", "DISPLAY": ":0"}, {}, {"DISPLAY": ":0"}])
def test_a_report_is_opened_unless_no_browser_would_be_seen(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open_new_tab", lambda address: not opened.append(address))
    monkeypatch.setattr("sys.platform", "linux")
    add(tmp_path / "s", "one")
    words = ["open", "s", "--runs-dir", str(tmp_path)]
    with pytest.raises(AssertionError, match="report s"):
        ask(words, folder=tmp_path, env=environment)
    (tmp_path / "s" / "report").mkdir()
    write_text(tmp_path / "s" / "report" / "index.html", "x")
    found = ask(words, folder=tmp_path, env=environment)
    assert Path(found["report"]).read_text() == "x"
    is_seen = environment == {"DISPLAY": ":0"}
    assert found["opened"] == is_seen
    assert len(opened) == is_seen
