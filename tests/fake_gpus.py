"""A machine with GPUs that do not exist: an nvidia-smi that lists them, and a ledger of its own."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import final

PROGRAM = """#!/bin/sh
cd "{folder}" || exit 9
case "$1" in
    -L) cat listing ;;
    --query-compute-apps=*) [ ! -e wedged ] || exec sleep 600; cat processes ;;
    --query-gpu=uuid,memory.used) [ ! -e wedged ] || exec sleep 600; cat memory ;;
esac
"""


@final
class FakeGpus:
    """GPUs for the processes that have :attr:`env`."""

    def __init__(self, folder: Path, number: int) -> None:
        folder.mkdir(mode=0o755)
        self._folder = folder
        self.ids = [f"GPU-{index}0000000-1111-2222-3333-444444444444" for index in range(number)]
        listing = [f"GPU {index}: Fake card (UUID: {gpu})" for index, gpu in enumerate(self.ids)]
        (folder / "listing").write_text("\n".join([*listing, ""]))
        self.use()
        self.nvidia_smi = PROGRAM.format(folder=folder)
        program = folder / "nvidia-smi"
        program.write_text(self.nvidia_smi)
        program.chmod(0o755)
        self.ledger = folder / "ledger"
        shown = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        self.env = {**shown, "PATH": f"{folder}:{shown['PATH']}", "SEQLM_GPU_LEDGER": str(self.ledger)}

    def use(self, *processes: tuple[int, int, str], memory_mib: Sequence[int] = ()) -> None:
        """Have nvidia-smi list these processes: index of the GPU, process, and program. Each has 2,000 MiB.

        ``memory_mib`` is what is in use on each GPU. Empty: what these processes use.
        """
        lines = [f"{self.ids[index]}, {pid}, 2000, {name}\n" for index, pid, name in processes]
        used = memory_mib or [2000 * sum(one[0] == index for one in processes) for index in range(len(self.ids))]
        self._write("processes", "".join(lines))
        self._write("memory", "".join(f"{gpu}, {mib}\n" for gpu, mib in zip(self.ids, used, strict=True)))

    def wedge(self, *, is_wedged: bool = True) -> None:
        """Have nvidia-smi answer no question about the use of GPUs."""
        if is_wedged:
            (self._folder / "wedged").touch()
        else:
            (self._folder / "wedged").unlink()

    def _write(self, name: str, text: str) -> None:
        new = self._folder / f"{name}.new"
        new.write_text(text)
        new.replace(self._folder / name)


def short(gpu: str) -> str:
    """What messages call a fake GPU."""
    return re.sub(r"-1111.*", "", gpu)
