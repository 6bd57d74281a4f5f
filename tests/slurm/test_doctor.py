"""The doctor of a cluster, with small programs in place of SLURM's own."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import launch
from jobs.backends.base import MARK, Finding
from jobs.cli import doctor as machine_doctor
from seqlm.errors import BackendError
from slurm import doctor, settings
from slurm.backend import SlurmBackend
from slurm.doctor import OVER, examine, findings
from slurm.settings import SlurmSettings
from slurm.testcluster import LoopbackCluster
from tests import commands
from tests.slurm.programs import answering, program
from tests.slurm.test_site import CONFIG

ROOT = Path(__file__).parent.parent.parent
SINFO = "cpu*|2-00:00:00|2|8|3000|(null)|1-infinite\ngpu|30:00|1|8|3000|gpu:a100:2|1-infinite\n"
SBATCH = """
if [ "$1" = --version ]; then echo slurm-wlm 24.11.5; exit; fi
cp "$2" "{folder}/submitted"
echo 42
log=$(sed -n 's/^#SBATCH --output=//p' "$2")
bash "$2" > "$log" 2>&1 &
"""
FAKE_TORCH = """
__version__ = "9.9"
class cuda:
    device_count = staticmethod(lambda: {gpus})
    get_arch_list = staticmethod(lambda: ["sm_80", "sm_90"])
    class get_device_properties:
        name, major, minor = "A100", {major}, 0
        def __init__(self, number):
            pass
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs on PATH as on a healthy cluster whose one node is this machine; their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")
    monkeypatch.setattr(doctor, "LOOK_EVERY_S", 0.2)
    (folder / "config").write_text(CONFIG)
    program(folder, "scontrol", f'cat "{folder}/config"')
    answering(folder, "sinfo", SINFO)
    program(folder, "sbatch", SBATCH.format(folder=folder))
    program(folder, "srun", 'exec "$@"')
    answering(folder, "squeue", "RUNNING (None)\n")
    answering(folder, "scancel", "")
    return folder


def with_torch(folder: Path, gpus: int = 0, major: int = 8, **more: Any) -> SlurmSettings:
    """Settings whose setup puts a small torch where the job's Python finds it."""
    (folder / "torch.py").write_text(FAKE_TORCH.format(gpus=gpus, major=major))
    return SlurmSettings(setup=(f"export PYTHONPATH={folder}",), **more)


def look(runs_dir: Path, given: SlurmSettings, wait_s: float = 20) -> dict[str, Finding]:
    found = examine(given, runs_dir=runs_dir, wait_s=wait_s)
    assert all(finding.text.isprintable() for finding in found), "each finding is one line"
    return {finding.subject: finding for finding in found}


@pytest.mark.process
def test_a_healthy_cluster_is_described_from_the_login_node_and_from_a_compute_node(
    cluster: Path, tmp_path: Path
) -> None:
    found = look(tmp_path / "runs", with_torch(cluster, gpus=1, partition="gpu", timeout_min=20, mem_gb=2))
    texts = {subject: finding.text for subject, finding in found.items()}
    assert texts["sbatch"] == "slurm-wlm 24.11.5"
    assert texts["job arrays"] == "up to 1,001 tasks in an array (MaxArraySize)"
    assert texts["partition"] == "gpu: 1 node of 8 cores and 2 a100 GPUs, jobs of up to 30 min"
    assert texts["settings"] == "1 rank on a node, 1 GPU and 4 cores each, 2 GB of memory, 20 min"
    assert "is visible on node" in texts["shared folder"]
    assert texts["torch on node"] == "9.9, sees A100"
    assert {finding.level for finding in found.values()} == {"ok"}
    assert list((tmp_path / "runs").iterdir()) == [], "the trial leaves nothing behind"


