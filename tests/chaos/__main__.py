"""Break things on purpose: ``python -m tests.chaos --minutes 10 [--seed N] [--json FILE]``.

Runs a study undisturbed, then again and again with accidents, and compares bit for bit. Prints its seed and every
accident with its time; ``--seed`` draws the same accidents at the same times again. As root, the disturbed studies lie
on a small file system that gets full and read-only; otherwise these accidents are left out, which is said.

Exit codes: 0 every study came to what the quiet one came to; 1 one did not.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from slurm.testcluster import ClusterOptions, LoopbackCluster
from tests.chaos.disk import Disk, may_mount
from tests.chaos.faults import ALL, NEED_ROOT, ON_SLURM
from tests.chaos.loop import Loop, Outcome
from tests.chaos.quiet import quiet_study
from tests.chaos.study import Lab

DISK_MEGABYTES = 64


def main(argv: list[str]) -> int:
    """Run the loop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Disturb a study and compare its end.")
    parser.add_argument("--minutes", type=float, default=10, help="how long to disturb (default: 10)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of an earlier run")
    parser.add_argument("--faults", type=int, metavar="N", help="stop after N accidents instead")
    parser.add_argument("--every", type=float, default=6, metavar="SECONDS", help="mean time between two (default: 6)")
    parser.add_argument(
        "--backend", choices=("local", "ray", "slurm"), default="local", help="slurm: a test cluster (default: local)"
    )
    parser.add_argument("--pool", action="store_true", help="on SLURM: two jobs share out the runs")
    kinds = list(dict.fromkeys(kind.name for kind in (*ALL, *ON_SLURM)))
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, metavar="KIND", help="these alone")
    parser.add_argument("--short", action="store_true", help="three small runs instead of twelve")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there")
    parser.add_argument("--keep", action="store_true", help="keep the folder, even if all is well")
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # as in all tests: programs are forks of a process that has one thread
    folder = Path(tempfile.mkdtemp(prefix="seqlm-chaos-"))
    print(f"seed {options.seed}, in {folder}", flush=True)
    started = time.monotonic()
    epochs, lines, step_seconds = (3, 400, 0.04) if options.short else (8, 2000, 0.0)  # the short one waits for faults
    cluster = LoopbackCluster(ClusterOptions(nodes=2, cpus=4, gpus=0)) if options.backend == "slurm" else None
    if cluster is not None:
        cluster.start()
    try:
        return _disturb(options, folder, started, (epochs, lines, step_seconds), cluster)
    finally:
        if cluster is not None:
            cluster.close()


def _disturb(
    options: argparse.Namespace,
    folder: Path,
    started: float,
    sizes: tuple[int, int, float],
    cluster: LoopbackCluster | None,
) -> int:
    epochs, lines, step_seconds = sizes
    lab = Lab.create(
        folder,
        few=options.short,
        epochs=epochs,
        lines=lines,
        backend=options.backend,
        pool=options.pool,
        variables={} if cluster is None else cluster.env,
    )
    quiet = quiet_study(lab, epochs)
    quiet_seconds = time.monotonic() - started
    print(
        f"quiet study: {len(quiet.outcomes)} runs, {sum(quiet.steps.values())} steps, {quiet_seconds:.0f} s", flush=True
    )
    disk = Disk(folder / "disk", DISK_MEGABYTES) if may_mount() else None
    if disk is None:
        print("without the right to mount: no full and no read-only disk", flush=True)
    loop = Loop(
        lab,
        quiet,
        disk,
        kinds=tuple(
            kind
            for kind in (ALL if cluster is None else ON_SLURM)
            if kind.name in options.kinds and (disk or kind not in NEED_ROOT)
        ),
        seed=options.seed,
        minutes=options.minutes,
        mean_seconds=options.every,
        most_faults=options.faults,
        step_seconds=step_seconds,
        tell=lambda line: print(line, flush=True),
    )
    try:
        outcome = loop.run()
    finally:
        if disk is not None:
            disk.close()
    report = {**outcome.to_dict(), "minutes": round((time.monotonic() - started) / 60, 1)}
    print(summary(outcome), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if not outcome.findings and not options.keep:
        shutil.rmtree(folder)
    return 1 if outcome.findings else 0


def summary(outcome: Outcome) -> str:
    """The outcome for a person."""
    faults = ", ".join(f"{name} {count}" for name, count in sorted(outcome.faults.items()))
    lines = [
        f"{outcome.faults.total()} accidents in {outcome.studies} studies, {outcome.launchers} launchers: {faults}",
        f"extra work: {outcome.extra_work_percent:.1f} % ({outcome.steps_computed} steps computed, "
        f"{outcome.steps_needed} needed)",
    ]
    if outcome.without_a_target:
        lines.append(f"found nothing to hit: {dict(outcome.without_a_target)}")
    for name, found in asdict(outcome.findings).items():
        lines.append(f"{name.replace('_', ' ')}: {len(found)}")
        lines += [f"    {line}" for line in found[:20]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
