from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.blocks.sentences import scoring_sentences, text_sentences
from analysis.blocks.table import Table
from analysis.discussion import discussion_section
from analysis.discussion.effects import effects_section
from analysis.report import report_page
from analysis.sections.results import results_blocks
from analysis.study.settings import settings_of
from analysis.study.study import load_study
from seqlm.files import read_json, write_json
from seqlm.rundir import RunDirectory
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run, digits

ONE, OTHER = "ab" * 32, "cd" * 32


def add_text_run(study_dir: Path, order: int, ppl: float, sha256: str, **keys: Any) -> RunDirectory:
    """Add a run on a user's own text, whose digest is in its result alone."""
    arch = keys.pop("arch", "gru")
    run = add_run(study_dir, order, f"run{order}", arch, "sgd", [ppl], **keys)
    config = read_json(run.config_file) or {}
    write_json(run.config_file, {**config, "data": {"corpus": "files"}})
    write_json(run.result_file, {**(read_json(run.result_file) or {}), "corpus_sha256": sha256})
    return run


def test_seeds_on_different_texts_are_not_pooled_and_the_page_says_so(tmp_path: Path) -> None:
    add_text_run(tmp_path, 0, 100.0, ONE, seed=1)
    add_text_run(tmp_path, 1, 110.0, ONE, seed=2)
    add_text_run(tmp_path, 2, 20.0, OTHER, seed=3)
    study = load_study(tmp_path)
    assert [setting.runs for setting in settings_of(study.runs)] == [[1, 2], [3]]
    (warning,) = text_sentences(study)
    assert "2 different texts: files sha256 abababab (2 runs) and files sha256 cdcdcdcd (1 run)" in warning
    for section in (discussion_section(study), effects_section(study)):
        assert warning in said(section.blocks)
    assert "For generalisation: 104.88 (1/2 run0, mean of 2 seeds" in said(discussion_section(study).blocks)
    assert "3 run2" not in said(discussion_section(study).blocks)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({}, "the corpus ptb, per word."),
        ({"level": "char"}, "the corpus ptb, per character."),
        ({"corpus": "files", "sha256": ONE}, "the corpus files (digest abababab), per word."),
        ({"corpus": "pydoc"}, "the corpus pydoc, per word (the 10,000 most frequent; all others are <unk>)."),
    ],
)
def test_the_results_name_the_text_that_all_runs_predict(tmp_path: Path, data: dict[str, Any], named: str) -> None:
    add_run(tmp_path, 0, "one", "rnn", "sgd", [100.0], data=data)
    assert f"All perplexities are of {named}" in said(results_blocks(load_study(tmp_path)))
    add_run(tmp_path, 1, "other", "rnn", "sgd", [50.0], data={"level": "char", "vocab_size": 30})
    assert "All perplexities are of" not in said(results_blocks(load_study(tmp_path)))


def test_the_page_says_when_runs_are_scored_on_different_tokens(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "small", "rnn", "sgd", [100.0], batch_size=20, result={"val_tokens": 13_300})
    add_run(tmp_path, 1, "large", "rnn", "adam", [90.0], batch_size=128, seq_len=70, result={"val_tokens": 8_960})
    (sentence,) = scoring_sentences(load_study(tmp_path))
    assert "13,300 tokens in 20 columns and windows of 35 (1 run)" in sentence
    assert "8,960 tokens in 128 columns and windows of 70 (1 run)" in sentence
    assert sentence in said(results_blocks(load_study(tmp_path)))


def test_runs_with_equal_evaluation_compare_whatever_their_batch(tmp_path: Path) -> None:
    for order, columns in enumerate((20, 128)):
        alike = {"batch_size": 10, "seq_len": 35}
        add_run(tmp_path, order, f"run{columns}", "rnn", "sgd", [100.0], batch_size=columns, eval=alike)
    assert scoring_sentences(load_study(tmp_path)) == []


