"""Commands that use what a study keeps, with the user's trust: planted in any place where they look, it does no harm.

The other commands are asked in :mod:`tests.trust.test_links` and :mod:`tests.trust.test_planted`.
"""

import itertools
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import launch
from jobs.launch.dispatch import Dispatcher
from seqlm.architectures import CustomConfig
from seqlm.data.corpus import load_corpus
from seqlm.model_files import read_model_files
from seqlm.records.runs import Provenance
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from tests.facts import fail
from tests.seqlm.check_model.faulty import write_model
from tests.seqlm.training.studies import Attempt, make_config, write_text
from tests.trust import planted
from tests.trust.test_planted import MOST_MEMORY, forget_peak, in_time, peak_memory

COMMANDS = {
    "generate": ["done", "the", "--tokens", "2", "--trust"],
    "behaviour": ["--trust"],
    "retry": ["--trust"],
}
"""A command, and what stands after the study. Those that launch do all but start a worker."""
SOUND = {"generate": 0, "behaviour": 0, "retry": 1}
"""The exit code of each on a sound study. Without a worker, the run that is tried again is pending."""
FEWEST = 20
"""Places that each command looks at, at least: else the test would find nothing because it looks nowhere."""
KINDS = (planted.pipe, planted.listener, planted.sparse, planted.deflated, planted.dense, planted.other_kind)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with a trained and a failed run of a model of the user's own."""
    folder = tmp_path_factory.mktemp("sound")
    write_model(folder)
    files = read_model_files(CustomConfig(arch="custom", source="model.py:Model"), folder)
    model = CustomConfig(arch="custom", source="model.py:Model", sha256=files.sha256)
    study_dir, text = folder / "small", write_text(folder / "text")
    runs = []
    for order, name in enumerate(("done", "failed")):
        config = replace(make_config(epochs=1 + order, seed=order), model=model)
        run = RunDirectory.locate(study_dir, name, config.fingerprint())
        known = Provenance(name=name, order=order, data=str(text), resources=Resources(cpus=1))
        run.create(config, known, model_files=files)
        runs.append(run)
        if name == "done":
            Attempt(run, load_corpus(config.data, text)).train()
        else:
            fail(run, {})
    planted.add_records(study_dir, runs)
    return study_dir


@pytest.fixture(autouse=True)
def starts_no_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SEQLM_BACKEND", "local")
    monkeypatch.setenv("SEQLM_STALE_LEASE_MINUTES", "0.002")  # for owners whose records nobody can read
    monkeypatch.setenv("SEQLM_LEASE_SECONDS", "0.04")
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(Dispatcher, "dispatch", lambda self, planned: None)
    passed = {"findings": [], "traceback": None, "sizes": None}
    monkeypatch.setattr("jobs.launch.own_models.ask", lambda requests: [passed for _ in requests])


def ask(name: str, study_dir: Path, capsys: pytest.CaptureFixture[str]) -> planted.Answer:
    words = [name, str(study_dir), *COMMANDS[name]]
    capsys.readouterr()
    code = launch.main([*words, "--runs-dir", str(study_dir.parent)])
    out, err = capsys.readouterr()
    return planted.Answer(words=words, code=code, out=out, err=err)


def looked_at(name: str, study_dir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[planted.Answer, list[Path]]:
    """Return what a command says, and the places of the study, from its folder, that it opens by their name."""
    seen: set[str] = set()
    is_over = False

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if not is_over and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
            seen.add(Path(arguments[0]).name)

    sys.addaudithook(note)  # Python cannot take it away again
    answer = ask(name, study_dir, capsys)
    is_over = True
    return answer, [path.relative_to(study_dir) for path in sorted(study_dir.rglob("*")) if path.name in seen]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_uses_a_study_takes_nothing_from_outside_waits_for_nothing_and_takes_little_memory(
    name: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = tmp_path / "used" / "small"
    shutil.copytree(sound, used)
    answer, places = looked_at(name, used, capsys)  # and those that it makes: a study may have been used before
    assert answer.code == SOUND[name], answer
    (failed,) = (run for run in RunDirectory.unordered_in(used) if run.id.startswith("failed"))
    failed.attempt_dir(2).mkdir()
    fail(failed, {})  # else there is nothing to retry
    again = tmp_path / "again" / "small"
    shutil.copytree(used, again)
    assert ask(name, again, capsys).out == answer.out
    assert len(places) > FEWEST
    kinds = itertools.cycle(KINDS)
    for place in places:
        for plant in (planted.link, *(KINDS if place.suffix == ".pt" else [next(kinds)])):
            told = f"{name}: {place} {plant.__name__}"
            study_dir = tmp_path / "planted" / "small"
            shutil.copytree(used, study_dir)
            outside = study_dir.parent / "outside"
            outside.mkdir()
            plant(study_dir / place, outside / f"planted{place.suffix}")
            before = planted.digests(outside)
            forget_peak()
            memory = peak_memory()
            with in_time(told):
                answer = ask(name, study_dir, capsys)
            assert peak_memory() - memory < MOST_MEMORY, told
            assert planted.digests(outside) == before, told
            told = f"{told}: {answer}"
            assert answer.code in (0, 1, 2), told
            assert "Traceback" not in answer.err, told
            assert planted.SECRET not in answer.out + answer.err, told
            if plant is planted.link:
                assert planted.holds(study_dir, planted.SECRET) == [], told
            shutil.rmtree(study_dir.parent)
