"""What the code of today does with the studies that earlier versions have stored (:mod:`tests.tools.store_study`).

Each zip file holds a study of a format, its manifest, and what the version that wrote it said of it.
"""

import contextlib
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from analysis.study.study import StudyFiles, load_study
from jobs.study import format_1, upgrade
from seqlm import files
from seqlm.errors import UsageError
from seqlm.files import file_sha256, write_json
from seqlm.lease import claim, kept
from seqlm.rundir import READABLE_FROM, STUDY_FORMAT, RunDirectory
from seqlm.trace import read_trace
from tests import commands
from tests.commands import Ask
from tests.seqlm.training.studies import write_text
from tests.tools.store_study import TEXT_LINES

ROOT = Path(__file__).parents[2]
STORED = sorted(Path(__file__).with_name("stored").glob("*.zip"))
LOCAL = [path for path in STORED if path.stem.count("-") == 1]
"""Those with runs to go on with. The others were launched on SLURM, and are done."""
NEW_MEANING = {1: {"id", "job_id", "gap", "optim.schedule"}}
"""Format -> columns that have another meaning since: ids, and the process of a local run; how much better a run is on
the training text, which is a difference of losses now; a default."""
GONE = {1: {"model.implementation", "model.attention"}}
"""Format -> columns that no table has any more."""
NOT_CONCLUDED = {"seconds_to_5pct"}
"""Columns that followed from others, and from which the report concluded what they do not carry."""
BEHAVIOUR_ANEW = {1}
"""Formats with behaviour of an earlier version, which is computed again."""


def format_of(stored: Path) -> int:
    return int(stored.stem.split("-")[1])


EARLIER = [path for path in STORED if format_of(path) < READABLE_FROM]
"""Those of the formats that ``upgrade`` converts."""


def unpack(stored: Path, folder: Path) -> Path:
    """Unpack a stored study; returns its folder."""
    with zipfile.ZipFile(stored) as archive:
        archive.extractall(folder)
    write_text(folder / "text", train_lines=TEXT_LINES)
    (study,) = (folder / "runs").iterdir()
    return study


