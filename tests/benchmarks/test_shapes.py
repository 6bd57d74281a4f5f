from __future__ import annotations

import pytest

from benchmarks.shapes import published, select, small, tiny
from seqlm.errors import UsageError


def test_the_published_shapes_stand_for_every_run_once() -> None:
    runs = {shape.name: shape.runs for shape in published()}
    assert runs == {
        "rnn-2x1500-b20": (1, 2),
        "rnn-2x512-b20": (3,),
        "gru-2x1500-b20": (4, 5, 6, 15),
        "transformer-2x512-b128": (7,),
        "transformer-6x512-b128": (8, 9, 17),
        "rnn-2x2000-b20": (10, 19),
        "rnn-2x2000-b128": (11,),
        "rnn-3x2000-b128": (12,),
        "gru-3x1500-b20": (13,),
        "gru-2x2000-b20": (14,),
        "transformer-6x512-b256": (16,),
        "transformer-6x1024-b128": (18,),
    }


def test_a_published_shape_has_the_keep_and_the_optimizer_of_its_first_run() -> None:
    (shape,) = select(["transformer-6x512-b128"])
    assert (shape.config.model.keep, shape.config.optim.optimizer) == (0.9, "sgd")
    assert (shape.config.train.seq_len, shape.config.train.clip_norm) == (35, 0.25)
    assert (shape.vocab_size, shape.tokens) == (10_000, 4480)


def test_small_shapes() -> None:
    names = [shape.name for shape in select(["small"])]
    assert names == ["rnn-2x200-b20", "gru-2x200-b20", "rnn-2x256-b20", "gru-2x256-b20", "transformer-2x256-b20"]


def test_all_is_published_and_small_and_no_name_stands_for_two_shapes() -> None:
    assert select(["all"]) == [*published(), *small()]
    names = [shape.name for shape in (*published(), *small(), *tiny())]
    assert len(set(names)) == len(names)


def test_groups_and_names_mix_and_nothing_is_measured_twice() -> None:
    names = [shape.name for shape in select(["gru-2x256-b20", "small", "rnn-2x1500-b20", "gru-2x256-b20"])]
    assert names[:2] == ["gru-2x256-b20", "rnn-2x200-b20"]
    assert names[-1] == "rnn-2x1500-b20"
    assert len(names) == 6


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("rnn-2x1500-b21", '--shapes: unknown shape "rnn-2x1500-b21"; did you mean "rnn-2x1500-b20"?'),
        ("publishd", '--shapes: unknown shape "publishd"; did you mean "published"?'),
    ],
)
def test_an_unknown_shape_is_one_line_with_the_nearest(given: str, wanted: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(["small", given])
    assert str(caught.value) == wanted


def test_an_unknown_shape_that_is_near_to_none_is_told_all() -> None:
    with pytest.raises(
        UsageError, match=r'^--shapes: unknown shape "zzzz"; expected one of published, small, all, tiny, rnn-'
    ):
        select(["zzzz"])


def test_a_shrunk_shape_keeps_architecture_heads_and_optimizer() -> None:
    for shape in published():
        shrunk = shape.shrunk()
        assert shrunk.config.model.arch == shape.config.model.arch
        assert shrunk.config.optim == shape.config.optim
        assert shrunk.config.model.hidden_size <= 32
        assert (shrunk.tokens, shrunk.vocab_size) == (4, 16)
