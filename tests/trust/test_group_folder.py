"""Two users work on one study in a folder of their group: setgid, and umask 002."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands
from tests.crawl import Crawl, blank_figures
from tests.small_study import Study, epochs_of
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        os.geteuid() != 0 or sys.platform != "linux" or shutil.which("setpriv") is None,
        reason="root alone can be two other users",
    ),
]

ANNA, BERT, EVE, GROUP = 64711, 64712, 64713, 64800
EPOCHS = 12
"""Metrics are written while the next epoch trains: a worker crawls an epoch or two later than asked."""


def start(study: Study, user: int, *words: str, **variables: str) -> subprocess.Popen[str]:
    """Start the command line as a user of the group.

    The user may read everything, since Python and the checkout may be in a folder of root's. Writing obeys the rights
    of the user.
    """
    rights = "-all,+dac_read_search"
    prefix = ["setpriv", "--reuid", str(user), "--regid", str(user), "--groups", str(GROUP)]
    prefix += [f"--inh-caps={rights}", f"--ambient-caps={rights}", f"--bounding-set={rights}"]
    places = {"HOME": study.folder, "SEQLM_CACHE": study.folder / "cache", "XDG_CONFIG_HOME": study.folder / str(user)}
    env = {**os.environ, **blank_figures(), **variables, **{name: str(place) for name, place in places.items()}}
    return commands.start([*prefix, *study.command(*words)], cwd=study.folder, env=env, umask=0o002)


def run(study: Study, user: int, *words: str) -> str:
    process = start(study, user, *words)
    stdout, stderr = commands.finish(process)
    assert process.returncode == 0, stdout + stderr
    assert "warning" not in stderr
    return stdout


def test_a_member_of_the_group_goes_on_with_a_study_that_another_one_has_begun(tmp_path: Path) -> None:
    folder = tmp_path / "group"
    folder.mkdir()
    study = Study(folder, epochs=EPOCHS, stub=True)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 0, GROUP)
    folder.chmod(0o2775)

    crawl = Crawl(tmp_path, epochs=1)
    launcher = start(study, ANNA, "run", "small.toml", **crawl.env)
    wait_for(
        lambda: (study.epochs(), launcher.poll()), "an epoch", until=lambda seen: any(seen[0]) or seen[1] is not None
    )
    launcher.send_signal(signal.SIGTERM)
    commands.finish(launcher)
    (begun,) = study.runs()
    assert 1 <= len(epochs_of(begun)) < EPOCHS
    assert begun.has_checkpoint()
    assert owners(folder / "runs") == {ANNA}

    run(study, BERT, "run", "small.toml", "--report", "--no-behaviour")
    assert study.epochs() == [list(range(EPOCHS))]
    assert begun.attempts() == [1, 2]
    assert len(list((begun.path.parent / "code").iterdir())) == 1
    run(study, ANNA, "report", "small", "--no-behaviour")

    shared = [path for path in (folder / "runs").rglob("*") if not path.is_symlink()]
    assert {path.stat().st_gid for path in shared} == {GROUP}
    assert [path for path in shared if path.is_dir() and not path.stat().st_mode & stat.S_ISGID] == []
    assert [path for path in shared if path.stat().st_mode & 0o060 != 0o060] == []
    assert owners(folder / "runs") == {ANNA, BERT}
    report = start(study, EVE, "report", "small")
    assert "was not launched by you; --trust computes what is missing" in commands.finish(report)[1]


def owners(folder: Path) -> set[int]:
    return {path.stat().st_uid for path in folder.rglob("*")}
