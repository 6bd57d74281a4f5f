"""Which models are examined, who rates their samples, and when a result is computed again."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from jobs.launch.behaviour import BehaviourLaunch, choose, panel_of
from jobs.manifests.policy import Policy
from jobs.study.folder import ObservedRun, is_behaviour_study, observe_study, study_name
from jobs.study.launched import TASK_SETTINGS
from seqlm.config import RunConfig
from seqlm.errors import UsageError
from seqlm.files import read_json, write_json, write_json_lines
from seqlm.records.runs import Provenance
from seqlm.rundir import BEHAVIOUR_VERSION, RunDirectory, study_record_file
from seqlm.trust import record_launch, table_digest
from tests.facts import launch_again
from tests.seqlm.training.studies import make_config, make_run


def done_run(
    study_dir: Path, name: str, ppl: float | None, *, arch: str = "rnn", seed: int = 0, checkpoint: bool = True
) -> RunDirectory:
    """A run that has finished with this validation perplexity."""
    config = make_config(arch, seed=seed)
    run = RunDirectory.locate(study_dir, name, config.fingerprint())
    run.create(config, Provenance(name=name, order=seed))
    epoch = {"epoch": 0, "val_ppl": ppl, "train_tokens_per_second": 7.0}
    write_json_lines(run.metrics_file, [epoch])
    write_json(run.result_file, {"best_val_ppl": ppl})
    if checkpoint:
        run.best_checkpoint.write_bytes(f"the parameters of {name}".encode())
    return run


def observed(study_dir: Path, name: str) -> ObservedRun:
    return next(run for run in observe_study(study_dir) if run.name == name)


def names(runs: list[ObservedRun]) -> list[str]:
    return [run.name for run in runs]


# -- which ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two RNNs, two GRUs and a Transformer that is not done."""
    study_dir = tmp_path / "runs" / "small"
    done_run(study_dir, "rnn-a", 30.0, seed=1)
    done_run(study_dir, "rnn-b", 20.0, seed=2)
    done_run(study_dir, "gru-a", 10.0, arch="gru", seed=3)
    done_run(study_dir, "gru-b", 15.0, arch="gru", seed=4)
    unfinished = done_run(study_dir, "transformer", 5.0, arch="transformer", seed=5)
    unfinished.result_file.unlink()
    return study_dir


def test_without_a_word_the_best_finished_run_of_each_architecture_is_chosen(grid: Path) -> None:
    assert names(choose(observe_study(grid))) == ["rnn-b", "gru-a"]


def test_a_run_without_a_finite_perplexity_is_no_best_run(tmp_path: Path) -> None:
    done_run(tmp_path, "rnn-a", None, seed=1)
    assert choose(observe_study(tmp_path)) == []
    done_run(tmp_path, "rnn-b", 9.0, seed=2)
    assert names(choose(observe_study(tmp_path))) == ["rnn-b"]


def test_the_record_of_the_study_says_which_and_filters_say_it_over_the_record(grid: Path) -> None:
    wanted = [observed(grid, name).run.read_config().fingerprint() for name in ("rnn-a", "transformer")]
    write_json(grid / "study.json", {"behaviour": wanted})
    assert [job.run.name for job in BehaviourLaunch(grid).jobs] == ["rnn-a"], "what is not done has no behaviour yet"
    assert [job.run.name for job in BehaviourLaunch(grid, only=["arch=gru"]).jobs] == ["gru-a", "gru-b"]
    assert [job.run.name for job in BehaviourLaunch(grid, exclude=["name=rnn-b"]).jobs] == ["rnn-a", "gru-a", "gru-b"]
    with pytest.raises(UsageError, match="no run passes"):
        BehaviourLaunch(grid, only=["arch=rnn lr>9"])
    (grid / "study.json").write_text('{"behaviour": []}')
    assert [job.run.name for job in BehaviourLaunch(grid).jobs] == ["rnn-b", "gru-a"]


def panel(study_dir: Path, name: str) -> set[str]:
    return set(names(panel_of(observed(study_dir, name), observe_study(study_dir))))


def test_one_panel_of_the_second_best_run_of_each_architecture_rates_all_runs_of_a_text(grid: Path) -> None:
    assert [panel(grid, name) for name in ("rnn-a", "rnn-b", "gru-a", "transformer")] == [{"rnn-a", "gru-b"}] * 4
    done_run(grid, "gru-c", 17.0, arch="gru", seed=6)
    done_run(grid, "transformer-b", 9.0, arch="transformer", seed=7)
    assert panel(grid, "rnn-b") == {"rnn-a", "gru-b"}, "an architecture with a single finished run has no member"
    observed(grid, "gru-b").run.best_checkpoint.unlink()
    assert panel(grid, "rnn-b") == {"rnn-a", "gru-c"}, "the next one whose checkpoint still exists"
    observed(grid, "rnn-b").run.best_checkpoint.unlink()
    assert panel(grid, "gru-a") == {"rnn-a", "gru-c"}, "the best one stays the best"


def test_a_model_of_another_text_is_in_no_panel(tmp_path: Path) -> None:
    done_run(tmp_path, "rnn-a", 30.0, seed=1)
    done_run(tmp_path, "rnn-b", 20.0, seed=3)
    raw = make_config(seed=2).to_dict()
    raw["data"]["level"] = "char"
    config = RunConfig.from_dict(raw)
    other = RunDirectory.locate(tmp_path, "chars", config.fingerprint())
    other.create(config, Provenance(name="chars"))
    write_json_lines(other.metrics_file, [{"epoch": 0, "val_ppl": 2.0}])
    write_json(other.result_file, {})
    other.best_checkpoint.write_bytes(b"characters")
    assert panel(tmp_path, "rnn-a") == {"rnn-a"}
    assert panel(tmp_path, "chars") == set()


