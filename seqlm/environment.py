"""Every environment variable of seqlm: name, values, default and meaning. Standard library alone.

No other module reads a variable whose name begins with ``SEQLM_``. The tables of docs/reference/environment.md are made
from this list and the docstrings (``python -m tests.reference``).
"""

import contextlib
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from seqlm.errors import UsageError
from seqlm.schema import Valid, fits, words_of

T = TypeVar("T", covariant=True)


@dataclass(frozen=True)
class Variable(Generic[T]):
    """An environment variable."""

    name: str
    kind: Any
    """The type, with what is valid, as in the annotations of tables (:mod:`seqlm.schema`)."""
    default: T
    """The value if the variable is unset or empty. If that does not say it all, the docstring does, after "Unset:"."""
    is_internal: bool = False
    """Whether a launcher sets it for its workers, so that nobody else needs to."""

    def read(
        self,
        env: Mapping[str, str] | None = None,
        *,
        is_valid: Callable[[Any], bool] = lambda value: True,
        expected: str | None = None,
    ) -> T:
        """Return the value of the variable.

        Args:
            env: the variables. ``None``: the environment of this process.
            is_valid: a further condition, which depends on more than the variable.
            expected: the valid values in words, with that condition. ``None``: those of the type.

        Raises:
            UsageError: the value is not valid.
        """
        if not self.is_set(env):
            return self.default
        text = (os.environ if env is None else env)[self.name]
        bare = typing.get_args(self.kind)[0] if typing.get_origin(self.kind) is Annotated else self.kind
        with contextlib.suppress(ValueError, KeyError):
            value = _PARSERS.get(bare, str)(text)
            if (bare is Path or fits(self.kind, value)) and is_valid(value):
                return cast("T", value)
        raise UsageError(f'{self.name}: expected {expected or words_of(self.kind)}, got "{text}"')

    def is_set(self, env: Mapping[str, str] | None = None) -> bool:
        """Return whether the variable is set and not empty."""
        return bool(((os.environ if env is None else env).get(self.name) or "").strip())


# -- kinds of values -----------------------------------------------------------------------------------------------


_PARSERS: Mapping[Any, Callable[[str], Any]] = {
    float: float,
    int: int,
    bool: {"0": False, "1": True}.__getitem__,
    Path: Path,
}
"""Type -> what converts a text. Raises ValueError or KeyError if it is not valid."""

FLAG = Annotated[bool, Valid("0 or 1")]
PATH = Annotated[Path, Valid("a path")]
COUNT = Annotated[int, Valid("a whole number above 0", above=0)]
MINUTES = Annotated[float, Valid("a number of minutes above 0", above=0)]
SECONDS = Annotated[float, Valid("a number of seconds above 0", above=0)]

# -- where things are ----------------------------------------------------------------------------------------------

RUNS = Variable("SEQLM_RUNS", PATH, Path("runs"))
"""Folder of the studies. ``--runs-dir`` overrides it. Unset: ``runs``."""
DATA: Variable[Path | None] = Variable("SEQLM_DATA", PATH, None)
"""Folder or zip file of the corpus. ``--data`` overrides it. Unset: the manifest's, else the corpus's own place."""
CACHE: Variable[Path | None] = Variable("SEQLM_CACHE", PATH, None)
"""Folder for tokenised corpora, the Penn Treebank, unpacked code and passed self-checks. Unset:
``XDG_CACHE_HOME/seqlm``, else ``~/.cache/seqlm``."""
STAGE = Variable("SEQLM_STAGE", FLAG, False)
"""1: workers read the corpus from a copy in ``TMPDIR``, which a node's first worker makes. ``stage`` of
``[backend.slurm]`` sets it."""
SLURM_CONFIG: Variable[Path | None] = Variable("SEQLM_SLURM_CONFIG", PATH, None)
"""SLURM site file. Unset: ``slurm/cluster.toml``, if it exists."""

GPU_LEDGER = Variable("SEQLM_GPU_LEDGER", PATH, Path("/tmp/seqlm-gpus"))
"""Folder in which all users' launches book this machine's GPUs: the same for all, on a disk of the machine. Unset:
``/tmp/seqlm-gpus``."""

# -- how runs are computed -----------------------------------------------------------------------------------------

