"""The results for people: one page of Markdown from the JSON files of the parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.folder import PARTS, Results
from benchmarks.names import PRECISIONS, ours

NOISE = 0.02
"""Part of a ratio of times that no choice is made for."""


def as_markdown(results: Results) -> str:
    """Return what the parts have measured so far; a part that has not begun is listed as such."""
    documents = {part: results.read(part) for part in PARTS}
    begun = [document for document in documents.values() if document]
    title = "Rehearsal on a CPU: the figures mean nothing" if any(d.get("rehearsal") for d in begun) else "GPU"
    lines = [f"# {title}", "", *_circumstances(begun), "", "| part | state |", "|---|---|"]
    lines += [f"| {part} | {_state(document)} |" for part, document in documents.items()]
    sections: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
        "tests": _tests,
        "synchronisations": _synchronisations,
        "steps": _steps,
        "resume": _resume,
        "sharing": _sharing,
        "choices": _choices,
        "ranks": _ranks,
        "variants": _variants,
        "study": _study,
    }
    for part, document in documents.items():
        if document:
            lines += ["", f"## {part}: {PARTS[part]}", "", *sections[part](document)]
            lines += [f"- failed: {text}" for text in document.get("failures", ())]
    return "\n".join([*lines, ""])


def _circumstances(begun: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return card, driver, versions, commit and command; each of them once, though parts may differ in some."""
    found: dict[str, None] = {}
    for document in begun:
        device, versions = document["device"], document["versions"]
        card = [device["name"]]
        card += [f"{device['memory_bytes'] / 2**30:.0f} GiB"] if "memory_bytes" in device else []
        card += [f"compute capability {device['capability']}"] if "capability" in device else []
        card += [f"driver {device['driver']}"] if device.get("driver") else []
        libraries = {**versions, "cuDNN": device.get("cudnn"), "NCCL": device.get("nccl")}
        code = (document["git"]["commit"] or "unknown")[:12] + (" with changes" if document["git"]["dirty"] else "")
        found[f"- {', '.join(card)}; processor {document['processor']}, {document['cores']} cores"] = None
        found[f"- {', '.join(f'{name} {version}' for name, version in libraries.items() if version)}"] = None
        found[f"- commit {code}, `{document['command']}`, {document['date'][:10]}"] = None
    return list(found)


def _state(document: Mapping[str, Any]) -> str:
    if not document:
        return "not begun"
    if document.get("error"):
        return f"failed: {document['error']}"
    if document.get("needs"):
        return f"needs {document['needs']}"
    failures = len(document.get("failures", ()))
    state = "complete" if document["complete"] else "not complete"
    return f"{state}, {failures} failed" if failures else state


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _tests(document: Mapping[str, Any]) -> list[str]:
    return [f"`{document.get('pytest_command', 'pytest')}`: {document.get('summary', 'no summary')}", ""]


def _synchronisations(document: Mapping[str, Any]) -> list[str]:
    cases = document.get("cases", {})
    how = " (not checked: on a CPU there is nothing to wait for)" if document["rehearsal"] else ""
    waiting = sum(case.get("waits_at") is not None for case in cases.values())
    return [f"{len(cases)} kinds of step, {waiting} of them wait for the device{how}.", ""]


