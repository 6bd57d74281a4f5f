"""The resources that one run asks for. Standard library alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from seqlm.schema import Count, Line, Table, Valid, show


@dataclass(frozen=True, kw_only=True)
class Resources(Table):
    """What one run may use. Not part of its identity: changing the resources does not make it a different run."""

    NAME = "resources"

    ranks: Count = 1
    """Processes that share the global batch through DistributedDataParallel."""
    cpus: Count | None = None
    """CPU cores of each rank. Default: an equal share of the machine among runs at once; for a run that goes on without
    a GPU, as many as its checkpoint's threads."""
    gpus: Annotated[float, Valid("0, 1, or a share such as 0.25, for each rank", least=0, most=1)] | None = None
    """GPUs of each rank: 0, 1, or (one rank only) a share such as 0.25. Default: 1 if there are any GPUs; with
    ``gpu_memory_gb`` and one rank, as much of a GPU as has that memory."""
    gpu_memory_gb: Annotated[float, Valid("a number of gigabytes above 0", above=0)] | None = None
    """GPU memory that each rank needs, in 10^9 bytes: a rank gets that part of a GPU, of whatever size."""
    accelerator_type: Line | None = None
    """Kind of GPU that each rank needs: a part of its name, such as ``A100``."""
    priority: int = 0
    """Waiting runs with a higher priority start first."""

    def _conditions(self) -> Iterator[str]:
        if self.gpus is not None and 0 < self.gpus < 1 and self.ranks > 1:
            yield f"resources.gpus: expected 0 or 1 with several ranks, which cannot share a GPU, got {self.gpus}"
        for name in ("gpu_memory_gb", "accelerator_type"):
            if getattr(self, name) is not None and self.gpus == 0:
                yield f"resources.{name}: expected none with resources.gpus = 0, got {show(getattr(self, name))}"
