from pathlib import Path

import pytest

from jobs.attempt.supervisor import MemoryKills, kill_count


@pytest.mark.parametrize("text", ["low 0\noom 3\noom_kill 2\n", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"])
def test_the_count_of_kills_is_read_from_the_first_file_that_tells(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text("low 0\n")
    (tmp_path / "b").write_text(text)
    assert kill_count([tmp_path / "absent", tmp_path / "a", tmp_path / "b"]) == 2
    assert kill_count([tmp_path / "absent"]) == 0


def test_each_kill_since_then_explains_one_death(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [0]
    monkeypatch.setattr("jobs.attempt.supervisor.own_kill_count", lambda: counted[0])
    kills = MemoryKills()
    counted[0] = 5
    assert not kills.explain_one(5), "those before its life were others'"
    counted[0] = 7
    assert [kills.explain_one(5) for _ in range(3)] == [True, True, False]
    counted[0] = 8
    assert not kills.explain_one(8)
    assert kills.explain_one(6)
