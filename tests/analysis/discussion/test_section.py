from pathlib import Path
from typing import get_args

import pytest

from analysis.report import report_files
from analysis.study.study import load_study
from jobs.manifests.claims import Part
from seqlm.files import write_json
from tests.analysis.hand_made import add_run


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_the_notes_of_the_author_stand_in_their_parts_without_html_of_their_own(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [100.0, 90.0])
    note = "Momentum *was not tried*.\n\n- <script>alert(1)</script> [x](javascript:alert(1))"
    parts = get_args(Part)
    write_json(tmp_path / "study.json", {"notes": [{"part": part, "text": f"On {part}. {note}"} for part in parts]})
    files = report_files(load_study(tmp_path))
    page, markdown = files["index.html"].decode(), files["report.md"].decode()
    shown = {part for part in parts if f"On {part}. Momentum <em>was not tried</em>." in page}
    assert shown == {part for part in parts if f"On {part}. Momentum *was not tried*." in markdown}
    assert shown == set(parts) - {"search", "groups", "published"}, "this study has nothing of these"
    assert page.index("On optimizers.") < page.index("The pick for time") < page.index("On picks.")
    assert "<script>alert" not in page + markdown
    assert 'href="javascript' not in page
