"""``--only`` and ``--exclude``: what a condition means, and the line for one that means nothing."""

import re
from pathlib import Path
from typing import Any

import pytest

from jobs.manifests.filters import RESULTS, asks_for_identity, facts_of, facts_of_spec, meets, parse, select
from jobs.spec import RunSpec
from seqlm.config import RunConfig
from seqlm.errors import UsageError
from seqlm.naming import whole_id
from seqlm.resources import Resources


def config(arch: str, lr: float, hidden_size: int = 8, seed: int = 1, vocab_size: int | None = None) -> RunConfig:
    model: dict[str, Any] = {"arch": arch, "hidden_size": hidden_size}
    if arch == "transformer":
        model["num_heads"] = 2
    data = {"corpus": "ptb", "vocab_size": vocab_size}
    return RunConfig.from_dict({"model": model, "data": data, "optim": {"optimizer": "sgd", "lr": lr}, "seed": seed})


SPECS = [
    RunSpec(name="rnn-small", config=config("rnn", 0.1)),
    RunSpec(name="rnn-large", config=config("rnn", 0.1, hidden_size=1500, vocab_size=100)),
    RunSpec(name="gru-slow", config=config("gru", 0.5, seed=2**32 - 1), resources=Resources(ranks=2)),
    RunSpec(name="gru-fast", config=config("gru", 10)),
    RunSpec(name="transformer", config=config("transformer", 1)),
]


def chosen(*only: str, exclude: tuple[str, ...] = ()) -> list[str]:
    return [spec.name for spec in select(SPECS, only, exclude, facts_of_spec)[0]]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("arch=gru", ["gru-slow", "gru-fast"]),
        ("model.arch=gru", ["gru-slow", "gru-fast"]),
        ("arch=gru lr>1", ["gru-fast"]),
        ("arch = gru  lr > 1", ["gru-fast"]),
        ("arch = rnn, transformer", ["rnn-small", "rnn-large", "transformer"]),
        ("arch=rnn,transformer", ["rnn-small", "rnn-large", "transformer"]),
        ("arch!=rnn,transformer", ["gru-slow", "gru-fast"]),
        ("name=*-s*", ["rnn-small", "gru-slow"]),
        ("name!=*-s*", ["rnn-large", "gru-fast", "transformer"]),
        ("name=gru", []),
        ("lr>=0.5 lr<=1", ["gru-slow", "transformer"]),
        ("lr<0.5", ["rnn-small", "rnn-large"]),
        ("optim.lr=1e-1", ["rnn-small", "rnn-large"]),
        ("hidden_size=1500", ["rnn-large"]),
        ("ranks>1", ["gru-slow"]),
        ("seed=4294967295", ["gru-slow"]),
        ("seed=4294967294", []),
        ("num_heads!=8", ["transformer"]),
        ("num_heads<8", ["transformer"]),
        ("vocab_size=none", ["rnn-small", "gru-slow", "gru-fast", "transformer"]),
        ("vocab_size!=none", ["rnn-large"]),
        ("vocab_size<1000", ["rnn-large"]),
        ("lr=none", []),
        ("tied!=true arch=gru", ["gru-slow", "gru-fast"]),
        (f"fingerprint={SPECS[3].fingerprint[:8]}", ["gru-fast"]),
        (f"id=gru-fast-{SPECS[3].fingerprint[:8]}", ["gru-fast"]),
        (" arch=gru \t lr>1 ", ["gru-fast"]),
    ],
)
def test_a_filter_chooses_the_runs_that_meet_all_its_conditions(text: str, names: list[str]) -> None:
    assert chosen(text) == names


def test_every_only_has_to_be_met_and_any_exclude_drops() -> None:
    assert chosen("arch=gru", "lr>1") == chosen("arch=gru lr>1") == ["gru-fast"]
    assert chosen("arch=gru", "lr=1") == []
    assert chosen(exclude=("arch=gru", "lr=1")) == ["rnn-small", "rnn-large"]
    assert chosen("arch=gru", exclude=("lr>1",)) == ["gru-slow"]
    assert chosen() == [spec.name for spec in SPECS]


def test_state_and_kind_can_be_asked_of_runs_that_have_them() -> None:
    facts = {**facts_of("a", "a-01", SPECS[0].config, Resources()), "state": "failed", "kind": None}
    assert meets(facts, parse("state=failed,cancelled"))
    assert not meets(facts, parse("kind=oom"))
    with pytest.raises(UsageError, match='unknown key "state"'):
        chosen("state=failed")


def test_a_run_whose_configuration_is_lost_can_be_asked_for_its_name() -> None:
    facts = facts_of("a", "a-01", None, Resources())
    assert select([facts], ["name=a"], [], dict)[0] == [facts]
    assert select([facts], ["arch=gru"], [], dict)[0] == []


WITHOUT_SENSE = (
    "",
    "gru",
    "arch = ",
    "arch==gru",
    "lr=>1",
    "arch=gru,",
    "arch<gru",
    "arch<1",
    "lr>1,2",
    "lr=fast",
    "tied=1",
)


