"""``[search]``: which runs a search has, and what of it is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.jobs.manifests.test_manifest import BASE, GOOD, RUN, load, names, problems

SEARCH = "\n[search]\nrungs = [3]\n"
SAMPLE = """
[[sample]]
count = 4
model.arch = "rnn"
optim.optimizer = "adam"
optim.lr = { log_uniform = [1e-5, 1e-2] }
"""
SEEDED = {
    "seeds of the file": (f"seeds = [1, 2]\n{GOOD}{SEARCH}", "1", "2"),
    "seeds of an entry": (f"{BASE}{SAMPLE}seeds = [5, 6]\n{SEARCH}", "5", "6"),
    "a grid": (f'{BASE}[[grid]]\nmodel.arch = "rnn"\noptim.optimizer = "sgd"\nseed = [3, 4]\n{SEARCH}', "3", "4"),
    "two entries": (f'{GOOD}{RUN}seed = 7\nname = "b"\ntrain.epochs = 9\n{SEARCH}', "1111", "7"),
}


@pytest.mark.parametrize("kind", SEEDED)
def test_several_seeds_of_a_setting_are_refused_in_one_line_that_says_what_to_do(tmp_path: Path, kind: str) -> None:
    text, first, second = SEEDED[kind]
    (line,) = problems(tmp_path, text)
    assert f"got {first} (" in line
    assert f"{second} (" in line
    assert "search.final_seeds" in line
    assert load(tmp_path, text.replace(SEARCH, "")), "without a search they are welcome"


def test_each_setting_has_its_final_seeds_behind_all_settings(tmp_path: Path) -> None:
    alone = load(tmp_path, f"{BASE}{SAMPLE}{SEARCH}").runs
    several = load(tmp_path, f"{BASE}{SAMPLE}{SEARCH}final_seeds = 3\n").runs
    assert several[: len(alone)] == alone
    further = several[len(alone) :]
    assert [spec.first_seed for spec in alone] == [None] * len(alone)
    firsts = {spec.fingerprint: spec for spec in alone}
    for spec in further:
        first = firsts[spec.first_fingerprint() or ""]
        assert replace(spec.config, seed=first.config.seed) == first.config
    assert len({(spec.first_fingerprint(), spec.config.seed) for spec in further}) == len(further) == 2 * len(alone)
    assert not {spec.fingerprint for spec in further} & firsts.keys()
    assert [spec.order for spec in several] == list(range(3 * len(alone)))
    assert load(tmp_path, f"{BASE}{SAMPLE}{SEARCH}", "search.final_seeds=3").runs == several


def test_a_final_seed_takes_no_name_of_another_run_and_makes_no_study_too_large(tmp_path: Path) -> None:
    text = f"{GOOD}{RUN}optim.lr = 0.5\n{SEARCH}"
    (spec, *_) = load(tmp_path, text.replace(f"{RUN}optim.lr = 0.5\n", "")).runs
    twice = text.replace("optim.lr = 0.5", f'optim.lr = 0.5\nname = "{spec.name}-seed{spec.config.seed + 1}"')
    assert len(names(load(tmp_path, twice))) == 2
    (line,) = problems(tmp_path, f"{twice}final_seeds = 2\n")
    assert "search.final_seeds" in line
    (line,) = problems(tmp_path, f"{GOOD}{SEARCH}final_seeds = 20_000\n")
    assert "10,000" in line
