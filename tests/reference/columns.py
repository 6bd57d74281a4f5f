"""The columns of DataFrames and of the report's CSV files, for docs/reference/columns.md."""

import functools
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from analysis.api import open_study
from analysis.blocks.table import Table
from analysis.report import report_page
from analysis.study.columns import TABLES
from analysis.study.study import load_study
from seqlm.config import valid_keys
from seqlm.files import write_json
from seqlm.records.comparisons import Comparison, Pair
from tests.analysis.example_study import make_examples
from tests.analysis.hand_made import add_run
from tests.analysis.searches import RULE, stop
from tests.reference.markdown import folded, table
from tests.seqlm.training.studies import runs_in

STORED = Path(__file__).parents[1] / "end_to_end" / "stored" / "format-3.zip"
"""A study that was really run: its values are the examples."""
FIRST = {
    "runs": (
        "number", "name", "id", "arch", "optimizer", "setting", "state", "reason", "epochs_done", "compared_epochs",
        "compared_val_ppl", "best_epoch", "train_ppl", "val_ppl", "test_ppl", "val_bits_per_byte", "gap", "parameters",
        "wall_seconds", "machine",
    ),
    "attempts": (
        "number", "id", "attempt", "backend", "host", "device", "ranks", "gpus", "cores", "started_at", "ended_at",
        "seconds", "outcome", "failure_kind", "lost_seconds",
    ),
}  # fmt: skip
"""Table -> the columns that most readers look for; the page shows the others folded."""
LONGEST = 40
"""Characters of an example."""


def parts() -> dict[str, str]:
    """Return the columns of the DataFrames, and those of the tables of a report."""
    return {"columns-dataframes": _dataframes(), "columns-report": _report()}


def _dataframes() -> str:
    sections = []
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(STORED).extractall(folder)
        study = open_study(Path(folder) / "runs" / "stored")
        for name, columns in TABLES.items():
            frame = study.steps("gru-adam") if name == "steps" else getattr(study, name)
            keys = [column for column in columns if column in valid_keys()]
            rows = {
                column: [f"`{column}`", meaning.text, meaning.unit, _example(frame[column].dropna())]
                for column, meaning in columns.items()
                if column not in keys
            }
            first = FIRST.get(name, tuple(rows))
            shown = [_columns([rows[column] for column in first])]
            rest = [row for column, row in rows.items() if column not in first]
            shown += [folded(f"{len(rest)} more columns", _columns(rest))] if rest else []
            if keys:
                names = ", ".join(f"`{key}`" for key in keys)
                text = "a column for each key of the configuration, empty if the key does not apply"
                shown.append(folded(text.capitalize(), f"{names}."))
            sections.append("\n\n".join([f"### `{name}`", *shown]))
    return "\n\n".join(sections)


def _columns(rows: list[list[str]]) -> str:
    return table(["column", "meaning", "unit", "example"], rows)


def _example(values: Any) -> str:
    """Return the first value that is not empty; ``""`` without one."""
    found = next((value for value in values.tolist() if value != ""), None)
    text = "" if found is None else f"{found:.6g}" if isinstance(found, float) else str(found)
    return f"{text[:LONGEST]} ..." if len(text) > LONGEST else text


def _report() -> str:
    sections = []
    for found in tables():
        titles = {column.key: column.title for column in found.columns}
        keys = found.to_csv().partition("\n")[0].strip().split(",")
        own = [key for key in keys if key not in valid_keys()]
        names = [f"`{key}` ({title})" if (title := titles.get(key)) else f"`{key}`" for key in own]
        if len(own) < len(keys):
            names.append("one for each key of the configuration that varies")
        text = f"{found.title}. {found.caption}".replace("<", "&lt;")
        name = "group-NUMBER-TITLE" if found.name.startswith("group-") else found.name
        sections.append(f"### `{name}.csv`\n\n{text}\n\nColumns: {', '.join(names)}.")
    return "\n\n".join(sections)


@functools.cache
def tables() -> list[Table]:
    """Return the tables of the report of a made-up study that has something for each of them."""
    with tempfile.TemporaryDirectory() as folder:
        study_dir = make_examples(Path(folder))
        add_run(study_dir, 7, "gru-longer", "gru", "adam", [200.0, 120.0, 112.0, 100.0], lr=0.001)
        behind = add_run(study_dir, 8, "gru-behind", "gru", "adam", [500.0], lr=0.1, epochs=3, done=False)
        stop(behind, 1, 500.0, rank=3, of=3, cut=220.0)
        bits = {"best_val_bits_per_byte": 1.8, "test_bits_per_byte": 1.7, "lossless": True}
        add_run(study_dir, 9, "gru-char", "gru", "adam", [4.0, 3.5], data={"level": "char"}, result=bits)
        write_json(study_dir / "study.json", _record(study_dir))
        a, b = (run.id for run in runs_in(study_dir)[:2])
        folder_of_comparison = study_dir / "comparisons" / "0123456789abcdef"
        folder_of_comparison.mkdir(parents=True)
        Comparison(a="arch=rnn", b="arch=gru", pairs=(Pair(seed=1, a=a, b=b),), epochs=3).write(folder_of_comparison)
        return list(report_page(load_study(study_dir)).tables)


def _record(study_dir: Path) -> dict[str, object]:
    runs = runs_in(study_dir)
    prints = [run.read_config().fingerprint() for run in runs]
    published = {"train_ppl": 100.0, "val_ppl": 150.0, "replications": [149.0, 151.0]}
    planned = [
        {"number": number, "fingerprint": fingerprint, "published": published}
        for number, fingerprint in enumerate(prints, start=1)
    ]
    expectation = {"text": "the GRU beats the RNN", "metric": "val_ppl", "lower": [prints[3]], "higher": [prints[0]]}
    return {
        "planned": planned,
        "search": {**RULE, "rungs": [1]},
        "expectations": [expectation],
        "groups": [{"title": "All", "runs": prints}],
    }
