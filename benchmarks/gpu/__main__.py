"""One command for a GPU: tests, synchronisations, step times, kill and resume, sharing, the published study.

Each part leaves a JSON file in the folder of ``--out``. A call with the same folder does what is missing. Each case of
a part that uses the GPU itself runs in a process of its own, so that none inherits another's memory or a broken
context. See
``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.command_line import Parser, not_negative
from benchmarks.gpu.folder import PARTS, Budget, Results
from benchmarks.names import PRECISIONS
from jobs.attempt.supervisor import start_rank
from seqlm.errors import BackendError, FileError, SeqlmError, UsageError
from seqlm.files import make_directory, write_text

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
IN_CHILDREN = ("synchronisations", "steps", "choices", "ranks", "variants")
ROOT = Path(__file__).resolve().parents[2]
CPU_TESTS = ("tests/seqlm/training/test_gpu.py", "-k", "cpu and rnn")
"""In a rehearsal: some of the same bodies on the CPU."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing in the folder; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(arguments)
        with _terminated_is_interrupted():
            return _child(options) if options.child else _run(options, arguments)
    except SeqlmError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:18}{text}" for name, text in PARTS.items())
    parser = Parser(
        prog="python -m benchmarks.gpu",
        description="Measure everything about this GPU; a call with the same --out goes on where the last one ended.",
        epilog=f"parts, in their order:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("gpu-results"), help="default: gpu-results")
    parser.add_argument("--minutes", type=not_negative, metavar="N", help="end within N minutes; default: no limit")
    parser.add_argument("--parts", nargs="+", metavar="PART", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--ptb", type=Path, metavar="PATH", help="zip or folder of the Penn Treebank (else SEQLM_DATA)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the published runs; fp32")
    parser.add_argument("--rehearse", action="store_true", help="go through all parts on the CPU, at tiny sizes")
    parser.add_argument("--child", choices=IN_CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM, of ``timeout`` or a scheduler, counts as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- the parts -----------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    from benchmarks.gpu.study import find_ptb
    from benchmarks.gpu.summary import as_markdown

    budget = Budget(options.minutes)
    results = Results(options.out.absolute())
    data = find_ptb(options.ptb) if "study" in options.parts and not options.rehearse else None
    device = _device(rehearse=options.rehearse)
    results.require_same_device(device["name"])
    make_directory(results.folder)
    circumstances = _circumstances(options, arguments, device)
    try:
        for part in options.parts:
            if results.is_complete(part) and not (part == "study" and _is_other_study(results, options)):
                _say(f"{part}: done before")
            elif budget.seconds_left <= 0:
                _say(f"{part}: no time left")
            else:
                _say(f"{part}: {PARTS[part]}")
                _do(part, results, budget, {**results.read(part), **circumstances, "part": part}, options, data)
    finally:
        write_text(results.folder / "summary.md", as_markdown(results))
    return _conclude(results, options.parts)


def _is_other_study(results: Results, options: argparse.Namespace) -> bool:
    return bool(results.read("study").get("precision") != options.precision)


def _do(
    part: str,
    results: Results,
    budget: Budget,
    document: dict[str, Any],
    options: argparse.Namespace,
    data: Path | None,
) -> None:
    """Do one part. What goes wrong in it is in its file, and the next part is done all the same."""
    document["error"] = None
    document["complete"] = False
    document["failures"] = []

    def save() -> None:
        results.write(part, document)

    save()
    kind = "cpu" if options.rehearse else "cuda"
    try:
        match part:
            case "tests":
                _tests(document, budget, rehearse=options.rehearse)
            case "resume":
                from benchmarks.gpu.workers import resume

                resume(document, save, budget, kind, _say)
            case "sharing":
                from benchmarks.gpu.workers import sharing

                sharing(document, save, budget, kind, _say)
            case "study":
                from benchmarks.gpu.study import study, tiny_text

                if options.rehearse:
                    data = tiny_text(results.folder)
                study(document, save, budget, results, data=data, precision=options.precision, say=_say)
            case _:
                _cases(part, document, save, results, budget, options)
    except FileError:
        raise  # the disk is full, or the folder is gone: nothing can be kept
    except SeqlmError as error:
        document["error"] = str(error).splitlines()[0]
        _say(f"{part}: {document['error']}")
    except Exception as error:  # a fault of ours in one part must not cost the minutes of the others
        document["error"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    save()


def _tests(document: dict[str, Any], budget: Budget, *, rehearse: bool) -> None:
    """Run ``pytest -m gpu`` and keep its summary; in a rehearsal the same tests on the CPU.

    Raises:
        BackendError: pytest is not installed, or the tests did not end in time.
    """
    if importlib.util.find_spec("pytest") is None:
        raise BackendError("pytest is not installed here; install it to run the tests")
    chosen = list(CPU_TESTS) if rehearse else ["-m", "gpu"]
    # Warnings of a torch that the tests were not written with are no failures.
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *chosen]
    document["pytest_command"] = shlex.join(["python", *argv[1:]])
    seconds = None if math.isinf(budget.seconds_left) else budget.seconds_left
    with tempfile.TemporaryFile() as log:
        try:
            exit_code = _wait(start_rank(argv, {}, str(ROOT), log, log), seconds)
        except subprocess.TimeoutExpired:
            raise BackendError("the tests did not end in the time that was left") from None
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    lines = output.replace(str(ROOT), ".").strip().splitlines() or ["no output"]
    counted = [
        line for line in lines if re.search(r"\d (passed|failed|skipped|deselected|errors?)\b.* in [\d.]+s", line)
    ]
    document["summary"] = (counted or lines)[-1].strip("= ")
    document["failures"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    document["exit_code"] = exit_code
    document["output"] = lines[-400:] if exit_code else lines[-30:]
    if exit_code not in (0, 1):
        raise BackendError(f"pytest ended with exit code {exit_code}: {document['summary']}")
    document["complete"] = True
    _say(f"tests: {document['summary']}")


def _cases(
    part: str,
    document: dict[str, Any],
    save: Callable[[], None],
    results: Results,
    budget: Budget,
    options: argparse.Namespace,
) -> None:
    """Measure each case that is missing or has failed, in a process of its own, while there is time."""
    import torch

    from benchmarks.gpu.steps import SECONDS_OF_A_CASE, cases

    names = list(cases(part, document, torch.device("cpu" if options.rehearse else "cuda")))
    document.setdefault("cases", {})
    save()
    for name in names:
        if document["cases"].get(name, {}).get("error", "missing") is None:
            continue
        if budget.seconds_left < SECONDS_OF_A_CASE:
            break
        problem = _in_a_child(part, name, results, options)
        document.update(results.read(part))
        if problem is not None:
            document["cases"][name] = {"name": name, "error": problem}
            save()
        if error := document["cases"][name]["error"]:
            _say(f"{name}: {error}")
    records = {name: document["cases"].get(name, {"error": "missing"}) for name in names}
    document["complete"] = all(record["error"] is None for record in records.values())
    failures = {name: record["error"] or record.get("waits_at") for name, record in document["cases"].items()}
    document["failures"] = [f"{name}: {text}" for name, text in failures.items() if text]


def _in_a_child(part: str, case: str, results: Results, options: argparse.Namespace) -> str | None:
    """Measure a case in a process of its own, which puts it into the part's file. Return how the process failed."""
    argv = [sys.executable, "-m", "benchmarks.gpu", "--child", part, "--case", case, "--out", str(results.folder)]
    argv += ["--rehearse"] if options.rehearse else []
    with tempfile.TemporaryFile() as log:
        exit_code = _wait(start_rank(argv, {}, str(ROOT), sys.stdout.buffer, log), None)
        log.seek(0)
        last = (log.read().decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
    return f"its process ended with exit code {exit_code}: {last}" if exit_code else None


def _wait(process: subprocess.Popen[bytes], seconds: float | None) -> int:
    """Return the exit code of a process; kill it if it takes longer or this process is interrupted.

    Raises:
        subprocess.TimeoutExpired: it has taken longer.
    """
    try:
        return process.wait(seconds)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _child(options: argparse.Namespace) -> int:
    import torch

    from benchmarks.gpu.steps import run_case

    torch.set_float32_matmul_precision("highest")
    if options.rehearse:
        torch.set_num_threads(1)  # tiny steps gain nothing from more, and wait for them on a busy machine
    device = torch.device("cpu" if options.rehearse else "cuda")
    run_case(options.child, options.case, Results(options.out), device)
    return 0


# -- circumstances and the end ---------------------------------------------------------------------------------------


def _device(*, rehearse: bool) -> dict[str, Any]:
    """Return what is known of the device. Asked of a process that ends: this one shall hold nothing of the GPU.

    Raises:
        UsageError: torch sees no GPU.
    """
    program = (
        "import json, torch; from benchmarks.gpu.card import describe; "
        f"there = {rehearse} or torch.cuda.is_available(); "
        f"print(json.dumps(describe(torch.device({'cpu' if rehearse else 'cuda'!r})) if there else None))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"torch cannot use the device: {last}")
    found: dict[str, Any] | None = json.loads(answer.stdout.strip().splitlines()[-1])
    if found is None:
        raise UsageError("torch sees no GPU here; --rehearse goes through all parts on the CPU, at tiny sizes")
    if rehearse:
        return {**found, "name": f"rehearsal on {found['name']}"}
    return {**found, "driver": _driver()}


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return answer.strip().splitlines()[0].strip()
    return None


def _circumstances(options: argparse.Namespace, arguments: list[str], device: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.results import circumstances

    kept = [f"--precision {options.precision}"] if options.precision != "fp32" else []
    kept += ["--rehearse"] if options.rehearse else []
    return {
        "schema_version": 1,
        "benchmark": "gpu",
        "command": " ".join(["python -m benchmarks.gpu", *kept]),  # without folders, which are the machine's business
        **circumstances(),
        "device": device,
        "rehearsal": options.rehearse,
    }


def _conclude(results: Results, parts: Sequence[str]) -> int:
    documents = {part: results.read(part) for part in parts}
    left = [part for part, document in documents.items() if not document.get("complete")]
    failures = [f"{part}: {text}" for part, document in documents.items() for text in document.get("failures", ())]
    failures += [f"{part}: {document['error']}" for part, document in documents.items() if document.get("error")]
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    if left:
        _say(f"not complete: {', '.join(left)}; the same command goes on from here")
    return EXIT_FAILED if failures else 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
