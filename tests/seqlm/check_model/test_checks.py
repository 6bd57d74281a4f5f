"""The checks of a user's own model: each fault is caught by the check that is about it, in words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from seqlm.architectures import CustomConfig
from seqlm.check_model import __main__
from seqlm.check_model.__main__ import answers
from seqlm.models import reference
from tests.seqlm.check_model.faulty import FAULTS, write_model

EXAMPLES = Path(__file__).parents[3] / "examples"


def answer(folder: Path, source: str = "model.py:Model", *, ranks: bool = False, **config: Any) -> dict[str, Any]:
    raw = {"arch": "custom", "source": source, **config}
    (found,) = answers([{"folder": str(folder), "config": raw, "vocab_size": 50, "seq_len": 9, "ranks": ranks}])
    return found


def lines(found: dict[str, Any], level: str = "bad") -> list[str]:
    return [f"{one['subject']}: {one['text']}" for one in found["findings"] if one["level"] == level]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "check", "line"), FAULTS.values(), ids=FAULTS.keys())
def test_each_fault_is_caught_by_its_check(
    tmp_path: Path, changes: list[tuple[str, str]], check: str, line: str
) -> None:
    write_model(tmp_path, *changes)
    found = lines(answer(tmp_path))
    assert found[0].startswith(f"{check}: {line}"), found
    assert "training draws" not in found[0]
    also = {"carried state"} if check != "causality" else {"micro-batches", "carried state"}
    assert {one.partition(": ")[0] for one in found} <= {check, *also}, found


DROPOUTS = {
    "module": ("self.drop = nn.Dropout(0.5)", "h = self.drop(h)"),
    "of seqlm": ("from seqlm.models.dropout import Dropout; self.drop = Dropout(0.5)", "h = self.drop(h)"),
    "function": (
        "from torch.nn.functional import dropout as drop; self.drop = drop",
        "h = self.drop(h, 0.5, self.training)",
    ),
    "of an LSTM": ("self.lstm = nn.LSTM(hidden_size, hidden_size, 2, dropout=0.5)", "h = self.lstm(h)[0]"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("init", "hidden"), DROPOUTS.values(), ids=DROPOUTS.keys())
def test_training_is_compared_without_dropout_alone(tmp_path: Path, init: str, hidden: str) -> None:
    """A sound model passes with any dropout, and one that is wrong only in training is refused with it."""
    write_model(tmp_path, ("# init", init), ("# hidden", hidden + "\n        # more"))
    found = answer(tmp_path)
    assert {one for one in lines(found) if not one.startswith("carried state")} == set()
    assert "in evaluation" not in str(found)
    mixes = "h = h - h.mean(dim=1, keepdim=True) if self.training else h"
    write_model(tmp_path, ("# init", init), ("# hidden", f"{hidden}; {mixes}"))
    assert {one.partition(": ")[0] for one in lines(answer(tmp_path))} >= {"causality", "micro-batches"}


@pytest.mark.slow
def test_other_random_numbers_in_training_are_named(tmp_path: Path) -> None:
    write_model(tmp_path, ("# hidden", "h = h * (1 + torch.rand_like(h)) if self.training else h"))
    found = answer(tmp_path)
    assert not lines(found)
    assert [one.partition(":")[0] for one in lines(found, "ok") if "in evaluation: training draws" in one] == [
        "causality",
        "micro-batches",
    ]


@pytest.mark.slow
def test_a_model_that_keeps_the_contract_passes_and_is_measured(tmp_path: Path) -> None:
    write_model(tmp_path)
    found = answer(tmp_path, arguments={"hidden_size": 6})
    assert not lines(found)
    assert not lines(found, "note")
    parameters = 50 * 6 + (12 * 6 + 6) + (6 * 50 + 50)
    assert found["sizes"]["parameters"] == parameters
    assert found["sizes"]["flops_per_token"] == 6 * (12 * 6 + 6 * 50)
    assert found["sizes"]["saved_bytes_per_column"] > 9 * 50 * 4, "the logits of a column, at least"


def test_models_that_differ_in_a_probability_are_tested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(
        tmp_path,
        ("hidden_size=8", "hidden_size=8, keep=0.5, keeps=None"),
        ("# init", "self.keep = keep; assert keep <= 1"),
        ("# hidden", "h = h.clone() if self.keep == 1 else nn.functional.dropout(h, 1 - self.keep, self.training)"),
    )
    tested = []

    def examine(subject: Any, *, ranks: bool) -> dict[str, Any]:
        tested.append(dict(subject.config.arguments))
        return {}

    monkeypatch.setattr(__main__, "examine", examine)

    def request(**arguments: Any) -> dict[str, Any]:
        config = {"arch": "custom", "source": "model.py:Model", "arguments": arguments, "sha256": None}
        return {"folder": str(tmp_path), "config": config, "vocab_size": 50, "seq_len": 9, "ranks": False}

    alike = [request(keep=keep) for keep in (0.25, 0.5, 0.75)]
    others = [request(keep=1.0), request(keep=0.5, hidden_size=9), request(keep=0.5, keeps="x"), request(keep=1.5)]
    found = list(answers([*alike, *others]))
    assert tested == [alike[0]["config"]["arguments"], *(other["config"]["arguments"] for other in others)]
    assert found[0] == found[1] == found[2]
    assert [one["sizes"] and one["sizes"]["parameters"] for one in found[2:]] == [986, 986, 1121, 986, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RNN", "GRU", "Transformer"])
def test_the_reference_is_a_model_of_ones_own(tmp_path: Path, name: str) -> None:
    shutil.copy(reference.__file__, tmp_path / "model.py")
    sizes = {"hidden_size": 8, **({"num_heads": 2, "mlp_size": 6} if name == "Transformer" else {"embedding_size": 4})}
    found = answer(tmp_path, f"model.py:{name}", arguments=sizes)
    assert {finding["level"] for finding in found["findings"]} == {"ok"}, found["findings"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("folder", "source", "config"),
    [
        (
            "lstm",
            "lstm.py:LSTM",
            {"arguments": {"hidden_size": 12, "tied": True, "embedding_keep": 0.9, "weight_keep": 0.8}},
        ),
        ("min_gru", "min_gru.py:MinGRU", {"arguments": {"hidden_size": 12, "num_layers": 1}, "files": ["causal.py"]}),
    ],
)
def test_the_examples_pass_on_two_ranks_too(folder: str, source: str, config: dict[str, Any]) -> None:
    found = answer(EXAMPLES / folder, source, ranks=True, **config)
    assert not lines(found)
    assert "two ranks: two ranks take the step of one" in lines(found, "ok")


@pytest.mark.process
def test_a_model_whose_step_differs_on_two_ranks_alone_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, ("# hidden", "h = h * (1 + torch.distributed.is_initialized())"))
    (found,) = lines(answer(tmp_path, ranks=True))
    assert found.startswith("two ranks: two ranks are not one: the gradient by ")


BROKEN = {
    "missing file": (None, {}, "import: model.source: {folder}/model.py does not exist"),
    "syntax": (
        "def f(:\n",
        {},
        "import: model.source: model.py does not import: SyntaxError: invalid syntax (model.py l",
    ),
    "unknown name": (
        "import torch\nx = torhc\n",
        {},
        "import: model.source: model.py does not import: NameError: name 'torhc' is not defined (model.py line 2)",
    ),
    "file next to it": (
        "import cells_of_mine\n",
        {},
        "import: model.source: model.py does not import: ModuleNotFoundError: No module named 'cells_of_mine' "
        "(model.py line 1); model.files names the files that it imports",
    ),
    "no such class": ("import torch\n", {}, "import: model.source: model.py has no class Model"),
    "no module": (
        "class Model: pass\n",
        {},
        "import: model.source: model.py has not a subclass of torch.nn.Module: Model",
    ),
    "prints": ("print('hello')\n", {}, 'import: model.source: model.py prints "hello" when it is imported; remove the'),
    "forks": (
        "import os\nif not os.fork(): os._exit(0)\n",
        {},
        "import: model.source: model.py starts a process when it is imported; move that into a function",
    ),
    "exits": (
        "raise SystemExit(3)\n",
        {},
        "import: model.source: model.py does not import: SystemExit: 3 (model.py line 1)",
    ),
    "wrong argument": (
        "sound",
        {"arguments": {"hidden": 4}},
        "import: model.arguments: Model cannot be made with hidden = 4: TypeError: Model.__init__() got an unexpected",
    ),
    "impossible argument": (
        "sound",
        {"arguments": {"hidden_size": -4}},
        "import: model.arguments: Model cannot be made with hidden_size = -4: RuntimeError: Trying to create",
    ),
    "no initial_state": (
        "from torch import nn\nclass Model(nn.Linear):\n    def __init__(self, v):\n        super().__init__(v, v)\n",
        {},
        "import: model.source: Model has no method initial_state; see docs/guides/own-model.md",
    ),
    "raises in forward": (
        "raises",
        {},
        "shapes: fails: ZeroDivisionError: division by zero (model.py line ",
    ),
}


@pytest.mark.parametrize(
    ("text", "config", "line"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.process] if name == "forks" else [])
        for name, case in BROKEN.items()
    ],
)
def test_a_model_that_cannot_be_used_gets_one_line(
    tmp_path: Path, text: str | None, config: dict[str, Any], line: str
) -> None:
    if text in ("sound", "raises"):
        write_model(tmp_path, *([("# hidden", "h = 1 / 0")] if text == "raises" else []))
    elif text is not None:
        (tmp_path / "model.py").write_text(text)
    (found,) = lines(answer(tmp_path, **config))
    assert found.startswith(line.format(folder=tmp_path)), found


def test_a_changed_copy_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    config = CustomConfig(arch="custom", source="model.py:Model", sha256="0" * 64)
    (found,) = lines(answer(tmp_path, sha256=config.sha256))
    assert found.startswith(f"import: model.sha256: model.py in {tmp_path} changed: expected sha256 {'0' * 64}, found ")
