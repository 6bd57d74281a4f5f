"""The command line of the simulation."""

import argparse
import gc
import random
import time
from collections import Counter
from collections.abc import Sequence

from tests.simulation.accidents import ACTS, draw_accidents
from tests.simulation.kept import KEPT
from tests.simulation.known import known
from tests.simulation.planted import PLANTED
from tests.simulation.shrink import shrunk
from tests.simulation.story import Played, play


def main(argv: Sequence[str]) -> int:
    """Play stories; returns the exit code: 1 if a check has found something that is not known yet."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seed", nargs="?", type=int, help="play this one, and tell its story")
    parser.add_argument(
        "--shrink", action="store_true", help="tell the story with the fewest accidents that fails alike"
    )
    parser.add_argument("--kept", action="store_true", help="play the stories in which a fault was found and mended")
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="play so many (%(default)s)")
    parser.add_argument("--first", type=int, metavar="SEED", help="from this one on (0; with --minutes any)")
    parser.add_argument("--minutes", type=float, metavar="M", help="play so long, instead of so many")
    parser.add_argument("--only", nargs="+", choices=ACTS, default=(), metavar="ACCIDENT", help="draw these alone")
    parser.add_argument("--plant", choices=PLANTED, help="with this fault in the product, until it is found")
    options = parser.parse_args(argv)
    if options.plant is not None:
        PLANTED[options.plant][1]()
    if options.kept:
        return _play_kept()
    if options.seed is not None:
        played = play(options.seed, draw_accidents(options.seed, options.only))
        if options.shrink and played.problem is not None:
            played = shrunk(options.seed, draw_accidents(options.seed, options.only), played)
        tell(played)
        return 1 if is_new(played) else 0
    return _play_many(options)


def _play_kept() -> int:
    found = {fault: play(seed, accidents) for fault, (seed, accidents) in KEPT.items()}
    for fault, played in found.items():
        print(f"{'again' if played.problem else 'mended'}: {fault}")
        if played.problem is not None:
            tell(played)
    return 1 if any(played.problem for played in found.values()) else 0


def _play_many(options: argparse.Namespace) -> int:
    first = options.first
    if first is None:
        first = 0 if options.minutes is None else random.SystemRandom().randrange(10**9)
    print(f"from seed {first} on", flush=True)
    began, hours, number, new, seen = time.perf_counter(), 0.0, 0, 0, Counter[str]()
    while True:
        spent = time.perf_counter() - began
        if number >= options.seeds if options.minutes is None else spent > 60 * options.minutes:
            break
        seed = first + number
        played = play(seed, draw_accidents(seed, options.only))
        hours += played.seconds / 3600
        number += 1
        if played.problem is not None:
            fault = known(played.problem, played.accidents)
            seen["new" if fault is None else fault.story] += 1
            if fault is None:
                new += 1
                print(f"seed {seed}: {played.problem.splitlines()[0]}", flush=True)
                if options.plant is not None:
                    break
        gc.collect()
    spent = time.perf_counter() - began
    print(f"{number} stories, {hours:.0f} simulated hours in {spent:.0f} s: {number / spent:.1f} a second")
    for story, times in seen.most_common():
        print(f"{times} times: {story}")
    return 1 if new else 0


def is_new(played: Played) -> bool:
    return played.problem is not None and known(played.problem, played.accidents) is None


def tell(played: Played) -> None:
    """Print a story and how it ends."""
    print(*played.lines, sep="\n")
    print(played.problem or "all is well")
    if played.problem is not None and (fault := known(played.problem, played.accidents)) is not None:
        print(f"known: {fault.story}")
    print(f"{played.steps} calls in {played.seconds / 3600:.1f} simulated hours; digest {played.digest}")
