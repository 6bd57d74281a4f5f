"""A launcher that is left behind in a login session of a machine that ends what its users leave behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import launch
from jobs.cli import request
from jobs.launch import background
from seqlm.errors import BackendError
from tests.slurm.programs import answering

ARGV = ["python", "launch.py", "run", "a b.toml", "--no-wait"]
SESSION = "0::/user.slice/user-1000.slice/session-3.scope\n"
KILLS = "KillUserProcesses=yes\nKillExcludeUsers=root\nKillOnlyUsers=\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH whose loginctl answers as on such a machine; this process is in a login session."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(background, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(background.getpass, "getuser", lambda: "me")
    (tmp_path / "cgroup").write_text(SESSION)
    answering(tmp_path, "loginctl", KILLS)
    return tmp_path


@pytest.mark.process
def test_a_user_whose_launcher_ends_at_logout_is_told_the_command_that_keeps_it(machine: Path) -> None:
    line = background.logout_advice(ARGV)
    assert line is not None
    assert "KillUserProcesses=yes" in line
    assert "systemd-run --user --scope python launch.py run 'a b.toml' --no-wait" in line
    assert "tmux" in line
    assert "--backend slurm" in line
    assert (machine / "loginctl.asked").read_text().startswith("show-session --property=KillUserProcesses")


@pytest.mark.process
@pytest.mark.parametrize(
    "text",
    [
        KILLS.replace("yes", "no"),
        KILLS.replace("root", "root me"),
        KILLS.replace("OnlyUsers=", "OnlyUsers=guest"),
        "",
    ],
)
def test_nothing_is_said_if_logind_lets_the_processes_of_this_user_live(machine: Path, text: str) -> None:
    answering(machine, "loginctl", text)
    assert background.logout_advice(ARGV) is None


@pytest.mark.process
@pytest.mark.parametrize(
    "cgroup",
    ["0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-u7.scope\n", "0::/system.slice/cron.service\n"],
)
def test_a_process_outside_a_login_session_asks_nobody(machine: Path, cgroup: str) -> None:
    (machine / "cgroup").write_text(cgroup)
    assert background.logout_advice(ARGV) is None
    assert not (machine / "loginctl.asked").exists()


@pytest.mark.process
def test_a_control_group_of_the_first_version_and_a_machine_without_systemd(machine: Path) -> None:
    (machine / "cgroup").write_text("12:cpu:/\n1:name=systemd:/user.slice/user-1000.slice/session-c1.scope\n")
    assert background.logout_advice(ARGV) is not None
    answering(machine, "loginctl", "System has not been booted with systemd\n", code=1, to="stderr")
    assert background.logout_advice(ARGV) is None


@pytest.mark.process
def test_a_launcher_that_is_left_behind_comes_with_the_warning(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(request, "detach", lambda argv, study_dir: 4711)
    manifest = machine / "m.toml"
    manifest.write_text(
        '[study]\nname = "s"\n[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 4\n'
        'optim.optimizer = "sgd"\noptim.lr = 1\n'
    )
    words = ["run", str(manifest), "--backend", "local", "--no-wait", "--runs-dir", str(machine)]
    assert launch.main(words) == 0
    said = capsys.readouterr().err
    assert "warning: the launcher ends when you log out" in said
    assert f"launch.py run {manifest}" in said


@pytest.mark.process
def test_a_launcher_does_not_write_into_the_log_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "launch-0002.log").write_text("old\n")  # the first one was deleted
    with pytest.raises(BackendError, match="new"):
        background.detach(["-c", "print('new'); raise SystemExit(3)"], tmp_path)
    assert (tmp_path / "launch-0002.log").read_text() == "old\n"
    assert (tmp_path / "launch-0003.log").read_text() == "new\n"