@pytest.mark.parametrize("text", WITHOUT_SENSE)
def test_a_filter_without_sense_gets_one_line_that_names_it_and_what_is_expected(text: str) -> None:
    for only, exclude in (([text], []), ([], ["arch=gru", text]), (["arch=gru", text], [])):
        with pytest.raises(UsageError, match=rf'^filter "{re.escape(text)}": .*(expected|use = or !=)') as caught:
            select(SPECS, only, exclude, facts_of_spec)
        assert str(caught.value).isprintable()


def test_a_filter_that_a_shell_has_cut_is_to_be_quoted() -> None:
    """Of an unquoted ``lr>0.001``, a shell writes the output to the file ``0.001``, and the command gets ``lr``."""
    with pytest.raises(UsageError, match=r"--only 'lr>0\.001'") as cut:
        parse("lr")
    assert "'" in str(cut.value)
    with pytest.raises(UsageError) as other:
        parse("arch=gru,")
    assert "shell" not in str(other.value)


@pytest.mark.parametrize(
    ("key", "meant"), [("hiden_size", "model.hidden_size"), ("time", "wall_seconds"), ("test_pl", "test_ppl")]
)
def test_an_unknown_key_is_told_with_the_one_that_is_meant_and_the_keys_of_results(key: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(SPECS, [f"name=nothing {key}=8"], [], lambda spec: {**facts_of_spec(spec), **dict.fromkeys(RESULTS)})
    assert f'unknown key "{key}"; did you mean "{meant}"?' in str(caught.value)
    assert all(found in str(caught.value) for found in ("name", "id", *RESULTS))


def test_the_beginning_of_an_id_chooses_all_that_begin_so() -> None:
    assert chosen("id=gru-f") == ["gru-fast"]
    assert chosen("id=gru") == ["gru-slow", "gru-fast"]
    assert chosen("id!=gru-f lr>=0.5") == ["gru-slow", "transformer"]
    assert chosen(exclude=("id=rnn-s", "id=gru-*")) == ["rnn-large", "transformer"]
    assert chosen("id=fast") == [], "it is not a beginning"


def test_an_id_that_begins_another_one_is_itself() -> None:
    assert whole_id("a-1", ["a-12", "a-1"]) == "a-1"


def test_a_run_that_was_launched_under_another_name_keeps_its_id() -> None:
    folders = {SPECS[3].fingerprint[:8]: Path("runs/study/old-name-1234")}
    assert [spec.name for spec in select(SPECS, ["id=old"], [], lambda spec: facts_of_spec(spec, folders))[0]] == [
        "gru-fast"
    ]


@pytest.mark.parametrize(
    ("only", "exclude", "why"),
    [
        (["name=gru_slow"], [], ['--only "name=gru_slow"', "name rnn-small, rnn-large", 'did you mean "gru-slow"?']),
        (["arch=gru lr=1"], [], ["each condition fits some run, but no run meets all of them"]),
        (
            ["seed=7", "lr<0"],
            ["arch=rnn"],
            ['--only "seed=7" --only "lr<0" --exclude "arch=rnn": ', "seed 1, 4294967295"],
        ),
        (["arch=gru"], ["lr>0"], ["--exclude drops every run that --only chooses"]),
    ],
)
def test_filters_that_no_run_passes_are_told_with_the_values_that_there_are(
    only: list[str], exclude: list[str], why: list[str]
) -> None:
    found, told = select(SPECS, only, exclude, facts_of_spec)
    assert found == []
    assert told is not None
    assert [part for part in ("no run passes ", *why) if part not in told] == []


def test_filters_that_some_run_passes_need_no_explanation() -> None:
    assert select(SPECS, ["lr>1", "arch=gru"], ["name=gru-slow"], facts_of_spec) == ([SPECS[3]], None)
    assert select([], ["arch=gru"], [], facts_of_spec) == ([], None)


def test_a_long_list_of_values_is_cut() -> None:
    specs = [RunSpec(name=f"run{seed}", config=config("rnn", 0.1, seed=seed)) for seed in range(1, 12)]
    why = 'no run passes --only "seed=99": the runs have seed 1, 2, 3, 4, 5, 6, 7, 8, ...'
    assert select(specs, ["seed=99"], [], facts_of_spec) == ([], why)


def test_a_value_that_its_key_never_has_is_a_mistake() -> None:
    with pytest.raises(
        UsageError, match=r'^filter "arch=gru,gur": model.arch: expected one of .*; did you mean "gru"\?$'
    ):
        chosen("arch=gru,gur")


def test_a_short_key_that_fits_two_keys_must_be_written_in_full() -> None:
    facts = {"a.size": 1, "b.size": 2}
    with pytest.raises(UsageError, match=r'"size" could be a\.size or b\.size; write it in full'):
        meets(facts, parse("size=1"))
    assert meets(facts, parse("b.size=2"))


@pytest.mark.parametrize(
    ("filters", "asks"),
    [
        (["id=gru-*"], True),
        (["arch=gru fingerprint=0a"], True),
        (["arch=gru", "lr>1 id=a"], True),
        (["name=id", "arch=gru"], False),
        ([], False),
    ],
)
def test_only_conditions_on_id_and_fingerprint_ask_for_the_identity(filters: list[str], asks: bool) -> None:
    assert asks_for_identity(filters) is asks
