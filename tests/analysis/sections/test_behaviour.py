import hashlib
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.blocks.section import Samples, Section
from analysis.claims.texts import sample_sentences
from analysis.plots.behaviour import gradient_chart, loss_chart, rescaled
from analysis.report import report_files
from analysis.sections.behaviour import (
    behaviour_section,
    behaviour_table,
    samples_page,
    vanishes_after,
)
from analysis.sections.samples import chosen_samples, sample_sections, samples_table, shade
from analysis.study.behaviour import Measures, Sample
from analysis.study.examined import ExaminedRun, examined_runs
from analysis.study.study import load_study
from analysis.study.texts import (
    best_first,
    choose,
    least_likely_word,
    longest_known_stretch,
    standing,
    texts_of,
)
from analysis.study.units import plain_text
from seqlm.files import write_json
from seqlm.records.behaviour import MeasuresPart, SampleLine
from seqlm.rundir import RunDirectory
from tests.analysis.behaviour_made_up import (
    BLOCKS,
    add_behaviour,
    add_behaviour_of_version_3,
    add_samples,
    member,
    raw_measures,
    raw_sample,
)
from tests.analysis.contents import said
from tests.analysis.synthetic import make_run

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "study", 0, epochs=2)


def behaved(run: RunDirectory) -> list[ExaminedRun]:
    return examined_runs(load_study(run.path.parent))


def test_the_panels_hold_the_numbers_of_the_file(run: RunDirectory) -> None:
    add_behaviour(run)
    loss, gradient = loss_chart(behaved(run)), gradient_chart(behaved(run))
    carried, zero = loss.panels[0].lines
    assert zero.x.tolist() == [1, 2, 3, 4]
    assert zero.y.tolist() == [6.0, 5.0, 4.5, 4.25]
    assert carried.y.tolist() == [5.0, 4.75, 4.5, 4.25]
    scaled, absolute = (panel.lines[0].y for panel in gradient.panels)
    assert scaled.tolist() == [0.0, 0.25, 1.0]
    np.testing.assert_equal(absolute, [math.nan, 0.25, 1.0])
    assert gradient.panels[1].lines[1].y.tolist() == [0.5, 1.0, 2.0], "the mean of norms beside the norm of the mean"
    assert "Exact zeros" in gradient.caption


def test_losses_have_a_band_and_the_difference_to_the_best_run_is_paired_over_the_same_tokens(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    text = chance.normal(0.0, 1.0, (30, 1))  # what makes a block hard is the same for both
    runs = [make_run(tmp_path / "study", order, epochs=2) for order in (0, 1)]
    for run, loss in zip(runs, (5.0, 5.1), strict=True):
        add_behaviour(run, (loss + text + chance.normal(0.0, 0.01, (30, 4))).tolist())
    chart = loss_chart(behaved(runs[0]))
    left, right = chart.figure.axes
    (line,) = [line for line in right.lines if (line.get_gid() or "").startswith("run-")]
    assert np.mean(line.get_ydata()) == pytest.approx(0.1, abs=0.02)
    bands = [found.get_paths()[0].vertices for found in (left.collections[0], right.collections[0])]
    heights = [max(np.ptp(band[band[:, 0] == step, 1]) for step in (1, 2, 3, 4)) for band in bands]
    assert heights[1] < heights[0] / 10, "what both runs share cancels"
    assert "95 %" in chart.caption


def test_runs_on_other_tokens_have_no_difference(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "study", order, epochs=2) for order in (0, 1)]
    add_behaviour(runs[0])
    add_behaviour(runs[1], [*BLOCKS, *BLOCKS])
    assert len(loss_chart(behaved(runs[0])).figure.axes) == 1


def test_the_table_says_how_far_back_and_the_means_over_steps(run: RunDirectory) -> None:
    add_behaviour(run)
    table = behaviour_table(behaved(run))
    cells = dict(zip((column.key for column in table.columns), table.rows[0].cells, strict=True))
    assert cells["zero_state_ppl"].value == pytest.approx(math.exp(4.9375))
    assert cells["carried_state_ppl"].value == pytest.approx(math.exp(4.625))
    assert cells["steps_to_1_percent"].value == 2
    assert cells["mean_of_norms_steps_to_1_percent"].value is None


