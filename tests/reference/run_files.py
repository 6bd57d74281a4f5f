"""The files of a study and of a run, and the fields of the JSON files, for docs/reference/files.md.

The types of the fields are those of ``tests/stored_study.zip``, a study that was really run.
"""

from __future__ import annotations

import functools
import inspect
import json
import zipfile
from pathlib import Path
from typing import Any, get_args

from analysis.study.columns import EPOCHS
from jobs.study.folder import launch_lock_file, queue_file
from seqlm.run_layout import RunLayout, study_record_file
from seqlm.state import FailureKind
from seqlm.trust import LAUNCHED
from tests.reference.markdown import Meanings, fields_table, table

STORED = Path(__file__).parents[1] / "stored_study.zip"
RUN = RunLayout(Path("RUN"))
_KINDS = ", ".join(f"`{kind}`" for kind in get_args(FailureKind))

RUN_FILES = {
    "config_file": ("launcher or job", "The resolved configuration: the run's identity, and how far it is to go."),
    "tokenizer_file": ("launcher or job", "The tokenizer that the run was launched with, if it has one."),
    "provenance_file": ("launcher or job", "Commit, versions, host, devices, and the command that launches this run."),
    "metrics_file": ("worker", "One object for each finished epoch."),
    "result_file": ("worker", "The numbers of a run that has gone as far as it was asked to."),
    "rung_file": ("worker", "What a search has decided about the run at a rung, with the evidence."),
    "model_dir": ("launcher or job", "The files of the user's own model, as they were at the launch."),
    "canary_file": ("worker", "What a canary has measured. Only folders in `canary/` have it."),
    "task_file": ("launcher or job", "What a behaviour job has to compute. Only folders in `behaviour/` have it."),
    "behaviour_file": ("behaviour job", "What the trained model does: loss at each time step, gradient norms."),
    "samples_file": ("behaviour job", "Texts that the trained model has written, one object a line."),
    "last_checkpoint": ("worker", "All that is needed to resume. `clean` deletes that of a finished run."),
    "previous_checkpoint": ("worker", "The checkpoint before `last.pt`. Deleted once the run is done."),
    "position_file": ("worker", "Epoch and step of `last.pt`, readable without PyTorch."),
    "best_checkpoint": ("worker", "The parameters of the epoch with the lowest validation loss."),
    "worker_lock_file": ("worker", "Locked while a worker trains the run. It names the process."),
    "lease_dir": ("worker", "One file for each worker that owned the run; the highest number is the owner."),
    "attempt_dir": ("worker", "Folder of an attempt, numbered from 1."),
    "start_file": ("launcher or job", "Who follows the attempt, and with what it starts."),
    "end_file": ("worker", "How a rank ended, in its own words; `end-1.json` is that of the second."),
    "exit_file": ("launcher or job", "How the attempt ended, as seen from outside, if that adds something."),
    "stdout_log": ("worker", "What the ranks of the attempt print. `logs` shows it."),
    "stderr_log": ("worker", "What they print on stderr."),
    "worker_file": ("worker", "Host, devices and versions of a rank; `worker-1.json` is that of the second."),
    "progress_file": ("worker", "How far the attempt is within its epoch, written about once a second."),
}  # fmt: skip
"""Name in :class:`RunLayout` -> who writes the file, and what it holds."""
NO_FILES = {"id", "is_canary", "kept_dir", "attempts", "last_attempt"}

STUDY_FILES = [
    (study_record_file(Path()), "What the report needs of the manifest, and the estimates of the first launch."),
    (Path(LAUNCHED), "A random token of each user who has launched it ([Trust](../explanation/trust.md))."),
    (queue_file(Path()), "The runs that wait for the launcher, with reasons."),
    (launch_lock_file(Path()), "Locked while a launcher works on the study. It names the process."),
    (
        Path("launches"),
        "A folder for each request, with `request.json`: which runs, when, where; and `runs.json`: what the folder of "
        "each run gets at its first attempt. On SLURM also the plan, the scripts, the ids and the logs of its jobs.",
    ),
    (
        Path("kept"),
        "The user's own models and tokenizers as they were at each launch, a folder for each digest. A run copies its "
        "own at its first attempt.",
    ),
    (
        Path("code"),
        "The code that the workers run, a folder for each version, with its commit in `code-origin.json`. "
        "Tests, benchmarks and documentation are not copied.",
    ),
    (Path("canary"), "The canaries, each a folder like that of a run."),
    (Path("behaviour"), "The behaviour jobs, each a folder like that of a run."),
    (Path("report"), "The report. `seqlm report` replaces it."),
]

