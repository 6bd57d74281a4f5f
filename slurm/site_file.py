"""A site file that writes itself, and a record of a cluster (``doctor --write-site FILE --record FILE``).

Both are made from the answers of five commands of SLURM. Tests replay such records (``tests/slurm/records``).
"""

import getpass
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.backends.base import Finding
from jobs.plan.capacity import with_noun
from jobs.study.squeue import ask
from seqlm.environment import DEVICE, SLURM_CONFIG
from seqlm.errors import BackendError, UsageError
from seqlm.files import json_text, write_once
from slurm.site import FAKE_GPU, PARTITION_FORMAT, PartitionFacts, read_partitions

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "version": ("sbatch", "--version"),
    "config": ("scontrol", "show", "config"),
    "partitions": ("sinfo", "-h", "-a", "-e", "-o", PARTITION_FORMAT),
    "accounts": ("sacctmgr", "-n", "-P", "show", "user", "{user}", "withassoc", "format=DefaultAccount,Account,QOS"),
    "json": ("scontrol", "--json", "ping"),
}
CONFIG = (
    *("AccountingStorageEnforce", "AccountingStorageType", "DefMemPerCPU", "DefMemPerNode", "GresTypes", "JobRequeue"),
    *("MaxArraySize", "PreemptMode", "PreemptType", "SelectType", "SelectTypeParameters", "SLURM_VERSION"),
)
"""The settings of SLURM that a record has."""
MINUTES = 120


def answers() -> dict[str, str]:
    """Return the answers of SLURM's commands. One that fails, as without accounting, has an empty answer.

    Raises:
        BackendError: there are no partitions to ask for.
    """
    found = {}
    for key, words in QUESTIONS.items():
        try:
            found[key] = ask(*(word.format(user=getpass.getuser()) for word in words))
        except BackendError:
            if key == "partitions":
                raise
            found[key] = ""
    return found


def write(given: Mapping[str, str], site: Path | None, record: Path | None) -> list[Finding]:
    """Write the files that are asked for.

    Raises:
        UsageError: one of them exists.
        FileError: one of them cannot be written.
    """
    found = []
    export = f"use it with: export {SLURM_CONFIG.name}={site and site.absolute()}"
    for path, text, then in ((site, site_text, export), (record, record_text, "it names no user, account or host")):
        if path is not None:
            if not write_once(path, text(given).encode()):
                raise UsageError(f"{path} exists, and is not overwritten; take another name, or move it away")
            found.append(Finding("ok", "written", f"{path}; {then}"))
    return found


def record_text(given: Mapping[str, str]) -> str:
    """Return the record of a cluster: facts of an allow-list, in the words of SLURM. Accounts are numbered."""
    names: dict[str, str] = {}
    rows = [line.split("|") for line in given["accounts"].splitlines()]
    for account in (name for row in rows for name in row[:2] if name):
        names.setdefault(account, f"account{len(names) + 1}")
    kept = [line for line in given["config"].splitlines() if line.partition("=")[0].strip() in CONFIG]
    accounts = ["|".join([*(names.get(name, "") for name in row[:2]), *row[2:]]) for row in rows]
    found: dict[str, Any] = {"format": 1, "source": "recorded", **given, "json": given["json"].startswith("{")}
    return json_text(found | {"config": "\n".join([*kept, ""]), "accounts": "\n".join([*accounts, ""])})


def site_text(given: Mapping[str, str]) -> str:
    """Return a site file with the cluster's default partition, its limits and the user's default account.

    Raises:
        BackendError: no partition has nodes.
    """
    partitions, default = read_partitions(given["partitions"])
    usable = {name: one for name, one in partitions.items() if one.kinds}
    if not usable:
        raise BackendError("sinfo: expected a partition with nodes, got none")
    chosen = usable.get(default or "") or next(iter(usable.values()))
    accounts = [line.split("|") for line in given["accounts"].splitlines()]
    types = sorted({name for kind in chosen.kinds for name in kind.gpu_types})
    limit, has = chosen.time_limit_min, min(kind.memory_mb for kind in chosen.kinds) / 1024
    lines = [
        f"# {given['version'].strip() or 'SLURM'}, as `seqlm doctor --backend slurm --write-site` found it.",
        "# docs/reference/manifest.md has every key, docs/guides/slurm.md what to do if your site is different.",
        "",
        *(
            f"{'' if one is chosen else '# '}partition = {json.dumps(one.name)}  # {about(one)}"
            for one in usable.values()
        ),
    ]
    if own := [row[0] for row in accounts if row[0]][:1]:
        others = sorted({row[1] for row in accounts if len(row) > 1} - {*own, ""})
        more = f"; you may also charge {', '.join(others)}" if others else ""
        lines.append(f"account = {json.dumps(own[0])}  # your default{more}")
    if qos := sorted({name for row in accounts for name in row[-1].split(",") if len(row) > 2 and name}):
        lines.append(f"# qos = {json.dumps(qos[0])}  # those that you may use: {', '.join(qos)}")
    most = "no limit" if limit is None else f"at most {limit}"
    lines += [
        f"timeout_min = {MINUTES if limit is None else min(limit, MINUTES)}  # {most}; a run that needs longer goes on",
        f"# mem_gb = {max(1, int(has / max(1, chosen.gpus_per_node)))}  # of each node, which have {has:.0f} or more",
        "# fit_limits = true  # jobs ask for what earlier ones took, and for no more than the two lines above",
    ]
    if chosen.gpus_per_node:
        lines.append(f"ranks_per_node = {chosen.gpus_per_node}  # the GPUs of a node")
    lines += [f'# gpu_request = "gres=gpu:{name}:{{gpus}}"  # for GPUs of this type alone' for name in types]
    if types == [FAKE_GPU]:
        lines.append(f'env.{DEVICE.name} = "cpu"  # the GPUs of a test cluster are no devices')
    lines += ['# setup = ["module load cuda"]  # shell lines before the command of each job', ""]
    return "\n".join(lines)


def about(facts: PartitionFacts) -> str:
    """Return what a partition has, in a few words."""
    kinds = [
        f"{with_noun(kind.count, 'node')} of {with_noun(kind.cpus, 'core')}"
        + (f" and {with_noun(kind.gpus, ' '.join([*kind.gpu_types, 'GPU']))}" if kind.gpus else "")
        for kind in facts.kinds
    ]
    return ", ".join(kinds)
