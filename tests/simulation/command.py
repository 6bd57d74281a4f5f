"""The command line of the simulation."""

import argparse
import contextlib
import gc
import itertools
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool
from typing import Any

from tqdm import tqdm

from tests.simulation.accidents import ACTS, Accident, draw_accidents
from tests.simulation.kept import KEPT
from tests.simulation.known import known
from tests.simulation.planted import PLANTED
from tests.simulation.shrink import shrunk
from tests.simulation.story import Played, play
from tests.simulation.study import Study, draw_study

MOST_TOLD = 5
"""Of so many new faults the shrunk stories are told at the end."""


def main(argv: Sequence[str]) -> int:
    """Play stories; returns the exit code: 1 if a check has found something that is not known yet."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seed", nargs="?", type=int, help="play this one, and tell its story")
    parser.add_argument(
        "--shrink", action="store_true", help="tell the story with the fewest accidents that fails alike"
    )
    parser.add_argument("--runs", type=int, metavar="N", help="with SEED: play a study of so many, without accidents")
    parser.add_argument("--kept", action="store_true", help="play the stories in which a fault was found and mended")
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="play so many (%(default)s)")
    parser.add_argument("--first", type=int, metavar="SEED", help="from this one on (0; with --minutes any)")
    parser.add_argument("--minutes", type=float, metavar="M", help="play so long, instead of so many")
    parser.add_argument("--only", nargs="+", choices=ACTS, default=(), metavar="ACCIDENT", help="draw these alone")
    parser.add_argument("--plant", choices=PLANTED, help="with this fault in the product")
    parser.add_argument("--planted", action="store_true", help="see that faults planted in the product are found")
    parser.add_argument("--exitfirst", action="store_true", help="end at the first new fault, and do not shrink it")
    parser.add_argument("--processes", type=int, metavar="N", help="play so many at a time (one on each core)")
    options = parser.parse_args(argv)
    gc.freeze()  # the modules, which stay
    if options.plant is not None:
        PLANTED[options.plant].plant()
    if options.planted:
        return _find_planted(options.seeds)
    if options.kept:
        return _play_kept()
    if options.seed is not None and options.runs is not None:
        tell(play(options.seed, [], replace(draw_study(options.seed), runs=options.runs, is_decided=False)))
        return 0
    if options.seed is not None:
        played = play(options.seed, draw_accidents(options.seed, options.only))
        if options.shrink and played.problem is not None:
            played = shrunk(played)
        tell(played)
        return 1 if is_new(played) else 0
    return _play_many(options)


_FORK = multiprocessing.get_context("fork")
_FREE_CORES = _FORK.SimpleQueue()
"""Those on which no story is played."""


def _pool(**options: Any) -> Pool:
    """Return a pool with a process for each core."""
    cores = sorted(os.sched_getaffinity(0))
    for core in cores:
        _FREE_CORES.put(core)
    return _FORK.Pool(len(cores), **options)


@contextlib.contextmanager
def _on_a_core() -> Iterator[None]:
    """Have this process of a pool stay on a core that no other one has (see :func:`_stay_on_a_core`)."""
    core = _FREE_CORES.get()
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        _FREE_CORES.put(core)


def _play_kept() -> int:
    """Play the kept stories, each in several orders."""
    is_found = False
    with _pool() as pool:
        for kept, played in pool.imap(_play_in_orders, range(len(KEPT)), chunksize=1):
            if played is not None:
                is_found = True
                print(f"again: {kept}")
                tell(played)
    return 1 if is_found else 0


def _play_in_orders(place: int) -> tuple[str, Played | None]:
    """Return the fault of a kept story, and how it ends where it is found again."""
    kept = KEPT[place]
    with _on_a_core():
        for order in kept.orders:
            played = play(order, kept.accidents, kept.study)
            gc.collect()
            if is_new(played):
                return kept.fault, played
    return kept.fault, None


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to play until a fault is found that the product is given for that."""

    name: str
    plant: Callable[[], None]
    check: str
    stories: Sequence[tuple[int, Sequence[Accident], Study | None]]


