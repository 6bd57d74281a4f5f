import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

from analysis.blocks.section import Folded
from analysis.plots.behaviour import gradient_chart, loss_chart, rescaled
from analysis.report import report_files
from analysis.sections.behaviour import (
    behaviour_section,
    behaviour_sentences,
    behaviour_table,
    beyond,
    judges,
    samples_appendix,
    settles_at,
    vanishes_after,
)
from analysis.sections.samples import choose, chosen_samples, shade, texts_of
from analysis.study.examined import ExaminedRun, examined_runs
from analysis.study.study import load_study
from analysis.study.units import plain_text
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests.analysis.behaviour_made_up import add_behaviour, add_samples, raw_sample
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
    zero, carried = (panel.lines[0] for panel in loss.panels)
    assert zero.x.tolist() == [1, 2, 3, 4]
    assert zero.y.tolist() == [6.0, 5.0, 4.5, 4.25]
    assert carried.y.tolist() == [5.0, 4.75, 4.5, 4.25]
    scaled, absolute = (panel.lines[0].y for panel in gradient.panels)
    assert scaled.tolist() == [0.0, 0.25, 1.0]
    np.testing.assert_equal(absolute, [math.nan, 0.25, 1.0])
    assert gradient.panels[1].lines[1].y.tolist() == [0.5, 1.0, 2.0], "the mean of norms beside the norm of the mean"
    assert "Exact zeros" in gradient.caption


def test_the_table_says_how_far_back_and_the_means_over_steps_and_samples(run: RunDirectory) -> None:
    add_behaviour(run)
    add_samples(
        run, [raw_sample(i, ["a"], perplexity_other=v, repetition=r) for i, v, r in ((0, 10.0, 0.2), (1, 1000.0, 0.4))]
    )
    table = behaviour_table(behaved(run))
    cells = dict(zip((column.key for column in table.columns), table.rows[0].cells, strict=True))
    assert cells["zero_state_ppl"].value == pytest.approx(math.exp(4.9375))
    assert cells["carried_state_ppl"].value == pytest.approx(math.exp(4.625))
    assert cells["steps_to_1_percent"].value == 2
    assert cells["mean_of_norms_steps_to_1_percent"].value is None
    assert cells["perplexity_other"].value == pytest.approx(100)
    assert cells["repetition"].value == pytest.approx(0.3)


def test_each_judge_is_named_with_the_runs_that_it_rates(run: RunDirectory) -> None:
    """One judge rates all others, and a second one the judge: a column of numbers must not hide that."""
    add_behaviour(run, judge={"id": "b", "name": "the best", "checkpoint_sha256": "cd"})
    best = make_run(run.path.parent, 3, epochs=2)
    add_behaviour(best, judge={"id": "s", "name": "the second", "checkpoint_sha256": "cd"})
    named = judges(behaved(run))
    assert "the best (of 1)" in named
    assert "the second (of 4)" in named
    assert named in behaviour_table(behaved(run)).caption
    for one in (run, best):
        add_samples(one, [raw_sample(0, ["a"])])
    assert "under different judges compare only roughly" in said(behaviour_section(load_study(run.path.parent)).blocks)


def test_a_gradient_that_is_zero_by_construction_is_not_called_vanished(run: RunDirectory) -> None:
    norms = {"window": 3, "columns": 20, "overall": [0.0, 0.0, 1.0], "mean_of_norms": [0.0, 0.0, 2.0]}
    for order in (0, 6):
        add_behaviour(make_run(run.path.parent, order, epochs=2), gradient_norms={**norms, "layers": [[0.0, 0.0, 1.0]]})
    rnn, transformer = behaved(run)
    of_rnn, of_transformer = behaviour_sentences([rnn, transformer])[-2:]
    assert "below 1 % of its maximum 1 step back" in of_rnn
    assert "by construction" in of_transformer
    assert "below 1 %" not in of_transformer
    values = [row.cells[6].value for row in behaviour_table([rnn, transformer]).rows]
    assert values == [1, None]


def test_what_curves_come_to_at_their_limits() -> None:
    assert rescaled(np.array([5.0, 5.0])).tolist() == [0.0, 0.0]
    np.testing.assert_equal(rescaled(np.array([1.0, math.nan, 3.0])), [0.0, math.nan, 1.0])
    assert vanishes_after(np.array([0.5, 0.6, 1.0])) is None
    assert vanishes_after(np.array([0.0, 0.0, 1.0])) == 1
    assert vanishes_after(np.zeros(3)) is None
    assert settles_at(np.array([8.0] * 5 + [4.0] * 20)) == 6
    assert settles_at(np.array([4.0] * 10)) is None
    assert [shade(v, 0.5) for v in (0.0, 0.49, 0.5, 3.9, 99.0, math.nan)] == [0, 0, 1, 7, 7, 0]