BACKEND: Variable[str | None] = Variable("SEQLM_BACKEND", Annotated[str, Valid("the name of a backend")], None)
"""Where runs are sent. ``--backend`` overrides it. Unset: the manifest's, else ray with several GPUs, else local."""
DEVICE: Variable[str | None] = Variable("SEQLM_DEVICE", Annotated[Literal["cpu", "cuda"], Valid("cpu or cuda")], None)
"""Device of a worker. Unset: set by the launcher, else cuda if PyTorch sees a GPU."""
MATMUL: Variable[str | None] = Variable(
    "SEQLM_MATMUL", Annotated[Literal["onednn", "blas"], Valid("onednn or blas")], None
)
"""Library for float32 matrix products on a processor; ``blas``: the one that PyTorch was built with (MKL). Unset:
``onednn`` on AMD with AVX-512, else ``blas``."""
DETERMINISTIC = Variable("SEQLM_DETERMINISTIC", FLAG, False)
"""1: use only operations whose results do not vary from one time to the next, on a GPU too."""
SELF_CHECK = Variable("SEQLM_SELF_CHECK", Annotated[Literal["stop", "warn"], Valid("stop or warn")], "stop")
"""If a device's self-check fails: ``stop`` fails the run, ``warn`` logs the figures and trains. Unset: ``stop``."""
GPU_OTHERS_GIB = Variable("SEQLM_GPU_OTHERS_GIB", Annotated[float, Valid("a number of GiB, 0 or more", least=0)], 1.0)
"""Memory in GiB that programs which compute nothing, such as a desktop, may use on a GPU that is given to a run."""
CAPTURE_RANKS = Variable("SEQLM_CAPTURE_RANKS", FLAG, False)
"""1: several ranks reduce all gradients after the backward pass, and on GPUs replay both passes as a CUDA graph. 0:
DistributedDataParallel reduces gradients during the backward pass. All ranks and attempts of a run need one value."""

# -- when something counts as dead ---------------------------------------------------------------------------------

HUNG_MINUTES = Variable("SEQLM_HUNG_MINUTES", MINUTES, 10.0)
"""A run that shows no progress for so long is killed and tried again."""
COLLECTIVE_MINUTES = Variable("SEQLM_COLLECTIVE_MINUTES", MINUTES, 10.0)
"""A rank that waits for the other ranks for so long gives up."""
PROGRESS_SECONDS = Variable("SEQLM_PROGRESS_SECONDS", SECONDS, 1.0)
"""Least time between writes of ``progress.json``. ``progress_s`` of a backend's table sets it."""
LEASE_SECONDS = Variable("SEQLM_LEASE_SECONDS", SECONDS, 10.0)
"""Time between heartbeats of a run's lease."""
STALE_LEASE_MINUTES = Variable("SEQLM_STALE_LEASE_MINUTES", MINUTES, 3.0)
"""A worker of another host without a heartbeat for so long counts as dead, and its run is taken over."""

# -- set by a launcher for its workers -----------------------------------------------------------------------------

ATTEMPT: Variable[int | None] = Variable("SEQLM_ATTEMPT", COUNT, None, is_internal=True)
"""Number of the attempt. Unset: one more than the attempts so far."""
CANARY: Variable[int | None] = Variable("SEQLM_CANARY", COUNT, None, is_internal=True)
"""In a canary's folder: steps to train before writing ``canary.json``. Unset: an ordinary run."""
MICRO_BATCHES = Variable("SEQLM_MICRO_BATCHES", COUNT, 1, is_internal=True)
"""Parts in which a step takes the rank's columns, to save memory."""
LAUNCHED = Variable("SEQLM_LAUNCHED", Annotated[str, Valid("fingerprints")], "", is_internal=True)
"""Fingerprints of the configurations that a worker may train or load, separated by commas. Another one in its folder
is an error. Unset: any."""
CHECKPOINT_MINUTES = Variable("SEQLM_CHECKPOINT_MINUTES", MINUTES, 10.0, is_internal=True)
"""Time between checkpoints within an epoch. ``policy.checkpoint_min`` sets it."""
KEEP_LAST = Variable("SEQLM_KEEP_LAST", FLAG, True, is_internal=True)
"""0: delete ``last.pt`` once the run is done. ``policy.keep_last`` sets it."""
KEEP_EPOCHS = Variable("SEQLM_KEEP_EPOCHS", Annotated[str, Valid("numbers of epochs")], "", is_internal=True)
"""Epochs whose checkpoints stay, separated by commas. ``policy.keep_epochs`` sets it. Unset: none."""
SEARCH = Variable("SEQLM_SEARCH", Annotated[str, Valid("the table as JSON")], "", is_internal=True)
"""The manifest's ``[search]``: the worker may stop the run at its rungs. Unset: no search."""
GPU_SHARE = Variable(
    "SEQLM_GPU_SHARE", Annotated[float, Valid("a number of GPUs above 0", above=0)], 1.0, is_internal=True
)
"""Share of the GPU's memory for a rank. ``resources.gpus`` sets it."""
NODE = Variable("SEQLM_NODE", Annotated[str, Valid("a name")], "", is_internal=True)
"""Node's name for ``worker.json``, if its host name does not identify it. Unset: none."""
RENDEZVOUS: Variable[Path | None] = Variable("SEQLM_RENDEZVOUS", PATH, None, is_internal=True)
"""File in which the first rank writes the port where ranks meet. Unset: none."""
RENDEZVOUS_HOST = Variable("SEQLM_RENDEZVOUS_HOST", Annotated[str, Valid("an address")], "127.0.0.1", is_internal=True)
"""Address of the first rank's host. Unset: ``127.0.0.1``."""

VARIABLES: tuple[Variable[object], ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Variable)
)
"""All variables, in the order of the documentation."""