@pytest.mark.slow
def test_results_are_ranked_within_each_text_and_the_page_says_so(tmp_path: Path) -> None:
    add_text_run(tmp_path, 0, 20.0, OTHER)
    for order, (ppl, seed) in enumerate([(100.0, 1), (102.0, 2)], start=1):
        add_text_run(tmp_path, order, ppl, ONE, seed=seed)
    for order, (ppl, seed) in enumerate([(200.0, 1), (202.0, 2)], start=3):
        add_text_run(tmp_path, order, ppl, ONE, seed=seed, lr=2.0)
    study = load_study(tmp_path)
    warning, _, results, settings = results_blocks(study)
    assert isinstance(results, Table)
    assert isinstance(settings, Table)
    assert said([warning]).endswith("Each table compares runs on the same text only.")
    rows = table([results], "results")
    assert [(row["number"], row["text"]) for row in rows] == [
        *((number, "files sha256 abababab") for number in "2345"),
        ("1", "files sha256 cdcdcdcd"),
    ]
    assert [row.run for row in results.rows if row.cells[1].bold] == [2, 1]
    assert "Bold: best setting of each architecture on its text." in results.caption
    assert [(row["number"], row["p_value"]) for row in table([settings], "settings")] == [
        ("1", "best"),
        ("2", "best"),
        ("4", "0.002"),
    ]
    best = report_page(study).best
    assert [(arch, name, of) for arch, _, name, of in best] == [
        ("GRU on files sha256 abababab", "2/3 run1", "mean of 2 seeds"),
        ("GRU on files sha256 cdcdcdcd", "1 run0", "epoch 1"),
    ]


def test_times_to_the_best_of_a_study_are_those_to_the_best_on_the_same_text(tmp_path: Path) -> None:
    add_text_run(tmp_path, 0, 20.0, OTHER)
    add_text_run(tmp_path, 1, 100.0, ONE, seed=2)
    assert [s.seconds_to_study_best for s in load_study(tmp_path).settings] == [10.0, 10.0]


def test_a_text_is_no_hyperparameter(tmp_path: Path) -> None:
    add_text_run(tmp_path, 0, 100.0, ONE, lr=1.0)
    add_text_run(tmp_path, 1, 90.0, ONE, lr=2.0)
    add_text_run(tmp_path, 2, 10.0, OTHER, lr=1.0, seed=2)
    sections = (discussion_section(load_study(tmp_path)), effects_section(load_study(tmp_path)))
    assert [row["key"] for row in table(sections[1].blocks, "effects")] == ["optim.lr"]
    for section in sections:
        assert "data.sha256" not in said(section.blocks)


def test_an_expectation_across_texts_is_inconclusive(tmp_path: Path) -> None:
    lower = add_text_run(tmp_path, 0, 10.0, ONE)
    higher = add_text_run(tmp_path, 1, 100.0, OTHER, arch="rnn")
    expectation = {"text": "so", "metric": "val_ppl", "lower": [digits(lower)], "higher": [digits(higher)]}
    write_json(tmp_path / "study.json", {"expectations": [expectation, {**expectation, "metric": "wall_seconds"}]})
    sentences = said(discussion_section(load_study(tmp_path)).blocks)
    assert "no two finished runs, one from each side, are otherwise equal and predict the same text." in sentences
    assert "1 not comparable, 1 no clear difference" in sentences, "the times are equal"


def test_other_tokens_of_one_text_are_another_text(tmp_path: Path) -> None:
    for order, words in enumerate([500, 500, 1000]):
        run = add_text_run(tmp_path, order, 100.0, ONE, seed=order)
        config = read_json(run.config_file) or {}
        write_json(run.config_file, {**config, "data": {"corpus": "files", "vocab_size": words}})
    (sentence,) = text_sentences(load_study(tmp_path))
    assert "files vocab_size 500 (2 runs) and files vocab_size 1000 (1 run)" in sentence


@pytest.mark.usefixtures("blank_figures")
def test_runs_that_diverged_on_another_text_are_left_out_and_the_page_says_so(tmp_path: Path) -> None:
    for order in range(3):
        add_text_run(tmp_path, order, 100.0 + order, ONE, arch="rnn", lr=1.0 + order)
    for order in range(3, 6):
        add_run(tmp_path, order, f"bad{order}", "rnn", "sgd", [900.0], lr=1.0 + order, failure="diverged")
    study = load_study(tmp_path)
    sentence = "3 runs that have not finished predict another text than the finished ones (files"
    assert sentence in said(discussion_section(study).blocks)
    assert sentence in said(effects_section(study).blocks)
    blocks = discussion_section(study).blocks
    (row,) = table(blocks, "discussion-4-reliability")
    assert (row["settings"], row["share_within_1_2"], row["diverged"]) == ("3", "100 %", "0")
    (row,) = table(blocks, "discussion-2-optimizers")
    assert (row["settings"], row["diverged"]) == ("3", "0")


def test_a_run_whose_text_is_not_recorded_is_not_left_out(tmp_path: Path) -> None:
    add_text_run(tmp_path, 0, 100.0, ONE)
    damaged = add_run(tmp_path, 2, "damaged", "gru", "sgd", [900.0], lr=2.0)
    damaged.config_file.write_text("{")
    study = load_study(tmp_path)
    assert study.on_one_text is study
    assert text_sentences(study) == []
