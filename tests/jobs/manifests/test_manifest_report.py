"""What a manifest says for the report: published results, expectations, and whose behaviour is looked into."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.manifests.claims import Claim, Published
from seqlm.schema import fields_of
from tests.jobs.manifests import test_manifest
from tests.jobs.manifests.test_manifest import load, names, problems

BASE = f'{test_manifest.BASE}optim.optimizer = "sgd"\n'
RUN = '[[run]]\nname = "{name}"\nmodel.arch = "{name}"\n'
RNN, GRU = RUN.format(name="rnn"), RUN.format(name="gru")
EXPECT = '[[expect]]\ntext = "gates help"\nlower = "arch=gru"\nhigher = "arch=rnn"\n'


def test_published_results_belong_to_their_run_and_change_nothing_about_it(tmp_path: Path) -> None:
    plain = load(tmp_path, BASE + RNN + GRU)
    text = BASE + RNN + "published.train_ppl = 120\npublished.val_ppl = 156.5\npublished.replications = [150, 157.5]\n"
    manifest = load(tmp_path, text + GRU)
    assert manifest.published == {"rnn": Published(train_ppl=120, val_ppl=156.5, replications=[150, 157.5])}
    assert [run.fingerprint for run in manifest.runs] == [run.fingerprint for run in plain.runs]
    assert plain.published == {}


def test_every_copy_of_an_entry_with_seeds_has_its_published_results_also_in_part(tmp_path: Path) -> None:
    manifest = load(tmp_path, BASE + RNN + "seeds = [1, 2]\npublished.val_ppl = 9.5\n")
    assert manifest.published == dict.fromkeys(["rnn-seed1", "rnn-seed2"], Published(val_ppl=9.5))


def test_published_results_belong_to_the_run_as_written_whatever_is_set(tmp_path: Path) -> None:
    text = BASE + "[[run]]\nmodel.arch = 'rnn'\npublished.val_ppl = 9\n"
    manifest = load(tmp_path, text, "optim.optimizer=adam")
    assert list(manifest.published) == ["rnn-sgd"]
    assert [(run.name, run.entry) for run in manifest.runs] == [("rnn-adam", "rnn-sgd")]
    assert [run.config for run in manifest.written] == [run.config for run in load(tmp_path, text).runs]


def test_a_run_that_is_none_without_set_has_no_published_results(tmp_path: Path) -> None:
    text = BASE.replace("optim.lr = 1.0\n", "") + RNN + "published.val_ppl = 9\n"
    assert load(tmp_path, text, "optim.lr=1").published == {}


def test_an_expectation_names_the_runs_of_both_its_sides(tmp_path: Path) -> None:
    third = '[[run]]\nname = "long"\nmodel.arch = "gru"\nseed = 2\ntrain.epochs = 50\n'
    manifest = load(tmp_path, BASE + GRU + third + RNN + EXPECT)
    sides = {"lower": ["gru", "long"], "higher": ["rnn"]}
    assert manifest.expectations == ({"text": "gates help", "metric": "val_ppl", **sides, "why": None},)


def test_the_author_may_give_a_reason_and_notes(tmp_path: Path) -> None:
    text = BASE + GRU + RNN + EXPECT + 'why = "gates carry gradients"\n[report.notes]\neffects = "**Width** first."\n'
    manifest = load(tmp_path, text)
    assert manifest.expectations[0]["why"] == "gates carry gradients"
    assert manifest.notes == {"effects": "**Width** first."}
    (problem,) = problems(tmp_path, text.replace("effects =", "efects ="))
    assert problem.startswith("study.toml: report.notes: expected a table of texts in Markdown by part of the report: ")


METRICS = fields_of(Claim)["metric"].choices


@pytest.mark.parametrize("metric", METRICS)
def test_an_expectation_may_compare_each_metric(tmp_path: Path, metric: str) -> None:
    manifest = load(tmp_path, BASE + GRU + RNN + EXPECT + f'metric = "{metric}"')
    assert manifest.expectations[0]["metric"] == metric


def test_an_expectation_is_about_the_runs_as_written_whatever_is_set(tmp_path: Path) -> None:
    narrow = RNN + "model.hidden_size = 4\n"
    text = BASE + narrow + GRU + EXPECT
    text += '[[expect]]\ntext = "wider is better"\nlower = "hidden_size=8"\nhigher = "hidden_size=4"\n'
    for overrides in ([], ["model.hidden_size=4"]):
        assert [claim["text"] for claim in load(tmp_path, text, *overrides).expectations] == [
            "gates help",
            "wider is better",
        ]


def test_an_expectation_about_what_only_set_gives_is_left_out(tmp_path: Path) -> None:
    base = BASE.replace("optim.lr = 1.0\n", "")
    assert load(tmp_path, base + RNN + GRU + EXPECT.replace("arch=rnn", "lr=2"), "optim.lr=1").expectations == ()


def test_the_report_looks_into_the_runs_that_are_named(tmp_path: Path) -> None:
    text = BASE + '[[grid]]\nmodel.arch = ["rnn", "gru"]\n[report]\nbehaviour = ["gru-sgd", "rnn-sgd"]\n'
    assert load(tmp_path, text).behaviour == ("rnn-sgd", "gru-sgd")
    assert load(tmp_path, text.replace('"gru-sgd", ', '"gru-*", ')).behaviour == ("rnn-sgd", "gru-sgd")
    assert load(tmp_path, BASE + RNN).behaviour == ()


def test_names_in_the_report_table_are_those_before_set(tmp_path: Path) -> None:
    text = BASE + RNN + '[[run]]\nmodel.arch = "gru"\n[report]\nbehaviour = ["rnn", "gru-sgd"]\n'
    assert load(tmp_path, text, "optim.optimizer=adam").behaviour == ("rnn", "gru-sgd")


def test_groups_have_the_runs_that_are_named_or_match_in_manifest_order(tmp_path: Path) -> None:
    text = BASE + '[[grid]]\nmodel.arch = ["rnn", "gru"]\noptim.lr = [1, 2]\n'
    text += '[report.groups]\nfast = ["rnn-sgd-lr2", "gru-*2"]\n"all of them" = ["*", "rnn-sgd-lr1"]\n'
    manifest = load(tmp_path, text)
    assert manifest.groups == {
        "fast": ("rnn-sgd-lr2", "gru-sgd-lr2"),
        "all of them": tuple(names(manifest)),
    }
    assert load(tmp_path, BASE + RNN).groups == {}


def test_another_mistake_is_not_told_as_an_expectation_without_runs(tmp_path: Path) -> None:
    text = BASE + RNN + GRU + "optim.lr = 0\n" + EXPECT + '[report]\nbehaviour = ["gru"]'
    assert problems(tmp_path, text) == [
        'study.toml: run "gru": optim.lr: expected a positive finite number, got 0',
    ]
