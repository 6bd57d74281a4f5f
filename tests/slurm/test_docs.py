"""Every command of docs/guides/slurm.md runs, in its order, on a real SLURM."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from slurm.testcluster import ClusterOptions, LoopbackCluster
from tests import commands
from tests.slurm.real import require_slurm
from tests.waiting import wait_for

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "guides" / "slurm.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines() if line]
SITE, MANIFEST = (block for language, block in BLOCKS if language == "toml")


def test_every_command_from_login_to_report_runs(tmp_path: Path) -> None:
    require_slurm()
    (tmp_path / "site.toml").write_text(f"progress_s = 0.5\n{SITE}")
    (tmp_path / "cluster.toml").write_text(MANIFEST)
    written = [shlex.split(line, comments=True) for line in COMMANDS]
    launches = [words[1:] for words in written if words[0] == "seqlm"]
    assert [words[0] for words in launches] == [
        "doctor", "plan", "run", "status", "status", "logs", "cancel", "retry", "report",
    ]  # fmt: skip
    with LoopbackCluster(ClusterOptions(nodes=2, gpus=0)) as cluster:
        env = {**cluster.env, "SEQLM_BACKEND": "", "SEQLM_SLURM_CONFIG": str(tmp_path / "site.toml")}
        for words in launches:
            argv = [sys.executable, str(ROOT / "launch.py"), *words]
            answer = commands.run(argv, cwd=tmp_path, env=env)
            assert answer.returncode == 0, (words, answer.stdout, answer.stderr)
            if words[0] == "plan":
                assert "#SBATCH --array=0-3" in answer.stdout
                assert "export OMP_PROC_BIND=false" in answer.stdout
        wait_for((tmp_path / "runs/cluster/report/index.html").exists, "the report")


def test_the_test_clusters_command_line_is_as_written() -> None:
    (words,) = [shlex.split(line) for line in COMMANDS if "testcluster" in line]
    assert words[:4] == [".venv/bin/python", "-m", "slurm.testcluster", "up"]
    answer = commands.run([sys.executable, *words[1:], "--help"], cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