@pytest.mark.process
def test_without_sbatch_or_a_controller_nothing_more_is_asked(cluster: Path, tmp_path: Path) -> None:
    problem = "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)"
    answering(cluster, "scontrol", f"{problem}\n", code=1, to="stderr")
    found = look(tmp_path, SlurmSettings())
    assert list(found) == ["sbatch", "SLURM"]
    assert (found["SLURM"].level, found["SLURM"].text) == ("bad", f"scontrol: {problem}")
    answering(cluster, "sbatch", "sbatch: fatal: Could not establish a configuration source\n", code=1, to="stderr")
    (only,) = look(tmp_path, SlurmSettings()).values()
    assert only.level == "bad"
    assert only.text.startswith("sbatch: fatal: Could not establish a configuration source; launch from a login node")


@pytest.mark.process
def test_an_option_that_sbatch_does_not_list_there_is_a_note(cluster: Path, tmp_path: Path) -> None:
    program(
        cluster, "sbatch", 'case "$1" in --version) echo slurm 24;; --help) echo "  --comment=x  a";; *) exit 1;; esac'
    )
    found = look(tmp_path, SlurmSettings(sbatch={"comment": "a", "container-image": "b"}))
    notes = {subject for subject, finding in found.items() if finding.level == "note"}
    assert notes == {"sbatch.container-image"}


# -- the trial job -------------------------------------------------------------------------------------------------


def waits_in(cluster: Path, runs_dir: Path) -> None:
    """Have job 42 wait, in the folder of the trial."""
    row = f"42|PENDING|Resources|$(echo {runs_dir}/.slurm-doctor-*)"
    program(cluster, "squeue", f'case "$*" in *"%T (%r)") echo "PENDING (Resources)";; *) echo "{row}";; esac')


@pytest.mark.process
def test_a_job_that_stays_in_the_queue_is_a_note_and_cancelled(cluster: Path, tmp_path: Path) -> None:
    program(cluster, "sbatch", '[ "$1" = --version ] && echo slurm 24 || echo "42;lab"')
    waits_in(cluster, tmp_path)
    node = look(tmp_path, SlurmSettings(), wait_s=0.5)["compute node"]
    assert (node.level, "still queued, PENDING (Resources), after 0.5 s" in node.text) == ("note", True)
    assert (cluster / "scancel.asked").read_text().split()[-1] == "42"
    assert not list(tmp_path.glob(".slurm-doctor-*"))


@pytest.mark.process
@pytest.mark.parametrize(
    ("submits", "place", "settings", "subject", "text"),
    [
        ("echo 42", "", {}, "shared folder", "set --runs-dir to a file system that nodes share"),
        (None, "", {"python": "no-such-python"}, "compute node", "Python did not start there: .*not found"),
        (
            'echo "sbatch: error: Invalid account" >&2; exit 1',
            "",
            {},
            "compute node",
            "error: Invalid account; set account",
        ),
        (None, "file/runs", {}, "compute node", "cannot write .*"),
        ("echo hello", "", {}, "compute node", 'sbatch: expected a job id, got "hello"'),
    ],
    ids=["no file of the job", "no Python", "a refusal", "an unwritable folder", "no job id"],
)
def test_a_trial_that_goes_wrong_is_bad_and_says_where(
    cluster: Path, tmp_path: Path, submits: str | None, place: str, settings: dict[str, Any], subject: str, text: str
) -> None:
    if submits is not None:
        program(cluster, "sbatch", f'[ "$1" = --version ] && echo slurm 24 && exit; {submits}')
        answering(cluster, "squeue", "slurm_load_jobs error: Invalid job id specified\n", code=1, to="stderr")
    (tmp_path / "file").write_text("")
    found = look(tmp_path / place, SlurmSettings(**settings), wait_s=0.5 if submits else 20)[subject]
    assert found.level == "bad"
    assert re.search(f"{text}$", found.text), found.text


@pytest.mark.process
def test_a_torch_that_is_broken_or_sees_no_gpu_is_bad(cluster: Path, tmp_path: Path) -> None:
    given = with_torch(cluster, partition="gpu", timeout_min=9)
    assert "9.9 sees no CUDA device, yet the job was given" in look(tmp_path, given)["torch on node"].text
    (cluster / "torch.py").write_text("raise OSError('libcudart.so.12: no such file\\nmore')")
    torch = look(tmp_path, given)["torch on node"]
    assert torch.level == "bad"
    assert "cannot be imported (OSError: libcudart.so.12: no such file)" in torch.text


