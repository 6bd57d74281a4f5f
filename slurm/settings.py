"""Settings for SLURM: ``[backend.slurm]`` of the manifest overrides the site file, key by key.

The site file is not part of the study. Partitions, accounts and module loads belong there, so that manifests stay
portable. It is the file named by ``SEQLM_SLURM_CONFIG``, else ``cluster.toml`` in this module's folder.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from jobs.manifests.reader import Problems, check_table, read_toml_file
from jobs.scheduled.settings import Lines, ScheduledTable
from seqlm.environment import SLURM_CONFIG
from seqlm.errors import BackendError, ManifestError
from seqlm.reading import exists
from seqlm.schema import Line, Valid, Word, show

SITE_FILE = Path(__file__).parent / "cluster.toml"
"""The default site file, used if ``SEQLM_SLURM_CONFIG`` is unset. Not tracked by git."""

_PREFIX = "backend.slurm."

OPTION = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""The name of an option of sbatch. Which ones there are depends on SLURM's version and on the plugins of the site."""

DEFAULT_NICE = 100
"""What ``--nice`` without a value means to sbatch."""

GPUS = r"^[a-z][a-z-]*=[^{}]*\{gpus\}[^{}]*$"

OURS: dict[str, str] = {
    **{
        key: f"set {key}" for key in ("partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude")
    },
    **{"time": "set timeout_min", "mem": "set mem_gb", "signal": "set signal_before_s", "wrap": "set setup"},
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), "set resources.ranks and ranks_per_node"),
    **dict.fromkeys(("ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket"), "set ranks_per_node"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "set resources.cpus"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"), "set resources.gpus"),
    **{"export": "set env_pass", "array": "set max_parallel", "requeue": "set retries", "no-requeue": "set retries"},
    **dict.fromkeys(("output", "error", "open-mode", "chdir", "input", "job-name", "dependency", "clusters"), ""),
    **dict.fromkeys(("wait", "parsable", "test-only", "quiet", "verbose", "help", "usage", "version"), ""),
}
"""Option of sbatch that seqlm sets, or that undoes one -> what to set instead, if there is something."""


def _setup(name: str, value: Any) -> Iterator[str]:
    for line in value:
        if line.lstrip().startswith("#SBATCH"):
            yield f"{name}: expected shell commands, got {show(line)}; options of sbatch belong in the table sbatch"


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
            yield f"{place}: seqlm sets --{ours} itself; {OURS[ours] or 'leave it out'}"
        elif option == "nice" and type(found) is not int and found is not True:
            yield f"{place}: expected true or a whole number, got {show(found)}"  # priorities of runs are added to it
        elif not is_value and found is not True:
            yield f"{place}: expected true, a text of one line or a number, got {show(found)}"


_Nodes = Annotated[Word, Valid('a list of nodes, such as "node[01-04],node09"')] | None