def contents(folder: Path) -> dict[str, str | None]:
    """The digests of all files below a folder but the lease of a launcher, by path."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.parts[-2] != "launcher")
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_of_each_format_is_stored() -> None:
    assert {format_of(path) for path in STORED} == set(range(1, STUDY_FORMAT + 1))
    assert set(upgrade.CONVERSIONS) == set(range(1, READABLE_FROM)), "what is not read is converted"


@pytest.mark.parametrize("stored", STORED, ids=lambda path: path.stem)
def test_every_later_version_shows_the_same_states_tables_and_numbers(stored: Path, here: Path, ask: Ask) -> None:
    study, before = unpack(stored, here), format_of(stored)
    if stored in EARLIER:
        code, data, _ = ask("upgrade", study.name)
        assert (code, data["before"], data["format"]) == (0, before, STUDY_FORMAT)
    code, data, _ = ask("status", study.name)
    expected = json.loads((here / "expected" / "status.json").read_text("utf-8"))
    left_out = NEW_MEANING.get(before, set())
    assert code == 0
    for run, old in zip(data["runs"], expected, strict=True):
        known = old.keys() - left_out
        assert {key: run[key] for key in known} == {key: old[key] for key in known}
    same_tables(here / "expected" / "data", load_study(study), before)
    for run in data["runs"]:
        folder = RunDirectory(study / run["id"])
        if folder.trace_file.exists() and run["state"] == "done":
            steps = sum(epoch["steps"] for epoch in folder.read_metrics()[0])
            assert len(read_trace(folder).rows) == steps
    code, data, _ = ask("results", study.name)
    assert code == 0
    assert {run["name"] for run in data["runs"]} == {run["name"] for run in expected}


def same_tables(expected: Path, study: StudyFiles, before: int) -> None:
    """Check that each table has the rows and values that it had."""
    for name in ("runs", "epochs", "attempts"):
        table = getattr(study, name).astype(object)
        rows = table.where(table.notna(), None).to_dict("records")
        old_rows = json.loads((expected / f"{name}.json").read_text("utf-8"))
        assert len(rows) == len(old_rows) > 0, name
        for row, old_row in zip(rows, old_rows, strict=True):
            known = old_row.keys() - NEW_MEANING.get(before, set()) - GONE.get(before, set()) - NOT_CONCLUDED
            assert {key: row[key] for key in known} == {key: old_row[key] for key in known}, name
    behaviour, old = expected / "behaviour.json", set[str]()
    if behaviour.exists() and before not in BEHAVIOUR_ANEW:
        old = {row["id"] for row in json.loads(behaviour.read_text("utf-8"))}
    assert study.behaviours.keys() == old


# -- upgrade ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", EARLIER, ids=lambda path: path.stem)
def test_a_study_of_an_earlier_format_is_refused_until_upgrade_which_keeps_each_file(
    stored: Path, here: Path, ask: Ask
) -> None:
    study = unpack(stored, here)
    (manifest,) = here.glob("*.toml")
    before = contents(study)
    for words in (["plan", manifest.name], ["run", manifest.name], ["behaviour", study.name], ["status", study.name]):
        code, _, stderr = ask(*words)
        (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert code == 2
        assert f"seqlm upgrade {Path('runs', study.name)}" in line
    with pytest.raises(UsageError, match="seqlm upgrade"):
        load_study(study)
    assert "seqlm upgrade" in ask("list")[1]["studies"][0]["problem"]
    assert contents(study) == before, "nothing is touched"
    _, data, _ = ask("upgrade", study.name)
    after = contents(study)
    kept_files = {**after, **contents(here / data["earlier"])}
    assert {path: kept_files.get(path) for path in before} == before
    assert ask("upgrade", study.name)[:2] == (0, {**data, "before": None, "earlier": None, "notes": []})
    assert contents(study) == after, "a second upgrade does nothing"


class Killed(BaseException):
    """Stands for a process that is killed."""


@pytest.mark.parametrize("stored", [path for path in EARLIER if path in LOCAL], ids=lambda path: path.stem)
def test_an_upgrade_that_is_killed_at_any_moment_is_finished_by_the_next_one(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = unpack(stored, tmp_path / "whole")
    upgrade.upgrade(whole, lambda line: None)
    expected = contents(whole)
    steps: list[int] = []

    def or_killed(act: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            if not steps:
                raise Killed
            steps.pop()
            return act(*arguments, **options)

        return step

    def kill_after(number: int, study: Path) -> bool:
        """Return whether an upgrade gets so far."""
        steps[:] = [0] * number
        with monkeypatch.context() as patch:
            for module in (upgrade, format_1, files):
                for name in ("rename", "write_json", "second_name", "copy_file", "delete", "write_text"):
                    if hasattr(module, name):
                        patch.setattr(module, name, or_killed(getattr(module, name)))
            with contextlib.suppress(Killed):
                upgrade.upgrade(study, lambda line: None)
                return False
        return True

    stored_study, most = unpack(stored, tmp_path / "stored"), 10_000
    assert not kill_after(most, shutil.copytree(stored_study, tmp_path / "counted"))
    total = most - len(steps)
    moments = [*range(0, total - 40, max(1, total // 8)), *range(max(0, total - 40), total, 2)]
    for number in moments:
        study = shutil.copytree(stored_study, tmp_path / "killed", copy_function=shutil.copy)
        assert kill_after(number, study)
        if (study / "upgrade").exists():
            with pytest.raises(UsageError, match="seqlm upgrade"):
                load_study(study)
        shutil.rmtree(study / "launcher", ignore_errors=True)  # the lease of a process that is gone
        upgrade.upgrade(study, lambda line: None)
        found = contents(study)
        assert found.keys() == expected.keys(), f"killed at step {number}"
        changed = [path for path, digest in found.items() if digest != expected[path] and not is_dated(path)]
        assert not changed, f"killed at step {number}"
        shutil.rmtree(study)


def is_dated(path: str) -> bool:
    """Whether a file says when it was written, or is an archive, which has a time for each part."""
    return path.endswith(".pt") or "/launches/" in f"/{path}"


def test_an_upgrade_of_a_study_with_a_live_run_or_launcher_is_refused(here: Path, ask: Ask) -> None:
    study = unpack(EARLIER[-1], here)
    run = next(path for path in study.iterdir() if (path / "lease").is_dir())
    before = contents(study)
    with kept(claim(run / "lease", attempt=9, busy="")):
        code, _, stderr = ask("upgrade", study.name)
    assert code != 0
    assert f"{run.name} is running" in stderr
    shutil.rmtree(run / "lease")
    with kept(claim(study / "launcher", busy="")):
        code, _, stderr = ask("upgrade", study.name)
    assert code != 0
    assert not (study / "upgrade").exists()
    after = contents(study)
    assert after == {path: digest for path, digest in before.items() if path in after}


@pytest.mark.parametrize(
    ("text", "words"), [('{"version": 99}', "later version"), ("{", "study.json"), ("{}", "study.json")]
)
def test_an_unknown_format_is_one_line(text: str, words: str, here: Path, ask: Ask) -> None:
    study = unpack(EARLIER[-1], here)
    (study / "study.json").write_text(text)
    before = contents(study)
    code, _, stderr = ask("upgrade", study.name)
    (line,) = stderr.splitlines()
    assert code == 2
    assert words in line
    assert contents(study) == before


@pytest.mark.parametrize("name", ["/tmp/x", "../x", "a/../../x", "a/b/c", ".", ""])
def test_an_interrupted_upgrade_moves_nothing_outside_of_its_study(name: str, here: Path, ask: Ask) -> None:
    study = unpack(EARLIER[-1], here)
    (study / "upgrade" / "new").mkdir(parents=True)
    write_json(study / "upgrade" / "upgrade.json", {"format": 2, "replaced": [name], "are_moved": False})
    (here / "x").write_text("of somebody")
    before = contents(here)
    code, _, stderr = ask("upgrade", study.name)
    assert code != 0
    assert "upgrade.json is damaged" in stderr
    assert contents(here) == before


def test_runs_of_format_1_that_differ_in_epochs_alone_become_one_which_is_said(here: Path, ask: Ask) -> None:
    study = unpack(STORED[0], here)
    (run,) = study.glob("gru-adam-*")
    config = json.loads((run / "config.json").read_text("utf-8"))
    config["train"]["epochs"] = 3
    shorter = study / f"gru-adam-{format_1.former_fingerprint(config)[:8]}"
    shutil.copytree(run, shorter)
    (shorter / "config.json").write_text(json.dumps(config))
    lines = (shorter / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (shorter / "metrics.jsonl").write_text("".join(lines[:3]))
    code, data, _ = ask("upgrade", study.name)
    assert code == 0
    assert any(line.startswith(shorter.name) for line in data["notes"])
    assert (here / data["earlier"] / shorter.name).is_dir()
    (kept_run,) = study.glob("gru-adam-*")
    assert len(RunDirectory(kept_run).read_metrics()[0]) == 12


# -- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("stored", LOCAL, ids=lambda path: path.stem)
def test_what_is_done_stays_done_and_what_was_interrupted_resumes(stored: Path, here: Path, ask: Ask) -> None:
    study = unpack(stored, here)
    if stored in EARLIER:
        ask("upgrade", study.name)
    interrupted, done = (
        RunDirectory(next(study.glob(f"{name}-*"))) for name in ("transformer-interrupted", "rnn-adam")
    )
    result, first_epochs = done.result_file.read_bytes(), interrupted.metrics_file.read_bytes()
    only = ["--only", "name=rnn-adam,transformer-interrupted"]
    env = {**os.environ, "SEQLM_DEVICE": "cpu"}
    launch = [sys.executable, str(ROOT / "launch.py")]
    words = ["run", "stored.toml", "--set", "train.epochs=5", "--live-code", "--json", *only]
    answer = commands.run([*launch, *words], cwd=here, env=env)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert done.result_file.read_bytes() == result
    assert interrupted.metrics_file.read_bytes().startswith(first_epochs)
    assert [record["epoch"] for record in interrupted.read_metrics()[0]] == list(range(5))
    assert interrupted.attempts() == [1, 2]
    assert interrupted.is_done()
