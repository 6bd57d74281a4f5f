"""The memory of a control group is found for both versions, in containers, and where an outer group has the limit."""

from pathlib import Path

from seqlm.machine import group_memory, memory_groups

V1 = "9:name=systemd:/\n4:cpu,memory:/box/7\n0::/\n"


def test_the_groups_around_a_process_are_found_in_both_versions(tmp_path: Path) -> None:
    assert memory_groups("0::/slice/job_7\n", tmp_path) == [tmp_path / "slice/job_7", tmp_path / "slice", tmp_path]
    found = memory_groups(V1, tmp_path)
    assert found[0] == tmp_path / "memory/box/7"
    assert tmp_path / "memory" in found, "as a container sees its own"


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")
    return folder


def test_the_lowest_limit_counts_with_the_peak_of_its_group(tmp_path: Path) -> None:
    task = write(tmp_path / "job/task", memory_peak="5", memory_max="max")
    job = write(tmp_path / "job", memory_peak="7", memory_max="9")
    old = write(tmp_path / "old", memory_max_usage_in_bytes="3", memory_limit_in_bytes="9223372036854771712")
    assert group_memory([task, job, tmp_path]) == (7, 9)
    assert group_memory([task, tmp_path]) == (5, None)
    assert group_memory([old]) == (3, None)
    assert group_memory([]) == (None, None)
