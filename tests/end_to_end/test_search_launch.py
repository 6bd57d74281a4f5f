"""A search on this machine. That it leaves the results of runs as they are: ``tests/seqlm/training/test_rungs.py``."""

import json
from pathlib import Path

import pytest

from seqlm.config import RunConfig
from seqlm.files import write_json_lines
from seqlm.records.runs import Rung
from seqlm.rundir import RunDirectory
from tests import commands, searches
from tests.crawl import Crawl
from tests.facts import failure_of
from tests.seqlm.training.studies import make_run
from tests.small_study import Study, read_soon

pytestmark = pytest.mark.process


def test_a_search_stops_what_is_behind_although_a_worker_is_killed_and_retry_lets_it_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crawl = Crawl(tmp_path, epochs=1)
    for name, value in crawl.env.items():
        monkeypatch.setenv(name, value)
    study = Study(tmp_path, stub=True, epochs=searches.EPOCHS, rates=searches.RATES, cpus=1)
    study.write(searches.TABLE)
    launcher = study.start("run", "small.toml")
    victim = searches.kill_between_rungs(study.runs)
    before = victim.rung_file(1).read_text()
    crawl.end()
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 0, stderr
    assert victim.attempts() == [1, 2]
    runs = study.runs()
    ends = searches.ends_of(runs)
    stopped = [run for run in runs if ends[run.id] < searches.EPOCHS]
    assert stopped
    assert victim.rung_file(1).read_text() == before, "decided once"
    for run in stopped:
        found = run.read_stopped() or Rung()
        assert (found.value, (found.rank or 0) > (found.goes_on or 0)) == (run.read_metrics()[0][-1]["val_ppl"], True)
    status = study("status", "small.toml")
    assert all(str(run.observe().reason) in status.stdout for run in stopped)

    assert "0 of 4 runs to do" in study("run", "small.toml").stderr
    again = study("retry", "small.toml", "--kind", "stopped", "--json")
    while any(run["state"] == "stopped" for run in json.loads(again.stdout)["data"]["runs"]):  # at the next rung
        again = study("retry", "small.toml", "--kind", "stopped", "--json")
    assert again.returncode == 0
    assert set(searches.ends_of(runs).values()) == {searches.EPOCHS}


def test_all_ranks_of_a_run_leave_at_its_rung_and_go_on_together(tmp_path: Path) -> None:
    study = Study(tmp_path, lines=60, ranks=2, cpus=1)
    study.write("[search]", "rungs = [1]", "min_runs = 1", "keep = 0.5")
    (planned,) = commands.ask(["plan", "small.toml"], folder=tmp_path, env=study.env)["runs"]
    for number in (1, 2):
        like = RunConfig.from_dict({**planned["config"], "seed": number})
        better = make_run(tmp_path / f"runs/small/better-{number:08x}", like)
        write_json_lines(better.metrics_file, [{"epoch": 0, "val_ppl": 1.5}])
    first = study("run", "small.toml")
    assert first.returncode == 0, first.stderr
    assert "stopped at epoch 1: 3rd of 3, keeps 2" in first.stderr
    (run,) = [run for run in study.runs() if run.id.startswith("rnn")]
    assert all("ended_at" in read_soon(run.end_file(1, rank)) for rank in (0, 1))
    assert failure_of(run) is None
    skipped = study("run", "small.toml")
    assert "`retry --kind stopped` lets it go on" in skipped.stderr
    assert "nothing to retry" in study("retry", "small.toml").stdout
    again = study("retry", "small.toml", "--kind", "stopped")
    assert again.returncode == 0, again.stderr
    assert (run.observe().state, run.attempts()) == ("done", [1, 2])


def test_runs_on_different_vocabularies_do_not_stop_each_other(tmp_path: Path) -> None:
    study = Study(tmp_path, lines=60, cpus=1)
    study.manifest.write_text(study.manifest.read_text().partition("[[grid]]")[0])
    study.write("[search]", "rungs = [1]", "min_runs = 1", "keep = 0.5", "[resources]", "cpus = 1")
    for number, size in enumerate((5, 40)):  # the smaller vocabulary, of lower perplexities, comes to the rung first
        study.write("[[run]]", f'name = "of-{size}"', 'model.arch = "rnn"', 'optim.optimizer = "adam"')
        study.write("optim.lr = 0.01", f"data.vocab_size = {size}", f"resources.priority = {-number}")
    launched = study("run", "small.toml", "--max-parallel", "1")
    assert launched.returncode == 0, launched.stderr
    assert study.states() == {"of-5": "done", "of-40": "done"}


def test_settings_that_reach_the_end_get_their_final_seeds_and_no_other_does(tmp_path: Path) -> None:
    study = Study(tmp_path, stub=True, epochs=searches.EPOCHS, rates=searches.RATES, cpus=1)
    study.write(searches.TABLE, "final_seeds = 3")
    launched = study("run", "small.toml", "--max-parallel", "1")
    assert launched.returncode == 0, launched.stderr

    def seeds_by_rate() -> dict[float, dict[str, str]]:
        found: dict[float, dict[str, str]] = {rate: {} for rate in searches.RATES}
        for run in study.status():
            config = RunDirectory(tmp_path / "runs/small" / run["id"]).read_config()
            found[config.optim.lr][f"seed {config.seed}"] = run["state"]
        return found

    settings = seeds_by_rate()
    assert all(len(seeds) == 3 for seeds in settings.values())
    assert {len(set(seeds.values())) for seeds in settings.values()} == {1}, "all seeds of a setting end alike"
    stopped = [rate for rate, seeds in settings.items() if "stopped" in seeds.values()]
    assert 0 < len(stopped) < len(settings)
    trained = {run.id for run in study.runs() if run.attempts()}
    assert len(trained) == 3 * (len(settings) - len(stopped)) + len(stopped), "one seed is enough to search"
    compared = [run for run in study.runs() if run.read_rungs()]
    assert len({run.read_config().optim.lr for run in compared}) == len(compared) == len(settings)

    assert "0 of 12 runs to do" in study("run", "small.toml").stderr
    again = study("retry", "small.toml", "--kind", "stopped", "--json")
    while any(run["state"] == "stopped" for run in json.loads(again.stdout)["data"]["runs"]):  # at the next rung
        again = study("retry", "small.toml", "--kind", "stopped", "--json")
    assert study.each() == 12 * ["done"]


def test_a_diverged_draw_is_an_outcome_of_a_search_and_another_failure_is_not(tmp_path: Path) -> None:
    codes = {}
    for kind in ("diverged", "code"):
        for table in (searches.TABLE, ""):
            folder = tmp_path / f"{kind}{len(table)}"
            study = Study(folder, stub=True, epochs=searches.EPOCHS, rates=searches.RATES[:2], cpus=1)
            study.write(table)
            env = {**study.env, "SEQLM_TEST_STUB": json.dumps({"1/0": kind})}
            codes[kind, bool(table)] = study("run", "small.toml", env=env).returncode
            assert study.each() == ["failed", "failed"]
    assert codes == {("diverged", True): 0, ("diverged", False): 1, ("code", True): 1, ("code", False): 1}