def test_a_change_past_the_training_length_has_a_standard_error() -> None:
    inside = [4.0, 4.1, 3.9, 4.0, 4.1, 3.9]
    rise, same = ([value + by for value in inside] for by in (0.5, 0.01))
    # variances 0.01 of the three steps inside and 0.008 of the six after: sqrt(0.01 / 3 + 0.008 / 6)
    assert beyond(np.array(inside + rise), 6) == pytest.approx((0.5, 0.0683), abs=1e-4)
    assert beyond(np.array(inside + same), 6) == pytest.approx((0.01, 0.0683), abs=1e-4)
    assert beyond(np.array(inside), 6) is None


def test_best_leaves_out_heavy_repetition_and_the_reason_names_the_judge(run: RunDirectory) -> None:
    text = ["a", "b", "c"]
    add_behaviour(run)
    add_samples(
        run,
        [
            raw_sample(0, text, perplexity_other=2.0, repetition=0.9),
            raw_sample(1, text, perplexity_other=30.0),
            raw_sample(2, text, perplexity_other=20.0, copied=["a", "<unk>", "b"]),
            raw_sample(3, text, perplexity_other=25.0),
            raw_sample(4, text, perplexity_other=900.0),
            raw_sample(5, text, perplexity_other=None),
            raw_sample(6, text, perplexity_other=800.0),
            raw_sample(7, text, perplexity_other=90.0, copied=["b", "c"]),
            raw_sample(8, text, perplexity_other=91.0, entropy=[1.0, 1.0, 3.0]),
            raw_sample(9, text, perplexity_other=92.0, unk_share=0.5),
        ],
    )
    chosen = choose(texts_of(behaved(run)))
    assert {group: [text.sample.index for text, _ in texts] for group, texts in chosen.items()} == {
        "Best": [2, 3, 1],
        "Worst": [5, 4, 6],
        "Interesting": [7, 0, 8],
    }
    assert chosen["Best"][0][1] == "lowest perplexity 20.00 under the judge the judge"
    reasons = [reason for _, reason in chosen["Interesting"]]
    assert "2 tokens, “b c”" in reasons[0]
    assert "90 % of the tokens" in reasons[1]
    assert "by 2.00 nats" in reasons[2]


def test_the_samples_of_all_models_are_chosen_together_and_name_their_run(run: RunDirectory) -> None:
    other = make_run(run.path.parent, 3, epochs=2)
    for one, values in ((run, (50.0, 10.0)), (other, (40.0, 5.0))):
        add_behaviour(one)
        add_samples(one, [raw_sample(i, ["a"], perplexity_other=v) for i, v in enumerate(values)])
    (best, samples), *_ = chosen_samples(behaved(run)).groups
    assert best == "Best"
    labels = ["Sample 1 of 4 gru-adam", "Sample 1 of 1 rnn-adam", "Sample 0 of 4 gru-adam"]
    assert [sample["label"] for sample in samples] == labels
    appendix = samples_appendix(load_study(run.path.parent)).blocks
    assert [block.title for block in appendix if isinstance(block, Folded)] == [
        "Samples of 1 rnn-adam",
        "Samples of 4 gru-adam",
    ]


def test_without_a_judge_the_models_own_perplexity_decides_and_that_is_said(run: RunDirectory) -> None:
    add_behaviour(run, judge=None)
    values = enumerate((9.0, 5.0))
    add_samples(run, [raw_sample(i, ["a"], perplexity_own=v, perplexity_other=None) for i, v in values])
    best = choose(texts_of(behaved(run)))["Best"]
    assert [text.sample.index for text, _ in best] == [1, 0]
    assert "5.00 under the model itself (there is no judge)" in best[0][1]


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
    assert "Appendix: all samples" in page
    markdown = files["report.md"].decode()
    assert f"[the] {HOSTILE}" in markdown, "the given first word is marked"
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
    assert "launch.py behaviour optimizers" in said(behaviour_section(study).blocks)
    assert samples_appendix(study).blocks == []
    make_run(run.path.parent, 3, epochs=2)
    add_behaviour(run)
    first = said(behaviour_section(load_study(run.path.parent)).blocks[:1])
    assert "4 gru-adam. " in first
    assert "launch.py behaviour optimizers --only name=gru-adam" in first


def test_the_runs_that_the_manifest_asks_about_are_named_and_not_the_best_ones(run: RunDirectory) -> None:
    folder = run.path.parent
    asked = make_run(folder, 3, epochs=2, done=False)
    planned = {"number": 5, "name": "gru-sgd", "fingerprint": "5" * 64}
    names = ["5" * 64, *(one.path.name.rpartition("-")[2] for one in (run, asked))]
    make_run(folder, 6, epochs=2)  # the best Transformer, which is not asked about
    write_json(folder / "study.json", {"planned": [planned], "behaviour": names})
    text = said(behaviour_section(load_study(folder)).blocks)
    assert "4 gru-adam and 5 gru-sgd" in text
    assert "launch.py behaviour optimizers --only name=rnn-adam”" in text
    assert "transformer" not in text
