from __future__ import annotations

from pathlib import Path

import pytest

from jobs.attempt.memory_kills import MemoryKills, groups_files, kill_count

V1 = "9:name=systemd:/\n4:cpu,memory:/box/7\n0::/\n"


def test_files_of_both_versions_of_control_groups_are_looked_at(tmp_path: Path) -> None:
    found = groups_files("0::/slice/job_7\n", tmp_path)
    assert found == [tmp_path / "slice/job_7/memory.events", tmp_path / "memory.events"]
    assert tmp_path / "memory/box/7/memory.oom_control" in groups_files(V1, tmp_path)
    assert tmp_path / "memory/memory.oom_control" in groups_files(V1, tmp_path), "as a container sees its own"


@pytest.mark.parametrize("text", ["low 0\noom 3\noom_kill 2\n", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"])
def test_the_count_of_kills_is_read_from_the_first_file_that_tells(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text("low 0\n")
    (tmp_path / "b").write_text(text)
    assert kill_count([tmp_path / "absent", tmp_path / "a", tmp_path / "b"]) == 2
    assert kill_count([tmp_path / "absent"]) == 0


def test_each_kill_since_then_explains_one_death(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [0]
    monkeypatch.setattr("jobs.attempt.memory_kills.own_kill_count", lambda: counted[0])
    kills = MemoryKills()
    counted[0] = 5
    assert not kills.explain_one(5), "those before its life were others'"
    counted[0] = 7
    assert [kills.explain_one(5) for _ in range(3)] == [True, True, False]
    counted[0] = 8
    assert not kills.explain_one(8)
    assert kills.explain_one(6)
