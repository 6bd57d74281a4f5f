"""The columns of DataFrames and of the report's CSV files, for docs/reference/columns.md."""

import functools
import tempfile
from pathlib import Path

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
from tests.reference.markdown import table
from tests.seqlm.training.studies import runs_in


def parts() -> dict[str, str]:
    """Return the columns of the DataFrames, and those of the tables of a report."""
    return {"columns-dataframes": _dataframes(), "columns-report": _report()}


def _dataframes() -> str:
    sections = []
    for name, columns in TABLES.items():
        rows = [[f"`{column}`", meaning.unit, meaning.text] for column, meaning in columns.items()]
        sections.append(f"### `{name}`\n\n{table(['column', 'unit', 'meaning'], rows)}")
    return "\n\n".join(sections)


def _report() -> str:
    sections = []
    for found in tables():
        titles = {column.key: column.title for column in found.columns}
        keys = found.to_csv().partition("\n")[0].strip().split(",")
        rows = [[f"`{key}`", titles.get(key, "")] for key in keys if key not in valid_keys()]
        if len(rows) < len(keys):
            rows.append(["one for each key of the configuration that varies", ""])
        text = f"{found.title}. {found.caption}".replace("<", "&lt;")
        name = "group-NUMBER-TITLE" if found.name.startswith("group-") else found.name
        sections.append(f"### `{name}.csv`\n\n{text}\n\n{table(['column', 'heading on the page'], rows)}")
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