@dataclass(frozen=True, kw_only=True)
class SlurmSettings(ScheduledTable):
    """``[backend.slurm]``, and the keys of a site file: how runs are sent to a cluster."""

    SCHEMA: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **ScheduledTable.SCHEMA,
        "sbatch": {
            "propertyNames": {
                "pattern": OPTION,
                "not": {"enum": sorted({*OURS, *(key.replace("-", "_") for key in OURS)})},
            },
            "additionalProperties": {"anyOf": [{"const": True}, {"type": ["string", "number"]}]},
        },
    }
    partition: Annotated[Word, Valid("a partition's name, or several with commas between")] | None = None
    """Partition, or several with commas between; without it, the cluster's default."""
    account: Annotated[Word, Valid("an account's name")] | None = None
    """Account that is charged; without it, your default account."""
    qos: Annotated[Word, Valid("the name of a quality of service")] | None = None
    """Quality of service; without it, your default."""
    constraint: Line | None = None
    """Features that nodes must have, such as `"a100|h100"`."""
    reservation: Annotated[Word, Valid("a reservation's name")] | None = None
    """Reservation to use."""
    nodelist: _Nodes = None
    """Nodes that a job must get, all of them: `"node[01-02]"`."""
    exclude: _Nodes = None
    """Nodes that a job must not get."""
    gpu_request: Annotated[
        Line, Valid('an option of sbatch with {gpus}, such as "gres=gpu:a100:{gpus}"', pattern=GPUS)
    ] = "gpus-per-node={gpus}"
    """Option of `sbatch` for a node's GPUs, `{gpus}` of them: `"gres=gpu:a100:{gpus}"`."""
    setup: Annotated[Lines, Valid("a list of texts, each one line", check=_setup)] = ()
    """Shell lines before a job's command, such as module loads."""
    srun_args: Lines = ()
    """Further arguments of the `srun` that starts the ranks."""
    sbatch: Annotated[Mapping[str, Any], Valid("a table of options of sbatch", check=_sbatch)] = field(
        default_factory=dict
    )
    """Other long options of `sbatch` and the site's plugins, without hyphens in front: text, number, or `true` for an
    option without a value. `gres_flags` and `gres-flags` are the same."""

    def gpu_options(self, gpus: int, accelerator_type: str | None = None) -> dict[str, str]:
        """Return the option of sbatch that asks for this number of GPUs, of any type or of one, on each node.

        Raises:
            BackendError: ``gpu_request`` has no place for a type.
        """
        name, _, value = self.gpu_request.partition("=")
        if accelerator_type is not None and value.partition("{gpus}")[0] not in ("", "gpu:"):
            raise BackendError(
                f'resources.accelerator_type: expected none, since gpu_request = "{self.gpu_request}" says which GPUs; '
                "leave one of them out"
            )
        number = str(gpus) if accelerator_type is None else f"{accelerator_type}:{gpus}"
        return {name: value.format(gpus=number)} if gpus else {}

    def require_type(self, accelerator_type: str | None) -> None:
        self.gpu_options(1, accelerator_type)

    @property
    def may_exceed_limit(self) -> bool:
        return self.qos is not None

    @property
    def must_have_nodes(self) -> bool:
        return bool(self.nodelist or self.reservation or "nodefile" in self.sbatch)

    @property
    def lower_priority(self) -> int:
        nice = self.sbatch.get("nice", 0)
        return DEFAULT_NICE if nice is True else int(nice)


def read_settings(manifest_table: Mapping[str, Any], *, where: str, environ: Mapping[str, str]) -> SlurmSettings:
    """Return the effective settings: the manifest overrides the site file, which overrides the defaults.

    ``env``, ``env_pass`` and ``sbatch`` are merged. Any other key of the manifest replaces the site's. ``where`` is the
    manifest's name, for messages.

    Raises:
        ManifestError: one line for each problem of both files.
    """
    problems = Problems()
    named = SLURM_CONFIG.read(environ)
    path = named.expanduser() if named else SITE_FILE
    site: Mapping[str, Any] = {}
    if named or exists(path):
        try:
            site = read_toml_file(path)
            check_table("slurm", site, str(path), problems, prefix="")
        except ManifestError as error:
            for line in error.problems:
                problems.add_told(SLURM_CONFIG.name if named else "slurm site file", line)
    check_table("slurm", manifest_table, where, problems, prefix=_PREFIX)
    if problems.lines:
        raise ManifestError(problems.lines)
    merged = {**site, **manifest_table}
    for key in ("env", "sbatch"):
        merged[key] = {**site.get(key, {}), **manifest_table.get(key, {})}
    merged["sbatch"] = {option.replace("_", "-"): value for option, value in merged["sbatch"].items()}
    merged["env_pass"] = tuple(dict.fromkeys([*site.get("env_pass", ()), *manifest_table.get("env_pass", ())]))
    return SlurmSettings(**merged)
