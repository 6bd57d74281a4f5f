"""What this machine has: cores and GPUs, found without importing torch."""

import contextlib
import functools
import itertools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from seqlm.environment import MATMUL
from seqlm.errors import BackendError, UsageError
from seqlm.reading import exists

CPUINFO = Path("/proc/cpuinfo")
CUDA_BYTES = 512 * 2**20
"""Memory of a GPU that a process takes besides its tensors: CUDA's context and kernels. A round figure."""
NVIDIA_SMI_SECONDS = 20.0
"""How long nvidia-smi may take. Without persistence mode it loads the driver for each GPU first."""
NO_DEVICES = 6
"""Exit code of nvidia-smi if there is no GPU (``man nvidia-smi``, RETURN VALUE)."""
DRIVER = Path("/proc/driver/nvidia")
"""Is there if NVIDIA's kernel module is loaded."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
PCI_ORDER = "PCI_BUS_ID"
"""The value of ``CUDA_DEVICE_ORDER`` with which CUDA numbers GPUs as nvidia-smi does; by default the fastest is 0."""


def cpu_count() -> int:
    """Cores that this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the memory of this machine, or the limit of this process's control group if that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _, limit = group_memory(own_groups())
    return physical if limit is None else min(physical, limit)


def memory_groups(membership: str, root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Return the folders of the control group that counts a process's memory, and of those around it, from inside out.

    ``membership`` is the content of ``/proc/self/cgroup``. Version 2 has one line ``0::/path``, version 1 has one for
    each controller: ``4:memory:/path``. In a container the path may be that of the host, and the group's own files are
    at the root.
    """
    found = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            top = root / "memory" if controllers else root
            inside = top / path.lstrip("/")
            found += [folder for folder in (inside, *inside.parents) if folder.is_relative_to(top)]
    return found


def own_groups() -> list[Path]:
    """Return the :func:`memory_groups` of this process; empty if it has none."""
    with contextlib.suppress(OSError):
        return memory_groups(Path("/proc/self/cgroup").read_text("utf-8"))
    return []


def group_memory(groups: Iterable[Path]) -> tuple[int | None, int | None]:
    """Return the peak and the limit, in bytes, of the memory of the control group with the lowest limit.

    Without a limit, the peak is that of the first group. ``None``: the kernel does not say.
    """
    found = [
        (
            _number(group, "memory.peak", "memory.max_usage_in_bytes"),
            _number(group, "memory.max", "memory.limit_in_bytes"),
        )
        for group in groups
    ]
    limited = [(peak, limit) for peak, limit in found if limit is not None and limit < UNLIMITED]
    return min(limited, key=lambda one: one[1]) if limited else (found[0][0] if found else None, None)


UNLIMITED = 2**60
"""From this number of bytes on, a limit of version 1 says that there is none."""


def _number(folder: Path, *names: str) -> int | None:
    """Return the number in the first of these files that holds one."""
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            return int((folder / name).read_text("utf-8"))
    return None


def cpu_model() -> str:
    """Name of the processor."""
    return " ".join(_cpu_fields("model name")) or platform.processor() or platform.machine()


def cpu_generation() -> str:
    """The processor's generation, such as ``family 25 model 17``; empty where nothing tells it."""
    family = _cpu_fields("cpu family", "CPU implementer")
    model = _cpu_fields("model", "CPU part")
    return " ".join(["family", *family, "model", *model]) if family and model else ""


BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""What /proc/cpuinfo calls products of bfloat16 numbers: Intel and AMD, Intel, ARM."""


def has_bf16() -> bool:
    """Whether the processor has instructions for products of bfloat16 numbers; false where it does not tell."""
    return not {*BF16_FLAGS}.isdisjoint(_cpu_fields("flags", "Features"))


AMD = ("AuthenticAMD", "HygonGenuine")


def matmul_library() -> str:
    """``onednn`` or ``blas``: the library for float32 products on this processor.

    By vendor and instructions, not by timing: a run that is resumed multiplies as before. On AMD's processors with
    AVX-512, MKL reaches half of what oneDNN does (benchmarks/results). ``SEQLM_MATMUL`` overrides it.
    """
    is_faster = not {*AMD}.isdisjoint(_cpu_fields("vendor_id")) and "avx512f" in _cpu_fields("flags")
    return MATMUL.read() or ("onednn" if is_faster else "blas")


def _cpu_fields(*names: str) -> list[str]:
    """The words that /proc/cpuinfo has for the first processor in the first of these fields; empty if it has none."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            name, _, words = line.partition(":")
            if name.strip() in names:
                return words.split()
    return []


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt`` (malloc.h of glibc)."""
MMAP_THRESHOLDS = (2**30, 2**25)
"""The threshold to set, and the most that glibc before 2.35 takes on a machine of 64 bits (``HEAP_MAX_SIZE / 2``)."""


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep the memory that this process frees, unless an environment variable has set how it does that.

    Logits are allocated and freed in every step. Returning their pages to the system each time costs a small model a
    sixth of its speed (docs/project/decisions/products.md). Other C libraries are left alone.

    By default, glibc raises its thresholds to fit the blocks that are freed. Setting either threshold ends that. So the
    one for trimming is set only if ``mallopt`` has taken the one for ``mmap`` (it returns 0 if it refuses a value).
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not mallopt or platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for size in MMAP_THRESHOLDS:
        if mallopt(M_MMAP_THRESHOLD, size):
            mallopt(M_TRIM_THRESHOLD, 2**30)
            return


class Gpu(NamedTuple):
    """A GPU, or an instance of one that is divided by MIG, as a process is given it."""

    id: str
    """For CUDA_VISIBLE_DEVICES: ``GPU-...`` or ``MIG-...``; the index of a GPU that has no UUID."""
    name: str
    """Such as ``NVIDIA H100 NVL`` or ``NVIDIA H100 NVL MIG 2g.24gb``."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU as ``nvidia-smi -L`` lists it."""

    index: int
    """By PCI address, from 0. CUDA counts in this order only if CUDA_DEVICE_ORDER is PCI_BUS_ID."""
    whole: Gpu
    instances: tuple[Gpu, ...] = ()
    """Its MIG instances. If there are any, only these can be used."""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """What processes can be given of it."""
        return self.instances or (self.whole,)


_ITEM = re.compile(r"\+?(\d+)|GPU-|MIG-")
_CARD = re.compile(r"GPU (\d+): (.+?)(?: \(UUID: ([^)]*)\))?\s*$")
_INSTANCE = re.compile(r"\s+(MIG \S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")


def parse_listing(text: str) -> list[Card]:
    """The GPUs in the output of ``nvidia-smi -L``. Other lines, such as error messages, are skipped."""
    cards: list[Card] = []
    for line in text.splitlines():
        if found := _CARD.match(line):
            index, name, uuid = found.groups()
            cards.append(Card(index=int(index), whole=Gpu(uuid if uuid and uuid != "N/A" else index, name)))
        elif (found := _INSTANCE.match(line)) and cards:
            instance = Gpu(found[2], f"{cards[-1].whole.name} {found[1]}")
            cards[-1] = replace(cards[-1], instances=(*cards[-1].instances, instance))
    return cards


def cards() -> list[Card]:
    """The GPUs that nvidia-smi lists, whatever CUDA_VISIBLE_DEVICES says; empty if there is no nvidia-smi.

    Raises:
        BackendError: nvidia-smi gives no answer.
    """
    return parse_listing(_nvidia_smi("-L"))


def exclusive_gpus() -> list[Gpu]:
    """Those of :func:`gpus` whose card takes one process at a time (compute mode Exclusive_Process)."""
    lines, chosen = _nvidia_smi("--query-gpu=uuid,compute_mode", "--format=csv,noheader").splitlines(), gpus()
    exclusive = {uuid for uuid, _, mode in (line.partition(", ") for line in lines) if mode.startswith("Exclusive")}
    return [gpu for card in cards() if card.whole.id in exclusive for gpu in card.gpus if gpu in chosen]


_SLICE = re.compile(r"MIG \S*?(\d+)gb")


def gpu_memory_gb() -> dict[str, float]:
    """The memory of each GPU and MIG instance in 10^9 bytes, by its :attr:`Gpu.id`, as far as it is known.

    Raises:
        BackendError: nvidia-smi gives no answer.
    """
    found: dict[str, float] = {}
    for line in _nvidia_smi("--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits").splitlines():
        index, *rest = map(str.strip, line.split(","))
        if len(rest) == 2 and rest[1].isdigit():  # in MiB
            found |= dict.fromkeys((index, rest[0]), int(rest[1]) * 2**20 / 1e9)
    # nvidia-smi lists no memory of instances, but their names have it.
    instances = (gpu for card in cards() for gpu in card.instances)
    return found | {gpu.id: float(size[1]) for gpu in instances if (size := _SLICE.search(gpu.name))}


def _nvidia_smi(*options: str) -> str:
    """Return what nvidia-smi prints; nothing if it is not installed, or finds no driver or no GPU.

    Raises:
        BackendError: it gives no answer, so whether there are GPUs is not known.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        printed, code = _printed(program, *options)
    except subprocess.TimeoutExpired:
        problem = f"did not answer within {NVIDIA_SMI_SECONDS:g} s"
    except OSError as error:
        problem = f"cannot be started: {error.strerror or error}"
    else:
        # If a GPU does not answer, the others are listed, and the exit code is not 0.
        has_answer = code in (0, NO_DEVICES) or "GPU" in printed or not exists(DRIVER)
        if has_answer:
            return printed
        problem = f"failed: {(printed.strip().splitlines() or [f'exit code {code}'])[-1]}"
    raise BackendError(
        f"nvidia-smi {problem}, so the GPUs of this machine are not known; see `nvidia-smi -L`, or set {VISIBLE}= to "
        "go on without GPUs"
    )


@functools.cache
def _printed(program: str, *options: str) -> tuple[str, int]:
    """Return what nvidia-smi prints, and its exit code. It is called once for each process."""
    command = [program, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False)
    return ended.stdout, ended.returncode


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, read by :func:`visible`, else all."""
    variable = os.environ.get(VISIBLE)
    return [] if variable is not None and not _items(variable) else visible(cards(), variable)


def visible(cards: Sequence[Card], variable: str | None) -> list[Gpu]:
    """The GPUs of ``cards`` that a value of CUDA_VISIBLE_DEVICES names. ``None``: it is not set.

    As in CUDA, an item is an index, a UUID or the beginning of one, and anything else, such as ``-1``, ends the list.
    An index is that of nvidia-smi. A card with MIG on stands for all of its instances.

    Raises:
        UsageError: an item names no GPU or several, or a GPU is named twice. (CUDA would ignore the rest of the list,
            or all of it.)
    """
    if variable is None or not cards:
        return [gpu for card in cards for gpu in card.gpus]
    chosen: list[Gpu] = []
    for item in _items(variable):
        for gpu in _named(cards, item, variable):
            if gpu in chosen:
                raise UsageError(f'{VISIBLE}: expected each GPU once, got "{variable}", which names {gpu.id} twice')
            chosen.append(gpu)
    return chosen


def _items(variable: str) -> list[str]:
    """What a value of CUDA_VISIBLE_DEVICES names; empty if it hides all GPUs."""
    return list(itertools.takewhile(_ITEM.match, map(str.strip, variable.split(","))))


def _named(cards: Sequence[Card], item: str, variable: str) -> tuple[Gpu, ...]:
    number = _ITEM.match(item)
    if number and number[1]:  # CUDA ignores what follows the digits
        found = [card.gpus for card in cards if card.index == int(number[1])]
    else:
        found = [card.gpus for card in cards if card.whole.id.startswith(item)]
        found += [(gpu,) for card in cards for gpu in card.instances if gpu.id.startswith(item)]
    if len(found) != 1:
        what = f"names {len(found)} GPUs; write more of it" if found else "names no GPU of this machine"
        raise UsageError(f'{VISIBLE}: found "{variable}", and {item} {what} (`nvidia-smi -L` lists them)')
    return found[0]


def addressed(device: str) -> str:
    """The UUID of a GPU that a scheduler has named by its index, which is taken for nvidia-smi's.

    It is the index if the GPU has no UUID, or if nvidia-smi gives no answer: the worker then uses the index.
    """
    with contextlib.suppress(BackendError):
        return next((card.whole.id for card in cards() if str(card.index) == device and not card.instances), device)
    return device


def short_name(device: str) -> str:
    """A GPU's identifier for a person: ``GPU 3``, or a UUID's beginning, ``GPU-5d5ba0d6``, ``MIG-c6d4f1ef``."""
    return f"GPU {device}" if device[:1].isdigit() else re.sub(r"(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "", device)


_BUILT_FOR = re.compile(r"(sm|compute)_(\d+)(\d)[af]?")


def lacking_code(found: Iterable[tuple[str, Sequence[int]]], built_for: Sequence[str]) -> str | None:
    """A line on the GPUs for which a build of PyTorch has no code, from names and capabilities; ``None``: on none.

    Machine code (``sm_86``) runs on GPUs of its major version, from its minor version on; PTX (``compute_86``) on any
    later one, since the driver compiles it. If no target is known, as in a build for another maker's devices, nothing
    is said.
    """
    targets = [(one[1], (int(one[2]), int(one[3]))) for one in map(_BUILT_FOR.fullmatch, built_for) if one]
    lacking = [
        f"{name} (compute capability {'.'.join(map(str, has))})"
        for name, has in found
        if targets and not any(of <= (*has,) and (of[0] == has[0] or kind == "compute") for kind, of in targets)
    ]
    names = ", ".join(dict.fromkeys(lacking))
    return f"has no code for {names}, only for {' '.join(built_for)}; install a build that has" if lacking else None


def mps_directory(env: Mapping[str, str]) -> Path | None:
    """The folder in which a daemon of NVIDIA's MPS has its control socket. ``None``: no daemon is there."""
    folder = Path(env.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")
    return folder if exists(folder / "control") else None
