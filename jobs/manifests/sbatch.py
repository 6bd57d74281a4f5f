"""The long options of ``sbatch``, and those that a manifest may not set because seqlm sets them.

Source: ``sbatch --help`` and the manual page of SLURM 24.11. A test asks ``sbatch`` whether it knows each option and
whether the option takes a value.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FLAGS = _names(
    "contiguous help hold ignore-pbs no-requeue overcommit oversubscribe parsable quiet reboot requeue spread-job "
    "stepmgr test-only usage use-min-nodes verbose version wait"
)
"""Options that take no value."""

EITHER = _names("exclusive get-user-env nice no-kill oom-kill-step propagate resv-ports")
"""Options with or without a value."""

WITH_VALUE = _names(
    "account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container "
    "container-id core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency "
    "distribution error exclude export export-file extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node "
    "gpus-per-socket gpus-per-task gres gres-flags hint input job-name kill-on-invalid-dep licenses mail-type "
    "mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks "
    "ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output partition prefer priority "
    "profile qos reservation segment signal sockets-per-node switches thread-spec threads-per-core time time-min tmp "
    "tres-bind tres-per-task uid wait-all-nodes wckey wrap"
)
"""Options that need a value."""

OPTIONS = FLAGS | EITHER | WITH_VALUE

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
"""Option -> why a manifest may not set it, and what to set instead."""
