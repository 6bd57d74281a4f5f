"""Two runs whose fingerprints begin with the same digits, which name their folders: neither is taken for the other."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.launch.prepare import plan_runs, resolve_specs
from jobs.spec import RunSpec
from seqlm.config import RunConfig
from seqlm.errors import UsageError
from seqlm.files import write_json
from seqlm.records.runs import Provenance
from tests.facts import make_folder
from tests.seqlm.training.studies import make_config

CONFIG = RunConfig.from_dict({**make_config().to_dict(), "data": {"corpus": "ptb"}})
SEEDS = (20004, 35681)
"""Found by trying seeds in order."""
FIRST, SECOND = (RunSpec(name=f"seed{seed}", config=replace(CONFIG, seed=seed)) for seed in SEEDS)


def test_both_in_one_launch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"seed35681: .* seed20004"):
        resolve_specs([FIRST, SECOND], None)
    assert len(resolve_specs([FIRST, replace(FIRST, name="again")], None)) == 2, "the manifest's check refuses these"


def test_a_run_is_not_done_with_the_result_of_another(tmp_path: Path) -> None:
    run = make_folder(tmp_path, FIRST)
    write_json(run.result_file, {"epochs": FIRST.config.train.epochs, "best_val_ppl": 1.0})
    assert [item.reason for item in plan_runs([FIRST], tmp_path)] == ["done"]
    with pytest.raises(UsageError, match=f"seed35681.*{run.path}"):
        plan_runs([SECOND], tmp_path)
    with pytest.raises(UsageError, match=str(run.path)):
        run.create(SECOND.config, Provenance(name=SECOND.name))
