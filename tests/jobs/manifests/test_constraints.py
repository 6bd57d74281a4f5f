"""Links between keys, and the constraints of a ``[[sample]]``."""

import math
import operator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.manifests.constraints import are_met, parse_constraint
from jobs.manifests.draws import Distribution, Real, Whole, draw
from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from tests.jobs.manifests.test_manifest import BASE, HEAD, load, problems
from tests.seqlm.training.studies import make_config

VALUES = {"model.hidden_size": 24, "model.num_heads": 5, "optim.lr": 0.5, "model.arch": "rnn", "model.tied": True}


def holds(text: str, values: dict[str, Any] = VALUES) -> bool:
    return are_met([parse_constraint(text)], values, make_config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hidden_size % num_heads == 4", True),
        ("model.hidden_size // num_heads * num_heads + hidden_size % num_heads == hidden_size", True),
        ("hidden_size - 4 - 20 == 0", True),
        ("hidden_size - (4 - 20) == 0", False),
        ("2 + 3 * 4 == 14", True),
        ("(2 + 3) * 4 == 20", True),
        ("-lr < - 0.25", True),
        ("2 * -3 == -6", True),
        ("lr >= 5e-1", True),
        ("lr > .5", False),
        ("hidden_size / 48 == lr", True),
        ("hidden_size<=24", True),
        ("hidden_size != 24", False),
        ("arch == 'rnn'", True),
        ('model.arch != "rnn"', False),
        ("  arch=='gru'  ", False),
        ("mlp_size < 0", True),  # an RNN has none
    ],
)
def test_what_a_constraint_means(text: str, expected: bool) -> None:
    assert holds(text) is expected


EXPRESSIONS = st.recursive(
    st.integers(0, 9).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-({text})"),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(EXPRESSIONS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), EXPRESSIONS)
def test_arithmetic_is_that_of_python(left: str, sign: str, right: str) -> None:
    text = f"{left} {sign} {right}"
    try:
        expected = eval(text)  # noqa: S307 -- numbers and signs alone
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="divides by 0"):
            holds(text)
    else:
        assert holds(text) is expected


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=30) | st.text(alphabet="hidden_size0123.%()<>=!+-*/'\" ", max_size=30))
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    try:
        parse_constraint(text)
    except ValueError as error:
        (line,) = str(error).splitlines()
        assert line.startswith("only: ")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hiden_size < 5", 'did you mean "model.hidden_size"'),
        ("batch_size < 5", "write it in full"),
        ("lr", "expected one of <"),
        ("lr < ", "its end"),
        ("lr < 5 < 6", "expected its end"),
        ("(lr < 5", "expected )"),
        ("lr = 5", "cannot read"),
        ("__import__('os').system('true') < 1", "cannot read"),
        ("exit() < 1", "unknown key"),
        ("lr < 1 and lr > 0", "expected its end"),
        ("(" * 100 + "1" + ")" * 100 + "< 2", "nested too deeply"),
    ],
)
def test_a_wrong_constraint_is_told_what_is_wrong(text: str, what: str) -> None:
    with pytest.raises(ValueError, match="only: ") as caught:
        parse_constraint(text)
    assert what in str(caught.value)


@pytest.mark.parametrize("text", ["arch + 1 < 2", "arch < 2", "tied + 1 < 3"])
def test_texts_do_not_compute(text: str) -> None:
    with pytest.raises(ValueError, match="text or a truth value"):
        holds(text)


def test_parameters_are_those_that_plan_shows() -> None:
    config = RunConfig.from_dict({**make_config("gru").to_dict(), "data": {"corpus": "pydoc", "vocab_size": 300}})
    assert not isinstance(config.model, CustomConfig)
    count = config.model.parameter_count(300)
    for sign, expected in (("==", True), ("<", False), ("<=", True)):
        assert are_met([parse_constraint(f"parameters {sign} {count}")], {}, lambda: config) is expected
    with pytest.raises(ValueError, match=r"data\.vocab_size"):
        are_met([parse_constraint("parameters < 5")], {}, make_config)


# -- draws -----------------------------------------------------------------------------------------------------------


SPACE: dict[str, Distribution] = {"a": Whole(low=1, high=40, step=1), "b": Real(low=0.0, high=1.0, log=False)}


def test_a_constraint_leaves_draws_out_and_the_others_in_their_order() -> None:
    def accepts(setting: dict[str, Any]) -> bool:
        return bool(setting["a"] % 3 == 0)

    every = draw(SPACE, 300, seed=2)
    some = draw(SPACE, 40, 2, accepts)
    assert some == [setting for setting in every if accepts(setting)][:40]
    assert draw(SPACE, 20, 2, accepts) == some[:20], "a larger count has the same first ones"
    assert draw(SPACE, 3, 2, lambda setting: False) == []


