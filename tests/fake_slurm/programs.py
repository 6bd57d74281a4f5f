"""sbatch, squeue, sacct, scancel, scontrol, sinfo: ``python programs.py NAME FOLDER WORD...``.

They know what submitit and seqlm ask, and answer in the words of SLURM 24.11; a test holds them to a real one. What
they do not know they refuse, with exit code 70.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from room import ACTIVE, NODES, Job, Room, indices_of, opened, ranges_of  # type: ignore[import-not-found]

NO_CONTROLLER = "Unable to contact slurm controller (connect failure)"
INVALID = "Invalid job id specified"


class Said(Exception):  # noqa: N818 -- it ends a program, well or not
    """What a program ends with."""

    def __init__(self, code: int, error: str) -> None:
        self.code, self.error = code, error


def unknown(what: str) -> NoReturn:
    raise Said(70, f"the fake SLURM does not know: {what}")


def options(words: list[str], with_value: dict[str, str], flags: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Options (by their long names; lists joined by commas) and the other words. ``-j1``, ``-j 1``, ``--jobs=1``."""
    found: dict[str, str] = {}
    rest, todo = [], list(words)
    while todo:
        word = todo.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            rest.append(word)
        elif word.startswith("--") and (name[2:] in with_value.values() or not with_value):
            key = name[2:]
            value = value if equals or not todo or not with_value else todo.pop(0)
            found[key] = f"{found[key]},{value}" if key in found and key == "jobs" else value
        elif word.startswith("--") and name[2:] in flags.values():
            found[name[2:]] = ""
        elif word[1:2] in with_value:
            key = with_value[word[1:2]]
            value = word[2:] or todo.pop(0)
            found[key] = f"{found[key]},{value}" if key in found and key == "jobs" else value
        elif word[1:] in flags:
            found[flags[word[1:]]] = ""
        else:
            unknown(word)
    return found, rest


# -- submission ------------------------------------------------------------------------------------------------------

SBATCH_SHORT = {
    "o": "output",
    "e": "error",
    "p": "partition",
    "J": "job-name",
    "n": "ntasks",
    "N": "nodes",
    "t": "time",
}
SBATCH_SHORT |= {"a": "array", "c": "cpus-per-task", "A": "account", "q": "qos", "w": "nodelist", "d": "dependency"}


