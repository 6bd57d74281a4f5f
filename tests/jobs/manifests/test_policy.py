from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.backends.local import LocalBackend
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import LaunchOptions
from jobs.manifests.load import Manifest
from jobs.manifests.policy import Policy
from jobs.plan.planned import plan
from jobs.spec import Resources, RunSpec
from jobs.study.kept_code import Code
from seqlm.rundir import RunDirectory
from seqlm.schema import read
from tests.facts import launch_again, start_of
from tests.jobs.manifests import test_manifest
from tests.jobs.manifests.test_manifest import GOOD
from tests.seqlm.training.studies import make_config, write_text

ROOT = Path(__file__).parents[3]


def load(folder: Path, policy: str, *overrides: str) -> Manifest:
    return test_manifest.load(folder, GOOD + policy, *overrides)


def test_a_manifest_without_a_policy_has_the_defaults(tmp_path: Path) -> None:
    policy = load(tmp_path, "").policy
    assert (policy.checkpoint_min, policy.oom, policy.timeout, policy.max_stalled_retries) == (10, 3, 20, 10)
    assert (policy.node, policy.preempted, policy.keep_last) == (None, None, True)


def test_a_manifest_sets_a_policy_and_the_command_line_goes_before_it(tmp_path: Path) -> None:
    text = '[policy]\noom = "unlimited"\nnode = 4\ncheckpoint_min = 0.5\n'
    assert load(tmp_path, text).policy == Policy(oom=None, node=4, checkpoint_min=0.5)
    policy = load(tmp_path, text, "policy.oom=1", "policy.node=unlimited").policy
    assert policy == Policy(oom=1, node=None, checkpoint_min=0.5)
    assert not load(tmp_path, "[policy]\nkeep_last = false\n").policy.keep_last
    text = "[policy]\ngpu_hours = 50\n"
    assert load(tmp_path, text, "policy.core_hours=2.5").policy == Policy(gpu_hours=50, core_hours=2.5)
    assert load(tmp_path, text, "policy.gpu_hours=unlimited").policy == Policy()
    assert load(tmp_path, "[policy]\nkeep_last = false\n", "policy.keep_last=true").policy.keep_last


def test_retries_of_the_command_line_are_those_without_progress() -> None:
    assert Policy(oom=5).with_retries(2) == Policy(oom=5, max_stalled_retries=2)
    assert Policy(max_stalled_retries=4).with_retries(None) == Policy(max_stalled_retries=4)


# -- out of memory, from end to end on this machine ----------------------------------------------------------------

PROGRAM = """
import json, os, sys
folder, parts = sys.argv[1], int(os.environ["SEQLM_MICRO_BATCHES"])
if parts < 4:
    failure = {"kind": "oom", "message": "no memory", "micro_batches": parts}
    json.dump(failure, open(os.path.join(folder, "attempts", os.environ["SEQLM_ATTEMPT"].zfill(4), "end.json"), "w"))
    sys.exit(1)
told = {"minutes": os.environ["SEQLM_CHECKPOINT_MINUTES"], "keep_last": os.environ["SEQLM_KEEP_LAST"]}
json.dump(told, open(os.path.join(folder, "result.json"), "w"))
"""
STAND_IN = ("-c", PROGRAM)


def launch_locally(folder: Path, worker: tuple[str, str], policy: Policy) -> RunDirectory:
    """Dispatch one run with this worker to its end, on the local backend."""
    text = write_text(folder / "text")
    spec = RunSpec(
        name="run",
        config=make_config(epochs=1),
        resources=Resources(cpus=1, gpus=0),
        data_path=text,
    )
    run = RunDirectory.locate(folder, spec.name, spec.fingerprint)
    if not run.path.exists():
        run.create(spec.config, {"name": spec.name})
    backend, code = LocalBackend(), Code(path=ROOT, commit=None, dirty=False, live=True)
    backend.open(code)
    try:
        options = LaunchOptions(study_dir=folder, worker=worker, policy=policy)
        planned = plan(spec, run, run.observe(), has_checkpoint=False, retry=True)
        launch_again(run, policy.to_dict())
        Dispatcher(backend, code, options, writes_queue=False).dispatch([planned])
    finally:
        backend.close()
    return run


@pytest.mark.process
@pytest.mark.usefixtures("no_waiting")
def test_a_run_short_of_memory_goes_on_in_halves_until_it_fits(tmp_path: Path) -> None:
    run = launch_locally(tmp_path, STAND_IN, Policy(checkpoint_min=2.5, keep_last=False))
    assert run.read_result() == {"minutes": "2.5", "keep_last": "0"}
    assert run.attempts() == [1, 2, 3]
    assert [failed.micro_batches for failed in run.failures()] == [1, 2]
    assert start_of(run)["micro_batches"] == 4
    run.result_file.unlink()
    launch_locally(tmp_path, STAND_IN, Policy())
    assert (run.read_result() or {})["keep_last"] == "1"
    assert run.attempts() == [1, 2, 3, 4], "another launch starts with what was needed before"


@pytest.mark.process
@pytest.mark.usefixtures("no_waiting")
def test_the_real_trainer_short_of_memory_ends_done_with_four_micro_batches(tmp_path: Path) -> None:
    run = launch_locally(tmp_path, ("-m", "tests.seqlm.training.tight"), Policy())
    assert (run.read_result() or {})["micro_batches"] == 4
    records = [json.loads(run.worker_file(attempt).read_text())["micro_batches"] for attempt in (1, 2, 3)]
    assert records == [1, 2, 4]
    assert {failed.kind for failed in run.failures()} == {"oom"}


# -- the table's own -----------------------------------------------------------------------------------------------


def test_a_policy_survives_the_trip_through_its_table() -> None:
    policy = Policy(
        checkpoint_min=2.5, oom=None, timeout=0, node=4, max_stalled_retries=1, keep_last=False, gpu_hours=0.5
    )
    written = {"checkpoint_min": 2.5, "oom": "unlimited", "timeout": 0, "node": 4}
    written |= {"gpu_hours": 0.5, "core_hours": "unlimited"}
    assert policy.to_dict() == {**written, "preempted": "unlimited", "max_stalled_retries": 1, "keep_last": False}
    assert read(Policy, policy.to_dict()) == policy
