"""What is submitted: arrays of jobs, their scripts and their files.

``python -m tests.slurm.test_submission`` writes the scripts in ``scripts.txt`` again; read their diff.
"""

import math
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.launch.job import StudySettings
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun
from jobs.scheduled.submission import JobPlan, divided, limited, plan_jobs, script, submit, take_turns
from jobs.spec import RunSpec
from jobs.study.folder import read_jobs
from jobs.study.kept_code import Code
from seqlm.errors import BackendError
from seqlm.records.batch import Limits
from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import Request, file_request
from seqlm.resources import Resources
from slurm.backend import SlurmBackend
from slurm.settings import SlurmSettings, read_settings
from slurm.shell import SHELL
from tests.fake_slurm import FakeSlurm
from tests.fakes import make_fresh
from tests.seqlm.training.studies import make_config
from tests.slurm_jobs import array_of

CODE = Code(path=Path("/code"), commit=None, dirty=False, live=False)
WHOLE = Resources(cpus=4, gpus=1)


def planned(folder: Path, count: int, resources: Resources = WHOLE) -> list[PlannedRun]:
    items = []
    for number in range(count):
        spec = RunSpec(name=f"run{number}", config=make_config(seed=number), resources=resources, order=number)
        items.append(make_fresh(folder, spec))
    return items


def jobs(items: list[PlannedRun], settings: SlurmSettings, policy: Policy | None = None, request: int = 1) -> JobPlan:
    study = StudySettings(path=items[0].run.path.parent, policy=policy or Policy())
    return plan_jobs(items, study, settings, CODE, scheduler="slurm", request=request)


def text(items: list[PlannedRun], settings: SlurmSettings, *after: str) -> str:
    return script(jobs(items, settings), 0, SlurmBackend(settings), after=after)


def request(items: list[PlannedRun]) -> Request:
    return file_request(
        items[0].run.path.parent,
        RequestFile(kind="run", backend="slurm", runs={item.run.id: Wanted() for item in items}),
    )


def test_runs_with_other_limits_are_another_array(tmp_path: Path) -> None:
    items, settings = planned(tmp_path, 4), SlurmSettings(timeout_min=240, mem_gb=64, signal_before_s=600)
    asked = [Limits(timeout_min=30, mem_gb=number % 2 + 1) for number in range(3)]
    fits = {item.run.id: (limits, settings.limits) for item, limits in zip(items, asked, strict=False)}
    made = plan_jobs(items, StudySettings(path=tmp_path), settings, CODE, scheduler="slurm", request=1, limits=fits)
    found = [
        re.findall(r"--(array|mem|time|signal)=(\S*)$", script(made, number, SlurmBackend(settings)), re.M)
        for number in range(len(made.arrays))
    ]
    assert [dict(one) for one in found] == [
        {"array": array, "mem": mem, "time": time, "signal": "USR2@600"}
        for array, mem, time in (("0-1", "1024M", "30"), ("0-0", "2048M", "30"), ("0-0", "65536M", "240"))
    ]


@pytest.mark.parametrize(
    ("resources", "settings", "arrays"),
    [
        ({"gpus": 1}, {}, [(6, 6, 1, 1)]),
        ({"gpus": 1, "ranks": 2}, {"ranks_per_node": 1}, [(6, 6, 2, 1)]),
        ({"gpus": 0.25}, {}, [(6, 2, 1, 1)]),  # four share a GPU
        ({"gpus": 0.25}, {"max_parallel": 3}, [(6, 2, 1, 1)]),
        ({"gpus": 0.25}, {"pool": {"jobs": 3, "gpus": 2, "cpus": 4}}, [(6, 3, 1, 2)]),
        ({"gpus": 0.25}, {"pool": {"jobs": 3, "gpus": 2, "cpus": 4}, "max_parallel": 2}, [(6, 2, 1, 2)]),
        ({"gpus": 1}, {"pool": {"jobs": 9, "gpus": 1, "cpus": 1}}, [(6, 6, 1, 1)]),
        ({"gpus": 1}, {"pool": {"jobs": 0, "gpus": 1, "cpus": 1}}, [(6, 6, 1, 1)]),  # no pool here
        ({"gpus": 1, "ranks": 2}, {"pool": {"jobs": 3, "gpus": 1, "cpus": 4}}, [(6, 6, 1, 2)]),
    ],
)
def test_six_runs_are_arrays_of_so_many_jobs_of_so_many_nodes_with_so_many_gpus(
    tmp_path: Path, resources: dict[str, float], settings: dict[str, Any], arrays: list[tuple[int, int, int, int]]
) -> None:
    items = planned(tmp_path, 6, Resources(**{"cpus": 1, **resources}))  # type: ignore[arg-type]
    found = jobs(items, SlurmSettings(**settings)).arrays
    assert [(len(one.runs), one.jobs, one.nodes, one.gpus) for one in found] == arrays
    assert [run_id for array in found for run_id in array.runs] == [item.run.id for item in items]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(1, 40), st.sampled_from([1, 3, None]))
