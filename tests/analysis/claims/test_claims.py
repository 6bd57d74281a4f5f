"""Claims follow from the data, and from what the data can carry."""

import math
import os
import random
import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis import report
from analysis.claims.answer import Answer
from analysis.claims.answers import answers
from analysis.claims.claim import Claim, Kind
from analysis.claims.verdict import Verdict
from analysis.study.study import load_study
from seqlm.comparisons import compared, file_typed
from seqlm.rundir import RunDirectory
from tests.analysis import test_golden
from tests.analysis.claims.made_up import ARCHS, LOSSES, make_paper, make_study
from tests.analysis.claims.oracle import Oracle
from tests.analysis.sections.test_search import make_many

SEEDS = {(arch, "adam"): 2 for arch in ARCHS}

pytestmark = pytest.mark.usefixtures("blank_figures")


def claims_of(study_dir: Path) -> list[Claim]:
    return [claim for answer in answers_of(study_dir) for claim in answer.claims]


def answers_of(study_dir: Path) -> list[Answer]:
    found, warnings = answers(load_study(study_dir))
    assert warnings == []
    return found


def facts_of(claims: Sequence[Claim], names: Callable[[str], str] = str) -> set[tuple[Any, ...]]:
    """What claims say, without what the number of a run or a clock decides."""
    return {
        (
            claim.question,
            claim.kind,
            claim.measure,
            tuple(re.sub(r"(?<!\w)[\d/]+ ", "", member) for member in claim.members),
            claim.verdict,
        )
        for claim in claims
    }


def told(claims: Sequence[Claim]) -> set[tuple[str, str, str, str]]:
    """The pairs of which a claim says that the first has less, and by which measure."""
    found = set()
    for claim in claims:
        if claim.kind in (Kind.COMPARE, Kind.FIRST) and claim.is_clear:
            a, b = (re.sub(r"^[\d/]+ ", "", member) for member in claim.members[:2])
            pair = (a, b) if claim.is_less else (b, a)
            found.add((claim.measure, str(claim.given.get("target", "")), *pair))
    return found


STUDIES: dict[str, dict[str, Any]] = {
    "one seed": {},
    "seeds": {"seeds": SEEDS},
    "behaviours": {"seeds": SEEDS, "behaviours": True, "seq_len": 2},
    "without tokens": {"with_tokens": False},
    "seeds without tokens": {"seeds": SEEDS, "with_tokens": False},
}


@pytest.mark.parametrize("made", STUDIES.values(), ids=STUDIES)
def test_every_claim_follows_from_the_data(tmp_path: Path, made: dict[str, Any]) -> None:
    make_study(tmp_path / "study", **made)
    report.write_report(tmp_path / "study")
    oracle = Oracle(tmp_path / "study", tmp_path / "study" / "report")
    assert len(oracle.claims) > 15
    assert list(oracle.faults()) == []


def compare_over_seeds(study_dir: Path, a: str, b: str) -> None:
    """File a comparison of the settings of the runs whose names begin so."""
    configs = {run.id: run.read_config() for run in RunDirectory.unordered_in(study_dir)}
    sides = [{run: config for run, config in configs.items() if run.startswith(side)} for side in (a, b)]
    typed = compared((a, b), (sides[0], sides[1]), configs, margin=0.02, error=0.05)
    file_typed(study_dir, typed, margin=None, error=None)


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.05, "told apart"), (0.008, "not told apart"), (0.0, "not told apart")]
)
def test_settings_that_are_compared_over_seeds_have_that_verdict_everywhere(
    tmp_path: Path, gain: float, verdict: str
) -> None:
    """Also if it is compared the other way round; other pairs have that of the policy."""
    sides = ("gru", "sgd"), ("gru", "adam")
    losses = {sides[0]: 4.1, sides[1]: 4.1 + gain}
    make_study(tmp_path / "study", seeds=dict.fromkeys(sides, 9), losses=losses)
    compare_over_seeds(tmp_path / "study", "gru-adam", "gru-sgd-")
    report.write_report(tmp_path / "study")
    oracle = Oracle(tmp_path / "study", tmp_path / "study" / "report")
    assert list(oracle.faults()) == []
    of_pair = [claim for claim in oracle.claims if "over_seeds" in claim["given"]]
    assert of_pair
    assert {claim["verdict"] for claim in of_pair} == {verdict}
    assert len(of_pair) < sum(claim["kind"] == "compare" for claim in oracle.claims)


@pytest.mark.parametrize("name", [name for name in test_golden.STUDIES if name != "nine"])
def test_every_claim_on_a_small_study_follows_from_the_data(tmp_path: Path, name: str) -> None:
    """A search, published results, unfinished and diverged runs, several texts, runs of unequal length."""
    test_golden.STUDIES[name](tmp_path / name)
    report.write_report(tmp_path / name, output=tmp_path / "report")
    assert list(Oracle(tmp_path / name, tmp_path / "report").faults()) == []