PROCESS: Meanings = {
    "pid": "process id",
    "process_group": "process group",
    "host": "host name",
    "machine_id": "`/etc/machine-id`",
    "boot_id": "id of the boot, which is new after each start of the machine",
    "pid_namespace": "numbering of processes, which containers have of their own",
    "process_start": "start of the process, in clock ticks after the boot",
}
STOPPED: Meanings = {
    "metric": ("text", "what was compared"),
    "rung": ("number", "finished epochs"),
    "value": ("number or null", "value of this run; null is the worst"),
    "rank": ("number", "its place, from 1 for the lowest value"),
    "of": ("number", "runs that had reached the rung, this one included"),
    "keep": ("number", "share that goes on"),
    "goes_on": ("number", "places that go on: `of` times `keep`, rounded up"),
    "cut": ("number or null", "highest value that goes on"),
    "min_runs": ("number", "no run is stopped before this number of runs has reached the rung"),
    "at": ("text", "time of the decision, ISO 8601"),
}
ENDED: Meanings = {
    "ended_at": ("text", "time, ISO 8601"),
    "kind": ("text or null", f"of a failure: one of {_KINDS} ([failures](../explanation/failures.md))"),
    "message": ("text", "one line for a person"),
    "where": ("text", "place in the code, or who wrote the record"),
    "micro_batches": ("number", "parts of a step in that attempt"),
    "node": ("text or null", "node that failed, if that is known"),
    "progress": ("list", "finished epochs, and steps of the next one, that were saved"),
}
POLICY = "[`[policy]`](manifest.md#policy) of the manifest"
FIELDS: dict[str, Meanings] = {
    "study.json": {
        "version": "version of this file's format",
        "study": "name of the study",
        "manifest": "name of the manifest's file",
        "planned": "the runs as written: number, name, fingerprint, configuration, published results",
        "excluded": "what an `[[exclude]]` dropped",
        "expectations": "the `[[expect]]` tables, with fingerprints in place of conditions",
        "groups": ("list", "the groups of `[report.groups]`, with fingerprints in place of names"),
        "notes": ("list", "the texts of `[report.notes]`, each with the part of the report that it is for"),
        "samples": ("list", "the `[[sample]]` entries as written, and the `[defaults]`, for `seqlm propose`"),
        "behaviour": "fingerprints of the runs that `[report] behaviour` names",
        "untracked": "in studies of before 2026-11-29; not read any more",
        "policy": POLICY,
        "search": ("object or null", "[`[search]`](manifest.md#search) of the manifest"),
        "backend": "the `[backend.*]` tables, without values that look like secrets",
        "estimates": "fingerprint of each run -> estimate: seconds, and for how many epochs",
    },
    "provenance.json": {
        "study": "name of the study",
        "launched_at": "time of the latest launch, ISO 8601",
        "host": "host of the launcher",
        "user": "user of the launcher",
        "devices": "GPUs, or the processor, of that host",
        "git": "commit of the code, and whether tracked files differed from it",
        "code": "folder of the code that workers run, and whether it is the working tree (`--live-code`)",
        "versions": "versions of Python and of the packages",
        "environment": "four variables that change results, as they were set",
        "name": "name of the run in the manifest",
        "order": "place in the manifest, from 0",
        "entry": ("text", "the entry of the manifest that the run belongs to"),
        "command": "command that launches this run alone",
        "resources": "the run's `[resources]`",
        "data": "path of the text",
    },
    "metrics.jsonl": {
        name: meaning.text + (f" ({meaning.unit})" if meaning.unit else "")
        for name, meaning in EPOCHS.items()
        if name not in ("id", "number")
    }
    | {"val_bits_per_byte": ("number", f"{EPOCHS['val_bits_per_byte'].text} (bits/byte)")}
    | {"val_tokens": ("number", EPOCHS["val_tokens"].text)},
    "result.json": {
        "epochs": ("number", "epochs that the run has gone"),
        "best_epoch": "epoch with the lowest validation loss, from 0",
        "best_train_ppl": "training perplexity of that epoch",
        "best_val_loss": "its validation loss (nats/token)",
        "best_val_ppl": "its validation perplexity",
        "final_epoch": "last epoch",
        "final_train_ppl": "training perplexity of the last epoch",
        "final_val_ppl": "validation perplexity of the last epoch",
        "test_loss": "test loss with the parameters of the best epoch (nats/token)",
        "test_ppl": "test perplexity",
        "best_val_bits_per_byte": ("number", "validation loss of the best epoch per byte of the text (bits/byte)"),
        "test_bits_per_byte": ("number", "test loss per byte of the text (bits/byte)"),
        "val_tokens": ("number", "tokens of the validation text that were scored"),
        "test_tokens": ("number", "the same of the test text"),
        "lossless": ("boolean", "whether the tokens determine the texts of valid and test, white space aside"),
        "parameters": "trainable parameters",
        "elapsed_seconds": "time of all epochs",
        "attempt": "attempt that finished the run",
        "micro_batches": "parts of a step in that attempt",
        "corpus_sha256": "digest of the text",
        "finished_at": "end of the run, ISO 8601",
    },
    "attempts/0001/start.json": {
        "request": ("number or null", "request of the study that the attempt serves"),
        "backend": ("text", "`local`, `ray` or `slurm`"),
        "job_id": ("text or null", "SLURM job"),
        "node": ("text or null", "node of all ranks, if a scheduler gave one"),
        "restart": ("text or null", "how often SLURM has restarted the job"),
        "launcher": ("object", "process and host of who follows the attempt"),
        "resources": ("object", "what the attempt was given: ranks, cores, GPUs"),
        "micro_batches": ("number", "parts of a step, more than 1 after the run was short of memory"),
        "argv": ("list", "command line of the worker"),
        "code": ("text", "folder of its code"),
        "started_at": ("text", "time, ISO 8601"),
    },
    "attempts/0001/end.json": {
        "rank": ("number", "number of the rank, from 0"),
        "outcome": ("text", "`done`, `rung` (left at a rung of a search), `interrupted` (asked to stop) or `failed`"),
        **ENDED,
        "peer_lost": ("boolean", "of a failure: whether the rank only lost another one"),
    },
    "attempts/0001/exit.json": {
        **ENDED,
        "exit_code": ("number", "exit code of the rank that explains the others; negative: the signal that killed it"),
        "stands": ("boolean", "true: the launcher or job has given the run up"),
    },
    "rung-3.json": {
        "decision": ("text", "`goes on` or `stopped`; a later request lets a stopped run go on"),
        **STOPPED,
        "attempt": ("number", "attempt that decided"),
    },
    "canary.json": {
        "steps": ("number", "training steps"),
        "step_seconds": ("number", "median time of a step"),
        "train_tokens_per_second": ("number", "training speed"),
        "peak_memory_bytes": ("number", "peak memory of the rank that needs most"),
        "reserved_memory_bytes": ("number or null", "on a GPU, what the process held for tensors"),
        "graph_memory_bytes": ("number or null", "on a GPU, what the steps took besides: graphs, workspaces"),
        "device": ("text", "GPU or processor"),
        "device_memory_bytes": ("number or null", "memory of the GPU"),
        "ranks": ("number", "processes that trained together"),
        "threads": ("number", "threads of each"),
        "attempt": ("number", "attempt of the canary"),
        "finished_at": ("text", "end, ISO 8601"),
    },
    "checkpoints/position.json": {
        "epoch": "epoch in which training goes on, from 0",
        "step": "steps of that epoch that are done",
        "attempt": "attempt that saved it",
        "saved_at": "time, ISO 8601",
    },
    "attempts/0001/progress.json": {
        "epoch": "running epoch, from 0",
        "step": "training steps of it that are done",
        "steps": "training steps of an epoch",
        "train_loss": "mean training loss of the epoch so far (nats/token)",
        "train_ppl": "exp(train_loss)",
        "train_tokens_per_second": "training speed",
        "phase": "`train` or `valid`",
        "updated_at": "time, ISO 8601",
    },
    "attempts/0001/worker.json": {
        "host": "host of the rank",
        "node": ("text or null", "node, as the cluster names it"),
        "pid": "process id",
        "rank": "number of the rank, from 0",
        "ranks": "processes that train together",
        "device": "GPU or processor",
        "multiprocessors": ("number", "multiprocessors of the GPU; 0: a processor"),
        "matmul": ("text", "library of float32 matrix products, `onednn` or `blas`; empty: a GPU"),
        "gpu": ("text or null", "UUID or index of the GPU"),
        "gpus": ("number", "GPUs of the rank, or its share of one"),
        "threads": "threads of the rank",
        "micro_batches": "parts of a step",
        "code": "folder of the code",
        "python": "version of Python",
        "torch": "version of PyTorch",
        "started_at": "start, ISO 8601",
    },
    "lease/000001.json": {
        "generation": "number of the owner; the highest owns the run",
        "owner": "random name of the owner",
        **PROCESS,
        "attempt": "attempt of the owner",
        "heartbeat_seconds": "seconds between two heartbeats, which set the time of this file",
        "taken_at": "time at which the run was taken",
        "released": "true: the worker has ended",
    },
    "worker.lock": PROCESS,
}  # fmt: skip


