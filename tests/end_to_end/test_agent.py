"""Broken studies, and an agent that reads no prose: it only follows ``next`` in the documents of ``--json``.

Files alone say whether it has succeeded. What it cannot mend, a message of seqlm has left out.
"""

import itertools
import json
import shlex
import shutil
import signal
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from seqlm.comparisons import read_comparisons, verdict_of
from seqlm.records.runs import AuditResult
from tests import commands
from tests.crawl import Crawl, blank_figures
from tests.facts import fail
from tests.fake_slurm import FakeSlurm
from tests.seqlm.training.test_auditor import change_row
from tests.small_study import ROOT, Study, worker_pid

pytestmark = pytest.mark.process

Broken: TypeAlias = Iterator[str | None]
"""Breaks a study, then yields the agent's first command (None: ``status``); after the agent it checks the files."""
MOST_COMMANDS = 12
PATIENCE = "1"
"""Seconds for which the agent waits at once."""


def follow(study: Study, first: str) -> list[str]:
    """Follow ``next`` until there is none, or one that has been followed in the same state; return the commands."""
    command, seen, followed = f"python launch.py {first}", set[str](), list[str]()
    while command and len(followed) < MOST_COMMANDS:
        followed.append(command)
        *others, own = command.split(" && ")
        if not own.startswith("python launch.py "):  # of SLURM
            others, own = [*others, own], followed[0]
        for other in others:
            commands.run(["sh", "-c", other], cwd=study.folder, env=study.env, check=True)
        words = [PATIENCE if last == "--for" else word for last, word in itertools.pairwise(["", *shlex.split(own)])]
        more = ["--no-behaviour"] if words[2] == "report" else []  # the stub trains no model
        document = json.loads(study(*words[2:], *more, "--json").stdout)
        now = json.dumps([command, document["next"], document["data"]])
        command = document["next"][0]["command"] if document["next"] and now not in seen else ""
        seen.add(now)
    return followed


def kept(study: Study) -> dict[Path, bytes]:
    """Return every result and checkpoint of finished runs."""
    folders = [path.parent for path in study.folder.rglob("result.json")]
    return {path: path.read_bytes() for folder in folders for path in folder.iterdir() if path.is_file()}


def results(study: Study) -> dict[str, int]:
    """Return the epochs of each finished run, by its name."""
    found = {run.read_provenance().name: run.result_file for run in study.runs()}
    return {name: json.loads(path.read_text())["epochs"] for name, path in found.items() if path.exists()}


def has_report(study: Study) -> bool:
    page = study.folder / "runs" / "small" / "report" / "index.html"
    newest = max(run.metrics_file.stat().st_mtime for run in study.runs() if run.metrics_file.exists())
    return page.exists() and page.stat().st_mtime > newest


def broken_run(study: Study, what: str, *words: str, code: int = 1) -> None:
    """Launch the study; ``what`` happens to its workers, as the stub has it."""
    answer = study("run", "small.toml", *words, env={**study.env, "SEQLM_TEST_STUB": what})
    assert answer.returncode == code, answer.stderr


def interrupt(study: Study, number: int) -> None:
    """Launch the study and end the launcher, and the worker that has trained an epoch, by a signal."""
    crawl = Crawl(study.folder, epochs=1)
    launcher = study.start("run", "small.toml", env={**study.env, **crawl.env})
    study.until_they_train()
    launcher.send_signal(number)
    commands.finish(launcher)


# -- the studies -------------------------------------------------------------------------------------------------------


def a_key_is_misspelt(study: Study) -> Broken:
    text = study.manifest.read_text()
    study.manifest.write_text(text.replace("optim.lr", "optim.lrate"))
    yield
    assert study.manifest.read_text() == text
    assert results(study) == {"rnn-adam": 2}


def memory_was_short(study: Study) -> Broken:
    study.write("[policy]", "oom = 0")
    broken_run(study, '{"1/1": "oom"}')
    yield
    assert results(study) == {"rnn-adam": 2}


def a_disk_failed(study: Study) -> Broken:
    broken_run(study, '{"1/1": "node"}', "--max-stalled-retries", "0")
    yield
    assert results(study) == {"rnn-adam": 2}


def the_worker_and_its_launcher_were_killed(study: Study) -> Broken:
    crawl = Crawl(study.folder, epochs=1)
    launcher = study.start("run", "small.toml", env={**study.env, **crawl.env})
    study.until_they_train()
    launcher.kill()
    commands.finish(launcher)
    for run in study.runs():
        commands.run(["kill", "-9", str(worker_pid(run))])
    yield
    assert results(study) == {"rnn-adam": 2}


