"""The files of a user's own model in the folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqlm.errors import FileError
from seqlm.model_files import ModelFiles
from seqlm.rundir import RunDirectory
from tests.full_disk import full_disk
from tests.seqlm.training.studies import make_config

FILES = ModelFiles(contents={"lstm.py": b"import torch\n" * 1000, "parts/cell.py": b"x = 1\n" * 1000})


@pytest.mark.parametrize("most_bytes", [0, 7000])
def test_a_full_disk_while_a_model_is_kept_does_not_stop_the_next_launch(tmp_path: Path, most_bytes: int) -> None:
    with full_disk(most_bytes), pytest.raises(FileError, match=r"cannot (keep|write)"):
        FILES.keep(tmp_path / "model")
    FILES.keep(tmp_path / "model")
    kept = {str(path.relative_to(tmp_path / "model")) for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == set(FILES.contents), "no temporary file is left"
    assert all((tmp_path / "model" / name).read_bytes() == content for name, content in FILES.contents.items())


def test_what_a_killed_launch_began_of_a_model_is_swept_by_the_next_one(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run-00000000")
    run.create(make_config(), {}, model_files=FILES)
    begun = run.model_dir / "parts" / ".cell.py.0123456789abcdef.tmp"
    begun.write_bytes(b"")
    run.sweep()
    assert not begun.exists()
