"""The tables ``[backend.*]`` of a manifest, a dataclass for each backend. A SLURM site file has the keys of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, MinLen

from jobs.manifests.fields import Line, Matches, Problems, Valid, Word, as_table, full_keys, read_table
from jobs.manifests.reader import show
from seqlm.errors import nearest

MAX_SIGNAL_S = 65_535
"""The longest warning that SLURM can give."""

MAIL_TYPES = (
    *("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT", "ARRAY_TASKS"),
    *("TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50"),
)


# -- checks ----------------------------------------------------------------------------------------------------------

VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
OPTION = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""The name of an option of sbatch. Which ones there are depends on SLURM's version and on the plugins of the site."""

_RANKS = "set resources.ranks and ranks_per_node instead"
_SUBMITTING = "it would change the output of sbatch that seqlm reads"

OURS: dict[str, str] = {
    **{key: f"set {key} instead" for key in ("partition", "account", "qos", "constraint", "reservation", "nodelist")},
    "exclude": "set exclude instead",
    "mail-user": "set mail_user instead",
    "mail-type": "set mail_type instead",
    "time": "set timeout_min instead",
    "mem": "set mem_gb instead",
    "signal": "set signal_before_s instead",
    "wrap": "set setup instead",
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), _RANKS),
    **dict.fromkeys(("ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket"), _RANKS),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "set resources.cpus instead"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"), "set resources.gpus instead"),
    **dict.fromkeys(("output", "error", "open-mode", "chdir", "input"), "logs and work are in the run's folder"),
    "job-name": "jobs are named after the study",
    "array": "the runs make the array, max_parallel limits it",
    "dependency": "seqlm orders its jobs itself",
    "clusters": "seqlm uses the default cluster",
    **dict.fromkeys(("requeue", "no-requeue"), "set retries instead"),
    **dict.fromkeys(("wait", "parsable", "test-only", "quiet", "verbose", "help", "usage", "version"), _SUBMITTING),
}
"""Option of sbatch that seqlm sets, or that undoes one -> what to set instead, or why it cannot be set."""


def _variables(name: str, value: Any) -> Iterator[str]:
    for key, text in value.items():
        if not re.fullmatch(VARIABLE, key):
            yield f"{name}: expected names of letters, digits and underscores, got {show(key)}"
        if "\0" in text:
            yield f"{name}.{key}: expected a text without NUL, got {show(text)}"


def _setup(name: str, value: Any) -> Iterator[str]:
    for line in value:
        if line.lstrip().startswith("#SBATCH"):
            yield f"{name}: expected shell commands, got {show(line)}; options of sbatch belong in the table sbatch"


def _mail_type(name: str, value: Any) -> Iterator[str]:
    for word in value.split(","):
        if word.upper() not in MAIL_TYPES:
            hint = nearest(word.upper(), MAIL_TYPES)
            yield f"{name}: expected one or more of {', '.join(MAIL_TYPES)}, got {show(word)}{hint}"


def _sbatch(name: str, value: Any) -> Iterator[str]:
    given: dict[str, str] = {}
    for key, found in value.items():
        option, place = key.replace("_", "-"), f"{name}.{key}"
        if option in given:
            yield f'{name}: option "{option}" is given twice, as "{given[option]}" and "{key}"'
        given[option] = key
        is_text = isinstance(found, str) and bool(found.strip()) and found.isprintable()
        is_value = is_text or (type(found) in (int, float) and math.isfinite(found))
        ours = option if option in OURS else next((one for one in OURS if one.startswith(option)), None)
        if not re.fullmatch(OPTION, key):
            yield f"{name}: expected names of letters, digits and hyphens, got {show(key)}"
        elif ours is not None:  # sbatch takes the beginning of a name for the name
            yield f"{place}: seqlm sets --{ours} itself; {OURS[ours]}"
        elif option == "nice" and type(found) is not int and found is not True:
            yield f"{place}: expected true or a whole number, got {show(found)}"  # priorities of runs are added to it
        elif not is_value and found is not True:
            yield f"{place}: expected true, a text of one line or a number, got {show(found)}"


# -- the tables ------------------------------------------------------------------------------------------------------

_Variable = Annotated[str, Matches(VARIABLE)]
_Positive = Annotated[int, Ge(1)]
_POSITIVE = Valid("a positive whole number")
_Nodes = Annotated[Word | None, Valid('a list of nodes, such as "node[01-04],node09"')]
_LINES = "a list of texts, each one line"
_Seconds = Annotated[float, Gt(0)]
_SECONDS = Valid("a number of seconds above 0")


@dataclass(frozen=True, kw_only=True)
class LocalTable:
    """``[backend.local]``, and the keys that all backends have."""

    max_parallel: Annotated[_Positive | None, _POSITIVE] = None
    """Most runs at once; without it, as many as there is room for. `--max-parallel` overrides it."""
    retries: Annotated[Annotated[int, Ge(0)] | None, Valid("a whole number, 0 or more")] = None
    """Overrides `policy.max_stalled_retries`; `--max-stalled-retries` overrides both."""
    env: Annotated[
        Mapping[str, str], Valid('a table of texts, such as {NCCL_SOCKET_IFNAME = "eth0"}', check=_variables)
    ] = field(default_factory=dict)
    """Variables for the workers, such as `env.NCCL_SOCKET_IFNAME = "eth0"`. They are kept with the study, so do not put
    secrets here."""
    env_pass: Annotated[
        tuple[str, ...], Valid('a list of names of variables, such as ["HF_TOKEN"]', list[_Variable])
    ] = ()
    """Variables of your shell that workers get too, such as `["HF_TOKEN"]`. Their values are not written to any
    file."""
    progress_s: Annotated[_Seconds | None, _SECONDS] = None
    """Seconds between two updates of `progress.json`, which says where a run is within its epoch; without it, 1. A
    higher number means less load on shared file systems (Lustre, NFS)."""


