"""Links in the places of a study: what is behind them is neither read nor changed, and no run starts there."""

import json
import os
from pathlib import Path

import pytest

from tests.trust import planted


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_what_is_behind_a_link_in_a_study_is_neither_read_nor_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for what, study_dir, ids in planted.planted_studies(tmp_path, planted.link):
        before, exported = planted.digests(tmp_path / "outside"), tmp_path / f"exported-{study_dir.parent.name}"
        draws = what == planted.OF_RUNS or what.startswith("report")
        for answer in planted.ask_all(study_dir, tmp_path / "template", exported, capsys, draws=draws):
            told = f"{what}: {answer}"
            assert answer.code in (0, 1, 2), told
            assert planted.SECRET not in answer.out + answer.err, told
            assert "Traceback" not in answer.err, told
            if answer.words[0] == "status" and answer.words[-1] == "--json" and answer.code == 0:
                listed = {run["id"] for run in json.loads(answer.out)["data"]["runs"]}
                assert listed == set(ids), f"{what}: a run that is listed no more would start again"
        assert planted.digests(tmp_path / "outside") == before, what
        assert [*planted.holds(study_dir, planted.SECRET), *planted.holds(exported, planted.SECRET)] == [], what