def _find_planted(seeds: int) -> int:
    """Plant one fault after the other, each in a process of its own, and play until it is found."""
    searches = [
        Search(
            name=name,
            plant=planted.plant,
            check=planted.check,
            stories=[
                (
                    seed,
                    draw_accidents(seed, planted.accidents),
                    replace(draw_study(seed, is_pool=True), **planted.study),
                )
                for seed in range(planted.first, planted.first + seeds)
            ],
        )
        for name, planted in PLANTED.items()
    ]
    for kept in KEPT:
        stories = [(order, kept.accidents, kept.study) for order in kept.orders]
        searches.append(Search(name=kept.name, plant=kept.undo, check=kept.check, stories=stories))
    is_missed = False
    with _pool(maxtasksperchild=1) as pool:
        for line, is_found in pool.imap_unordered(_find, searches, chunksize=1):
            print(line, flush=True)
            is_missed = is_missed or not is_found
    return 1 if is_missed else 0


def _find(search: Search) -> tuple[str, bool]:
    """Play until the check for it finds a planted fault; return what was seen, and whether it was found."""
    search.plant()
    began = time.perf_counter()
    with _on_a_core():
        for seed, accidents, study in search.stories:
            played = play(seed, accidents, study)
            gc.collect()
            if played.check == search.check and is_new(played):
                spent = time.perf_counter() - began
                return f"{search.name}: found, seed {seed}, {spent:.0f} s: {played.problem}", True
    return f"{search.name}: not found in {len(search.stories)} stories", False


# -- many --------------------------------------------------------------------------------------------------------------


def _play_many(options: argparse.Namespace) -> int:
    first = options.first
    if first is None:
        first = 0 if options.minutes is None else random.SystemRandom().randrange(10**9)
    print(f"from seed {first} on", flush=True)
    began, hours, number = time.perf_counter(), 0.0, 0
    times: Counter[str] = Counter()
    new: list[Played] = []
    total = options.seeds if options.minutes is None else None
    description = None if options.minutes is None else f"for {options.minutes:g} min"
    with tqdm(total=total, desc=description, unit=" stories", disable=None) as bar:
        for played in _all_of(options, first):
            number += 1
            hours += played.seconds / 3600
            bar.update()
            if played.problem is None:
                continue
            fault = known(played)
            times["new" if fault is None else fault.story] += 1
            if fault is None:
                new.append(played)
                bar.write(f"seed {played.seed}: {played.problem.splitlines()[0]}")
                if options.exitfirst:
                    return 1
    spent = time.perf_counter() - began
    print(f"{number} stories, {hours:.0f} simulated hours in {spent:.0f} s: {number / spent:.1f} a second")
    for story, count in times.most_common():
        print(f"{count} times: {story}")
    for played in list({one.check: one for one in new}.values())[:MOST_TOLD]:
        print(f"\nThe shortest story of seed {played.seed} in which {played.check} fails:")
        tell(shrunk(played))
    return 1 if new else 0


def _all_of(options: argparse.Namespace, first: int) -> Iterator[Played]:
    """Play the seeds that are asked for, on several cores, and yield each when it is over."""
    number = options.processes or len(os.sched_getaffinity(0))
    seeds = iter(range(first, first + options.seeds)) if options.minutes is None else itertools.count(first)
    until = time.monotonic() + 60 * options.minutes if options.minutes is not None else float("inf")
    context = multiprocessing.get_context("fork")
    cores = context.Queue()
    for core in itertools.islice(itertools.cycle(sorted(os.sched_getaffinity(0))), number):
        cores.put(core)
    with ProcessPoolExecutor(number, context, _stay_on_a_core, (cores,)) as executor:
        at_work: set[Future[Played]] = set()
        try:
            while True:
                while len(at_work) < 2 * number and time.monotonic() < until:
                    if (seed := next(seeds, None)) is None:
                        break
                    at_work.add(executor.submit(_play, seed, options.only))
                if not at_work:
                    return
                over, at_work = wait(at_work, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in over)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _stay_on_a_core(cores: "multiprocessing.Queue[int]") -> None:
    """Have a process stay where it is: its threads hand over to one another three times as fast."""
    os.sched_setaffinity(0, {cores.get()})


def _play(seed: int, only: Sequence[str]) -> Played:
    played = play(seed, draw_accidents(seed, only))
    gc.collect()
    return played


def is_new(played: Played) -> bool:
    return played.problem is not None and known(played) is None


def tell(played: Played) -> None:
    """Print a story and how it ends."""
    print(*played.lines, sep="\n")
    print(played.problem or "all is well")
    if played.problem is not None and (fault := known(played)) is not None:
        print(f"known: {fault.story}")
    print(f"{played.steps} calls in {played.seconds / 3600:.1f} simulated hours; digest {played.digest}")
    if played.problem is not None:
        print(f"To keep it: seed={played.seed}, study={played.study}, accidents={list(played.accidents)}")
