"""Which GPUs a process gets. The listings are what `nvidia-smi -L` printed on real machines, as published."""

import os
import re
from pathlib import Path

import pytest

from seqlm import machine
from seqlm.errors import BackendError, UsageError
from seqlm.machine import Card, Gpu, parse_listing, visible


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model name\t: Xeon\nflags\t\t: fpu avx512f avx512_bf16 sha_ni\n", True),
        ("flags\t\t: fpu amx_tile amx_bf16\n", True),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("vendor_id\t: bf16\n", False),
        ("", False),
    ],
)
def test_bf16_is_found_among_the_processors_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.has_bf16() is found


@pytest.mark.process
def test_a_system_without_cpuinfo_is_taken_to_have_no_bf16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "absent")
    assert machine.has_bf16() is False
    assert machine.cpu_model()


H100_MIG = """\
GPU 0: NVIDIA H100 NVL (UUID: GPU-81495ec7-da36-8ea5-9f7d-5804aa3fef20)
  MIG 2g.24gb     Device  0: (UUID: MIG-7839bf6f-ba33-59f0-89eb-01c8d8c4134d)
  MIG 2g.24gb     Device  1: (UUID: MIG-433a63e2-53a4-58c0-9b8d-a4dba3eb8f36)
  MIG 2g.24gb     Device  2: (UUID: MIG-34fa791a-69d2-560b-969f-f2aa1d900c44)
  MIG 1g.12gb     Device  3: (UUID: MIG-dbf12406-b888-52e8-80ee-025b6412f6e4)
"""
A100_ONE_WITH_MIG = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-513536b6-7d19-9063-b049-1e69664bb298)
  MIG 1g.20gb     Device  0: (UUID: MIG-ce861fb0-a248-58ce-a9a8-f9adbc22a66a)
  MIG 1g.20gb     Device  1: (UUID: MIG-a45882f0-9215-5733-a0c1-49286ab31cb5)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-d8594bd4-0fc3-8595-e355-7c98138f3b95)
