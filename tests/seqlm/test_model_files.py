"""The files of a user's own model in the folder of a run."""

import contextlib
import itertools
from pathlib import Path

import pytest

from seqlm.errors import FileError
from seqlm.model_files import ModelFiles
from seqlm.records.runs import Provenance
from seqlm.rundir import RunDirectory
from tests.faults import ChangeFaults
from tests.seqlm.training.studies import make_config

FILES = ModelFiles(contents={"lstm.py": b"import torch\n" * 1000, "parts/cell.py": b"x = 1\n" * 1000})


def test_a_disk_that_fails_at_any_call_while_a_model_is_kept_does_not_stop_the_next_launch(tmp_path: Path) -> None:
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            faults = ChangeFaults(patch, tmp_path, number)
            with contextlib.suppress(FileError):
                FILES.keep(folder)
        FILES.keep(folder)
        kept = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert kept == FILES.contents, "no temporary file is left"
        if not faults.has_failed:
            break
    assert number > 4


def test_what_a_killed_launch_began_of_a_model_is_swept_by_the_next_one(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run-00000000")
    run.create(make_config(), Provenance(), model_files=FILES)
    begun = run.model_dir / "parts" / ".cell.py.0123456789abcdef.tmp"
    begun.write_bytes(b"")
    run.sweep()
    assert not begun.exists()
