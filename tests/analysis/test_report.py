import csv
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.claims.answers import answers
from analysis.report import SIGNATURE, report_sections, write_report
from analysis.study.study import StudyFiles
from jobs.manifests.load import load_manifest
from seqlm.errors import FileError, UsageError
from seqlm.files import write_json
from tests.analysis.hand_made import add_run
from tests.analysis.synthetic import DIVERGED, fail, make_run
from tests.faults import ChangeFaults

HOSTILE = "</td><script>alert('x')</script><img src=x onerror=alert(2)> & $x_1$ 50% #1 \\input{y} | `z` \"q\""
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(HTMLParser):
    """Elements of a page, with a check that every element is closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    return parsed


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def page_of(study_dir: Path) -> str:
    return write_report(study_dir).read_text("utf-8")


def test_the_report_holds_every_promised_file_and_no_other(report: Path) -> None:
    page = (report / "index.html").read_text("utf-8")
    tables = re.findall(r"<figure class=\"table\" id=\"([^\"]+)\"", page)
    figures = re.findall(r"<figure class=\"chart\" id=\"([^\"]+)\"", page)
    assert {"results", "hyperparameters", "resources"} <= set(tables)
    assert {"validation", "runs-epochs", "by-optimizer", "by-architecture", "seeds"} <= set(figures)
    expected = {"index.html", "report.md", "data/claims.json"}
    expected |= {f"data/{name}.{kind}" for name in ("runs", "epochs", "attempts") for kind in ("csv", "json")}
    expected |= {f"tables/{name}.{kind}" for name in tables for kind in ("csv", "tex", "md")}
    expected |= {f"figures/{name}.{kind}" for name in figures for kind in ("svg", "png", "pdf")}
    found = set(contents(report))
    columns = {path for path in found if path.startswith("figures/column/")}
    assert {re.sub(r"(-\d+)?\.pdf$", "", Path(path).name) for path in columns} == set(figures)
    assert found - columns == expected


def test_the_page_answers_first_what_is_best_and_folds_the_rest(report: Path) -> None:
    page = (report / "index.html").read_text("utf-8")
    names = re.findall(r'<h2 id="section-([a-z]+)"', page)
    assert names[:3] == ["answers", "results", "curves"]
    folded = re.findall(r'<details class="section"><summary><h2 id="section-([a-z]+)"', page)
    assert folded == ["effects", "behaviour", "open", "cost", "hyperparameters"]
    at_once = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
    assert re.findall(r'<figure class="[a-z]+" id="([^"]+)"', at_once) == ["results", "validation"]
    titles = re.findall(r'<h2 id="section-[a-z]+">([^<]+)</h2>', page)
    assert re.findall(r"^## (.*)$", (report / "report.md").read_text("utf-8"), re.MULTILINE) == titles


@pytest.mark.slow
@pytest.mark.usefixtures("svg_only")  # test_curves.py compares figures of each format
def test_the_same_files_give_the_same_bytes_wherever_they_lie(study_dir: Path, report: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(study_dir, tmp_path / "elsewhere" / "optimizers", ignore=shutil.ignore_patterns("report"))
    again = contents(write_report(copy, output=tmp_path / "again").parent)
    before = contents(report)
    assert again.keys() == {name for name in before if not name.endswith((".png", ".pdf"))}
    changed = {name for name, content in again.items() if content != before[name]}
    assert changed <= {"index.html", "report.md"}, "which link to each format"


def test_the_page_loads_nothing_from_anywhere(report: Path) -> None:
    page = (report / "index.html").read_text("utf-8")
    assert not re.search(r"https?://", page)
    assert "@import" not in page
    elements = outline(page).elements
    assert not [tag for tag, _ in elements if tag in ("link", "iframe", "object", "embed", "img", "image")]
    assert not [tag for tag, attributes in elements if tag == "script" and "src" in attributes]
    assert len([tag for tag, _ in elements if tag == "svg"]) == len(list((report / "figures").glob("*.svg")))


def test_ids_are_unique_and_every_link_leads_somewhere(report: Path) -> None:
    elements = outline((report / "index.html").read_text("utf-8")).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for target in [attributes["href"] or "" for tag, attributes in elements if tag == "a"]:
        assert target[1:] in ids if target.startswith("#") else (report / target).is_file()
    assert set(dead_links(report)) == set()


def dead_links(report: Path) -> list[str]:
    """The links of ``report.md`` that lead nowhere."""
    text = (report / "report.md").read_text("utf-8")
    ids = re.findall(r'<a id="([^"]+)"></a>', text)
    assert len(ids) == len(set(ids))
    targets = re.findall(r"\]\(([^)]+)\)", text)
    return [t for t in targets if not (t[1:] in ids if t.startswith("#") else (report / t).is_file())]


@pytest.mark.slow
@pytest.mark.usefixtures("svg_only")
def test_notes_link_to_what_the_report_has_and_to_nothing_else(tmp_path: Path) -> None:
    """The notes of ``paper`` name sections that a report of one run without groups and samples lacks."""
    add_run(tmp_path, 0, "a", "rnn", "sgd", [100.0, 90.0])
    notes = [
        {"part": part, "text": text} for part, text in load_manifest(Path("jobs/manifests/paper.toml")).notes.items()
    ]
    write_json(tmp_path / "study.json", {"notes": notes})
    folder = write_report(tmp_path).parent
    elements = outline((folder / "index.html").read_text("utf-8")).elements
    ids = {attributes["id"] for _, attributes in elements if "id" in attributes}
    targets = [attributes["href"] or "" for tag, attributes in elements if tag == "a"]
    assert "#section-hyperparameters" in targets
    assert [target for target in targets if target.startswith("#") and target[1:] not in ids] == []
    assert [target for target in dead_links(folder) if target.startswith("#")] == []


def test_every_run_that_the_page_names_exists_and_has_that_number(study: StudyFiles, report: Path) -> None:
    page = (report / "index.html").read_text("utf-8")
    numbers = {str(number) for number in study.runs["number"]}
    marks = set(re.findall(r'data-row="([^"]+)"', page)) | set(re.findall(r'"[^"]*\brun-([0-9]+[a-z]*)"', page))
    assert marks == numbers
    text = re.sub(r"<[^>]+>", "", page)
    for run in study.runs.itertuples():
        named = re.findall(rf"(\d+[a-z]?) {re.escape(str(run.name))}(?![\w-])", text)
        assert named
        assert set(named) == {str(run.number)}


@pytest.mark.usefixtures("blank_figures")
def test_links_in_the_notes_of_the_paper_manifest_lead_to_sections(study: StudyFiles) -> None:
    sections = report_sections(study, answers(study)[0])
    there = {f"section-{section.name}" for section in sections}
    there |= {block.name for section in sections for block in [*section.tables, *section.charts]}
    notes = load_manifest(Path("jobs/manifests/paper.toml")).notes
    links = re.findall(r"\]\(#([a-z-]+)\)", " ".join(notes.values()))
    assert set(links) <= there


def test_a_failed_run_is_told_with_kind_message_place_and_log(report: Path) -> None:
    for name in ("index.html", "report.md"):
        text = (report / name).read_text("utf-8").replace("\\_", "_")
        section = text.partition("Unfinished runs\n" if name == "report.md" else 'id="section-open"')[2]
        for fact in (DIVERGED, "diverged: the loss of step 4,711", "trainer.py:163 in train_epoch", "step 1900/1327"):
            assert fact in section
        assert "epochs; run again to resume" in section


def test_data_files_equal_the_tables(study: StudyFiles, report: Path) -> None:
    for name, table in (("runs", study.runs), ("epochs", study.epochs)):
        with (report / f"data/{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        objects = json.loads((report / f"data/{name}.json").read_text("utf-8"))
        assert len(rows) == len(objects) == len(table)
        for row, record, values in zip(rows, objects, table["val_ppl"], strict=True):
            missing = values != values
            assert row["val_ppl"] == ("" if missing else repr(values))
            assert record["val_ppl"] == (None if missing else values)


@pytest.mark.usefixtures("blank_figures")
def test_an_infinite_number_is_null_in_json(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=1, done=False)
    run.metrics_file.write_text('{"epoch": 0, "val_ppl": Infinity, "train_ppl": 2.5, "elapsed_seconds": 1}\n')
    text = (write_report(tmp_path).parent / "data/epochs.json").read_text("utf-8")
    (record,) = json.loads(text, parse_constant=pytest.fail)
    assert (record["val_ppl"], record["train_ppl"]) == (None, 2.5)


@pytest.mark.slow
@pytest.mark.usefixtures("svg_only")
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_study_that_has_only_begun_gives_a_whole_report(tmp_path: Path, epochs: int) -> None:
    for order in (0, 4):
        make_run(tmp_path, order, epochs=epochs, done=False)
    page = page_of(tmp_path)
    outline(page)
    assert "0 of 5 done" in page
    assert ("so there are no curves" in page) == (epochs == 0)


@pytest.mark.slow
@pytest.mark.usefixtures("svg_only")
def test_a_damaged_run_does_not_stop_the_report(tmp_path: Path) -> None:
    make_run(tmp_path, 0, epochs=2)
    damaged = make_run(tmp_path, 3, epochs=2, done=False)
    damaged.config_file.write_text('{"model": ')
    page = page_of(tmp_path)
    outline(page)
    assert f"{damaged.id}/config.json is damaged" in page
    assert "1 of 4 done" in page


@pytest.mark.slow
@pytest.mark.usefixtures("svg_only")
def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=2, name=HOSTILE, done=False, provenance={"study": HOSTILE})
    fail(run, "code", HOSTILE)
    run.stderr_log(1).write_text(f"{HOSTILE}\n```\n</pre><script>\x1b[31mred\x00")
    folder = write_report(tmp_path).parent
    page = (folder / "index.html").read_text("utf-8")
    tags = [tag for tag, _ in outline(page).elements]
    assert (tags.count("script"), tags.count("img")) == (2, 0)
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    markdown = (folder / "report.md").read_text("utf-8")
    outside_code = re.sub(r"^(`{3,}).*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in re.sub(r"(`+).*?\1", "", outside_code.replace("\\`", ""))
    for name in ("results", "hyperparameters"):
        body = (folder / f"tables/{name}.tex").read_text("utf-8").partition(r"\begin")[2]
        assert r"\input{" not in body
        assert not re.search(r"(?<!\\)[%#$_]", body)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_a_folder_that_is_no_report_is_left_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "study", 0, epochs=2)
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("precious")
    for target in (home, home / "thesis.tex", tmp_path / "study"):
        with pytest.raises(UsageError, match="is no report, so it is not replaced"):
            write_report(tmp_path / "study", output=target)
    assert (home / "thesis.tex").read_text() == "precious"
    home.joinpath("thesis.tex").unlink()
    assert write_report(tmp_path / "study", output=home) == home / "index.html"
    first = page_of(tmp_path / "study")
    assert page_of(tmp_path / "study") == first, "a report inside the study is no run"


def test_whichever_change_of_a_file_fails_there_is_one_whole_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, 0, epochs=1)
    text, said = b"", ""
    monkeypatch.setattr("analysis.report.report_files", lambda study: dict.fromkeys(SIGNATURE, text))
    for number in itertools.count(1):
        text = b"old"
        folder = write_report(tmp_path).parent
        (folder / "stale").touch()
        text = b"new"
        with pytest.MonkeyPatch.context() as patch:
            faults = ChangeFaults(patch, tmp_path, number)
            try:
                write_report(tmp_path)
            except FileError as error:
                text, said = b"old", str(error)
        found = contents(folder)
        assert found == {**dict.fromkeys(SIGNATURE, text), **({"stale": b""} if text == b"old" else {})}
        assert text == b"new" or "cannot" in said
        assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
        if not faults.has_failed:
            break
    assert number > 8
    assert text == b"new"


@pytest.mark.usefixtures("blank_figures")
def test_a_study_of_which_nothing_but_the_plan_is_there_gives_a_report_that_says_so(tmp_path: Path) -> None:
    planned = {"number": 1, "name": "rnn-sgd", "fingerprint": "0" * 64, "arch": "rnn", "optimizer": "sgd"}
    write_json(tmp_path / "study.json", {"planned": [planned]})
    page = page_of(tmp_path)
    outline(page)
    assert "0 of 1 done" in page
    assert "there is no run directory for it here" in page
