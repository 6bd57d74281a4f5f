"""Recompute every claim of a report by another way: from ``data/*.csv`` and the files of the runs, with ``math`` alone.

Nothing here imports what it checks. Formulas are those of docs/explanation/report.md.
"""

import csv
import json
import math
import statistics
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CLOSE = {"rel_tol": 1e-6, "abs_tol": 1e-9}
BLOCK = 100


class Oracle:
    """The claims of a report, and what they rest on."""

    def __init__(self, study_dir: Path, report: Path) -> None:
        self.study_dir = study_dir
        self.claims: list[dict[str, Any]] = json.loads((report / "data" / "claims.json").read_text("utf-8"))
        self.runs = {row["number"]: row for row in table(report / "data" / "runs.csv")}
        self.epochs = defaultdict(list)
        self.attempts = {(row["number"], row["attempt"]): row for row in table(report / "data" / "attempts.csv")}
        self.all_epochs = defaultdict(list)
        for row in table(report / "data" / "epochs.csv"):
            run = self.runs[row["number"]]
            self.all_epochs[row["number"]].append(row)
            limit = run["compared_epochs"]
            if not limit or int(row["epoch"]) < int(limit):
                self.epochs[row["number"]].append(row)
        paths = [report / "data" / f"{name}.csv" for name in ("samples", "held_out")]
        self.samples, self.held_out = (table(path) if path.exists() else [] for path in paths)
        self.curves: dict[tuple[str, str], list[float]] = defaultdict(list)
        behaviour = report / "data" / "behaviour.csv"
        for row in table(behaviour) if behaviour.exists() else ():
            self.curves[row["number"], row["curve"]].append(number(row["value"]))

    def faults(self) -> Iterator[str]:
        """Yield a line on each claim that does not follow from the data."""
        for claim in self.claims:
            for fault in self.faults_of(claim):
                yield f"{claim['question']} {claim['kind']} {claim['measure']} {claim['members']}: {fault}"

    def faults_of(self, claim: Mapping[str, Any]) -> Iterator[str]:
        if claim["measure"] == "sample_loss":
            yield from self._order_of_samples(claim)
        elif claim["question"] == "samples":
            yield from self._samples(claim)
        elif claim["question"] in ("search", "next", "published"):
            check = {"search": self._search, "next": self._next, "published": self._published}[claim["question"]]
            yield from check(claim)
        elif claim["kind"] in ("compare", "first") and claim["question"] != "steps":
            yield from self._losses(claim) if "seconds" not in claim["measure"] else self._times(claim)
        elif claim["kind"] == "spread":
            yield from self._spread(claim)
        elif claim["question"] == "steps":
            yield from self._steps(claim)
        elif claim["question"] == "gradients":
            yield from self._gradients(claim)
        elif claim["question"] == "reliability":
            yield from self._ends(claim) if claim["kind"] == "count" else self._overfitted(claim)
        elif claim["question"] == "curious":
            yield from self._mechanism(claim)
        elif claim["measure"] == "settings":
            yield from self._tried(claim)
        elif claim["measure"] == "gap":
            yield from same("values", claim["values"], [self.mean(one, self.gap) for one in claim["members"]])
        elif claim["kind"] == "value":
            yield from same("values", claim["values"], [math.exp(self.mean(m, self.loss)) for m in claim["members"]])

    # -- members -----------------------------------------------------------------------------------------------------

    def members(self, name: str) -> list[dict[str, str]]:
        """The runs of a setting such as ``4/12 gru-adam``."""
        return [self.runs[one] for one in name.split()[0].split("/")]

    def mean(self, name: str, value: Any) -> float:
        return statistics.fmean(value(run) for run in self.members(name))

    def loss(self, run: Mapping[str, str]) -> float:
        return math.log(float(run["compared_val_ppl"]))

    def gap(self, run: Mapping[str, str]) -> float:
        return self.loss(run) - number(run["train_slice_loss"])

    def value(self, measure: str, name: str) -> float:
        if measure == "val_ppl":
            return self.mean(name, self.loss)
        if measure.endswith("_ppl"):
            return self.mean(name, lambda run: math.log(float(run[measure])))
        return self.mean(name, lambda run: float(run[measure]))

    # -- losses ------------------------------------------------------------------------------------------------------

    def tokens(self, name: str) -> list[float] | None:
        """The losses of the tokens, means over seeds; ``None``: not those of the perplexity in the table."""
        found = []
        for run in self.members(name):
            path = self.study_dir / run["id"] / "valid.f32"
            if not path.exists():
                return None
            losses = array("f", path.read_bytes())
            known = [one for one in losses if not math.isnan(one)]
            if not known or abs(statistics.fmean(known) - self.loss(run)) >= 0.002:
                return None
            found.append(losses)
        return [statistics.fmean(each) for each in zip(*found, strict=True)] if len(set(map(len, found))) == 1 else None

    def noise(self, text: str, measure: str) -> tuple[float, int]:
        """Variance over seeds, and its degrees of freedom; 0: not known."""
        seeds = defaultdict(list)
        ranges = []
        for run in self.runs.values():
            if run["text"] == text and is_compared(run):
                value = self.value(measure, run["number"])
                seeds[run["setting"]].append(value)
            low, high = number(run["replications_low"]), number(run["replications_high"])
            if measure == "val_ppl" and run["text"] == text and low > 0:
                ranges.append(math.log(high / low))
        freedom = sum(len(values) - 1 for values in seeds.values()) + 2 * len(ranges)
        squares = sum(statistics.variance(values) * (len(values) - 1) for values in seeds.values() if len(values) > 1)
        squares += sum(2 * one**2 / 3.655 for one in ranges)
        return (squares / freedom if freedom else math.nan), freedom

    def difference(self, measure: str, a: str, b: str) -> tuple[float, float, float]:
        """Difference, its standard error and degrees of freedom; NaN: nothing is known of its chance."""
        nats = self.value(measure, b) - self.value(measure, a)
        parts = []
        first, second = (self.tokens(a), self.tokens(b)) if measure == "val_ppl" else (None, None)
        if first and second and len(first) == len(second):
            each = [y - x for x, y in zip(first, second, strict=True) if not math.isnan(x + y)]
            blocks = len(each) // BLOCK
            if blocks >= 10:
                nats = statistics.fmean(each)
                means = [statistics.fmean(each[BLOCK * k : BLOCK * (k + 1)]) for k in range(blocks)]
                parts.append((statistics.variance(means) / blocks, blocks - 1))
        variance, freedom = self.noise(self.members(a)[0]["text"], measure)
        if freedom:
            seeds = 1 / len(self.members(a)) + 1 / len(self.members(b))
            parts.append((variance * seeds, freedom))
        total = sum(part for part, _ in parts)
        together = total**2 / sum(part**2 / own for part, own in parts) if total else math.nan
        return nats, math.sqrt(total) if parts else math.nan, together

    def _losses(self, claim: Mapping[str, Any]) -> Iterator[str]:
        measure, (a, b) = claim["measure"], claim["members"][:2]
        values = [self.value(measure, name) for name in claim["members"]]
        if measure.endswith("_ppl"):
            values = [math.exp(one) for one in values]
        yield from same("values", claim["values"], values)
        if claim["kind"] == "first" and values != sorted(values):
            yield f"the members are not in the order of {values}"
        nats, error, _ = self.difference(measure, a, b)
        yield from same("difference", [claim["difference"]], [nats])
        yield from same("error", [claim["error"]], [error])
        family = [other for other in self.claims if self.is_of_family(claim, other)]
        places = [other for other in family if other["members"][:2] == [a, b]]
        wanted = self.verdicts([self.difference(measure, *other["members"][:2]) for other in family], measure, a)
        verdict = wanted[family.index(places[0])]
        if over_seeds := claim["given"].get("over_seeds"):
            verdict = self._over_seeds(over_seeds, a, b, nats)
        if (values[1] - values[0]) * nats < 0 and verdict.startswith("told"):
            verdict = "not told apart"
        if verdict != claim["verdict"]:
            yield f"verdict {claim['verdict']!r}, wanted {verdict!r}"

    def _over_seeds(self, given: Mapping[str, Any], a: str, b: str, nats: float) -> str:
        """The verdict over seeds: a mean is excluded if the evidence against it was ever enough."""
        of_seed = [{run["seed"]: self.loss(run) for run in self.members(name)} for name in (a, b)]
        differences = [of_seed[0][str(seed)] - of_seed[1][str(seed)] for seed in given["seeds"]]
        firsts = [differences[:count] for count in range(2, len(differences) + 1)]
        enough = given["comparisons"] / given["error"]

        def excluded(mean: float, sign: int) -> bool:
            return any(evidence(one, mean) > enough and sign * (mean - statistics.fmean(one)) > 0 for one in firsts)

        if excluded(0.0, 1) != excluded(0.0, -1):
            return "told apart" if excluded(0.0, 1) == (nats > 0) else "not told apart"
        return "equal" if excluded(0.01, 1) and excluded(-0.01, -1) else "not told apart"

    def is_of_family(self, claim: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        return (
            other["kind"] in ("compare", "first")
            and other["question"] == claim["question"]
            and other["measure"] == claim["measure"]
            and other["given"].get("expectation") == claim["given"].get("expectation")
            and self.members(other["members"][0])[0]["text"] == self.members(claim["members"][0])[0]["text"]
        )

    def verdicts(self, differences: Sequence[tuple[float, float, float]], measure: str, member: str) -> list[str]:
        _, known = self.noise(self.members(member)[0]["text"], measure)
        ps = [p_value(*one) for one in differences]
        order = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
        clear = set()
        for rank, (p, place) in enumerate(order):
            if p * (len(order) - rank) >= 0.05:
                break
            clear.add(place)
        found = []
        for place, (nats, error, freedom) in enumerate(differences):
            if math.isnan(error):
                found.append("no verdict")
            elif place in clear:
                found.append("told apart" if known else "told apart on this text")
            elif known and abs(nats) < 0.01 and p_value(0.01 - abs(nats), error, freedom) < 0.05:
                found.append("equal")
            else:
                found.append("not told apart")
        return found

    def _spread(self, claim: Mapping[str, Any]) -> Iterator[str]:
        found = []
        for member in claim["members"]:
            ends = member.partition(", ")[2].split(" to ")
            found.append(self.difference("val_ppl", *ends))
        yield from same("values", claim["values"], [nats for nats, _, _ in found])
        error = math.hypot(found[0][1], found[-1][1])
        yield from same("difference", [claim["difference"]], [found[-1][0] - found[0][0]])
        yield from same("error", [claim["error"]], [error])
        _, freedom = self.noise(next(iter(self.runs.values()))["text"], "val_ppl")
        apart = bool(freedom) and p_value(found[-1][0] - found[0][0], error, freedom) < 0.05
        if apart != (claim["verdict"] == "told apart"):
            yield f"verdict {claim['verdict']!r}"

    # -- times -------------------------------------------------------------------------------------------------------

    def seconds(self, name: str) -> list[float]:
        """The times of epochs, but the first of each run."""
        return [float(row["epoch_seconds"]) for run in self.members(name) for row in self.epochs[run["number"]][1:]]

    def epochs_to(self, name: str, target: float) -> float | None:
        counts = []
        for run in self.members(name):
            curve = [number(row["val_ppl"]) for row in self.epochs[run["number"]]]
            place = next((count for count, value in enumerate(curve, start=1) if value <= target), None)
            if place is None:
                return None
            counts.append(place)
        return statistics.fmean(counts)

    def _times(self, claim: Mapping[str, Any]) -> Iterator[str]:
        names = claim["members"]
        medians = [statistics.median(self.seconds(name)) for name in names]
        if claim["measure"] == "seconds_to_target":
            counts = [self.epochs_to(name, claim["given"]["target"]) for name in names]
            wanted = [math.nan if c is None else c * m for c, m in zip(counts, medians, strict=True)]
            yield from same("values", claim["values"], wanted)
            if len(names) > 1 and claim["kind"] == "first":
                sooner = wanted[1] - wanted[0] > max(medians[:2])
                if sooner != (claim["verdict"] == "told apart"):
                    yield f"verdict {claim['verdict']!r}"
            return
        if claim["measure"] == "epoch_seconds":
            yield from same("values", claim["values"], [self.mean_of_medians(name) for name in names])
        same_question = [other for other in self.claims if self.is_of_family(claim, other)]
        pairs = [[self.seconds(name) for name in other["members"]] for other in same_question]
        ratios = [math.log(statistics.median(b) / statistics.median(a)) for a, b in pairs]
        error = math.sqrt(sum(self.squared_error(side) for pair in pairs for side in pair))
        beyond = all(abs(one) > math.log(1.05) for one in ratios) and len({one > 0 for one in ratios}) == 1
        apart = beyond and abs(sum(ratios)) >= 3 * error
        if apart != (claim["verdict"] == "told apart"):
            yield f"verdict {claim['verdict']!r}, ratios {ratios}, error {error}"

    def mean_of_medians(self, name: str) -> float:
        return statistics.fmean(
            statistics.median(float(row["epoch_seconds"]) for row in self.epochs[run["number"]])
            for run in self.members(name)
        )

    @staticmethod
    def squared_error(seconds: Sequence[float]) -> float:
        middle = statistics.median(seconds)
        spread = statistics.median([abs(one - middle) for one in seconds])
        return (1.2533 * 1.4826 * spread / middle) ** 2 / len(seconds)

    # -- counts, curves, mechanisms ------------------------------------------------------------------------------------

    def _ends(self, claim: Mapping[str, Any]) -> Iterator[str]:
        is_bad = {
            "diverged": lambda run: run["failure_kind"] == "diverged",
            "ended 5 % above their best": lambda run: (
                run["state"] == "done"
                and number(self.epochs[run["number"]][-1]["val_ppl"]) > 1.05 * number(run["compared_val_ppl"])
            ),
        }[claim["given"]["counted"]]
        of_arch = defaultdict(int)
        for run in self.runs.values():
            of_arch[run["arch"]] += is_bad(run)
        counts = {label(arch): float(count) for arch, count in of_arch.items()}
        yield from same("counts", claim["values"], [counts[name] for name in claim["members"]])

    def _overfitted(self, claim: Mapping[str, Any]) -> Iterator[str]:
        number_of = claim["given"]["run"].split()[0]
        val, train = ([float(row[key]) for row in self.epochs[number_of]] for key in ("val_ppl", "train_ppl"))
        best = val.index(min(val))
        yield from same("validation", claim["values"], [val[best], val[-1]])
        yield from same("training", claim["given"]["training"], [train[best], train[-1]])

    def _tried(self, claim: Mapping[str, Any]) -> Iterator[str]:
        text = self.members(next(one["members"][0] for one in self.claims if one["question"] == "picks"))[0]["text"]
        settings = {
            (run["setting"], f"{label(run['arch'])} {kind_of(run['optimizer'])}")
            for run in self.runs.values()
            if is_compared(run) and run["text"] == text
        }
        wanted = [float(sum(kind == name for _, kind in settings)) for name in claim["members"]]
        yield from same("settings", claim["values"], wanted)

    def _steps(self, claim: Mapping[str, Any]) -> Iterator[str]:
        if claim["kind"] == "first" or (claim["kind"] == "value" and "run" not in claim["given"]):
            length = self._window(claim["members"][0])
            curves = [self.curves[name.split()[0], "loss_zero_state"] for name in claim["members"]]
            wanted = [math.exp(statistics.fmean(curve[:length])) for curve in curves]
            yield from same("values", claim["values"], wanted)
            if wanted != sorted(wanted):
                yield "the members are not in their order"
        elif claim["kind"] == "value":
            curve = self.curves[claim["given"]["run"].split()[0], "loss_zero_state"]
            length = self._window(claim["given"]["run"])
            yield from same("values", claim["values"], [math.exp(curve[0]), math.exp(curve[length - 1])])
        elif claim["measure"] == "context_tokens":
            name = claim["members"][0]
            curve = self.curves[name.split()[0], "loss_zero_state"][: self._window(name)]
            first = next(place for place, loss in enumerate(curve, start=1) if loss <= min(curve) + 0.01)
            yield from same("tokens", claim["values"], [float(first)])
        elif claim["measure"] == "step_loss":
            name = claim["members"][0].partition(",")[0]
            curve, length = self.curves[name.split()[0], "loss_zero_state"], self._window(name)
            wanted = [statistics.fmean(curve[length // 2 : length]), statistics.fmean(curve[length:])]
            yield from same("values", claim["values"], wanted)
            yield from same("difference", [claim["difference"]], [wanted[1] - wanted[0]])

    def _window(self, name: str) -> int:
        """The training length of a run."""
        return int(self.members(name)[0]["train.seq_len"])

    def _gradients(self, claim: Mapping[str, Any]) -> Iterator[str]:
        norms = self.curves[claim["members"][0].split()[0], "gradient_mean_of_norms"][::-1]
        highest = max(norms)
        used = []
        for norm in norms:
            if not norm > highest / 1000:
                break
            used.append(math.log(norm))
        middle = statistics.fmean(range(len(used)))
        slope = sum((k - middle) * one for k, one in enumerate(used)) / sum((k - middle) ** 2 for k in range(len(used)))
        yield from same("factor", claim["values"], [math.exp(slope)])

    def _samples(self, claim: Mapping[str, Any]) -> Iterator[str]:
        name, measure = claim["members"][0].split()[0], claim["measure"]
        sides = [
            [float(row[measure]) for row in rows if row["number"] == name and row[measure]]
            for rows in (self.samples, self.held_out)
        ]
        means = [statistics.fmean(side) if side else math.nan for side in sides]
        yield from same("values", claim["values"], means)
        errors = [statistics.stdev(side) / math.sqrt(len(side)) if len(side) > 1 else math.nan for side in sides]
        error = math.hypot(*errors)
        is_apart = abs(means[0] - means[1]) >= max(2 * error, 1e-9)
        wanted = "told apart" if is_apart else "not told apart"
        has_scatter = error > 1e-9 or abs(means[0] - means[1]) < 1e-9
        if math.isnan(error) or not (has_scatter or min(map(len, sides)) >= 4):
            wanted = "no verdict"
        if claim["verdict"] != wanted:
            yield f"verdict {claim['verdict']!r}"

    def _mechanism(self, claim: Mapping[str, Any]) -> Iterator[str]:
        given, values, outcomes = claim["given"], claim["values"], claim["given"]["outcomes"]
        measure, sign = {
            "clipped": (self._clipping, -1),
            "rare": (self._rare_words, 0),
            "gradients": (self._memory, 1),
            "parameters": (self._size, 1),
        }[given["mechanism"].split()[0]]
        wanted = [measure(*of) for of in given["of"]]
        yield from same("measured", values, [one for one, _ in wanted])
        yield from same("outcomes", outcomes, [one for _, one in wanted])
        if sign:
            pairs = [(a, b) for a in range(len(values)) for b in range(a)]
            held = [sign * (values[a] - values[b]) * (outcomes[a] - outcomes[b]) > 0 for a, b in pairs]
        else:
            held = [a > b for a, b in zip(values, outcomes, strict=True)]
        if (given["agreeing"], given["pairs"]) != (sum(held), len(held)):
            yield f"{given['agreeing']} of {given['pairs']} agree, counted {sum(held)} of {len(held)}"

    def _clipping(self, fixed: str, scheduled: str) -> tuple[float, float]:
        """The share of the steps whose norm, the second of the three numbers of a step, is above the limit."""
        run = self.members(fixed)[0]
        rows = array("f", (self.study_dir / run["id"] / "steps.f32").read_bytes())
        norms = [norm for norm in rows[1::3] if math.isfinite(norm)]
        limit = float(run["train.clip_norm"])
        return sum(norm > limit for norm in norms) / len(norms), self.difference("val_ppl", fixed, scheduled)[0]

    def _rare_words(self, adam: str, sgd: str) -> tuple[float, float]:
        rare, frequent = (
            self.mean(sgd, lambda run, key=key: float(run[key])) - self.mean(adam, lambda run, key=key: float(run[key]))
            for key in ("loss_of_others", "loss_of_10_most_frequent")
        )
        return rare, frequent

    def _memory(self, run: str) -> tuple[float, float]:
        found = {claim["measure"]: claim["values"][0] for claim in self.claims if claim["members"] == [run]}
        return found["gradient_factor"], found["context_tokens"]

    def _size(self, setting: str) -> tuple[float, float]:
        return self.mean(setting, lambda run: float(run["parameters"])), self.mean(setting, self.gap)

    def _order_of_samples(self, claim: Mapping[str, Any]) -> Iterator[str]:
        """The loss of each sample is that of its tokens without as large a share as held-out text has <unk>."""
        losses = {}
        for row in self.samples:
            run = self.runs[row["number"]]
            lines = (self.study_dir / run["id"] / "samples.jsonl").read_text("utf-8").splitlines()
            line = next(one for one in map(json.loads, lines) if one["index"] == int(row["index"]))
            pieces = [float(one["unk_share"]) for one in self.held_out if one["number"] == row["number"]]
            share = statistics.fmean(pieces) if pieces else 0.25
            raters = line.get("panel") or [line["log_prob"]]
            of_words = sorted(
                -statistics.fmean(each)
                for token, *each in zip(line["tokens"], *raters, strict=True)
                if token != "<unk>"
            )
            left_out = max(math.floor(share * len(line["tokens"]) + 1e-9), line["tokens"].count("<unk>"))
            kept = of_words[: len(line["tokens"]) - left_out]
            bad = (
                (run["data.level"] == "word" and float(row["repetition"]) > 0.5)
                or float(row["distinct_3"]) < 0.5
                or float(row["unk_share"]) > share
            )
            name = f"{row['number']} {run['name']}, sample {row['index']}"
            losses[name] = (statistics.fmean(kept) if kept else math.inf, bad)
        found = [losses[name] for name in claim["members"]]
        yield from same("losses", claim["values"], [loss for loss, _ in found])
        told = [one for one in self.claims if one["measure"] == "sample_loss"]
        groups = ("Best", claim["given"]["group"])
        shown = {name for one in told if one["given"]["group"] in groups for name in one["members"]}
        others = [one for name, one in losses.items() if name not in shown]
        if claim["given"]["group"] == "Best":
            last = (found[-1][1], found[-1][0] if not found[-1][1] else math.inf)
            if any((bad, loss) < last for loss, bad in others):
                yield "another sample comes before"
        elif any(loss > found[-1][0] for loss, _ in others):
            yield "another sample has a higher loss"

    # -- searches, published results, what to run next -----------------------------------------------------------------

    def _search(self, claim: Mapping[str, Any]) -> Iterator[str]:
        given, runs = claim["given"], list(self.runs.values())
        match claim["measure"]:
            case "runs":
                key = {"state": "state", "rung": "rung"}[given["counted"]]
                wanted = [float(sum(run[key] == name for run in runs)) for name in claim["members"]]
                yield from same("runs", claim["values"], wanted)
                if sum(wanted) != sum(bool(run[key]) for run in runs):
                    yield "some runs are not counted"
            case "epochs":
                asked = sum(int(run["epochs_asked"]) for run in runs if run["epochs_asked"]) + given["absent"]
                yield from same(
                    "epochs", claim["values"], [sum(int(run["epochs_done"]) for run in runs), max(asked, 1)]
                )
            case "hours":
                yield from same("hours", claim["values"], self._hours(given["kind"]))
            case "pairs":
                yield from self._rung(claim)
            case "importance":
                yield from self._importance(claim)

    def _hours(self, kind: str) -> list[float]:
        spent = whole = 0.0
        for name, rows in self.all_epochs.items():
            own = []
            for row in rows:
                attempt = self.attempts.get((name, row["attempt"]))
                if attempt and attempt["started_at"]:
                    devices = {"GPU hours": "gpus", "core hours": "cores"}.get(kind)
                    own.append(float(row["epoch_seconds"]) / 3600 * (float(attempt[devices]) if devices else 1.0))
            if own:
                spent += sum(own)
                whole += sum(own) / len(own) * max(len(own), int(self.runs[name]["epochs_asked"]))
        return [spent, whole]

    def _rung(self, claim: Mapping[str, Any]) -> Iterator[str]:
        """Pairs of finished runs of one group, without ties, and those with one order at the rung and at the end."""
        epochs, within, final = (claim["given"][key] for key in ("epochs", "within", "final_seeds"))
        groups = defaultdict(list)
        for name, rows in self.all_epochs.items():
            run = self.runs[name]
            at = {row["epoch"]: row for row in rows}.get(str(epochs - 1))
            if at and run["id"] not in final and is_compared(run):
                value = number(at[claim["given"]["metric"]])
                group = (run["study"], run["text"], *(run[key] for key in within))
                end = min(float(row["val_ppl"]) for row in self.epochs[name] if row["val_ppl"])
                groups[group].append((value if math.isfinite(value) else math.inf, end))
        pairs = [
            (a, b)
            for own in groups.values()
            for k, a in enumerate(own)
            for b in own[:k]
            if a[0] != b[0] and a[1] != b[1]
        ]
        agreeing = sum((a[0] < b[0]) == (a[1] < b[1]) for a, b in pairs)
        if (claim["values"], claim["given"]["pairs"]) != ([float(agreeing)], len(pairs)):
            yield f"{agreeing} of {len(pairs)} pairs agree"

    @staticmethod
    def _importance(claim: Mapping[str, Any]) -> Iterator[str]:
        """Shares of a whole, the largest first. PED-ANOVA and its shuffles have tests of their own."""
        shares, chances = claim["values"], claim["given"]["p"]
        if not math.isclose(sum(shares), 1.0) and any(shares):
            yield "the shares do not add up"
        if list(shares) != sorted(shares, reverse=True) or not all(0 < p <= 1 for p in chances):
            yield "no shares with their chances"

    def _next(self, claim: Mapping[str, Any]) -> Iterator[str]:
        given = claim["given"]
        match claim["measure"]:
            case "lr":
                own = self.members(given["setting"])[0]
                kind = {key: own[key] for key in ("arch", "optimizer", "text")}
                rates = {
                    float(run["optim.lr"])
                    for run in self.runs.values()
                    if {key: run[key] for key in kind} == kind and is_compared(run)
                }
                yield from same("rates", claim["values"], sorted(rates))
                ends = [float(own["optim.lr"]) == end for end in (min(rates), max(rates))]
                if len(given["untried"]) != sum(ends):
                    yield f"untried {given['untried']}"
                if not all((float(rate) < min(rates)) or (float(rate) > max(rates)) for rate in given["untried"]):
                    yield f"{given['untried']} were tried"
            case "fall_per_epoch":
                yield from same("falls", claim["values"], [self._fall(name.split()[0]) for name in claim["members"]])
                falling = {
                    name for name, run in self.runs.items() if run["state"] == "done" and self._fall(name) > 0.001
                }
                told = [one for one in self.claims if one["measure"] == "fall_per_epoch"]
                if falling != {name.split()[0] for one in told for name in one["members"]}:
                    yield f"{falling} fall"
                longer = given["proposal"] == "longer schedule"
                if any(self._has_ended(name.split()[0]) != longer for name in claim["members"]):
                    yield given["proposal"]
            case "runs":
                counts = [self._left(name) for name in claim["members"]]
                counts = [
                    count + given["absent"] * (name == "unfinished")
                    for name, count in zip(claim["members"], counts, strict=True)
                ]
                yield from same("runs", claim["values"], list(map(float, counts)))

    def _fall(self, name: str) -> float:
        curve = [number(row["val_ppl"]) for row in self.all_epochs[name]]
        last = max(2, math.ceil(len(curve) / 10))
        end = curve[-last:]
        if len(end) < 2 or not all(math.isfinite(one) for one in end) or end[-1] > min(filter(math.isfinite, curve)):
            return 0.0
        return 1 - (end[-1] / end[0]) ** (1 / (len(end) - 1))

    def _has_ended(self, name: str) -> bool:
        """Whether the rate of the next epoch is below a hundredth of the first one."""
        run = self.runs[name]
        gone, schedule = int(run["epochs_done"]), run["optim.schedule"]
        if schedule in ("linear", "cosine"):
            return gone >= int(run["optim.decay_epochs"])
        rate = 1.0
        for epoch in range(gone + 1):
            beyond = epoch - int(run["optim.flat_epochs"] or 0) + 1
            if schedule in ("compounding", "per_epoch") and beyond > 0:
                rate /= float(run["optim.decay"]) ** (beyond if schedule == "compounding" else 1)
        return rate < 0.01

    def _left(self, name: str) -> int:
        runs = self.runs.values()
        if name.startswith("failed: "):
            return sum(run["state"] == "failed" and f"failed: {run['failure_kind']}" == name for run in runs)
        states = {"stopped": ["stopped"], "unfinished": ["pending", "queued", "running", "cancelled"]}[name]
        return sum(run["state"] in states for run in runs)

    def _published(self, claim: Mapping[str, Any]) -> Iterator[str]:
        places: dict[str, str] = {}
        percent: dict[str, float] = {}
        for name, run in self.runs.items():
            published, limit = number(run["published_val_ppl"]), number(run["published_epochs"])
            rows = self.all_epochs[name]
            if math.isnan(limit):
                limit = len(rows)
            known = [number(row["val_ppl"]) for row in rows[: int(limit)]]
            if (
                run["state"] != "done"
                or len(rows) < limit
                or not (run["published_val_ppl"] or run["published_train_ppl"])
            ):
                continue
            best = min(filter(math.isfinite, known))
            percent[f"{name} {run['name']}"] = 100 * (best / published - 1)
            ends = sorted(number(run[key]) for key in ("replications_low", "replications_high"))
            if not math.isnan(ends[0]):
                places[name] = "below" if best < ends[0] else "above" if best > ends[1] else "within"
        if claim["kind"] == "count":
            wanted = [float(sum(place == one for place in places.values())) for one in claim["members"]]
            yield from same("places", claim["values"], wanted)
        else:
            yield from same("percent", claim["values"], [percent[name] for name in claim["members"]])
            if {name for name, one in percent.items() if not math.isnan(one)} != {*claim["members"]}:
                yield "not all runs with published numbers"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(text: str) -> float:
    return float(text) if text else math.nan


def label(arch: str) -> str:
    return {"rnn": "RNN", "gru": "GRU", "transformer": "Transformer"}.get(arch, arch)


def is_compared(run: Mapping[str, str]) -> bool:
    return bool(run["state"] == "done" and run["compared_epochs"] and run["compared_val_ppl"])


def kind_of(optimizer: str) -> str:
    return {"adam": "Adam", "sgd": "SGD", "sgd_schedule": "SGD schedule"}.get(optimizer, optimizer)


def same(what: str, found: Sequence[float | None], wanted: Sequence[float]) -> Iterator[str]:
    """Yield a line if numbers differ; null is NaN."""
    pairs = list(zip(found, wanted, strict=True))
    if not all((a is None and math.isnan(b)) or (a is not None and math.isclose(a, b, **CLOSE)) for a, b in pairs):
        yield f"{what} {list(found)}, wanted {list(wanted)}"


def evidence(differences: Sequence[float], mean: float) -> float:
    """The evidence against a mean: a Bayes factor whose prior of the effect is N(0, 1) in standard deviations."""
    n = len(differences)
    squared_t = n * (statistics.fmean(differences) - mean) ** 2 / statistics.variance(differences)
    shrunk = (1 + squared_t / (n - 1)) / (1 + squared_t / ((n - 1) * (1 + n)))
    return float(shrunk ** (n / 2) / math.sqrt(1 + n))


def p_value(nats: float, error: float, freedom: float) -> float:
    """Two-sided, of Student's t, by Simpson's rule."""
    if math.isnan(error):
        return math.nan
    if error == 0:
        return 0.0 if nats else 1.0
    t = abs(nats) / error
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    steps, end = 400, min(t, 60.0)
    width = end / steps
    weights = (1 if k in (0, steps) else 4 if k % 2 else 2 for k in range(steps + 1))
    area = sum(w * (1 + (k * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for k, w in enumerate(weights))
    return max(0.0, 1 - 2 * scale * area * width / 3)
