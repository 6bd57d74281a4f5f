"""Whole reports of small made-up studies: ``tests/golden/report`` has the Markdown and the tables of each.

``python -m tests.analysis.test_golden`` writes them again; read their diff. Other tests compute the numbers.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.report import render_markdown, report_page
from analysis.study.study import load_study
from seqlm.files import write_json
from seqlm.records.runs import AuditFile, AuditResult, Finding
from tests.analysis.behaviour_made_up import add_behaviour, add_samples, raw_sample
from tests.analysis.claims import made_up
from tests.analysis.contents import too_long
from tests.analysis.hand_made import add_run, digits
from tests.analysis.sections.test_cost import make_costs
from tests.analysis.sections.test_next_runs import make_unfinished
from tests.analysis.sections.test_published import make_published
from tests.analysis.sections.test_results import make_bits
from tests.analysis.sections.test_search import make_searched
from tests.analysis.synthetic import STEPS, add_trace, make_study
from tests.analysis.test_sections import write_again
from tests.seqlm.training.studies import runs_in

GOLDEN = Path(__file__).parents[1] / "golden" / "report"


def make_quickstart(folder: Path) -> None:
    """Ten runs with losses of tokens, an expectation, a group and notes."""
    made_up.make_study(folder, seeds={("gru", "adam"): 2})
    runs = {run.id.rpartition("-")[0]: digits(run) for run in runs_in(folder)}
    sides = {f"{side}er": [runs[f"{arch}-{kind}"] for arch in ("rnn", "gru", "transformer")] for side, kind in SIDES}
    claim = {"text": "Adam beats SGD.", "why": "It scales each step.", "metric": "val_ppl", **sides}
    record = {"groups": [{"title": "Adam", "runs": sides["lower"]}], "expectations": [claim]}
    write_json(folder / "study.json", {**record, "notes": [{"part": "optimizers", "text": "Stated *before*."}]})
    make_audits(folder)


def make_audits(folder: Path) -> None:
    """An audit that has trained epochs again, of which one differs, and one of records and scores."""
    ids = [run.id for run in runs_in(folder)][:2]
    records = {run_id: Finding(part="records", verdict="equal") for run_id in ids}
    scores = Finding(part="scores", verdict="rounding")
    verdicts = ("equal", "differs")
    again = [Finding(part="epoch 1", verdict=verdict, text="numbers", digest="0" * 64) for verdict in verdicts]
    drawn = AuditFile(records=records, share=0.1, seed=5, drawn=2, possible=20, epochs=40)
    for number, (file, parts) in enumerate([(drawn, again), (AuditFile(records=records), [None, None])], start=1):
        audit = folder / "audits" / f"{number:06d}"
        for run_id, part in zip(ids, parts, strict=True):
            (audit / run_id).mkdir(parents=True)
            AuditResult(findings=(scores, *([part] if part else []))).write(audit / run_id)
        file.write(audit)


SIDES = (("low", "adam"), ("high", "sgd"))


def make_nine(folder: Path) -> None:
    """Runs that explode, diverge and wait. Two have a trace, six a behaviour, two a gradient of exactly zero."""
    make_study(folder)
    for run in runs_in(folder)[:2]:
        add_trace(run, [6.0] * STEPS)
    for run in runs_in(folder)[:6]:
        add_behaviour(run)
        add_samples(run, [raw_sample(index, ["a", "<eos>"], [3.0, 2.0 + index]) for index in range(4)])


def make_seeds(folder: Path) -> None:
    """Three settings of two or three seeds, one of one; the best ends above its best epoch."""
    settings = [("gru", "sgd", [100.0, 101.0, 103.0]), ("gru", "adam", [104.0, 99.0]), ("rnn", "sgd", [150.0, 149.0])]
    order = 0
    for arch, optimizer, values in settings:
        for seed, ppl in enumerate(values, start=1):
            name, val, train = f"{arch}-{optimizer}-seed{seed}", [2 * ppl, ppl, 1.2 * ppl], [200.0, 80.0, 40.0]
            run = add_run(folder, order, name, arch, optimizer, val, train=train, seconds=10.0 + order, seed=seed)
            order += 1
    quick = add_run(folder, order, "quick", "rnn", "adam", [170.0, 160.0], seconds=1.0, epochs=3, done=False)
    claim = {"text": "Less gap.", "metric": "gap", "lower": [digits(run)], "higher": [digits(quick)]}
    write_json(folder / "study.json", {"expectations": [claim]})


STUDIES: dict[str, Callable[[Path], object]] = {
    "quickstart": make_quickstart,
    "nine": make_nine,
    "seeds": make_seeds,
    "cost": make_costs,
    "search": make_searched,
    "published": make_published,
    "unfinished": make_unfinished,
    "bits": make_bits,
}


def report_of(name: str, folder: Path) -> dict[str, str]:
    """The files of a study's report by their ending; numbers of the tables have six digits."""
    STUDIES[name](folder)
    page = report_page(load_study(folder))
    assert too_long(page) == {}
    tables = "\n".join(f"{table.name}\n{table.to_csv()}" for table in page.tables)
    rounded = re.sub(r"\d+\.\d+(e[+-]\d+)?", lambda number: f"{float(number[0]):.6g}", tables)
    return {"md": render_markdown(page), "csv": rounded}


@pytest.mark.parametrize("name", STUDIES)
def test_no_space_stands_before_a_mark(name: str) -> None:
    """Quotations are what a model has written, so they may have any."""
    text = re.sub("“[^”]*”|`[^`]*`", "“”", (GOLDEN / f"{name}.md").read_text(encoding="utf-8"))
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    assert [line for line in prose if re.search(r"\s[;,.:](\s|$)", line)] == []


def test_no_template_breaks_a_line_before_a_mark() -> None:
    """The line break after a value becomes a space."""
    broken = re.compile(r"\}\}\s*\n\s*(\{%[^-][^\n]*?[^-]%\}\s*)*[;,.:]")
    folder = Path(__file__).parents[2] / "analysis" / "templates" / "sentences"
    assert [path.name for path in sorted(folder.glob("*.j2")) if broken.search(path.read_text())] == []


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("name", STUDIES)
def test_the_report_of_a_made_up_study_is_the_golden_one(tmp_path: Path, name: str) -> None:
    for ending, text in report_of(name, tmp_path / name).items():
        assert text == (GOLDEN / f"{name}.{ending}").read_text("utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for study in STUDIES:
            for kind, content in report_of(study, Path(scratch) / study).items():
                (GOLDEN / f"{study}.{kind}").write_text(content, "utf-8")
        write_again(Path(scratch) / "sections")
