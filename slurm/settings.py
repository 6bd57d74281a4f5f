"""Settings for SLURM: ``[backend.slurm]`` of the manifest overrides the site file, key by key.

The site file is not part of the study. Partitions, accounts and module loads belong there, so that manifests stay
portable. It is the file named by ``SEQLM_SLURM_CONFIG``, else ``cluster.toml`` in this module's folder.
:class:`jobs.manifests.backends.SlurmTable` defines the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.manifests.backends import SlurmTable, check_table
from jobs.manifests.fields import Problems
from jobs.manifests.reader import read_toml_file
from jobs.spec import Resources
from seqlm.environment import SLURM_CONFIG
from seqlm.errors import BackendError, ManifestError
from seqlm.reading import exists

SITE_FILE = Path(__file__).parent / "cluster.toml"
"""The default site file, used if ``SEQLM_SLURM_CONFIG`` is unset. Not tracked by git."""

_PREFIX = "backend.slurm."
_TINY = 1e-6
"""Tolerance for rounding: GPU shares are added in floating point."""


@dataclass(frozen=True, kw_only=True)
class SlurmSettings(SlurmTable):
    """How runs are sent to a cluster, merged from the manifest and the site file. No part of a run's identity."""

    def nodes(self, resources: Resources) -> tuple[int, int]:
        """Return a run's number of nodes, and its number of ranks on each node.

        A run with fewer ranks than ``ranks_per_node`` gets one node.

        Raises:
            BackendError: the ranks cannot be divided equally.
        """
        ranks, each = resources.ranks, self.ranks_per_node
        if each is None or ranks <= each:
            return 1, ranks
        if ranks % each:
            below, above = ranks - ranks % each, ranks - ranks % each + each
            raise BackendError(
                f"resources.ranks: expected a multiple of ranks_per_node = {each}, such as {below} or {above}, "
                f"got {ranks}"
            )
        return ranks // each, each

    def runs_per_job(self, resources: Resources) -> int:
        """Return how many runs share one job: as many as share a GPU, since SLURM allocates only whole GPUs."""
        gpus = resources.gpus
        runs = int((1 + _TINY) / gpus) if gpus and gpus < 1 else 1
        return min(runs, self.max_parallel or runs)


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
            check_table("slurm", site, path.name, problems, prefix="")
        except ManifestError as error:
            for line in error.problems:
                problems.add(SLURM_CONFIG.name if named else "slurm site file", line)
    check_table("slurm", manifest_table, where, problems, prefix=_PREFIX)
    if problems.lines:
        raise ManifestError(problems.lines)
    merged = {**site, **manifest_table}
    for key in ("env", "sbatch"):
        merged[key] = {**site.get(key, {}), **manifest_table.get(key, {})}
    merged["sbatch"] = {option.replace("_", "-"): value for option, value in merged["sbatch"].items()}
    merged["env_pass"] = dict.fromkeys([*site.get("env_pass", ()), *manifest_table.get("env_pass", ())])
    for key in ("setup", "srun_args", "env_pass"):
        merged[key] = tuple(merged.get(key, ()))
    settings = SlurmSettings(**merged)
    # Problems that arise only from two keys together, which may be in different files.
    places = {**{key: f"{path.name}: {key}" for key in site}, **{k: f"{where}: {_PREFIX}{k}" for k in manifest_table}}
    if settings.signal_before_s >= settings.timeout_min * 60:
        key = "signal_before_s" if "signal_before_s" in places else "timeout_min"
        expected = f"signal_before_s ({settings.signal_before_s}) below timeout_min ({settings.timeout_min * 60} s)"
        problems.add(places[key], f"expected {expected}, got {getattr(settings, key)}")
    for option in ("mem-per-cpu", "mem-per-gpu"):
        if settings.mem_gb is not None and option in settings.sbatch:
            problems.add(places["mem_gb"], f'expected either this key or the option "{option}" of sbatch, got both')
    if problems.lines:
        raise ManifestError(problems.lines)
    return settings
