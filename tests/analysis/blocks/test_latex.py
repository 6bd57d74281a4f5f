import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from analysis.blocks.latex import latex_table, latex_text
from analysis.blocks.table import Column, Table
from analysis.report import write_report
from seqlm.files import write_json
from tests import commands
from tests.analysis.synthetic import fail, make_run

ARTICLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}\usepackage{array,booktabs,longtable}
\begin{document}
\listoftables
%s
\end{document}
"""
"""The narrowest page of LaTeX's own classes, and nothing but what the tables say they need."""


def require_latex() -> None:
    """Skip where pdflatex is not installed; fail instead with CI=true."""
    if shutil.which("pdflatex") is not None:
        return
    if os.environ.get("CI"):
        pytest.fail("not installed: pdflatex (see .ci/install_programs)")
    pytest.skip("not installed: pdflatex")


def compile_latex(tex: str, folder: Path, *, engine: str = "pdflatex") -> str:
    """The log of the second pass over an article that holds ``tex``; fails where LaTeX does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.tex").write_text(tex, encoding="utf-8", errors="replace")
    (folder / "article.tex").write_text(ARTICLE % r"\input{table.tex}", encoding="utf-8")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "article.tex"]
    for _ in range(2):
        done = commands.run(command, cwd=folder, stdin=subprocess.DEVNULL, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
    return (folder / "article.log").read_text(encoding="utf-8", errors="replace")


def points_too_wide(log: str) -> float:
    """By how many points the worst line runs out of its column or page."""
    return max((float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", log)), default=0.0)


HOSTILE = [
    r"\input{y}",
    r"\write18{touch run}",
    r"\end{longtable}\end{document}",
    "$x_1$ % & # { } ~ ^ \\ < > | \" ' ` -- '' ,, ?` !` << >>",
    "[x]",
    "*",
    "^^5cinput{y} ^^M",
    "🙂 中文 日本語 עברית \u202eabc\u202c",
    "e\u0301 a\u0323\u0302 Z\u0351\u0351\u0351\u0351 \u0301",
    "\x00\x07\x1b[31m\x7f\u0085\u2028\u00a0\ufeff\ud800",
    "äöüßéèñçşžőůŁøÆþđ αβγω µ ± × – — ‘’ “” … • · − ≤ ≥ ≈ → € ½",
    "X" * 300,
    "W" * 300,
    "@" * 300,
    "a!" * 150,
    "W_" * 150,
    "中" * 40,
]
"""Names that do something in LaTeX, that no font of it has, or that no column is wide enough for."""


def table_of(titles: list[str], rows: list[list[str]], *, code: str | None = None, numeric_from: int = 9) -> Table:
    columns = [
        Column(
            f"k{n}",
            title,
            of=lambda row, n=n: row[n],
            numeric=n >= numeric_from or title == "No.",
            emphasised=n == 1,
        )
        for n, title in enumerate(titles)
    ]
    return Table(
        name="made-up",
        title="Made up",
        caption=f"What it shows: {rows[0][0]}.",
        columns=columns,
        records=rows,
        bold=lambda row: True,
        code=lambda row: code,
        code_title="Command",
    )


def check_that_it_compiles(tex: str, folder: Path, *, too_wide: float = 5.0) -> None:
    assert points_too_wide(compile_latex(tex, folder)) <= too_wide


def check_the_tables_of(study_dir: Path, folder: Path, **limit: float) -> None:
    report = write_report(study_dir, output=folder / "report").parent
    tables = [path.read_text("utf-8") for path in sorted((report / "tables").glob("*.tex"))]
    assert len(tables) >= 2
    check_that_it_compiles("\n".join(tables), folder / "all", **limit)


@pytest.mark.process
@pytest.mark.usefixtures("blank_figures")
def test_the_tables_of_nine_runs_compile_and_fit_the_page(study_dir: Path, tmp_path: Path) -> None:
    require_latex()
    check_the_tables_of(study_dir, tmp_path)


@pytest.mark.process
@pytest.mark.usefixtures("blank_figures")
def test_the_tables_of_hostile_runs_compile(tmp_path: Path) -> None:
    require_latex()
    for order, name in enumerate(HOSTILE):
        text = name.encode("utf-8", "replace").decode()
        command = ["python", "launch.py", "--only", f"name={text}", text, "/long" * 60, "x" * 400]
        place = {"study": text, "order": order, "command": command}
        run = make_run(tmp_path / str(order), order % 9, epochs=1, name=text, done=False, provenance=place)
        fail(run, "code", text)
        shutil.move(run.path, tmp_path / "study" / f"{order}")
    check_the_tables_of(tmp_path / "study", tmp_path, too_wide=15.0)
    assert not list(tmp_path.rglob("run"))


def many_runs(study_dir: Path, count: int) -> Path:
    """A number of runs without epochs, which differ in their seeds."""
    run = make_run(study_dir, 8, epochs=0, done=False)
    config, provenance = run.read_config().to_dict(), run.read_provenance().to_plain()
    for seed in range(1, count):
        copy = study_dir / f"copy-{seed}"
        copy.mkdir()
        name = f"transformer-sgd-schedule-lr=0.1-seed={seed}"
        write_json(copy / run.config_file.name, {**config, "seed": seed})
        write_json(copy / run.provenance_file.name, {**provenance, "name": name, "order": 8 + seed})
    return study_dir


@pytest.mark.process
@pytest.mark.usefixtures("blank_figures")
def test_the_tables_of_300_runs_break_over_pages_with_their_heading_on_each(tmp_path: Path) -> None:
    require_latex()
    report = write_report(many_runs(tmp_path / "study", 300)).parent
    for name in ("results", "hyperparameters"):
        log = compile_latex((report / "tables" / f"{name}.tex").read_text("utf-8"), tmp_path / name)
        assert points_too_wide(log) <= 5
        pages = re.search(r"Output written on article\.pdf \((\d+) pages", log)
        assert pages is not None
        assert int(pages[1]) > 5


@pytest.mark.process
def test_a_table_of_25_columns_fits_the_page_in_parts_that_repeat_the_first_columns(tmp_path: Path) -> None:
    require_latex()
    titles = ["No.", "Run", *(f"optim.some_setting_{n}" for n in range(25))]
    rows = [[str(n), f"transformer-sgd-schedule-seed={n}", *(f"{n}.{k:04d}" for k in range(25))] for n in range(19)]
    tex = latex_table(table_of(titles, rows, numeric_from=2))
    empty = Table(name="empty", title="Empty", caption="Nothing.", columns=[Column(key="a", title="A")])
    check_that_it_compiles(tex + latex_table(empty), tmp_path)
    parts = tex.split(r"\begin{longtable}")[1:]
    assert len(parts) > 1
    for part in parts:
        assert len(re.findall(r"^\d+ & \\textbf\{transformer-", part, re.MULTILINE)) == 19
    for number in range(25):
        assert sum(f" 7.{number:04d} " in part for part in parts) == 1


@pytest.mark.process
@pytest.mark.parametrize("engine", ["pdflatex", "lualatex"])
def test_hostile_text_anywhere_in_a_table_compiles(engine: str, tmp_path: Path) -> None:
    require_latex()
    if shutil.which(engine) is None:
        pytest.skip(f"not installed: {engine}")  # the same text for both; CI has one
    tables = [
        table_of([text, "A", text], [[text] * 3] * 3, code=code, numeric_from=2)
        for text in HOSTILE
        for code in (text, None)
    ]
    compile_latex("\n".join(latex_table(table) for table in tables), tmp_path, engine=engine)
    assert not (tmp_path / "run").exists()


def test_a_text_is_printed_as_it_is() -> None:
    assert latex_text("中\x07\u202e").replace(r"\allowbreak{}", "") == "[U+4E2D][U+0007][U+202E]"
    assert latex_text("e\u0301 ş β a\tb\nc") == r"é ş \ensuremath{\beta} a b c"
    assert latex_text(r"a & 50% #1 $x$ {y} ~ ^ \input{z} <|>") == (
        r"a \& 50\% \#1 \$x\$ \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}input\{z\} <|>"
    )


def test_lines_break_after_separators_and_never_within_a_number() -> None:
    b = r"\allowbreak{}"
    assert latex_text("lr=0.05-wd=1,000") == f"lr={b}0.05-{b}wd={b}1,000"
    assert latex_text("model.hidden_size two words") == f"model.{b}hidden\\_{b}size two words"


TWO_COLUMNS = r"""\documentclass[10pt,twocolumn]{article}
\usepackage[letterpaper,margin=0.75in]{geometry}\usepackage{graphicx}\setlength{\columnsep}{0.25in}
\begin{document}
%s
\end{document}
"""


@pytest.mark.process
@pytest.mark.slow
def test_panels_fit_a_column_of_a_paper_as_they_are(tmp_path: Path) -> None:
    require_latex()
    for order in range(3):
        make_run(tmp_path / "study", order)
    page = write_report(tmp_path / "study")
    panels = sorted((page.parent / "figures" / "column").glob("*.pdf"))
    assert panels
    (tmp_path / "figures.tex").write_text("\n\n".join(rf"\noindent\includegraphics{{{path}}}" for path in panels))
    (tmp_path / "article.tex").write_text(TWO_COLUMNS % r"\input{figures.tex}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "article.tex"]
    done = commands.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert points_too_wide((tmp_path / "article.log").read_text(errors="replace")) == 0.0
