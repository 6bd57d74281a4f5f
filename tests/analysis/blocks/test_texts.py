from pathlib import Path
from typing import Any

from analysis.blocks.sentences import text_sentences
from analysis.study.study import load_study
from seqlm.files import read_json, write_json
from seqlm.rundir import RunDirectory
from tests.analysis.hand_made import add_run

ONE, OTHER = "ab" * 32, "cd" * 32


def add_text_run(study_dir: Path, order: int, ppl: float, sha256: str, **keys: Any) -> RunDirectory:
    """Add a run on a user's own text, whose digest is in its result alone."""
    arch = keys.pop("arch", "gru")
    run = add_run(study_dir, order, f"run{order}", arch, "sgd", [ppl], **keys)
    config = read_json(run.config_file) or {}
    write_json(run.config_file, {**config, "data": {"corpus": "files"}})
    write_json(run.result_file, {**(read_json(run.result_file) or {}), "corpus_sha256": sha256})
    return run


def test_times_to_the_best_of_a_study_are_those_to_the_best_on_the_same_text(tmp_path: Path) -> None:
    add_text_run(tmp_path, 0, 20.0, OTHER)
    add_text_run(tmp_path, 1, 100.0, ONE, seed=2)
    assert [s.seconds_to_study_best for s in load_study(tmp_path).settings] == [10.0, 10.0]


def test_a_run_whose_text_is_not_recorded_is_not_left_out(tmp_path: Path) -> None:
    add_text_run(tmp_path, 0, 100.0, ONE)
    damaged = add_run(tmp_path, 2, "damaged", "gru", "sgd", [900.0], lr=2.0)
    damaged.config_file.write_text("{")
    study = load_study(tmp_path)
    assert study.on_one_text is study
    assert text_sentences(study) == []
