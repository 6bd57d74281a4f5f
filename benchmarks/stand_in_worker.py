"""A worker that does nothing, to measure the scheduler: ``python -S stand_in_worker.py RUN_DIR``.

Sleeps until its process is as old as ``stand-in.json`` says, then writes when it began and ended, as a worker's own
time is counted, and the first rank its result. Standard library alone, and little of it.
"""

import json
import os
import sys
import time


def process_start() -> float:
    """When this process began, in the seconds of ``time.time``; to a hundredth, as the kernel counts."""
    with open("/proc/self/stat") as file:  # noqa: PTH123 -- pathlib takes longer to import than all the rest
        ticks = int(file.read().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - (ticks + 0.5) / os.sysconf("SC_CLK_TCK")  # 0.5: on average
    return time.time() - age


def main() -> None:
    start = process_start()
    run, rank = sys.argv[1], os.environ.get("RANK", "0")
    with open(f"{run}/stand-in.json") as file:  # noqa: PTH123
        seconds = json.load(file)["seconds"]
    time.sleep(max(0.0, start + seconds - time.time()))
    if rank == "0":
        with open(f"{run}/result.json", "w") as file:  # noqa: PTH123
            file.write("{}")
    with open(f"{run}/span-{rank}.json", "w") as file:  # noqa: PTH123
        json.dump({"start": start, "end": time.time()}, file)


if __name__ == "__main__":
    main()
    os._exit(0)