def test_the_table_of_samples_has_the_means_of_runs_and_of_the_validation_text_as_their_scale(
    run: RunDirectory,
) -> None:
    add_behaviour(run)
    add_samples(
        run, [raw_sample(0, ["a", "b"], [1.0, 2.0], repetition=0.2), raw_sample(1, ["a"], [4.5], repetition=0.4)]
    )
    other = make_run(run.path.parent, 3, epochs=2)
    add_behaviour(other)
    add_samples(other, [raw_sample(0, ["a"], [3.0])])
    table = samples_table(behaved(run))
    first, second, scale = (
        {c.key: cell.value for c, cell in zip(table.columns, r.cells, strict=True)} for r in table.rows
    )
    assert [first["rating"], second["rating"], scale["rating"]] == [3.0, 3.0, 4.5]
    assert first["rating_error"] == pytest.approx(1.5 / math.sqrt(2) * math.sqrt(2))
    assert second["rating_error"] is None
    assert first["repetition"] == pytest.approx(0.3)
    assert (first["number"], scale["number"]) == (1, None)


def test_a_gradient_that_is_zero_by_construction_is_not_called_vanished(run: RunDirectory) -> None:
    norms = {"window": 3, "columns": 20, "overall": [0.0, 0.0, 1.0], "mean_of_norms": [0.0, 0.0, 2.0]}
    for order in (0, 6):
        add_behaviour(make_run(run.path.parent, order, epochs=2), gradient_norms={**norms, "layers": [[0.0, 0.0, 1.0]]})
    rnn, transformer = behaved(run)
    values = [row.cells[6].value for row in behaviour_table([rnn, transformer]).rows]
    assert values == [1, None]


def test_what_curves_come_to_at_their_limits() -> None:
    assert rescaled(np.array([5.0, 5.0])).tolist() == [0.0, 0.0]
    np.testing.assert_equal(rescaled(np.array([1.0, math.nan, 3.0])), [0.0, math.nan, 1.0])
    assert vanishes_after(np.array([0.5, 0.6, 1.0])) is None
    assert vanishes_after(np.array([0.0, 0.0, 1.0])) == 1
    assert vanishes_after(np.zeros(3)) is None
    assert [shade(v, 0.5) for v in (0.0, 0.49, 0.5, 3.9, 99.0, math.nan)] == [0, 0, 1, 7, 7, 0]


def test_best_leaves_out_heavy_repetition_and_the_reason_names_the_panel(run: RunDirectory) -> None:
    text = ["a", "b", "c"]
    add_behaviour(run)
    add_samples(
        run,
        [
            raw_sample(0, text, [0.5] * 3, repetition=0.9),
            raw_sample(1, text, [3.0] * 3),
            raw_sample(2, text, [2.0] * 3, copied=["a", "<unk>", "b"]),
            raw_sample(3, ["a", "<unk>", "<unk>"], [1.0, 1.0, 1.0]),
            raw_sample(4, text, [8.0] * 3),
            raw_sample(5, text, [math.inf] * 3),
            raw_sample(6, text, [7.0] * 3),
            raw_sample(7, text, [4.0] * 3, copied=["b", "c"]),
            raw_sample(8, text, [5.0] * 3, entropy=[1.0, 1.0, 3.0]),
            raw_sample(9, text, [3.5] * 3),
        ],
    )
    chosen = choose(texts_of(behaved(run)))
    assert {group: [text.sample.index for text, _ in texts] for group, texts in chosen.items()} == {
        "Best": [2, 1, 9],
        "Worst": [5, 4, 6],
        "Interesting": [7, 0, 8],
    }
    assert "under the panel, 2.00 nats" in chosen["Best"][0][1]
    reasons = [reason for _, reason in chosen["Interesting"]]
    assert "2 tokens, “b c”" in reasons[0]
    assert "90 % of the tokens" in reasons[1]


