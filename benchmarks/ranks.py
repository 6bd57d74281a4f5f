"""What a second rank brings: a step of two ranks against the same step without communication, and against one rank.

Each rank is a process with an equal part of the threads. In turns, all of them take a step on their own columns with
the reduction of gradients in buckets, in one flat buffer (on GPUs behind a CUDA graph), and without it; then the first
rank takes the whole batch alone with all threads, while the others wait. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import Shape, select
from seqlm.errors import SeqlmError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.interleave import Rounds
    from seqlm.training.distributed import Rank


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="rnn-2x1500-b20", help="see benchmarks.models --help; default: %(default)s")
    parser.add_argument("--ranks", type=int, default=2, help="processes; %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="counted rounds; %(default)s")
    parser.add_argument("--bucket-mb", type=int, nargs="+", default=[25], help="sizes of DDP's buckets; 25")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document to FILE too")
    options = parser.parse_args(arguments)
    try:
        shapes = select([options.shape])
        if len(shapes) != 1:
            raise UsageError(f"--shape: expected one shape, got the group {options.shape}")
        if not 1 < options.ranks <= shapes[0].config.train.batch_size:
            raise UsageError(f"--ranks: expected 2 to the batch size, got {options.ranks}")
        measured = measure(shapes[0], options.ranks, options.rounds, options.bucket_mb)
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text = json.dumps(_document(shapes[0], options, measured), indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", "utf-8")
    return 0


def measure(shape: Shape, ranks: int, rounds: int, bucket_mb: Sequence[int], device: str = "cpu") -> dict[str, Any]:
    """What the first rank measured. On ``cuda``, each rank has a card of its own."""
    import torch
    from torch import multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        work = (shape, ranks, rounds, list(bucket_mb), torch.get_num_threads(), folder, device)
        multiprocessing.spawn(_one_rank, args=work, nprocs=ranks)  # type: ignore[attr-defined,no-untyped-call]
        result: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text("utf-8"))
    return result


def _one_rank(
    index: int, shape: Shape, ranks: int, rounds: int, bucket_mb: list[int], threads: int, folder: str, device: str
) -> None:
    import torch

    from benchmarks.device import synchronize
    from benchmarks.interleave import interleave
    from seqlm.training.distributed import Rank, process_group

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    os.environ["SEQLM_RENDEZVOUS"] = str(Path(folder) / "meeting")
    share = max(1, threads // ranks)
    torch.set_num_threads(share)
    place = torch.device(device, index) if device == "cuda" else torch.device(device)
    rank = Rank(index=index, world_size=ranks, device=place)
    batch = shape.config.train.batch_size
    own = len(range(index, batch, ranks))
    with process_group(rank):
        together = {f"reduced-{mb}": _stepper(shape, own, rank, mb) for mb in bucket_mb}
        together["flat"] = _stepper(shape, own, rank, flat=True)
        apart = _stepper(shape, own, Rank(device=place))
        alone = _stepper(shape, batch, Rank(device=place)) if rank.is_first else None

        def timed(step: Callable[[], None] | None, threads: int) -> float:
            torch.set_num_threads(threads)
            torch.distributed.barrier()
            start = time.perf_counter()
            if step is not None:
                step()
            synchronize(place)
            torch.distributed.barrier()
            return time.perf_counter() - start

        turns: dict[str, Callable[[], float]] = {
            name: functools.partial(timed, step, share) for name, step in together.items()
        }
        turns["not-reduced"] = lambda: timed(apart, share)
        turns["one-rank"] = lambda: timed(alone, threads)
        measured = interleave(turns, seconds=0, least_rounds=rounds, warmup_rounds=3)
    if rank.is_first:
        (Path(folder) / "result.json").write_text(json.dumps(_figures(measured, list(together))), "utf-8")


def _stepper(shape: Shape, columns: int, rank: Rank, bucket_mb: int = 25, *, flat: bool = False) -> Callable[[], None]:
    """A step on random windows of ``columns`` columns, with a model of its own; on GPUs captured where it can be."""
    import torch

    from seqlm.models import build_model
    from seqlm.optimizers import build_optimizer
    from seqlm.training.step import TrainingStep

    torch.manual_seed(shape.config.seed)
    train = shape.config.train
    model = build_model(shape.config.model, shape.vocab_size, train.seq_len).to(rank.device)
    optimizer = build_optimizer(shape.config.optim, model.parameters())
    step = TrainingStep(
        model,
        optimizer,
        clip_norm=train.clip_norm,
        tokens_per_step=shape.tokens if rank.world_size > 1 else train.seq_len * columns,
        rank=rank,
        bucket_mb=bucket_mb,
        flat=flat,
        capture=rank.device.type == "cuda" and (flat or rank.world_size == 1),
    )
    inputs, targets = torch.randint(shape.vocab_size, (2, train.seq_len, columns)).to(rank.device)
    state: list[Tensor] = [model.initial_state(columns)]

    def take() -> None:
        state[0] = step(inputs, targets, state[0]).state

    return take


def _figures(measured: Rounds, names: Sequence[str]) -> dict[str, Any]:
    def of(name: str) -> dict[str, float]:
        return {key: round(1000 * value, 3) for key, value in vars(measured.spread(name)).items()}

    def ratio(numerator: str, denominator: str) -> dict[str, float]:
        return {key: round(value, 3) for key, value in vars(measured.ratio(numerator, denominator)).items()}

    return {
        "milliseconds": {name: of(name) for name in (*names, "not-reduced", "one-rank")},
        "efficiency": {name: ratio("not-reduced", name) for name in names},
        "flat_times_as_fast": {name: ratio(name, "flat") for name in names if name != "flat"},
        "speed_of_one_rank_with_all_threads": {name: ratio("one-rank", name) for name in names},
        "rounds": measured.count,
    }


def _document(shape: Shape, options: argparse.Namespace, measured: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.results import circumstances

    return {
        "schema_version": 1,
        "benchmark": "ranks",
        "command": f"python -m benchmarks.ranks --shape {shape.name} --ranks {options.ranks} --rounds {options.rounds} "
        f"--bucket-mb {' '.join(map(str, options.bucket_mb))}",
        **circumstances(),
        "shape": shape.name,
        "ranks": options.ranks,
        **measured,
    }


if __name__ == "__main__":
    sys.exit(main())