GPU 2: NVIDIA A100-SXM4-80GB (UUID: GPU-5e375e7e-b41f-155b-dcdc-534524c356fc)
"""
V100 = """\
GPU 0: Tesla V100-SXM2-16GB (UUID: GPU-ccf578c6-5369-9ff4-e1c2-d4c0c9d4d338)
GPU 1: Tesla V100-SXM2-16GB (UUID: GPU-7bbcd9e7-b1e2-5e53-fb9a-6d27e364dd40)
GPU 2: Tesla V100-SXM2-16GB (UUID: GPU-0b610645-cc68-d906-0b75-f88e8d241313)
GPU 3: Tesla V100-SXM2-16GB (UUID: GPU-362ffce9-16cd-679a-9e46-0da23373846d)
"""
V100_UUIDS = re.findall(r"GPU-[-\w]+", V100)
LOST_CARD = "Unable to determine the device handle for GPU1: 0000:44:00.0: Unknown Error\n"
ERRORS = [
    "",
    "No devices were found\n",
    "No devices found.\n",
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n\n",
    "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.161\n",
    LOST_CARD,
]


def ids(listing: str, variable: str | None = None) -> list[str]:
    return [gpu.id for gpu in visible(parse_listing(listing), variable)]


# -- what nvidia-smi lists -----------------------------------------------------------------------------------------


def test_each_card_has_its_number_uuid_and_name() -> None:
    cards = parse_listing(V100)
    assert [card.index for card in cards] == [0, 1, 2, 3]
    assert cards[1] == Card(index=1, whole=Gpu(V100_UUIDS[1], "Tesla V100-SXM2-16GB"))
    assert ids(V100) == V100_UUIDS


@pytest.mark.parametrize("text", ERRORS)
def test_a_message_is_no_card(text: str) -> None:
    assert parse_listing(text) == []


def test_a_card_with_mig_stands_for_its_instances() -> None:
    (card,) = parse_listing(H100_MIG)
    assert card.gpus[0] == Gpu("MIG-7839bf6f-ba33-59f0-89eb-01c8d8c4134d", "NVIDIA H100 NVL MIG 2g.24gb")
    assert card.gpus[3] == Gpu("MIG-dbf12406-b888-52e8-80ee-025b6412f6e4", "NVIDIA H100 NVL MIG 1g.12gb")
    assert len(card.gpus) == 4
    assert ids(A100_ONE_WITH_MIG) == [
        "MIG-ce861fb0-a248-58ce-a9a8-f9adbc22a66a",
        "MIG-a45882f0-9215-5733-a0c1-49286ab31cb5",
        "GPU-d8594bd4-0fc3-8595-e355-7c98138f3b95",
        "GPU-5e375e7e-b41f-155b-dcdc-534524c356fc",
    ]


def test_the_number_of_a_card_is_the_one_printed_not_its_place() -> None:
    lines = V100.splitlines(keepends=True)
    listing = lines[0] + LOST_CARD + "".join(lines[2:])
    assert [card.index for card in parse_listing(listing)] == [0, 2, 3]
    assert ids(listing, "2") == [V100_UUIDS[2]]


@pytest.mark.parametrize("line", ["GPU 3: GeForce GT 610 (UUID: N/A)", "GPU 3: GeForce GT 610"])
def test_a_card_without_a_uuid_is_named_by_its_number(line: str) -> None:
    assert parse_listing(line) == [Card(index=3, whole=Gpu("3", "GeForce GT 610"))]


# -- CUDA_VISIBLE_DEVICES --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "numbers"),
    [
        ("2,3", [2, 3]),
        ("3,0", [3, 0]),
        (" 1 , 0", [1, 0]),
        ("+1", [1]),
        ("1gpu2,2", [1, 2]),
        ("0,2,-1,1", [0, 2]),
        ("-1", []),
        ("", []),
        ("1,,2", [1]),
        ("NoDevFiles", []),
        ("none", []),
        (V100_UUIDS[3], [3]),
        ("GPU-0b6,GPU-c", [2, 0]),
        (f"{V100_UUIDS[2]},1", [2, 1]),
    ],
)
def test_the_caller_chooses_by_index_uuid_or_its_beginning(variable: str, numbers: list[int]) -> None:
    assert ids(V100, variable) == [V100_UUIDS[number] for number in numbers]


@pytest.mark.parametrize("variable", ["0", "GPU-513536b6", "MIG-ce,MIG-a4"])
def test_a_card_with_mig_may_be_named_by_itself_or_by_its_instances(variable: str) -> None:
    found = ids(A100_ONE_WITH_MIG, variable)
    assert found == ["MIG-ce861fb0-a248-58ce-a9a8-f9adbc22a66a", "MIG-a45882f0-9215-5733-a0c1-49286ab31cb5"]


@pytest.mark.parametrize(
    ("variable", "what"),
    [
        ("0,0", "which names GPU-ccf578c6-5369-9ff4-e1c2-d4c0c9d4d338 twice"),
        ("1,GPU-7bb", "which names GPU-7bbcd9e7-b1e2-5e53-fb9a-6d27e364dd40 twice"),
        ("0,4", r"and 4 names no GPU of this machine \(`nvidia-smi -L` lists them\)"),
        ("GPU-ffff", "and GPU-ffff names no GPU of this machine"),
        ("MIG-7839bf6f", "and MIG-7839bf6f names no GPU of this machine"),
        ("GPU-", "and GPU- names 4 GPUs; write more of it"),
    ],
)
def test_a_choice_of_which_cuda_would_ignore_a_part_is_refused(variable: str, what: str) -> None:
    with pytest.raises(UsageError, match=f'^CUDA_VISIBLE_DEVICES: .*"{variable}", {what}'):
        ids(V100, variable)


# -- asking nvidia-smi -----------------------------------------------------------------------------------------------


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, code: int = 0) -> None:
    """Put an nvidia-smi in front of PATH that prints ``listing``."""
    (tmp_path / "listing").write_text(listing)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/listing; exit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.process
def test_the_gpus_of_this_process_are_those_of_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, LOST_CARD + V100, code=255)  # the others are found
    assert [gpu.id for gpu in machine.gpus()] == V100_UUIDS
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert [gpu.id for gpu in machine.gpus()] == [V100_UUIDS[3], V100_UUIDS[1]]
    (tmp_path / "listing").write_text("")
    assert [gpu.name for gpu in machine.gpus()] == ["Tesla V100-SXM2-16GB"] * 2, (
        "nvidia-smi is called once, since it may take seconds"
    )


@pytest.mark.process
def test_a_gpu_whose_card_takes_one_process_is_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, A100_ONE_WITH_MIG)
    modes = "GPU-513536b6-7d19-9063-b049-1e69664bb298, Exclusive_Process\\nGPU-d8594bd4, Prohibited\\n"
    program = tmp_path / "nvidia-smi"
    asked = f'[ "$1" = --query-gpu=uuid,compute_mode ] && printf "{modes}" && exit'
    program.write_text(program.read_text().replace("#!/bin/sh", f"#!/bin/sh\n{asked}"))
    instances = ["MIG-ce861fb0-a248-58ce-a9a8-f9adbc22a66a", "MIG-a45882f0-9215-5733-a0c1-49286ab31cb5"]
    assert [gpu.id for gpu in machine.exclusive_gpus()] == instances
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,MIG-a4")
    assert [gpu.id for gpu in machine.exclusive_gpus()] == instances[1:]


@pytest.mark.process
@pytest.mark.parametrize(
    ("does", "has_driver", "problem"),
    [
        ("exec sleep 60", True, "did not answer within"),
        ("exec sleep 60", False, "did not answer within"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", True, "version mismatch"),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9", False, None),
        ("echo 'No devices were found'; exit 6", True, None),
        ("exit 0", True, None),
    ],
)
def test_gpus_that_are_not_known_are_an_error_and_not_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, has_driver: bool, problem: str | None
) -> None:
    fake(tmp_path, monkeypatch, "")
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{does}\n")
    monkeypatch.setattr(machine, "NVIDIA_SMI_SECONDS", 0.2)
    monkeypatch.setattr(machine, "DRIVER", tmp_path if has_driver else tmp_path / "absent")
    if problem is None:
        assert machine.gpus() == []
    else:
        with pytest.raises(BackendError, match=rf"^nvidia-smi.*{problem}.*CUDA_VISIBLE_DEVICES= ") as caught:
            machine.gpus()
        assert "\n" not in str(caught.value)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert machine.gpus() == []


def test_a_variable_that_hides_all_gpus_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setattr(machine, "cards", lambda: pytest.fail("asked"))
    assert machine.gpus() == []


NEW = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((7, 0), NEW, False),  # a V100, with a wheel of CUDA 13
        ((7, 5), NEW, True),
        ((8, 9), NEW, True),  # code of sm_86
        ((8, 0), ["sm_86"], False),
        ((12, 1), NEW, True),
        ((11, 0), NEW, False),
        ((11, 0), [*NEW, "compute_90"], True),  # PTX
        ((8, 9), ["compute_90"], False),
        ((9, 0), ["sm_90a"], True),
        ((7, 0), [], True),
        ((9, 0), ["gfx90a", "gfx942"], True),  # nothing is known of other makers' devices
    ],
)
def test_code_runs_on_later_cards_of_its_major_version_and_ptx_on_any_later_one(
    capability: tuple[int, int], built_for: list[str], runs: bool
) -> None:
    assert (machine.lacking_code([("GPU", capability)], built_for) is None) == runs


@pytest.mark.parametrize(
    ("listing", "device", "address"),
    [
        (V100, "2", V100_UUIDS[2]),
        (V100, "9", "9"),
        (V100, "GPU-7bb", "GPU-7bb"),
        (A100_ONE_WITH_MIG, "1", "GPU-d8594bd4-0fc3-8595-e355-7c98138f3b95"),
        (A100_ONE_WITH_MIG, "0", "0"),
        ("", "0", "0"),
    ],
)
def test_a_schedulers_index_becomes_a_uuid_if_it_means_a_whole_card(
    monkeypatch: pytest.MonkeyPatch, listing: str, device: str, address: str
) -> None:
    monkeypatch.setattr(machine, "cards", lambda: parse_listing(listing))
    assert machine.addressed(device) == address


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("3", "GPU 3"),
        (V100_UUIDS[0], "GPU-ccf578c6"),
        ("MIG-7839bf6f-ba33-59f0-89eb-01c8d8c4134d", "MIG-7839bf6f"),
        ("MIG-GPU-9de3d0e8-33f5-10dc-0c79-2c88a7ab0a23/2/0", "MIG-GPU-9de3d0e8/2/0"),
    ],
)
def test_a_person_reads_the_beginning_of_a_uuid(device: str, name: str) -> None:
    assert machine.short_name(device) == name


def test_mps_is_there_where_its_daemon_has_its_socket(tmp_path: Path) -> None:
    env = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    assert machine.mps_directory(env) is None
    (tmp_path / "control").touch()
    assert machine.mps_directory(env) == tmp_path


# -- tests on a machine with GPUs ------------------------------------------------------------------------------------
