from pathlib import Path

from jobs.manifests.load import Manifest
from jobs.manifests.policy import Policy
from tests.jobs.manifests import test_manifest
from tests.jobs.manifests.test_manifest import GOOD


def load(folder: Path, policy: str, *overrides: str) -> Manifest:
    return test_manifest.load(folder, GOOD + policy, *overrides)


def test_a_manifest_sets_a_policy_and_the_command_line_goes_before_it(tmp_path: Path) -> None:
    text = '[policy]\noom = "unlimited"\nnode = 4\ncheckpoint_min = 0.5\n'
    assert load(tmp_path, text).policy == Policy(oom=None, node=4, checkpoint_min=0.5)
    policy = load(tmp_path, text, "policy.oom=1", "policy.node=unlimited").policy
    assert policy == Policy(oom=1, node=None, checkpoint_min=0.5)
    assert not load(tmp_path, "[policy]\nkeep_last = false\n").policy.keep_last
    assert load(tmp_path, "[policy]\nkeep_epochs = [10, 2]\n").policy == Policy(keep_epochs=(10, 2))
    text = "[policy]\ngpu_hours = 50\n"
    assert load(tmp_path, text, "policy.core_hours=2.5").policy == Policy(gpu_hours=50, core_hours=2.5)
    assert load(tmp_path, text, "policy.gpu_hours=unlimited").policy == Policy()
    assert load(tmp_path, "[policy]\nkeep_last = false\n", "policy.keep_last=true").policy.keep_last


def test_retries_of_the_command_line_are_those_without_progress() -> None:
    assert Policy(oom=5).with_retries(2) == Policy(oom=5, max_stalled_retries=2)
    assert Policy(max_stalled_retries=4).with_retries(None) == Policy(max_stalled_retries=4)