def _steps(document: Mapping[str, Any]) -> list[str]:
    peaks = document.get("peaks") or {}
    products = [f"{p} {_number(v / 1e3)}" for p, v in peaks.get("gemm_gflops", {}).items() if v is not None]
    copied = _number(peaks.get("copy_gbytes_per_second"))
    lines = [f"Peaks of the card: products {', '.join(products)} TFLOP/s; copy {copied} GB/s.", ""]
    measured = {name: record for name, record in document.get("cases", {}).items() if record["error"] is None}
    if not measured:
        return lines
    names = list(dict.fromkeys(name for record in measured.values() for name in record["step_ms"]))
    rows = [[name, *(_median(record["step_ms"].get(n)) for n in names)] for name, record in measured.items()]
    lines += ["Step, ms (median):", "", *_table(["shape", *names], rows), ""]
    compared = [(us, them) for r in measured.values() for us, found in r["speedup"].items() for them in found or ()]
    pairs = list(dict.fromkeys(compared))
    rows = [
        [name, *(_ratio((record["speedup"].get(us) or {}).get(them)) for us, them in pairs)]
        for name, record in measured.items()
    ]
    lines += ["How many times as fast (median within rounds, least-most):", ""]
    lines += [*_table(["shape", *(f"{us} / {them}" for us, them in pairs)], rows), ""]
    profiled = [name for name in names if any(name in record["profiles"] for record in measured.values())]
    rows = [[name, *(_kernels(record["profiles"].get(n)) for n in profiled)] for name, record in measured.items()]
    lines += ["Kernels of a step / their time in ms:", "", *_table(["shape", *profiled], rows), ""]
    rows = [[name, *(_memory(record, n) for n in names)] for name, record in measured.items()]
    lines += ["Peak memory of tensors / what the device has less of, MB:", "", *_table(["shape", *names], rows), ""]
    shares = [record["share_of_card"] for record in measured.values()]
    own = [ours(p) for p in PRECISIONS if any(ours(p) in share for share in shares)]
    rows = [
        [name, *(_percent(r["share_of_card"].get(n, {}).get(k)) for n in own for k in ("gemm", "bandwidth"))]
        for name, r in measured.items()
    ]
    header = ["shape", *(f"{n}: {what}" for n in own for what in ("of GEMM peak", "of bandwidth, at least"))]
    return [*lines, *_table(header, rows), ""]


def _median(spread: Mapping[str, float] | None) -> str:
    return "-" if spread is None else _number(spread["median"])


