"""``results``, ``note``, ``diff`` and ``generate``: what became of runs, notes about them, and text from a model."""

import functools
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.cli.naming import REPORTED, chosen_runs, find_trained, one_run, reported, text_of
from jobs.cli.view import what_differs
from jobs.manifests.filters import column_meant
from jobs.study.folder import ObservedRun, find_study, observe_study
from jobs.study.launched import trust_study
from jobs.terminal import Column, Result, show
from seqlm.errors import CheckpointError, UsageError, printable
from seqlm.notes import TAG, Noted, read_notes, write_note
from seqlm.reading import exists
from seqlm.schema import show as quoted

FIRST = ("study", *REPORTED[:3], "state")
LAST = (*REPORTED[3:], "reason")
COLUMNS = (*FIRST, *LAST)
"""What ``results`` has of each run, with the names of the report's columns: before what differs, and after it."""
BITS = ("val_bits_per_byte", "test_bits_per_byte")


def _epoch(record: Mapping[str, Any]) -> str:
    return "-" if record["best_epoch"] is None else f"{record['best_epoch'] + 1} of {record['epochs_done']}"


def _bits(record: Mapping[str, Any]) -> str:
    """Bits per byte. They compare only if the tokens determine the text: a run that predicts <unk> has it easier."""
    value = record["val_bits_per_byte"]
    return "-" if value is None or record["lossless"] is False else f"{value:.3f}"


NUMBER, STUDY_NAME, NAME = Column("#", "number", right=True), Column("study"), Column("run", "name")
TABLE = (
    Column("val ppl", "val_ppl", terminal.perplexity, right=True),
    Column("epoch", _epoch, right=True),
    Column("test ppl", "test_ppl", terminal.perplexity, right=True),
    Column("time", "wall_seconds", terminal.duration, right=True),
    Column("", lambda one: None if one["state"] == "done" else one["state"], colors=terminal.STATE_COLORS),
)
"""The columns of the table after what differs."""
VALID_BITS = Column("bits/byte", _bits, right=True)


@dataclass(frozen=True, kw_only=True)
class RunsResult(Result):
    """What came of the runs of studies, on each text the best first."""

    HIDDEN = frozenset({"keys", "csv", "by_text"})

    studies: Sequence[str]
    runs: Sequence[Mapping[str, Any]]
    keys: Sequence[str]
    """Those in which the runs differ."""
    csv: bool
    by_text: bool
    """Whether the runs of each text stand together."""

    def render(self) -> None:
        if self.csv:
            self._print_csv()
        else:
            self._say_tables()

    def _print_csv(self) -> None:
        from analysis.blocks.table import csv_text  # here, since it imports pandas

        header = [*FIRST, *self.keys, *LAST]
        table = []
        for run in self.runs:
            row = {**run, **run["differs"]}
            cells = (row.get(key) for key in header)
            table.append([printable(cell) if isinstance(cell, str) else cell for cell in cells])
        sys.stdout.write(csv_text(header, table))

    def _say_tables(self) -> None:
        """Print a table for each text. A narrow terminal shows the first keys only."""
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for run in self.runs:
            groups.setdefault(run["text"] if self.by_text else "", []).append(run)
        columns = [STUDY_NAME, NAME] if len(self.studies) > 1 else [NUMBER, NAME]
        several = len(groups) > 1 or (not self.by_text and len({run["text"] for run in self.runs}) > 1)
        bits = [VALID_BITS] if several else []
        if len(groups) > 1:
            terminal.say("Perplexities on different texts or vocabularies do not compare, so each has its own table;")
            terminal.say("--sort val_bits_per_byte orders runs of one text, but those in which words became <unk>.")
        for text, runs in groups.items():
            if several and self.by_text:
                terminal.say("", f"{printable(text)}:")
            _say_table(runs, self.keys, columns, [*TABLE[:1], *bits, *TABLE[1:]])


def results(arguments: Arguments) -> RunsResult:
    """Return the runs of studies, the best of each text first: what differs between them, and what came of each."""
    if arguments.csv and arguments.json:
        raise UsageError("--csv prints a table, --json one document; use one of them")
    study_dirs = list(dict.fromkeys(find_study(study, arguments.runs_dir) for study in arguments.studies))
    chosen = [(study_dir, run) for study_dir in study_dirs for run in chosen_runs(arguments, study_dir)]
    tables = {study_dir: reported(study_dir) for study_dir in dict.fromkeys(study_dir for study_dir, _ in chosen)}
    every: list[tuple[str, dict[str, Any]]] = []
    for (study_dir, run), differs in zip(chosen, what_differs([run for _, run in chosen]), strict=True):
        row = tables[study_dir].get(run.run.id)
        seen = {"state": run.observation.state, "reason": run.observation.reason, "differs": differs}
        if row is not None:
            every.append((text_of(run), {"study": study_dir.name, **row, **seen}))
    keys = list(dict.fromkeys(key for _, record in every for key in record["differs"]))
    orders = [_sort_key(text, keys) for text in arguments.sort.split(",")]
    by_text = orders[0][0] not in BITS
    _label_texts(every)
    groups: dict[str, list[dict[str, Any]]] = {}
    for text, record in every:
        groups.setdefault(text if by_text else "", []).append(record)
    records = []
    for group in groups.values():
        ordered = sorted(group, key=lambda record: _number(record["number"]))
        for key, is_descending in reversed(orders):
            ordered.sort(key=functools.partial(_order, key=key, is_descending=is_descending))
        records += ordered[: arguments.top]
    names = [study_dir.name for study_dir in study_dirs]
    return RunsResult(studies=names, runs=records, keys=keys, csv=arguments.csv, by_text=by_text)


