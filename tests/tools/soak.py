"""Run the whole suite again and again, quiet and under load, and show what failed: ``make soak N=10``.

Runs alternate: quiet, four busy processes, quiet, a writer that syncs, and so on. Each has a time zone and an order of
its own; the seed of the order is printed. Logs and results stay in the folder that is named at the beginning.
"""

import argparse
import contextlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""
SYNCING = """
import os, sys
parent = os.getppid()
while os.getppid() == parent:
    with open(sys.argv[1], "wb") as file:
        for _ in range(32):
            file.write(bytes(2**20))
            os.fsync(file.fileno())
"""
LOADS = {"quiet": [], "busy": [BUSY] * 4, "slow disk": [SYNCING]}
ORDER = ("quiet", "busy", "quiet", "slow disk")
ZONES = ("UTC", "Asia/Kolkata", "America/St_Johns")


@contextlib.contextmanager
def load(name: str, folder: Path) -> Iterator[None]:
    """Keep the machine busy while the block runs."""
    file = folder / "synced"
    programs = [subprocess.Popen([sys.executable, "-c", program, str(file)]) for program in LOADS[name]]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()
        file.unlink(missing_ok=True)


def suite(number: int, name: str, seed: int, folder: Path, words: list[str]) -> list[str]:
    """Run all tests once, print a line about that, and return the tests that failed."""
    results, log_file, began = folder / f"run-{number}.xml", folder / f"run-{number}.log", time.monotonic()
    argv = [sys.executable, "-m", "pytest", *words, "--shuffle", str(seed), f"--junitxml={results}"]
    with load(name, folder), log_file.open("wb") as log:
        env = {**os.environ, "TZ": ZONES[number % len(ZONES)], "CI": "true"}  # a missing program is a failure
        code = subprocess.run(argv, cwd=ROOT, env=env, stdout=log, stderr=log, check=False).returncode
    cases = list(ElementTree.parse(results).iter("testcase")) if results.exists() else []
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
    if code and not failed:
        failed = [f"exit code {code}: see {log_file}"]
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = f"{len(cases)} tests, {skipped} skipped, {len(failed)} failed"
    print(f"run {number:2}  {name:9}  --shuffle {seed:10}  {time.monotonic() - began:6.0f} s  {counts}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.soak",
        usage="%(prog)s RUNS [options] [-- words of pytest]",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument("runs", type=int)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the first order")
    parser.add_argument(
        "--loads", nargs="+", choices=LOADS, default=ORDER, help="in turn, instead of quiet every other time"
    )
    parser.add_argument("--rename-seconds", type=float, help="a planted race: each renaming of a file waits so long")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, words = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]  # behind "--": of pytest
    if options.rename_seconds:
        os.environ["SEQLM_TEST_RENAME_SECONDS"] = str(options.rename_seconds)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"logs and results: {folder}", flush=True)
    by_test: dict[str, list[str]] = {}
    good = 0
    for number, name in zip(range(1, options.runs + 1), itertools.cycle(options.loads), strict=False):
        failed = suite(number, name, options.seed + number - 1, folder, words)
        good += not failed
        for test in failed:
            by_test.setdefault(test, []).append(f"{number} ({name})")
    print("\nfailures by test:" if by_test else "\nno test has failed")
    for test, where in sorted(by_test.items(), key=lambda item: -len(item[1])):
        print(f"{len(where):3} of {options.runs}  {test}  in {', '.join(where)}")
    print(f"{good} of {options.runs} runs passed")
    return 0 if good == options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
