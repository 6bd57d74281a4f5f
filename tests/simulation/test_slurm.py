"""The model of SLURM does what a real one does, and nothing that no scenario asks of both."""

import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.simulation import slurm
from tests.simulation.kernel import Host, Kernel, Process
from tests.simulation.players import RULES, on_model, on_slurm
from tests.simulation.scenarios import NOT_ASKED, SCENARIOS
from tests.slurm.real import require_slurm

pytestmark = pytest.mark.process


TRIES = 3
"""How often a scenario is played on a real SLURM before it counts as different."""


def test_the_model_comes_to_what_a_real_slurm_comes_to(tmp_path: Path) -> None:
    require_slurm(accounting=True)
    model = on_model()
    different: dict[str, list[str]] = {name: [] for name in SCENARIOS}
    for attempt in range(1, TRIES + 1):
        # SLURM has limits of real seconds, which a machine that is busy for a minute lets pass. The scenarios that came
        # out differently are played again, without the others.
        real = real_outcomes(different, tmp_path / f"{attempt}")
        different = {name: seen for name, seen in real.items() if seen != model[name]}
        if not different:
            return
        report = "\n".join(line for name, seen in different.items() for line in (name, *compared(seen, model[name])))
        print(f"Try {attempt}: {report}")
    pytest.fail(report)


def real_outcomes(names: Collection[str], folder: Path) -> dict[str, list[str]]:
    """Play scenarios on real clusters at the same time, one for each kind of rules; return by name what was seen."""
    of_rules = [[name for name in names if SCENARIOS[name].rules == rules] for rules in RULES]
    with ThreadPoolExecutor(len(RULES)) as pool:
        played = [
            pool.submit(on_slurm, rules, mine, folder / rules)
            for rules, mine in zip(RULES, of_rules, strict=True)
            if mine
        ]
    return {name: seen for cluster in played for name, seen in cluster.result().items()}


def compared(real: Sequence[str], model: Sequence[str]) -> Iterator[str]:
    """Yield what the two clusters came to, line by line, until they differ."""
    for theirs, ours in zip([*real, "nothing"], [*model, "nothing"], strict=False):
        if theirs != ours:
            yield f"    SLURM: {theirs}"
            yield f"    model: {ours}"
            return
        yield f"    both: {theirs}"


def test_nothing_of_slurm_is_simulated_that_no_scenario_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set[int]()

    def line_of(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            seen.add(frame.f_lineno)
        return line_of

    def call_of(frame: FrameType, event: str, argument: object) -> Any:
        return line_of if frame.f_code.co_filename == slurm.__file__ else None

    spawn = Kernel.spawn

    def traced(self: Kernel, host: Host, words: Sequence[str], main: Callable[[], Any], **options: Any) -> Process:
        def run() -> Any:
            sys.settrace(call_of)
            return main()

        return spawn(self, host, words, run, **options)

    monkeypatch.setattr(Kernel, "spawn", traced)
    before = sys.gettrace()
    sys.settrace(call_of)
    try:
        on_model()
    finally:
        sys.settrace(before)
    lines = inspect.getsource(slurm).splitlines()
    never = {
        (code.co_qualname.replace(".<locals>", ""), lines[number - 1].strip())
        for code in functions_of(compile("\n".join(lines), slurm.__file__, "exec"))
        for number in {line for *_, line in code.co_lines() if line} - {code.co_firstlineno, *seen}
    }
    assert not {one for one in never if one[0] not in NOT_ASKED}
    assert {name for name, _ in never} >= {name for name in NOT_ASKED if "." in name}, "what no line needs"


def functions_of(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of all functions, without the bodies of classes."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if constant.co_flags & inspect.CO_OPTIMIZED:
                yield constant
            yield from functions_of(constant)