def _label_texts(every: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Give all runs on a text the same words for it, and runs on others other words, also over several studies.

    A study's own words tell its texts apart, so the first study on a text completes words that two texts share.
    """
    labels: dict[str, str] = {}
    studies: dict[str, str] = {}
    for text, record in every:
        labels[text] = max(labels.get(text, ""), record["text"], key=len)
        studies.setdefault(text, record["study"])
    uses = Counter(labels.values())
    for text, record in every:
        label = labels[text]
        record["text"] = f"{label} (study {studies[text]})" if uses[label] > 1 else label


def _sort_key(text: str, keys: Sequence[str]) -> tuple[str, bool]:
    """Return the column or key that a word of ``--sort`` names, and whether the highest comes first (``-KEY``)."""
    word, valid = text.strip().removeprefix("-"), [*COLUMNS, *keys]
    found = next((key for key in valid if word in (key, key.rpartition(".")[2])), None)
    if found is None:
        raise UsageError(f'--sort: expected one of {", ".join(valid)}, got "{word}"{column_meant(word, valid)}')
    return found, text.strip().startswith("-")


def _number(text: str) -> tuple[int, str]:
    """Order the numbers of the report, such as ``2``, ``3b`` and ``10``."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits or 0), text


def _order(record: Mapping[str, Any], *, key: str, is_descending: bool) -> tuple[int, float, Any]:
    """Order numbers by size, then texts, then what is missing."""
    value = {**record, **record["differs"]}.get(key)
    if key in BITS and record["lossless"] is False:
        value = None
    sign = -1 if is_descending else 1
    if key == "number":
        place, letters = _number(str(value))
        return 0, sign * place, letters
    if value is None:
        return 2, 0.0, ()
    if isinstance(value, int | float):
        return 0, sign * value, ()
    return 1, 0.0, tuple(sign * ord(letter) for letter in str(value))


def _say_table(
    records: Sequence[Mapping[str, Any]], keys: Sequence[str], first: Sequence[Column], last: Sequence[Column]
) -> None:
    """Print a table of runs with what differs between them."""
    rows = [{**record["differs"], **record} for record in records]
    keys = [key for key in keys if not key.endswith("sha256")]  # the name of a run says which text or file it has
    keys = [key for key in keys if len({repr(row.get(key)) for row in rows}) > 1 or len(rows) == 1]
    columns = []
    for place, key in enumerate(keys, start=1):
        are_numbers = all(_shown(row.setdefault(key, None))[:1] in "-0123456789" for row in rows)
        columns.append(Column(key.rpartition(".")[2], key, _shown, right=are_numbers, spare=place))
    show([*first, *columns, *last], rows)


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)


# -- note ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NoteResult(Result):
    """What is noted about runs."""

    study: str
    runs: Sequence[Mapping[str, Any]]

    def render(self) -> None:
        show((Column("run", "name"), Column("tags", text=" ".join), Column("note", "text")), self.runs)


def note(arguments: Arguments) -> NoteResult:
    """Write a note about runs, if it has tags or a text, and return what is noted about them."""
    for tag in arguments.tag:
        if not TAG.fullmatch(tag):
            raise UsageError(f"--tag: expected a word without any of , = < > ! * ? [ ], got {quoted(tag)}")
    if arguments.add and (not arguments.tag or "none" in arguments.tag):
        raise UsageError("--add keeps earlier tags and adds those of --tag; expected --tag TAG with it")
    study_dir = find_trained(arguments)
    runs = chosen_runs(arguments, study_dir)
    if runs and (arguments.tag or arguments.text is not None):
        for tags, ids in _tags_of(study_dir, [run.run.id for run in runs], arguments).items():
            write_note(study_dir, ids, tags, arguments.text)
    notes = read_notes(study_dir)
    records = []
    for run in runs:
        noted = notes.get(run.run.id, Noted())
        records.append({"name": run.name, "id": run.run.id, "tags": list(noted.tags), "text": noted.text})
    return NoteResult(study=study_dir.name, runs=records)


