from __future__ import annotations

from benchmarks.shapes import select


def test_groups_and_names_mix_and_nothing_is_measured_twice() -> None:
    names = [shape.name for shape in select(["gru-2x256-b20", "small", "rnn-2x1500-b20", "gru-2x256-b20"])]
    assert names[:2] == ["gru-2x256-b20", "rnn-2x200-b20"]
    assert names[-1] == "rnn-2x1500-b20"
    assert len(names) == 6
