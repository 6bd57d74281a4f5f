"""What was measured, and on what: the JSON document, and the table for people."""

from __future__ import annotations

import operator
import os
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import device_name
from benchmarks.measurement import Settings
from benchmarks.names import REFERENCE, builtin, compiled, ours
from jobs.study.kept_code import live_code
from jobs.terminal import Column, lines_of
from seqlm import machine
from seqlm.files import write_json, write_text
from seqlm.models.products import fp32_library

SCHEMA_VERSION = 2


def new_document(settings: Settings, argv: Sequence[str]) -> dict[str, Any]:
    """The document with everything but the shapes; nothing in it names a folder or a host."""
    return {
        "schema_version": SCHEMA_VERSION,
        "benchmark": "models",
        "command": shlex.join(["python", "-m", "benchmarks.models", *_without_out(argv)]),
        **circumstances(),
        "device": device_name(settings.device) if settings.device.type == "cuda" else "cpu",
        "threads": settings.threads,
        "load_average": round(os.getloadavg()[0], 1),
        "settings": {
            "seconds": settings.seconds,
            "least_rounds": settings.least_rounds,
            "warmup_rounds": settings.warmup_rounds,
            "precisions": list(settings.precisions),
        },
        "interrupted": False,
        "shapes": [],
    }


def circumstances() -> dict[str, Any]:
    """When and on what something was measured."""
    code = live_code()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": {"commit": code.commit, "dirty": code.dirty},
        "processor": machine.cpu_model(),
        "cores": machine.cpu_count(),
        "versions": _versions(),
        "matmul": fp32_library(),
    }


def _without_out(argv: Sequence[str]) -> list[str]:
    """The arguments but for the result's place, which is the machine's own business."""
    kept: list[str] = []
    skip = False
    for argument in argv:
        if skip or argument.startswith("--out="):
            skip = False
        elif argument == "--out":
            skip = True
        else:
            kept.append(argument)
    return kept


def _versions() -> dict[str, str | None]:
    built = torch.__config__.show()

    def found(pattern: str) -> str | None:
        match = re.search(pattern, built)
        return match[1] if match else None

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mkl": found(r"Math Kernel Library Version (\S+)"),
        "onednn": found(r"MKL-DNN v(\S+)"),
        "cuda": torch.version.cuda,
    }


# -- the table -----------------------------------------------------------------------------------------------------


TEXT_COLUMNS = 3
"""Columns before the numbers."""


def _table(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    precisions = document["settings"]["precisions"]
    with_memory = any("peak_memory_mb" in shape for shape in document["shapes"])
    header = ["shape", "runs", "precision", "reference ms", "torch.nn ms", "ours ms", "vs torch.nn", "vs reference"]
    header += ["vs fp32"] if precisions != ["fp32"] else []
    is_compiled = any("compile_seconds" in shape for shape in document["shapes"])
    header += ["compiled ms", "vs compiled", "compiled in s"] if is_compiled else []
    header += ["reference MB", "torch.nn MB", "ours MB", "of torch.nn's"] if with_memory else []
    rows = [_row(shape, precision, header) for shape in document["shapes"] for precision in precisions]
    return [*header, "of GEMM peak"], rows


def _row(shape: Mapping[str, Any], precision: str, header: Sequence[str]) -> list[str]:
    """One shape in one precision. The reference, which is fp32, has its own figures in that row only."""
    name, torch_nn = ours(precision), builtin(precision)
    reference = REFERENCE if precision == "fp32" else ""
    times, megabytes = shape["step_ms"], shape.get("peak_memory_mb", {})
    faster, ratios = shape["speedup"][name] or {}, shape.get("memory_ratio", {}).get(name, {})
    row = [shape["name"], " ".join(map(str, shape["runs"])) or "-", precision]
    row += [_median(times.get(reference)), _median(times[torch_nn])]
    row += [_median(times[name]) if times[name] else f"no {precision} here"]
    row += [_times(faster.get(torch_nn), spread_too=True), _times(faster.get(REFERENCE) if reference else None)]
    if "vs fp32" in header:
        row += [_times(faster.get(ours("fp32")))]
    if "compiled ms" in header:
        row += [_median(times[compiled(precision)]), _times(faster.get(compiled(precision)))]
        row += [_number(shape["compile_seconds"].get(compiled(precision)))]
    if "ours MB" in header:
        row += [_number(megabytes.get(each)) for each in (reference, torch_nn, name)] + [_percent(ratios.get(torch_nn))]
    return [*row, _percent((shape["share_of_gemm_peak"][precision] or {}).get("median"))]


def _median(spread: Mapping[str, float] | None) -> str:
    return _number(spread["median"]) if spread else "-"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _times(spread: Mapping[str, float] | None, *, spread_too: bool = False) -> str:
    if spread is None:
        return "-"
    around = f" ({spread['min']:.2f}-{spread['max']:.2f})" if spread_too else ""
    return f"{spread['median']:.2f}x{around}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def notes(document: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know."""
    versions = document["versions"]
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    code = (document["git"]["commit"] or "none")[:12] + (" with changes" if document["git"]["dirty"] else "")
    where = document["processor"] if document["device"] == "cpu" else f"{document['device']}, {document['processor']}"
    lines = [
        f"{document['date']}, commit {code}, {where}, {document['threads']} threads; {libraries}",
        f"float32 products of ours on a processor: {document['matmul']}",
        f"load average before: {document['load_average']}, with {document['cores']} cores",
        "reference and torch.nn: default optimizers; one training step, median",
        "precision: of ours and of torch.nn, with cuDNN's TF32 switch; torch.nn in bf16: torch.autocast",
        "vs: how many times as fast, median of the ratios within each round (least-most)",
    ]
    if any("peak_memory_mb" in shape for shape in document["shapes"]):
        lines += ["MB: peak memory above that before the model was built, in a process of its own"]
    lines += ["of GEMM peak: share of the FLOP/s of the precision's fastest product, measured in the same rounds"]
    return [*lines, "interrupted: the other shapes were not measured"] if document["interrupted"] else lines


def as_text(document: Mapping[str, Any]) -> str:
    """The table with its notes, for a terminal."""
    header, rows = _table(document)
    columns = [
        Column(title, operator.itemgetter(place), right=place >= TEXT_COLUMNS) for place, title in enumerate(header)
    ]
    return "\n".join([*lines_of(columns, rows), "", *notes(document)])


def as_markdown(document: Mapping[str, Any]) -> str:
    """The same in Markdown."""
    header, rows = _table(document)
    rule = [*["---"] * TEXT_COLUMNS, *["---:"] * (len(header) - TEXT_COLUMNS)]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]
    return "\n".join([f"`{document['command']}`", "", *lines, "", *(f"- {note}" for note in notes(document)), ""])


def write_files(document: Mapping[str, Any], path: Path) -> None:
    """The document at ``path`` and the table beside it.

    Raises:
        FileError: a file cannot be written.
    """
    write_json(path, document)
    write_text(path.with_suffix(".md"), as_markdown(document))