def test_every_claim_on_the_published_study_follows_from_the_data(tmp_path: Path) -> None:
    make_paper(tmp_path / "paper")
    report.write_report(tmp_path / "paper", output=tmp_path / "report")
    oracle = Oracle(tmp_path / "paper", tmp_path / "report")
    assert list(oracle.faults()) == []
    verdicts = {tuple(claim["members"]): claim["verdict"] for claim in oracle.claims if claim["question"] == "expected"}
    assert verdicts["6 gru-sgd_schedule", "5 gru-sgd"] == "told apart", "published replications give the noise"


@pytest.mark.parametrize("name", ["made up", "search", "published", "unfinished"])
def test_the_oracle_notices_a_claim_that_is_wrong(tmp_path: Path, name: str) -> None:
    study_dir = tmp_path / "study"
    if name == "made up":
        make_study(study_dir, seeds=SEEDS, behaviours=True, seq_len=2)
    else:
        test_golden.STUDIES[name](study_dir)
    report.write_report(study_dir)
    oracle = Oracle(study_dir, study_dir / "report")
    for claim in oracle.claims:
        spoiled = {**claim, "values": [1.1 * value + 0.1 for value in claim["values"]]}
        assert list(oracle.faults_of(spoiled)), claim


@pytest.mark.slow
def test_every_claim_on_a_search_of_many_settings_follows_from_the_data(tmp_path: Path) -> None:
    make_many(tmp_path / "search", 60)
    report.write_report(tmp_path / "search")
    oracle = Oracle(tmp_path / "search", tmp_path / "search" / "report")
    assert "importance" in {claim["measure"] for claim in oracle.claims}
    assert list(oracle.faults()) == []


def test_losses_that_would_fill_the_memory_are_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study(tmp_path / "study")
    monkeypatch.setattr("analysis.claims.facts.MOST_BYTES", 100_000)
    found, warnings = answers(load_study(tmp_path / "study"))
    assert len(warnings) == 1
    verdicts = {claim.verdict for answer in found for claim in answer.claims if claim.question == "optimizers"}
    assert Verdict.UNKNOWN in verdicts


@pytest.mark.parametrize("damage", ["a pipe", "huge", "nonsense", "of another epoch"])
def test_losses_that_cannot_be_used_cost_verdicts_alone(tmp_path: Path, damage: str) -> None:
    runs = make_study(tmp_path / "study")
    path = runs[0].token_losses_file
    whole = path.read_bytes()
    path.unlink()
    match damage:
        case "a pipe":
            os.mkfifo(path)
        case "huge":
            with path.open("wb") as sparse:
                sparse.truncate(2**40)
        case "nonsense":
            path.write_bytes(b"\xff" * 1001)
        case "of another epoch":
            path.write_bytes(array("f", [2 * loss for loss in array("f", whole)]).tobytes())
    found, warnings = answers(load_study(tmp_path / "study"))
    assert len(warnings) == (damage in ("a pipe", "huge"))
    of_run = [one for answer in found for one in answer.claims if "1 rnn-adam" in one.members[:2]]
    assert Verdict.UNKNOWN in {claim.verdict for claim in of_run}


def test_nothing_is_told_of_losses_where_chance_is_not_known(tmp_path: Path) -> None:
    make_study(tmp_path / "study", with_tokens=False)
    assert not [claim for claim in claims_of(tmp_path / "study") if claim.is_clear and claim.measure == "val_ppl"]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_runs_changes_no_claim(tmp_path: Path, seed: int) -> None:
    order = list(range(len(LOSSES) + 3))
    random.Random(seed).shuffle(order)
    make_study(tmp_path / "a", seeds=SEEDS)
    make_study(tmp_path / "b", seeds=SEEDS, order=order)
    one, other = claims_of(tmp_path / "a"), claims_of(tmp_path / "b")
    assert told(one) == told(other)


def test_a_machine_that_is_three_times_as_slow_changes_no_claim(tmp_path: Path) -> None:
    make_study(tmp_path / "a", seeds=SEEDS)
    make_study(tmp_path / "b", seeds=SEEDS, time_factor=3.0)
    assert facts_of(claims_of(tmp_path / "a")) == facts_of(claims_of(tmp_path / "b"))


@pytest.mark.parametrize("epoch", [0, 3, 6])
def test_one_slow_epoch_changes_no_claim(tmp_path: Path, epoch: int) -> None:
    make_study(tmp_path / "a", seeds=SEEDS)
    make_study(tmp_path / "b", seeds=SEEDS, slow={"gru-sgd": (epoch, 10.0)})
    assert told(claims_of(tmp_path / "a")) == told(claims_of(tmp_path / "b"))


