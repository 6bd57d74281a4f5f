"""What each command prints with ``--json``, for docs/reference/json.md.

The types of the fields are those of the commands' real answers about the study in ``tests/stored_study.zip``.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import launch
from jobs import terminal
from tests.reference.markdown import Meanings, fields_table
from tests.reference.run_files import STORED
from tests.training.studies import write_text

STUDY = {"study": "name of the study"}
RUN_STATE: Meanings = {
    "runs[].name": "name of the run",
    "runs[].id": "its folder",
    "runs[].state": "`pending`, `queued`, `running`, `done`, `stopped`, `failed` or `cancelled`",
    "runs[].epoch": ("number or null", "last finished epoch, from 0"),
    "runs[].epochs_done": ("number or null", "finished epochs"),
    "runs[].epochs_total": ("number or null", "epochs to train in all"),
    "runs[].best_val_ppl": ("number or null", "lowest validation perplexity so far"),
    "runs[].reason": ("text or null", "why it waits, was interrupted or stopped, or has failed"),
    "runs[].origin": ("text or null", "how it belongs to the manifest, as in filters; null if that is not known"),
}
DIFFERS = {"runs[].differs": ("object", "its values of the keys in which the runs differ, such as `optim.lr`")}
DOCUMENT: Meanings = {
    "schema_version": "version of this form; it rises when a field changes its meaning or disappears",
    "ok": "whether the exit code is 0",
    "data": ("object or null", "what the command found or did; below"),
    "error": ("object or null", "why the command failed: `code` (the exit code) and `message`"),
}
DATA: dict[str, Meanings] = {
    "plan": {
        **STUDY,
        "runs[].name": "name of the run",
        "runs[].id": "its folder",
        "runs[].fingerprint": "hash of its configuration",
        "runs[].directory": "path of its folder",
        "runs[].action": "`start`, `resume`, `extend` or `skip`",
        "runs[].reason": ("text or null", "why it is skipped or resumed; the epochs of an extension"),
        "runs[].epochs_done": "finished epochs",
        "runs[].config": "its configuration, as in `config.json`",
        "runs[].resources": "its `[resources]`, resolved",
        "runs[].parameters": "trainable parameters",
        "runs[].flops_per_token": "operations of a training step, per token",
        "runs[].memory_bytes": "estimated memory",
        "runs[].measured_memory_bytes": (
            "number or null",
            "memory that a run or canary of the same configuration has measured",
        ),
        "runs[].seconds": ("number or null", "estimated time; null if no speed is known"),
        "search": ("object or null", "the `[search]` table"),
        "totals.backend": "where the runs would go",
        "totals.max_parallel": ("number or null", "most runs at once"),
        "totals.gpu_hours": ("number or null", "sum of hours times GPUs over the runs to do"),
        "totals.wall_seconds": ("number or null", "time from the first start to the last end"),
        "totals.disk_bytes": "size of all checkpoints",
        "totals.unknown": ("text or null", "why hours and time are null"),
        "budget": (
            "object or null",
            "`gpu_hours` and `core_hours` of `[policy]`, each with `limit`, `spent` and `needs` of the runs to do "
            "(null: unknown)",
        ),
        "changes": (
            "list",
            "a line for each text and model of yours that has changed since runs were launched with it",
        ),
        "refused": ("text or null", "why `run` would refuse the text; the exit code is 2"),
        "scripts": ("list", "on SLURM: the scripts that would be submitted"),
    },
    "status": {
        **STUDY,
        **RUN_STATE,
        "runs[].share": (
            "number or null",
            "share of the running epoch that is done, from 0 to 1; this and what follows only while a run is running",
        ),
        "runs[].train_ppl": ("number or null", "perplexity of the running epoch so far, else of the last one"),
        "runs[].val_ppl": ("number or null", "perplexity of the last epoch"),
        "runs[].tokens_per_second": ("number or null", "training speed of a running run"),
        "runs[].expected_tokens_per_second": (
            "number or null",
            "speed that its launch has estimated from measured ones",
        ),
        "runs[].device": ("text or null", "GPU or processor, after the host if that is another one"),
        "runs[].seconds_left": ("number or null", "expected time of the epochs that a running or queued run lacks"),
        **DIFFERS,
        "seconds_left": ("number or null", "expected time until the last run ends; null if a time is not known"),
        "budget": ("object or null", "`gpu_hours` and `core_hours` of `[policy]`, each with `limit` and `spent`"),
    },
    "results": {
        **STUDY,
        "runs[].number": "number in the report, such as `3` or `3b`",
        "runs[].name": "name in the report",
        "runs[].id": "its folder",
        "runs[].state": "its state, as in `status`",
        "runs[].reason": ("text or null", "why it is in that state"),
        "runs[].val_ppl": ("number or null", "best validation perplexity"),
        "runs[].best_epoch": ("number or null", "its epoch, from 0"),
        "runs[].epochs_done": ("number or null", "finished epochs"),
        "runs[].test_ppl": ("number or null", "test perplexity with the parameters of that epoch; of finished runs"),
        "runs[].wall_seconds": ("number or null", "time of all finished epochs, validation included"),
        **DIFFERS,
    },
    "generate": {
        "study": ("text", "name of the study"),
        "name": ("text", "name of the run"),
        "id": ("text", "its folder"),
        "prompt": ("text", "the prompt as the model read it"),
        "text": ("text", "what the model wrote after it"),
        "unknown": ("list", "words of the prompt that are not in the vocabulary"),
    },
    "list": {
        "runs_dir": "folder of the studies",
        "studies[].study": "name of the study",
        "studies[].path": "its folder",
        "studies[].runs": "runs in it",
        "studies[].states": "state -> number of runs in it",
        "studies[].changed_at": ("text or null", "last change, ISO 8601"),
        "studies[].best_val_ppl": ("number or null", "lowest validation perplexity"),
        "studies[].problem": ("text or null", "what is wrong with the folder"),
    },
    "logs": {
        **STUDY,
        "runs[].name": "name of the run",
        "runs[].id": "its folder",
        "runs[].attempt": ("number or null", "latest attempt; null before the first"),
        "runs[].stdout": "last lines of stdout",
        "runs[].stderr": "last lines of stderr",
    },
    "cancel": {
        **STUDY,
        "runs": "the runs that were told to stop, each as in `status`",
        "runs[].problem": ("text or null", "why it may not have stopped; the exit code is 1"),
    },
    "clean": {
        **STUDY,
        "dry_run": "whether nothing was deleted",
        "freed_bytes": "size of what was deleted",
        "items[].kind": "kind of file, as in the table",
        "items[].path": "path in the study's folder",
        "items[].size_bytes": "its size",
        "items[].problem": ("text or null", "why it could not be deleted; the exit code is 1"),
    },
    "run --no-wait": {
        "study": ("text", "name of the study"),
        "launcher_pid": ("number", "process of the launcher; on this machine and on a Ray cluster"),
        "jobs": ("list", "job arrays; on SLURM"),
    },
    "behaviour": {
        "study": ("text", "name of the study"),
        "runs[].name": ("text", "name of the run"),
        "runs[].id": ("text", "its folder"),
        "runs[].state": ("text", "`done`, or what else became of its job"),
        "runs[].reason": ("text or null", "why there is no new result"),
        "runs[].judge": ("text or null", "folder of the run whose model rated its samples"),
        "runs[].samples": ("text or null", "file of its texts"),
    },
    "report": {
        "study": ("text", "name of the first study"),
        "studies": ("list", "names of all studies"),
        "report": ("text", "path of the page"),
        "behaviour": ("list", "what became of each behaviour job, as in `behaviour`"),
    },
    "propose": {
        "study": ("text", "name of the study"),
        "metric": ("text", "by which runs are compared; lower is better"),
        "sampler": ("text", "what proposes"),
        "finished": ("number", "runs that have finished and count"),
        "stopped": ("number", "runs that were stopped and count"),
        "diverged": ("number", "runs that have diverged and count"),
        "proposals[].name": ("text", "name of the run"),
        "proposals[].values": ("object", "its keys, as in a `[[run]]`"),
        "proposals[].nearest": (
            "object",
            "run with the nearest setting: `name`, `value` (null: diverged) and `distance`, from 0 to 1",
        ),
        "proposals[].predicted": ("number", "mean of the three nearest runs, weighted by 1/distance"),
    },
    "doctor": {
        "findings[].level": ("text", "`ok`, `note` or `bad`; with one `bad` the exit code is 3"),
        "findings[].subject": ("text", "what was checked"),
        "findings[].text": ("text", "what was found, and what to do"),
    },
    "data": {
        "directory": ("text", "folder of the corpus"),
        "fetched": ("list", "files that were downloaded"),
    },
}


def parts() -> dict[str, str]:
    """Return the fields of the document that all commands share, and those of each command's data."""
    sections = [f"### `{name}`\n\n{fields_table(meanings, *_data(name))}" for name, meanings in DATA.items()]
    return {"json-document": fields_table(DOCUMENT, *answers().values()), "json-data": "\n\n".join(sections)}


COMMANDS = {
    "plan": ["plan", "stored.toml", "--backend", "local"],
    "status": ["status", "stored"],
    "results": ["results", "stored"],
    "list": ["list"],
    "logs": ["logs", "stored"],
    "cancel": ["cancel", "stored", "--only", "name=rnn-adam"],
    "clean": ["clean", "stored", "--dry-run"],
}


@functools.cache
def answers() -> dict[str, Any]:
    """Return the documents that the commands print about the stored study."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        with zipfile.ZipFile(STORED) as stored:
            stored.extractall()
        write_text(Path("text"), train_lines=220)
        found = {command: _answer(words) for command, words in COMMANDS.items()}
    terminal.configure()
    return found


def _data(command: str) -> list[Any]:
    """Return the data of a command's answer, or nothing for a command that would start something."""
    return [answers()[command]["data"]] if command in COMMANDS else []


def _answer(words: list[str]) -> Any:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        code = launch.main([*words, "--json"])
    assert code == 0, (words, printed.getvalue())
    return json.loads(printed.getvalue())
