"""What a cluster says of itself, on the texts of SLURM 24.11."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.spec import RunSpec
from seqlm.errors import BackendError
from seqlm.resources import Resources
from slurm import scheduler
from slurm.backend import SlurmBackend
from slurm.scheduler import ask
from slurm.settings import SlurmSettings, read_settings
from slurm.site import (
    NodeKind,
    Site,
    count_gpus,
    max_array_size,
    partition_facts,
    read_minutes,
    read_partitions,
)
from tests.seqlm.training.studies import make_config
from tests.slurm.programs import answering, program

CONFIG = """\
Configuration data as of 2026-11-25T00:20:44
AccountingStorageBackupHost = (null)
AccountingStorageEnforce = none
AccountingStorageHost   = localhost
AccountingStorageType   = (null)
ClusterName             = lab
MaxArraySize            = 1001
MaxBatchRequeue         = 5
MaxJobCount             = 10000
MaxJobId                = 67043328
SLURM_CONF              = /etc/slurm/slurm.conf
SLURM_VERSION           = 24.11.5

Cgroup Support Configuration:
AllowedKmemSpace        = (null)

Slurmctld(primary) at ctl is UP
"""

SINFO = """\
main*|infinite|1|4|2000|gpu:fake:2|1-infinite
main*|infinite|3|8|3000|(null)|1-infinite
gpu|2-00:00:00|4|64|515000|gpu:a100:4(S:0-1),nvme:1|1-infinite
gpu|2-00:00:00|2|32|257000|gpu:h100:8(S:0-1)|1-infinite
cpu|30:00|2|8|3000|(null)|1
old|infinite|1|8|3000|(null)|1-2
empty|infinite|0|0|0|(null)|1-infinite
"""


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")
    return folder


# -- texts ---------------------------------------------------------------------------------------------------------


def test_partitions_are_read_with_the_kinds_of_their_nodes() -> None:
    partitions, default = read_partitions(SINFO)
    assert default == "main"
    assert list(partitions) == ["main", "gpu", "cpu", "old", "empty"]
    assert partitions["gpu"] == Site(
        name="gpu",
        time_limit_min=2880,
        max_nodes=None,
        kinds=(
            NodeKind(count=4, cpus=64, gpus=4, memory_mb=515_000, gpu_types=("a100",)),
            NodeKind(count=2, cpus=32, gpus=8, memory_mb=257_000, gpu_types=("h100",)),
        ),
    )
    assert (partitions["main"].nodes, partitions["main"].has_gpus, partitions["gpu"].has_gpus) == (4, False, True)
    assert (partitions["cpu"].time_limit_min, partitions["cpu"].max_nodes) == (30, 1)
    assert partitions["old"].max_nodes == 2
    assert partitions["empty"].kinds == ()
    with pytest.raises(BackendError, match='"slurm_load_partitions'):
        read_partitions("slurm_load_partitions: nothing\n")


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", 0),
        ("", 0),
        ("gpu:4", 4),
        ("gpu", 1),
        ("gpu:a100:4", 4),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:4(S:0,2),gpu:h100:2(S:1)", 6),
        ("nvme:1,gpu:h100_80gb:8", 8),
        ("mps:400,shard:8,gpu:2", 2),
        ("gpu:3g.20gb:7(S:0)", 7),
        ("xgpu:3", 0),
    ],
)
def test_gpus_are_counted_in_what_a_node_has(gres: str, gpus: int) -> None:
    assert count_gpus(gres) == gpus


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("infinite", None), ("n/a", None), ("30:00", 30), ("1:30", 1), ("4:00:00", 240), ("2-00:00:00", 2880)],
)
def test_times_are_read_as_slurm_writes_them(text: str, minutes: int | None) -> None:
    assert read_minutes(text) == minutes


@pytest.mark.parametrize(
    ("wanted", "settings", "expected"),
    [
        ({"accelerator_type": "H100"}, {}, "h100"),
        ({"accelerator_type": "a100"}, {"gpu_request": "gres=gpu:{gpus}"}, "a100"),
        ({"accelerator_type": "h200"}, {}, r"h200 is none \(partition gpu: its types are a100, h100\)"),
        ({"accelerator_type": "a100"}, {"gpu_request": "gres=gpu:h100:{gpus}"}, "leave one of them out"),
        ({"accelerator_type": "a100", "gpus": 1, "ranks": 8}, {}, "needs 1 node with 8 a100 GPUs and 8 cores"),
        ({"gpu_memory_gb": 20}, {}, r"set resources.gpus or resources.accelerator_type \(partition gpu: its types are"),
    ],
    ids=["of a type", "its own option", "unknown", "a type in the settings", "on nodes of the type", "by memory"],
)
def test_a_kind_of_gpus_is_a_type_of_the_partition(
    wanted: dict[str, Any], settings: dict[str, Any], expected: str
) -> None:
    partition, read = read_partitions(SINFO)[0]["gpu"], read_settings(settings, where="m", environ={})
    if " " not in expected:
        assert partition.resolve(Resources(**wanted), read).accelerator_type == expected
        return
    with pytest.raises(BackendError, match=expected):
        partition.resolve(Resources(**wanted), read)


# -- calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_each_question_is_one_call(on_path: Path) -> None:
    answering(on_path, "scontrol", CONFIG)
    answering(on_path, "sinfo", SINFO)
    assert max_array_size() == 1001
    assert (on_path / "scontrol.asked").read_text() == "show config\n"
    assert partition_facts("cpu").name == "cpu"
    assert (on_path / "sinfo.asked").read_text() == "-h -a -e -o %P|%l|%D|%c|%m|%G|%s\n"


@pytest.mark.process
def test_the_default_partition_and_several_at_once(on_path: Path) -> None:
    answering(on_path, "sinfo", SINFO)
    assert partition_facts(None).name == "main"
    both = partition_facts("cpu,gpu")
    assert (both.time_limit_min, both.max_nodes, both.gpus_per_node, both.nodes) == (2880, None, 8, 8)
    answering(on_path, "sinfo", SINFO.replace("*", ""))
    with pytest.raises(BackendError, match=r"no default partition; set partition \(there are: main, gpu, cpu, old"):
        partition_facts(None)


@pytest.mark.process
def test_an_unknown_partition_gets_the_nearest_one(on_path: Path) -> None:
    answering(on_path, "sinfo", SINFO)
    with pytest.raises(BackendError, match=r'no partition gpus; did you mean "gpu"\? \(there are: main, gpu, cpu'):
        partition_facts("cpu,gpus")


@pytest.mark.process
def test_a_variable_for_sinfo_does_not_narrow_its_answer(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(on_path, "sinfo", 'echo "${SINFO_PARTITION-main*}|infinite|1|4|2000|(null)|1-infinite"')
    monkeypatch.setenv("SINFO_PARTITION", "cpu")
    assert partition_facts(None).name == "main"


@pytest.mark.process
def test_a_machine_without_a_cluster_is_not_the_fault_of_a_run(on_path: Path) -> None:
    answering(on_path, "sinfo", "sinfo: fatal: Could not establish a configuration source\n", code=1, to="stderr")
    spec = RunSpec(name="rnn-adam", config=make_config())
    with pytest.raises(BackendError) as caught:
        SlurmBackend(SlurmSettings()).resolve(spec, 1)
    where = "launch from a login node of the cluster, or set SLURM_CONF"
    assert str(caught.value) == f"sinfo: fatal: Could not establish a configuration source; {where}"
    answering(on_path, "sinfo", SINFO)
    too_large = replace(spec, resources=Resources(cpus=4000))
    with pytest.raises(BackendError, match=r"^rnn-adam: never fits: needs 1 node with 1 GPU and 4000 cores"):
        SlurmBackend(SlurmSettings()).resolve(too_large, 1)


@pytest.mark.process
def test_a_controller_that_does_not_answer_is_one_clear_line(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"^slurm-absent is not on PATH; launch from a login node"):
        ask("slurm-absent")
    retries = "sinfo: error: getaddrinfo() failed: attempt number 1\n"
    refusal = "slurm_load_partitions: Unable to contact slurm controller (connect failure)\n"
    answering(on_path, "sinfo", retries + refusal, code=1, to="stderr")
    with pytest.raises(BackendError) as caught:
        partition_facts(None)
    assert str(caught.value) == f"sinfo: {refusal.strip()}"
    assert caught.value.exit_code == 3
    program(on_path, "scontrol", "exec sleep 30")
    monkeypatch.setattr(scheduler, "CALL_SECONDS", 0.2)
    with pytest.raises(BackendError, match=r"^scontrol did not answer within 0\.2 s; is slurmctld up\?$"):
        ask("scontrol", "ping")
    (on_path / "slurm-broken").write_bytes(b"\0")
    (on_path / "slurm-broken").chmod(0o755)
    with pytest.raises(BackendError, match=r"^slurm-broken cannot be started: Exec format error$"):
        ask("slurm-broken")


# -- what a run gets -----------------------------------------------------------------------------------------------

GPU, CPU, MAIN = (read_partitions(SINFO)[0][name] for name in ("gpu", "cpu", "main"))


@pytest.mark.parametrize(
    ("facts", "asked", "gpus", "cpus"),
    [
        (GPU, Resources(), 1, 4),  # the H100 nodes have 32 cores for 8 GPUs, the others 64 for 4
        (GPU, Resources(ranks=4), 1, 4),
        (GPU, Resources(gpus=0.25), 0.25, 1),
        (GPU, Resources(gpus=0.5), 0.5, 2),
        (GPU, Resources(gpus=0), 0, 1),
        (GPU, Resources(cpus=3), 1, 3),
        (CPU, Resources(), 0, 1),
        (CPU, Resources(cpus=8), 0, 8),
        (MAIN, Resources(), 1, 2),
        (MAIN, Resources(gpus=0, ranks=8), 0, 1),
    ],
)
def test_open_choices_are_made_by_what_the_nodes_have(facts: Site, asked: Resources, gpus: float, cpus: int) -> None:
    made = facts.resolve(asked, SlurmSettings(timeout_min=30))
    assert (made.gpus, made.cpus, made.ranks, made.priority) == (gpus, cpus, asked.ranks, asked.priority)


def test_cores_left_open_are_shared_by_the_nodes_that_hold_the_run_alone() -> None:
    assert GPU.resolve(Resources(), SlurmSettings(mem_gb=300)).cpus == 16


EMPTY = read_partitions(SINFO)[0]["empty"]
NEVER: list[tuple[Site, dict[str, Any], dict[str, Any], str]] = [
    (MAIN, {"ranks": 8}, {}, "never fits: needs 1 node with 8 GPUs and 8 cores, partition main has 0 of these"),
    (CPU, {"gpus": 0.5}, {}, "needs 1 node with 1 GPU and 2 cores, partition cpu has 0 of these"),
    (MAIN, {"gpus": 0.1, "cpus": 1}, {}, "needs 1 node with 1 GPU and 10 cores, partition main has 0 of these"),
    (CPU, {}, {"mem_gb": 4}, "needs 1 node with 1 core and 4 GB of memory, partition cpu has 0 of these"),
    (MAIN, {"cpus": 3, "ranks": 2}, {}, "needs 1 node with 2 GPUs and 6 cores, partition main has 0 of these"),
    (MAIN, {"ranks": 4}, {"ranks_per_node": 2}, "2 nodes with 2 GPUs and 2 cores, partition main has 1 of these"),
    (CPU, {"ranks": 2}, {"ranks_per_node": 1}, "never fits: needs 2 nodes with 1 core, partition cpu allows 1 per job"),
    (GPU, {"ranks": 3}, {"ranks_per_node": 2}, "expected a multiple of ranks_per_node = 2, such as 2 or 4, got 3"),
    (GPU, {}, {"timeout_min": 6000}, "timeout_min: expected at most 2880, the limit of partition gpu, got 6000"),
    (EMPTY, {}, {}, "never fits: needs 1 node with 1 core, partition empty has 0 of these"),
]


@pytest.mark.parametrize(("facts", "asked", "settings", "line"), NEVER)
def test_a_run_that_can_never_start_is_refused(
    facts: Site, asked: dict[str, Any], settings: dict[str, Any], line: str
) -> None:
    with pytest.raises(BackendError, match=re.escape(line)):
        facts.resolve(Resources(**asked), SlurmSettings(**{"timeout_min": 30, **settings}))


def test_a_qos_may_grant_more_time_than_the_partition() -> None:
    assert GPU.resolve(Resources(), SlurmSettings(timeout_min=6000, qos="long")).gpus == 1


def test_ranks_on_several_nodes_need_gpus_on_each() -> None:
    assert GPU.resolve(Resources(ranks=12), SlurmSettings(ranks_per_node=4)).cpus == 4