@dataclass(frozen=True, kw_only=True)
class RayTable(LocalTable):
    """``[backend.ray]``."""

    address: Annotated[Annotated[str, MinLen(1)] | None, Valid('an address, such as "auto"')] = None
    """The Ray cluster to join, such as `"auto"`; without it, seqlm starts Ray on this machine. `--ray-address` and
    `RAY_ADDRESS` override it."""


@dataclass(frozen=True, kw_only=True)
class SlurmTable(LocalTable):
    """``[backend.slurm]``, and the keys of a site file."""

    NO_KEYS: ClassVar[Mapping[str, str]] = {
        key: f'unknown key "{{name}}": an option of sbatch; {instead}'
        for option, instead in OURS.items()
        for key in (option, option.replace("-", "_"))
    }

    progress_s: Annotated[_Seconds, _SECONDS] = 10.0
    """Seconds between two updates of `progress.json`, which says where a run is within its epoch, and between two
    looks of `--watch`. A higher number means less load on shared file systems (Lustre, NFS)."""
    partition: Annotated[Word | None, Valid("a partition's name, or several with commas between")] = None
    """Partition, or several with commas between; without it, the cluster's default."""
    account: Annotated[Word | None, Valid("an account's name")] = None
    """Account that is charged; without it, your default account."""
    qos: Annotated[Word | None, Valid("the name of a quality of service")] = None
    """Quality of service; without it, your default."""
    constraint: Annotated[Line | None, Valid("a text of one line")] = None
    """Features that nodes must have, such as `"a100|h100"`."""
    reservation: Annotated[Word | None, Valid("a reservation's name")] = None
    """Reservation to use."""
    nodelist: _Nodes = None
    """Nodes that a job must get, all of them: `"node[01-02]"`."""
    exclude: _Nodes = None
    """Nodes that a job must not get."""
    timeout_min: Annotated[_Positive, _POSITIVE] = 60
    """Time limit of a job in minutes. A run that needs longer is saved and resumed in another job."""
    signal_before_s: Annotated[int, Ge(1), Le(MAX_SIGNAL_S), Valid(f"a whole number from 1 to {MAX_SIGNAL_S}")] = 120
    """Seconds before the time limit, or a preemption, at which a run gets the signal to save. It is less than the time
    limit."""
    mem_gb: Annotated[Annotated[float, Gt(0)] | None, Valid("a number above 0")] = None
    """Memory of each node in GB; without it, the cluster's default."""
    ranks_per_node: Annotated[_Positive | None, _POSITIVE] = None
    """Ranks of a run on each node; without it, all on one node. A run with more ranks gets several nodes, and
    `resources.ranks` must be a multiple of it."""
    setup: Annotated[tuple[str, ...], Valid(_LINES, list[Line], _setup)] = ()
    """Shell lines before a job's command, such as module loads."""
    python: Annotated[Line | None, Valid('a command that starts Python, such as "apptainer exec image.sif python"')] = (
        None
    )
    """Command that starts Python in a job, such as `"apptainer exec --nv image.sif python"`; without it, the Python
    that launches."""
    srun_args: Annotated[tuple[str, ...], Valid(_LINES, list[Line])] = ()
    """Further arguments of the `srun` that starts the ranks."""
    mail_user: Annotated[Word | None, Valid("a mail address or a user's name")] = None
    """Recipient of SLURM's mails; without it, you."""
    mail_type: Annotated[Word | None, Valid('a text such as "END,FAIL"', check=_mail_type)] = None
    """Events that SLURM sends mails about, such as `"END,FAIL"`."""
    sbatch: Annotated[
        Mapping[str, str | int | float | bool], Valid("a table of options of sbatch", dict[str, Any], _sbatch)
    ] = field(default_factory=dict)
    """Any other long option of `sbatch`, also of the site's plugins, without the leading hyphens: a text, a number, or
    `true` for an option without a value. `gres_flags` and `gres-flags` are the same."""


BACKENDS: dict[str, type] = {"local": LocalTable, "ray": RayTable, "slurm": SlurmTable}
"""Backend -> its table."""


def check_table(backend: str, table: Any, where: str, problems: Problems, *, prefix: str) -> None:
    """Check one backend's table; ``prefix`` precedes its keys in messages, such as ``backend.ray.``."""
    kinds = BACKENDS.items() if prefix else ()
    others = [key for other, kind in kinds if other != backend for key in full_keys(kind, f"backend.{other}.")]
    read_table(BACKENDS[backend], table, where, problems, prefix=prefix, others=others)


def check_tables(tables: Any, where: str, problems: Problems) -> dict[str, Mapping[str, Any]]:
    """Check ``[backend.*]`` of a file, and return the table of each backend as written."""
    found = {}
    for name, table in as_table(tables, f"{where}: backend", problems).items():
        if name in BACKENDS:
            found[name] = table
            check_table(name, table, where, problems, prefix=f"backend.{name}.")
        else:
            problems.unknown(where, f"backend.{name}", [f"backend.{known}" for known in BACKENDS])
    return found