@pytest.mark.process
def test_doctor_finds_nothing_bad_on_the_test_cluster(slurm_cluster: LoopbackCluster, tmp_path: Path) -> None:
    words = ["doctor", "--backend", "slurm", "--json", "--runs-dir", str(tmp_path / "runs"), "--wait-s", "600"]
    done = commands.run([sys.executable, str(ROOT / "launch.py"), *words], env=slurm_cluster.env, cwd=tmp_path)
    found = {finding["subject"]: finding for finding in json.loads(done.stdout)["data"]["findings"]}
    assert [finding for finding in found.values() if finding["level"] == "bad"] == []
    assert done.returncode == 0


@pytest.mark.process
def test_a_job_is_cancelled_when_the_user_loses_patience(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path) -> list[Path]:
        raise KeyboardInterrupt

    program(cluster, "sbatch", '[ "$1" = --version ] && echo slurm 24 || echo 42')
    waits_in(cluster, tmp_path)
    monkeypatch.setattr(doctor, "listed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        examine(SlurmSettings(), runs_dir=tmp_path)
    assert (cluster / "scancel.asked").read_text().split()[-1] == "42"


def answers(*lines: list[Any]) -> str:
    return "".join(f"{json.dumps([MARK, *line])}\n" for line in lines)


@pytest.mark.parametrize(
    ("more", "level", "text"),
    [
        ("", "note", "still being imported after 90 s"),
        (
            f"slurmstepd: error: no memory\n{OVER}\n",
            "bad",
            "the trial job ended while importing it: slurmstepd: error: no m",
        ),
    ],
)
def test_a_torch_that_is_not_imported_in_time_says_what_was_waited_for(
    tmp_path: Path, more: str, level: str, text: str
) -> None:
    log = answers(["n1", "3.11.2", "/p"]) + more
    torch = findings(log, "", runs_dir=tmp_path, has_gpus=False, wait_s=90)[2]
    assert (torch.subject, torch.level) == ("torch on node", level)
    assert torch.text.startswith(text)


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    log = f"0: {answers(['n1', '3.9.2', '/p'])}{OVER}\n"  # a step may label its lines
    found = findings(log, "", runs_dir=tmp_path, has_gpus=False, wait_s=1)
    levels = {finding.subject: finding.level for finding in found}
    assert levels == {"shared folder": "ok", "Python on node": "bad", "torch on node": "bad"}
    assert found[1].text == "Python 3.9.2, /p; expected 3.11 or newer; set python or setup"


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.process
def test_doctor_looks_at_a_cluster_when_asked_and_reads_the_site_file(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        machine_doctor, "examine", lambda runs_dir, data: [Finding(level="ok", subject="here", text="fine")]
    )
    monkeypatch.setattr(settings, "SITE_FILE", tmp_path / "none")
    (tmp_path / "site.toml").write_text('partition = "gpus"')
    monkeypatch.setenv("SEQLM_SLURM_CONFIG", str(tmp_path / "site.toml"))
    assert launch.main(["doctor", "--json", "--runs-dir", str(tmp_path)]) == 0
    assert "gpus" not in capsys.readouterr().out
    code = launch.main(["doctor", "--backend", "slurm", "--json", "--runs-dir", str(tmp_path), "--wait-s", "1"])
    found = json.loads(capsys.readouterr().out)["data"]["findings"]
    assert code == BackendError.exit_code
    assert found[0]["subject"] == "here"
    assert 'did you mean "gpu"' in found[-1]["text"]
    (tmp_path / "site.toml").write_text("partitoin = 3")
    assert launch.main(["doctor", "--backend", "slurm", "--runs-dir", str(tmp_path)]) == 2


def test_a_machine_without_slurm_hears_nothing_of_it(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def says() -> list[Finding]:
        return SlurmBackend.doctor(runs_dir=Path(), is_asked=False, wait_s=1)

    (one,) = says()
    assert (one.level, "--backend slurm" in one.text) == ("ok", True)
    monkeypatch.setenv("PATH", "/nowhere")
    assert says() == []
