"""A site file that writes itself, on what clusters of several versions say, and on a real SLURM."""

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.doctor import ROOT
from seqlm.errors import UsageError
from seqlm.reading import listed
from seqlm.resources import Resources
from slurm.settings import read_settings
from slurm.site import partition_facts
from slurm.site_file import CONFIG, answers, record_text, write
from slurm.testcluster import LoopbackCluster
from tests import commands
from tests.slurm.programs import program
from tests.small_study import Study, epochs_of

pytestmark = pytest.mark.process

RECORDS = {path.stem: json.loads(path.read_text()) for path in listed(Path(__file__).with_name("records"), "*.json")}
"""What clusters have said. ``source`` tells which of it a cluster has said, and what was written by hand."""


def replay(folder: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put programs on PATH that answer as the cluster of a record."""
    folder.mkdir()
    for key in ("version", "config", "partitions", "accounts"):
        (folder / key).write_text(record[key])
    program(folder, "sbatch", f'[ "$1" = --version ] && cat "{folder}/version"')
    program(folder, "sinfo", f'cat "{folder}/partitions"')
    said = "echo {}" if record["json"] else "echo 'unrecognized option' >&2; exit 1"
    program(folder, "scontrol", f'[ "$1" = --json ] && {{ {said}; exit; }}\ncat "{folder}/config"')
    program(folder, "sacctmgr", f'[ -s "{folder}/accounts" ] && cat "{folder}/accounts"')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")


@pytest.mark.parametrize("name", RECORDS)
def test_the_site_file_of_each_cluster_is_valid_there_and_its_record_is_what_was_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    record = RECORDS[name]
    replay(tmp_path / "bin", record, monkeypatch)
    site, kept = tmp_path / "site.toml", tmp_path / "record.json"
    write(answers(), site, kept)
    settings = read_settings({}, where="", environ={"SEQLM_SLURM_CONFIG": str(site)})
    facts = partition_facts(settings.partition)
    assert facts.resolve(Resources(), settings).gpus == float(facts.gpus_per_node > 0), "a run fits"
    assert (settings.account is not None) == bool(record["accounts"])
    assert settings.ranks_per_node == (facts.gpus_per_node or None)
    assert {**json.loads(kept.read_text()), "source": None} == {**record, "source": None}
    commented = [line.removeprefix("# ") for line in site.read_text().splitlines() if line.startswith("# gpu_request")]
    assert all(read_settings(tomllib.loads(line), where="", environ={}).gpu_options(2) for line in commented)
    before = site.read_text()
    with pytest.raises(UsageError, match="exists"):
        write(answers(), site, None)
    assert site.read_text() == before


def test_a_record_names_no_user_account_or_host() -> None:
    secret = "hopper"
    said = {
        "version": "slurm 24.11.5\n",
        "config": f"SlurmctldHost[0] = {secret}\nMaxArraySize = 1001\nSlurmUser = {secret}(7)\n",
        "partitions": "main*|infinite|1|4|2000|(null)|1-infinite\n",
        "accounts": f"{secret}|{secret}|normal\n",
        "json": f'{{"pings": "{secret}"}}',
    }
    assert "MaxArraySize" in CONFIG
    text = record_text(said)
    assert secret not in text
    assert "account1|account1|normal" in text


def test_the_site_file_of_the_test_cluster_runs_a_study_as_it_was_written(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    words = ["doctor", "--backend", "slurm", "--write-site", "site.toml", "--record", "site.json", "--runs-dir", "runs"]
    env = {**slurm_cluster.env, "SEQLM_BACKEND": ""}
    command = [sys.executable, str(ROOT / "launch.py")]
    done = commands.run([*command, *words, "--wait-s", "600"], env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    study = Study(tmp_path / "study", stub=True, epochs=2, ranks=2, gpus=1, cpus=1)
    study.env = {**env, "SEQLM_SLURM_CONFIG": str(tmp_path / "site.toml")}
    ran = study("run", "small.toml", "--backend", "slurm")
    assert ran.returncode == 0, ran.stderr
    assert [epochs_of(run) for run in study.runs()] == [[0, 1]]
