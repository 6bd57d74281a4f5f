from __future__ import annotations

from benchmarks.shapes import published, select


def test_groups_and_names_mix_and_nothing_is_measured_twice() -> None:
    names = [shape.name for shape in select(["gru-2x256-b20", "small", "rnn-2x1500-b20", "gru-2x256-b20"])]
    assert names[:2] == ["gru-2x256-b20", "rnn-2x200-b20"]
    assert names[-1] == "rnn-2x1500-b20"
    assert len(names) == 6


def test_a_shrunk_shape_keeps_architecture_heads_and_optimizer() -> None:
    for shape in published():
        shrunk = shape.shrunk()
        assert shrunk.config.model.arch == shape.config.model.arch
        assert shrunk.config.optim == shape.config.optim
        assert shrunk.config.model.hidden_size <= 32
        assert (shrunk.tokens, shrunk.vocab_size) == (4, 16)