def parts() -> dict[str, str]:
    """Return the table of a study's files, that of a run's files, and the fields of each JSON file."""
    study = [[f"`{path}{'' if path.suffix else '/'}`", meaning] for path, meaning in STUDY_FILES]
    fields = [f"### `{name}`\n\n{fields_table(meanings, *_samples(name))}" for name, meanings in FIELDS.items()]
    return {
        "study-files": table(["file", "what it holds"], study),
        "run-files": table(["file", "written by", "what it holds"], _run_files()),
        "file-fields": "\n\n".join(fields),
    }


def _run_files() -> list[list[str]]:
    """Return a row for each file of a run.

    Raises:
        ValueError: ``RunLayout`` names a file that is not described, or reversely.
    """
    members = {name for name in vars(RunLayout) if not name.startswith("_")} - NO_FILES - {"path"}
    if members ^ RUN_FILES.keys():
        raise ValueError(f"described and existing files of a run differ: {sorted(members ^ RUN_FILES.keys())}")
    rows = []
    for name, (writer, meaning) in RUN_FILES.items():
        static = inspect.getattr_static(RunLayout, name)
        path: Path = getattr(RUN, name) if not callable(static) else getattr(RUN, name)(1)
        shown = path.relative_to("RUN").as_posix()
        rows.append([f"`{shown}{'' if '.' in path.name else '/'}`", writer, meaning])
    return rows


@functools.cache
def _stored() -> dict[str, list[Any]]:
    """Return the JSON documents of the stored study by the name of their file within a run or the study."""
    found: dict[str, list[Any]] = {}
    with zipfile.ZipFile(STORED) as stored:
        for name in stored.namelist():
            if not name.endswith((".json", ".jsonl", ".lock")):
                continue
            below = Path(name).relative_to("runs/stored").parts
            place = "/".join(below[1:] if len(below) > 1 else below)
            text = stored.read(name).decode()
            documents = text.splitlines() if name.endswith(".jsonl") else [text]
            found.setdefault(place, []).extend(json.loads(document) for document in documents)
    return found


def _samples(name: str) -> list[Any]:
    return _stored().get(name, [])