def _ratio(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "-"
    least, most = spread.get("min", spread.get("least")), spread.get("max", spread.get("most"))
    return f"{spread['median']:.2f}x ({least:.2f}-{most:.2f})"


def _memory(record: Mapping[str, Any], name: str) -> str:
    return f"{_number(record['peak_memory_mb'].get(name))} / {_number(record['device_memory_mb'].get(name))}"


def _kernels(profile: Mapping[str, Any] | None) -> str:
    return "-" if profile is None else f"{_number(profile['kernels'])} / {_number(profile['busy_ms'])}"


def _resume(document: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, run in document.get("runs", {}).items():
        saved = run["resumed_from"]
        place = "-" if saved is None else f"epoch {saved['epoch'] + 1}, step {saved['step']}"
        equal = run["error"] or "equal bit for bit"
        rows.append([name, place, equal])
    return [*_table(["shape", "killed, resumed from", "against an undisturbed run"], rows, text_columns=3), ""]


def _sharing(document: Mapping[str, Any]) -> list[str]:
    lines = [f"Runs of {document.get('shape', 'a small shape')}; training tokens per second over all of them:", ""]
    modes = document.get("modes", {})
    counts = sorted({int(count) for figures in modes.values() for count in figures["runs"]})
    rows = [
        [mode, *(_number(figures["runs"].get(str(c), {}).get("train_tokens_per_second")) for c in counts)]
        for mode, figures in modes.items()
        if figures["runs"]
    ]
    if rows:
        lines += [*_table(["", *(f"{count} at once" for count in counts)], rows), ""]
    return lines + [f"- {mode}: not measured, {f['unavailable']}" for mode, f in modes.items() if f["unavailable"]]


CHOICES = {
    "chunks": "`CHUNK_TOKENS` of `seqlm/models/output_loss.py`",
    "rows": "padding bf16 rows to multiples of 16 bytes, in `seqlm/models/products.py`",
}
"""What is chosen -> where."""


def _choices(document: Mapping[str, Any]) -> list[str]:
    records = [record for record in document.get("cases", {}).values() if record["error"] is None]
    lines = []
    for choice, place in CHOICES.items():
        measured = [record for record in records if record["choice"] == choice]
        if not measured:
            continue
        labels = list(measured[0]["ms"])
        rows = [[record["name"], *(_number(record["ms"][label]) for label in labels)] for record in measured]
        lines += [
            "Time, ms (median):",
            "",
            *_table(["", *labels], rows),
            "",
            f"To choose: {place}. {_better(measured)}",
            "",
        ]
    return lines


def _better(measured: Sequence[Mapping[str, Any]]) -> str:
    """Say which alternative is never slower than what is used today, and the fastest of these over all cases."""
    ratios = {label: [r["times_as_fast"][label]["median"] for r in measured] for label in measured[0]["times_as_fast"]}
    sound = {label: found for label, found in ratios.items() if min(found) >= 1 - NOISE and max(found) > 1 + NOISE}
    if not sound:
        return f"Keep {measured[0]['today']}: no alternative is faster somewhere and slower nowhere."
    best = max(sound, key=lambda label: math.prod(sound[label]))
    return f"Take {best}: {min(sound[best]):.2f} to {max(sound[best]):.2f} times as fast as {measured[0]['today']}."


def _ranks(document: Mapping[str, Any]) -> list[str]:
    records = [record for record in document.get("cases", {}).values() if record["error"] is None]
    if not records:
        return []
    names = list(records[0]["milliseconds"])
    rows = []
    for record in records:
        times = [_median(record["milliseconds"][name]) for name in names]
        rows.append([record["name"], *times, _ratio(record["flat_times_as_fast"]["reduced-25"])])
    medians = [record["flat_times_as_fast"]["reduced-25"]["median"] for record in records]
    faster = min(medians) >= 1 - NOISE and max(medians) > 1 + NOISE
    gains = [record["speed_of_one_rank_with_all_threads"]["flat" if faster else "reduced-25"] for record in records]
    return [
        "Step, ms (median): gradients in buckets, in one buffer, not reduced, and one rank with the whole batch:",
        "",
        *_table(["shape", *names, "one buffer / buckets, times as fast"], rows),
        "",
        f"To choose: the default of `SEQLM_CAPTURE_RANKS` should be {int(faster)}. With it, a second rank makes a step "
        f"{min(gain['median'] for gain in gains):.2f} to {max(gain['median'] for gain in gains):.2f} times as fast.",
        "",
    ]


def _variants(document: Mapping[str, Any]) -> list[str]:
    rows, refused = [], []
    for name, record in document.get("cases", {}).items():
        rows += [[name, pair, _ratio(found)] for pair, found in record.get("times_as_fast", {}).items()]
        refused += [f"- {name}, {what}: {why}" for what, why in record.get("refused", {}).items()]
    return [*_table(["shape", "faster / slower", "times as fast"], rows, text_columns=2), "", *refused]


def _study(document: Mapping[str, Any]) -> list[str]:
    runs = document.get("runs", [])
    if not runs:
        return []
    done = sum(run["state"] == "done" for run in runs)
    seconds = sum(sum(run["curves"]["epoch_seconds"]) for run in runs)
    lines = [f"Precision {document['precision']}; {done} of {len(runs)} runs done, {seconds / 60:.1f} minutes of runs."]
    rows = []
    for run in runs:
        published = run["published"] or {}
        spread = published.get("replications")
        rows.append(
            [
                str(run["number"]),
                run["name"],
                run["state"],
                f"{run['epochs_done']} of {run['epochs']}",
                _number(published.get("val_ppl")),
                "-" if spread is None else "-".join(_number(value) for value in spread),
                "-" if run["best_val_ppl"] is None else f"{run['best_val_ppl']:,.1f}",
            ]
        )
    header = ["no.", "run", "state", "epochs", "published", "replications", "reproduced"]
    lines += ["", "Best validation perplexity, published against reproduced:", ""]
    return [*lines, *_table(header, rows, text_columns=3), "", f"Report: {document.get('report', 'not yet')}.", ""]