def places(run: ExaminedRun, share: float, tokens: list[list[str]], losses: list[list[int]]) -> list[int]:
    """Samples of these tokens from the best to the worst, as the report orders them."""
    lines = [raw_sample(i, words, row) for i, (words, row) in enumerate(zip(tokens, losses, strict=True))]
    samples = [Sample.of(SampleLine.from_plain(line, Path("samples.jsonl"))) for line in lines]
    held_out = (Measures.of(MeasuresPart.from_plain(raw_measures(unk_share=share), Path("behaviour.json"))),)
    behaviour = replace(run.behaviour, samples=samples, held_out=held_out)
    return [text.sample.index for text in best_first(texts_of([replace(run, behaviour=behaviour)]))]


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> ExaminedRun:
    run = make_run(tmp_path_factory.mktemp("examined") / "study", 0, epochs=2)
    add_behaviour(run)
    return behaved(run)[0]


@given(
    losses=st.lists(st.lists(st.integers(0, 12), min_size=6, max_size=6), min_size=2, max_size=6),
    unknown=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=6, max_size=6),
    share=st.sampled_from([0.0, 0.2, 0.34, 0.5, 1.0]),
    spoilt=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
@settings(max_examples=300, deadline=None)
def test_a_word_that_is_turned_into_unk_gains_its_sample_no_place(
    examined: ExaminedRun, losses: list[list[int]], unknown: list[list[bool]], share: float, spoilt: tuple[int, int]
) -> None:
    sample, place = spoilt[0] % len(losses), spoilt[1]
    tokens = [["<unk>" if is_unk else f"w{t}" for t, is_unk in enumerate(row)] for row in unknown[: len(losses)]]
    before = places(examined, share, tokens, losses)
    tokens[sample][place] = "<unk>"
    after = places(examined, share, tokens, losses)
    assert after.index(sample) >= before.index(sample)


def test_the_samples_of_all_models_are_chosen_together_and_name_their_run(run: RunDirectory) -> None:
    other = make_run(run.path.parent, 3, epochs=2)
    for one, values in ((run, (5.0, 3.0, 2.0)), (other, (4.0, 2.5, 1.0))):
        add_behaviour(one)
        add_samples(one, [raw_sample(i, ["a"], [v]) for i, v in enumerate(values)])
    shown = chosen_samples(behaved(run))
    (best, samples), (worst, others) = shown.groups
    assert (best, worst) == ("Best", "Worst")
    labels = ["Sample 2 of 4 gru-adam", "Sample 2 of 1 rnn-adam", "Sample 1 of 4 gru-adam"]
    assert [sample["label"] for sample in samples] == labels
    labels = ["Sample 0 of 1 rnn-adam", "Sample 0 of 4 gru-adam", "Sample 1 of 1 rnn-adam"]
    assert [sample["label"] for sample in others] == labels
    sections = samples_page(load_study(run.path.parent))
    assert [section.title for section in sections] == ["Samples of 1 rnn-adam", "Samples of 4 gru-adam"]
    anchors = [sample["anchor"] for sample in printed(sections)]
    assert {sample["link"] for sample in (*samples, *others)} <= set(anchors)
    assert len(set(anchors)) == len(anchors) == 6


def printed(sections: list[Section]) -> list[dict[str, Any]]:
    blocks = [block for section in sections for block in section.blocks if isinstance(block, Samples)]
    return [sample for block in blocks for _, samples in block.groups for sample in samples]


@pytest.mark.parametrize("number", [1, 20])
def test_every_sample_of_each_run_is_printed_exactly_once(run: RunDirectory, number: int) -> None:
    other = make_run(run.path.parent, 3, epochs=2)
    for one in (run, other):
        add_behaviour(one)
        add_samples(one, [raw_sample(i, ["same", "words"], [3.0, 3.0]) for i in range(number)])
    for section in sample_sections(behaved(run)):
        assert [sample["label"] for sample in printed([section])] == [f"Sample {i}" for i in range(number)]


def test_samples_with_other_raters_are_not_put_in_one_order(run: RunDirectory) -> None:
    other = make_run(run.path.parent, 3, epochs=2)
    add_behaviour(run)
    add_behaviour(other, panel=[member("first"), member("third")])
    for one in (run, other):
        add_samples(one, [raw_sample(i, ["a"], [v]) for i, v in enumerate((5.0, 2.0, 9.0))])
    chosen = choose(texts_of(behaved(run)))
    for group, index in (("Best of each run", 1), ("Worst of each run", 2)):
        assert [(text.run.number, text.sample.index) for text, _ in chosen[group]] == [(1, index), (4, index)]
    assert "not put in one order" in said(behaviour_section(load_study(run.path.parent)).blocks)


