"""The parts of the report about the trained models' behaviour."""

from __future__ import annotations

from collections.abc import Sequence

from analysis import units
from analysis.load import Study
from analysis.section import Block, Points, Prose, Section, Subheading
from analysis.tables import best_runs
from analysis.trained.behaved import Behaved, behaved_runs, shown_runs
from analysis.trained.behaviour_charts import behaviour_charts
from analysis.trained.behaviour_tables import behaviour_table, measures_table
from analysis.trained.choosing import LEAST_DISTINCT, MOST_REPEATED, MOST_UNKNOWN, percent
from analysis.trained.curve_sentences import sentences
from analysis.trained.samples import all_samples, chosen_samples

COMMAND = "launch.py behaviour STUDY"


def behaviour_section(study: Study) -> Section:
    """Loss at each time step, gradients back in time, and samples."""
    runs = behaved_runs(study)
    title, short = "Behaviour of the trained models", "Behaviour"
    if not runs:
        text = f"Not computed yet; “{COMMAND}” does it for the best run of each architecture."
        return Section(name="behaviour", title=title, short=short, blocks=[Prose(text=text)])
    shown = shown_runs(runs)
    notes = [*_absence(study, runs), *_left_out(runs, shown)]
    blocks: list[Block] = [
        *(Prose(text=note) for note in notes),
        *behaviour_charts(shown),
        *_one_layer_note(shown),
        Points(items=sentences(shown)),
        behaviour_table(runs),
        *_samples_blocks(runs, shown),
    ]
    return Section(name="behaviour", title=title, short=short, blocks=blocks)


def samples_appendix(study: Study) -> Section:
    """All samples of the runs that the section shows; without a block where there are none."""
    block = all_samples(shown_runs(behaved_runs(study)))
    return Section(
        name="all-samples", title="Appendix: all samples", short="All samples", blocks=[block] if block.runs else []
    )


def _absence(study: Study, runs: Sequence[Behaved]) -> list[str]:
    """Which of the best runs is missing."""
    known = {run.id for run in runs}
    missing = [
        f"{run['number']} {run['name']} ({units.architecture(run['arch'])})"
        for run in best_runs(study.runs).to_dict("records")
        if run["id"] not in known
    ]
    if not missing:
        return []
    verb = "is" if len(missing) == 1 else "are"
    return [
        f"Of the best runs of each architecture, {units.listing(missing)} {verb} not here, because the behaviour has "
        f"not been computed or cannot be read; “{COMMAND}” computes it."
    ]


def _left_out(runs: Sequence[Behaved], shown: Sequence[Behaved]) -> list[str]:
    if len(shown) == len(runs):
        return []
    return [
        f"Figures, sentences and samples are about {len(shown)} of {len(runs)} runs: the best of each architecture and "
        "those of the lowest validation perplexity. The tables and data/behaviour.csv hold all of them."
    ]


def _one_layer_note(runs: Sequence[Behaved]) -> list[Prose]:
    single = [run.reference for run in runs if len(run.behaviour.layer_gradients) == 1]
    if not single:
        return []
    of = "Every run here has" if len(single) == len(runs) else f"{units.listing(single)} {_have(single)}"
    return [Prose(text=f"{of} one layer, so that its gradient norm is the overall one.")]


def _have(items: Sequence[str]) -> str:
    return "has" if len(items) == 1 else "have"


# -- samples -------------------------------------------------------------------------------------------------------


def _samples_blocks(runs: Sequence[Behaved], shown: Sequence[Behaved]) -> list[Block]:
    block = chosen_samples(shown)
    if not block.runs:
        return [Prose(text="There are no samples.")]
    rules = (
        "Each sample is drawn token by token from the model's own predictions, every token the next one's input. Best "
        "and worst: lowest and highest perplexity under the judge (where there is none, under the model itself). A "
        "text that repeats itself has a low perplexity without being good, so the best are chosen among texts with at "
        f"most {percent(MOST_REPEATED)} of tokens that occur among the 16 before them (texts of words only), at least "
        f"{percent(LEAST_DISTINCT)} distinct three-token sequences and at most {percent(MOST_UNKNOWN)} <unk>, as long "
        "as there are any. Interesting: among the samples not chosen yet, by the measure that each one's reason names. "
        "All samples are in the appendix, their measures in data/samples.csv."
    )
    return [
        Subheading(text="Samples"),
        Prose(text=rules),
        measures_table([run for run in runs if run.behaviour.samples]),
        block,
    ]
