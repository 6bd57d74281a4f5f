from __future__ import annotations

from pathlib import Path

import pytest

from seqlm import machine


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model name\t: Xeon\nflags\t\t: fpu avx512f avx512_bf16 sha_ni\n", True),
        ("flags\t\t: fpu amx_tile amx_bf16\n", True),
        ("Features\t: fp asimd i8mm bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("vendor_id\t: bf16\n", False),
        ("", False),
    ],
)
def test_bf16_is_found_among_the_processors_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.has_bf16() is found


@pytest.mark.process
def test_a_system_without_cpuinfo_is_taken_to_have_no_bf16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "absent")
    assert machine.has_bf16() is False
    assert machine.cpu_model()
