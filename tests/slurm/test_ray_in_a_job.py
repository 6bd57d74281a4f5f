"""The script of docs/guides/ray.md: a Ray cluster on the nodes of a SLURM job, in a network that has only loopback."""

import json
import sys
from pathlib import Path

import pytest

from tests import commands
from tests.crawl import Crawl
from tests.docs_blocks import ROOT, read_blocks
from tests.ray_lab import RayLab
from tests.slurm.real import require_slurm
from tests.small_study import Study, epochs_of, worker_of
from tests.waiting import wait_for

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_two_ranks_on_two_nodes_save_and_the_job_is_put_back_when_it_is_told_that_its_time_is_up(
    lab: RayLab, tmp_path: Path
) -> None:
    require_slurm()
    lab.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"], cwd=tmp_path)  # slurmctld asks for more than 127.*
    start = ["up", "--nodes", "2", "--gpus", "1", "--cpus", "2", "--folder", str(lab.folder / "slurm")]
    cluster = lab.start([sys.executable, "-m", "slurm.testcluster", *start], cwd=ROOT)
    commands.next_line(cluster)
    name, _, value = commands.next_line(cluster).strip().removeprefix("export ").partition("=")
    crawl = Crawl(tmp_path, epochs=1)
    env = ", ".join(f"{name} = {json.dumps(value)}" for name, value in {"SEQLM_DEVICE": "cpu", **crawl.env}.items())
    study = Study(tmp_path, head=f"[backend.ray]\nenv = {{{env}}}", stub=True, epochs=4, ranks=2, gpus=1, cpus=1)
    (script,) = (block.text for block in read_blocks(ROOT / "docs/guides/ray.md") if block.text.startswith("#!"))
    assert "seqlm run gpus.toml" in script
    command = " ".join(study.command("run", "small.toml"))
    (tmp_path / "ray.sbatch").write_text(script.replace("seqlm run gpus.toml", command))
    lab.env |= {name: value, "PATH": f"{Path(sys.executable).parent}:{lab.env['PATH']}"}

    def slurm(*words: str) -> str:
        ended = lab.run(words, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return str(ended.stdout).strip()

    sizes = ("--nodes=2", "--cpus-per-task=1", "--gpus-per-node=1", "--time=60")
    job = slurm("sbatch", "--parsable", "--partition=main", *sizes, "ray.sbatch")
    told = tmp_path / f"ray-{job}.out"
    try:
        wait_for(study.epochs, "an epoch of the two ranks", until=any)
        (run,) = study.runs()
        assert worker_of(run)["node"] != worker_of(run, 1)["node"]
        slurm("scancel", "--batch", "--signal=USR2", job)
        wait_for(lambda: slurm("squeue", "-h", "-j", job, "-o", "%T"), "another start", until="PENDING".__eq__)
        assert run.end(1).outcome == "interrupted"
        assert epochs_of(run), "what was saved"
        slurm("scancel", job)
        wait_for(lambda: slurm("squeue", "-h", "-j", job, "-o", "%T"), "the job to end", until=lambda found: not found)
    except BaseException:
        print(told.read_text() if told.exists() else "the job printed nothing")
        raise