@pytest.mark.parametrize("spoiled", [("gru", "sgd"), ("transformer", "adam"), ("rnn", "adam")])
def test_a_setting_that_is_made_worse_gains_no_place(tmp_path: Path, spoiled: tuple[str, str]) -> None:
    make_study(tmp_path / "a", seeds=SEEDS)
    make_study(tmp_path / "b", seeds=SEEDS, losses={spoiled: LOSSES[spoiled] + 0.2})
    name = "-".join(spoiled)

    def gained(claims: Sequence[Claim]) -> set[str]:
        return {b for measure, _, a, b in told(claims) if measure == "val_ppl" and a == name}

    before, after = gained(claims_of(tmp_path / "a")), gained(claims_of(tmp_path / "b"))
    assert after <= before


@pytest.mark.parametrize(("gru", "agreeing"), [(0.3, 3), (-0.1, 2)])
def test_rare_words_go_with_adam_if_they_gain_in_each_architecture(tmp_path: Path, gru: float, agreeing: int) -> None:
    make_study(tmp_path / "study", rare={"rnn": 0.2, "gru": gru, "transformer": 0.1})
    (claim,) = [one for one in claims_of(tmp_path / "study") if "rare words" in one.given.get("mechanism", "")]
    assert (claim.given["agreeing"], claim.given["pairs"]) == (agreeing, 3)
    assert claim.values == pytest.approx([0.2, gru, 0.1])
    (said,) = [answer for answer in answers_of(tmp_path / "study") if answer.name == "curious"]
    assert ("No measured cause: rare words" in said.points[0]) == (agreeing < 3)
    assert "because" not in " ".join([*said.points, *said.details])


def test_one_setting_that_learns_nothing_does_not_decide_which_is_the_fastest(tmp_path: Path) -> None:
    """All reach what it reaches after their first epoch; the question is which reaches what half of them reach."""
    losses = {("rnn", "sgd"): 7.0}
    make_study(tmp_path / "study", seeds=SEEDS, losses=losses)
    claims = [one for one in claims_of(tmp_path / "study") if one.question == "picks"]
    first, *_ = [one for one in claims if one.measure == "seconds_to_target"]
    assert len(LOSSES) / 2 <= len(first.members) < len(LOSSES)
    assert first.given["target"] < math.exp(7.0) / 2
    (said,) = [answer for answer in answers_of(tmp_path / "study") if answer.name == "picks"]
    best, costly = claims[0].members[0], first.members[0]
    assert ("neither costs" in " ".join(said.points)) == (best == costly)


def test_the_costs_of_the_settings_for_time_and_for_generalisation_are_said_if_they_differ(tmp_path: Path) -> None:
    """The lowest needs as many epochs as the next, and longer ones."""
    losses = {("gru", "sgd"): 4.09, ("transformer", "adam"): 4.11, ("gru", "adam"): 4.16}
    make_study(tmp_path / "study", losses=losses)
    (answer,) = [one for one in answers_of(tmp_path / "study") if one.name == "picks"]
    first, *_ = [one for one in answer.claims if one.measure == "seconds_to_target"]
    best, soon = "5 gru-sgd", "7 transformer-adam"
    assert (answer.claims[0].members[0], first.members[0]) == (best, soon)
    assert [one for one in answer.claims if one.kind == Kind.COMPARE and one.members == (best, soon)]
    assert "neither costs" not in answer.points[1]
    assert f"after {first.values[first.members.index(best)]:.3g} s" in answer.points[1]


def test_two_settings_have_one_order_wherever_they_are_compared(tmp_path: Path) -> None:
    make_study(tmp_path / "study", seeds=SEEDS)
    orders: dict[frozenset[str], set[str]] = {}
    for measure, target, a, b in told(claims_of(tmp_path / "study")):
        orders.setdefault(frozenset((measure, target, a, b)), set()).add(a)
    assert all(len(firsts) == 1 for firsts in orders.values())


def test_each_question_is_answered_or_says_why_not(tmp_path: Path) -> None:
    make_study(tmp_path / "study")
    for answer in answers_of(tmp_path / "study"):
        assert answer.points, answer.name
        assert answer.claims or any(point.startswith("Cannot be answered: ") for point in answer.points), answer.name


COMPARATIVES = re.compile(
    r"\b(lower|higher|better|worse|faster|slower|sooner|later|shorter|longer|smaller|larger|more reliable|"
    r"less reliable|most reliable|least reliable|best|worst|fastest|slowest|unstable|beats|outperforms|helps|because)\b"
)


def test_no_template_of_a_sentence_compares() -> None:
    folder = Path(report.__file__).parent / "templates" / "sentences"
    found = {}
    for path in sorted(folder.glob("*.j2")):
        text = re.sub(r"\{[{%#].*?[}%#]\}", " ", path.read_text("utf-8"), flags=re.DOTALL)
        words = set(COMPARATIVES.findall(text))
        if words and not path.name.startswith("caption_"):
            found[path.name] = words
    assert not found