# -- whether it still holds ----------------------------------------------------------------------------------------

CONFIG = make_config(seed=7)


def pretend_computed(study_dir: Path, given: Mapping[str, Any] = MappingProxyType({}), **result: Any) -> None:
    """Leave for each job what its worker would."""
    for job in BehaviourLaunch(study_dir, given=given).jobs:
        assert job.run.config is not None
        job.folder.create(job.run.config, Provenance(name=job.run.name))
        write_json(job.folder.task_file, {"panel": job.panel_ids, "settings": job.settings})
        record_launch(study_dir, {table_digest(TASK_SETTINGS, job.settings)})
        made = {
            "version": BEHAVIOUR_VERSION,
            "checkpoint_sha256": job.checkpoint_sha256,
            "panel_sha256": job.panel_sha256,
            "settings": {"window": 10, "samples": 10, "lengths": [5, 10], "prompt": None, **job.settings},
        }
        write_json(job.folder.result_file, {**made, **result})
        write_json(job.run.run.behaviour_file, {})
        write_json_lines(job.run.run.samples_file, [])
        job.run.run.losses_file.write_bytes(b"")


@pytest.mark.parametrize(
    ("before", "given", "expected"),
    [
        ({}, {}, True),
        ({}, {"window": 10}, True),
        ({}, {"window": 12}, False),
        ({"window": 12}, {"window": 12}, True),
        ({"window": 12}, {}, True),
        ({"window": 12}, {"samples": 3}, False),
        ({"prompt": "the dog"}, {"prompt": "the cat"}, False),
    ],
)
def test_a_result_holds_for_the_settings_that_it_was_made_with(
    grid: Path, before: dict[str, Any], given: dict[str, Any], expected: bool
) -> None:
    pretend_computed(grid, before)
    wanted = BehaviourLaunch(grid, given=given)
    assert (wanted.specs == []) is expected
    assert {**before, **given}.items() <= wanted.jobs[0].settings.items(), "what no flag sets is as before"


@pytest.mark.parametrize(
    "result",
    [
        {"version": BEHAVIOUR_VERSION - 1},
        {"checkpoint_sha256": "other"},
        {"panel_sha256": []},
        {"panel_sha256": ["other", "other"]},
        {"settings": None},
        {"settings": {}},
    ],
)
def test_a_result_of_other_checkpoints_or_of_unknown_settings_does_not_hold(grid: Path, result: dict[str, Any]) -> None:
    pretend_computed(grid, {"samples": 3}, **result)
    assert todo(grid) == ["rnn-b", "gru-a"]


def todo(study_dir: Path, **asked: Any) -> list[str]:
    return [spec.name for spec in BehaviourLaunch(study_dir, **asked).specs]


def test_after_an_extension_it_is_computed_anew_if_a_later_epoch_is_better(grid: Path) -> None:
    pretend_computed(grid)
    seen = [observed(grid, name) for name in ("rnn-b", "gru-a")]
    runs, best = [one.run for one in seen], [one.observation.best_val_ppl for one in seen]
    epochs = runs[0].read_config().train.epochs + 1
    for run, ppl in zip(runs, best, strict=True):
        run.create(run.read_config().with_epochs(epochs), run.read_provenance())
        write_json(run.result_file, {"epochs": epochs - 1, "best_val_ppl": ppl})
    assert todo(grid) == ["rnn-a", "gru-b"], "the others train again"
    for run, ppl in zip(runs, best, strict=True):
        write_json(run.result_file, {"epochs": epochs, "best_val_ppl": ppl})
    assert todo(grid) == [], "their best epochs are those of before"
    runs[0].best_checkpoint.write_bytes(b"the parameters of a later epoch")
    assert todo(grid) == ["rnn-b"]
    pretend_computed(grid)
    assert todo(grid) == []
    assert RunDirectory(grid / "behaviour" / runs[0].id).read_config().train.epochs == epochs


# -- as a launcher takes them --------------------------------------------------------------------------------------


def test_a_job_goes_by_the_policy_of_its_study_but_takes_no_micro_batches(tmp_path: Path) -> None:
    done_run(tmp_path, "rnn-a", 30.0)
    write_json(study_record_file(tmp_path), {"policy": {"oom": 5, "timeout": 7}})
    assert BehaviourLaunch(tmp_path).study().policy == Policy(oom=0, timeout=7)


def test_the_result_of_an_earlier_request_is_none_of_a_later_one(tmp_path: Path) -> None:
    done_run(tmp_path, "rnn-a", 30.0)
    done_run(tmp_path, "rnn-b", 40.0, seed=1)
    pretend_computed(tmp_path)
    (job,) = BehaviourLaunch(tmp_path).jobs
    write_json(job.folder.result_file, {**(read_json(job.folder.result_file) or {}), "attempt": 1})
    assert job.folder.observe().state == "done"
    job.folder.attempt_dir(1).mkdir(parents=True, exist_ok=True)
    launch_again(job.folder)
    assert job.folder.observe().state == "pending"


def test_a_folder_is_one_of_behaviour_jobs_by_the_runs_around_it(grid: Path, tmp_path: Path) -> None:
    assert is_behaviour_study(grid / "behaviour")
    assert study_name(grid / "behaviour") == "small/behaviour"
    make_run(tmp_path / "runs" / "behaviour" / "run-1", CONFIG)
    assert not is_behaviour_study(tmp_path / "runs" / "behaviour"), "a study that happens to be called so"
    assert study_name(tmp_path / "runs" / "behaviour") == "behaviour"
