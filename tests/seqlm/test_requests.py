"""The requests of a study: the newest one that names a run counts."""

import contextlib
import shutil
from pathlib import Path

from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import Requests, file_request


def backends(study_dir: Path) -> list[str]:
    return [request.record.backend for request in Requests(study_dir).newest_first()]


def test_a_study_in_the_place_of_another_has_its_own_requests(tmp_path: Path) -> None:
    """By a relative path in two folders, and in the folder of one that was deleted."""
    study = Path("runs/small")
    for name, backend in (("one", "slurm"), ("two", "local")):
        (tmp_path / name / study).mkdir(parents=True)
        with contextlib.chdir(tmp_path / name):
            file_request(study, RequestFile(kind="run", backend=backend))
            assert backends(study) == [backend]
    with contextlib.chdir(tmp_path / "one"):
        shutil.rmtree(study / "launches")
        file_request(study, RequestFile(kind="run", backend="ray"))
        assert backends(study) == ["ray"]


def test_the_newest_request_that_names_a_run_counts(tmp_path: Path) -> None:
    first = file_request(tmp_path, RequestFile(kind="run", runs={"a": Wanted(), "b": Wanted()}))
    second = file_request(tmp_path, RequestFile(kind="cancel", runs={"b": Wanted()}))
    requests = Requests(tmp_path)
    assert requests.newest("a") == first
    assert requests.newest("b") == second
    assert requests.newest("c") is None
    assert requests.by_run() == {"a": first, "b": first}, "to train"
