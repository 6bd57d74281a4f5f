"""What a manifest says itself in a part of the report, with results in place of references to them."""

import dataclasses
import statistics

import pandas as pd

from analysis.blocks.section import Note
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.record import GAPS, TIMES, WrittenNote
from analysis.study.settings import best_settings, geometric_mean, settings_of
from analysis.study.study import StudyFiles
from seqlm.references import Reference, fill_references

UNKNOWN = "not known yet"
"""Stands for a result that does not exist, such as that of a run that has not finished."""


def note_blocks(part: str, study: StudyFiles) -> list[Note]:
    """Return the notes of the manifests for a part of the report."""
    return [note_block(note, study) for note in study.notes if note.part == part]


def note_block(note: WrittenNote, study: StudyFiles) -> Note:
    """Return a note under the name of its manifest. Its references are to runs of its own study, at equal epochs."""
    title = "Manifest" if note.manifest is None else f"Manifest {note.manifest}"
    return Note(text=fill_references(note.text, lambda reference: _result(reference, note, study)), title=title)


def _result(reference: Reference, note: WrittenNote, study: StudyFiles) -> str:
    """Return a result as the report writes it: of several seeds the mean, of anything but a gap the geometric one."""
    values = _runs_of(reference, note, study)[reference.metric].to_list()
    if not values or not all(map(units.is_number, values)):
        return UNKNOWN
    mean = statistics.fmean(values) if reference.metric in GAPS else geometric_mean(values)
    return written(reference.metric, mean)


def _runs_of(reference: Reference, note: WrittenNote, study: StudyFiles) -> pd.DataFrame:
    """Return the finished run that a reference names, or those of the best setting of the architecture it names."""
    if reference.kind == "run":
        runs = finished(study.compared.runs)
        return runs[runs["id"] == note.runs.get(reference.name)]
    of_note = dataclasses.replace(study, runs=study.runs[study.runs["study"] == note.study])
    runs = finished(of_note.on_one_text.compared.runs)
    best = best_settings(settings_of(runs[runs["arch"] == reference.name]))
    return runs[runs["number"].isin([run for setting in best for run in setting.runs])]


def written(metric: str, value: float) -> str:
    """Return a value of a metric as the report writes it."""
    if metric in GAPS:
        return f"{units.decimals('.3f')(value)} nats"
    return units.duration(value) if metric in TIMES else units.perplexity(value)