def _tags_of(study_dir: Path, ids: Sequence[str], arguments: Arguments) -> dict[tuple[str, ...] | None, list[str]]:
    """Return the new tags of runs, with the ids of the runs that get them. ``None``: their tags stay as they are."""
    if not arguments.tag:
        return {None: [*ids]}
    given = [tag for tag in arguments.tag if tag != "none"]
    notes = read_notes(study_dir) if arguments.add else {}
    groups = defaultdict[tuple[str, ...] | None, list[str]](list)
    for run_id in ids:
        earlier = notes.get(run_id, Noted()).tags
        groups[tuple(dict.fromkeys([*earlier, *given]))].append(run_id)
    return groups


# -- diff ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DiffResult(Result):
    """What differs between two runs or studies."""

    HIDDEN = frozenset({"titles"})

    differences: Sequence[Mapping[str, Any]]
    patch: str | None
    """How the files of the code differ. ``None``: that was not asked for."""
    titles: tuple[str, str]
    """The names of the two sides."""

    def render(self) -> None:
        if self.differences:
            sides = [Column(title, side, _shown) for title, side in zip(self.titles, ("a", "b"), strict=True)]
            show([Column("", "kind"), Column("", _place), *sides, Column("", "runs", ", ".join)], self.differences)
        if self.patch or not self.differences:
            terminal.say(*(self.patch or "no difference").split("\n"))


def diff(arguments: Arguments) -> DiffResult:
    """Return what differs between two runs, or between the runs of two studies that have the same name."""
    from analysis.study.difference import Difference, differences, patch

    left, right = (_runs_of(arguments, text) for text in (arguments.a, arguments.b))
    if ("" in left) != ("" in right):
        raise UsageError("expected two runs or two studies, got one of each; a run is written STUDY/RUN")
    records: dict[str, dict[str, Any]] = {}
    patches: dict[str, None] = {}
    for name in {**left, **right}:
        a, b = left.get(name), right.get(name)
        found = differences(a.run, b.run) if a and b else [Difference("run", name, a and a.run.id, b and b.run.id)]
        for one in found:
            records.setdefault(repr(one), {**one._asdict(), "runs": []})["runs"] += [name] if name else []
        if arguments.patch and a and b:
            patches[patch(a.run, b.run)] = None
    text = "\n".join(filter(None, patches)) if arguments.patch else None
    return DiffResult(differences=[*records.values()], patch=text, titles=(arguments.a, arguments.b))


def _runs_of(arguments: Arguments, text: str) -> dict[str, ObservedRun]:
    """Return the runs of a study by name, those of one name by id; of STUDY/RUN that run, with an empty name."""
    try:
        runs = chosen_runs(arguments, find_study(text, arguments.runs_dir))
    except UsageError as error:
        study, _, name = text.rstrip("/").rpartition("/")
        try:
            study_dir = find_study(study, arguments.runs_dir)
        except UsageError:
            raise error from None
        return {"": one_run(chosen_runs(arguments, study_dir), name, study_dir)}
    counts = Counter(run.name for run in runs)
    return {run.name if counts[run.name] == 1 else run.run.id: run for run in runs}


def _place(record: Mapping[str, Any]) -> str:
    place = "" if record["step"] is None else f" in epoch {record['epoch'] + 1}, step {record['step'] + 1}"
    return f"{record['key']}{place}"


# -- generate ------------------------------------------------------------------------------------------------------


def generate(arguments: Arguments) -> tuple[dict[str, Any], int]:
    """Print a prompt and the text that a run's model writes after it. Words that the model does not know are named."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    named = one_run(observe_study(study_dir), arguments.run, study_dir)
    seen = named.observation
    state = ": ".join(filter(None, (seen.state, seen.reason)))
    if not exists(named.run.best_checkpoint):
        raise CheckpointError(f"{named.name} has no trained model to write with; it is {state}")
    if arguments.trust:
        trust_study(study_dir, terminal.tell)
    from analysis import open_study

    if seen.state != "done":
        terminal.tell(f"warning: {named.name} is {state}; the text is of its best epoch so far")
    run = open_study(study_dir).run(named.run.id)
    text = run.generate(
        arguments.beginning,
        tokens=arguments.tokens,
        temperature=arguments.temperature or 1.0,
        seed=1 if arguments.seed is None else arguments.seed,
    )
    if text.unknown:
        words = ", ".join(f'"{word}"' for word in text.unknown)
        terminal.tell(f"warning: not in the vocabulary of {run.name}, which reads <unk> instead: {words}")
    terminal.say(*str(text).split("\n"))
    return {"study": study_dir.name, "name": run.name, "id": run.id, **vars(text)}, 0