def split_sbatch(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """As sbatch reads its options: whatever follows the script is the script's."""
    found: dict[str, str] = {}
    todo = list(words)
    while todo and todo[0].startswith("-"):
        word = todo.pop(0)
        name, _, value = word.partition("=")
        if word.startswith("--"):
            found[name[2:]] = value
        else:
            found[SBATCH_SHORT.get(word[1], word[1])] = word[2:] or (todo.pop(0) if todo else "")
    return found, todo


def sbatch(room: Room, words: list[str]) -> str:
    given, rest = split_sbatch(words)
    if "version" in given:
        return "slurm-wlm 24.11.5\n"
    if not rest:
        unknown("sbatch without a script")
    try:
        script = Path(rest[0]).read_text("utf-8")
    except OSError:
        raise Said(1, f"sbatch: error: Unable to open file {rest[0]}") from None
    in_script: dict[str, str] = {}
    for line in script.splitlines()[1:]:
        if line.startswith("#SBATCH"):
            in_script |= split_sbatch(shlex.split(line.removeprefix("#SBATCH")))[0]
        elif line.strip() and not line.startswith("#"):
            break
    chosen = {**in_script, **given}
    failed = "sbatch: error: Batch job submission failed: "
    if not room.controller:
        raise Said(1, failed + NO_CONTROLLER)
    if chosen.get("partition", "main") != "main":
        wrong = f"sbatch: error: invalid partition specified: {chosen['partition']}\n"
        raise Said(1, f"{wrong}{failed}Invalid partition name specified")
    spec, _, limit = chosen.get("array", "").partition("%")
    indices = indices_of(spec) if spec else []
    if indices and max(indices) >= room.max_array_size:
        raise Said(1, failed + "Invalid job array specification")
    if len([job for job in room.jobs if not job.ended]) + max(1, len(indices)) > room.max_submitted:
        limits = "(job submit limit, user's size and/or time limits)"
        why = f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{failed}Job violates accounting/QOS policy {limits}"
        raise Said(1, why)
    number = room.new_number()
    kept = {key: value for key, value in chosen.items() if key != "parsable"}
    room.environments[str(number)] = {**os.environ} if chosen.get("export", "ALL") == "ALL" else {}
    if indices:
        for index in indices:
            task = Job(number=number, array=number, index=index, limit=int(limit or 0), script=script, options=kept)
            room.jobs.append(task)
    else:
        room.jobs.append(Job(number=number, script=script, options=kept))
    return f"{number}\n" if "parsable" in given else f"Submitted batch job {number}\n"


# -- questions -------------------------------------------------------------------------------------------------------


def squeue(room: Room, words: list[str]) -> str:
    short = {"t": "states", "j": "jobs", "o": "format", "u": "user", "p": "partition", "n": "name"}
    given, rest = options(words, short, {"h": "noheader", "r": "array"})
    if rest or "noheader" not in given or "format" not in given:
        unknown(f"squeue {words}; it needs -h and -o")
    if not room.controller:
        raise Said(1, f"slurm_load_jobs error: {NO_CONTROLLER}")
    jobs = [job for job in room.jobs if job.known]
    asked = [word for word in given.get("jobs", "").split(",") if word]
    if asked:
        wanted = {job.id for word in asked for job in room.found(word)}
        if not wanted and len(asked) == 1:
            raise Said(1, f"slurm_load_jobs error: {INVALID}")
        jobs = [job for job in jobs if job.id in wanted]
    states = given.get("states", "PENDING,RUNNING,COMPLETING").upper().split(",")
    jobs = [job for job in jobs if "ALL" in states or job.state in states]
    rows = []
    for group in groups(jobs, apart="array" in given):
        job = group[0]
        values = {
            "i": job.id if "array" in given else label(group),
            "A": job.number,
            "T": job.state,
            "N": job.node,
            "r": job.reason,
            "P": "main",
        }
        values |= {
            "j": job.options.get("job-name", ""),
            "F": job.parent,
            "K": "N/A" if job.index is None else job.index,
        }
        rows.append(formatted(given["format"], values))
    return "".join(rows)


def groups(jobs: list[Job], *, apart: bool) -> list[list[Job]]:
    """Tasks of an array that have never run are one, unless each is wanted."""
    found: dict[Any, list[Job]] = {}
    for job in jobs:
        together = not apart and job.array is not None and job.state == "PENDING" and not job.started
        found.setdefault((job.array, job.reason) if together else job.id, []).append(job)
    return list(found.values())


def label(group: list[Job]) -> str:
    job = group[0]
    if job.array is None or job.started or job.state != "PENDING" or job.index is None:
        return job.id
    limit = f"%{job.limit}" if job.limit else ""
    return f"{job.array}_[{ranges_of([one.index for one in group if one.index is not None])}{limit}]"


def formatted(text: str, values: dict[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            unknown(f"format %{match[1]}")
        return str(values[match[1]])

    return re.sub(r"%(\w)", value, text) + "\n"


def sacct(room: Room, words: list[str]) -> str:
    flags = {"n": "noheader", "P": "parsable2", "X": "allocations", "D": "duplicates"}
    given, rest = options(words, {"j": "jobs", "o": "format", "S": "starttime"}, flags)
    if rest or "parsable2" not in given:
        unknown(f"sacct {words}; it needs --parsable2")
    if not room.accounting:
        raise Said(1, "Slurm accounting storage is disabled")
    columns = given["format"].split(",")
    rows = [] if "noheader" in given else ["|".join(columns)]
    asked = given["jobs"].split(",")
    jobs = [job for job in room.jobs if {job.id, str(job.parent), str(job.number)} & set(asked)]
    for group in groups(jobs, apart=False):
        job = group[0]
        by = " by 0" if job.state == "CANCELLED" else ""
        names = {"JobID": label(group) if job.array is not None else job.id, "State": job.state + by}
        names |= {"ExitCode": f"{job.exit_code}:0"}
        steps = (
            []
            if "allocations" in given or not job.node
            else [{**names, "JobID": f"{job.id}.batch", "State": job.state}]
        )
        for row in (names, *steps):
            if not set(columns) <= set(row):
                unknown(f"sacct -o {given['format']}")
            rows.append("|".join(row[column] for column in columns))
    return "".join(f"{row}\n" for row in rows)


def sinfo(room: Room, words: list[str]) -> str:
    given, _ = options(
        words, {"o": "format", "p": "partition"}, {"h": "noheader", "a": "all", "e": "exact", "N": "Node"}
    )
    if "noheader" not in given or "format" not in given:
        unknown(f"sinfo {words}; it needs -h and -o")
    if not room.controller:
        raise Said(1, f"slurm_load_partitions: {NO_CONTROLLER}")
    busy = {job.node for job in room.jobs if job.state in ACTIVE}
    used = len([node for node in NODES if node in busy])
    total = len(NODES)
    values = {"P": "main*", "a": "up", "l": "infinite", "F": f"{used}/{total - used}/0/{total}", "c": 4, "m": 2000}
    values |= {"G": "gpu:fake:2", "s": "1-infinite", "D": total}
    return formatted(given["format"], values)


# -- orders ----------------------------------------------------------------------------------------------------------


def scancel(room: Room, words: list[str]) -> str:
    flags = {"Q": "quiet", "f": "full", "b": "batch"}
    given, rest = options(words, {"s": "signal", "u": "user"}, flags)
    for word in rest:
        if not re.fullmatch(r"\d+(_(\d+|\[.+\]))?", word):
            raise Said(1, f"scancel: error: Invalid job id {word}")
        if not room.controller:
            raise Said(8, f"scancel: error: Kill job error on job id {word}: {NO_CONTROLLER}")
        for job in room.found(word):
            if "signal" in given:
                job.signals.append(given["signal"].removeprefix("SIG"))
            elif not job.ended:
                room.end(job, "CANCELLED")
    return ""


def scontrol(room: Room, words: list[str]) -> str:
    as_json = "--json" in words
    match [word for word in words if word != "--json"]:
        case ["ping"]:
            if room.controller:
                return "Slurmctld(primary) at fake is UP\n"
            raise Said(1, "")
        case ["requeue", *jobs]:
            for word in ",".join(jobs).split(","):
                requeue(room, word)
            return ""
        case ["show", "hostnames", nodes]:
            return "".join(f"{node}\n" for node in nodes.split(","))
        case ["show", "job", word] if as_json:
            found = room.found(word) if room.controller else []
            return json.dumps({"jobs": [described(job) for job in found]})
        case ["show", "config"]:
            if not room.controller:
                raise Said(1, f"slurm_load_ctl_conf error: {NO_CONTROLLER}")
            kind = "accounting_storage/slurmdbd" if room.accounting else "(null)"
            values = {"AccountingStorageType": kind, "MaxArraySize": room.max_array_size, "MaxJobCount": 10000}
            return "".join(f"{key:<23} = {value}\n" for key, value in {**values, "SLURM_VERSION": "24.11.5"}.items())
        case other:
            unknown(f"scontrol {other}")


def requeue(room: Room, word: str) -> None:
    if not room.controller:
        raise Said(1, f"Unexpected message received for job {word}")
    jobs = room.found(word)
    if not jobs:
        raise Said(1, f"{word}: {INVALID}" if "_" in word else f"{INVALID} for job {word}")
    for job in jobs:
        if job.state == "PENDING":
            alike = [other for other in room.jobs if other.number == job.number and other.state == "PENDING"]
            name = job.id if job.array is None else f"{job.array}_{ranges_of([other.index or 0 for other in alike])}"
            raise Said(1, f"{name}: Job is pending execution")
        room.requeue(job)


def described(job: Job) -> dict[str, Any]:
    def number(value: int | None) -> dict[str, Any]:
        return {"set": value is not None, "infinite": False, "number": value or 0}

    return {
        "job_id": job.number,
        "array_job_id": number(job.array or 0),
        "array_task_id": number(job.index),
        "job_state": [job.state],
        "state_reason": job.reason,
        "restart_cnt": job.restarts,
        "nodes": job.node,
        "exit_code": {"status": ["ERROR" if job.exit_code else "SUCCESS"], "return_code": number(job.exit_code)},
    }


PROGRAMS: dict[str, Callable[[Room, list[str]], str]] = {
    "sbatch": sbatch,
    "squeue": squeue,
    "sacct": sacct,
    "sinfo": sinfo,
    "scancel": scancel,
    "scontrol": scontrol,
}


def main() -> int:
    name, folder, *words = sys.argv[1:]
    with opened(Path(folder)) as room:
        with (Path(folder) / "calls.jsonl").open("a", encoding="utf-8") as calls:
            calls.write(json.dumps([name, *words]) + "\n")
        try:
            sys.stdout.write(PROGRAMS[name](room, words))
        except Said as said:
            if said.error:
                print(said.error, file=sys.stderr)
            return said.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