@pytest.mark.parametrize("step", [1, 16])
def test_log_int_draws_as_many_numbers_from_each_decade(step: int) -> None:
    low, high = 16, 1024
    whole = Whole(low=low, high=high, step=step, log=True)
    drawn = [whole.at((number + 0.5) / 4096) for number in range(4096)]
    assert (min(drawn), max(drawn)) == (low, high)
    assert all((number - low) % step == 0 for number in drawn)
    assert drawn == sorted(drawn)
    middle = math.sqrt(low * (high + step))
    below = sum(map(operator.lt, drawn, [middle] * len(drawn)))
    assert abs(below / len(drawn) - 0.5) < 0.05
    assert whole.size == len(range(low, high + 1, step))


SAMPLE = """
[[sample]]
count = 12
model.arch = ["gru", "transformer"]
model.hidden_size = { log_int = [4, 64], step = 2 }
optim.optimizer = "adam"
"""


def test_the_draws_of_a_manifest_meet_its_constraints_and_links_follow_the_draws(tmp_path: Path) -> None:
    base = HEAD + '[defaults]\ndata.corpus = "pydoc"\ndata.vocab_size = 50\nmodel.num_heads = 4\noptim.lr = 1.0\n'
    linked = f'{base}model.embedding_size = "=model.hidden_size"\nmodel.mlp_size = "=model.hidden_size"\n'
    only = 'only = ["parameters < 9e3", "hidden_size % num_heads == 0"]\n'
    with_all = load(tmp_path, f"{linked}{SAMPLE}{only}").runs
    assert len(with_all) == 12
    for spec in with_all:
        model: Any = spec.config.model
        assert model.parameter_count(50) < 9e3
        if model.arch == "gru":
            assert model.embedding_size == model.hidden_size
        else:
            assert model.mlp_size == model.hidden_size
            assert model.hidden_size % model.num_heads == 0
    assert any(spec.config.model.hidden_size % 4 for spec in with_all), "a GRU has no heads"
    trial = load(tmp_path, f"{linked}{SAMPLE}{only}", "model.num_layers=1", "model.embedding_size=8").runs
    assert [spec.config.model.hidden_size for spec in trial] == [spec.config.model.hidden_size for spec in with_all]
    assert {spec.config.by_key().get("model.embedding_size", 8) for spec in trial} == {8}
    (line,) = problems(tmp_path, f'{linked}{SAMPLE}only = ["hidden_size > 64"]\n')
    assert "constraints in only" in line
    (line,) = problems(tmp_path, f'{linked}{SAMPLE}only = ["hidden_sice > 64"]\n')
    assert 'did you mean "model.hidden_size"' in line


def test_a_link_of_a_grid_follows_each_run_and_one_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    grid = '[[grid]]\nmodel.arch = "gru"\nmodel.hidden_size = [4, 8]\noptim.optimizer = "sgd"\n'
    link = 'model.embedding_size = "=model.hidden_size"\n'
    text = f"{BASE.replace('model.hidden_size = 8', '')}{grid}"
    for run in load(tmp_path, text + link).runs:
        model: Any = run.config.model
        assert model.embedding_size == model.hidden_size
    for wrong, what in (("=model.hiden_size", "model.hidden_size"), ("=train.batch_size", "train.batch_size")):
        (line,) = problems(tmp_path, text + link.replace("=model.hidden_size", wrong))
        assert "model.embedding_size" in line
        assert what in line
    assert problems(
        tmp_path, f'{text}{link}model.keep = "=model.embedding_keep"\nmodel.embedding_keep = "=model.keep"\n'
    )


def test_entries_that_share_their_points_get_a_note_and_a_search_that_stops_nobody_a_warning(tmp_path: Path) -> None:
    lr = '\n[[sample]]\nname = "{name}"\ncount = 4\nmodel.arch = "rnn"\noptim.optimizer = "adam"\n'
    one = lr.format(name="one") + "optim.lr = { uniform = [0.1, 0.9] }\n"
    other = lr.format(name="other") + "model.keep = { uniform = [0.1, 0.9] }\n"
    (note,) = load(tmp_path, BASE + one + other).advice
    assert "one" in note
    assert "other" in note
    assert load(tmp_path, f"{BASE}{one}{other}seed = 1\n").advice == ()
    search = f"{BASE}{one}\n[search]\nrungs = [2]\n"
    assert load(tmp_path, search).advice == ()
    assert load(tmp_path, search, "train.epochs=1").advice == (), "a short trial is no mistake"
    (warning,) = load(tmp_path, f"{search}min_runs = 5\n").advice
    assert "min_runs = 5" in warning
    assert load(tmp_path, f"{search}min_runs = 5\n".replace("count = 4", "count = 5")).advice == ()