def the_checkpoint_is_damaged(study: Study) -> Broken:
    interrupt(study, signal.SIGINT)
    for run in study.runs():
        run.last_checkpoint.write_bytes(run.last_checkpoint.read_bytes()[:-9])
    yield
    assert results(study) == {"rnn-adam": 2}


def the_time_was_over(study: Study) -> Broken:
    interrupt(study, signal.SIGINT)
    for run in study.runs():
        fail(run, {"kind": "timeout", "message": "its job reached its time limit"})
    yield
    assert results(study) == {"rnn-adam": 2}


def the_budget_is_spent(study: Study) -> Broken:
    assert study("run", "small.toml", env={**study.env, "SEQLM_TEST_STUB_SECONDS": "1"}).returncode == 0
    study.add(archs=["gru"])
    study.write("[policy]", "core_hours = 1e-9")
    broken_run(study, "{}")
    text = study.manifest.read_text()
    yield
    assert study.manifest.read_text() == text
    assert len(results(study)) == 1


def a_run_was_cancelled(study: Study) -> Broken:
    assert study("run", "small.toml").returncode == 0
    study.add(archs=["gru"])
    broken_run(study, '{"1/1": "code"}')
    (run,) = (run for run in study.runs() if not run.result_file.exists())
    fail(run, {"kind": "cancelled", "message": "by its user"})
    yield
    assert [*results(study)] == ["rnn-adam"]


def a_job_is_held(study: Study) -> Broken:
    fake = FakeSlurm(study.folder / "slurm")
    study.env = {**study.env, "PATH": f"{fake.bin}:{study.env['PATH']}", "SEQLM_BACKEND": ""}
    answer = study("run", "small.toml", "--no-wait", "--backend", "slurm")
    assert answer.returncode == 0, answer.stderr
    with fake.opened() as room:
        for job in room.jobs:
            job.options["hold"] = ""
    yield
    assert all("hold" not in job.options for job in fake.jobs().values())


def two_settings_are_equal(study: Study) -> Broken:
    study.add(archs=["gru"])
    study.write("[[decide]]", 'a = "arch=rnn"', 'b = "arch=gru"', "seeds = 6")
    yield
    assert len(results(study)) == 12
    ((_, comparison),) = read_comparisons(study.folder / "runs" / "small").items()
    assert verdict_of(study.folder / "runs" / "small", comparison, 1).outcome == "undecided"


def an_archive_is_doctored(study: Study) -> Broken:
    study.program = ROOT / "launch.py"
    study.add(archs=["gru"])
    assert study("run", "small.toml").returncode == 0
    folder, archive = study.folder / "runs" / "small", study.folder / "small.tar.gz"
    (doctored,) = (run for run in study.runs() if run.read_provenance().name == "gru-adam")
    change_row(doctored, 1, 0, lambda loss: loss / 2)
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, "small")
    shutil.rmtree(folder)
    yield f"audit {archive.name} --data text"
    (unpacked,) = (study.folder / "runs").iterdir()
    (audited,) = unpacked.glob("audits/000002/gru-*")
    result = AuditResult.read(audited)
    assert result is not None
    assert {found.part: found.verdict for found in result.findings} == {"scores": "equal", "epochs 1-2": "differs"}


def its_format_is_old(study: Study) -> Broken:
    stored = Path(__file__).with_name("stored") / "format-2.zip"
    with zipfile.ZipFile(stored) as archive:
        archive.extractall(study.folder)
    yield "status stored"
    assert (study.folder / "runs" / "stored" / "report" / "index.html").exists()


STUDIES = (
    a_key_is_misspelt,
    memory_was_short,
    a_disk_failed,
    the_worker_and_its_launcher_were_killed,
    the_checkpoint_is_damaged,
    the_time_was_over,
    the_budget_is_spent,
    a_run_was_cancelled,
    a_job_is_held,
    two_settings_are_equal,
    an_archive_is_doctored,
    its_format_is_old,
)


@pytest.mark.parametrize("breaks", STUDIES, ids=lambda breaks: breaks.__name__)
def test_what_is_broken_is_mended_by_following_next(tmp_path: Path, breaks: Callable[[Study], Broken]) -> None:
    study = Study(tmp_path, stub=True)
    study.env = {**study.env, **blank_figures(), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    broken = breaks(study)
    first = next(broken)
    before = kept(study)
    print(follow(study, first or "status small.toml"), results(study))
    next(broken, None)
    assert {path: path.read_bytes() for path in before} == before
    assert not results(study) or has_report(study)
