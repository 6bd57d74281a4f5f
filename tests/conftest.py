"""Set up before any module of ours is imported: shapes are checked at run time, the user's files stay untouched."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ["OMP_NUM_THREADS"] = "1"  # several test processes share the machine
if "SEQLM_DATA" in os.environ:  # the tests of the real Penn Treebank read it, and nothing else does
    os.environ["SEQLM_TEST_DATA"] = os.environ["SEQLM_DATA"]
os.environ["SEQLM_BACKEND"] = "local"  # Ray listens on the machine's own address: its tests have a network of their own
os.environ.pop("RAY_ADDRESS", None)
for variable in ("SEQLM_DATA", "SEQLM_RUNS", "SEQLM_DEVICE", "SEQLM_ATTEMPT", "SEQLM_RENDEZVOUS"):
    os.environ.pop(variable, None)
sys.path.insert(0, str(Path(__file__).parent.parent))

CHECKED = [
    "seqlm.models",
    "seqlm.data.batches",
    "seqlm.training.evaluate",
    "seqlm.training.step",
    "analysis.behaviour",
    "benchmarks.baselines",
]
install_import_hook(CHECKED, "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Corpora are cached in a folder of this test session, shared by its processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["SEQLM_CACHE"] = str(shared / "seqlm-cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` need a device; a machine without one says that it left them out."""
    import torch  # only once the variables above are set

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
