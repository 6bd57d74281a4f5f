"""A launch plans as the owner of the study: what it does follows from the runs as they are then."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.launch import prepare
from jobs.launch.job import Order, StudySettings
from jobs.launch.prepare import preparing
from jobs.plan.estimate import memory_bytes, weights_bytes
from jobs.spec import RunSpec
from jobs.study.folder import launching, observe_study
from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from seqlm.data.corpus import load_corpus, resolve_data
from seqlm.errors import BackendError, DamagedFileError, DataError, RunBusyError
from seqlm.files import make_directory, read_json
from seqlm.model_files import read_model_files
from seqlm.records.attempts import LauncherProcess, Start
from seqlm.records.leases import LeaseFile
from seqlm.records.requests import Folder, Folders, RequestFile, Wanted
from seqlm.records.runs import Provenance
from seqlm.records.studies import StudyFile
from seqlm.requests import file_request
from seqlm.rundir import STUDY_FORMAT
from tests.cancelling import cancel
from tests.facts import make_folder, owned
from tests.fakes import FakeBackend
from tests.seqlm.check_model.faulty import write_model
from tests.seqlm.training.studies import make_config, write_text

pytestmark = pytest.mark.process


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return RunSpec(name="a", config=make_config(), data_path=write_text(tmp_path / "text"))


def actions(spec: RunSpec, study_dir: Path) -> list[str]:
    """What a launch does with its runs."""
    study, order = StudySettings(path=study_dir), Order(specs=[spec], live_code=True)
    with preparing(study, order, FakeBackend(lambda submission: 0)) as (planned, _):
        return [item.action for item in planned]


def test_a_run_whose_worker_ends_while_its_launcher_leaves_the_study_is_taken_up(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_folder(tmp_path / "s", spec)
    worker = contextlib.ExitStack()
    worker.enter_context(owned(run))

    @contextlib.contextmanager
    def launching_then(study_dir: Path) -> Iterator[None]:
        worker.close()
        with launching(study_dir):
            yield

    monkeypatch.setattr(prepare, "launching", launching_then)
    assert actions(spec, tmp_path / "s") == ["start"]


def test_a_worker_that_outlives_its_launcher_is_waited_for_although_a_newer_attempt_was_never_started(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLM_LEASE_SECONDS", "0.2")
    monkeypatch.setenv("SEQLM_STALE_LEASE_MINUTES", "0.02")
    run = make_folder(tmp_path / "s", spec)
    for attempt in (1, 2):
        make_directory(run.attempt_dir(attempt))
    Start(launcher=LauncherProcess(pid=1, host="elsewhere")).write(run.attempt_dir(1))
    make_directory(run.lease_dir)
    LeaseFile(generation=1, owner="its worker", pid=2, host="elsewhere", attempt=1).write(run.lease_dir)
    assert actions(spec, tmp_path / "s") == ["start"]


def test_the_second_of_two_launchers_is_refused_before_it_looks_at_anything(tmp_path: Path, spec: RunSpec) -> None:
    missing = replace(spec, data_path=tmp_path / "missing")
    with launching(tmp_path / "s"), pytest.raises(RunBusyError, match="is already being launched"):
        actions(missing, tmp_path / "s")
    with pytest.raises(DataError):
        actions(missing, tmp_path / "s")


def test_a_new_study_whose_launch_is_refused_leaves_no_folder(tmp_path: Path, spec: RunSpec) -> None:
    with pytest.raises(DataError):
        actions(replace(spec, data_path=tmp_path / "missing"), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_new_study_that_another_launcher_has_begun_meanwhile_is_planned_again(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def launching_after_another(study_dir: Path) -> Iterator[None]:
        cancel(make_folder(study_dir, spec))
        with launching(study_dir):
            yield

    monkeypatch.setattr(prepare, "launching", launching_after_another)
    assert actions(spec, tmp_path / "s") == ["skip"]


def launch(specs: list[RunSpec], study_dir: Path) -> None:
    """Request these runs, and start none."""
    order = Order(specs=specs, live_code=True, record=StudyFile(version=STUDY_FORMAT))
    with preparing(StudySettings(path=study_dir), order, FakeBackend(lambda submission: 0)) as (_, work):
        assert work is not None, "there is something to do"


def test_a_launch_of_many_runs_writes_as_many_files_as_one_of_a_few(tmp_path: Path, spec: RunSpec) -> None:
    def files(number: int) -> set[str]:
        specs = [replace(spec, name=f"r{seed}", config=make_config(seed=seed)) for seed in range(number)]
        launch(specs, study_dir := tmp_path / str(number))
        assert [run.observation.state for run in observe_study(study_dir)] == ["pending"] * number
        return {str(path.relative_to(study_dir)) for path in study_dir.rglob("*")}

    assert files(2) == files(20)


def test_a_run_that_waits_is_as_it_was_launched_and_its_first_attempt_makes_its_folder(
    tmp_path: Path, spec: RunSpec
) -> None:
    write_model(tmp_path)
    model = CustomConfig(arch="custom", source="model.py:Model")
    model = replace(model, sha256=read_model_files(model, tmp_path).sha256)
    config = replace(make_config(), model=model)
    spec = replace(spec, config=config, model_files=read_model_files(model, tmp_path))
    launch([spec], tmp_path / "s")
    (tmp_path / "model.py").write_text("edited = True\n")
    (waiting,) = observe_study(tmp_path / "s")
    run = waiting.run
    assert (waiting.name, waiting.config, run.path.exists()) == ("a", config, False)
    assert waiting.to_spec().model_files == spec.model_files, "what `retry` launches"
    for _ in range(2):
        run.create_as_launched()
    assert RunConfig.from_dict(read_json(run.config_file) or {}) == config
    assert Provenance.read(run.path) == waiting.provenance
    assert read_model_files(model, run.model_dir) == spec.model_files
    run.config_file.unlink()
    assert run.read_config() == config, "the request has it as well"


@pytest.mark.parametrize("run_id", ["../elsewhere-12345678", "/etc-12345678", ".hidden-12345678", ""])
def test_a_request_leads_to_no_other_folder(tmp_path: Path, run_id: str) -> None:
    file_request(
        tmp_path / "s", RequestFile(kind="run", runs={run_id: Wanted()}), Folders(runs={run_id: Folder(config={})})
    )
    with pytest.raises(DamagedFileError, match=r"request\.json is damaged"):
        observe_study(tmp_path / "s")


@pytest.mark.parametrize(
    ("room", "oversized", "is_refused", "is_warned"),
    [
        ("less than the weights", False, True, False),
        ("less than the weights", True, False, True),
        ("the weights", False, False, True),  # smaller micro-batches may make it fit
        ("all", False, False, False),
        ("unknown", False, False, False),
    ],
)
def test_a_run_that_never_fits_in_memory_is_refused_before_anything_is_written(
    tmp_path: Path,
    spec: RunSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    room: str,
    oversized: bool,
    is_refused: bool,
    is_warned: bool,
) -> None:
    monkeypatch.setattr(prepare, "LEAST_MEMORY", 0)
    facts = load_corpus(resolve_data(spec.config.data, spec.data_path), spec.data_path).facts
    weights, whole = weights_bytes(spec.config, facts.vocab_size), memory_bytes(spec.config, facts.vocab_size)
    assert weights is not None, "only your own models have sizes that are not known"
    assert whole is not None
    assert weights < whole
    place = FakeBackend(lambda submission: 0)
    has = {"less than the weights": weights - 1.0, "the weights": weights, "all": whole, "unknown": None}
    place.memory_bytes = has[room]
    study, order = StudySettings(path=tmp_path / "s"), Order(specs=[spec], live_code=True, oversized=oversized)
    refused = pytest.raises(BackendError, match="never fits") if is_refused else contextlib.nullcontext()
    with refused, preparing(study, order, place):
        pass
    assert (tmp_path / "s").exists() == (not is_refused)
    assert ("of memory" in capsys.readouterr().err) == is_warned
