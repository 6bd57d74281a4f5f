"""One training step of our models against two that users would write themselves; see ``benchmarks/README.md``.

Torch is imported once the command line is understood, so that help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.command_line import Parser, not_negative, positive
from benchmarks.names import PRECISIONS, precision_of
from benchmarks.shapes import GROUPS, Shape, by_name, select
from seqlm.errors import FileError, SeqlmError, UsageError

if TYPE_CHECKING:
    from benchmarks.measurement import Settings

EXIT_INTERRUPTED = 130

WARMUP_ROUNDS = {"cpu": 2, "cuda": 5}
"""On a GPU our step is captured as a graph in its fourth round, and only replayed after that."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser().parse_args(arguments)
        shapes = select(options.shapes)
        if options.out is not None:
            _check_out(options.out)
        if options.peak_memory_of is not None:
            name, shape_name = options.peak_memory_of
            precision_of(name)  # before torch is imported
            (shape,) = select([shape_name])
            _print_peak_memory(name, shape, _settings(options))
            return 0
        settings = _settings(options)
        document = _measure(shapes, settings, arguments, options.out)
        _print(document, as_json=options.json)
        if options.out is not None:
            _write(document, options.out)
    except SeqlmError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_INTERRUPTED if document["interrupted"] else 0


# -- the command line ----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    groups = "\n".join(f"  {name:11}{text}" for name, text in GROUPS.items())
    parser = Parser(
        prog="python -m benchmarks.models",
        description="Time one training step of our models, of torch.nn's and of the reference, in turns.",
        epilog=f"shapes: any of these groups, or names such as {next(iter(by_name()))}\n{groups}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", default=["published"], help="default: published")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=["fp32", "bf16"],
        help="of products, ours and torch.nn's; fp32 bf16",
    )
    parser.add_argument("--seconds", type=not_negative, default=60.0, help="time of the rounds of a shape; 60")
    parser.add_argument("--rounds", type=positive, default=3, help="fewest rounds; 3")
    parser.add_argument(
        "--warmup-rounds",
        type=positive,
        help=f"rounds before them, not counted; {WARMUP_ROUNDS['cpu']}, on a GPU {WARMUP_ROUNDS['cuda']}",
    )
    parser.add_argument("--threads", type=positive, help="of the processor; default: torch's own choice")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument("--compiled", action="store_true", help="also torch.nn's model under torch.compile")
    parser.add_argument("--no-peak-memory", action="store_true", help="measure time alone")
    parser.add_argument("--json", action="store_true", help="print one JSON document in place of the table")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write that document to FILE.json too, the table to FILE.md"
    )
    parser.add_argument("--peak-memory-of", nargs=2, metavar=("NAME", "SHAPE"), help=argparse.SUPPRESS)
    return parser


def _check_out(path: Path) -> None:
    """Before an hour of measuring, not after it."""
    if path.suffix != ".json":
        raise UsageError(f"--out: expected a file name that ends in .json, got {path}")
    if not path.parent.is_dir():
        raise UsageError(f"--out: there is no folder {path.parent}")


def _settings(options: argparse.Namespace) -> Settings:
    import torch

    from benchmarks.device import choose_device
    from benchmarks.measurement import Settings
    from seqlm.machine import keep_freed_memory

    keep_freed_memory()  # torch.nn gets it too
    device = choose_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return Settings(
        seconds=options.seconds,
        least_rounds=options.rounds,
        warmup_rounds=options.warmup_rounds or WARMUP_ROUNDS[device.type],
        precisions=tuple(dict.fromkeys(options.precision)),
        threads=torch.get_num_threads(),
        device=device,
        peak_memory=not options.no_peak_memory,
        compiled=options.compiled,
    )


# -- the work ------------------------------------------------------------------------------------------------------


def _measure(shapes: Sequence[Shape], settings: Settings, argv: Sequence[str], out: Path | None) -> dict[str, Any]:
    """The document of all shapes, or of those that were measured before Ctrl-C; written after each."""
    from benchmarks.measurement import measure_shape
    from benchmarks.results import new_document

    document = new_document(settings, argv)
    try:
        for number, shape in enumerate(shapes, start=1):
            say = _speaker(f"[{number}/{len(shapes)}] {shape.name}: ")
            document["shapes"].append(measure_shape(shape, settings, say))
            if out is not None:
                try:
                    _write(document, out)
                except FileError as error:  # the shapes to come are worth measuring all the same
                    say(str(error))
    except KeyboardInterrupt:
        document["interrupted"] = True
    return document


def _write(document: dict[str, Any], out: Path) -> None:
    from benchmarks.results import write_files

    write_files(document, out)


def _speaker(prefix: str) -> Callable[[str], None]:
    return lambda text: print(prefix + text, file=sys.stderr, flush=True)


def _print_peak_memory(name: str, shape: Shape, settings: Settings) -> None:
    from benchmarks.peak_memory import print_peak_memory

    print_peak_memory(name, shape, settings.device)


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    from benchmarks.results import as_text

    print(json.dumps(document, indent=1, allow_nan=False) if as_json else as_text(document))


if __name__ == "__main__":
    sys.exit(main())
