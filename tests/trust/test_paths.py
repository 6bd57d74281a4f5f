"""Names and folders that a shell, a directive of SLURM or a path could take for something else."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import launch
from benchmarks.toml_text import toml_text
from seqlm.errors import UsageError
from slurm.backend import SlurmBackend
from slurm.testcluster import LoopbackCluster
from tests import commands
from tests.crawl import blank_figures
from tests.fake_slurm import FakeSlurm
from tests.seqlm.training.studies import runs_in
from tests.small_study import ROOT, Study
from tests.waiting import wait_for

pytestmark = pytest.mark.process

HOSTILE = "a 'b\" $(touch x) `touch x`\n;touch x #&|*é"
"""As the name of a folder."""
IS_UTF_8 = os.fsencode("é") == "é".encode()
ON_ONE_LINE = HOSTILE.replace("\n", "").replace("é", "é" if IS_UTF_8 else "e")

NAMES = [
    *("../../x", "..", ".", "/etc/x", "$(rm -rf ~)", "`touch x`", "-rf", "--help", "a b", "a\nb", "a\0b", "\u202eexe"),
    *("\x1b[2J", "a/b", "a\\b", "a%j", "a;b", "a'b", 'a"b', "", "x" * 81, ".hidden"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("place", ["study", "run", "--set"])
def test_a_name_that_is_no_plain_word_is_refused_in_one_line(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    entry: dict[str, object] = {"model": {"arch": "rnn", "hidden_size": 8, "num_layers": 1, "embedding_size": 8}}
    entry |= {
        "optim": {"optimizer": "sgd", "lr": 1},
        "data": {"corpus": "pydoc", "vocab_size": 100},
        "train": {"epochs": 1},
    }
    entry |= {"name": name} if place == "run" else {}
    text = toml_text({"study": {"name": name if place == "study" else "small"}, "run": [entry]})
    Path("m.toml").write_text(text, "utf-8")
    words = ["--set", f"study.name={json.dumps(name)}"] if place == "--set" else []
    assert launch.main(["run", "m.toml", "--backend", "local", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert "expected up to 80 letters, digits, dots, hyphens and underscores" in line
    assert [path.name for path in tmp_path.rglob("*")] == ["m.toml"]


def marks(*folders: Path) -> list[Path]:
    """Files ``x`` that a shell would have made."""
    return [path for folder in (ROOT, *folders) for path in (folder / "x", *folder.glob("*/x")) if path.exists()]


def test_a_whole_study_lives_in_a_folder_with_a_name_like_a_program(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    study = Study(folder, epochs=1, lines=60)
    manifest = folder / "-rf $(touch x)\n.toml"
    text = (folder / "small.toml").read_text()
    manifest.write_text(f"{text}resources.ranks = 2\nresources.cpus = 1\nresources.gpus = 0\n")  # ranks meet in a file
    runs = folder / "runs"

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        done = study(*words, "--runs-dir", str(runs), "--json", env={**os.environ, **blank_figures()})
        assert done.returncode == 0, done.stderr
        return done

    assert json.loads(command("plan", f"./{manifest.name}").stdout)["ok"]
    done = command("run", f"./{manifest.name}", "--backend", "local")
    assert all(line.isprintable() for line in done.stderr.splitlines())
    for words in (["status"], ["logs"], ["cancel"], ["retry", "--backend", "local"], ["report", "--no-behaviour"]):
        command(words[0], str(runs / "small"), *words[1:])
    (run,) = runs_in(runs / "small")
    assert run.result_file.exists()
    assert json.loads(run.worker_file(1, 1).read_text())["ranks"] == 2
    assert (runs / "small/report/index.html").exists()
    assert marks(tmp_path, folder, runs, runs / "small") == []


def test_a_launcher_left_behind_gets_its_words_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    study = Study(folder, epochs=1, stub=True)
    done = study("run", str(folder / "small.toml"), "--backend", "local", "--no-wait")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: [run.result_file.exists() for run in study.runs()], "the result of the run", until=any)
    assert marks(tmp_path, folder) == []


# -- SLURM -------------------------------------------------------------------------------------------------------------

RECORD = "#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done >> {record}\n"


@pytest.mark.parametrize("name", [ON_ONE_LINE, "-rf"], ids=["a program", "an option"])
def test_bash_reads_the_scripts_for_sbatch_as_they_are_meant(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(tmp_path / "slurm").on_path(monkeypatch)
    Study(tmp_path / name, epochs=1)
    monkeypatch.chdir(tmp_path / name)
    record = tmp_path / "record"
    python = tmp_path / "python"
    python.write_text(RECORD.format(record=record))
    python.chmod(0o755)
    with Path("small.toml").open("a") as manifest:
        manifest.write(f"resources.gpus = 0\n[backend.slurm]\npython = '{python}'\n")
    assert launch.main(["run", "small.toml", "--backend", "slurm", "--no-wait", "--then-report"]) == 0
    (slurm.bin / "srun").write_text(RECORD.format(record=record))
    (slurm.bin / "squeue").write_text("#!/bin/sh\necho 'COMPLETING|None|'\n")
    folder = tmp_path / name / "runs" / "small"
    for job in slurm.jobs().values():
        script = tmp_path / "script.sh"
        script.write_text(job.script)
        done = commands.run(["bash", script], cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    words = record.read_bytes().decode().split("\0")
    assert str(folder / "launches" / "000001" / "batch.json") in words
    assert words.count(str(folder)) == 2  # of the report, without and with behaviour
    assert slurm.jobs()["1_0"].options["chdir"].startswith(f"{folder}/launches/")
    assert marks(tmp_path, tmp_path / name, folder) == []


@pytest.mark.parametrize("name", ["a\n#SBATCH --uid=0", "100%j", "back\\slash", "\u202etxt", "\x1b[2J"], ids=ascii)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_folder_that_a_directive_cannot_carry_is_refused_for_slurm_alone(
    tmp_path: Path, name: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (IS_UTF_8 or name.isascii()):
        pytest.skip("no name of a file in this locale")
    slurm = FakeSlurm(tmp_path / "slurm").on_path(monkeypatch)
    Study(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    words = [command, "small.toml", "--runs-dir", str(tmp_path / name), "--set", "resources.gpus=0"]
    assert launch.main([*words, "--backend", "slurm"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.isprintable()
    assert "SLURM accepts no folder with a control character, % or a backslash in its name" in line
    assert slurm.calls("sbatch") == []
    assert not (tmp_path / name).exists()
    assert launch.main(["plan", *words[1:], "--backend", "local"]) == 0


def test_a_folder_that_jobs_would_look_for_under_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsencode", lambda path: str(path).encode("latin-1"))
    SlurmBackend().require_path(tmp_path)
    with pytest.raises(UsageError, match=r"set LC_ALL=C\.UTF-8"):
        SlurmBackend().require_path(tmp_path / "é")


def test_a_real_slurm_runs_a_study_in_a_folder_with_a_name_like_a_program(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    folder = tmp_path / ON_ONE_LINE
    study = Study(folder, epochs=1, stub=True)
    manifest = folder / "small.toml"
    manifest.write_text(f"{manifest.read_text()}resources.gpus = 0\nresources.cpus = 1\n")
    argv = study.command("run", "small.toml", "--backend", "slurm", "--then-report", "--no-behaviour")
    done = commands.run(argv, cwd=folder, env={**slurm_cluster.env, **blank_figures(), "SEQLM_BACKEND": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    assert [run.result_file.exists() for run in study.runs()] == [True]
    wait_for((folder / "runs/small/report/index.html").exists, "the report")
    logs = [path.name for path in (folder / "runs/small/launches").rglob("*.out")]
    assert logs, "the logs of jobs lie where they are looked for"
    assert marks(tmp_path, folder, folder / "runs" / "small") == []
    assert not (Path(os.environ["HOME"]) / "x").exists()
