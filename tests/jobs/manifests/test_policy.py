from __future__ import annotations

from pathlib import Path

from jobs.manifests.load import Manifest
from jobs.manifests.policy import Policy
from seqlm.schema import read
from tests.jobs.manifests import test_manifest
from tests.jobs.manifests.test_manifest import GOOD


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


# -- the table's own -----------------------------------------------------------------------------------------------


def test_a_policy_survives_the_trip_through_its_table() -> None:
    policy = Policy(
        checkpoint_min=2.5, oom=None, timeout=0, node=4, max_stalled_retries=1, keep_last=False, gpu_hours=0.5
    )
    written = {"checkpoint_min": 2.5, "oom": "unlimited", "timeout": 0, "node": 4}
    written |= {"gpu_hours": 0.5, "core_hours": "unlimited"}
    assert policy.to_dict() == {**written, "preempted": "unlimited", "max_stalled_retries": 1, "keep_last": False}
    assert read(Policy, policy.to_dict()) == policy
