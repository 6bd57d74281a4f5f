"""A site file that writes itself, and a record of a cluster (``doctor --write-site FILE --record FILE``).

Both are made from the answers of five commands of SLURM. Tests replay such records (``tests/slurm/records``).
"""

import contextlib
import getpass
import json
import math
from collections.abc import Mapping
from pathlib import Path

from jobs.backends.base import Finding
from jobs.scheduled.site import FAKE_GPU
from seqlm.environment import DEVICE, SLURM_CONFIG
from seqlm.errors import BackendError, UsageError
from seqlm.files import json_text, write_once
from slurm.scheduler import ask
from slurm.site import PARTITION_FORMAT, read_partitions

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
"""The most that a site file asks for: short jobs start sooner."""


def answers() -> dict[str, str]:
    """Return the answers of SLURM's commands. One that fails, as without accounting, has an empty answer."""
    found = dict.fromkeys(QUESTIONS, "")
    for key, words in QUESTIONS.items():
        with contextlib.suppress(BackendError):
            found[key] = ask(*(word.format(user=getpass.getuser()) for word in words))
    return found


def write(given: Mapping[str, str], site: Path | None, record: Path | None) -> list[Finding]:
    """Write the site file ``site`` and the record ``record``, each unless it is ``None``.

    Raises:
        BackendError: no partition has nodes, or SLURM does not answer.
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
    rows = [line.split("|") for line in given["accounts"].splitlines()]
    known = dict.fromkeys(name for row in rows for name in row[:2] if name)
    numbers = {name: f"account{number}" for number, name in enumerate(known, start=1)}
    accounts = ["|".join([*(numbers.get(name, "") for name in row[:2]), *row[2:]]) for row in rows]
    kept = [line for line in given["config"].splitlines() if line.partition("=")[0].strip() in CONFIG]
    texts = {key: "".join(f"{line}\n" for line in lines) for key, lines in (("config", kept), ("accounts", accounts))}
    return json_text({"format": 1, "source": "recorded", **given, **texts, "json": given["json"].startswith("{")})


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
    rows = [line.split("|") for line in given["accounts"].splitlines() if line.count("|") == 2]
    accounts, qos = ({name: "" for row in rows for name in row[part].split(",") if name} for part in (1, 2))
    types = sorted({name for kind in chosen.kinds for name in kind.gpu_types})
    limit, memory = chosen.time_limit_min or math.inf, min(kind.memory_mb for kind in chosen.kinds) // 1024
    gpus, longest = chosen.gpus_per_node, "no limit" if chosen.time_limit_min is None else f"at most {limit}"
    lines = [
        f"# {given['version'].strip()}, as `seqlm doctor --backend slurm --write-site` found it.",
        "# docs/reference/manifest.md has every key, docs/guides/slurm.md what to do if your site is different.",
        *(
            f"{'# ' * (one is not chosen)}partition = {json.dumps(name)}  # {one.about()}"
            for name, one in usable.items()
        ),
        *[
            f"account = {json.dumps(row[0])}  # your default; yours: {', '.join(accounts)}"
            for row in rows[:1]
            if row[0]
        ],
        *([f"# qos = {json.dumps(min(qos))}  # yours: {', '.join(qos)}"] if qos else []),
        f"timeout_min = {min(limit, MINUTES)}  # {longest}; a run that needs longer goes on in another job",
        f"# mem_gb = {max(1, memory // max(1, gpus))}  # of each node, which have {memory} or more",
        "# fit_limits = true  # jobs ask for what earlier ones took, and for no more than the two lines above",
        *([f"ranks_per_node = {gpus}  # the GPUs of a node"] if gpus else []),
        *(f'# gpu_request = "gres=gpu:{name}:{{gpus}}"  # for GPUs of this type alone' for name in types),
        *([f'env.{DEVICE.name} = "cpu"  # the GPUs of a test cluster are no devices'] if types == [FAKE_GPU] else []),
        '# setup = ["module load cuda"]  # shell lines before the command of each job',
    ]
    return "\n".join([*lines, ""])