def test_arrays_that_run_at_once_keep_to_the_limit_together_and_no_order_of_arrays_would_need_fewer_rounds(
    numbers: list[int], most: int, at_once: int | None
) -> None:
    """A round: as many runs as may run at once."""
    found = limited([array_of(*map(str, range(number)), jobs=number, at_once=at_once) for number in numbers], most)
    shares = [array.most_runs or 0 for array in found]
    in_turn = [math.ceil(number / most) for number in numbers]
    for array, share in zip(found, shares, strict=True):
        assert 1 <= share <= most
        assert (array.at_once or 0) * min(array.jobs, max(1, share // (array.at_once or 1))) <= share
    if take_turns(found, most):
        assert shares == [most] * len(numbers)
    else:
        assert sum(shares) <= most
        rounds = [math.ceil(number / share) for number, share in zip(numbers, shares, strict=True)]
        assert max(rounds) <= sum(in_turn)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(1, 400))
def test_a_part_of_the_places_is_what_a_number_asks_for_or_as_near_as_whole_numbers_come(
    wanted: list[int], places: int
) -> None:
    found = divided(wanted, places)
    assert all(1 <= share <= number for share, number in zip(found, wanted, strict=True))
    if places >= len(wanted):
        assert sum(found) == min(places, sum(wanted)), "no place is left free that is wanted"
        neediest = max(number / share for number, share in zip(wanted, found, strict=True))
        richest = (
            min(number / (share - 1) for number, share in zip(wanted, found, strict=True) if share > 1)
            if (max(found) > 1)
            else math.inf
        )
        assert neediest <= richest, "a place of another one would have made it needier"


SCRIPTS = Path(__file__).with_name("scripts.txt")
CASES: dict[str, tuple[Resources, dict[str, Any], str]] = {
    "defaults": (WHOLE, {}, ""),
    "all settings": (
        Resources(ranks=4, cpus=3, gpus=1),
        {
            **{"partition": "gpu", "account": "lab", "qos": "high", "constraint": "a100", "timeout_min": 90},
            **{"mem_gb": 32, "ranks_per_node": 2, "signal_before_s": 60, "max_parallel": 2},
            **{"setup": ["module load cuda"], "srun_args": ["--cpu-bind=none"]},
            "sbatch": {"exclusive": True, "comment": "a grid"},
        },
        "",
    ),
    "options of plugins and of later versions": (
        WHOLE,
        {"sbatch": {"container-image": "nvidia/pytorch:25.01#x", "container_mount_home": True, "of-2031": 3}},
        "",
    ),
    "GPUs of a type": (WHOLE, {"gpu_request": "gres=gpu:a100:{gpus}"}, ""),
    "GPUs of the type of a run": (Resources(cpus=4, gpus=1, accelerator_type="a100"), {}, ""),
    "runs that share a GPU": (Resources(cpus=2, gpus=0.25), {}, ""),
    "no GPUs": (Resources(cpus=2, gpus=0), {}, ""),
    "a second array with a limit": (WHOLE, {"max_parallel": 3}, "7"),
    "a workload key": (WHOLE, {"sbatch": {"wckey": "paper"}}, ""),
}
"""Case -> resources of four runs, settings, and what the array depends on."""


def case(folder: Path, name: str) -> str:
    """A block of ``scripts.txt``: the script of a case."""
    resources, settings, dependency = CASES[name]
    after = [dependency] if dependency else []
    found = text(planned(folder / "study", 4, resources), read_settings(settings, where="m", environ={}), *after)
    found = re.sub("[0-9a-f]{64}", "DIGEST", found.replace(str(folder), "/FOLDER").replace(sys.executable, "PYTHON"))
    # What follows is the same in all scripts, as are the functions of the scheduler.
    found = found.partition("\nattend()")[0].replace(SHELL.strip(), "FUNCTIONS")
    lines = [line for line in found.splitlines() if "SUBMITIT" not in line]  # of this version of submitit
    return "\n".join([f"== {name}", *lines, "", ""])


@pytest.mark.parametrize("name", CASES)
def test_the_script_of_an_array_says_what_settings_and_resources_say(tmp_path: Path, name: str) -> None:
    assert case(tmp_path, name) in re.split(r"(?m)^(?=== )", SCRIPTS.read_text("utf-8"))


@pytest.mark.process
@pytest.mark.skipif(shutil.which("sbatch") is None, reason="no sbatch here")
def test_an_option_that_sbatch_does_not_know_is_refused_by_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slurm.conf").write_text("ClusterName=x\nSlurmctldHost=localhost\nNodeName=n CPUs=1\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    settings = SlurmSettings(sbatch={"licences": "a"})
    items = planned(tmp_path / "s", 1)
    with pytest.raises(BackendError, match=r"^sbatch rejected the job: .*unrecognized option '--licences=a'$"):
        submit(jobs(items, settings, request=request(items).number), SlurmBackend(settings))


@pytest.mark.process
@pytest.mark.parametrize("number", [3, 30])
def test_a_submission_writes_as_many_files_for_many_runs_as_for_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fake = FakeSlurm(tmp_path / "fake").on_path(monkeypatch)
    items = planned(tmp_path / "s", number)
    policy = Policy(oom=1, timeout=None, checkpoint_min=2.5, keep_last=False)
    asked = request(items)
    assert submit(jobs(items, SlurmSettings(), policy, request=asked.number), SlurmBackend()) == ["1"]
    assert [call[0] for call in fake.calls()] == ["sbatch", "scontrol"]
    files = {path.name for path in asked.folder.iterdir()}
    assert files == {"request.json", "batch.json", "array-0.sh", "submitted.json"}
    told = JobPlan.read(asked.folder / "batch.json")
    assert list(told.arrays[0].runs) == [item.run.id for item in items]
    assert (told.study.worker, told.study.policy, told.request, told.code) == (
        ("-m", "seqlm.training.worker"),
        policy,
        asked.number,
        Path("/code"),
    )
    assert told.env["SEQLM_PROGRESS_SECONDS"] == "10"
    found = {run_id: (job.id, job.folder) for run_id, job in read_jobs(tmp_path / "s").items()}
    assert found == {item.run.id: (f"1_{place}", asked.folder) for place, item in enumerate(items)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        SCRIPTS.write_text("".join(case(Path(made, str(number)), name) for number, name in enumerate(CASES)), "utf-8")