def test_without_a_panel_the_models_own_loss_decides_and_that_is_said(run: RunDirectory) -> None:
    add_behaviour(run, panel=[], held_out=[])
    samples = [
        {**raw_sample(i, ["a", "b"], rating=None), "panel": [], "log_prob": [-v, -v]} for i, v in enumerate((9.0, 5.0))
    ]
    add_samples(run, samples)
    best = choose(texts_of(behaved(run)))["Best"]
    assert [text.sample.index for text, _ in best] == [1, 0]
    assert "under the model itself, 5.00 nats" in best[0][1]
    assert "No panel rates them" in said(behaviour_section(load_study(run.path.parent)).blocks)


def test_what_earlier_versions_have_not_recorded_is_said_to_be_missing(run: RunDirectory) -> None:
    add_behaviour_of_version_3(run)
    study = load_study(run.path.parent)
    assert study.warnings == []
    behaviour = study.behaviours[run.id]
    assert behaviour.loss_per_step.tokens is behaviour.panel is behaviour.held_out is None
    assert len(behaviour.samples) == 3
    (sentence,) = sample_sentences(behaved(run))
    assert "not recorded" in sentence
    assert len(printed(samples_page(study))) == 3
    assert "known triples" not in printed(samples_page(study))[0]["facts"]


def test_strength_failure_and_quirk_are_quoted_by_rule(run: RunDirectory) -> None:
    """Ratings and pairs are level with the validation text, triples are not, and repetition is far from it."""
    pieces = [
        raw_measures(rating=r, known_pairs=0.8, known_triples=t, repetition=p)
        for r, t, p in ((4.0, 0.50, 0.30), (5.0, 0.52, 0.31), (4.5, 0.48, 0.29))
    ]
    add_behaviour(run, held_out=pieces)
    words = ["the", "model", "says", "that", "the", "end", "is", "near"]
    known = [False, False, True, True, False, False, True, True]
    add_samples(
        run,
        [
            raw_sample(
                0, words, [4.0, 4, 4, 4, 4, 9.5, 4, 4], known_triples=0.20, repetition=0.1, ends_known_triple=known
            ),
            raw_sample(
                1,
                ["a", "<unk>", "b", "c", "d"],
                [4.0, 99.0, 4.0, 5.0, 4.0],
                known_triples=0.25,
                repetition=0.11,
                ends_known_triple=[False, False, True, True, True],
            ),
        ],
    )
    stretch = longest_known_stretch(texts_of(behaved(run)))
    assert stretch is not None
    assert (stretch["length"], stretch["quote"]) == (4, "the model says that")
    unlikely = least_likely_word(texts_of(behaved(run)))
    assert unlikely is not None
    assert (unlikely["word"], unlikely["quote"]) == ("end", "that the end is near")
    (sentence,) = sample_sentences(behaved(run))
    strength, failure, quirk = (
        re.search(f"{part}: (.*?)[.] ?(?=[A-Z]|$)", sentence) for part in ("Strength", "Failure", "Quirk")
    )
    assert strength
    assert failure
    assert quirk
    assert "the model says that" in strength[1]
    assert "triples" in failure[1]
    assert "that the end is near" in failure[1]
    assert "among the 16 before" in quirk[1]


@pytest.mark.parametrize(
    ("tokens", "quote"),
    [
        ("x inf inf inf inf inf inf the model is", "inf the model is"),
        ("a b a b a b a b the end is near", "a b the end is near"),
        ("the model of the data", "the model of the data"),
    ],
)
def test_a_stretch_that_repeats_itself_is_not_quoted_as_the_longest(run: RunDirectory, tokens: str, quote: str) -> None:
    words = tokens.split()
    add_behaviour(run)
    add_samples(run, [raw_sample(0, words, ends_known_triple=[place > 1 for place in range(len(words))])])
    stretch = longest_known_stretch(texts_of(behaved(run)))
    assert stretch is not None
    assert (stretch["length"], stretch["quote"]) == (len(quote.split()), quote)


