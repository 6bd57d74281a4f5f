"""What a site and a study set for SLURM: ``[backend.slurm]`` of the manifest over the site file, key by key.

A manifest stays portable when partitions, accounts and module loads stand in the site file, which is no part of the
study: the file that ``SEQLM_SLURM_CONFIG`` names, else ``slurm/cluster.toml`` beside this module. The keys
are those of :class:`jobs.manifests.backends.SlurmTable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.manifests.backends import SlurmTable, check_table, option_name
from jobs.manifests.fields import Problems
from jobs.manifests.reader import read_toml_file
from jobs.spec import Resources
from seqlm.errors import BackendError, ManifestError

SITE_FILE = Path(__file__).parent / "cluster.toml"
"""Where a site's settings lie unless ``SEQLM_SLURM_CONFIG`` names another file; not tracked by git."""

_TINY = 1e-6
"""Shares of a GPU add up in floating point."""


@dataclass(frozen=True, kw_only=True)
class SlurmSettings(SlurmTable):
    """How runs are sent to a cluster, merged from the manifest and the site file. No part of a run's identity."""

    def nodes(self, resources: Resources) -> tuple[int, int]:
        """On how many nodes a run goes, and how many of its ranks go on each.

        A run of fewer ranks than ``ranks_per_node`` has one node.

        Raises:
            BackendError: the ranks do not divide into equal parts.
        """
        ranks, each = resources.ranks, self.ranks_per_node
        if each is None or ranks <= each:
            return 1, ranks
        if ranks % each:
            below, above = ranks - ranks % each, ranks - ranks % each + each
            raise BackendError(
                f"resources.ranks: found {ranks}, valid with ranks_per_node = {each} is a multiple of it, "
                f"such as {below} or {above}"
            )
        return ranks // each, each

    def runs_per_job(self, resources: Resources) -> int:
        """How many runs go into one job: as many as share a GPU, for SLURM itself gives away whole ones."""
        gpus = resources.gpus
        runs = int((1 + _TINY) / gpus) if gpus and gpus < 1 else 1
        return min(runs, self.max_parallel or runs)

    def placement(self) -> dict[str, Any]:
        """The options of sbatch that say where a job may go and who pays, and those of ``sbatch``; true: no value."""
        keys = ("partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude")
        return {**self.sbatch, **{key: value for key in keys if (value := getattr(self, key)) is not None}}


def read_settings(manifest_table: Mapping[str, Any], *, where: str, environ: Mapping[str, str]) -> SlurmSettings:
    """The settings that hold: those of the manifest over those of the site file over the defaults.

    ``env``, ``env_pass`` and ``sbatch`` are merged; any other key of the manifest replaces the site's. ``where`` is the
    manifest's name, for messages.

    Raises:
        ManifestError: with one line for each problem of both.
    """
    problems = Problems()
    site_path = _site_path(environ)
    site = _read_site(site_path, problems) if site_path else {}
    check_table("slurm", manifest_table, where, problems, prefix=_PREFIX)
    if problems.lines:
        raise ManifestError(problems.lines)
    merged = {**site, **manifest_table}
    places = {key: f"{where}: {_PREFIX}{key}" for key in manifest_table}
    places |= {key: f"{site_path.name}: {key}" for key in site.keys() - manifest_table.keys()} if site_path else {}
    merged["env"] = {**site.get("env", {}), **manifest_table.get("env", {})}
    merged["sbatch"] = _options(site.get("sbatch", {})) | _options(manifest_table.get("sbatch", {}))
    merged["env_pass"] = dict.fromkeys([*site.get("env_pass", ()), *manifest_table.get("env_pass", ())])
    for key in ("setup", "srun_args", "env_pass"):
        merged[key] = tuple(merged.get(key, ()))
    settings = SlurmSettings(**merged)
    _check_together(settings, places, problems)
    if problems.lines:
        raise ManifestError(problems.lines)
    return settings


_PREFIX = "backend.slurm."


def _site_path(environ: Mapping[str, str]) -> Path | None:
    if named := environ.get("SEQLM_SLURM_CONFIG"):
        return Path(named).expanduser()
    return SITE_FILE if SITE_FILE.exists() else None


def _read_site(path: Path, problems: Problems) -> Mapping[str, Any]:
    try:
        table = read_toml_file(path)
    except ManifestError as error:
        for line in error.problems:
            problems.add("SEQLM_SLURM_CONFIG" if path != SITE_FILE else "slurm site file", line)
        return {}
    check_table("slurm", table, path.name, problems, prefix="")
    return table


def _options(table: Mapping[str, Any]) -> dict[str, Any]:
    return {option_name(key): value for key, value in table.items()}


def _check_together(settings: SlurmSettings, places: Mapping[str, str], problems: Problems) -> None:
    """What is impossible only because of another key, which may stand in the other file."""
    if settings.signal_before_s >= settings.timeout_min * 60:
        key = "signal_before_s" if "signal_before_s" in places else "timeout_min"
        found = getattr(settings, key)
        valid = f"signal_before_s ({settings.signal_before_s}) below the {settings.timeout_min * 60} s of timeout_min"
        problems.add(places[key], f"found {found}, valid is {valid}")
    if settings.mem_gb is not None:
        for option in ("mem-per-cpu", "mem-per-gpu"):
            if option in settings.sbatch:
                problems.add(places["mem_gb"], f'found beside the option "{option}" of sbatch, valid is one of them')
