"""What a site and a study set for SLURM, and the line that each wrong setting gets."""

from pathlib import Path
from typing import Any

import pytest

from seqlm.errors import ManifestError
from seqlm.resources import Resources
from slurm import settings as module
from slurm.settings import SlurmSettings, read_settings

ROOT = Path(__file__).parents[2]
RUN = '\n[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 4\noptim.optimizer = "sgd"\noptim.lr = 1\n'


@pytest.fixture(autouse=True)
def _no_site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests do not read the site file of this machine."""
    monkeypatch.setattr(module, "SITE_FILE", tmp_path / "cluster.toml")


def read(folder: Path, site: str | None = None, **table: Any) -> SlurmSettings:
    environ = {}
    if site is not None:
        (folder / "site.toml").write_text(site, "utf-8")
        environ["SEQLM_SLURM_CONFIG"] = str(folder / "site.toml")
    return read_settings(table, where="study.toml", environ=environ)


def problems(folder: Path, site: str | None = None, **table: Any) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read(folder, site, **table)
    assert caught.value.exit_code == 2
    assert all(line.isprintable() for problem in caught.value.problems for line in problem.split("\n"))
    return [line.replace(f"{folder}/", "") for line in caught.value.problems]


# -- where settings come from --------------------------------------------------------------------------------------


def test_the_manifest_goes_before_the_site_key_by_key(tmp_path: Path) -> None:
    site = 'partition = "cpu"\naccount = "ours"\nsetup = ["a", "b"]\nsrun_args = ["-v"]\ntimeout_min = 90\n'
    site += 'env = {A = "site", B = "site"}\nsbatch = {core-spec = 1, gres_flags = "x", comment = "c"}\n'
    sbatch = {"core_spec": 2, "exclusive": True}
    made = read(tmp_path, site, partition="gpu", setup=["c"], env={"B": "study"}, mem_gb=2.5, sbatch=sbatch)
    assert made == SlurmSettings(
        partition="gpu",
        account="ours",
        setup=("c",),
        srun_args=("-v",),
        timeout_min=90,
        mem_gb=2.5,
        env={"A": "site", "B": "study"},
        sbatch={"core-spec": 2, "gres-flags": "x", "comment": "c", "exclusive": True},
    )


def test_the_site_file_beside_the_code_is_read_unless_the_variable_names_another(tmp_path: Path) -> None:
    module.SITE_FILE.write_text("timeout_min = 7\nsignal_before_s = 1")
    assert read(tmp_path).timeout_min == 7
    assert read(tmp_path, "timeout_min = 8").timeout_min == 8


def test_git_leaves_the_site_file_beside_the_code_alone() -> None:
    assert "/slurm/cluster.toml" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


def test_a_site_file_that_is_not_there_or_no_toml_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"^SEQLM_SLURM_CONFIG: /nowhere/x\.toml: no such file$"):
        read_settings({}, where="m", environ={"SEQLM_SLURM_CONFIG": "/nowhere/x.toml"})
    with pytest.raises(ManifestError, match="got a folder"):
        read_settings({}, where="m", environ={"SEQLM_SLURM_CONFIG": str(tmp_path)})
    (problem,) = problems(tmp_path, "partition = ")
    assert problem.startswith("SEQLM_SLURM_CONFIG: site.toml: not TOML: Invalid value (at end of document)\n")


def test_all_problems_of_both_files_are_told_at_once(tmp_path: Path) -> None:
    lines = problems(tmp_path, "timeout_min = 0\npartitoin = 'x'\n", partition=3, sbatch={"time": 1})
    assert [line.partition(" ")[0] for line in lines] == ["site.toml:", "site.toml:", "study.toml:", "study.toml:"]


# -- wrong settings ------------------------------------------------------------------------------------------------


def test_keys_of_a_site_file_are_called_as_they_stand_there(tmp_path: Path) -> None:
    assert problems(tmp_path, "partitoin = 'x'")[0].startswith(
        'site.toml: unknown key "partitoin"; did you mean "partition"? (valid: max_parallel, '
    )
    assert problems(tmp_path, "sbatch.output = 'x'")[0].startswith("site.toml: sbatch.output: seqlm sets --output ")


def test_the_warning_leaves_half_of_a_short_job() -> None:
    assert [SlurmSettings(timeout_min=minutes).warning_s for minutes in (1, 4, 60)] == [30, 120, 120]


# -- nodes and jobs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "each", "expected"),
    [
        (1, None, (1, 1)),
        (8, None, (1, 8)),
        (8, 4, (2, 4)),
        (4, 4, (1, 4)),
        (1, 4, (1, 1)),
        (3, 4, (1, 3)),
        (2, 1, (2, 1)),
    ],
)
def test_ranks_go_on_as_many_nodes_as_the_settings_say(ranks: int, each: int | None, expected: tuple[int, int]) -> None:
    shape = SlurmSettings(ranks_per_node=each).shape(Resources(ranks=ranks, cpus=1))
    assert (shape.nodes, shape.cpus) == expected


@pytest.mark.parametrize(
    ("gpus", "runs"), [(None, 1), (0, 1), (1, 1), (1.0, 1), (0.5, 2), (0.25, 4), (0.3, 3), (0.1, 10), (1 / 3, 3)]
)
def test_runs_of_a_share_of_a_gpu_go_into_one_job(gpus: float | None, runs: int) -> None:
    assert SlurmSettings().shape(Resources(gpus=gpus)).at_once == runs