@pytest.mark.parametrize(
    ("share", "number", "away"),
    [(0.75, 4, 0.0), (1.0, 4, math.inf), (0.5, 4, -math.inf), (1.0, 3, math.nan)],
)
def test_samples_that_all_have_one_share_are_judged_by_their_number(
    run: RunDirectory, share: float, number: int, away: float
) -> None:
    """Of four and four texts chance puts all of one kind first in 2 of 70 orders, of three and three in 2 of 20."""
    add_behaviour(run, held_out=[raw_measures(known_pairs=0.75)] * number)
    add_samples(run, [raw_sample(index, ["a", "b"], known_pairs=share) for index in range(number)])
    (one,) = behaved(run)
    assert standing(one)["known_pairs"]["away"] == pytest.approx(away, nan_ok=True)


def test_words_are_joined_as_one_reads_them() -> None:
    tokens = ["it", "is", "n't", "mr.", "<unk>", "'s", "N", "%", "<eos>", "no", ",", "$", "N"]
    assert plain_text(tokens, "word") == "it isn't mr. <unk>'s N%\nno, $N"
    assert plain_text(["a", " ", "b", "<eos>", "c"], "char") == "a b\nc"


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_hostile_tokens_are_escaped_and_the_title_says_entropy_and_probability(run: RunDirectory) -> None:
    add_behaviour(run)
    add_samples(run, [raw_sample(0, [HOSTILE, '"q"', "<eos>", "```"], copied=[HOSTILE])])
    files = report_files(load_study(run.path.parent))
    page = files["index.html"].decode()
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; · entropy 1.00 nats · p 0.14" in page
    for name in ("index.html", "samples.html"):
        assert HOSTILE not in files[name].decode()
        assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; · entropy" in files[name].decode()
    assert 'href="samples.html' in page
    assert 'href="index.html' in files["samples.html"].decode()
    for name in ("report.md", "samples.md"):
        assert f"[the] {HOSTILE}" in files[name].decode(), "the given first word is marked"
    assert "](samples.md)" in files["report.md"].decode()
    assert "data/samples.csv" in files
    assert files["data/behaviour.csv"].decode().splitlines()[1].endswith("loss_zero_state,1,6.0")


def test_an_earlier_checkpoint_is_told(run: RunDirectory) -> None:
    run.best_checkpoint.write_bytes(b"parameters")
    add_behaviour(run, checkpoint_sha256=hashlib.sha256(b"parameters").hexdigest())
    assert load_study(run.path.parent).warnings == []
    run.best_checkpoint.write_bytes(b"other parameters")
    study = load_study(run.path.parent)
    assert "computed from an earlier checkpoint" in study.warnings[0]


def test_runs_without_behaviour_are_named_with_the_command(run: RunDirectory) -> None:
    study = load_study(run.path.parent)
    assert "seqlm behaviour optimizers" in said(behaviour_section(study).blocks)
    assert samples_page(study) == []
    make_run(run.path.parent, 3, epochs=2)
    add_behaviour(run)
    first = said(behaviour_section(load_study(run.path.parent)).blocks[:1])
    assert "4 gru-adam. " in first
    assert "seqlm behaviour optimizers --only name=gru-adam" in first


def test_the_runs_that_the_manifest_asks_about_are_named_and_not_the_best_ones(run: RunDirectory) -> None:
    folder = run.path.parent
    asked = make_run(folder, 3, epochs=2, done=False)
    planned = {"number": 5, "name": "gru-sgd", "fingerprint": "5" * 64}
    names = ["5" * 64, *(one.path.name.rpartition("-")[2] for one in (run, asked))]
    make_run(folder, 6, epochs=2)  # the best Transformer, which is not asked about
    write_json(folder / "study.json", {"planned": [planned], "behaviour": names})
    text = said(behaviour_section(load_study(folder)).blocks)
    assert "4 gru-adam and 5 gru-sgd" in text
    assert "seqlm behaviour optimizers --only name=rnn-adam”" in text
    assert "transformer" not in text
